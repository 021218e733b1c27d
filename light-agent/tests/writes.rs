//! `on_access.after_writes` as a process, as root: what is written is scanned when it is
//! closed, without anybody opening it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a panic in a test is a failed test with a place in it"
)]

mod support;

use std::fs::{self, File};
use std::io::Write as _;

use serde_json::{Value, json};
use support::world::{World, denied};
use support::{MARKER, MARKER_NAME, is_root, wait_until};

const AFTER_WRITES: &str = "on_access: after_writes = true";

fn sum(events: &Value) -> u64 {
    [
        "scanned",
        "cached",
        "allowed_by_policy",
        "failed_open",
        "failed_closed",
    ]
    .iter()
    .map(|key| events[key].as_u64().unwrap())
    .sum()
}

#[test]
fn malware_is_found_when_it_is_written() {
    if !is_root("malware_is_found_when_it_is_written") {
        return;
    }
    let world = World::started(AFTER_WRITES);
    let bad = world.file("bad", MARKER);
    wait_until("it is reported", || !world.agent.spooled().is_empty());
    let found = &world.agent.spooled()[0];
    assert_eq!(found["path"], json!(bad.to_str().unwrap().as_bytes()));
    assert_eq!(found["name"], MARKER_NAME);
    assert_eq!(found["action"], "Reported");
    assert!(denied(File::open(&bad)));

    // What is added to a clean file later is found when that is closed.
    let path = world.file("grows", b"clean so far");
    wait_until("it is scanned", || {
        let writes = &world.agent.status()["writes"];
        writes["scanned"].as_u64().unwrap() >= 2 && writes["pending"] == 0
    });
    let reported = world.agent.spooled().len();
    let mut file = fs::OpenOptions::new().append(true).open(&path).unwrap();
    file.write_all(MARKER).unwrap();
    drop(file);
    wait_until("it is reported", || world.agent.spooled().len() > reported);

    // The control: without the setting nothing is said of a file that nobody opens.
    let world = World::started("");
    let bad = world.file("bad", MARKER);
    let clean = world.file("clean", b"clean");
    File::open(&clean).unwrap();
    world.agent.settled_events();
    assert!(world.agent.spooled().is_empty());
    assert_eq!(world.agent.status()["writes"]["seen"], 0);
    assert!(denied(File::open(&bad)));
}

#[test]
fn many_writes_are_all_accounted_for() {
    const FILES: usize = 2000;
    if !is_root("many_writes_are_all_accounted_for") {
        return;
    }
    let world = World::started(AFTER_WRITES);
    for n in 0..FILES {
        world.file(&n.to_string(), n.to_string().as_bytes());
    }
    // An open among them is answered by a verdict.
    assert!(denied(File::open(world.file("bad", MARKER))));
    wait_until("all are done", || {
        let writes = &world.agent.status()["writes"];
        writes["seen"].as_u64().unwrap() >= FILES as u64 && writes["pending"] == 0
    });
    let writes = world.agent.status()["writes"].clone();
    assert_eq!(writes["seen"].as_u64().unwrap(), sum(&writes), "{writes}");
    assert_eq!(writes["denied"], 0, "{writes}");
}
