//! A session with one Protection Server.
//!
//! ```text
//!  connect ─► Hello ─► Welcome ─► up ──(closed, lost, silent for 2 s)──► down
//!                                  └─ quiet for 0.5 s: another one is asked, too
//! ```
//!
//! Owns the QUIC connection and its watch: while requests are open and nothing is
//! heard, it pings by a cancelled stream; after [`QUIET`] whoever waits is told, and
//! after [`SILENCE`] it closes the session, so that a dead Protection Server is noticed
//! long before the idle timeout. Does not own which Protection Server ([`selection`](crate::selection))
//! or what happens to a scan whose session is lost ([`scanner`](crate::scanner)).

mod exchange;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use palisade_daemon::control::any_address;
use palisade_protocol::bounded::{List, Text};
use palisade_protocol::endpoint::{self, Bounds, EndpointError};
use palisade_protocol::frame::{self, FrameError};
use palisade_protocol::identity::Identity;
use palisade_protocol::ids::SvmId;
use palisade_protocol::notice::Notice;
use palisade_protocol::scan::{
    self, Hello, Holds, Known, LoadHint, Lookup, ScanOptions, ScanRequest, ToAgent, ToSvm, Welcome,
};
use palisade_protocol::selection::Measured;
use palisade_protocol::spiffe::Role;
use palisade_protocol::tls::{self, Expect, Own, Peer};
use palisade_protocol::verdict::Generations;
use tokio::sync::{Notify, Semaphore, SemaphorePermit, watch};

use crate::selection::measurements::{LOAD_FRESH, Measurement};

pub use exchange::{Needed, Offer, Reply, Sent, Share};

/// How long connecting may take, `Welcome` included.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
/// With requests open, a session with nothing heard for this long is over.
pub const SILENCE: Duration = Duration::from_secs(2);
/// With requests open, a session with nothing heard for this long, although it was
/// pinged, is worth asking another one.
pub const QUIET: Duration = Duration::from_millis(500);
/// How often the watch looks while requests are open.
const LOOK: Duration = Duration::from_millis(250);

/// Fragments that a session's requests have in memory at a time, besides what QUIC holds:
/// that is four at the most, so that more would only wait here.
const FRAGMENTS_IN_HAND: usize = 6;

/// How long a notice may take from its stream's beginning.
const NOTICE_TIMEOUT: Duration = Duration::from_secs(10);

/// Where a Protection Server is, and who must answer there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target {
    /// Who must answer.
    pub id: Option<SvmId>,
    /// A name for people.
    pub name: String,
    /// Where to try, in this order.
    pub addresses: Vec<SocketAddr>,
}

/// Why there is no session, or why it ended.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The endpoint cannot be used, or the peer is not who it should be.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// The TLS identity is unusable.
    #[error("the agent's identity is unusable: {0}")]
    Identity(String),
    /// No connection came about.
    #[error("no connection: {0}")]
    Connect(String),
    /// It took too long.
    #[error("no answer within {} s", CONNECT_TIMEOUT.as_secs())]
    TimedOut,
    /// The session is lost.
    #[error("the session was lost: {0}")]
    Lost(String),
    /// The peer does not serve this now.
    #[error("the Protection Server refused: {0}")]
    Refused(String),
    /// The peer does not keep to the protocol.
    #[error("the Protection Server broke the protocol: {0}")]
    Protocol(String),
}

impl From<FrameError> for LinkError {
    fn from(error: FrameError) -> Self {
        match error {
            FrameError::Io(error) => Self::Lost(error.to_string()),
            FrameError::Codec(error) => Self::Protocol(error.to_string()),
        }
    }
}

/// An open session.
pub struct Link {
    /// Who it is.
    pub id: SvmId,
    /// Its name for people.
    pub name: String,
    /// Where it was reached.
    pub address: SocketAddr,
    /// What it said of itself.
    pub welcome: Welcome,
    /// What was connected to.
    pub target: Target,
    /// When the session began.
    pub since: Instant,
    connection: quinn::Connection,
    requests: Semaphore,
    /// Fragments that are read, and not with QUIC yet.
    in_hand: Semaphore,
    open: AtomicUsize,
    opened: Notify,
    ended: Notify,
    quiet: watch::Sender<bool>,
    load: Mutex<(Instant, LoadHint)>,
}

impl Link {
    /// Connects to the first address of a target that answers as it must.
    ///
    /// # Errors
    /// The last address's [`LinkError`].
    pub async fn connect(
        target: &Target,
        identity: &Identity,
        notices: bool,
    ) -> Result<Arc<Self>, LinkError> {
        let mut last = LinkError::Connect("it has no address".to_owned());
        for &address in &target.addresses {
            let attempt = Self::open(target, address, identity, notices);
            match tokio::time::timeout(CONNECT_TIMEOUT, attempt).await {
                Ok(Ok(link)) => {
                    let link = Arc::new(link);
                    tokio::spawn(watch_over(Arc::clone(&link)));
                    return Ok(link);
                }
                Ok(Err(error)) => last = error,
                Err(_) => last = LinkError::TimedOut,
            }
        }
        Err(last)
    }

