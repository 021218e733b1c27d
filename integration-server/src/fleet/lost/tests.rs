use palisade_protocol::maintenance::Allowed;
use proptest::prelude::*;

use super::*;

const AGENT: AgentId = AgentId(Uuid::from_u128(1));
const DOMAIN: Uuid = Uuid::from_u128(2);
const TIMING: Timing = Timing {
    reconnect_ms: 5_000,
    farewell_ms: 25_000,
    boot_ms: 60_000,
    noticed_ms: 20_000,
    unplaced_ms: 90_000,
    turned_away_ms: 45_000,
};
const TICK_MS: u64 = 1_000;
const RUNS: Sight = Sight::Running { began_ms: None };

/// A domain that began to run then, as libvirt told.
fn since(began_ms: u64) -> Sight {
    Sight::Running {
        began_ms: Some(began_ms),
    }
}

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
    assert!(lost.tick(50_000, 50_000, |_| Some(RUNS)).is_empty());
    lost.ended(AGENT, End::Cut, 100_000);
    lost
}

fn raised(lost: &mut Lost, now_ms: u64, sight: Sight) -> bool {
    lost.tick(now_ms, now_ms, |_| Some(sight));
    lost.alarms().count() == 1
}

#[test]
fn a_session_that_does_not_come_back_is_one_alarm() {
    let mut lost = gone();
    assert!(!raised(&mut lost, 104_999, RUNS));
    let [Change::Raised(alarm)] = &lost.tick(105_000, 105_000, |_| Some(RUNS))[..] else {
        panic!()
    };
    assert_eq!((alarm.since_ms, alarm.raised_ms), (100_000, 105_000));
    assert!(
        lost.tick(106_000, 106_000, |_| Some(RUNS)).is_empty(),
        "once"
    );
    assert!(
        raised(&mut lost, 107_000, Sight::Unknown),
        "it stays when the host is down"
    );
    assert!(matches!(
        lost.began(AGENT, Some(DOMAIN)),
        Some(Change::Cleared(_, Why::Back))
    ));
    assert!(!raised(&mut lost, 900_000, RUNS));
}

#[test]
fn a_domain_that_is_off_is_no_loss_and_one_that_starts_has_time() {
    let mut lost = gone();
    assert!(!raised(&mut lost, 101_000, Sight::Off));
    assert!(!raised(&mut lost, 200_000, RUNS));
    assert!(!raised(&mut lost, 259_000, RUNS));
    assert!(raised(&mut lost, 260_000, RUNS));
    assert!(!raised(&mut lost, 261_000, Sight::Off));
}

#[test]
fn a_session_of_the_boot_before_does_not_shorten_the_boot() {
    let mut lost = gone();
    lost.began(AGENT, Some(DOMAIN));
    lost.tick(110_000, 110_000, |_| Some(Sight::Off));
    lost.tick(111_000, 111_000, |_| Some(RUNS));
    // The old session's silence is noticed.
    lost.ended(AGENT, End::Cut, 128_000);
    assert!(!raised(&mut lost, 140_000, RUNS));
    // The guest's agent comes, and is killed at once.
    lost.began(AGENT, Some(DOMAIN));
    lost.ended(AGENT, End::Cut, 141_000);
    assert!(raised(&mut lost, 146_000, RUNS));
}

#[test]
fn maintenance_is_no_alarm_until_it_ends() {
    let mut lost = gone();
    assert!(raised(&mut lost, 106_000, RUNS));
    let cleared = lost.grant(grant(107_000, 200_000), 107_000);
    assert!(matches!(
        cleared,
        Some(Change::Cleared(_, Why::Maintenance))
    ));
    assert!(lost.grant(grant(107_000, 150_000), 107_000).is_none());
    assert!(
        !raised(&mut lost, 199_999, RUNS),
        "the grant that ends last counts"
    );
    assert!(lost.granted(AGENT, 199_999).is_some());
    assert!(raised(&mut lost, 200_000, RUNS));
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
    // It is over at once, and told until it is on record: a later start must not find it.
    assert_eq!(lost.in_force(AGENT, None), Some(given.clone()));
    assert!(lost.granted(AGENT, 150_000).is_none());
    assert_eq!(lost.in_force(AGENT, None), Some(given.clone()));
    assert_eq!(lost.in_force(AGENT, Some(given.id)), Some(given.clone()));
    lost.on_record(&given);
    assert_eq!(lost.in_force(AGENT, None), None);
    lost.ended(AGENT, End::Cut, 200_000);
    assert!(raised(&mut lost, 206_000, RUNS));
}

