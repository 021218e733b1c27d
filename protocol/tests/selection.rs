//! The choice of Protection Server, over random lists.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a panic fails the test"
)]

use palisade_protocol::bounded::{List, Text};
use palisade_protocol::control::{
    InfrastructurePath, LicenceState, SvmAddress, SvmEntry, SvmReport,
};
use palisade_protocol::ids::{AgentId, SvmId};
use palisade_protocol::scan::LoadHint;
use palisade_protocol::selection::{Tier, rank, should_move};
use palisade_protocol::verdict::{EngineGeneration, Generation};
use proptest::prelude::*;
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
                    tags: List::cut((!tag.is_empty()).then(|| Text::cut(&tag))),
                },
            },
        )
}

proptest! {
    #[test]
    fn every_svm_is_ranked_or_excluded_once(agent: u128, here in path(), svms in prop::collection::vec(svm(), 0..12)) {
        let ranking = rank(AgentId(Uuid::from_u128(agent)), &here, &[Text::cut("gold")], &svms);
        prop_assert_eq!(ranking.candidates.len() + ranking.excluded.len(), svms.len());
        for (candidate, next) in ranking.candidates.iter().zip(ranking.candidates.iter().skip(1)) {
            let key = |c: &palisade_protocol::selection::Candidate| (c.licence != LicenceState::Valid, c.tier, c.load);
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
        let agent = AgentId(Uuid::from_u128(agent));
        let mut reversed = svms.clone();
        reversed.reverse();
        prop_assert_eq!(rank(agent, &here, &[], &svms).candidates, rank(agent, &here, &[], &reversed).candidates);
    }

    #[test]
    fn an_agent_that_moved_stays(agent: u128, here in path(), svms in prop::collection::vec(svm(), 1..12)) {
        let ranking = rank(AgentId(Uuid::from_u128(agent)), &here, &[], &svms);
        if let Some(best) = ranking.candidates.first() {
            prop_assert!(!should_move(&ranking, best.id));
        }
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
