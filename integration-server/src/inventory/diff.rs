//! What changed between two readings of one host.

use uuid::Uuid;

use super::{DomainState, HostRecord};

/// One thing that changed on a host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// The host can be read (again).
    HostUp,
    /// The host can no longer be read.
    HostDown {
        /// Why.
        error: String,
    },
    /// The host has another name.
    HostRenamed,
    /// A domain is new here.
    Appeared {
        /// Which.
        uuid: Uuid,
    },
    /// A domain is no longer here.
    Vanished {
        /// Which.
        uuid: Uuid,
    },
    /// A domain has another name.
    Renamed {
        /// Which.
        uuid: Uuid,
    },
    /// A domain is in another state.
    StateChanged {
        /// Which.
        uuid: Uuid,
        /// What it was.
        from: DomainState,
        /// What it is.
        to: DomainState,
    },
    /// A domain began to run, was resumed or restarted.
    Began {
        /// Which.
        uuid: Uuid,
    },
    /// A domain has other tags.
    Tagged {
        /// Which.
        uuid: Uuid,
    },
}

/// The changes from one record of a host to its next.
pub fn between(before: &HostRecord, after: &HostRecord) -> Vec<Change> {
    let mut changes = Vec::new();
    match (&before.error, &after.error) {
        (old, Some(error)) if old.as_ref() != Some(error) => {
            changes.push(Change::HostDown {
                error: error.clone(),
            });
        }
        (Some(_), None) => changes.push(Change::HostUp),
        (None, None) if before.tried_ms.is_none() && after.tried_ms.is_some() => {
            changes.push(Change::HostUp);
        }
        _ => {}
    }
    if before.host != after.host {
        changes.push(Change::HostRenamed);
    }
    for (uuid, new) in &after.domains {
        match before.domains.get(uuid) {
            None => changes.push(Change::Appeared { uuid: *uuid }),
            Some(old) => {
                if old.name != new.name {
                    changes.push(Change::Renamed { uuid: *uuid });
                }
                if old.state != new.state {
                    changes.push(Change::StateChanged {
                        uuid: *uuid,
                        from: old.state,
                        to: new.state,
                    });
                }
                if new.began_ms.is_some() && old.began_ms != new.began_ms {
                    changes.push(Change::Began { uuid: *uuid });
                }
                if old.tags != new.tags {
                    changes.push(Change::Tagged { uuid: *uuid });
                }
            }
        }
    }
    for uuid in before
        .domains
        .keys()
        .filter(|uuid| !after.domains.contains_key(uuid))
    {
        changes.push(Change::Vanished { uuid: *uuid });
    }
    changes
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::super::{DomainFacts, HostFacts, HostState, Inventory, Reading};
    use super::*;
    use crate::settings::LibvirtSource;

    const URI: &str = "qemu:///system";

    fn source(uri: &str) -> LibvirtSource {
        LibvirtSource {
            uri: uri.to_owned(),
            datacenter: "dc".to_owned(),
            cluster: "c1".to_owned(),
            host: None,
        }
    }

    fn domains(states: &[(u128, DomainState)]) -> BTreeMap<Uuid, DomainFacts> {
        states
            .iter()
            .map(|(id, state)| {
                (
                    Uuid::from_u128(*id),
                    DomainFacts {
                        name: format!("vm-{id}"),
                        state: *state,
                        ..DomainFacts::default()
                    },
                )
            })
            .collect()
    }

    fn seen(at_ms: u64, states: &[(u128, DomainState)]) -> Reading {
        let facts = HostFacts {
            hostname: "hv1".to_owned(),
            domains: domains(states),
        };
        Reading {
            uri: URI.to_owned(),
            at_ms,
            outcome: Ok(facts),
        }
    }

    #[test]
    fn a_host_that_is_down_keeps_its_last_facts() {
        let mut inventory = Inventory::new(&[source(URI)], Vec::new());
        let state = |host: &HostRecord| host.state(20, 1000, 0);
        assert_eq!(state(inventory.host(URI).unwrap()), HostState::Unknown);
        inventory.apply(seen(10, &[(1, DomainState::Running)]));
        let down = Reading {
            uri: URI.to_owned(),
            at_ms: 20,
            outcome: Err("refused".to_owned()),
        };
        assert_eq!(
            inventory.apply(down.clone()),
            vec![Change::HostDown {
                error: "refused".to_owned()
            }]
        );
        assert!(
            inventory.apply(Reading { at_ms: 21, ..down }).is_empty(),
            "said once"
        );
        let host = inventory.host(URI).unwrap();
        assert_eq!(state(host), HostState::Down);
        assert_eq!((host.read_ms, host.tried_ms), (Some(10), Some(21)));
        assert_eq!(host.domains.len(), 1);
        assert_eq!(
            inventory.apply(seen(30, &[])),
            vec![
                Change::HostUp,
                Change::Vanished {
                    uuid: Uuid::from_u128(1)
                }
            ]
        );
    }

    #[test]
    fn a_migrating_domain_is_where_it_runs() {
        let mut inventory = Inventory::new(&[source("a:1"), source("b:2")], Vec::new());
        for (uri, host, state) in [
            ("a:1", "hv-a", DomainState::Running),
            ("b:2", "hv-b", DomainState::ShutOff),
        ] {
            let facts = HostFacts {
                hostname: host.to_owned(),
                domains: domains(&[(1, state)]),
            };
            inventory.apply(Reading {
                uri: uri.to_owned(),
                at_ms: 1,
                outcome: Ok(facts),
            });
        }
        let place = inventory.place_of(Uuid::from_u128(1)).unwrap();
        assert_eq!(place.to_string(), "dc/c1/hv-a");
    }

    fn any_states() -> impl Strategy<Value = Vec<(u128, DomainState)>> {
        let state = prop_oneof![
            Just(DomainState::Running),
            Just(DomainState::Paused),
            Just(DomainState::ShutOff)
        ];
        proptest::collection::vec((0_u128..8, state), 0..8)
    }

    proptest! {
        /// Applying the same facts again changes nothing, and following the
        /// changes of existence leads from one set of domains to the other.
        #[test]
        fn changes_lead_from_old_to_new(old in any_states(), new in any_states()) {
            let mut inventory = Inventory::new(&[source(URI)], Vec::new());
            inventory.apply(seen(1, &old));
            let mut known: std::collections::BTreeSet<Uuid> =
                inventory.host(URI).unwrap().domains.keys().copied().collect();
            for change in inventory.apply(seen(2, &new)) {
                match change {
                    Change::Appeared { uuid } => prop_assert!(known.insert(uuid)),
                    Change::Vanished { uuid } => prop_assert!(known.remove(&uuid)),
                    _ => {}
                }
            }
            let now: std::collections::BTreeSet<Uuid> =
                inventory.host(URI).unwrap().domains.keys().copied().collect();
            prop_assert_eq!(known, now);
            prop_assert!(inventory.apply(seen(3, &new)).is_empty());
        }
    }
}
