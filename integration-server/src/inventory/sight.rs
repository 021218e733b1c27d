//! Whether a domain runs, as far as can be told now: facts of a host that cannot be
//! read, or was not read for long, say nothing. Pure; time is an argument.

use std::collections::HashMap;

use uuid::Uuid;

use super::{DomainState, HostRecord};

/// What can be said of a domain now. Of a domain that several hosts know, the
/// greatest counts: where it runs it runs, and a host that cannot be read may run it. Of
/// two that run it, the one counts that began to last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Sight {
    /// It does not run.
    Off,
    /// Nothing.
    Unknown,
    /// It runs.
    Running {
        /// When it began to, was resumed or restarted, in steady milliseconds, where
        /// libvirt told of it while this server listened.
        began_ms: Option<u64>,
    },
}

/// What can be said of each domain. Facts count for `max_age_ms`.
pub fn of<'a>(
    hosts: impl Iterator<Item = &'a HostRecord>,
    now_ms: u64,
    max_age_ms: u64,
) -> HashMap<Uuid, Sight> {
    let mut sights = HashMap::new();
    for host in hosts {
        let young = |read_ms| now_ms.saturating_sub(read_ms) <= max_age_ms;
        let tried = host.error.is_none() && host.tried_ms.is_some();
        let current = tried && host.read_ms.is_some_and(young);
        for (uuid, facts) in &host.domains {
            let sight = match facts.state {
                _ if !current => Sight::Unknown,
                DomainState::Running => Sight::Running {
                    began_ms: facts.began_ms,
                },
                DomainState::Unknown => Sight::Unknown,
                DomainState::Paused
                | DomainState::ShuttingDown
                | DomainState::ShutOff
                | DomainState::Crashed
                | DomainState::Suspended => Sight::Off,
            };
            let known = sights.entry(*uuid).or_insert(sight);
            *known = sight.max(*known);
        }
    }
    sights
}

#[cfg(test)]
mod tests {
    use super::super::DomainFacts;
    use super::*;

    const DOMAIN: Uuid = Uuid::from_u128(7);
    const RUNS: Sight = Sight::Running { began_ms: None };

    fn host(state: DomainState, read_ms: Option<u64>, error: Option<&str>) -> HostRecord {
        HostRecord {
            uri: "qemu:///system".to_owned(),
            host: "hv1".to_owned(),
            datacenter: String::new(),
            cluster: String::new(),
            error: error.map(str::to_owned),
            read_ms,
            tried_ms: read_ms,
            domains: [(
                DOMAIN,
                DomainFacts {
                    name: "vm".to_owned(),
                    state,
                    ..DomainFacts::default()
                },
            )]
            .into(),
        }
    }

    fn seen(hosts: &[HostRecord]) -> Option<Sight> {
        of(hosts.iter(), 1000, 100).get(&DOMAIN).copied()
    }

    #[test]
    fn old_facts_and_those_of_a_host_that_is_down_say_nothing() {
        let running = |read_ms, error| host(DomainState::Running, read_ms, error);
        assert_eq!(seen(&[running(Some(900), None)]), Some(RUNS));
        assert_eq!(seen(&[running(Some(899), None)]), Some(Sight::Unknown));
        assert_eq!(seen(&[running(None, None)]), Some(Sight::Unknown));
        assert_eq!(
            seen(&[running(Some(1000), Some("refused"))]),
            Some(Sight::Unknown)
        );
        assert_eq!(seen(&[]), None);
    }

    #[test]
    fn a_paused_domain_does_not_run_and_one_that_is_read_as_unknown_may() {
        let sight = |state| seen(&[host(state, Some(1000), None)]);
        assert_eq!(sight(DomainState::Paused), Some(Sight::Off));
        assert_eq!(sight(DomainState::ShutOff), Some(Sight::Off));
        assert_eq!(sight(DomainState::Unknown), Some(Sight::Unknown));
    }

    #[test]
    fn a_domain_that_two_hosts_know_runs_where_it_runs() {
        let here = host(DomainState::Running, Some(1000), None);
        let defined = host(DomainState::ShutOff, Some(1000), None);
        let unread = host(DomainState::Running, Some(1000), Some("refused"));
        assert_eq!(seen(&[here.clone(), defined.clone()]), Some(RUNS));
        assert_eq!(seen(&[unread.clone(), here]), Some(RUNS));
        assert_eq!(seen(&[defined, unread]), Some(Sight::Unknown));
    }

    #[test]
    fn of_two_hosts_that_run_it_the_one_counts_that_began_last() {
        let at = |began_ms| {
            let mut host = host(DomainState::Running, Some(1000), None);
            host.domains.get_mut(&DOMAIN).unwrap().began_ms = began_ms;
            host
        };
        let began_ms = Some(8);
        let runs = Some(Sight::Running { began_ms });
        assert_eq!(seen(&[at(Some(8)), at(Some(7)), at(None)]), runs);
    }
}
