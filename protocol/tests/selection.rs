//! The choice of Protection Server, over random lists.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a panic fails the test"
)]

use std::time::{Duration, Instant};

use palisade_protocol::bounded::{List, Text};
use palisade_protocol::control::{
    InfrastructurePath, LicenceState, SvmAddress, SvmEntry, SvmReport,
};
use palisade_protocol::ids::{AgentId, SvmId};
use palisade_protocol::scan::LoadHint;
use palisade_protocol::selection::{
    Candidate, Chooser, Excluded, Gain, LOAD_HOLD, MOVE_SPREAD, Measured, Ranking, Reach,
    SCORE_STEP_PERMILLE, Steady, Tier, WhyNot, gain, rank, why_not,
};
use palisade_protocol::verdict::{EngineGeneration, Generation};
use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use uuid::Uuid;

fn path() -> impl Strategy<Value = InfrastructurePath> {
    ("(|d1|d2)", "(|c1|c2)", "(|h1|h2|h3)").prop_map(|(d, c, h)| InfrastructurePath {
        datacenter: Text::cut(&d),
        cluster: Text::cut(&c),
        hypervisor: Text::cut(&h),
    })
}

fn svm() -> impl Strategy<Value = SvmEntry> {
    (
        any::<u128>(),
        path(),
        any::<bool>(),
        0..3000u16,
        any::<(bool, bool, bool)>(),
        "(|gold|blue)",
    )
        .prop_map(
            |(id, path, licensed, load, (draining, definitions, address), tag)| SvmEntry {
                id: SvmId(Uuid::from_u128(id)),
                name: Text::cut("svm"),
                report: SvmReport {
                    addresses: List::cut(address.then(|| SvmAddress {
                        network: Text::default(),
                        address: "127.0.0.1:1".parse().unwrap(),
                    })),
                    path,
                    licence: if licensed {
                        LicenceState::Valid
                    } else {
                        LicenceState::Exceeded
                    },
                    average_load: LoadHint {
                        load_permille: load,
                        queue_wait_ms: 0,
                    },
                    agents: 0,
                    generations: List::cut(definitions.then(|| EngineGeneration {
                        engine: Text::cut("e"),
                        generation: Generation(1),
                        fingerprint: [0; 16],
                    })),
                    draining,
                    tenants: List::default(),
                    followed: None,
                    tags: List::cut((!tag.is_empty()).then(|| Text::cut(&tag))),
                    problems: List::default(),
                },
                absent: false,
            },
        )
}

fn choose(agent: u128, path: &InfrastructurePath, reach: Reach, svms: &[SvmEntry]) -> Ranking {
    let chooser = Chooser {
        agent: AgentId(Uuid::from_u128(agent)),
        path,
        tags: &[Text::cut("gold")],
        reach,
    };
    rank(&chooser, svms, |_| None)
}

