//! Packets between processes: `SOCK_SEQPACKET`, so that a message is whole or not
//! there; at most one descriptor in each; nothing larger than [`MAX_PACKET`].

use crate::message::{MAX_PACKET, Message};
use crate::sys;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, Shutdown, SockFlag, SockType, sendmsg, shutdown,
    socketpair,
};
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// How long a sender waits before it tries again when the kernel has too many
/// descriptors in flight.
const IN_FLIGHT_PAUSE: Duration = Duration::from_millis(2);

/// Why a packet could not be sent or received.
#[derive(Debug, thiserror::Error)]
pub enum IpcError {
    /// The socket failed; a peer that is gone shows as a broken pipe.
    #[error("the socket to the other process: {0}")]
    Io(#[from] io::Error),
    /// Nothing came before the deadline.
    #[error("no answer before the deadline")]
    TimedOut,
    /// The packet is not a message of the expected kind.
    #[error("a malformed packet: {0}")]
    Malformed(String),
    /// The message to be sent breaks its bounds.
    #[error("a message is too large to be sent")]
    TooLarge,
}

impl From<Errno> for IpcError {
    fn from(errno: Errno) -> Self {
        Self::Io(errno.into())
    }
}

/// Encodes a message; fails if it breaks its bounds.
pub fn encode<M: Message>(message: &M) -> Result<Vec<u8>, IpcError> {
    if !message.within_bounds() {
        return Err(IpcError::TooLarge);
    }
    let config = bincode::config::standard().with_limit::<MAX_PACKET>();
    let packet = bincode::serde::encode_to_vec(message, config).map_err(|_| IpcError::TooLarge)?;
    if packet.len() > MAX_PACKET {
        return Err(IpcError::TooLarge);
    }
    Ok(packet)
}

/// Decodes a message: all of the packet, within the message's bounds.
pub fn decode<M: Message>(packet: &[u8]) -> Result<M, IpcError> {
    if packet.len() > MAX_PACKET {
        return Err(IpcError::Malformed(format!("{} bytes", packet.len())));
    }
    let config = bincode::config::standard().with_limit::<MAX_PACKET>();
    let (message, read): (M, usize) = bincode::serde::decode_from_slice(packet, config)
        .map_err(|error| IpcError::Malformed(error.to_string()))?;
    if read != packet.len() {
        return Err(IpcError::Malformed(format!(
            "{} bytes left over",
            packet.len() - read
        )));
    }
    if !message.within_bounds() {
        return Err(IpcError::Malformed(
            "a list is too long or empty".to_owned(),
        ));
    }
    Ok(message)
}

/// One end of a socket pair.
#[derive(Debug)]
pub struct Channel(OwnedFd);

impl Channel {
    /// A connected pair, close-on-exec.
    pub fn pair() -> io::Result<(Self, Self)> {
        let (a, b) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )?;
        Ok((Self(a), Self(b)))
    }

    /// Takes over one end that came from elsewhere; fails if it is something else
    /// than a socket that keeps packets apart.
    pub fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        let kind = nix::sys::socket::getsockopt(&fd, nix::sys::socket::sockopt::SockType)?;
        if kind != SockType::SeqPacket {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "not a SOCK_SEQPACKET socket",
            ));
        }
        Ok(Self(fd))
    }

    /// Gives the descriptor away, for a child's standard input.
    pub fn into_fd(self) -> OwnedFd {
        self.0
    }

    /// Ends the conversation in both directions, for every holder of this end.
    pub fn shut(&self) {
        // A socket that is already disconnected is as shut as it can be.
        let _ = shutdown(self.0.as_raw_fd(), Shutdown::Both);
    }

    /// Sends one message, with at most one descriptor. Blocks while the other side
    /// has many packets to read.
    pub fn send<M: Message>(
        &self,
        message: &M,
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<(), IpcError> {
        let packet = encode(message)?;
        let fds = fd.map(|fd| [fd.as_raw_fd()]);
        let rights = fds.as_ref().map(|fds| [ControlMessage::ScmRights(fds)]);
        let control = rights.as_ref().map_or(&[][..], |rights| &rights[..]);
        loop {
            match sendmsg::<()>(
                self.0.as_raw_fd(),
                &[IoSlice::new(&packet)],
                control,
                MsgFlags::MSG_NOSIGNAL,
                None,
            ) {
                Ok(sent) if sent == packet.len() => return Ok(()),
                Ok(_) => return Err(IpcError::Io(io::ErrorKind::WriteZero.into())),
                Err(Errno::EINTR) => {}
                // The kernel bounds descriptors in flight by user; they fly off as
                // the other side reads.
                Err(Errno::ETOOMANYREFS) => std::thread::sleep(IN_FLIGHT_PAUSE),
                Err(errno) => return Err(errno.into()),
            }
        }
    }

    /// Whether there is something to receive, an end included, or the socket failed.
    pub fn has_news(&self) -> bool {
        let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
        poll(&mut fds, PollTimeout::ZERO) != Ok(0)
    }

    /// Receives one message and its descriptor, if it has one; nothing when the
    /// other side is gone.
    pub fn receive<M: Message>(
        &self,
        deadline: Option<Instant>,
    ) -> Result<Option<(M, Option<OwnedFd>)>, IpcError> {
        if let Some(deadline) = deadline {
            self.wait_readable(deadline)?;
        }
        let mut buffer = vec![0; MAX_PACKET];
        let mut received = loop {
            match sys::receive(self.0.as_fd(), &mut buffer) {
                Ok(received) => break received,
                Err(Errno::EINTR) => {}
                Err(Errno::ECONNRESET) => return Ok(None),
                Err(errno) => return Err(errno.into()),
            }
        };
        if received.truncated {
            return Err(IpcError::Malformed(
                "longer than a packet may be".to_owned(),
            ));
        }
        if received.len == 0 {
            return Ok(None);
        }
        if received.fds.len() > 1 {
            return Err(IpcError::Malformed(format!(
                "{} descriptors",
                received.fds.len()
            )));
        }
        let message = decode(&buffer[..received.len])?;
        Ok(Some((message, received.fds.pop())))
    }

    fn wait_readable(&self, deadline: Instant) -> Result<(), IpcError> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            // Rounded up: a poll of 0 ms in the last millisecond would spin.
            let millis = left.as_micros().div_ceil(1000).min(i32::MAX as u128);
            let timeout = PollTimeout::try_from(millis as i32).unwrap_or(PollTimeout::MAX);
            let mut fds = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
            match poll(&mut fds, timeout) {
                Ok(0) if left.is_zero() => return Err(IpcError::TimedOut),
                Ok(0) | Err(Errno::EINTR) => {}
                Ok(_) => return Ok(()),
                Err(errno) => return Err(errno.into()),
            }
        }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
