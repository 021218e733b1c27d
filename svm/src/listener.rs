//! The QUIC listener: a session per agent, a task per stream.
//!
//! ```text
//!  Incoming ──handshake──► session ──first stream: Hello──► streams: one request each
//!     │ within HANDSHAKE      │ within HELLO
//!     └ else dropped          └ else closed
//! ```
//!
//! Owns who may talk and for how long nothing may be said; does not own what a
//! request comes to ([`crate::request`]). A peer's mistake ends its stream, at the
//! most its session, and reaches nobody else.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use palisade_protocol::bounded::Text;
use palisade_protocol::endpoint::{self, Bounds, EndpointError};
use palisade_protocol::identity::Identity;
use palisade_protocol::ids::{AgentId, TenantId};
use palisade_protocol::scan::{ALPN, Hello, ScanRequest, ToAgent, ToSvmRef, Welcome};
use palisade_protocol::spiffe::{Role, SpiffeId};
use palisade_protocol::tls::{self, Accept, Peer as TlsPeer};
use palisade_protocol::trust::Trust;
use palisade_protocol::verdict::Verdict;
use quinn::{Connection, Endpoint, Incoming, RecvStream, SendStream, VarInt};
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tracing::Instrument as _;

use crate::agents::{Agents, Close};
use crate::cache::{Key, now_ms};
use crate::failure::Failure;
use crate::request::{Caller, Peer, Service};

/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(5);
/// How long a session may take to say hello.
const HELLO: Duration = Duration::from_secs(10);
/// Handshakes at a time, above which an address has to prove itself first.
const UNPROVEN_HANDSHAKES: usize = 64;
/// Handshakes at a time.
const MAX_HANDSHAKES: usize = 512;
/// How long a last answer may take to arrive when the listener closes.
const CLOSE_WITHIN: Duration = Duration::from_secs(1);

/// Codes with which sessions are closed.
mod code {
    pub(super) const STOPPING: u32 = 1;
    pub(super) const NO_HELLO: u32 = 2;
    pub(super) const REPLACED: u32 = 3;
    pub(super) const FULL: u32 = 4;
    pub(super) const OTHER_TENANT: u32 = 5;
}

/// Why the listener cannot open.
#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    /// The identity does not serve.
    #[error("the identity cannot be used: {0}; remove it and enrol again")]
    Identity(String),
    /// The address, or the endpoint.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
}

/// An agent's session, as the table of agents holds it.
#[derive(Debug)]
pub struct Handle(Connection);

impl Close for Handle {
    fn close(&self) {
        self.0.close(
            VarInt::from_u32(code::REPLACED),
            b"a newer session replaced this one",
        );
    }
}

/// The open listener. Clones share it.
#[derive(Debug, Clone)]
pub struct Listener {
    endpoint: Endpoint,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    service: Arc<Service>,
    agents: Agents<Handle>,
    max_requests: u32,
    /// Whose agents may use it; empty for all.
    tenants: Vec<TenantId>,
    handshakes: Arc<Semaphore>,
    draining: AtomicBool,
}

impl Listener {
    /// Opens the UDP port. Agents of the identity's site may connect, by `trust`, and of
    /// these tenants; of all, if there are none.
    ///
    /// # Errors
    /// [`ListenError`] naming the address.
    pub fn open(
        address: SocketAddr,
        identity: &Identity,
        trust: Trust,
        service: Arc<Service>,
        agents: Agents<Handle>,
        max_requests: u32,
        tenants: Vec<TenantId>,
    ) -> Result<Self, ListenError> {
        let accept = Accept {
            agents: true,
            svms: false,
            unenrolled: false,
        };
        let tls = tls::server_config(identity, trust, accept, ALPN)
            .map_err(|error| ListenError::Identity(error.to_string()))?;
        let endpoint = endpoint::listen(address, tls, Bounds::SCAN_SERVER)?;
        let shared = Shared {
            service,
            agents,
            max_requests,
            tenants,
            handshakes: Arc::new(Semaphore::new(MAX_HANDSHAKES)),
            draining: AtomicBool::new(false),
        };
        Ok(Self {
            endpoint,
            shared: Arc::new(shared),
        })
    }

