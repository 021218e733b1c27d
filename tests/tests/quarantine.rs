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
use std::time::{Duration, Instant};

use common::TestSite;
use palisade_tests::definitions::Marker;
use palisade_tests::skip;
use serde_json::Value;

fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < Duration::from_secs(60), "never: {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// A running site whose agent moves malware.
fn start(definitions: &[(&str, String)], quarantine: &str) -> TestSite {
    let site = TestSite::prepare(definitions);
    let settings = site.site.dir().join("etc/agent.toml");
    let text = fs::read_to_string(&settings).unwrap();
    let more = format!("[remediation]\nmalware = 'quarantine'\n[quarantine]\n{quarantine}\n");
    fs::write(&settings, format!("{text}\n{more}")).unwrap();
    site.site.start().unwrap();
    site
}

/// What was done about a file, as the server lists it.
fn action(site: &TestSite, file: &str) -> Option<String> {
    let list = site.site.console(&["detection", "list"]).unwrap();
    let row = list.as_array().unwrap().iter().find(|row| {
        row["path"]
            .as_str()
            .is_some_and(|path| path.ends_with(&format!("/protected/{file}")))
    })?;
    row["action"].as_str().map(str::to_owned)
}

#[test]
fn what_was_moved_is_reported_and_the_key_comes_back_from_the_server() {
    if !skip::is_root("what_was_moved_is_reported_and_the_key_comes_back_from_the_server") {
        return;
    }
    let marker = Marker::random();
    let site = start(&[("marker.ndb", marker.ndb())], "");
    let settings = site.site.dir().join("etc/agent.toml");
    let agent = |arguments: &[&str]| -> Value {
        let all = [arguments, &["-o", "json"]].concat();
        site.agent(&settings, &all).json().unwrap()
    };

    let bad = site.protected.join("bad");
    let bytes = [b"x", &marker.bytes[..]].concat();
    fs::write(&bad, &bytes).unwrap();
    assert!(fs::File::open(&bad).is_err());
    wait_until("it is moved", || !bad.exists());
    wait_until("it is reported", || {
        action(&site, "bad").as_deref() == Some("quarantined")
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

    site.site.stop().unwrap();
    site.site.start().unwrap();
    wait_until("the key is back", || key.exists());
    assert_eq!(fs::read(&key).unwrap(), before);
    let to = site.folder().join("restored");
    agent(&["quarantine", "restore", &id, "--to", to.to_str().unwrap()]);
    assert_eq!(fs::read(&to).unwrap(), bytes);
}

/// What was clean and is malware by newer definitions is moved, although nobody opens
/// it; what was malware and is clean by them comes back.
#[test]
fn newer_definitions_move_a_file_and_bring_another_back() {
    if !skip::is_root("newer_definitions_move_a_file_and_bring_another_back") {
        return;
    }
    let [old, new] = [Marker::random(), Marker::random()];
    let site = start(&[("rules.yar", old.yara())], "restore_clean = true");
    let [held, bad] = ["held", "bad"].map(|name| site.protected.join(name));
    fs::write(&held, &new.bytes).unwrap();
    fs::write(&bad, &old.bytes).unwrap();
    assert_eq!(fs::read(&held).unwrap(), new.bytes, "clean so far");
    assert!(fs::File::open(&bad).is_err());
    wait_until("it is moved", || !bad.exists());

    fs::write(site.definitions().join("rules.yar"), new.yara()).unwrap();
    let svms = site.site.console(&["svm", "list"]).unwrap();
    let svm = svms[0]["name"].as_str().unwrap();
    site.site
        .console(&["svm", "definitions", svm, "refresh"])
        .unwrap();
    let other = site.other_agent("other");
    let sample = site.file("elsewhere", &new.bytes);
    let scan = site.agent(&other, &["scan", sample.to_str().unwrap()]);
    assert_eq!(scan.code, Some(1));

    wait_until("what is malware now is moved", || !held.exists());
    wait_until("and reported", || {
        action(&site, "held").as_deref() == Some("quarantined")
    });
    // An answer to an open tells of the newer definitions.
    fs::write(site.protected.join("any"), sample.to_str().unwrap()).unwrap();
    fs::read(site.protected.join("any")).unwrap();
    wait_until("what is clean now is back", || bad.exists());
    assert_eq!(fs::read(&bad).unwrap(), old.bytes);
}
