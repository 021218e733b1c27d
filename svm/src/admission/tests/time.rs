//! Lane time is shared, whatever contents take.

use proptest::prelude::*;

use super::*;

/// Longest scan of these tests, in microseconds.
const LONGEST: u64 = 2_000_000;

fn lengths() -> impl Strategy<Value = Vec<u64>> {
    // Some nothing but quick ones, some nothing but slow ones, some both.
    let quick = 100u64..20_000;
    let slow = 200_000..=LONGEST;
    let some = |length: BoxedStrategy<u64>| proptest::collection::vec(length, 20..60);
    prop_oneof![
        some(quick.clone().boxed()),
        some(slow.clone().boxed()),
        some(prop_oneof![quick, slow].boxed()),
    ]
}

/// Pushes all of both, and looks, at the end of each scan and while both have something
/// waiting, how far they are apart. Gives the most.
fn apart(asks: [Ask<u8, u8>; 2], lengths: [&[u64]; 2], lanes: usize) -> u64 {
    let mut world = World::new(UNBOUNDED, patient(lanes));
    for (ask, lengths) in asks.iter().zip(lengths) {
        for takes in lengths {
            assert!(world.push(ask.clone(), *takes));
        }
    }
    let mut most = 0;
    loop {
        world.settle();
        let agents = [asks[0].agent, asks[1].agent];
        let waits = |agent: u8| world.queue.per_agent.contains_key(&agent);
        if !agents.into_iter().all(waits) {
            return most;
        }
        let end = world.next_end().unwrap();
        world.run_until(end);
        let [a, b] = agents.map(|agent| world.used(|content| content.agent == agent));
        most = most.max(a.abs_diff(b));
    }
}

fn of(tenant: u8, agent: u8, class: ScanClass) -> Ask<u8, u8> {
    Ask {
        tenant,
        ..ask(agent, class)
    }
}

proptest! {
    /// Of two that have something waiting all the while, be they tenants or agents of
    /// one, neither gets more than the other by more than one scan for each lane.
    #[test]
    fn lane_time_is_shared_equally(
        a in lengths(),
        b in lengths(),
        tenants in any::<bool>(),
        urgent in any::<bool>(),
        lanes in 1usize..4,
    ) {
        let class = if urgent { ScanClass::OnAccess } else { ScanClass::OnDemand };
        let asks = [of(0, 1, class), of(u8::from(tenants), 2, class)];
        let apart = apart(asks, [&a, &b], lanes);
        let bound = match lanes {
            1 => LONGEST,
            // Each is expected to take an average one until it has taken more.
            lanes => lanes as u64 * (LONGEST + LONGEST),
        };
        prop_assert!(apart <= bound, "{apart} µs");
    }

    /// Who asks for nothing and comes back waits for nobody's second turn.
    #[test]
    fn who_comes_back_waits_for_one_turn_of_each_at_the_most(
        others in 1u8..6,
        takes in lengths(),
        rests in 0u64..20 * LONGEST,
        own in proptest::collection::vec(100u64..=LONGEST, 0..4),
        tenants in any::<bool>(),
    ) {
        let mut world = World::new(UNBOUNDED, patient(1));
        let of = |agent| of(if tenants { agent } else { 0 }, agent, ScanClass::OnAccess);
        for (n, takes) in takes.iter().cycle().take(200).enumerate() {
            prop_assert!(world.push(of(n as u8 % others), *takes));
        }
        // It has had something before, was served, and rests.
        let mut had = 0;
        for takes in own {
            prop_assert!(world.push(of(100), takes));
            had += takes;
        }
        world.run_until(rests);
        prop_assume!(!world.queue.per_agent.contains_key(&100));
        prop_assume!(world.scans.iter().all(|scan| scan.content.agent != 100));
        // Not what it got before all others caught up with it.
        let least = (0..others).map(|other| world.used(|content| content.agent == other)).min();
        prop_assume!(least.unwrap() >= had + LONGEST);
        let before = world.events.len();
        prop_assert!(world.push(of(100), 1000));
        world.run_out();
        let after = world.events[before..].iter().filter(|event| event.1 == Event::Started);
        let first: Vec<u8> = after
            .map(|event| event.2.agent)
            .take_while(|agent| *agent != 100)
            .collect();
        for other in 0..others {
            let turns = first.iter().filter(|agent| **agent == other).count();
            prop_assert!(turns <= 1, "{first:?}");
        }
    }

    /// On-demand has one part in so many of a busy day, by time and not by count, and
    /// all of what on-access leaves.
    #[test]
    fn classes_share_by_time(urgent in 5000u64..50_000, patient_us in 500u64..900_000) {
        let mut world = World::new(UNBOUNDED, patient(1));
        let total = 60 * urgent.max(patient_us);
        for _ in 0..=total / patient_us {
            prop_assert!(world.push(ask(1, ScanClass::OnDemand), patient_us));
        }
        // Always some of on-access.
        while world.now_us < total {
            while world.queue.waiting(ScanClass::OnAccess) < 3 {
                prop_assert!(world.push(ask(2, ScanClass::OnAccess), urgent));
            }
            world.settle();
            let end = world.next_end().unwrap();
            world.run_until(end);
        }
        let used = world.used(|content| content.class == ScanClass::OnDemand);
        let share = world.now_us / u64::from(ON_DEMAND_TURN);
        // One scan more or less, and the guess at the start.
        let slack = 2 * patient_us + 2 * GUESS;
        prop_assert!(used <= share + slack && used + slack >= share, "{used} of {}", world.now_us);
    }
}

/// By turns and not by time, whose contents are slow would have nearly all.
#[test]
fn slow_contents_get_no_more_than_quick_ones() {
    let mut world = World::new(UNBOUNDED, patient(1));
    for _ in 0..20 {
        world.push(of(0, 1, ScanClass::OnAccess), LONGEST);
    }
    for _ in 0..20_000 {
        world.push(of(1, 2, ScanClass::OnAccess), 5000);
    }
    world.run_until(20 * LONGEST);
    let quick = world.used(|content| content.agent == 2);
    assert!(quick.abs_diff(10 * LONGEST) <= LONGEST, "{quick} µs");
}
