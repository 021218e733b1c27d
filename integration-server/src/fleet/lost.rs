//! Which agents are gone although their domains run. No sockets, no clock, no
//! inventory: sessions, sights and time are arguments.
//!
//! ```text
//!                 last session ends
//!    Present ─────────────────────────► Gone{since}, no alarm
//!       ▲                                 │          ▲
//!       │                  domain runs,   │          │ domain off, or a grant
//!       │ session begins   grace is over, │          │ covers the moment
//!       │                  no grant       ▼          │
//!       └─────────────────────────────── Gone{since}, alarm
//! ```
//!
//! *Which grace.* An agent that was there while its domain ran has [`Timing::reconnect_ms`]
//! from the end of its session. One that was not there yet, because the domain or this
//! server has just started, has [`Timing::boot_ms`] from when the domain was first seen to
//! run. A session that was open when the domain started may be one of the boot before: it
//! counts once it has lived for longer than a dead one can ([`Timing::noticed_ms`]).
//!
//! *What is not known.* Without facts of the domain no alarm is raised, and none is
//! cleared. When facts are back, the host may have been restarted with all its guests: the
//! grace of a boot begins.

use std::collections::BTreeMap;

use palisade_protocol::ids::AgentId;
use uuid::Uuid;

use crate::inventory::sight::Sight;
use crate::store::MaintenanceRecord;

/// The graces, in milliseconds.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// From the end of a session until it is an alarm.
    pub reconnect_ms: u64,
    /// From the start of a domain, or of this server, until an agent must be there.
    pub boot_ms: u64,
    /// The longest that a session whose other end is dead stays open.
    pub noticed_ms: u64,
}

/// An agent is gone although its domain runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alarm {
    /// Which.
    pub agent: AgentId,
    /// Its name.
    pub name: String,
    /// The domain that it claims.
    pub domain: Uuid,
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
    Off,
    /// `there`: the agent was, while the domain ran.
    Running {
        since_ms: u64,
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
    seen: Seen,
    grant: Option<MaintenanceRecord>,
    /// The guest has said that the grant is in force there.
    begun: bool,
    raised_ms: Option<u64>,
}

/// All agents that are not revoked.
#[derive(Debug)]
pub struct Lost {
    timing: Timing,
    agents: BTreeMap<AgentId, Known>,
}

impl Lost {
    /// Nobody yet.
    pub fn new(timing: Timing) -> Self {
        Self {
            timing,
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
            seen: Seen::Nothing,
            grant: None,
            begun: false,
            raised_ms: None,
        });
    }

    /// A session of the agent in this domain began. One of a revoked agent that slipped
    /// in is not known here, and counts for nothing.
    pub fn began(&mut self, id: AgentId, domain: Option<Uuid>) -> Option<Change> {
        let known = self.agents.get_mut(&id)?;
        let cleared = known.clear(id, Why::Back);
        known.open += 1;
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
    pub fn ended(&mut self, id: AgentId, now_ms: u64) {
        let Some(known) = self.agents.get_mut(&id).filter(|known| known.open > 0) else {
            return;
        };
        known.open -= 1;
        if known.open == 0 {
            known.gone_ms = now_ms;
        }
    }

    /// The agent was revoked.
    pub fn forget(&mut self, id: AgentId) -> Option<Change> {
        self.agents.remove(&id)?.clear(id, Why::Revoked)
    }

    /// The agent may be stopped for a time. The grant that ends last counts.
    pub fn grant(&mut self, grant: MaintenanceRecord, now_ms: u64) -> Option<Change> {
        let id = grant.agent;
        let known = self.agents.get_mut(&id)?;
        let longer = |other: &MaintenanceRecord| other.until_ms >= grant.until_ms;
        if !known.grant.as_ref().is_some_and(longer) {
            known.grant = Some(grant);
            known.begun = false;
        }
        known.covered(now_ms)?;
        known.clear(id, Why::Maintenance)
    }

    /// The grant by which the agent may be stopped now.
    pub fn granted(&self, id: AgentId, now_ms: u64) -> Option<&MaintenanceRecord> {
        self.agents.get(&id)?.covered(now_ms)
    }

    /// The agent says which grant is in force in its guest. One that was, and is not any
    /// more, was given back there: it is over. Gives it.
    pub fn in_force(&mut self, id: AgentId, said: Option<Uuid>) -> Option<MaintenanceRecord> {
        let known = self.agents.get_mut(&id)?;
        let grant = known.grant.as_ref()?;
        if said == Some(grant.id) {
            known.begun = true;
            return None;
        }
        if !known.begun {
            return None;
        }
        known.begun = false;
        known.grant.take()
    }

    /// All alarms.
    pub fn alarms(&self) -> impl Iterator<Item = Alarm> {
        self.agents
            .iter()
            .filter_map(|(id, known)| known.alarm(*id))
    }

    /// Time passed, and this is what can be said of domains now.
    pub fn tick(&mut self, now_ms: u64, sight_of: impl Fn(Uuid) -> Sight) -> Vec<Change> {
        let timing = self.timing;
        self.agents
            .iter_mut()
            .filter_map(|(id, known)| {
                let sight = known.domain.map_or(Sight::Unknown, &sight_of);
                known.look(sight, now_ms, timing);
                known.judge(*id, now_ms, timing)
            })
            .collect()
    }
}

