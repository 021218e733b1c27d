//! The fleet: control sessions of agents and Protection Servers.
//!
//! ```text
//!   QUIC ─► listener ─┬─ no identity ─► enrol (limits ─► token ─► CSR) ─► Enrolled | Denied
//!                     └─ enrolled ────► session (one task)
//!                                        reader: frame ─► conversation ─► desk ─┐
//!                                        writer: answers, pushed lists ◄────────┘
//!                                                    ▲
//!   SvmReport, session begins or ends, inventory ─► roster ─► changed
//! ```
//!
//! | module | owns |
//! | --- | --- |
//! | [`listener`] | the endpoint, and which kind of peer goes where |
//! | [`enrol`] | who may have an identity |
//! | [`limits`] | token buckets (pure) |
//! | [`conversation`] | the order of a session's messages and who may say what (sans I/O) |
//! | [`desk`] | answers to requests |
//! | [`orders`] | orders to Protection Servers, and who waits for answers |
//! | [`session`] | one session's sockets, queue and time limits |
//! | [`roster`] | the Protection Servers that agents choose from (pure) |
//! | [`sessions`] | who is connected, and cutting who must not be |
//! | [`lost`] | which agents are gone although their domains run (pure) |
//! | [`alarms`] | the clock, the inventory and the log of the same |
//! | [`maintenance`] | who may stop an agent, and for how long |
//!
//! **Invariant:** a peer's message cannot make a session allocate beyond its named
//! bounds, and a slow peer holds up nobody but itself.

pub mod alarms;
pub mod conversation;
pub mod desk;
pub mod enrol;
pub mod limits;
pub mod listener;
pub mod lost;
pub mod maintenance;
pub mod orders;
pub mod roster;
pub mod session;
pub mod sessions;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use palisade_protocol::bounded::List;
use palisade_protocol::control::{MAX_SVMS, SvmEntry, SvmList, SvmReport};
use palisade_protocol::ids::{AgentId, SvmId};
use tokio::sync::watch;
use uuid::Uuid;

use crate::audit::Entry;
use crate::ca::Authority;
use crate::ca::renewal::OwnCertificates;
use crate::interval::Interval;
use crate::inventory::keeper::View;
use crate::settings::FleetSettings;
use crate::store::{Change, Result, Store};
use crate::time::millis;
use alarms::Alarms;
use orders::Orders;
use roster::Roster;
use sessions::Sessions;

/// How long an expired, unrevoked certificate may still open a session, to renew:
/// a guest that was off or reverted is not locked out.
pub const EXPIRY_GRACE: Duration = Duration::from_secs(90 * 24 * 3600);
/// How often the roster forgets who has been gone for too long.
const TICK: Duration = Duration::from_secs(5);

/// The fleet's shared state.
#[derive(Debug)]
pub struct Fleet {
    /// What is not forgotten.
    pub store: Arc<dyn Store>,
    /// Who vouches.
    pub authority: Arc<Authority>,
    /// The server's own identity.
    pub own: Arc<OwnCertificates>,
    /// Where domains are.
    pub inventory: View,
    /// Timing.
    pub settings: FleetSettings,
    /// Who is connected.
    pub sessions: Sessions,
    /// What Protection Servers were asked to do.
    pub orders: Orders,
    /// Agents that are gone although their domains run.
    pub alarms: Alarms,
    roster: Mutex<Roster>,
    published: Mutex<Option<Arc<Published>>>,
    changed: watch::Sender<u64>,
}

/// What all agents' lists have in common, as of one count of changes.
#[derive(Debug)]
struct Published {
    version: u64,
    hash: [u8; 32],
    svms: List<SvmEntry, MAX_SVMS>,
}