proptest! {
    #[test]
    fn every_svm_is_ranked_or_excluded_once(agent: u128, here in path(), svms in prop::collection::vec(svm(), 0..12)) {
        let ranking = choose(agent, &here, Reach::Any, &svms);
        prop_assert_eq!(ranking.candidates.len() + ranking.excluded.len(), svms.len());
        let key = |c: &Candidate| (c.licence != LicenceState::Valid, c.tier, c.listed / SCORE_STEP_PERMILLE);
        for (candidate, next) in ranking.candidates.iter().zip(ranking.candidates.iter().skip(1)) {
            prop_assert!(key(candidate) <= key(next));
        }
        for candidate in &ranking.candidates {
            let svm = svms.iter().find(|svm| svm.id == candidate.id).unwrap();
            prop_assert!(!svm.report.draining && !svm.report.generations.is_empty());
            prop_assert!(svm.report.tags.is_empty() || svm.report.tags[0].as_str() == "gold");
        }
    }

    #[test]
    fn the_order_of_the_list_does_not_matter(agent: u128, here in path(), svms in prop::collection::vec(svm(), 0..12)) {
        let mut reversed = svms.clone();
        reversed.reverse();
        let choose = |svms: &[SvmEntry]| choose(agent, &here, Reach::Any, svms).candidates;
        prop_assert_eq!(choose(&svms), choose(&reversed));
    }

    #[test]
    fn a_limit_excludes_what_is_further_and_nothing_else(agent: u128, here in path(), svms in prop::collection::vec(svm(), 0..12)) {
        let all = choose(agent, &here, Reach::Any, &svms);
        for (reach, limit) in [
            (Reach::Hypervisor, Tier::Hypervisor),
            (Reach::Cluster, Tier::Cluster),
            (Reach::Datacenter, Tier::Datacenter),
        ] {
            let near: Vec<_> = all.candidates.iter().filter(|c| c.tier <= limit).cloned().collect();
            let limited = choose(agent, &here, reach, &svms);
            prop_assert_eq!(&limited.candidates, &near);
            let too_far = limited.excluded.iter().filter(|(_, why)| matches!(why, Excluded::TooFar { .. })).count();
            prop_assert_eq!(too_far, all.candidates.len() - near.len());
        }
    }

    #[test]
    fn an_agent_at_the_best_stays(agent: u128, here in path(), svms in prop::collection::vec(svm(), 1..12)) {
        let ranking = choose(agent, &here, Reach::Any, &svms);
        if let Some((best, others)) = ranking.candidates.split_first() {
            for other in others {
                // Within a step the hash decides, and a step is less than what is worth a move.
                prop_assert_eq!(gain(Some(best), other), None);
            }
        }
    }

    #[test]
    fn a_move_is_not_taken_back(
        agent: u128,
        here in path(),
        svms in prop::collection::vec(svm(), 2..12),
        known in prop::collection::vec(prop::option::of((0..3000_u16, 0..300_u64)), 12),
    ) {
        let measured = |id: SvmId| {
            let index = svms.iter().position(|svm| svm.id == id)?;
            let (load_permille, ms) = known[index]?;
            Some(Measured {
                load: LoadHint { load_permille, queue_wait_ms: 0 },
                round_trip: Duration::from_millis(ms),
            })
        };
        let chooser = Chooser {
            agent: AgentId(Uuid::from_u128(agent)),
            path: &here,
            tags: &[],
            reach: Reach::Any,
        };
        let ranking = rank(&chooser, &svms, measured);
        for one in &ranking.candidates {
            for other in &ranking.candidates {
                if let Some(why) = gain(Some(one), other) {
                    prop_assert_ne!(why, Gain::Needed);
                    prop_assert_eq!(gain(Some(other), one), None);
                }
            }
        }
    }

    #[test]
    fn who_was_lost_is_ranked_last_and_is_as_good_where_it_answers(
        agent: u128,
        here in path(),
        svms in prop::collection::vec(svm(), 2..12),
        lost in prop::collection::vec(any::<bool>(), 12),
    ) {
        let before = choose(agent, &here, Reach::Any, &svms);
        let mut marked = svms.clone();
        for (svm, lost) in marked.iter_mut().zip(&lost) {
            svm.absent = *lost;
        }
        let after = choose(agent, &here, Reach::Any, &marked);
        prop_assert_eq!(before.candidates.len(), after.candidates.len());
        let ids = |ranking: &Ranking| ranking.candidates.iter().map(|one| one.id).collect::<Vec<_>>();
        let is_lost = |id: &SvmId| marked.iter().any(|svm| svm.id == *id && svm.absent);
        let (there, gone): (Vec<_>, Vec<_>) = ids(&before).into_iter().partition(|id| !is_lost(id));
        prop_assert_eq!(ids(&after), [there, gone].concat());
        for (one, other) in after.candidates.iter().zip(after.candidates.iter().skip(1)) {
            let same = |id| before.candidate(id).unwrap();
            prop_assert_eq!(gain(Some(one), other), gain(Some(same(one.id)), same(other.id)));
        }
    }

    #[test]
    fn load_moves_nobody_before_it_lasted(looks in prop::collection::vec((any::<bool>(), 1..20_000u64), 1..60), chance in 0.0..1.0) {
        let start = Instant::now();
        let (mut steady, mut now, mut since) = (Steady::default(), start, None);
        for (gains, later) in looks {
            now += Duration::from_millis(later);
            let moves = steady.observe(gains.then_some(Gain::Load), now, chance);
            since = if gains { since.or(Some(now)) } else { None };
            if moves {
                prop_assert!(since.is_some_and(|since| now - since >= LOAD_HOLD));
            }
        }
    }

    #[test]
    fn a_nearer_one_is_moved_to_within_the_spread(chance in 0.0..1.0) {
        let (mut steady, now) = (Steady::default(), Instant::now());
        steady.observe(Some(Gain::Kind), now, chance);
        prop_assert!(steady.observe(Some(Gain::Kind), now + MOVE_SPREAD, 0.9));
    }

    #[test]
    fn whoever_is_not_in_use_has_a_reason(agent: u128, here in path(), svms in prop::collection::vec(svm(), 2..12)) {
        let ranking = choose(agent, &here, Reach::Any, &svms);
        if let Some((best, others)) = ranking.candidates.split_first() {
            for other in others {
                let why = why_not(other, best);
                prop_assert!(!matches!(why, WhyNot::Moving | WhyNot::NotWorthIt { .. }), "{why}");
            }
        }
    }
}

