//! The only unsafe code of this crate: descriptors out of packets, fork, and the
//! two ways of ending or clearing a forked child.

#![allow(unsafe_code)]

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use nix::unistd::{ForkResult, Pid};
use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Most descriptors that the kernel puts in one packet (`SCM_MAX_FD`). With room
/// for all of them, none can be installed here without our learning of it.
const SCM_MAX_FD: usize = 253;

/// One packet as it was received.
pub(crate) struct Received {
    /// Bytes written to the buffer.
    pub len: usize,
    /// The packet was longer than the buffer, or lost descriptors.
    pub truncated: bool,
    /// Every descriptor that came with it.
    pub fds: Vec<OwnedFd>,
}

/// Receives one packet; descriptors are close-on-exec.
pub(crate) fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> nix::Result<Received> {
    let mut control = nix::cmsg_space!([i32; SCM_MAX_FD]);
    let mut slices = [IoSliceMut::new(buffer)];
    let packet = recvmsg::<()>(
        socket.as_raw_fd(),
        &mut slices,
        Some(&mut control),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )?;
    let truncated = packet
        .flags
        .intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC);
    let mut fds = Vec::new();
    for message in packet.cmsgs()? {
        if let ControlMessageOwned::ScmRights(received) = message {
            // SAFETY: the kernel has just installed these descriptors for us;
            // nothing else in this process knows their numbers.
            fds.extend(
                received
                    .into_iter()
                    .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }),
            );
        }
    }
    Ok(Received {
        len: packet.bytes,
        truncated,
        fds,
    })
}

/// Forks. Gives the child's id in the parent and nothing in the child.
///
/// Fails when the process has more than one thread: a lock that another thread
/// holds would stay locked in the child for ever.
pub(crate) fn fork_single_threaded() -> io::Result<Option<Pid>> {
    let threads = std::fs::read_dir("/proc/self/task")?.count();
    if threads != 1 {
        return Err(io::Error::other(format!(
            "the zygote has {threads} threads instead of one"
        )));
    }
    // SAFETY: this is the only thread, as has just been checked, so the child may
    // go on as any process would.
    match unsafe { nix::unistd::fork() }? {
        ForkResult::Parent { child } => Ok(Some(child)),
        ForkResult::Child => Ok(None),
    }
}

/// Closes every descriptor but the standard three and `keep`.
///
/// To be called in a forked child only, whose copies of the zygote's descriptors
/// have no owner that would still use them.
pub(crate) fn close_all_but(keep: BorrowedFd<'_>) -> io::Result<()> {
    const FIRST: u32 = 3;
    let keep = u32::try_from(keep.as_raw_fd()).map_err(io::Error::other)?;
    let close = |first: u32, last: u32| {
        if first > last {
            return Ok(());
        }
        // SAFETY: close_range only closes descriptors. The caller owns `keep`, and
        // every other owner in this child has been dropped or is never dropped.
        Errno::result(unsafe { libc::syscall(libc::SYS_close_range, first, last, 0u32) }).map(drop)
    };
    if keep > FIRST {
        close(FIRST, keep - 1)?;
    }
    close(keep.saturating_add(1).max(FIRST), u32::MAX)?;
    Ok(())
}

/// Ends a forked child at once: no exit handlers, which are the zygote's.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: _exit takes any code, does not return, and touches no memory of ours.
    unsafe { libc::_exit(code) }
}
