//! The component's end of a control session with an Integration Server.
//!
//! ```text
//! Session::connect ─► Hello ─► Welcome ─► Active ──(stream or peer ends)──► closed
//! ```
//!
//! One task owns the stream's receiving half and sorts what arrives: answers go
//! to whoever asked, pushed messages into a bounded channel. Requests are sent
//! under a lock, so that sequences on the stream are in order. Reconnecting is
//! the caller's: it knows what to do meanwhile.

use std::collections::HashMap;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use palisade_protocol::control::{
    self, ControlFrame, Denied, DeniedCode, FromServer, Hello, ToServer, Welcome,
};
use palisade_protocol::endpoint::{self, Bounds, EndpointError};
use palisade_protocol::envelope::{EnvelopeError, Opener, Sealer};
use palisade_protocol::frame::{self, FrameError};
use palisade_protocol::spiffe::SpiffeId;
use palisade_protocol::tls::{self, Expect, Own, Peer};
use tokio::sync::{Mutex, mpsc, oneshot, watch};

use crate::membership::Membership;

/// How long connecting to one server may take, `Welcome` included.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an answer may take.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
/// Pushed messages that may wait; a list supersedes the one before, so few do.
const MAX_PUSHED: usize = 8;
/// Requests that may wait for answers.
const MAX_PENDING: usize = 64;