/// Whoever this server does not let in is not lost.
#[test]
fn who_was_turned_away_for_this_servers_sake_has_time_to_come_back() {
    let mut lost = gone();
    lost.turned_away(104_000);
    lost.turned_away(130_000);
    assert!(!raised(&mut lost, 174_999, RUNS));
    assert!(raised(&mut lost, 175_000, RUNS));
    lost.turned_away(176_000);
    assert!(
        raised(&mut lost, 177_000, RUNS),
        "what is an alarm stays one"
    );
}

/// Set back by an hour or ahead by one: grants alone are by the wall clock.
#[test]
fn the_wall_clock_makes_no_alarm_and_hides_none() {
    let mut lost = gone();
    let looked = |lost: &mut Lost, now_ms, wall_ms| {
        lost.tick(now_ms, wall_ms, |_| Some(RUNS));
        lost.alarms().count()
    };
    assert_eq!(looked(&mut lost, 104_999, 9_000_000), 0);
    assert_eq!(looked(&mut lost, 105_000, 1), 1);
    lost.grant(grant(10, 20), 10);
    assert_eq!(looked(&mut lost, 106_000, 15), 0);
    assert_eq!(looked(&mut lost, 107_000, 20), 1);
}

#[test]
fn who_is_revoked_is_no_alarm() {
    let mut lost = gone();
    assert!(raised(&mut lost, 106_000, RUNS));
    assert!(matches!(
        lost.forget(AGENT),
        Some(Change::Cleared(_, Why::Revoked))
    ));
    assert_eq!(lost.began(AGENT, Some(DOMAIN)), None);
    lost.ended(AGENT, End::Cut, 107_000);
    assert!(!raised(&mut lost, 900_000, RUNS));
}

/// The guest stops its agent, and then all else, before it restarts.
#[test]
fn a_restart_of_the_guest_is_no_alarm_unless_its_agent_stays_away() {
    let mut lost = Lost::new(TIMING);
    lost.add(AGENT, "web-1".to_owned(), Some(DOMAIN), 0);
    lost.began(AGENT, Some(DOMAIN));
    lost.tick(50_000, 50_000, |_| Some(since(1)));
    lost.ended(AGENT, End::Farewell, 100_000);
    assert!(!raised(&mut lost, 124_999, since(1)), "it has time to stop");
    // It was reset at 120 s, which is seen now.
    assert!(!raised(&mut lost, 126_000, since(120_000)));
    assert!(!raised(&mut lost, 185_999, since(120_000)));
    assert!(raised(&mut lost, 186_000, since(120_000)), "it stays away");
    // Reset again: a grace more.
    let changes = lost.tick(190_000, 190_000, |_| Some(since(189_000)));
    assert!(matches!(changes[..], [Change::Cleared(_, Why::Restarted)]));
    assert!(!raised(&mut lost, 249_000, since(189_000)));
    lost.began(AGENT, Some(DOMAIN));
    assert!(!raised(&mut lost, 900_000, since(189_000)));
}

#[test]
fn a_guest_that_takes_too_long_to_stop_is_an_alarm_until_it_restarts() {
    let mut lost = gone();
    lost.began(AGENT, Some(DOMAIN));
    lost.ended(AGENT, End::Farewell, 100_000);
    assert!(!raised(&mut lost, 124_999, RUNS));
    assert!(raised(&mut lost, 125_000, RUNS));
    assert!(!raised(&mut lost, 130_000, since(129_000)));
}

/// A session that is dead, and open still, when the domain restarts is none of the boot
/// that begins.
#[test]
fn a_restart_during_a_dead_session_gives_the_grace_of_a_boot() {
    let mut lost = gone();
    lost.began(AGENT, Some(DOMAIN));
    assert!(!raised(&mut lost, 110_000, since(109_000)));
    lost.ended(AGENT, End::Cut, 128_000);
    assert!(!raised(&mut lost, 140_000, since(109_000)));
    assert!(raised(&mut lost, 170_000, since(109_000)));
}

#[test]
fn who_restarts_for_ever_is_excused_a_few_times_only() {
    let mut lost = gone();
    let mut now_ms = 100_000;
    for restart in 0..STARTS_EXCUSED {
        now_ms += 50_000;
        assert!(
            !raised(&mut lost, now_ms, since(now_ms)),
            "restart {restart}"
        );
    }
    // Nor is one that turns itself off for a moment.
    now_ms += 50_000;
    assert!(!raised(&mut lost, now_ms - 1, Sight::Off));
    assert!(raised(&mut lost, now_ms, since(now_ms)));
    now_ms += 1_000;
    assert!(raised(&mut lost, now_ms, since(now_ms)), "no more of it");
    // The agent was there: all is as at first.
    lost.began(AGENT, Some(DOMAIN));
    lost.tick(now_ms + 1_000, now_ms + 1_000, |_| Some(since(now_ms)));
    lost.ended(AGENT, End::Cut, now_ms + 2_000);
    assert!(!raised(&mut lost, now_ms + 3_000, since(now_ms + 2_500)));
    assert!(!raised(&mut lost, now_ms + 60_000, since(now_ms + 2_500)));
}

