//! What long scans cost others, and themselves.

use proptest::prelude::*;

use super::*;

const SECOND: u64 = 1_000_000;
/// What no scan of these tests is over.
const LONGEST: u64 = 120 * SECOND;

fn layout(lanes: usize) -> Layout {
    Layout::new(lanes, Duration::from_secs(1))
}

fn on_access(agent: u8) -> Ask<u8, u8> {
    ask(agent, ScanClass::OnAccess)
}

/// The longest that small contents of agent 100, one a second, waited for their lane
/// while `attackers` had so many long contents each.
fn worst(layout: Layout, attackers: u8, each: usize, tenants: bool) -> u64 {
    let mut world = World::new(UNBOUNDED, layout);
    for attacker in 0..attackers {
        for _ in 0..each {
            assert!(world.push(on_access(attacker), LONGEST));
        }
    }
    for n in 1..200 {
        world.run_until(n * SECOND);
        let small = Ask {
            tenant: u8::from(tenants),
            ..on_access(100)
        };
        assert!(world.push(small, 5000));
    }
    world.run_until(300 * SECOND);
    let waits = world
        .events
        .iter()
        .filter(|event| event.1 == Event::Started && event.2.agent == 100);
    let waits: Vec<u64> = waits.map(|event| event.0 - event.2.pushed_us).collect();
    if waits.len() < 199 {
        return u64::MAX;
    }
    waits.into_iter().max().unwrap()
}

#[test]
fn small_contents_do_not_wait_for_another_agents_long_ones() {
    for tenants in [false, true] {
        for lanes in 1..5 {
            for each in [lanes, 10 * lanes] {
                let waited = worst(layout(lanes), 1, each, tenants);
                assert!(
                    waited <= SECOND,
                    "{lanes} lanes, {each} contents: {waited} µs"
                );
            }
        }
        // Of several, each may have had no turn yet.
        for attackers in 2..6 {
            let waited = worst(layout(2), attackers, 5, tenants);
            let bound = if tenants { 1 } else { u64::from(attackers) };
            assert!(waited <= bound * SECOND, "{attackers} agents: {waited} µs");
        }
    }
    // The control: where nobody gives way, they wait for all of it.
    assert!(worst(patient(2), 1, 2, true) > 100 * SECOND);
}

#[test]
fn a_lane_is_left_while_one_of_an_agents_long_scans_is_aside() {
    let mut world = World::new(UNBOUNDED, layout(2));
    for _ in 0..10 {
        world.push(on_access(1), LONGEST);
    }
    world.run_until(SECOND);
    assert_eq!((world.queue.on_lanes(), world.queue.aside()), (2, 0));
    world.push(on_access(2), 5000);
    world.run_until(2 * SECOND);
    assert_eq!((world.queue.on_lanes(), world.queue.aside()), (1, 1));
    // Nobody who comes now waits at all.
    for n in 0..20 {
        world.push(on_access(2 + n % 3), 5000);
        world.settle();
        let last = world.events.last().unwrap();
        assert_eq!((last.1, last.2.agent), (Event::Started, 2 + n % 3));
        world.run_until(world.now_us + 5000);
    }
    assert!(world.scans.iter().all(|scan| scan.content.stopped == 0));
}

#[test]
fn nobody_gives_way_without_need() {
    let mut world = World::new(UNBOUNDED, layout(2));
    for _ in 0..4 {
        world.push(on_access(1), 60 * SECOND);
    }
    // Neither to its own agent's, nor to what is on-demand.
    world.push(ask(2, ScanClass::OnDemand), 5000);
    world.run_until(59 * SECOND);
    assert_eq!((world.queue.on_lanes(), world.queue.aside()), (2, 0));
    assert_eq!(world.moved, 0);

    // A task of an agent's own gives way to its opens.
    let mut world = World::new(UNBOUNDED, layout(2));
    for _ in 0..2 {
        world.push(ask(1, ScanClass::OnDemand), 60 * SECOND);
    }
    world.run_until(SECOND / 2);
    world.push(on_access(1), 5000);
    world.run_until(SECOND - 1);
    assert_eq!(world.moved, 0);
    world.run_until(2 * SECOND);
    assert_eq!(world.moved, 1);
    assert_eq!(world.queue.waiting(ScanClass::OnAccess), 0);
}

#[test]
fn long_scans_turn_nobody_away() {
    let mut world = World::new(UNBOUNDED, layout(2));
    for agent in 0..40 {
        world.push(on_access(agent % 4), LONGEST);
    }
    for n in 0..20 {
        world.run_until(n * 10 * SECOND);
        let tight = Ask {
            deadline_us: Some(world.now_us + 5 * SECOND),
            ..on_access(100)
        };
        assert!(world.push(tight, 5000));
    }
    assert!(world.queue.average_us <= SECOND);
    let wait_ms = world.queue.served_in_ms(2);
    assert!(wait_ms <= 1000, "{wait_ms} ms for one round");
}

proptest! {
    /// Everything is scanned in the end, and stopped once at the most; no bound of what
    /// runs at a time is passed.
    #[test]
    fn all_is_served_and_stopped_at_most_once(
        lanes in 1usize..5,
        pushes in proptest::collection::vec(
            (0u64..SECOND, 0u8..6, any::<bool>(), prop_oneof![100u64..20_000, SECOND..LONGEST]),
            1..80,
        ),
    ) {
        let mut world = World::new(UNBOUNDED, layout(lanes));
        for (pause, agent, urgent, takes) in &pushes {
            let class = if *urgent { ScanClass::OnAccess } else { ScanClass::OnDemand };
            let ask = Ask { tenant: agent % 3, ..ask(*agent, class) };
            prop_assert!(world.push(ask, *takes));
            world.run_until(world.now_us + pause);
            prop_assert!(world.queue.aside() <= world.queue.layout().side_lanes);
            prop_assert!(world.queue.on_lanes() <= lanes);
        }
        world.run_out();
        let ended: Vec<_> = world.events.iter().filter(|event| event.1 == Event::Ended).collect();
        prop_assert_eq!(ended.len(), pushes.len());
        prop_assert!(ended.iter().all(|event| event.2.stopped <= 1));
        prop_assert!(world.most_on_lanes <= lanes);
        prop_assert_eq!(world.queue.on_lanes() + world.queue.aside(), 0);
    }
}