impl Fleet {
    /// A fleet with the Protection Servers that the store knows.
    ///
    /// # Errors
    /// The store's.
    pub async fn load(
        store: Arc<dyn Store>,
        authority: Arc<Authority>,
        own: Arc<OwnCertificates>,
        inventory: View,
        settings: FleetSettings,
        poll: Interval,
        now_ms: u64,
    ) -> Result<Self> {
        let mut roster = Roster::new(millis(settings.svm_lost_after.get()));
        for svm in store.svms().await? {
            roster.add(svm.id, svm.name, svm.product_uuid, svm.report, now_ms);
        }
        let alarms = Alarms::new(inventory.clone(), poll, settings.agent_boot_grace);
        alarms.load(store.as_ref(), now_ms).await?;
        Ok(Self {
            store,
            authority,
            own,
            inventory,
            settings,
            sessions: Sessions::default(),
            orders: Orders::default(),
            alarms,
            roster: Mutex::new(roster),
            published: Mutex::new(None),
            changed: watch::Sender::new(0),
        })
    }

    /// Keeps the roster current until the task is dropped: time passes, and
    /// domains move.
    pub async fn run(&self) {
        let mut moved = self.inventory.changes();
        loop {
            tokio::select! {
                () = tokio::time::sleep(TICK) => {
                    let now_ms = crate::time::now_ms();
                    self.with_roster(|roster| roster.tick(now_ms));
                }
                Ok(()) = moved.changed() => self.announce(),
            }
        }
    }

    /// Counts up whenever some agent's list may have changed.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// The list for an agent on the machine with this product UUID.
    pub fn list_for(&self, product_uuid: Option<Uuid>) -> SvmList {
        let published = self.published();
        let own_path = product_uuid
            .and_then(|uuid| self.inventory.place_of(uuid))
            .unwrap_or_default();
        SvmList {
            etag: roster::etag(&published.hash, &own_path),
            own_path,
            own_tags: List::default(),
            svms: published.svms.clone(),
        }
    }

    /// The list's common part, made once for each change: many agents ask for it.
    fn published(&self) -> Arc<Published> {
        let version = *self.changed.borrow();
        let mut published = self
            .published
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        match published.as_ref() {
            Some(current) if current.version == version => Arc::clone(current),
            _ => {
                let svms = self.lock().entries(|uuid| self.inventory.place_of(uuid));
                let hash = roster::hash(&svms);
                let new = Arc::new(Published {
                    version,
                    hash,
                    svms,
                });
                *published = Some(Arc::clone(&new));
                new
            }
        }
    }

    pub(crate) fn svm_connected(&self, id: SvmId, name: &str, product_uuid: Option<Uuid>) {
        self.with_roster(|roster| roster.connected(id, name, product_uuid));
    }

    pub(crate) fn svm_reported(&self, id: SvmId, report: &SvmReport) {
        self.with_roster(|roster| roster.reported(id, report.clone()));
    }

    pub(crate) fn svm_gone(&self, id: SvmId, now_ms: u64) {
        self.with_roster(|roster| roster.gone(id, now_ms));
    }

    /// Revokes an agent and cuts its session; false when there is none to revoke.
    ///
    /// # Errors
    /// The store's.
    pub async fn revoke_agent(&self, id: AgentId, entry: &Entry, now_ms: u64) -> Result<bool> {
        let change = Change::RevokeAgent(id);
        let changed = self.store.change(change, Some(entry), now_ms).await?;
        self.sessions.cut(id.0);
        self.alarms.forget(id);
        Ok(changed.is_done())
    }

    /// Revokes a Protection Server and cuts its session; false when there is none
    /// to revoke.
    ///
    /// # Errors
    /// The store's.
    pub async fn revoke_svm(&self, id: SvmId, entry: &Entry, now_ms: u64) -> Result<bool> {
        let change = Change::RevokeSvm(id);
        let changed = self.store.change(change, Some(entry), now_ms).await?;
        self.sessions.cut(id.0);
        self.with_roster(|roster| roster.remove(id));
        Ok(changed.is_done())
    }

    fn with_roster(&self, change: impl FnOnce(&mut Roster) -> bool) {
        let changed = change(&mut self.lock());
        if changed {
            self.announce();
        }
    }

    fn announce(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Roster> {
        self.roster.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
