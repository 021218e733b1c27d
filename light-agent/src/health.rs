//! What the agent knows of its own state, in one place that everybody may read.
//!
//! Owns the posture (protection and Protection Server, whose change is reported at
//! once) and the state of the session with the Integration Server. Does not own
//! the counters' meaning ([`accounts`](crate::accounts)) or how state is shown
//! ([`status`](crate::status)).

use std::sync::Arc;
use std::time::Instant;

use palisade_protocol::bounded::Text;
use palisade_protocol::control::Protection;
use palisade_protocol::ids::SvmId;
use tokio::sync::watch;

use crate::accounts::Accounts;
use crate::selection::LinkState;

/// Why protection is off until the first self-test has ended.
pub const UNTESTED: &str = "not tested yet";

/// How the reason begins while there is nobody to ask.
pub const NO_SVM: &str = "no Protection Server is connected";

/// What is reported at once when it changes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Posture {
    /// On-access protection.
    pub protection: Protection,
    /// The Protection Server in force.
    pub svm: Option<SvmId>,
}

/// The session with the Integration Server.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct ServerState {
    /// Whether there is one.
    pub connected: bool,
    /// Why not.
    pub reason: Option<String>,
}

impl ServerState {
    /// There is one.
    pub fn connected() -> Self {
        Self {
            connected: true,
            reason: None,
        }
    }

    /// There is none, and why.
    pub fn disconnected(reason: &str) -> Self {
        Self {
            connected: false,
            reason: Some(reason.to_owned()),
        }
    }
}

/// The state. Clones share it.
#[derive(Clone)]
pub struct Health {
    /// When the agent started.
    pub started: Instant,
    accounts: Arc<Accounts>,
    posture: watch::Sender<Posture>,
    server: watch::Sender<ServerState>,
    clock_off_ms: watch::Sender<Option<i64>>,
}

impl Health {
    /// The state at the start.
    pub fn new(accounts: Arc<Accounts>) -> Self {
        let posture = Posture {
            protection: off(UNTESTED),
            svm: None,
        };
        Self {
            started: Instant::now(),
            accounts,
            posture: watch::Sender::new(posture),
            server: watch::Sender::new(ServerState::disconnected("not connected yet")),
            clock_off_ms: watch::Sender::new(None),
        }
    }

    /// The events' counters.
    pub fn accounts(&self) -> &Accounts {
        &self.accounts
    }

    /// The posture, to read or to watch.
    pub fn posture(&self) -> watch::Receiver<Posture> {
        self.posture.subscribe()
    }

    /// Sets on-access protection; a change is logged once.
    pub fn set_protection(&self, protection: Protection) {
        self.posture.send_if_modified(|posture| {
            if posture.protection == protection {
                return false;
            }
            match &protection {
                Protection::Blocking => tracing::info!("protection: blocking"),
                Protection::Monitoring => {
                    tracing::info!("protection: monitoring, nothing is blocked")
                }
                Protection::Off { reason } => tracing::warn!(%reason, "protection: off"),
            }
            posture.protection = protection;
            true
        });
    }

    /// Takes the Protection Server from the keeper's state.
    pub fn set_link(&self, state: &LinkState) {
        let svm = state.link().map(|link| link.id);
        self.posture.send_if_modified(|posture| {
            let changed = posture.svm != svm;
            posture.svm = svm;
            changed
        });
    }

    /// The session with the Integration Server.
    pub fn server(&self) -> ServerState {
        self.server.borrow().clone()
    }

    /// Milliseconds by which the Integration Server's clock was ahead of this one's when
    /// it was heard last.
    pub fn clock_off_ms(&self) -> Option<i64> {
        *self.clock_off_ms.borrow()
    }

    /// Takes the server's clock and this one's, at the same moment.
    pub fn set_clock(&self, server_ms: u64, own_ms: u64) {
        let (server, own) = (i128::from(server_ms), i128::from(own_ms));
        let off = i64::try_from(server - own).ok();
        self.clock_off_ms.send_replace(off);
    }

    /// Sets it; says whether it changed.
    pub fn set_server(&self, state: ServerState) -> bool {
        self.server.send_if_modified(|old| {
            let changed = *old != state;
            *old = state;
            changed
        })
    }
}

/// Protection that is off, and why.
pub fn off(reason: &str) -> Protection {
    Protection::Off {
        reason: Text::cut(reason),
    }
}