#[test]
fn an_agent_whose_domain_no_host_knows_is_an_alarm_when_it_is_gone_for_long() {
    for domain in [Some(DOMAIN), None] {
        let mut lost = Lost::new(TIMING);
        lost.add(AGENT, "web-1".to_owned(), domain, 0);
        lost.began(AGENT, domain);
        assert!(
            lost.tick(200_000, 200_000, |_| None).is_empty(),
            "it is there"
        );
        lost.ended(AGENT, End::Cut, 300_000);
        assert!(lost.tick(389_999, 389_999, |_| None).is_empty());
        let [Change::Raised(alarm)] = &lost.tick(390_000, 390_000, |_| None)[..] else {
            panic!()
        };
        assert_eq!((alarm.placed, alarm.domain), (false, domain));
        assert!(lost.tick(391_000, 391_000, |_| None).is_empty(), "once");
        assert!(matches!(
            lost.began(AGENT, domain),
            Some(Change::Cleared(_, Why::Back))
        ));
    }
    // A host is read that knows it, and that it is off.
    let mut lost = gone();
    lost.tick(101_000, 101_000, |_| None);
    assert_eq!(lost.tick(191_000, 191_000, |_| None).len(), 1);
    assert!(!raised(&mut lost, 192_000, Sight::Off));
    // A server that has just started has seen nobody for long.
    let mut lost = Lost::new(TIMING);
    lost.add(AGENT, "web-1".to_owned(), None, 0);
    assert!(lost.tick(10_000_000, 10_000_000, |_| None).is_empty());
    assert!(lost.tick(10_089_999, 10_089_999, |_| None).is_empty());
    assert_eq!(lost.tick(10_090_000, 10_090_000, |_| None).len(), 1);
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Begin,
    End(End),
    /// None: no host knows the domain.
    Sight(Option<Sight>),
    /// The domain began to run anew.
    Restart,
    Grant(u64),
}

fn steps() -> impl Strategy<Value = Vec<(u64, Step)>> {
    let step = prop_oneof![
        3 => Just(Step::Begin),
        3 => Just(Step::End(End::Cut)),
        2 => Just(Step::End(End::Farewell)),
        4 => Just(Step::Sight(Some(RUNS))),
        3 => Just(Step::Restart),
        1 => Just(Step::Sight(Some(Sight::Off))),
        1 => Just(Step::Sight(Some(Sight::Unknown))),
        1 => Just(Step::Sight(None)),
        1 => (1..90_000_u64).prop_map(Step::Grant),
    ];
    // Waits around each grace, and none at all.
    let wait = prop_oneof![
        Just(0),
        0..8_000_u64,
        15_000..30_000_u64,
        50_000..70_000_u64,
        85_000..95_000_u64,
    ];
    proptest::collection::vec((wait, step), 1..24)
}

#[derive(Debug, Clone, Copy)]
enum Happened {
    /// How many sessions are open from then on.
    Began(u32),
    Ended(u32, End),
    Looked(Option<Sight>),
}

/// All that happened, from which each moment is judged anew.
#[derive(Debug, Default)]
struct History {
    all: Vec<(u64, Happened)>,
    grants: Vec<(u64, u64)>,
    alarm: bool,
}

impl History {
    /// Whether there must be an alarm after the look that was last.
    fn expected(&self) -> bool {
        let (now_ms, Happened::Looked(sight)) = *self.all.last().unwrap() else {
            panic!()
        };
        let covered = |(from, until): &(u64, u64)| (*from..*until).contains(&now_ms);
        let open = self.all.iter().rev().find_map(|(_, what)| match what {
            Happened::Began(open) | Happened::Ended(open, _) => Some(*open),
            Happened::Looked(_) => None,
        });
        if open.unwrap_or(0) > 0 || self.grants.iter().any(covered) {
            return false;
        }
        let due = self.due();
        match sight {
            Some(Sight::Off) => false,
            Some(Sight::Unknown) => self.alarm,
            None => self.alarm || now_ms >= due.at_ms,
            // What has just started anew, and is excused, begins anew.
            Some(Sight::Running { .. }) => (self.alarm && !due.excused_now) || now_ms >= due.at_ms,
        }
    }