impl Known {
    fn look(&mut self, sight: Sight, now_ms: u64, timing: Timing) {
        let present = self.open > 0;
        self.seen = match (sight, self.seen) {
            (Sight::Unknown, _) => Seen::Nothing,
            (Sight::Off, _) => Seen::Off,
            (Sight::Running, Seen::Running { since_ms, there }) => Seen::Running {
                since_ms,
                there: there || (present && now_ms.saturating_sub(since_ms) >= timing.noticed_ms),
            },
            (Sight::Running, Seen::Nothing) => Seen::Running {
                since_ms: now_ms,
                there: present,
            },
            (Sight::Running, Seen::Off) => Seen::Running {
                since_ms: now_ms,
                there: false,
            },
        };
    }

    fn judge(&mut self, id: AgentId, now_ms: u64, timing: Timing) -> Option<Change> {
        if self.open > 0 {
            return None;
        }
        if self.covered(now_ms).is_some() {
            return self.clear(id, Why::Maintenance);
        }
        match self.seen {
            Seen::Nothing => None,
            Seen::Off => self.clear(id, Why::DomainOff),
            Seen::Running { since_ms, there } => {
                let reconnected = self.gone_ms.saturating_add(timing.reconnect_ms);
                let booted = since_ms.saturating_add(timing.boot_ms);
                let due = if there {
                    reconnected
                } else {
                    reconnected.max(booted)
                };
                if self.raised_ms.is_some() || now_ms < due {
                    return None;
                }
                self.raised_ms = Some(now_ms);
                self.alarm(id).map(Change::Raised)
            }
        }
    }

    fn covered(&self, now_ms: u64) -> Option<&MaintenanceRecord> {
        self.grant
            .as_ref()
            .filter(|grant| (grant.from_ms..grant.until_ms).contains(&now_ms))
    }

