//! Alarms about lost agents: the clock, the inventory and the log around [`Lost`].
//!
//! ```text
//!   sessions, enrolment, revocation, grants ─► Lost ─► log: one line raised, one cleared
//!   every second: inventory's sights ─────────► ▲ └──► alarms, for the API
//! ```
//!
//! **Invariant:** an agent that was there while its domain ran is an alarm within
//! [`PROMISE`] of its loss, whatever ended it, unless its domain stopped or started anew
//! by then, or this server turns members away for its own sake.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use palisade_protocol::endpoint::{CONTROL_IDLE_TIMEOUT, CONTROL_KEEP_ALIVE};
use palisade_protocol::ids::AgentId;
use uuid::Uuid;

use super::lost::{Alarm, Change, End, Lost, Timing, Why};
use crate::interval::Interval;
use crate::inventory::keeper::View;
use crate::store::{MaintenanceRecord, Result, Store};
use crate::time::{millis, now_ms, rfc3339, steady_ms, wall_ms};

/// From the loss of an agent to its alarm.
pub const PROMISE: Duration = Duration::from_secs(30);
/// How long an agent whose session ended may take to come back.
pub const RECONNECT_GRACE: Duration = Duration::from_secs(5);
/// How long one may take whose guest closed its session: it was heard at once. A guest
/// that restarts stops its agent first, and then all else that it runs.
pub const FAREWELL_GRACE: Duration = Duration::from_secs(25);
/// How long members that were turned away may take to come back: an agent waits up to 43 s
/// between two attempts.
pub const TURNED_AWAY_GRACE: Duration = Duration::from_secs(45);
/// How often it is looked whether a grace is over or a domain is off.
pub const TICK: Duration = Duration::from_secs(1);

// A loss is noticed after a sign of life and the time without one, see
// `CONTROL_IDLE_TIMEOUT`; then the grace, and the look.
const _: () = assert!(
    CONTROL_KEEP_ALIVE.as_secs()
        + CONTROL_IDLE_TIMEOUT.as_secs()
        + RECONNECT_GRACE.as_secs()
        + TICK.as_secs()
        < PROMISE.as_secs()
);
const _: () = assert!(FAREWELL_GRACE.as_secs() + TICK.as_secs() < PROMISE.as_secs());

/// Alarms about agents.
#[derive(Debug)]
pub struct Alarms {
    inventory: View,
    lost: Mutex<Lost>,
}

impl Alarms {
    /// Nobody is watched yet.
    pub fn new(inventory: View, boot_grace: Interval) -> Self {
        let timing = Timing {
            reconnect_ms: millis(RECONNECT_GRACE),
            farewell_ms: millis(FAREWELL_GRACE),
            boot_ms: millis(boot_grace.get()),
            noticed_ms: millis(CONTROL_KEEP_ALIVE + CONTROL_IDLE_TIMEOUT),
            // Nobody can tell whether its guest restarts.
            unplaced_ms: millis(boot_grace.get()),
            turned_away_ms: millis(TURNED_AWAY_GRACE),
        };
        Self {
            inventory,
            lost: Mutex::new(Lost::new(timing)),
        }
    }

    /// Takes in the agents that the store knows, as gone since they were last heard, and
    /// the grants that have not ended.
    ///
    /// # Errors
    /// The store's.
    pub async fn load(&self, store: &dyn Store, now_ms: u64) -> Result<()> {
        let (agents, grants) = (store.agents().await?, store.maintenance(now_ms).await?);
        let mut lost = self.lock();
        let steady = steady_ms();
        for agent in agents {
            let gone_for = now_ms.saturating_sub(agent.last_seen_ms.unwrap_or(now_ms));
            let gone_ms = steady.saturating_sub(gone_for);
            lost.add(agent.id, agent.name, agent.product_uuid, gone_ms);
        }
        for grant in grants {
            lost.grant(grant, now_ms);
        }
        Ok(())
    }

