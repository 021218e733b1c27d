//! Which agents are gone although their domains run. No sockets, no clock, no
//! inventory: sessions, sights and time are arguments. Time is steady milliseconds
//! ([`crate::time`]); grants alone are by the wall clock, as the guest's agent reads them.
//!
//! ```text
//!                 last session ends
//!    Present ─────────────────────────► Gone{since}, no alarm
//!       ▲                                 │          ▲
//!       │                  domain runs,   │          │ domain off or started anew, or a
//!       │ session begins   grace is over, │          │ grant covers the moment
//!       │                  no grant       ▼          │
//!       └─────────────────────────────── Gone{since}, alarm
//! ```
//!
//! *Which grace.* An agent that was there while its domain ran has [`Timing::reconnect_ms`]
//! from the end of its session, and [`Timing::farewell_ms`] where its guest closed it: that
//! was heard at once, so the time is there, and a guest that restarts says so before its
//! domain does. One that was not there yet, because the domain or this server has just
//! started, has [`Timing::boot_ms`] from when the domain was first seen to run. A session
//! that was open when the domain started may be one of the boot before: it counts once it
//! has lived for longer than a dead one can ([`Timing::noticed_ms`]).
//!
//! *Starts.* A domain starts when it was off, is resumed, or restarts from within. Whoever
//! is root in a guest can restart it for ever: only [`STARTS_EXCUSED`] starts in a row have
//! a grace, until the agent was there again.
//!
//! *What is not known.* Without facts of the domain no alarm is raised, and none is
//! cleared. When facts are back, the host may have been restarted with all its guests: the
//! grace of a boot begins. An agent whose domain no host knows may be anywhere, and its
//! guest off: it is an alarm when it is gone for longer than [`Timing::unplaced_ms`].

use std::collections::BTreeMap;

use palisade_protocol::ids::AgentId;
use uuid::Uuid;

use crate::inventory::sight::Sight;
use crate::store::MaintenanceRecord;

/// Starts of a domain in a row for which an agent that does not come has a grace: an
/// update of a kernel takes two.
pub const STARTS_EXCUSED: u32 = 3;

/// The graces, in milliseconds.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// From the end of a session until it is an alarm.
    pub reconnect_ms: u64,
    /// The same, of a session that the agent's end closed.
    pub farewell_ms: u64,
    /// From the start of a domain, or of this server, until an agent must be there.
    pub boot_ms: u64,
    /// The longest that a session whose other end is dead stays open.
    pub noticed_ms: u64,
    /// From when an agent is gone and no host knows its domain until it is an alarm.
    pub unplaced_ms: u64,
    /// From when this server turned members away for its own sake until they must be back.
    pub turned_away_ms: u64,
}

/// How a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The agent's end closed it.
    Farewell,
    /// Nothing was heard any more, or this end closed it.
    Cut,
}

/// An agent is gone although its domain runs, or no host knows its domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alarm {
    /// Which.
    pub agent: AgentId,
    /// Its name.
    pub name: String,
    /// The domain that it claims.
    pub domain: Option<Uuid>,
    /// Whether a host knows that domain.
    pub placed: bool,
    /// Since when it is gone.
    pub since_ms: u64,
    /// When that became an alarm.
    pub raised_ms: u64,
}

/// Why an alarm is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Why {
    /// The agent is back.
    Back,
    /// The agent was revoked.
    Revoked,
    /// The domain does not run any more.
    DomainOff,
    /// The domain has started anew.
    Restarted,
    /// The agent may be stopped.
    Maintenance,
}

/// What became of alarms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// There is a new one.
    Raised(Alarm),
    /// One is over.
    Cleared(Alarm, Why),
}

/// What the inventory said of a domain, from look to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Seen {
    Nothing,
    /// No host knows it.
    Unplaced {
        since_ms: u64,
    },
    Off,
    /// `began_ms`: as libvirt told it. `there`: the agent was, while the domain ran.
    Running {
        since_ms: u64,
        began_ms: Option<u64>,
        there: bool,
    },
}

#[derive(Debug)]
struct Known {
    name: String,
    domain: Option<Uuid>,
    /// Open sessions: a new one may begin before the old one's end is noticed.
    open: u32,
    /// When the last session ended.
    gone_ms: u64,
    /// How.
    end: End,
    seen: Seen,
    /// Starts of its domain since it was last there.
    starts: u32,
    grant: Option<MaintenanceRecord>,
    /// The guest has said that the grant is in force there.
    begun: bool,
    /// And that it is not any more.
    returned: bool,
    raised_ms: Option<u64>,
}

