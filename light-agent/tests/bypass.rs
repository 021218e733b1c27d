//! The emergency switch as processes, as root: opens are let go at once, it is said
//! everywhere, and protection comes back by itself.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a panic in a test is a failed test with a place in it"
)]

mod support;

use std::fs::File;
use std::time::{Duration, Instant};

use rand::Rng as _;
use serde_json::json;
use support::svm::Mode;
use support::world::{World, denied, open_aside};
use support::{MARKER, is_root, wait_until};

/// Openers that an agent holds are released within this time.
const RELEASED_WITHIN: Duration = Duration::from_secs(10);

fn supervised(settings: &str) -> World {
    let mut world = World::new(settings);
    world.agent.supervise();
    world.agent.wait_protection("blocking");
    world
}

fn reason() -> String {
    format!("change {}", rand::rng().random::<u32>())
}

#[test]
fn held_opens_are_let_go_and_protection_comes_back() {
    if !is_root("held_opens_are_let_go_and_protection_comes_back") {
        return;
    }
    let settings = "on_access: deadline_ms = 60000";
    let (world, control) = (supervised(settings), supervised(settings));
    let bad = world.file("bad", MARKER);
    assert!(denied(File::open(&bad)));
    let hold = |world: &World| {
        world.svm.set(Mode::Hang);
        open_aside(&world.file("held", b"nobody will say"))
    };
    let (held, held_by_control) = (hold(&world), hold(&control));
    wait_until("it is held", || {
        world.agent.status()["events"]["pending"] == 1
    });
    let reason = reason();
    let began = Instant::now();
    let said = world
        .agent
        .output(&["bypass", "--reason", &reason, "--for", "10s"]);
    assert_eq!(said.status.code(), Some(1), "{said:?}");
    let text = String::from_utf8(said.stdout).unwrap();
    assert!(
        text.starts_with("protection is off") && text.contains(&reason),
        "{text}"
    );
    held.recv_timeout(RELEASED_WITHIN).unwrap().0.unwrap();
    wait_until("the status says so", || {
        let Some(status) = world.agent.try_status() else {
            return false;
        };
        let said = status["protection"]["reason"].as_str().unwrap_or_default();
        status["protection"]["state"] == "off" && said.contains(&reason)
    });
    File::open(&bad).unwrap();
    wait_until("the time is a window", || {
        let now = world.agent.try_status().unwrap_or_default()["exposure"]["now"].clone();
        let causes = now["causes"].as_array();
        causes.is_some_and(|causes| {
            causes.contains(&json!("bypass")) && !causes.contains(&json!("off"))
        })
    });
    // The control: without a bypass the same opener waits on.
    assert!(held_by_control.try_recv().is_err());

    world.svm.set(Mode::Serve);
    wait_until("it is over by itself", || {
        let status = world.agent.try_status();
        status.is_some_and(|status| status["protection"]["state"] == "blocking")
    });
    let lasted = began.elapsed();
    assert!(lasted >= Duration::from_secs(9), "{lasted:?}");
    assert!(denied(File::open(&bad)));
    let none = world.agent.output(&["bypass"]);
    assert_eq!(none.status.code(), Some(0), "{none:?}");
}

#[test]
fn it_can_be_ended_and_may_only_watch() {
    if !is_root("it_can_be_ended_and_may_only_watch") {
        return;
    }
    let world = supervised("");
    let bad = world.file("bad", MARKER);
    let reason = reason();
    let arguments = [
        "bypass", "--reason", &reason, "--to", "monitor", "-o", "json",
    ];
    let said = world.agent.output(&arguments);
    let said: serde_json::Value = serde_json::from_slice(&said.stdout).unwrap();
    assert_eq!(said["to"], "monitor", "{said}");
    assert!(said["left_s"].as_u64() > Some(3500), "an hour: {said}");
    wait_until("it watches", || {
        let status = world.agent.try_status();
        status.is_some_and(|status| status["protection"]["state"] == "monitoring")
    });
    File::open(&bad).unwrap();
    wait_until("and reports", || {
        let spooled = world.agent.spooled();
        let path: Vec<u8> = bad.to_str().unwrap().into();
        let mut found = spooled.iter();
        found.any(|found| found["path"] == json!(path) && found["action"] == "Reported")
    });
    // It is no failure of the agent, wherever it is said.
    let status = world.agent.status();
    for said in ["reason", "bypass"] {
        let said = status["protection"][said].as_str().unwrap();
        assert!(said.contains(&reason), "{status}");
    }
    let causes = status["exposure"]["now"]["causes"].as_array().unwrap();
    assert!(causes.contains(&json!("bypass")), "{status}");
    assert!(!causes.contains(&json!("fallback")), "{status}");
    let doctor = world.agent.output(&["doctor", "-o", "json"]);
    let doctor: serde_json::Value = serde_json::from_slice(&doctor.stdout).unwrap();
    let findings = doctor["findings"].as_array().unwrap();
    let named = |fault: &str| findings.iter().find(|found| found["fault"] == fault);
    let remedy = named("bypass").unwrap()["remedy"].as_str().unwrap();
    assert!(remedy.contains("bypass --end"), "{doctor}");
    assert!(named("fallback").is_none(), "{doctor}");

    let said = world.agent.output(&["bypass", "--end"]);
    assert_eq!(said.status.code(), Some(0), "{said:?}");
    wait_until("it blocks again", || {
        let status = world.agent.try_status();
        status.is_some_and(|status| status["protection"]["state"] == "blocking")
    });
    assert!(denied(File::open(&bad)));
    let status = world.agent.status();
    assert!(status["protection"]["bypass"].is_null(), "{status}");
    wait_until("the window has ended", || {
        let exposure = world.agent.status()["exposure"].clone();
        exposure["now"].is_null() && exposure["last"].to_string().contains("bypass")
    });
}

#[test]
fn bad_requests_switch_nothing() {
    if !is_root("bad_requests_switch_nothing") {
        return;
    }
    let world = supervised("");
    let long = "x".repeat(1000);
    for bad in [
        &["--reason", "why", "--for", "8d"][..],
        &["--reason", "why", "--for", "-1h"],
        &["--reason", " "],
        &["--reason", "two\nlines"],
        &["--reason", &long],
        &["--reason", "why", "--to", "nothing"],
        &["--for", "1h"],
    ] {
        let said = world.agent.output(&[&["bypass"], bad].concat());
        let code = said.status.code();
        assert!(matches!(code, Some(2 | 3)), "{bad:?}: {said:?}");
        assert!(!said.stderr.is_empty());
    }
    assert_eq!(world.agent.status()["protection"]["state"], "blocking");
    assert!(denied(File::open(world.file("bad", MARKER))));
}

/// In a mount namespace whose kernel command line says so.
#[test]
fn the_kernel_parameter_keeps_protection_off() {
    if !is_root("the_kernel_parameter_keeps_protection_off") {
        return;
    }
    for (line, state) in [
        ("quiet palisade=off", "off"),
        ("quiet palisade=on", "blocking"),
    ] {
        let mut world = World::new("");
        let fake = world.tmpfs.file("cmdline", line.as_bytes());
        let script = format!("mount --bind '{}' /proc/cmdline", fake.display());
        world.agent.run_with_mounts(&script);
        world.agent.wait_protection(state);
        let opened = File::open(world.file("bad", MARKER));
        assert_eq!(denied(opened), state == "blocking", "{line}");
        if state == "off" {
            let status = world.agent.status();
            let reason = status["protection"]["reason"].as_str().unwrap();
            assert!(reason.contains("palisade=off"), "{status}");
        }
    }
}