    async fn open(
        target: &Target,
        address: SocketAddr,
        identity: &Identity,
        notices: bool,
    ) -> Result<Self, LinkError> {
        let expect = target.id.map_or(Expect::AnySvm, Expect::Svm);
        let own = Own::Enrolled(identity.clone());
        let config = tls::client_config(own, identity.trust(), expect, scan::ALPN)
            .map_err(|error| LinkError::Identity(error.to_string()))?;
        let connection = endpoint::dialler(any_address(address))?
            .connect_with(
                endpoint::client(config, Bounds::SCAN_AGENT)?,
                address,
                endpoint::SERVER_NAME,
            )
            .map_err(|error| LinkError::Connect(error.to_string()))?
            .await
            .map_err(|error| LinkError::Connect(error.to_string()))?;
        let id = match endpoint::peer(&connection)? {
            Peer::Enrolled(peer) => match peer.role {
                Role::Svm(id) => id,
                _ => {
                    return Err(LinkError::Protocol(format!(
                        "{peer} is no Protection Server"
                    )));
                }
            },
            Peer::Unenrolled => {
                return Err(LinkError::Protocol("it has no identity".to_owned()));
            }
        };
        let welcome = greet(&connection, notices)
            .await
            .map_err(|error| turned_away(&connection).unwrap_or(error))?;
        let now = Instant::now();
        Ok(Self {
            id,
            name: target.name.clone(),
            address,
            requests: Semaphore::new((welcome.max_requests as usize).clamp(1, 1024)),
            in_hand: Semaphore::new(FRAGMENTS_IN_HAND),
            load: Mutex::new((now, welcome.load)),
            welcome,
            target: target.clone(),
            since: now,
            connection,
            open: AtomicUsize::new(0),
            opened: Notify::new(),
            ended: Notify::new(),
            quiet: watch::Sender::new(false),
        })
    }

    /// Asks for a verdict on one stream, serving what content is asked for.
    ///
    /// # Errors
    /// [`LinkError`] when the session is lost or the peer breaks the protocol.
    pub async fn ask(&self, request: ScanRequest, offer: Offer<'_>) -> Result<Reply, LinkError> {
        let _permit = self.permit().await?;
        let _open = Open::new(self);
        let reply = exchange::run(&self.connection, &self.in_hand, request, offer).await?;
        if let Reply::Verdict(result) = &reply {
            self.take_load(result.load);
        }
        Ok(reply)
    }

    /// Asks which contents are known to be clean.
    ///
    /// # Errors
    /// [`LinkError`] when the session is lost, or the peer refuses or breaks the protocol.
    pub async fn look_up(&self, lookup: Lookup) -> Result<Known, LinkError> {
        self.say(&ToSvm::Lookup(lookup)).await
    }

    /// Says which contents the guest holds that were called clean.
    ///
    /// # Errors
    /// As [`Self::look_up`].
    pub async fn holds(&self, holds: Holds) -> Result<(), LinkError> {
        self.say(&ToSvm::Holds(holds)).await.map(drop)
    }

    async fn say(&self, message: &ToSvm) -> Result<Known, LinkError> {
        let _permit = self.permit().await?;
        let _open = Open::new(self);
        let known = exchange::say(&self.connection, message).await?;
        self.take_load(known.load);
        Ok(known)
    }

    /// Asks which definitions are in force there.
    ///
    /// # Errors
    /// As [`Self::look_up`].
    pub async fn definitions(&self) -> Result<Generations, LinkError> {
        let nothing = Lookup {
            options: ScanOptions::default(),
            max_age_s: 0,
            contents: List::default(),
        };
        Ok(self.look_up(nothing).await?.generations)
    }

    fn take_load(&self, load: LoadHint) {
        *self.load.lock().unwrap_or_else(PoisonError::into_inner) = (Instant::now(), load);
    }

    /// What the session has shown of its Protection Server.
    pub fn measured(&self) -> Measurement {
        let (at, load) = *self.load.lock().unwrap_or_else(PoisonError::into_inner);
        let round_trip = self.round_trip();
        Measurement {
            at,
            measured: Measured { load, round_trip },
        }
    }

    /// How long a new request of an open waits there, as it said the last time.
    pub fn queue_wait(&self) -> Duration {
        let shown = self.measured();
        match shown.at.elapsed() < LOAD_FRESH {
            true => Duration::from_millis(shown.measured.load.queue_wait_ms.into()),
            false => Duration::ZERO,
        }
    }

    /// The round trip as QUIC measures it.
    pub fn round_trip(&self) -> Duration {
        self.connection.rtt()
    }

    /// Whether this is a session with that target's Protection Server.
    pub fn is(&self, target: &Target) -> bool {
        match target.id {
            Some(id) => id == self.id,
            None => target.addresses.contains(&self.address),
        }
    }

