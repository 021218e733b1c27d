//! Bounds, turns, classes, deadlines: with scans that all take as long as expected.

use proptest::prelude::*;

use super::*;

fn on_access(agent: u8) -> Ask<u8, u8> {
    ask(agent, ScanClass::OnAccess)
}

fn on_demand(agent: u8) -> Ask<u8, u8> {
    ask(agent, ScanClass::OnDemand)
}

#[test]
fn a_flood_of_one_does_not_delay_another() {
    let mut world = World::new(BOUNDS, patient(1));
    for _ in 0..6 {
        assert!(world.push(on_access(1), GUESS));
    }
    assert!(!world.push(on_access(1), GUESS));
    assert!(world.push(on_access(2), GUESS));
    assert_eq!(world.order(), [1, 2, 1, 1, 1, 1, 1]);
}

#[test]
fn on_access_first_yet_on_demand_never_starves() {
    let mut world = World::new(UNBOUNDED, patient(1));
    for _ in 0..100 {
        assert!(world.push(on_demand(1), GUESS));
        assert!(world.push(on_access(2), GUESS));
    }
    let order = world.order();
    assert!(order[..15].iter().all(|agent| *agent == 2));
    assert_eq!(order[15], 1);
    assert_eq!(order[..32].iter().filter(|agent| **agent == 1).count(), 2);
}

#[test]
fn on_demand_leaves_room_for_on_access() {
    let mut world = World::new(BOUNDS, patient(2));
    let taken = (0..16).filter(|n| world.push(on_demand(*n), GUESS)).count();
    assert_eq!(taken, 12);
    assert!(world.push(on_access(20), GUESS));
}

#[test]
fn past_its_deadline_an_entry_waits_behind_those_in_time() {
    let mut world = World::new(BOUNDS, patient(1));
    let late = Ask {
        deadline_us: Some(5),
        ..on_access(1)
    };
    assert!(world.push(late, GUESS));
    assert!(world.push(on_access(2), GUESS));
    world.now_us = 10;
    assert_eq!(world.order(), [2, 1]);
}

#[test]
fn what_cannot_be_served_in_time_is_turned_away() {
    let mut world = World::new(BOUNDS, patient(2));
    for agent in 0..8 {
        assert!(world.push(on_access(agent), GUESS));
    }
    let tight = Ask {
        deadline_us: Some(4 * GUESS - 1),
        ..on_access(9)
    };
    assert_eq!(
        world.queue.check(&tight, 0),
        Err(Busy { retry_after_ms: 80 })
    );
    let loose = Ask {
        deadline_us: Some(4 * GUESS),
        ..tight
    };
    assert_eq!(world.queue.check(&loose, 0), Ok(()));
}

#[test]
fn a_tenant_of_many_costs_no_more_than_a_tenant_of_one() {
    let mut world = World::new(UNBOUNDED, patient(1));
    for agent in 0..100 {
        assert!(world.push(on_access(agent), GUESS));
    }
    for agent in [200, 201, 202] {
        let small = Ask {
            tenant: 1,
            ..on_access(agent)
        };
        assert!(world.push(small, GUESS));
    }
    assert_eq!(world.order()[..6], [0, 200, 1, 201, 2, 202]);
}

#[test]
fn a_tenant_cannot_fill_the_queue() {
    let mut world = World::new(BOUNDS, patient(2));
    let of = |tenant, agent| Ask {
        tenant,
        ..on_access(agent)
    };
    let taken = (0..16).filter(|agent| world.push(of(0, *agent), GUESS));
    assert_eq!(taken.count(), BOUNDS.per_tenant);
    assert!(world.push(of(1, 20), GUESS));
}

#[test]
fn nobody_is_turned_away_for_a_flood_that_does_not_delay_him() {
    let mut world = World::new(UNBOUNDED, patient(2));
    for _ in 0..500 {
        assert!(world.push(on_access(1), GUESS));
    }
    let tight = |agent| Ask {
        deadline_us: Some(30_000),
        ..on_access(agent)
    };
    let check = |agent| world.queue.check(&tight(agent), 0);
    assert!(check(1).is_err(), "the flood itself");
    assert_eq!(check(2), Ok(()));
}