    /// Looks every [`TICK`] until the task is dropped.
    pub async fn run(&self) {
        loop {
            tokio::time::sleep(TICK).await;
            let steady = steady_ms();
            let sights = self.inventory.sights(steady);
            let sight_of = |uuid| sights.get(&uuid).copied();
            let changes = self.lock().tick(steady, now_ms(), sight_of);
            for change in &changes {
                self.tell(change);
            }
        }
    }

    /// An agent joined.
    pub fn add(&self, id: AgentId, name: String, domain: Option<Uuid>) {
        self.lock().add(id, name, domain, steady_ms());
    }

    /// An agent's session began; each one that began is to be [ended](Self::ended).
    pub fn began(&self, id: AgentId, domain: Option<Uuid>) {
        let change = self.lock().began(id, domain);
        change.iter().for_each(|change| self.tell(change));
    }

    /// A session that had begun ended.
    pub fn ended(&self, id: AgentId, end: End) {
        self.lock().ended(id, end, steady_ms());
    }

    /// A member was turned away since this server cannot store that it is there.
    pub fn turned_away(&self) {
        self.lock().turned_away(steady_ms());
    }

    /// Whether that was so lately: members that are gone may have been turned away.
    pub fn turns_away(&self) -> bool {
        self.lock().turns_away(steady_ms())
    }

    /// An agent was revoked.
    pub fn forget(&self, id: AgentId) {
        let change = self.lock().forget(id);
        change.iter().for_each(|change| self.tell(change));
    }

    /// An agent may be stopped for a time.
    pub fn grant(&self, grant: MaintenanceRecord, now_ms: u64) {
        let change = self.lock().grant(grant, now_ms);
        change.iter().for_each(|change| self.tell(change));
    }

    /// An agent says which grant is in force in its guest; gives one that was given back.
    pub fn in_force(&self, id: AgentId, said: Option<Uuid>) -> Option<MaintenanceRecord> {
        self.lock().in_force(id, said)
    }

    /// It is on record that a grant was given back.
    pub fn on_record(&self, given_back: &MaintenanceRecord) {
        self.lock().on_record(given_back);
    }

    /// The grant by which an agent may be stopped now.
    pub fn granted(&self, id: AgentId, now_ms: u64) -> Option<MaintenanceRecord> {
        self.lock().granted(id, now_ms).cloned()
    }

    /// All alarms, the oldest first.
    pub fn all(&self) -> Vec<Alarm> {
        let mut alarms: Vec<Alarm> = self.lock().alarms().collect();
        alarms.sort_by_key(|alarm| (alarm.raised_ms, alarm.agent));
        alarms
    }

    fn tell(&self, change: &Change) {
        match change {
            Change::Raised(alarm) => {
                let domain = alarm.domain.unwrap_or_default();
                let facts = self.inventory.domain(domain);
                let name_of = facts.map_or_else(String::new, |facts| facts.name);
                let since = rfc3339(wall_ms(alarm.since_ms));
                match alarm.placed {
                    true => tracing::warn!(
                        agent = %alarm.agent,
                        name = %alarm.name,
                        %domain,
                        domain_name = %name_of.escape_debug(),
                        %since,
                        "alarm: an agent is gone although its domain runs"
                    ),
                    false => tracing::warn!(
                        agent = %alarm.agent,
                        name = %alarm.name,
                        %domain,
                        %since,
                        "alarm: an agent is gone, and no host knows its domain"
                    ),
                }
            }
            Change::Cleared(alarm, why) => {
                let why = match why {
                    Why::Back => "the agent is back",
                    Why::Revoked => "the agent was revoked",
                    Why::DomainOff => "its domain does not run any more",
                    Why::Restarted => "its domain has started anew",
                    Why::Maintenance => "a maintenance token allows it",
                };
                tracing::info!(agent = %alarm.agent, name = %alarm.name, why, "alarm is over");
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Lost> {
        self.lost.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
