//! A guest becomes a template: nothing is left of its agent, and a clone joins anew.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a panic fails the test"
)]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use common::TestSite;
use palisade_tests::command::wait_for;
use palisade_tests::definitions::Marker;
use serde_json::Value;

fn agents(site: &TestSite) -> BTreeSet<String> {
    let list = site.site.console(&["agent", "list"]).unwrap();
    let ids = list
        .as_array()
        .unwrap()
        .iter()
        .map(|agent| agent["id"].to_string());
    ids.collect()
}

#[test]
fn nothing_of_an_agent_is_left_and_a_clone_joins_anew() {
    let marker = Marker::random();
    let site = TestSite::start(&[("marker.ndb", marker.ndb())]);
    let settings = site.site.dir().join("etc/agent.toml");
    let state = site.site.dir().join("var/agent");
    let left = || -> BTreeSet<String> {
        let entries = fs::read_dir(&state).unwrap();
        entries
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect()
    };
    let before = agents(&site);
    assert_eq!(before.len(), 1);

    let refused = site.agent(&settings, &["generalize", "--yes"]);
    assert_eq!(refused.code, Some(3));
    assert!(
        refused.stderr.contains("the agent runs"),
        "{}",
        refused.stderr
    );
    assert!(state.join("identity/key.pem").exists());

    site.site.process("agent").unwrap().unwrap().stop().unwrap();
    fs::write(state.join("mine.txt"), "an administrator's").unwrap();
    let there = left();
    let plan = site.agent(&settings, &["generalize", "-o", "json"]);
    assert_eq!(plan.code, Some(2));
    let plan: Value = plan.json().unwrap();
    assert_eq!(plan["done"], false);
    assert_eq!(left(), there, "without --yes nothing is removed");

    let done = site.agent(&settings, &["generalize", "--yes", "-o", "json"]);
    let done = done.expect(&[0]).unwrap().json().unwrap();
    assert_eq!(done["done"], true);
    assert_eq!(done["removed"], plan["removed"], "it does what it said");
    // All that a running agent had made was known to be its own.
    assert_eq!(left(), BTreeSet::from(["mine.txt".to_owned()]), "{done}");
    assert_eq!(done["kept"].as_array().unwrap().len(), 1);
    assert!(!site.site.dir().join("run/agent/agent.sock").exists());

    site.site.start_part("agent").unwrap();
    // The old one may be listed as connected for a while.
    let after = wait_for("it to join as another", Duration::from_secs(60), || {
        let after = agents(&site);
        anyhow::ensure!(after.len() == 2, "{after:?}");
        Ok(after)
    })
    .unwrap();
    assert!(after.is_superset(&before));
}
