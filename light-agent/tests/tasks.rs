//! Scan tasks of a running agent, as real processes: quick scans, pause and resume,
//! cancel, a killed agent that goes on, schedules. What was scanned is counted by the
//! Protection Server.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a panic in a test is a failed test with a place in it"
)]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use palisade_protocol::content::ContentId;
use serde_json::{Value, json};
use support::agent::{Agent, BINARY};
use support::site::Site;
use support::svm::{Mode, Svm};
use support::{MARKER, wait_until};

/// Files of a task: more than are in flight, and with a slow server some seconds' work.
const FILES: usize = 300;

fn world(settings: &str) -> (Site, Svm, Agent) {
    let site = Site::new();
    let svm = Svm::start(&site);
    let agent = Agent::new(
        &site,
        &format!("{settings}\n[[svm]]\naddress = '{}'\n", svm.address),
    );
    (site, svm, agent)
}

/// A folder of files whose contents are like no others; gives these.
fn files(dir: &Path) -> BTreeSet<ContentId> {
    let salt: u64 = rand::random();
    (0..FILES)
        .map(|number| {
            let folder = dir.join(format!("{}", number % 7));
            fs::create_dir_all(&folder).unwrap();
            let content = format!("{salt} {number}");
            fs::write(folder.join(format!("{number}")), &content).unwrap();
            ContentId::of(content.as_bytes())
        })
        .collect()
}

fn task(agent: &Agent, args: &[&str]) -> Value {
    let output = agent.output(&[&["task", "-o", "json"], args].concat());
    assert!(
        output.status.success(),
        "{args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    answer
}

fn wait_state(agent: &Agent, id: &str, state: &str) -> Value {
    let mut shown = Value::Null;
    wait_until(&format!("task {id} is {state}"), || {
        shown = task(agent, &["show", id]);
        shown["state"] == state
    });
    shown
}

fn files_done(agent: &Agent) -> u64 {
    task(agent, &["show", "1"])["files"].as_u64().unwrap()
}

/// All were scanned, each counted once.
fn assert_whole(svm: &Svm, truth: &BTreeSet<ContentId>, shown: &Value) {
    let missed: Vec<_> = truth.iter().filter(|content| !svm.knows(content)).collect();
    assert!(missed.is_empty(), "{} were never scanned", missed.len());
    assert_eq!(shown["scanned"], json!(truth.len()), "{shown}");
    assert_eq!(shown["files"], json!(truth.len()), "{shown}");
    assert_eq!(shown["errors"], 0, "{shown}");
}

#[test]
fn a_killed_agent_goes_on_where_it_was() {
    let (_site, svm, mut agent) = world("");
    let dir = tempfile::tempdir().unwrap();
    let truth = files(dir.path());
    agent.run();
    svm.set(Mode::Slow(Duration::from_millis(100)));
    task(&agent, &["start", dir.path().to_str().unwrap()]);
    let kept = agent.dir.path().join("var/agent/tasks/1.json");
    wait_until("a place is on disk", || {
        let text = fs::read(&kept).unwrap_or_default();
        let saved: Value = serde_json::from_slice(&text).unwrap_or_default();
        saved["content"]["counters"]["scanned"].as_u64() > Some(20)
    });
    agent.signal(nix::sys::signal::Signal::SIGKILL);
    agent.wait();
    let before = svm.requests();
    assert!((before as usize) < FILES, "it was killed in the middle");
    agent.run();
    let shown = task(&agent, &["show", "1"]);
    assert_ne!(shown["state"], "done", "{shown}");
    assert!(
        shown["files"].as_u64() > Some(20),
        "it starts anew: {shown}"
    );
    svm.set(Mode::Serve);
    let shown = wait_state(&agent, "1", "done");
    assert_whole(&svm, &truth, &shown);
    assert_eq!(shown["files_total"], json!(FILES));
}

#[test]
fn a_paused_task_stands_still_and_a_resumed_one_finishes() {
    let (_site, svm, mut agent) = world("");
    let dir = tempfile::tempdir().unwrap();
    let truth = files(dir.path());
    fs::write(dir.path().join("bad"), MARKER).unwrap();
    agent.run();
    svm.set(Mode::Slow(Duration::from_millis(60)));
    task(&agent, &["start", dir.path().to_str().unwrap()]);
    wait_until("it is under way", || files_done(&agent) > 10);
    let shown = task(&agent, &["show", "1"]);
    assert_eq!(shown["state"], "running");
    assert!(shown["files_per_s"].as_f64() > Some(0.0), "{shown}");
    wait_until("the time left is known", || {
        task(&agent, &["show", "1"])["left_s"].is_u64()
    });
    let text = agent.output(&["task", "show", "1"]).stdout;
    assert!(String::from_utf8_lossy(&text).contains(" left"));
    task(&agent, &["pause", "1"]);
    // What was in flight is given up; nothing new is asked for.
    std::thread::sleep(Duration::from_millis(1500));
    let (requests, done) = (svm.requests(), files_done(&agent));
    std::thread::sleep(Duration::from_secs(2));
    assert_eq!((svm.requests(), files_done(&agent)), (requests, done));
    assert!(done < FILES as u64);
    let list = task(&agent, &["list"]);
    assert_eq!(list[0]["state"], "paused", "{list}");
    svm.set(Mode::Serve);
    task(&agent, &["resume", "1"]);
    let mut shown = wait_state(&agent, "1", "done");
    assert_eq!(
        (&shown["malware"], &shown["clean"]),
        (&json!(1), &json!(FILES))
    );
    assert_eq!(shown["findings"][0]["verdict"], "malware", "{shown}");
    wait_until("the finding is spooled", || agent.spooled().len() == 1);
    for key in ["scanned", "files"] {
        shown[key] = json!(shown[key].as_u64().unwrap() - 1);
    }
    assert_whole(&svm, &truth, &shown);
    let again = agent.output(&["task", "resume", "1"]);
    assert_eq!(again.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&again.stderr).contains("is done and cannot be resumed"));
}

