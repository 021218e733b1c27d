use super::*;
use crate::doctor::facts::{Agent, Disk, Gap, Holder};

const NOW: u64 = 1_800_000_000;

fn healthy() -> Facts {
    Facts {
        now_s: NOW,
        root: true,
        agent: Some(Agent {
            protection: "blocking".to_owned(),
            supervised: true,
            ..Agent::default()
        }),
        protected_paths: Some(1),
        identity: Identity::Valid {
            from_s: NOW as i64 - 10,
            until_s: NOW as i64 + 30 * 86_400,
        },
        svm: Connection::Up,
        server: Connection::Up,
        clock_off_s: Some(1),
        last_written_s: Some(NOW - 5),
        kernel: Some(Ok(())),
        descriptors: Some(8192),
        state: Disk {
            path: "/var/lib/palisade/agent".to_owned(),
            free_bytes: Some(1 << 30),
            ..Disk::default()
        },
        ..Facts::default()
    }
}

fn agent(change: impl FnOnce(&mut Agent)) -> Facts {
    let mut agent = healthy().agent.unwrap();
    change(&mut agent);
    Facts {
        agent: Some(agent),
        ..healthy()
    }
}

fn off(reason: &str) -> Facts {
    agent(|agent| {
        agent.protection = "off".to_owned();
        agent.reason = Some(reason.to_owned());
    })
}

fn identity(identity: Identity) -> Facts {
    Facts {
        identity,
        ..healthy()
    }
}

fn valid(from: i64, until: i64) -> Facts {
    identity(Identity::Valid {
        from_s: NOW as i64 + from,
        until_s: NOW as i64 + until,
    })
}

fn disk(change: impl FnOnce(&mut Disk)) -> Facts {
    let mut facts = healthy();
    change(&mut facts.state);
    facts
}

