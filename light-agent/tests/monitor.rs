//! `on_access.mode = "monitor"` as a process, as root: malware is reported, nothing
//! is denied, and no open waits, whatever happens to the agent.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a panic in a test is a failed test with a place in it"
)]

mod support;

use std::fs::File;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use serde_json::json;
use support::world::{World, denied, open_aside, program};
use support::{MARKER, MARKER_NAME, is_root, wait_until};

const MONITOR: &str = "on_access: mode = 'monitor'";
/// Longer than an open takes, by far.
const PATIENCE: Duration = Duration::from_secs(5);

#[test]
fn malware_is_reported_and_nothing_is_denied() {
    if !is_root("malware_is_reported_and_nothing_is_denied") {
        return;
    }
    let world = World::started_as(MONITOR, "monitoring");
    let bad = world.file("bad", &[b"x", MARKER].concat());
    let bad_program = world.file("evil", &program(MARKER));
    let outside = world.tmpfs.file("outside", MARKER);
    File::open(&bad).unwrap();
    File::open(&outside).unwrap();
    assert!(Command::new(&bad_program).status().unwrap().success());
    let found = |world: &World, path: &std::path::Path| {
        let bytes = json!(path.to_str().unwrap().as_bytes());
        let spooled = world.agent.spooled();
        spooled.into_iter().find(|found| found["path"] == bytes)
    };
    wait_until("both are reported", || {
        found(&world, &bad).is_some() && found(&world, &bad_program).is_some()
    });
    for path in [&bad, &bad_program] {
        let found = found(&world, path).unwrap();
        assert_eq!(found["name"], MARKER_NAME);
        assert_eq!(found["action"], "Reported");
    }
    assert!(found(&world, &outside).is_none());
    assert_eq!(world.agent.settled_events()["denied"], 0);

    // The control: the same malware where the mode is to block.
    let blocking = World::started("");
    assert!(denied(File::open(blocking.file("bad", MARKER))));
}

#[test]
fn the_failure_table_denies_nothing() {
    if !is_root("the_failure_table_denies_nothing") {
        return;
    }
    let mut world = World::new(&format!("{MONITOR}\n[failure]\nno_svm = 'deny'"));
    world.svm.kill();
    world.agent.run();
    File::open(world.file("f", MARKER)).unwrap();
    wait_until("it is booked", || {
        world.agent.status()["events"]["failures"]["no_svm"] != 0
    });
    let events = world.agent.settled_events();
    assert_eq!(events["failed_closed"], 0, "{events}");
    assert_eq!(events["denied"], 0, "{events}");
    assert_eq!(world.agent.status()["protection"]["state"], "off");
    world.svm.resume();
    world.agent.wait_protection("monitoring");
}

#[test]
fn a_stalled_agent_delays_no_open() {
    if !is_root("a_stalled_agent_delays_no_open") {
        return;
    }
    let world = World::started_as(MONITOR, "monitoring");
    let files: Vec<_> = (0..100)
        .map(|n| world.file(&n.to_string(), n.to_string().as_bytes()))
        .collect();
    world.agent.signal(Signal::SIGSTOP);
    for file in &files {
        let (opened, _) = open_aside(file).recv_timeout(PATIENCE).unwrap();
        opened.unwrap();
    }
    world.agent.signal(Signal::SIGCONT);
    // What was opened meanwhile is looked at all the same.
    wait_until("all are scanned", || {
        world.agent.status()["events"]["scanned"].as_u64().unwrap() >= 100
    });

    // The control: who blocks and is stopped holds the opener until it goes on.
    let blocking = World::started("");
    let file = blocking.file("held", b"held");
    blocking.agent.signal(Signal::SIGSTOP);
    let held = open_aside(&file);
    assert!(held.recv_timeout(Duration::from_millis(500)).is_err());
    blocking.agent.signal(Signal::SIGCONT);
    held.recv_timeout(PATIENCE).unwrap().0.unwrap();
}

#[test]
fn learning_holds_nothing_and_counts_what_costs() {
    if !is_root("learning_holds_nothing_and_counts_what_costs") {
        return;
    }
    let world = World::started_as("on_access: mode = 'learn'", "monitoring");
    std::fs::create_dir(world.tmpfs.path().join("protected/busy")).unwrap();
    for n in 0..30 {
        let file = world.file(&format!("busy/{n}"), format!("{n}").as_bytes());
        assert!(File::open(&file).is_ok());
    }
    let bad = world.file("bad", MARKER);
    assert!(File::open(&bad).is_ok(), "nothing is held");
    wait_until("it is reported", || !world.agent.spooled().is_empty());
    let folder = world.tmpfs.path().join("protected/busy");
    wait_until("all are counted", || {
        let learned = &world.agent.status()["learned"];
        let folders = learned["folders"].as_array().unwrap();
        let row = folders
            .iter()
            .find(|row| row["name"] == folder.to_str().unwrap());
        // The write that makes a file opens it, too.
        row.is_some_and(|row| row["opens"].as_u64() >= Some(30) && row["took_us"] != 0)
    });
    let text = world.agent.output(&["status"]);
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(text.contains("learned     folder"), "{text}");
    // The control: a mode that only monitors counts nothing.
    let world = World::started_as("on_access: mode = 'monitor'", "monitoring");
    File::open(world.file("f", b"f")).unwrap();
    assert!(world.agent.status()["learned"].is_null());
}