/// The proving test of fairness: one agent asks ten times as fast as the lanes can scan;
/// seven others together use half of what there is. Served as one agent (the control),
/// the others wait for the flood.
#[test]
fn under_a_tenfold_flood_the_others_keep_their_share() {
    const SCAN: u64 = 10_000;
    let worst = |turns: bool| {
        let bounds = Bounds {
            total: 1024,
            per_tenant: 1024,
            per_agent: if turns { 64 } else { 1024 },
        };
        let mut world = World::new(bounds, patient(2));
        let mut refused = 0;
        let mut asked = Vec::new();
        for now_ms in 0..20_000u64 {
            world.run_until(now_ms * 1000);
            for _ in 0..2 {
                world.push(on_access(0), SCAN);
            }
            if now_ms % 10 == 0 {
                let other = 1 + (now_ms / 10 % 7) as u8;
                let asker = if turns { other } else { 0 };
                // Told from the flood by its length.
                let taken = world.push(on_access(asker), SCAN - 1);
                refused += u32::from(!taken);
                asked.push(now_ms);
            }
        }
        let waits = world
            .events
            .iter()
            .filter(|(_, event, content)| *event == Event::Started && content.takes_us == SCAN - 1);
        let worst_us = waits.map(|(at, _, content)| at - content.pushed_us).max();
        (worst_us.unwrap_or(u64::MAX) / 1000, refused)
    };
    let (fair_ms, refused) = worst(true);
    assert!(
        fair_ms <= 8 * 5,
        "{fair_ms} ms: more than one turn of everybody"
    );
    assert_eq!(refused, 0);
    let (unfair_ms, refused) = worst(false);
    assert!(
        unfair_ms > 1000 || refused > 100,
        "the control is fair, too"
    );
}

#[derive(Debug, Clone)]
enum Step {
    Push {
        agent: u8,
        on_access: bool,
        deadline: Option<u64>,
    },
    Start,
    End(prop::sample::Index),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let push = (0u8..5, any::<bool>(), proptest::option::of(0u64..300_000)).prop_map(
        |(agent, on_access, deadline)| Step::Push {
            agent,
            on_access,
            deadline,
        },
    );
    let step = prop_oneof![
        3 => push,
        2 => Just(Step::Start),
        2 => any::<prop::sample::Index>().prop_map(Step::End)
    ];
    proptest::collection::vec(step, 0..200)
}

proptest! {
    /// Nothing is lost, doubled or over a bound, whatever ends in which order; one
    /// agent's entries of one class that did not expire keep their order.
    #[test]
    fn what_goes_in_comes_out_once_and_within_bounds(steps in steps(), lanes in 1usize..4) {
        let mut queue = Queue::new(BOUNDS, patient(lanes));
        let (mut pushed, mut popped) = (Vec::new(), Vec::new());
        let mut open = Vec::new();
        let mut now = 0;
        let mut start = |queue: &mut Queue<u8, u8, _>, open: &mut Vec<Ticket>, now| {
            let start = queue.next(now);
            if let Some(start) = start {
                popped.push(start.item);
                open.push(start.ticket);
            }
        };
        for step in steps {
            now += 1000;
            match step {
                Step::Push { agent, on_access, deadline } => {
                    let class = if on_access { ScanClass::OnAccess } else { ScanClass::OnDemand };
                    let ask = Ask { tenant: agent % 2, agent, class, deadline_us: deadline };
                    let item = (agent, (now, on_access, deadline));
                    if queue.push(ask, item, now).is_ok() {
                        pushed.push(item);
                    }
                }
                Step::Start => start(&mut queue, &mut open, now),
                Step::End(which) => if !open.is_empty() {
                    queue.end(open.swap_remove(which.index(open.len())), now);
                },
            }
            prop_assert_eq!(queue.on_lanes(), open.len());
            prop_assert!(open.len() <= lanes);
            prop_assert!(queue.len() <= BOUNDS.total);
            prop_assert!(queue.per_agent.values().all(|own| *own <= BOUNDS.per_agent));
            prop_assert!(queue.per_tenant.values().all(|own| *own <= BOUNDS.per_tenant));
        }
        now += 300_000;
        while !queue.is_empty() {
            open.drain(..).for_each(|ticket| queue.end(ticket, now));
            start(&mut queue, &mut open, now);
        }
        prop_assert!(queue.per_agent.is_empty() && queue.per_tenant.is_empty());
        for agent in 0..5 {
            for on_access in [true, false] {
                let lasting = |entry: &&(u8, (u64, bool, Option<u64>))| {
                    entry.0 == agent && entry.1.1 == on_access && entry.1.2.is_none()
                };
                let went: Vec<_> = pushed.iter().filter(lasting).collect();
                let came: Vec<_> = popped.iter().filter(lasting).collect();
                prop_assert_eq!(went, came);
            }
        }
        let (mut went, mut came) = (pushed, popped);
        went.sort();
        came.sort();
        prop_assert_eq!(went, came);
    }

    /// Where all contents take the same, agents take turns: between two places of one
    /// that waits, no other of its class has two.
    #[test]
    fn agents_take_turns(counts in proptest::collection::vec(1usize..6, 2..5)) {
        let mut world = World::new(UNBOUNDED, patient(1));
        for (agent, count) in counts.iter().enumerate() {
            for _ in 0..*count {
                prop_assert!(world.push(on_access(agent as u8), GUESS));
            }
        }
        let mut served = vec![0usize; counts.len()];
        for agent in world.order() {
            served[agent as usize] += 1;
            for (a, served_a) in served.iter().enumerate() {
                let waits = *served_a < counts[a];
                prop_assert!(!waits || served.iter().all(|other| *other <= served_a + 1));
            }
        }
        prop_assert_eq!(served, counts);
    }
}