    fn due(&self) -> Due {
        let mut gone_ms = 0;
        let mut grace_ms = TIMING.reconnect_ms;
        let mut open = 0;
        let mut seen: Option<(u64, Option<Sight>)> = None;
        // Since when it runs or is unplaced, whether the agent was there, starts.
        let (mut from_ms, mut there, mut starts) = (0, false, 0);
        let mut started_now = false;
        for (at, what) in &self.all {
            started_now = false;
            match *what {
                Happened::Began(now_open) => {
                    open = now_open;
                    starts = 0;
                    there |= matches!(seen, Some((_, Some(Sight::Running { .. }))));
                }
                Happened::Ended(now_open, how) => {
                    open = now_open;
                    if open == 0 {
                        gone_ms = *at;
                        grace_ms = match how {
                            End::Cut => TIMING.reconnect_ms,
                            End::Farewell => TIMING.farewell_ms,
                        };
                    }
                }
                Happened::Looked(sight) => {
                    let before = seen.and_then(|(_, sight)| sight);
                    let first = seen.is_none();
                    match (before, sight) {
                        (
                            Some(Sight::Running { began_ms: old }),
                            Some(Sight::Running { began_ms }),
                        ) => {
                            if began_ms.is_some() && began_ms != old {
                                (from_ms, there) = (*at, false);
                                starts += 1;
                                started_now = true;
                            } else if open > 0 && *at - from_ms >= TIMING.noticed_ms {
                                there = true;
                            }
                        }
                        (Some(Sight::Off), Some(Sight::Running { .. })) => {
                            (from_ms, there) = (*at, false);
                            starts += 1;
                        }
                        (_, Some(Sight::Running { .. })) => (from_ms, there) = (*at, open > 0),
                        (Some(_), None) => (from_ms, there) = (*at, false),
                        (None, None) if first => (from_ms, there) = (*at, false),
                        (None, None) => {}
                        (_, Some(_)) => there = false,
                    }
                    if there {
                        starts = 0;
                    }
                    seen = Some((*at, sight));
                }
            }
        }
        let excused = starts <= STARTS_EXCUSED;
        let back_ms = gone_ms + grace_ms;
        let at_ms = match seen.and_then(|(_, sight)| sight) {
            None => gone_ms.max(from_ms) + TIMING.unplaced_ms,
            Some(_) if there || !excused => back_ms,
            Some(_) => back_ms.max(from_ms + TIMING.boot_ms),
        };
        Due {
            at_ms,
            excused_now: started_now && excused,
        }
    }
}

struct Due {
    at_ms: u64,
    /// The last look saw a start that has a grace.
    excused_now: bool,
}

proptest! {
    /// After each look there is an alarm exactly when the agent has been gone for
    /// longer than its grace while its domain ran, or was unknown, and no grant covers the
    /// moment; and what is told of alarms is what becomes of them.
    #[test]
    fn an_alarm_is_there_exactly_when_it_must_be(steps in steps()) {
        let mut lost = Lost::new(TIMING);
        lost.add(AGENT, "web-1".to_owned(), Some(DOMAIN), 0);
        let mut history = History::default();
        let (mut now_ms, mut open, mut told) = (1_000, 0, false);
        let mut sight = Some(Sight::Unknown);
        for (wait, step) in steps {
            let until = now_ms + wait;
            loop {
                let mut changes = lost.tick(now_ms, now_ms, |_| sight);
                history.all.push((now_ms, Happened::Looked(sight)));
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
                    history.all.push((now_ms, Happened::Began(open)));
                    lost.began(AGENT, Some(DOMAIN))
                }
                Step::End(how) if open > 0 => {
                    open -= 1;
                    history.all.push((now_ms, Happened::Ended(open, how)));
                    lost.ended(AGENT, how, now_ms);
                    None
                }
                Step::End(_) => None,
                Step::Sight(new) => {
                    sight = new;
                    None
                }
                Step::Restart => {
                    sight = Some(since(now_ms));
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

    /// However often a domain restarts, an agent that never comes back is an alarm in the
    /// end, and stays one.
    #[test]
    fn no_row_of_restarts_hides_a_lost_agent(waits in proptest::collection::vec(1_000..59_000_u64, 8..40)) {
        let mut lost = gone();
        let mut now_ms = 100_000;
        let mut since_alarm = 0;
        for wait in waits {
            now_ms += wait;
            let alarm = raised(&mut lost, now_ms, since(now_ms));
            prop_assert!(alarm || since_alarm == 0, "it went away");
            since_alarm += usize::from(alarm);
        }
        prop_assert!(since_alarm > 0);
        let most = u64::from(STARTS_EXCUSED + 1) * 60_000;
        let first = lost.alarms().next().unwrap().raised_ms;
        prop_assert!(first <= 100_000 + most);
    }
}