#[test]
fn one_runs_at_a_time_and_a_cancelled_one_ends() {
    let (_site, svm, mut agent) = world("");
    let dir = tempfile::tempdir().unwrap();
    files(dir.path());
    agent.run();
    svm.set(Mode::Slow(Duration::from_millis(200)));
    let path = dir.path().to_str().unwrap();
    for _ in 0..2 {
        task(&agent, &["start", path]);
    }
    wait_state(&agent, "1", "running");
    assert_eq!(task(&agent, &["show", "2"])["state"], "waiting");
    task(&agent, &["cancel", "1"]);
    wait_state(&agent, "2", "running");
    assert_eq!(task(&agent, &["show", "1"])["state"], "cancelled");
    // Its threads give way, and the one that answers openers does not.
    let threads = nice_values(agent.pid());
    assert!(threads.contains(&19), "{threads:?}");
    assert!(threads.iter().any(|nice| *nice < 19), "{threads:?}");
}

fn nice_values(pid: i32) -> Vec<i32> {
    fs::read_dir(format!("/proc/{pid}/task"))
        .unwrap()
        .filter_map(|entry| fs::read_to_string(entry.unwrap().path().join("stat")).ok())
        .map(|stat| {
            let (_, fields) = stat.rsplit_once(')').unwrap();
            fields.split(' ').nth(17).unwrap().parse().unwrap()
        })
        .collect()
}

#[test]
fn without_a_protection_server_a_task_waits_fails_and_can_be_resumed() {
    let (_site, mut svm, mut agent) = world("[scan]\nsvm_wait_s = 4\n");
    let dir = tempfile::tempdir().unwrap();
    let truth = files(dir.path());
    svm.kill();
    agent.run();
    task(&agent, &["start", dir.path().to_str().unwrap()]);
    wait_until("it says what it waits for", || {
        let shown = task(&agent, &["show", "1"]);
        shown["waits_for"]
            .as_str()
            .is_some_and(|text| text.contains("no Protection Server"))
    });
    let shown = wait_state(&agent, "1", "failed");
    let reason = shown["reason"].as_str().unwrap();
    assert!(reason.contains("no Protection Server for 4 s"), "{reason}");
    assert_eq!(shown["scanned"], 0);
    svm.resume();
    wait_until("it is back", || {
        agent.status()["svm"]["address"].is_string()
    });
    task(&agent, &["resume", "1"]);
    let shown = wait_state(&agent, "1", "done");
    assert_whole(&svm, &truth, &shown);
}