/// Why there is no session, or no answer.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// No server could be reached.
    #[error("no Integration Server answers: {0}")]
    Unreachable(String),
    /// The server refused.
    #[error("the Integration Server refused: {}", .0.message)]
    Denied(Denied),
    /// The session is over.
    #[error("the session with the Integration Server ended")]
    Closed,
    /// No answer came in time.
    #[error("the Integration Server did not answer within {} s", ANSWER_TIMEOUT.as_secs())]
    TimedOut,
    /// A frame is unacceptable.
    #[error(transparent)]
    Frame(#[from] FrameError),
    /// An envelope is unacceptable.
    #[error(transparent)]
    Envelope(#[from] EnvelopeError),
    /// The endpoint cannot be used.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// The peer broke the protocol's order.
    #[error("the Integration Server {0}")]
    Protocol(&'static str),
}

impl ControlError {
    /// Whether the server said that it cannot do it now: the session is as good as before.
    pub fn is_for_now(&self) -> bool {
        let codes = [DeniedCode::Unavailable, DeniedCode::TooManyRequests];
        matches!(self, Self::Denied(denied) if codes.contains(&denied.code))
    }
}

/// The local address from which a peer can be reached, whichever its family.
pub fn any_address(peer: SocketAddr) -> SocketAddr {
    match peer {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    }
}

/// The server's clock, kept from `Welcome` on by this machine's monotonic one:
/// a jump of the wall clock does not void envelopes.
#[derive(Debug, Clone, Copy)]
struct ServerClock {
    at_welcome_ms: u64,
    welcome: Instant,
}

impl ServerClock {
    fn now_ms(self) -> u64 {
        let since = u64::try_from(self.welcome.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.at_welcome_ms.saturating_add(since)
    }
}

/// An open session. Clones share it.
#[derive(Debug, Clone)]
pub struct Session {
    shared: Arc<Shared>,
    ended: watch::Receiver<bool>,
}

#[derive(Debug)]
struct Shared {
    connection: quinn::Connection,
    clock: ServerClock,
    sending: Mutex<Sending>,
    /// Who waits for which sequence's answer. Held only to insert and remove.
    waiting: std::sync::Mutex<HashMap<u64, oneshot::Sender<FromServer>>>,
}

#[derive(Debug)]
struct Sending {
    stream: quinn::SendStream,
    sealer: Sealer,
}

impl Session {
    /// Connects to the first server that lets it in, and says hello: one that cannot now, as
    /// without its store, is no reason not to ask the next. Gives the session, the server's welcome, and what the server pushes later.
    ///
    /// # Errors
    /// A [`ControlError`] that names each server that was tried.
    pub async fn connect(
        membership: &Membership,
        hello: Hello,
    ) -> Result<(Self, Welcome, mpsc::Receiver<FromServer>), ControlError> {
        let mut failures = Vec::new();
        for &server in &membership.servers {
            match tokio::time::timeout(CONNECT_TIMEOUT, open(membership, server, &hello)).await {
                Ok(Ok(opened)) => return Ok(opened),
                Ok(Err(error @ ControlError::Denied(_))) if !error.is_for_now() => {
                    return Err(error);
                }
                Ok(Err(error)) => failures.push(format!("{server}: {error}")),
                Err(_) => failures.push(format!(
                    "{server}: no answer within {} s",
                    CONNECT_TIMEOUT.as_secs()
                )),
            }
        }
        Err(ControlError::Unreachable(failures.join("; ")))
    }

    /// Sends a request and waits for its answer.
    ///
    /// # Errors
    /// [`ControlError::Denied`] when the server refuses it, and the session's own.
    pub async fn request(&self, message: &ToServer) -> Result<FromServer, ControlError> {
        let (answer_to, answer) = oneshot::channel();
        let sequence = self.send(message, answer_to).await?;
        let outcome = tokio::time::timeout(ANSWER_TIMEOUT, answer).await;
        if outcome.is_err() {
            self.shared.forget(sequence);
        }
        match outcome {
            Ok(Ok(FromServer::Denied(denied))) => Err(ControlError::Denied(denied)),
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(_)) => Err(ControlError::Closed),
            Err(_) => Err(ControlError::TimedOut),
        }
    }

    /// A stream of its own beside the session's, on which a Protection Server pulls
    /// ([`palisade_protocol::pull`]).
    ///
    /// # Errors
    /// [`ControlError::Closed`].
    pub async fn open_stream(
        &self,
    ) -> Result<(quinn::SendStream, quinn::RecvStream), ControlError> {
        let opened = self.shared.connection.open_bi().await;
        opened.map_err(|_| ControlError::Closed)
    }

    /// Waits until the session is over.
    pub async fn ended(&self) {
        let mut ended = self.ended.clone();
        // An error means that the receiving task is gone, which is the end too.
        let _ = ended.wait_for(|ended| *ended).await;
    }

    /// Ends the session.
    pub fn close(&self) {
        self.shared.connection.close(0_u32.into(), b"closing");
    }

    async fn send(
        &self,
        message: &ToServer,
        answer_to: oneshot::Sender<FromServer>,
    ) -> Result<u64, ControlError> {
        let mut sending = self.shared.sending.lock().await;
        let now_ms = self.shared.clock.now_ms();
        let (envelope, sequence) = sending.sealer.seal(message, None, now_ms)?;
        self.shared.expect(sequence, answer_to)?;
        let written = frame::write(&mut sending.stream, &ControlFrame::Envelope(envelope)).await;
        if let Err(error) = written {
            self.shared.forget(sequence);
            return Err(error.into());
        }
        Ok(sequence)
    }
}

impl Shared {
    fn waiting(&self) -> std::sync::MutexGuard<'_, HashMap<u64, oneshot::Sender<FromServer>>> {
        self.waiting
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn expect(
        &self,
        sequence: u64,
        answer_to: oneshot::Sender<FromServer>,
    ) -> Result<(), ControlError> {
        let mut waiting = self.waiting();
        if waiting.len() >= MAX_PENDING {
            return Err(ControlError::Protocol("owes more answers than may be open"));
        }
        waiting.insert(sequence, answer_to);
        Ok(())
    }

    fn forget(&self, sequence: u64) {
        self.waiting().remove(&sequence);
    }
}

async fn open(
    membership: &Membership,
    server: SocketAddr,
    hello: &Hello,
) -> Result<(Session, Welcome, mpsc::Receiver<FromServer>), ControlError> {
    let unreachable = |error: &dyn std::fmt::Display| ControlError::Unreachable(error.to_string());
    let identity = &membership.identity;
    let config = tls::client_config(
        Own::Enrolled(identity.clone()),
        identity.trust(),
        Expect::Server,
        control::ALPN,
    )
    .map_err(|error| unreachable(&error))?;
    let connection = endpoint::dialler(any_address(server))?
        .connect_with(
            endpoint::client(config, Bounds::CONTROL)?,
            server,
            endpoint::SERVER_NAME,
        )
        .map_err(|error| unreachable(&error))?
        .await
        .map_err(|error| unreachable(&error))?;
    let Peer::Enrolled(peer) = endpoint::peer(&connection)? else {
        return Err(ControlError::Protocol("has no identity"));
    };
    let (mut stream, mut receive) = connection
        .open_bi()
        .await
        .map_err(|error| unreachable(&error))?;
    let mut sealer = Sealer::new(identity.clone(), peer.clone(), 0)?;
    let own_now_ms = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |now| u64::try_from(now.as_millis()).unwrap_or(u64::MAX));
    let (envelope, sequence) = sealer.seal(&ToServer::Hello(hello.clone()), None, own_now_ms)?;
    frame::write(&mut stream, &ControlFrame::Envelope(envelope)).await?;
    let (welcome, opener) = welcomed(&mut receive, membership, peer, sequence, own_now_ms).await?;
    sealer.set_epoch(welcome.epoch);

    let shared = Arc::new(Shared {
        connection,
        clock: ServerClock {
            at_welcome_ms: welcome.server_time_ms,
            welcome: Instant::now(),
        },
        sending: Mutex::new(Sending { stream, sealer }),
        waiting: std::sync::Mutex::new(HashMap::new()),
    });
    let (push, pushed) = mpsc::channel(MAX_PUSHED);
    let (ended_sender, ended) = watch::channel(false);
    let receiving = Arc::clone(&shared);
    tokio::spawn(async move {
        if let Err(error) = receive_all(&receiving, receive, opener, push).await {
            tracing::debug!(%error, "the control session ends");
        }
        receiving.connection.close(0_u32.into(), b"");
        receiving.waiting().clear();
        let _ = ended_sender.send(true);
    });
    Ok((Session { shared, ended }, welcome, pushed))
}

/// Reads the answer to `Hello`.
async fn welcomed(
    receive: &mut quinn::RecvStream,
    membership: &Membership,
    peer: SpiffeId,
    hello: u64,
    now_ms: u64,
) -> Result<(Welcome, Opener), ControlError> {
    let identity = &membership.identity;
    let mut opener = Opener::new(identity.trust(), peer, identity.id().clone(), 0);
    match frame::read::<ControlFrame>(receive).await? {
        Some(ControlFrame::Envelope(envelope)) => {
            let opened = opener.open::<FromServer>(&envelope, now_ms)?;
            match opened.message {
                FromServer::Welcome(welcome) if opened.answers == Some(hello) => {
                    Ok((welcome, opener))
                }
                FromServer::Denied(denied) => Err(ControlError::Denied(denied)),
                _ => Err(ControlError::Protocol("did not answer the greeting")),
            }
        }
        Some(ControlFrame::Denied(denied)) => Err(ControlError::Denied(denied)),
        Some(_) => Err(ControlError::Protocol("did not answer the greeting")),
        None => Err(ControlError::Closed),
    }
}

async fn receive_all(
    shared: &Shared,
    mut receive: quinn::RecvStream,
    mut opener: Opener,
    push: mpsc::Sender<FromServer>,
) -> Result<(), ControlError> {
    while let Some(received) = frame::read::<ControlFrame>(&mut receive).await? {
        let envelope = match received {
            ControlFrame::Envelope(envelope) => envelope,
            ControlFrame::Denied(denied) => return Err(ControlError::Denied(denied)),
            ControlFrame::Enrol(_) | ControlFrame::Enrolled(_) => {
                return Err(ControlError::Protocol("sent an enrolment within a session"));
            }
        };
        let opened = opener.open::<FromServer>(&envelope, shared.clock.now_ms())?;
        match opened.answers {
            Some(sequence) => {
                let waiting = shared.waiting().remove(&sequence);
                if let Some(answer_to) = waiting {
                    // Whoever asked may have given up meanwhile.
                    let _ = answer_to.send(opened.message);
                }
            }
            // A full channel loses the push; the next poll brings list and policy.
            None => {
                if push.try_send(opened.message).is_err() {
                    tracing::debug!("a pushed message was dropped: nobody takes them");
                }
            }
        }
    }
    Ok(())
}