    /// The address in force.
    ///
    /// # Errors
    /// The socket's.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.endpoint.local_addr()
    }

    /// Takes connections until the endpoint is closed.
    pub async fn run(self) {
        while let Some(incoming) = self.endpoint.accept().await {
            let open = MAX_HANDSHAKES - self.shared.handshakes.available_permits();
            if self.shared.draining.load(Ordering::Relaxed) {
                incoming.refuse();
            } else if open >= UNPROVEN_HANDSHAKES && incoming.may_retry() {
                // An error means that it may not, which was just asked.
                let _ = incoming.retry();
            } else if let Ok(permit) = Arc::clone(&self.shared.handshakes).try_acquire_owned() {
                let shared = Arc::clone(&self.shared);
                tokio::spawn(async move {
                    let handshake = shake(incoming).await;
                    drop(permit);
                    if let Some((connection, id)) = handshake {
                        session(&shared, connection, id).await;
                    }
                });
            } else {
                incoming.ignore();
            }
        }
    }

    /// Takes no new sessions and no new requests from here on.
    pub fn drain(&self) {
        self.shared.draining.store(true, Ordering::Relaxed);
    }

    /// Ends all sessions.
    pub async fn close(&self) {
        self.endpoint
            .close(VarInt::from_u32(code::STOPPING), b"stopping");
        // Peers that do not answer are not waited for.
        let _ = timeout(CLOSE_WITHIN, self.endpoint.wait_idle()).await;
    }
}

async fn shake(incoming: Incoming) -> Option<(Connection, SpiffeId)> {
    let remote = incoming.remote_address();
    let connection = match timeout(HANDSHAKE, incoming).await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => {
            tracing::info!(%remote, %error, "a connection was not accepted");
            return None;
        }
        Err(_) => {
            tracing::debug!(%remote, "a handshake took too long");
            return None;
        }
    };
    match endpoint::peer(&connection) {
        Ok(TlsPeer::Enrolled(id)) => Some((connection, id)),
        // The verifier lets neither through.
        Ok(TlsPeer::Unenrolled) => None,
        Err(error) => {
            tracing::info!(%remote, %error, "a connection was not accepted");
            None
        }
    }
}

async fn session(shared: &Arc<Shared>, connection: Connection, id: SpiffeId) {
    let Role::Agent { tenant, id: agent } = id.role else {
        return;
    };
    if !shared.tenants.is_empty() && !shared.tenants.contains(&tenant) {
        tracing::warn!(%agent, %tenant, "an agent was turned away: `tenants` does not name its tenant");
        connection.close(
            VarInt::from_u32(code::OTHER_TENANT),
            b"this Protection Server does not serve this agent's tenant",
        );
        return;
    }
    let Some(_place) = shared.agents.session(agent, Handle(connection.clone())) else {
        tracing::warn!(%agent, "limits.sessions is reached; an agent was turned away");
        connection.close(
            VarInt::from_u32(code::FULL),
            b"this Protection Server is full",
        );
        return;
    };
    let takes_notices = match greet(shared, &connection).await {
        Ok(hello) => hello.notices,
        Err(reason) => {
            tracing::info!(%agent, reason, "a session did not begin");
            connection.close(VarInt::from_u32(code::NO_HELLO), reason.as_bytes());
            return;
        }
    };
    tracing::debug!(%agent, %tenant, remote = %connection.remote_address(), "an agent is connected");
    let caller = Arc::new(caller(tenant, agent));
    let serving = async {
        while let Ok((send, receive)) = connection.accept_bi().await {
            let (shared, caller) = (Arc::clone(shared), Arc::clone(&caller));
            // At most Bounds::SCAN_SERVER.peer_streams of a session at a time.
            tokio::spawn(async move { stream(&shared, &caller, send, receive).await });
        }
    };
    let telling = async {
        if takes_notices {
            let tenant = &caller.tenant;
            shared.service.retro.tell(agent, tenant, &connection).await;
        }
        std::future::pending().await
    };
    tokio::select! {
        () = serving => {}
        () = telling => {}
    }
    tracing::debug!(%agent, "an agent is gone");
}