#[test]
fn a_schedule_fires_once() {
    let dir = tempfile::tempdir().unwrap();
    let truth = files(dir.path());
    let (_site, svm, mut agent) = world(&format!(
        "[[schedule]]\nkind = 'custom'\npaths = ['{}']\nat = '00:00'\n",
        dir.path().display()
    ));
    let last = agent.dir.path().join("var/agent/tasks/schedules.json");
    agent.run();
    wait_until("a new schedule begins with its next slot", || last.exists());
    assert_eq!(task(&agent, &["list"]), json!([]));
    agent.signal(nix::sys::signal::Signal::SIGTERM);
    agent.wait();
    // As if the machine had been off for weeks.
    let text = fs::read_to_string(&last).unwrap();
    let mut saved: Value = serde_json::from_str(&text).unwrap();
    for date in saved["content"].as_object_mut().unwrap().values_mut() {
        *date = json!("2026-01-01");
    }
    fs::write(&last, saved.to_string()).unwrap();
    for _ in 0..2 {
        agent.run();
        // The agent is ready before its clock has looked.
        wait_until("the schedule has fired", || {
            task(&agent, &["list"]) != json!([])
        });
        let shown = wait_state(&agent, "1", "done");
        assert!(
            shown["schedule"]
                .as_str()
                .unwrap()
                .starts_with("custom at 00:00")
        );
        assert_whole(&svm, &truth, &shown);
        std::thread::sleep(Duration::from_secs(1));
        assert_eq!(task(&agent, &["list"]).as_array().unwrap().len(), 1);
        agent.signal(nix::sys::signal::Signal::SIGTERM);
        agent.wait();
    }
}

/// In namespaces of its own: what runs, cron and temporary folders are the test's.
#[test]
fn a_quick_scan_finds_what_runs_what_is_started_and_what_was_dropped() {
    if !support::is_root("a_quick_scan_finds_what_runs_what_is_started_and_what_was_dropped") {
        return;
    }
    let site = Site::new();
    let svm = Svm::start(&site);
    let folder = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let agent = folder.path().join("agent");
    fs::create_dir_all(agent.join("etc")).unwrap();
    site.agent().save(&agent.join("var/agent")).unwrap();
    let settings = format!("[[svm]]\naddress = '{}'\n", svm.address);
    fs::write(agent.join("etc/agent.toml"), settings).unwrap();
    let salt: u64 = rand::random();
    let bad = |what: &str| [format!("{salt} {what} ").as_bytes(), MARKER].concat();
    let program = folder.path().join("runs");
    fs::write(
        &program,
        [fs::read("/bin/sleep").unwrap(), bad("runs")].concat(),
    )
    .unwrap();
    fs::set_permissions(
        &program,
        std::os::unix::fs::PermissionsExt::from_mode(0o755),
    )
    .unwrap();
    fs::write(folder.path().join("cron"), bad("cron")).unwrap();
    fs::write(folder.path().join("tmp"), bad("tmp")).unwrap();
    fs::write(folder.path().join("elsewhere"), bad("elsewhere")).unwrap();
    let script = "mount -t tmpfs none /tmp && mount -t tmpfs none /var/tmp && \
         mount -t tmpfs none /dev/shm && mount -t tmpfs none /etc/cron.d && \
         cp $1/cron /etc/cron.d/job && cp $1/tmp /tmp/dropped && { $1/runs 60 & } && sleep 0.5; \
         $2 --site $1/agent scan --quick -o json; code=$?; kill $!; exit $code";
    let output = Command::new("unshare")
        .args([
            "--mount",
            "--pid",
            "--fork",
            "--mount-proc",
            "sh",
            "-c",
            script,
            "sh",
        ])
        .arg(folder.path())
        .arg(BINARY)
        .env_remove("PALISADE_SITE")
        .output()
        .unwrap();
    let report: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
    assert_eq!(output.status.code(), Some(1), "{report}");
    let found: BTreeSet<&str> = report["findings"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|finding| finding["verdict"] == "malware")
        .map(|finding| finding["path"].as_str().unwrap())
        .collect();
    let want = [program.to_str().unwrap(), "/etc/cron.d/job", "/tmp/dropped"];
    assert_eq!(found, BTreeSet::from(want));
}
