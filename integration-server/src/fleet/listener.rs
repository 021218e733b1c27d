//! The control endpoint: accepts, names the peer, and hands it on.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use palisade_protocol::control::{self, ControlFrame, Denied, DeniedCode, EnrolRequest};
use palisade_protocol::endpoint::{self, Bounds, EndpointError};
use palisade_protocol::frame;
use palisade_protocol::tls::{self, Accept, Peer};
use quinn::{Connection, Endpoint, Incoming};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::conversation::Member;
use super::desk::denied;
use super::limits::{ENROL_GLOBAL, ENROL_SOURCE, Limiter, Open, source_of};
use super::sessions::Cut;
use super::{EXPIRY_GRACE, Fleet, session};
use crate::time;

/// How long a handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// How long an unenrolled peer may take to ask, and how long to take its answer.
pub const ENROL_TIMEOUT: Duration = Duration::from_secs(10);
/// Unenrolled peers at a time.
const MAX_UNENROLLED: usize = 256;
/// Unenrolled peers of one source at a time. Guests may share one behind a router.
pub const MAX_UNENROLLED_OF_SOURCE: usize = MAX_UNENROLLED / 4;
/// Handshakes at a time, above which an address has to prove itself first.
pub const UNPROVEN_HANDSHAKES: usize = 64;
/// Handshakes at a time.
const MAX_HANDSHAKES: usize = 512;

/// The bound control endpoint.
#[derive(Debug)]
pub struct Listener {
    endpoint: Endpoint,
    fleet: Arc<Fleet>,
    limiter: Mutex<Limiter>,
    handshakes: Arc<Semaphore>,
    unenrolled: Semaphore,
    /// The same by source.
    sources: Mutex<Open>,
}

impl Listener {
    /// Binds the endpoint.
    ///
    /// # Errors
    /// [`EndpointError`] naming the address.
    pub fn bind(address: SocketAddr, fleet: Arc<Fleet>) -> Result<Arc<Self>, EndpointError> {
        let trust = fleet.authority.trust();
        trust.grace.set(EXPIRY_GRACE);
        let accept = Accept {
            agents: true,
            svms: true,
            unenrolled: true,
        };
        let mut config = tls::server_config(&fleet.own.identity(), trust, accept, control::ALPN)
            .map_err(|error| EndpointError::Tls(error.to_string()))?;
        config.cert_resolver = fleet.own.control();
        let endpoint = endpoint::listen(address, config, Bounds::CONTROL)?;
        let limiter = Limiter::new(ENROL_GLOBAL, ENROL_SOURCE, time::steady_ms());
        Ok(Arc::new(Self {
            endpoint,
            fleet,
            limiter: Mutex::new(limiter),
            handshakes: Arc::new(Semaphore::new(MAX_HANDSHAKES)),
            unenrolled: Semaphore::new(MAX_UNENROLLED),
            sources: Mutex::default(),
        }))
    }

    /// The address that was bound.
    ///
    /// # Errors
    /// The socket's.
    pub fn local_address(&self) -> std::io::Result<SocketAddr> {
        self.endpoint.local_addr()
    }

    /// Accepts until [`Listener::stop`].
    pub async fn run(self: Arc<Self>) {
        while let Some(incoming) = self.endpoint.accept().await {
            let open = MAX_HANDSHAKES - self.handshakes.available_permits();
            if open >= UNPROVEN_HANDSHAKES && incoming.may_retry() {
                // An error means that it may not, which was just asked.
                let _ = incoming.retry();
            } else if let Ok(permit) = Arc::clone(&self.handshakes).try_acquire_owned() {
                let listener = Arc::clone(&self);
                tokio::spawn(async move { listener.serve(incoming, permit).await });
            } else {
                incoming.ignore();
            }
        }
    }

    /// Ends all sessions, and waits for their peers to hear it, for `patience` at most.
    pub async fn stop(&self, patience: Duration) {
        self.endpoint.close(1_u32.into(), b"the server stops");
        let _ = tokio::time::timeout(patience, self.endpoint.wait_idle()).await;
    }