    async fn permit(&self) -> Result<SemaphorePermit<'_>, LinkError> {
        self.requests
            .acquire()
            .await
            .map_err(|_| LinkError::Lost("the session is closed".to_owned()))
    }

    /// Waits for what the Protection Server says unasked; `None` when the session is
    /// over. A notice that is none ends it.
    pub async fn notice(&self) -> Option<Notice> {
        let mut stream = self.connection.accept_uni().await.ok()?;
        match tokio::time::timeout(NOTICE_TIMEOUT, frame::read(&mut stream)).await {
            Ok(Ok(Some(notice))) => Some(notice),
            _ => {
                self.close("a notice was expected on a stream of its own");
                None
            }
        }
    }

    /// Waits until the session is over, and says why.
    pub async fn closed(&self) -> String {
        self.connection.closed().await.to_string()
    }

    /// Whether the session is over.
    pub fn is_closed(&self) -> bool {
        self.connection.close_reason().is_some()
    }

    /// Why it is over; empty while it is not.
    pub fn close_reason(&self) -> String {
        let reason = self.connection.close_reason();
        reason.map_or_else(String::new, |reason| reason.to_string())
    }

    /// Waits until nothing has been heard for [`QUIET`] although requests are open.
    pub async fn quiet(&self) {
        let mut quiet = self.quiet.subscribe();
        // The sender is this session's own.
        let _ = quiet.wait_for(|quiet| *quiet).await;
    }

    /// Waits until no request is open.
    pub async fn idle(&self) {
        loop {
            let ended = self.ended.notified();
            if self.open.load(Ordering::Relaxed) == 0 {
                return;
            }
            ended.await;
        }
    }

    /// Ends the session.
    pub fn close(&self, reason: &str) {
        self.connection.close(0_u32.into(), reason.as_bytes());
    }

    fn set_quiet(&self, now: bool) {
        self.quiet
            .send_if_modified(|quiet| std::mem::replace(quiet, now) != now);
    }

    fn heard(&self) -> u64 {
        self.connection.stats().udp_rx.datagrams
    }

    /// Makes the peer answer: a stream that is cancelled at once has to be acknowledged.
    async fn ping(&self) {
        if let Ok(Ok((mut send, mut receive))) =
            tokio::time::timeout(LOOK, self.connection.open_bi()).await
        {
            let _ = send.reset(0_u32.into());
            let _ = receive.stop(0_u32.into());
        }
    }
}

/// Counts a request as open.
struct Open<'a>(&'a Link);

impl<'a> Open<'a> {
    fn new(link: &'a Link) -> Self {
        link.open.fetch_add(1, Ordering::Relaxed);
        link.opened.notify_one();
        Self(link)
    }
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
        self.0.ended.notify_waiters();
    }
}

/// What a Protection Server said when it closed a session, where it did: a stream's error
/// is only that the session is over.
fn turned_away(connection: &quinn::Connection) -> Option<LinkError> {
    match connection.close_reason()? {
        quinn::ConnectionError::ApplicationClosed(closed) if !closed.reason.is_empty() => {
            let reason = Text::<256>::cut(&String::from_utf8_lossy(&closed.reason));
            Some(LinkError::Refused(reason.as_str().to_owned()))
        }
        _ => None,
    }
}

async fn greet(connection: &quinn::Connection, notices: bool) -> Result<Welcome, LinkError> {
    let lost = |error: quinn::ConnectionError| LinkError::Lost(error.to_string());
    let (mut send, mut receive) = connection.open_bi().await.map_err(lost)?;
    let hello = Hello {
        version: Text::cut(crate::VERSION),
        notices,
    };
    frame::write(&mut send, &ToSvm::Hello(hello)).await?;
    let _ = send.finish();
    match frame::read::<ToAgent>(&mut receive).await? {
        Some(ToAgent::Welcome(welcome)) => Ok(welcome),
        Some(ToAgent::Refused(refusal)) => {
            Err(LinkError::Connect(refusal.message.as_str().to_owned()))
        }
        Some(_) => Err(LinkError::Protocol(
            "it did not answer the greeting".to_owned(),
        )),
        None => Err(LinkError::Lost("it ended the greeting".to_owned())),
    }
}

/// Closes a session that is silent while requests are open. Sleeps while none are.
async fn watch_over(link: Arc<Link>) {
    loop {
        tokio::select! {
            () = link.opened.notified() => {}
            _ = link.connection.closed() => return,
        }
        let mut heard = (link.heard(), Instant::now());
        // One that is quiet is watched until it is heard or over: requests that another
        // one has answered meanwhile are no sign of life.
        while link.open.load(Ordering::Relaxed) > 0 || *link.quiet.borrow() {
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                _ = link.connection.closed() => return,
            }
            let now = link.heard();
            if now != heard.0 {
                heard = (now, Instant::now());
                link.set_quiet(false);
                continue;
            }
            let silent = heard.1.elapsed();
            if silent >= SILENCE {
                link.close("silent");
                return;
            }
            link.set_quiet(silent >= QUIET);
            link.ping().await;
        }
    }
}