fn caller(tenant: TenantId, agent: AgentId) -> Caller {
    Caller { tenant, agent }
}

async fn greet(shared: &Shared, connection: &Connection) -> Result<Hello, &'static str> {
    let greeting = async {
        let (send, receive) = connection.accept_bi().await.map_err(|_| "it ended")?;
        let mut peer = Peer::new(receive, send, HELLO);
        let Ok(ToSvmRef::Hello(hello)) = peer.next().await else {
            return Err("a Hello is expected on the first stream");
        };
        let welcome = ToAgent::Welcome(Welcome {
            version: Text::cut(env!("CARGO_PKG_VERSION")),
            max_scan_bytes: shared.service.bounds.max_scan_bytes,
            max_requests: shared.max_requests,
            generations: shared.service.scanner.generations(),
            load: shared.service.scanner.load(),
        });
        peer.tell(&welcome)
            .await
            .map_err(|_| "it took no Welcome")?;
        let _ = peer.send.finish();
        Ok(hello)
    };
    timeout(HELLO, greeting)
        .await
        .unwrap_or(Err("no Hello came in time"))
}

/// One request: whatever it ends in, the agent is told once.
async fn stream(shared: &Shared, caller: &Caller, send: SendStream, receive: RecvStream) {
    let gone = send.stopped();
    let mut peer = Peer::new(receive, send, shared.service.bounds.stall);
    let served = tokio::select! {
        served = serve(shared, caller, &mut peer) => served,
        // Stopped by the agent, or its session ended: nobody waits.
        _ = gone => return,
    };
    let answer = match served {
        Ok(result) => Some(result),
        Err(failure) => {
            tracing::debug!(agent = %caller.agent, %failure, "a request failed");
            shared.service.metrics.refused(&failure);
            failure.answer()
        }
    };
    if let Some(answer) = answer
        && peer.tell(&answer).await.is_ok()
    {
        // Already finished is finished.
        let _ = peer.send.finish();
    }
}

async fn serve(
    shared: &Shared,
    caller: &Caller,
    peer: &mut Peer<RecvStream, SendStream>,
) -> Result<ToAgent, Failure> {
    let _place = shared.agents.request(&caller.tenant, caller.agent)?;
    let first = peer.next().await?;
    if shared.draining.load(Ordering::Relaxed) {
        return Err(Failure::Stopping);
    }
    match first {
        ToSvmRef::Scan(request) => {
            let span = tracing::debug_span!(
                "request", agent = %caller.agent, content = %request.content, size = request.size
            );
            let served = shared.service.serve(caller, &request, peer);
            let mut result = served.instrument(span).await?;
            let service = &shared.service;
            match &result.verdict {
                Verdict::Clean => service.called_clean(caller.agent, &key(caller, &request)),
                bad @ Verdict::Malware { .. } => {
                    service.turned_bad(&caller.tenant, request.content, bad);
                }
                Verdict::Suspicious { .. } | Verdict::NotScanned(_) => {}
            }
            let whose = (caller.agent, request.content);
            result.verdict = service.judge(&caller.tenant, whose, result.verdict, now_ms());
            Ok(ToAgent::Verdict(result))
        }
        ToSvmRef::Lookup(lookup) => Ok(ToAgent::Known(shared.service.look_up(caller, &lookup))),
        ToSvmRef::Holds(holds) => Ok(ToAgent::Known(shared.service.holds(caller, &holds))),
        _ => Err(Failure::Protocol(
            "a Scan, a Lookup or a Holds is expected".to_owned(),
        )),
    }
}

/// What the SharedCache knows the content of a request by.
fn key(caller: &Caller, request: &ScanRequest) -> Key {
    Key {
        tenant: caller.tenant.clone(),
        content: request.content,
        size: request.size,
        options: request.options,
    }
}
