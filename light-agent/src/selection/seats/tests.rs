//! The choice over random sites, in simulated time.

mod world;

use proptest::prelude::*;
use world::{Agent, Svm};

use super::*;

/// After this long without a change, all is as it should be.
const SETTLES: Duration = Duration::from_secs(180);

fn svm(number: u16) -> impl Strategy<Value = Svm> {
    let flags = (
        any::<bool>(),
        prop::bool::weighted(0.2),
        prop::bool::weighted(0.2),
    );
    (flags, 0..4_u8, 0..1500_u16, 0..1500_u16, 1..300_u64).prop_map(
        move |((alive, draining, absent), tier, listed, load, ms)| {
            let mut svm = Svm::new(number).at(tier);
            svm.alive = alive;
            svm.entry.report.draining = draining;
            svm.entry.absent = absent;
            svm.entry.report.average_load.load_permille = listed;
            svm.load = load;
            svm.round_trip = Duration::from_millis(ms);
            svm
        },
    )
}

fn site(count: u16) -> impl Strategy<Value = Vec<Svm>> {
    (0..count).map(|number| svm(number + 1)).collect::<Vec<_>>()
}

/// Protection Servers that load and round trip alone tell apart, all of which answer.
fn alike(count: u16) -> impl Strategy<Value = Vec<Svm>> {
    site(count).prop_map(|mut svms| {
        for svm in &mut svms {
            *svm = svm.clone().at(1);
            svm.alive = true;
            svm.entry.report.draining = false;
            svm.entry.absent = false;
        }
        svms
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever happens, an agent is not left without a usable Protection Server, nor left
    /// with a worse one than answers.
    #[test]
    fn an_agent_ends_up_with_the_best_that_answers(
        start in site(7),
        later in prop::collection::vec((site(7), 1..200_u64, prop::collection::vec((any::<bool>(), prop::bool::weighted(0.1)), 7)), 1..5),
        seed: u64,
    ) {
        let mut agent = Agent::new(Instant::now(), seed, true);
        agent.pass(&start, SETTLES);
        agent.assert_settled(&start);
        let mut revoked = [false; 7];
        for (mut svms, seconds, flags) in later {
            for ((svm, revoked), (listed, revoke)) in svms.iter_mut().zip(&mut revoked).zip(flags) {
                *revoked |= revoke;
                svm.listed = listed;
                svm.revoked = *revoked;
            }
            agent.pass(&svms, Duration::from_secs(seconds));
            agent.pass(&svms, SETTLES);
            agent.assert_settled(&svms);
        }
    }

    /// Loads and round trips alone, whatever they are, begin no session a minute.
    #[test]
    fn a_site_at_rest_is_left_alone(svms in alike(6), seed: u64) {
        let mut agent = Agent::new(Instant::now(), seed, true);
        agent.pass(&svms, SETTLES);
        let before = agent.stood_by.len();
        agent.pass(&svms, Duration::from_secs(3600));
        let stood_by = &agent.stood_by[before..];
        for pair in stood_by.windows(2) {
            prop_assert!(pair[1] - pair[0] >= Duration::from_secs(60), "{stood_by:?}");
        }
        prop_assert!(stood_by.len() <= 24, "{stood_by:?}");
        // Each move is to one with less to do.
        prop_assert!(agent.moves < svms.len(), "{} moves", agent.moves);
    }

    /// Without a second session there is none once it is moved to.
    #[test]
    fn one_session_is_one(start in site(6), svms in site(6), seed: u64) {
        let mut agent = Agent::new(Instant::now(), seed, false);
        for svms in [start, svms] {
            agent.pass(&svms, SETTLES);
            prop_assert!(agent.seats.spare().is_none());
            let usable = svms.iter().any(|svm| svm.alive && !svm.entry.report.draining);
            prop_assert_eq!(agent.used(&svms).is_some_and(|svm| svm.alive), usable || agent.seats.used().is_some());
        }
    }
}

/// However many that do not answer are ranked before it, the one that does is found.
#[test]
fn whoever_answers_is_found_behind_many_that_do_not() {
    for (dead, stands_by) in [(9, true), (60, true), (9, false)] {
        let mut svms: Vec<Svm> = (1..=dead).map(|number| Svm::new(number).at(0)).collect();
        svms.iter_mut().for_each(|svm| svm.alive = false);
        svms.push(Svm::new(dead + 1).at(3));
        let mut agent = Agent::new(Instant::now(), 1, stands_by);
        agent.pass(
            &svms,
            Duration::from_millis(u64::from(dead) * 500) + world::TIMES_OUT,
        );
        assert!(agent.used(&svms).is_some(), "{dead} that are dead");
    }
}

/// The same for the one that stands by.
#[test]
fn a_second_one_is_found_behind_many_that_do_not_answer() {
    let mut svms: Vec<Svm> = (1..=12).map(|number| Svm::new(number).at(0)).collect();
    svms.iter_mut().for_each(|svm| svm.alive = false);
    svms[4].alive = true;
    svms.push(Svm::new(13).at(3));
    let mut agent = Agent::new(Instant::now(), 1, true);
    agent.pass(&svms, Duration::from_secs(60));
    assert_eq!(agent.used(&svms).unwrap().entry.id, svms[4].entry.id);
    assert_eq!(agent.spare(&svms).unwrap().entry.id, svms[12].entry.id);
}

/// The best of the list is dead: a good one that stands by is used all the same, instead of
/// one that drains, or is further away.
#[test]
fn the_good_one_is_used_although_the_best_is_dead() {
    for drains in [true, false] {
        let mut svms = vec![Svm::new(1).at(0), Svm::new(2).at(1), Svm::new(3).at(3)];
        svms[0].alive = false;
        svms[1].alive = false;
        let mut agent = Agent::new(Instant::now(), 1, true);
        agent.pass(&svms, Duration::from_secs(30));
        assert_eq!(agent.used(&svms).unwrap().entry.id, svms[2].entry.id);
        svms[1].alive = true;
        svms[2].entry.report.draining = drains;
        agent.pass(&svms, Duration::from_secs(60));
        assert_eq!(agent.used(&svms).unwrap().entry.id, svms[1].entry.id);
    }
}

/// One that was revoked is left at once, one that is not listed when there is a better one.
#[test]
fn a_revoked_one_is_left_at_once() {
    let mut svms = vec![Svm::new(1)];
    let mut agent = Agent::new(Instant::now(), 1, true);
    agent.pass(&svms, Duration::from_secs(10));
    assert!(agent.used(&svms).is_some());
    svms[0].listed = false;
    agent.pass(&svms, Duration::from_secs(600));
    assert!(agent.used(&svms).is_some(), "there is no other one");
    svms[0].revoked = true;
    agent.pass(&svms, Duration::ZERO);
    assert!(agent.used(&svms).is_none());
}

/// A hundred agents on one busy Protection Server, and an idle one beside it: some move, and
/// none moves back. What the list says of loads is of five minutes ago.
#[test]
fn agents_do_not_move_in_a_herd() {
    const AGENTS: u64 = 100;
    let start = Instant::now();
    let mut svms: Vec<Svm> = (1..=5).map(Svm::new).collect();
    svms[2].entry.report.draining = true;
    svms[3].alive = false;
    svms[4].listed = false;
    svms[1].alive = false;
    let mut agents: Vec<Agent> = (0..AGENTS)
        .map(|seed| Agent::new(start, seed, true))
        .collect();
    for second in (0..20 * 60).step_by(5) {
        if second == 120 {
            svms[1].alive = true;
        }
        for index in [0, 1] {
            let of = |agent: &&Agent| {
                agent
                    .used(&svms)
                    .is_some_and(|svm| svm.entry.id == svms[index].entry.id)
            };
            let used_by = agents.iter().filter(of).count();
            svms[index].load = u16::try_from(used_by).unwrap() * 9;
            if second % 300 == 0 {
                svms[index].entry.report.average_load.load_permille = svms[index].load;
            }
        }
        for agent in &mut agents {
            agent.pass(&svms, Duration::from_secs(5));
        }
    }
    let moves: usize = agents.iter().map(|agent| agent.moves).sum();
    let apart = svms[0].load.abs_diff(svms[1].load);
    assert!((20..=70).contains(&moves), "{moves} moves");
    assert!(apart <= 400, "{} and {}", svms[0].load, svms[1].load);
}