    fn alarm(&self, id: AgentId) -> Option<Alarm> {
        Some(Alarm {
            agent: id,
            name: self.name.clone(),
            domain: self.domain?,
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
mod tests {
    use palisade_protocol::maintenance::Allowed;
    use proptest::prelude::*;

    use super::*;

    const AGENT: AgentId = AgentId(Uuid::from_u128(1));
    const DOMAIN: Uuid = Uuid::from_u128(2);
    const TIMING: Timing = Timing {
        reconnect_ms: 5_000,
        boot_ms: 60_000,
        noticed_ms: 20_000,
    };
    const TICK_MS: u64 = 1_000;

    fn grant(from_ms: u64, until_ms: u64) -> MaintenanceRecord {
        MaintenanceRecord {
            id: Uuid::from_u128(3),
            agent: AGENT,
            allowed: Allowed::Stop,
            from_ms,
            until_ms,
            reason: "a test".to_owned(),
        }
    }

    /// An agent that was there while its domain ran, and went at 100 s.
    fn gone() -> Lost {
        let mut lost = Lost::new(TIMING);
        lost.add(AGENT, "web-1".to_owned(), Some(DOMAIN), 0);
        lost.began(AGENT, Some(DOMAIN));
        assert!(lost.tick(50_000, |_| Sight::Running).is_empty());
        lost.ended(AGENT, 100_000);
        lost
    }

    fn raised(lost: &mut Lost, now_ms: u64, sight: Sight) -> bool {
        lost.tick(now_ms, |_| sight);
        lost.alarms().count() == 1
    }

    #[test]
    fn a_session_that_does_not_come_back_is_one_alarm() {
        let mut lost = gone();
        assert!(!raised(&mut lost, 104_999, Sight::Running));
        let [Change::Raised(alarm)] = &lost.tick(105_000, |_| Sight::Running)[..] else {
            panic!()
        };
        assert_eq!((alarm.since_ms, alarm.raised_ms), (100_000, 105_000));
        assert!(lost.tick(106_000, |_| Sight::Running).is_empty(), "once");
        assert!(
            raised(&mut lost, 107_000, Sight::Unknown),
            "it stays when the host is down"
        );
        assert!(matches!(
            lost.began(AGENT, Some(DOMAIN)),
            Some(Change::Cleared(_, Why::Back))
        ));
        assert!(!raised(&mut lost, 900_000, Sight::Running));
    }

    #[test]
    fn a_domain_that_is_off_is_no_loss_and_one_that_starts_has_time() {
        let mut lost = gone();
        assert!(!raised(&mut lost, 101_000, Sight::Off));
        assert!(!raised(&mut lost, 200_000, Sight::Running));
        assert!(!raised(&mut lost, 259_000, Sight::Running));
        assert!(raised(&mut lost, 260_000, Sight::Running));
        assert!(!raised(&mut lost, 261_000, Sight::Off));
    }

    #[test]
    fn a_session_of_the_boot_before_does_not_shorten_the_boot() {
        let mut lost = gone();
        lost.began(AGENT, Some(DOMAIN));
        lost.tick(110_000, |_| Sight::Off);
        lost.tick(111_000, |_| Sight::Running);
        // The old session's silence is noticed.
        lost.ended(AGENT, 128_000);
        assert!(!raised(&mut lost, 140_000, Sight::Running));
        // The guest's agent comes, and is killed at once.
        lost.began(AGENT, Some(DOMAIN));
        lost.ended(AGENT, 141_000);
        assert!(raised(&mut lost, 146_000, Sight::Running));
    }

    #[test]
    fn maintenance_is_no_alarm_until_it_ends() {
        let mut lost = gone();
        assert!(raised(&mut lost, 106_000, Sight::Running));
        let cleared = lost.grant(grant(107_000, 200_000), 107_000);
        assert!(matches!(
            cleared,
            Some(Change::Cleared(_, Why::Maintenance))
        ));
        assert!(lost.grant(grant(107_000, 150_000), 107_000).is_none());
        assert!(
            !raised(&mut lost, 199_999, Sight::Running),
            "the grant that ends last counts"
        );
        assert!(lost.granted(AGENT, 199_999).is_some());
        assert!(raised(&mut lost, 200_000, Sight::Running));
        assert!(lost.granted(AGENT, 200_000).is_none());
    }

    #[test]
    fn leave_that_was_given_back_is_over() {
        let mut lost = gone();
        let given = grant(107_000, 900_000);
        lost.grant(given.clone(), 107_000);
        lost.began(AGENT, Some(DOMAIN));
        // A token that nobody has entered yet, and one that is in force, stay.
        assert_eq!(lost.in_force(AGENT, None), None);
        assert_eq!(lost.in_force(AGENT, Some(given.id)), None);
        assert!(lost.granted(AGENT, 150_000).is_some());
        assert_eq!(lost.in_force(AGENT, None), Some(given));
        assert_eq!(lost.in_force(AGENT, None), None);
        lost.ended(AGENT, 200_000);
        assert!(raised(&mut lost, 206_000, Sight::Running));
    }

    #[test]
    fn who_is_revoked_or_claims_nothing_is_no_alarm() {
        let mut lost = gone();
        assert!(raised(&mut lost, 106_000, Sight::Running));
        assert!(matches!(
            lost.forget(AGENT),
            Some(Change::Cleared(_, Why::Revoked))
        ));
        assert_eq!(lost.began(AGENT, Some(DOMAIN)), None);
        lost.ended(AGENT, 107_000);
        assert!(!raised(&mut lost, 900_000, Sight::Running));
        lost.add(AGENT, "web-1".to_owned(), None, 0);
        assert!(!raised(&mut lost, 901_000, Sight::Running));
        assert!(!raised(&mut lost, 999_000, Sight::Running));
    }

    #[derive(Debug, Clone, Copy)]
    enum Step {
        Begin,
        End,
        Sight(Sight),
        Grant(u64),
    }

    fn steps() -> impl Strategy<Value = Vec<(u64, Step)>> {
        let step = prop_oneof![
            3 => Just(Step::Begin),
            4 => Just(Step::End),
            4 => Just(Step::Sight(Sight::Running)),
            1 => Just(Step::Sight(Sight::Off)),
            1 => Just(Step::Sight(Sight::Unknown)),
            1 => (1..90_000_u64).prop_map(Step::Grant),
        ];
        // Waits around each grace, and none at all.
        let wait = prop_oneof![
            Just(0),
            0..8_000_u64,
            15_000..25_000_u64,
            50_000..70_000_u64
        ];
        proptest::collection::vec((wait, step), 1..24)
    }

    /// All that happened, from which each moment is judged anew.
    #[derive(Debug, Default)]
    struct History {
        /// When, how many sessions were open from then on, and whether one began.
        sessions: Vec<(u64, u32, bool)>,
        /// When, what was seen, and how many of `sessions` had happened.
        looks: Vec<(u64, Sight, usize)>,
        grants: Vec<(u64, u64)>,
        alarm: bool,
    }

    impl History {
        fn open_after(&self, events: usize) -> bool {
            self.sessions[..events]
                .last()
                .is_some_and(|(_, open, _)| *open > 0)
        }

        /// Whether there must be an alarm after the last look.
        fn expected(&self) -> bool {
            let (now_ms, sight, _) = *self.looks.last().unwrap();
            let covered = |(from, until): &(u64, u64)| (*from..*until).contains(&now_ms);
            if self.open_after(self.sessions.len()) || self.grants.iter().any(covered) {
                return false;
            }
            match sight {
                Sight::Off => false,
                Sight::Unknown => self.alarm,
                Sight::Running => self.alarm || now_ms >= self.due(),
            }
        }

        fn due(&self) -> u64 {
            let gone = self.sessions.iter().rev().find(|(_, open, _)| *open == 0);
            let reconnected = gone.map_or(0, |(at, ..)| *at) + TIMING.reconnect_ms;
            let first = self
                .looks
                .iter()
                .rposition(|(_, sight, _)| *sight != Sight::Running)
                .map_or(0, |before| before + 1);
            let (started, _, events) = self.looks[first];
            let off_before = first > 0 && self.looks[first - 1].1 == Sight::Off;
            let there = self.sessions[events..].iter().any(|(_, _, began)| *began)
                || (!off_before && self.open_after(events))
                || self.looks[first..].iter().any(|(at, _, events)| {
                    at - started >= TIMING.noticed_ms && self.open_after(*events)
                });
            if there {
                reconnected
            } else {
                reconnected.max(started + TIMING.boot_ms)
            }
        }
    }

    proptest! {
        /// After each look there is an alarm exactly when the agent has been gone for
        /// longer than its grace while its domain ran and no grant covers the moment;
        /// and what is told of alarms is what becomes of them.
        #[test]
        fn an_alarm_is_there_exactly_when_it_must_be(steps in steps()) {
            let mut lost = Lost::new(TIMING);
            lost.add(AGENT, "web-1".to_owned(), Some(DOMAIN), 0);
            let mut history = History::default();
            let (mut now_ms, mut sight, mut open, mut told) = (1_000, Sight::Unknown, 0, false);
            for (wait, step) in steps {
                let until = now_ms + wait;
                loop {
                    let mut changes = lost.tick(now_ms, |_| sight);
                    history.looks.push((now_ms, sight, history.sessions.len()));
                    history.alarm = history.expected();
                    prop_assert!(changes.len() <= 1);
                    match changes.pop() {
                        Some(Change::Raised(_)) => prop_assert!(!std::mem::replace(&mut told, true)),
                        Some(Change::Cleared(..)) => {
                            prop_assert!(std::mem::replace(&mut told, false));
                        }
                        None => {}
                    }
                    prop_assert_eq!(lost.alarms().count() == 1, history.alarm, "{} ms: {:?}", now_ms, history);
                    prop_assert_eq!(told, history.alarm);
                    if now_ms >= until {
                        break;
                    }
                    now_ms = (now_ms + TICK_MS).min(until);
                }
                let cleared = match step {
                    Step::Begin => {
                        open += 1;
                        history.sessions.push((now_ms, open, true));
                        lost.began(AGENT, Some(DOMAIN))
                    }
                    Step::End if open > 0 => {
                        open -= 1;
                        history.sessions.push((now_ms, open, false));
                        lost.ended(AGENT, now_ms);
                        None
                    }
                    Step::End => None,
                    Step::Sight(new) => {
                        sight = new;
                        None
                    }
                    Step::Grant(length) => {
                        history.grants.push((now_ms, now_ms + length));
                        lost.grant(grant(now_ms, now_ms + length), now_ms)
                    }
                };
                let clears = matches!(step, Step::Begin | Step::Grant(_));
                prop_assert_eq!(cleared.is_some(), clears && history.alarm);
                if clears {
                    history.alarm = false;
                    told = false;
                }
                now_ms += 1;
            }
        }
    }
}