/// What is measured of one says nothing beside what a list said of another one minutes ago,
/// and everything beside what was measured of that.
#[test]
fn like_is_compared_with_like() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut one = svm().new_tree(&mut runner).unwrap().current();
    one.report.draining = false;
    one.report.tags = List::default();
    one.report.generations = List::cut([EngineGeneration {
        engine: Text::cut("e"),
        generation: Generation(1),
        fingerprint: [0; 16],
    }]);
    one.report.addresses = List::cut([SvmAddress {
        network: Text::default(),
        address: "127.0.0.1:1".parse().unwrap(),
    }]);
    one.report.average_load = LoadHint::default();
    let mut other = one.clone();
    one.id = SvmId(Uuid::from_u128(1));
    other.id = SvmId(Uuid::from_u128(2));
    let here = InfrastructurePath::default();
    let chooser = Chooser {
        agent: AgentId(Uuid::from_u128(3)),
        path: &here,
        tags: &[],
        reach: Reach::Any,
    };
    let load = |load_permille| LoadHint {
        load_permille,
        queue_wait_ms: 0,
    };
    let compare = |listed: u16, of_one, of_other| {
        let mut one = one.clone();
        one.report.average_load = load(listed);
        let list = [one.clone(), other.clone()];
        let ranking = rank(&chooser, &list, |id| match id == one.id {
            true => of_one,
            false => of_other,
        });
        gain(
            ranking.candidate(one.id),
            ranking.candidate(other.id).unwrap(),
        )
    };
    let measured = |permille, ms| {
        Some(Measured {
            load: load(permille),
            round_trip: Duration::from_millis(ms),
        })
    };
    assert_eq!(
        compare(0, measured(900, 0), measured(0, 0)),
        Some(Gain::Load)
    );
    assert_eq!(
        compare(0, measured(0, 200), measured(0, 0)),
        Some(Gain::Load)
    );
    assert_eq!(compare(900, None, None), Some(Gain::Load));
    assert_eq!(compare(900, measured(900, 0), None), Some(Gain::Load));
    // Controls: what is known of one alone is no reason, and what was measured of both
    // counts for more than the list.
    assert_eq!(compare(0, measured(900, 200), None), None);
    assert_eq!(compare(0, None, measured(900, 200)), None);
    assert_eq!(compare(900, measured(0, 0), measured(0, 0)), None);
}

#[test]
fn a_name_below_counts_only_where_names_above_agree() {
    let path = |d: &str, c: &str, h: &str| InfrastructurePath {
        datacenter: Text::cut(d),
        cluster: Text::cut(c),
        hypervisor: Text::cut(h),
    };
    let here = path("d1", "c1", "h1");
    assert_eq!(
        Tier::between(&here, &path("d1", "c1", "h1")),
        Tier::Hypervisor
    );
    assert_eq!(Tier::between(&here, &path("", "", "h1")), Tier::Hypervisor);
    assert_eq!(Tier::between(&here, &path("d1", "c1", "h2")), Tier::Cluster);
    assert_eq!(
        Tier::between(&here, &path("d1", "c2", "h2")),
        Tier::Datacenter
    );
    assert_eq!(Tier::between(&here, &path("d2", "c1", "h1")), Tier::Any);
    assert_eq!(
        Tier::between(&path("", "", ""), &path("", "", "")),
        Tier::Any
    );
}
