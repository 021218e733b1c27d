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
    rank(&chooser, svms, |_| Measured::default())
}

proptest! {
    #[test]
    fn every_svm_is_ranked_or_excluded_once(agent: u128, here in path(), svms in prop::collection::vec(svm(), 0..12)) {
        let ranking = choose(agent, &here, Reach::Any, &svms);
        prop_assert_eq!(ranking.candidates.len() + ranking.excluded.len(), svms.len());
        let key = |c: &Candidate| (c.licence != LicenceState::Valid, c.tier, c.score / SCORE_STEP_PERMILLE);
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
    fn an_agent_at_the_best_moves_for_load_alone(agent: u128, here in path(), svms in prop::collection::vec(svm(), 1..12)) {
        let ranking = choose(agent, &here, Reach::Any, &svms);
        if let Some(best) = ranking.candidates.first() {
            // Within a step the hash decides, and a step is less than what is worth a move.
            prop_assert_eq!(gain(&ranking, best.id), None);
        }
    }

    #[test]
    fn a_move_ends_the_reason_to_move(agent: u128, here in path(), svms in prop::collection::vec(svm(), 2..12)) {
        let ranking = choose(agent, &here, Reach::Any, &svms);
        for candidate in &ranking.candidates {
            if let Some((to, why)) = gain(&ranking, candidate.id) {
                prop_assert_ne!(to, candidate.id);
                prop_assert_ne!(why, Gain::Needed);
                let next = gain(&ranking, to);
                prop_assert!(next.is_none(), "from {:?} to {to:?}, and on to {next:?}", candidate.id);
            }
        }
    }

    #[test]
    fn load_moves_nobody_before_it_lasted(looks in prop::collection::vec((any::<bool>(), 1..20_000u64), 1..60), chance in 0.0..1.0) {
        let start = Instant::now();
        let (mut steady, mut now, mut since) = (Steady::default(), start, None);
        let to = SvmId(Uuid::from_u128(1));
        for (gains, later) in looks {
            now += Duration::from_millis(later);
            let moved = steady.observe(gains.then_some((to, Gain::Load)), now, chance);
            since = if gains { since.or(Some(now)) } else { None };
            if let Some(moved) = moved {
                prop_assert_eq!(moved, to);
                prop_assert!(since.is_some_and(|since| now - since >= LOAD_HOLD));
            }
        }
    }

    #[test]
    fn a_nearer_one_is_moved_to_within_the_spread(chance in 0.0..1.0) {
        let (mut steady, now) = (Steady::default(), Instant::now());
        let to = SvmId(Uuid::from_u128(1));
        steady.observe(Some((to, Gain::Kind)), now, chance);
        prop_assert_eq!(steady.observe(Some((to, Gain::Kind)), now + MOVE_SPREAD, 0.9), Some(to));
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

/// What a session measures counts for more than what the list said minutes ago.
#[test]
fn what_is_measured_counts() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let svm = svm().new_tree(&mut runner).unwrap().current();
    let mut one = svm.clone();
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
    let list = [one.clone(), other];
    let here = InfrastructurePath::default();
    let chooser = Chooser {
        agent: AgentId(Uuid::from_u128(3)),
        path: &here,
        tags: &[],
        reach: Reach::Any,
    };
    let measured = |busy: SvmId, load: LoadHint, round_trip: Duration| {
        let ranking = rank(&chooser, &list, |id| match id == busy {
            true => Measured {
                load: Some(load),
                round_trip: Some(round_trip),
            },
            false => Measured::default(),
        });
        (ranking.candidates[0].id, gain(&ranking, busy))
    };
    let busy = LoadHint {
        load_permille: 900,
        queue_wait_ms: 0,
    };
    for svm in &list {
        let (best, why) = measured(svm.id, busy, Duration::ZERO);
        assert_ne!(best, svm.id);
        assert_eq!(why, Some((best, Gain::Load)));
        let (best, why) = measured(svm.id, LoadHint::default(), Duration::from_millis(200));
        assert_ne!(best, svm.id);
        assert_eq!(why, Some((best, Gain::Load)));
        // Control: without, there is no reason to move.
        let (_, why) = measured(svm.id, LoadHint::default(), Duration::ZERO);
        assert_eq!(why, None);
    }
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