/// Each state of a guest, and the one thing that is found.
fn states() -> Vec<(Fault, Weight, Facts)> {
    use Weight::{Fault as F, Notice as N};
    vec![
        (
            Fault::Settings,
            F,
            Facts {
                settings: Some("agent.toml: unknown field `pahts`".to_owned()),
                ..healthy()
            },
        ),
        (
            Fault::Capability,
            F,
            Facts {
                root: false,
                ..healthy()
            },
        ),
        (
            Fault::Capability,
            F,
            off("on-access protection needs root (CAP_SYS_ADMIN)"),
        ),
        (
            Fault::Kernel,
            F,
            Facts {
                kernel: Some(Err(
                    "this kernel has no fanotify permission events".to_owned()
                )),
                ..healthy()
            },
        ),
        (Fault::NotEnrolled, F, identity(Identity::None)),
        (
            Fault::Identity,
            F,
            identity(Identity::Damaged("key.pem: no key".to_owned())),
        ),
        (Fault::Certificate, F, valid(-100, -10)),
        (Fault::Certificate, N, valid(-100, 86_400)),
        (Fault::Clock, F, valid(86_400, 2 * 86_400)),
        (
            Fault::Clock,
            F,
            Facts {
                clock_off_s: Some(-7200),
                ..healthy()
            },
        ),
        (
            Fault::Clock,
            F,
            Facts {
                clock_off_s: Some(7200),
                ..healthy()
            },
        ),
        (
            Fault::Clock,
            F,
            Facts {
                last_written_s: Some(NOW + 86_400),
                ..healthy()
            },
        ),
        (
            Fault::NotRunning,
            F,
            Facts {
                agent: None,
                no_agent: Some("no socket".to_owned()),
                ..healthy()
            },
        ),
        (
            Fault::NotSupervised,
            N,
            agent(|agent| agent.supervised = false),
        ),
        (
            Fault::Fallback,
            F,
            agent(|agent| {
                agent.protection = "monitoring".to_owned();
                agent.reason = Some("the agent failed 3 times".to_owned());
            }),
        ),
        (
            Fault::Bypass,
            F,
            agent(|agent| {
                agent.protection = "monitoring".to_owned();
                agent.reason = Some("bypassed by an administrator: slow".to_owned());
                agent.bypass = agent.reason.clone();
            }),
        ),
        (
            Fault::Bypass,
            F,
            agent(|agent| {
                agent.protection = "off".to_owned();
                agent.reason = Some("switched by the kernel parameter palisade=off".to_owned());
                agent.bypass = agent.reason.clone();
            }),
        ),
        (
            Fault::Policy,
            F,
            agent(|agent| agent.policy = Some("policy.json is damaged".to_owned())),
        ),
        (
            Fault::SelfTest,
            F,
            off("the EICAR test file in /srv was not blocked"),
        ),
        (Fault::Waiting, N, agent(|agent| agent.waiting = 9)),
        (
            Fault::NoSvm,
            F,
            Facts {
                svm: Connection::Down("svm-1 (192.0.2.1:7443): timed out".to_owned()),
                ..off("no Protection Server is connected")
            },
        ),
        (
            Fault::NoServer,
            N,
            Facts {
                server: Connection::Down("192.0.2.9:7444: timed out".to_owned()),
                ..healthy()
            },
        ),
        (
            Fault::Nothing,
            N,
            Facts {
                protected_paths: Some(0),
                ..healthy()
            },
        ),
        (
            Fault::Gaps,
            F,
            Facts {
                gaps: (0..7)
                    .map(|n| Gap {
                        path: format!("/mnt/{n}"),
                        reason: "nfs".to_owned(),
                    })
                    .collect(),
                ..healthy()
            },
        ),
        (Fault::Disk, F, disk(|disk| disk.read_only = true)),
        (Fault::Disk, F, disk(|disk| disk.free_bytes = Some(4096))),
        (
            Fault::Disk,
            F,
            disk(|disk| disk.refused = Some("Permission denied".to_owned())),
        ),
        (
            Fault::Descriptors,
            F,
            Facts {
                descriptors: Some(256),
                ..healthy()
            },
        ),
        (
            Fault::OtherHolder,
            N,
            Facts {
                holders: vec![Holder {
                    pid: 7,
                    name: "clamonacc".to_owned(),
                }],
                ..healthy()
            },
        ),
    ]
}

#[test]
fn each_state_is_one_finding_and_a_healthy_guest_has_none() {
    assert_eq!(examine(&healthy()).findings, []);
    assert!(examine(&healthy()).is_fine());
    for (fault, weight, facts) in states() {
        let report = examine(&facts);
        assert_eq!(report.findings.len(), 1, "{fault:?}: {report}");
        assert_eq!(report.findings[0].fault, fault, "{report}");
        assert_eq!(report.findings[0].weight, weight, "{report}");
        assert_eq!(report.is_fine(), weight == Weight::Notice);
    }
}

#[test]
fn what_is_said() {
    let all: String = states()
        .iter()
        .map(|(_, _, facts)| examine(facts).to_string())
        .collect();
    insta::assert_snapshot!(all);
    insta::assert_snapshot!(examine(&healthy()).to_string(), @"no fault was found");
    let json = examine(&states()[0].2);
    insta::assert_json_snapshot!(json);
}

#[test]
fn what_is_switched_off_is_no_fault() {
    let facts = Facts {
        protected_paths: None,
        ..off("switched off in the settings (on_access.enabled)")
    };
    assert!(examine(&facts).is_fine());
}

#[test]
fn a_bypass_hides_no_failure_beside_it() {
    let report = examine(&agent(|agent| {
        agent.protection = "monitoring".to_owned();
        agent.reason = Some("the agent failed 3 times".to_owned());
        agent.bypass = Some("bypassed by an administrator: slow".to_owned());
    }));
    let faults: Vec<Fault> = report.findings.iter().map(|found| found.fault).collect();
    assert_eq!(faults, [Fault::Bypass, Fault::Fallback]);
}