/// All agents that are not revoked.
#[derive(Debug)]
pub struct Lost {
    timing: Timing,
    /// No alarm is raised before this moment.
    not_before_ms: u64,
    agents: BTreeMap<AgentId, Known>,
}

impl Lost {
    /// Nobody yet.
    pub fn new(timing: Timing) -> Self {
        Self {
            timing,
            not_before_ms: 0,
            agents: BTreeMap::new(),
        }
    }

    /// Takes an agent in that is not connected, last heard at `gone_ms`. One that is
    /// known already stays as it is.
    pub fn add(&mut self, id: AgentId, name: String, domain: Option<Uuid>, gone_ms: u64) {
        self.agents.entry(id).or_insert(Known {
            name,
            domain,
            open: 0,
            gone_ms,
            end: End::Cut,
            seen: Seen::Nothing,
            starts: 0,
            grant: None,
            begun: false,
            returned: false,
            raised_ms: None,
        });
    }

    /// A member that would be let in was not, since this server cannot store that: others
    /// that are gone may have been turned away, too.
    pub fn turned_away(&mut self, now_ms: u64) {
        self.not_before_ms = now_ms.saturating_add(self.timing.turned_away_ms);
    }

    /// When that was so lately.
    pub fn turns_away(&self, now_ms: u64) -> bool {
        now_ms < self.not_before_ms
    }

    /// A session of the agent in this domain began. One of a revoked agent that slipped
    /// in is not known here, and counts for nothing.
    pub fn began(&mut self, id: AgentId, domain: Option<Uuid>) -> Option<Change> {
        let known = self.agents.get_mut(&id)?;
        let cleared = known.clear(id, Why::Back);
        known.open += 1;
        known.starts = 0;
        if known.domain != domain {
            known.domain = domain;
            known.seen = Seen::Nothing;
        }
        if let Seen::Running { there, .. } = &mut known.seen {
            *there = true;
        }
        cleared
    }

    /// A session that had begun ended.
    pub fn ended(&mut self, id: AgentId, end: End, now_ms: u64) {
        let Some(known) = self.agents.get_mut(&id).filter(|known| known.open > 0) else {
            return;
        };
        known.open -= 1;
        if known.open == 0 {
            known.gone_ms = now_ms;
            known.end = end;
        }
    }

    /// The agent was revoked.
    pub fn forget(&mut self, id: AgentId) -> Option<Change> {
        self.agents.remove(&id)?.clear(id, Why::Revoked)
    }

    /// The agent may be stopped for a time. The grant that ends last counts.
    pub fn grant(&mut self, grant: MaintenanceRecord, wall_ms: u64) -> Option<Change> {
        let id = grant.agent;
        let known = self.agents.get_mut(&id)?;
        let longer = |other: &MaintenanceRecord| other.until_ms >= grant.until_ms;
        if !known.grant.as_ref().is_some_and(longer) {
            known.grant = Some(grant);
            known.begun = false;
            known.returned = false;
        }
        known.covered(wall_ms)?;
        known.clear(id, Why::Maintenance)
    }

    /// The grant by which the agent may be stopped now.
    pub fn granted(&self, id: AgentId, wall_ms: u64) -> Option<&MaintenanceRecord> {
        self.agents.get(&id)?.covered(wall_ms)
    }

    /// The agent says which grant is in force in its guest. One that was, and is not any
    /// more, was given back there: it is over. Gives it, each time until that is
    /// [on record](Self::on_record).
    pub fn in_force(&mut self, id: AgentId, said: Option<Uuid>) -> Option<MaintenanceRecord> {
        let known = self.agents.get_mut(&id)?;
        let grant = known.grant.as_ref()?;
        if said == Some(grant.id) && !known.returned {
            known.begun = true;
            return None;
        }
        known.returned |= known.begun;
        known.returned.then(|| grant.clone())
    }

    /// It is on record that a grant was given back: a later start does not find it.
    pub fn on_record(&mut self, given_back: &MaintenanceRecord) {
        if let Some(known) = self.agents.get_mut(&given_back.agent) {
            known.grant.take_if(|grant| grant.id == given_back.id);
        }
    }

    /// All alarms.
    pub fn alarms(&self) -> impl Iterator<Item = Alarm> {
        self.agents
            .iter()
            .filter_map(|(id, known)| known.alarm(*id))
    }

