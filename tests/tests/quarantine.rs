//! Malware that is moved away, through a whole site: what the Integration Server hears
//! of it, and the quarantine's key, which comes back from there.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a panic fails the test"
)]

mod common;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use common::TestSite;
use palisade_tests::definitions::Marker;
use serde_json::Value;

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < Duration::from_secs(60), "never: {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn what_was_moved_is_reported_and_the_key_comes_back_from_the_server() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: files are moved as root alone");
        return;
    }
    let marker = Marker::random();
    let site = TestSite::prepare(&[("marker.ndb", marker.ndb())]);
    let settings = site.site.dir().join("etc/agent.toml");
    let text = fs::read_to_string(&settings).unwrap();
    fs::write(
        &settings,
        format!("{text}\n[remediation]\nmalware = 'quarantine'\n"),
    )
    .unwrap();
    site.site.start().unwrap();
    let agent = |arguments: &[&str]| -> Value {
        let all = [arguments, &["-o", "json"]].concat();
        site.agent(&settings, &all).json().unwrap()
    };

    let bad = site.protected.join("bad");
    let bytes = [b"x", &marker.bytes[..]].concat();
    fs::write(&bad, &bytes).unwrap();
    assert!(fs::File::open(&bad).is_err());
    wait_until("it is moved", || !bad.exists());
    let listed = |site: &TestSite| -> Value {
        let done = site.site.run(
            "palisade",
            &["detection", "list", "-o", "json"],
            common::SCAN,
        );
        done.unwrap().json().unwrap()
    };
    wait_until("it is reported", || {
        listed(&site).to_string().contains("\"quarantined\"")
    });
    let list = agent(&["quarantine", "list"]);
    assert_eq!(list["usage"]["files"], 1, "{list}");
    let id = list["items"][0]["id"].as_str().unwrap().to_owned();

    let log = || fs::read_to_string(site.site.log("agent")).unwrap();
    wait_until("the key is kept", || {
        log().contains("the Integration Server keeps the quarantine's key")
    });
    let state = site.site.dir().join("var/agent");
    let key = state.join("quarantine.key");
    let before = fs::read(&key).unwrap();
    fs::remove_file(&key).unwrap();
    // The control: without the key nothing is readable.
    let list = agent(&["quarantine", "list"]);
    assert_eq!(list["items"].as_array().unwrap().len(), 0, "{list}");
    assert!(list["unreadable"].to_string().contains("key is missing"));

    restart(&site);
    wait_until("the key is back", || key.exists());
    assert_eq!(fs::read(&key).unwrap(), before);
    let to = site.folder().join("restored");
    agent(&["quarantine", "restore", &id, "--to", to.to_str().unwrap()]);
    assert_eq!(fs::read(&to).unwrap(), bytes);
}

/// The agent is stopped, and started again.
fn restart(site: &TestSite) {
    site.site.stop().unwrap();
    site.site.start().unwrap();
    assert!(Path::new(&site.protected).exists());
}
