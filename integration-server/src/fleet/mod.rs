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
//! | [`asking`] | what members are asked, and who waits for answers |
//! | [`lists`] | the lists that agents have in common, made once for each change |
//! | [`session`] | one session's sockets, queue and time limits |
//! | [`policies`] | the policies in force, and which one an agent has been told |
//! | [`pulls`] | definitions that Protection Servers fetch |
//! | [`roster`] | the Protection Servers that agents choose from (pure) |
//! | [`sessions`] | who is connected, and cutting who must not be |
//! | [`clones`] | whether a newcomer takes the place of an open session (pure) |
//! | [`claims`] | who says to be in which domain, and which are disputed (pure) |
//! | [`lost`] | which agents are gone although their domains run (pure) |
//! | [`alarms`] | the clock, the inventory and the log of the same |
//! | [`maintenance`] | who may stop an agent, and for how long |
//!
//! **Invariant:** a peer's message cannot make a session allocate beyond its named
//! bounds, and a slow peer holds up nobody but itself.

pub mod alarms;
pub mod asking;
pub mod claims;
pub mod clones;
pub mod conversation;
pub mod desk;
pub mod enrol;
pub mod limits;
pub mod listener;
mod lists;
pub mod lost;
pub mod maintenance;
pub mod policies;
pub mod pulls;
pub mod roster;
pub mod session;
pub mod sessions;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use palisade_protocol::choice::Choice;
use palisade_protocol::control::{MAX_REVOKED, SvmList, SvmReport};
use palisade_protocol::definitions::DefinitionsAnswer;
use palisade_protocol::ids::{AgentId, SvmId, TenantId};
use tokio::sync::watch;
use tokio::time::MissedTickBehavior;
use uuid::Uuid;

use crate::audit::Entry;
use crate::ca::Authority;
use crate::ca::renewal::OwnCertificates;
use crate::definitions::Repository;
use crate::inventory::keeper::View;
use crate::settings::FleetSettings;
use crate::store::{Change, Result, Store};
use crate::time::{millis, steady_ms};
use alarms::Alarms;
use asking::Asking;
use claims::{Claims, Dispute};
use lists::Lists;
use policies::Policies;
use roster::{Roster, Standing};
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
    /// Signed definitions.
    pub definitions: Arc<Repository>,
    /// Timing.
    pub settings: FleetSettings,
    /// Who is connected.
    pub sessions: Sessions,
    /// What Protection Servers were asked to do.
    pub orders: Asking<SvmId, DefinitionsAnswer>,
    /// What agents were asked about their choices.
    pub choices: Asking<AgentId, Choice>,
    /// Agents that are gone although their domains run.
    pub alarms: Alarms,
    policies: Policies,
    roster: Mutex<Roster>,
    claims: Mutex<Claims>,
    lists: Lists,
    changed: watch::Sender<u64>,
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
        definitions: Arc<Repository>,
        settings: FleetSettings,
        now_ms: u64,
    ) -> Result<Self> {
        let mut roster = Roster::new(millis(settings.svm_lost_after.get()));
        for svm in store.svms().await? {
            roster.add(svm.id, svm.name, svm.product_uuid, svm.report, steady_ms());
        }
        for svm in store.revoked_svms(MAX_REVOKED).await? {
            roster.add_revoked(svm.id, svm.report.as_ref());
        }
        let mut claims = Claims::default();
        for agent in store.agents().await? {
            claims.claim(agent.id, &agent.tenant, agent.product_uuid, steady_ms());
        }
        let alarms = Alarms::new(inventory.clone(), settings.agent_boot_grace);
        alarms.load(store.as_ref(), now_ms).await?;
        let policies = Policies::load(store.as_ref()).await?;
        Ok(Self {
            store,
            authority,
            own,
            inventory,
            definitions,
            settings,
            sessions: Sessions::default(),
            orders: Asking::default(),
            choices: Asking::default(),
            alarms,
            policies,
            roster: Mutex::new(roster),
            claims: Mutex::new(claims),
            lists: Lists::default(),
            changed: watch::Sender::new(0),
        })
    }

    /// Keeps roster and policies current until the task is dropped: time passes, domains
    /// move, and other servers change policies.
    pub async fn run(&self) {
        let mut moved = self.inventory.changes();
        // However often domains move.
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = tick.tick() => {
                    self.with_roster(|roster| roster.tick(steady_ms()));
                    self.follow_policies().await;
                }
                Ok(()) = moved.changed() => self.announce(),
            }
        }
    }

    /// Counts up whenever some agent's list or policy may have changed.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// The list for an agent of this tenant on the machine with this product UUID.
    pub fn list_for(&self, tenant: &TenantId, product_uuid: Option<Uuid>) -> SvmList {
        let version = *self.changed.borrow();
        let common = self.lists.get(version, tenant, || {
            let roster = self.lock();
            let entries = roster.entries(tenant, |uuid| self.inventory.place_of(uuid));
            (entries, roster.revoked(tenant))
        });
        let undisputed = product_uuid.filter(|uuid| !self.claims().is_disputed(*uuid));
        let (own_path, own_tags) = undisputed
            .and_then(|uuid| self.inventory.seat_of(uuid))
            .unwrap_or_default();
        SvmList {
            etag: roster::etag(&common.hash, &own_path, &own_tags),
            own_path,
            own_tags,
            svms: common.svms.clone(),
            revoked: common.revoked.clone(),
        }
    }

    /// All Protection Servers that are known, and how each stands to agents of a tenant.
    pub fn standings(&self, tenant: &TenantId) -> Vec<Standing> {
        self.lock().standings(tenant)
    }

    /// Protection Servers that have no session, listed or not.
    pub fn absent_svms(&self) -> Vec<roster::Absent> {
        self.lock().absent()
    }

    /// Domains that agents of several tenants say they are in.
    pub fn disputed(&self) -> Vec<Dispute> {
        self.claims().disputed()
    }

    /// An agent says in which domain it is.
    pub(crate) fn claimed(&self, id: AgentId, tenant: &TenantId, domain: Option<Uuid>) {
        let changed = self.claims().claim(id, tenant, domain, steady_ms());
        if changed {
            self.announce();
        }
    }

    pub(crate) fn svm_connected(&self, id: SvmId, name: &str, product_uuid: Option<Uuid>) {
        self.with_roster(|roster| roster.connected(id, name, product_uuid));
    }

    pub(crate) fn svm_reported(&self, id: SvmId, report: &SvmReport) {
        self.with_roster(|roster| roster.reported(id, report.clone()));
    }

    pub(crate) fn svm_gone(&self, id: SvmId) {
        self.with_roster(|roster| roster.gone(id, steady_ms()));
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
        let settled = self.claims().forget(id, steady_ms());
        if settled {
            self.announce();
        }
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
        if changed.is_done() {
            self.with_roster(|roster| roster.revoke(id));
        }
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

    fn claims(&self) -> std::sync::MutexGuard<'_, Claims> {
        self.claims.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Roster> {
        self.roster.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