    /// Time passed, and this is what can be said of domains now: nothing, of one that no
    /// host knows.
    pub fn tick(
        &mut self,
        now_ms: u64,
        wall_ms: u64,
        sight_of: impl Fn(Uuid) -> Option<Sight>,
    ) -> Vec<Change> {
        let (timing, not_before_ms) = (self.timing, self.not_before_ms);
        self.agents
            .iter_mut()
            .filter_map(|(id, known)| {
                let sight = known.domain.and_then(&sight_of);
                let restarted = known.look(sight, now_ms, timing);
                known.judge(*id, restarted, (now_ms, wall_ms, not_before_ms), timing)
            })
            .collect()
    }
}

impl Known {
    /// Takes down what is seen; says whether the domain has started while it ran.
    fn look(&mut self, sight: Option<Sight>, now_ms: u64, timing: Timing) -> bool {
        let present = self.open > 0;
        let mut restarted = false;
        self.seen = match (sight, self.seen) {
            (None, seen @ Seen::Unplaced { .. }) => seen,
            (None, _) => Seen::Unplaced { since_ms: now_ms },
            (Some(Sight::Unknown), _) => Seen::Nothing,
            (Some(Sight::Off), _) => Seen::Off,
            (Some(Sight::Running { began_ms }), seen) => {
                let began_anew = |before: Option<u64>| began_ms.is_some() && began_ms != before;
                let (since_ms, there) = match seen {
                    Seen::Running { began_ms, .. } if began_anew(began_ms) => {
                        restarted = true;
                        (now_ms, false)
                    }
                    Seen::Running {
                        since_ms, there, ..
                    } => {
                        let lived_ms = now_ms.saturating_sub(since_ms);
                        (
                            since_ms,
                            there || (present && lived_ms >= timing.noticed_ms),
                        )
                    }
                    Seen::Nothing | Seen::Unplaced { .. } => (now_ms, present),
                    Seen::Off => (now_ms, false),
                };
                if restarted || seen == Seen::Off {
                    self.starts = self.starts.saturating_add(1);
                }
                if there {
                    self.starts = 0;
                }
                Seen::Running {
                    since_ms,
                    began_ms,
                    there,
                }
            }
        };
        restarted
    }

    fn judge(
        &mut self,
        id: AgentId,
        restarted: bool,
        (now_ms, wall_ms, not_before_ms): (u64, u64, u64),
        timing: Timing,
    ) -> Option<Change> {
        if self.open > 0 {
            return None;
        }
        if self.covered(wall_ms).is_some() {
            return self.clear(id, Why::Maintenance);
        }
        let excused = self.starts <= STARTS_EXCUSED;
        let back_ms = self.gone_ms.saturating_add(match self.end {
            End::Farewell => timing.farewell_ms,
            End::Cut => timing.reconnect_ms,
        });
        let due_ms = match self.seen {
            Seen::Nothing => return None,
            Seen::Off => return self.clear(id, Why::DomainOff),
            Seen::Unplaced { since_ms } => self
                .gone_ms
                .max(since_ms)
                .saturating_add(timing.unplaced_ms),
            Seen::Running { there: true, .. } => back_ms,
            Seen::Running { .. } if !excused => back_ms,
            Seen::Running { since_ms, .. } => back_ms.max(since_ms.saturating_add(timing.boot_ms)),
        };
        if self.raised_ms.is_some() {
            return (restarted && excused).then(|| self.clear(id, Why::Restarted))?;
        }
        if now_ms < due_ms.max(not_before_ms) {
            return None;
        }
        self.raised_ms = Some(now_ms);
        self.alarm(id).map(Change::Raised)
    }

    fn covered(&self, wall_ms: u64) -> Option<&MaintenanceRecord> {
        self.grant
            .as_ref()
            .filter(|_| !self.returned)
            .filter(|grant| (grant.from_ms..grant.until_ms).contains(&wall_ms))
    }

    fn alarm(&self, id: AgentId) -> Option<Alarm> {
        Some(Alarm {
            agent: id,
            name: self.name.clone(),
            domain: self.domain,
            placed: !matches!(self.seen, Seen::Unplaced { .. }),
            since_ms: self.gone_ms,
            raised_ms: self.raised_ms?,
        })
    }

    fn clear(&mut self, id: AgentId, why: Why) -> Option<Change> {
        let alarm = self.alarm(id)?;
        self.raised_ms = None;
        Some(Change::Cleared(alarm, why))
    }
}

#[cfg(test)]
mod tests;
