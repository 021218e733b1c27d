//! What confines workers, as it is set and as the log tells of it.

use std::process::Command;

use palisade_protocol::verdict::VerdictKind;

use crate::client::{Client, unique};
use crate::site::{Site, marker, rule};

/// Runs the engine in a user namespace in which no further one can be made.
const WITHOUT_NAMESPACES: &str = "exec unshare --user --map-root-user sh -c \
     'echo 0 > /proc/sys/user/max_mnt_namespaces && exec \"$@\"' sh \"$@\"";

#[tokio::test(flavor = "multi_thread")]
async fn what_a_machine_cannot_do_is_refused_or_named() {
    let tried = Command::new("sh")
        .args(["-c", WITHOUT_NAMESPACES, "sh", "true"])
        .output();
    if !tried.is_ok_and(|output| output.status.success()) {
        println!(
            "skipped: what_a_machine_cannot_do_is_refused_or_named: \
             no user namespace can be made here"
        );
        return;
    }
    let mut site = Site::new(&[("some.yar", &rule("Some", &marker()))]);
    site.start_engines_by(WITHOUT_NAMESPACES);
    let (code, said) = site.start_fails();
    assert_eq!(code, 3, "{said}");
    for part in [
        "could not enter its sandbox: namespaces: no namespaces can be made",
        "run palisade-scanserver as root",
        "[scan] sandbox =",
        "best-effort",
    ] {
        assert!(said.contains(part), "{part}: {said}");
    }

    site.settings.push_str("[scan]\nsandbox = 'best-effort'\n");
    let daemon = site.start();
    let gap = daemon.log.wait_for("the sandbox is not whole");
    assert!(gap.contains("no namespaces can be made"), "{gap}");
    let client = Client::connect(&daemon, &site.ca.agent("default")).await;
    assert_eq!(client.kind(&unique(1000)).await, VerdictKind::Clean);
}

#[tokio::test(flavor = "multi_thread")]
async fn workers_are_who_the_settings_say() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: workers_are_who_the_settings_say: only root can choose");
        return;
    }
    let mut site = Site::new(&[("some.yar", &rule("Some", &marker()))]);
    site.settings = "[scan]\nworker_user = '4711'\n".to_owned();
    let daemon = site.start();
    let client = Client::connect(&daemon, &site.ca.agent("default")).await;
    assert_eq!(client.kind(&unique(1000)).await, VerdictKind::Clean);
    let workers = daemon.workers();
    assert!(!workers.is_empty());
    for worker in workers {
        // A spare may be in the making; those that serve are confined.
        let status = std::fs::read_to_string(format!("/proc/{worker}/status")).unwrap();
        if status.contains("Seccomp:\t2") {
            assert!(status.contains("Uid:\t4711\t4711\t4711\t4711"), "{status}");
        }
    }
}
