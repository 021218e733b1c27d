//! Scan tasks: none of their files is left out or found twice, whatever becomes of the agent.

use std::collections::BTreeSet;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use palisade_tests::skip;
use serde_json::Value;

use super::common::watch::Numbers;
use super::guest::{Guest, PATIENCE, number, signal, wait_until};
use super::slow::Slow;

/// Files of a task.
const FILES: u64 = 2500;
/// Every file whose number is a multiple of this is malware.
const BAD: u64 = 100;

/// Running, with numbers of its Protection Server.
fn start(settings: &str) -> (Guest, SocketAddr) {
    let guest = Guest::prepare(settings);
    let numbers = guest.test.start_with_numbers();
    guest.wait_state("blocking");
    (guest, numbers)
}

/// A folder that is not protected, with contents that nobody has seen.
fn files(guest: &Guest) -> String {
    for n in 0..FILES {
        let name = format!("task/{}/{n}", n % 7);
        let content = match n % BAD {
            0 => guest.malware(&name),
            _ => format!("{name} {}", uuid::Uuid::new_v4()).into_bytes(),
        };
        guest.test.file(&name, &content);
    }
    guest.test.folder().join("task").display().to_string()
}

fn task(guest: &Guest, arguments: &[&str]) -> anyhow::Result<Value> {
    let all = [&["task", "-o", "json"], arguments].concat();
    let said = guest.test.site.run("palisade-agent", &all, PATIENCE)?;
    said.expect(&[0])?.json()
}

fn shown(guest: &Guest) -> Value {
    let mut shown = Value::Null;
    // An agent that has just started does not answer yet.
    wait_until("the agent shows the task", || {
        task(guest, &["show", "1"]).is_ok_and(|said| {
            shown = said;
            true
        })
    });
    shown
}

fn is_done(guest: &Guest) -> Value {
    let mut last = Value::Null;
    wait_until("the task is done", || {
        last = shown(guest);
        last["state"] == "done"
    });
    last
}

/// Everything was scanned, and each piece of malware was told of once.
fn assert_whole(guest: &Guest, svm: SocketAddr, shown: &Value) {
    let bad = FILES / BAD;
    assert_eq!(number(shown, "files"), FILES, "{shown}");
    assert_eq!(number(shown, "malware"), bad, "{shown}");
    assert_eq!(number(shown, "clean"), FILES - bad, "{shown}");
    assert_eq!(number(shown, "errors"), 0, "{shown}");
    let scans = Numbers::read(svm).sum("scans_total");
    assert!(scans >= FILES as f64, "the engine saw {scans} of {FILES}");
    let mut paths = BTreeSet::new();
    wait_until("the site knows all malware", || {
        let found = guest.test.site.console(&["detection", "list"]).unwrap();
        let of_task: Vec<String> = found
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|found| found["path"].as_str())
            .filter(|path| path.contains("/task/"))
            .map(str::to_owned)
            .collect();
        paths = of_task.iter().cloned().collect();
        paths.len() as u64 >= bad
    });
    assert_eq!(paths.len() as u64, bad);
}

#[test]
fn a_task_outlives_its_agent_and_leaves_nothing_out() {
    if !skip::is_root("a_task_outlives_its_agent_and_leaves_nothing_out") {
        return;
    }
    let (guest, svm) = start("[scan]\nconcurrency = 1");
    let folder = files(&guest);
    let slow = Slow::server(&guest);
    task(&guest, &["start", &folder]).unwrap();
    let kept = guest.test.site.dir().join("var/agent/tasks/1.json");
    let saved = |kept: &Path| -> Option<u64> {
        let saved: Value = serde_json::from_slice(&fs::read(kept).ok()?).ok()?;
        saved["content"]["counters"]["scanned"].as_u64()
    };
    wait_until("a place is on disk", || saved(&kept) > Some(20));
    let before = saved(&kept).unwrap();
    signal(guest.agent_pid(), nix::sys::signal::Signal::SIGKILL);
    assert!(
        before < FILES * 3 / 4,
        "it was killed in the middle: {before}"
    );
    // Its supervisor starts another one, which goes on where this one was.
    let again = shown(&guest);
    let files = number(&again, "files");
    assert!(files >= before && files < FILES, "{before}: {again}");
    drop(slow);
    let done = is_done(&guest);
    assert_whole(&guest, svm, &done);
}

#[test]
fn a_paused_task_asks_for_nothing_and_a_resumed_one_finishes() {
    if !skip::is_root("a_paused_task_asks_for_nothing_and_a_resumed_one_finishes") {
        return;
    }
    let (guest, svm) = start("[scan]\nconcurrency = 1");
    let folder = files(&guest);
    let slow = Slow::server(&guest);
    task(&guest, &["start", &folder]).unwrap();
    wait_until("it is under way", || number(&shown(&guest), "files") > 50);
    task(&guest, &["pause", "1"]).unwrap();
    drop(slow);
    // What was in flight is given up; nothing new is asked for.
    std::thread::sleep(Duration::from_secs(2));
    let now = || {
        let scans = Numbers::read(svm).sum("scans_total");
        (number(&shown(&guest), "files"), scans as u64)
    };
    let before = now();
    std::thread::sleep(Duration::from_secs(3));
    assert_eq!(now(), before, "it stands still");
    assert!(before.0 < FILES, "it was paused in the middle");
    assert_eq!(shown(&guest)["state"], "paused");
    task(&guest, &["resume", "1"]).unwrap();
    let done = is_done(&guest);
    assert_whole(&guest, svm, &done);
}