    async fn serve(&self, incoming: Incoming, permit: OwnedSemaphorePermit) {
        let from = incoming.remote_address();
        let handshake = async {
            match incoming.accept() {
                Ok(connecting) => connecting.await,
                Err(error) => Err(error),
            }
        };
        let connection = match tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await {
            Ok(Ok(connection)) => connection,
            Ok(Err(error)) => return tracing::info!(%from, %error, "handshake refused"),
            Err(_) => return tracing::info!(%from, "handshake timed out"),
        };
        drop(permit);
        match endpoint::peer(&connection) {
            Ok(Peer::Unenrolled) => self.unenrolled(connection).await,
            Ok(Peer::Enrolled(peer)) => match Member::of(&peer) {
                Some(member) => session::run(&self.fleet, connection, peer, member).await,
                None => Cut::Refused.close(&connection),
            },
            Err(error) => {
                tracing::info!(%from, %error, "peer refused");
                Cut::Refused.close(&connection);
            }
        }
    }

    async fn unenrolled(&self, connection: Connection) {
        let from = connection.remote_address();
        let Ok(_permit) = self.unenrolled.try_acquire() else {
            return Cut::Refused.close(&connection);
        };
        let Some(_place) = Place::take(&self.sources, source_of(from.ip())) else {
            tracing::info!(%from, "too many peers without identity at once");
            return Cut::Refused.close(&connection);
        };
        let Ok(Some((mut send, request))) =
            tokio::time::timeout(ENROL_TIMEOUT, read_request(&connection)).await
        else {
            tracing::info!(%from, "a peer without identity did not ask to enrol");
            return Cut::Refused.close(&connection);
        };
        let answer = match self.decide(from, request).await {
            Ok(enrolled) => ControlFrame::Enrolled(enrolled),
            Err(denied) => {
                tracing::info!(%from, code = ?denied.code, "enrolment denied: {}", denied.message);
                ControlFrame::Denied(denied)
            }
        };
        let deliver = async {
            if frame::write(&mut send, &answer).await.is_ok() && send.finish().is_ok() {
                // The peer has it all when it closes or stops the stream.
                let _ = send.stopped().await;
            }
        };
        let _ = tokio::time::timeout(ENROL_TIMEOUT, deliver).await;
        Cut::Done.close(&connection);
    }

    async fn decide(
        &self,
        from: SocketAddr,
        request: EnrolRequest,
    ) -> Result<control::Enrolled, Denied> {
        let now_ms = time::now_ms();
        let source = source_of(from.ip());
        let allowed = self
            .limiter
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .allow(source, time::steady_ms());
        if !allowed {
            return Err(denied(
                DeniedCode::TooManyRequests,
                "too many components join at once; ask again in some seconds",
            ));
        }
        self.fleet.enrol(request, now_ms).await
    }
}

/// A place among those of a source, given back when dropped.
struct Place<'a> {
    sources: &'a Mutex<Open>,
    source: IpAddr,
}

impl<'a> Place<'a> {
    fn take(sources: &'a Mutex<Open>, source: IpAddr) -> Option<Self> {
        let mut open = sources.lock().unwrap_or_else(PoisonError::into_inner);
        // Not made where there is no room: its end gives a place back.
        open.add(source, MAX_UNENROLLED_OF_SOURCE)
            .then(|| Self { sources, source })
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut open = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        open.remove(self.source);
    }
}

/// The one request that an unenrolled peer may make.
async fn read_request(connection: &Connection) -> Option<(quinn::SendStream, EnrolRequest)> {
    let (send, mut receive) = connection.accept_bi().await.ok()?;
    match frame::read::<ControlFrame>(&mut receive).await {
        Ok(Some(ControlFrame::Enrol(request))) => Some((send, request)),
        _ => None,
    }
}
