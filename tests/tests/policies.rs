//! Policies with real processes: a roll-out from monitoring to blocking, a change of
//! settings under opens that never stop, and a guest whose server is gone, or whose kept
//! policy is damaged.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a panic fails the test"
)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use common::TestSite;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use palisade_tests::command::wait_for;
use palisade_tests::definitions::{Marker, eicar};
use palisade_tests::skip;
use serde_json::Value;

/// A wait that only a defect exhausts.
const PATIENCE: Duration = Duration::from_secs(60);
/// Within what a connected agent has what was set: promised.
const WITHIN: Duration = Duration::from_secs(10);

/// Between two opens of one opener: less than a gap would last.
const BETWEEN: Duration = Duration::from_millis(1);

struct Guest {
    test: TestSite,
    agent: String,
    bad: PathBuf,
    clean: PathBuf,
}

impl Guest {
    fn start() -> Self {
        let marker = Marker::random();
        // EICAR is what an agent tries itself with.
        let eicar = format!("Eicar-Test-Signature:0:0:{}\n", hex::encode(eicar()));
        let test = TestSite::start(&[("m.ndb", marker.ndb()), ("eicar.ndb", eicar)]);
        let agents = test.site.console(&["agent", "list"]).unwrap();
        let agent = agents[0]["name"].as_str().unwrap().to_owned();
        let (bad, clean) = (test.protected.join("bad"), test.protected.join("clean"));
        fs::write(&bad, &marker.bytes).unwrap();
        fs::write(&clean, b"nothing to see here").unwrap();
        let guest = Self {
            test,
            agent,
            bad,
            clean,
        };
        guest.protection_is("blocking");
        guest
    }

    fn status(&self) -> Value {
        let said = self
            .test
            .site
            .run("palisade-agent", &["status", "-o", "json"], PATIENCE);
        said.unwrap().json().unwrap_or_default()
    }

    fn protection_is(&self, state: &str) -> Value {
        wait_for(state, PATIENCE, || {
            let status = self.status();
            anyhow::ensure!(
                status["protection"]["state"] == state,
                "{:#}",
                status["protection"]
            );
            Ok(status)
        })
        .unwrap()
    }

    fn pid(&self) -> i32 {
        self.status()["agent"]["pid"]
            .as_i64()
            .unwrap()
            .try_into()
            .unwrap()
    }

    /// Has the agent end, as its supervisor is told; it is started at once.
    fn restart(&self) {
        let pid = self.pid();
        kill(Pid::from_raw(pid), Signal::SIGTERM).unwrap();
        wait_for("another agent", PATIENCE, || {
            let now = self.status()["agent"]["pid"].as_i64();
            anyhow::ensure!(now.is_some_and(|now| now != i64::from(pid)), "{now:?}");
            Ok(())
        })
        .unwrap();
    }

    fn policy(&self, arguments: &[&str]) -> Value {
        self.test
            .site
            .console(&[&["policy"], arguments].concat())
            .unwrap()
    }

    /// Waits until the agent has confirmed what is set; gives it.
    fn applied(&self, since: Instant) -> Value {
        let applied = wait_for("the policy is confirmed", PATIENCE, || {
            // Until it is so, the command ends with 1.
            self.test
                .site
                .console(&["policy", "effective", &self.agent])
        });
        let took = since.elapsed();
        let applied = applied.unwrap();
        assert!(took < WITHIN, "it took {took:?}");
        assert_eq!(applied["confirmed"], applied["desired"]);
        applied
    }

    fn set(&self, arguments: &[&str]) -> Value {
        let since = Instant::now();
        self.policy(&[&["set"], arguments].concat());
        self.applied(since)
    }
}

fn is_denied(path: &Path) -> bool {
    match fs::read(path) {
        Ok(_) => false,
        Err(error) => {
            assert_eq!(error.raw_os_error(), Some(nix::libc::EPERM), "{error}");
            true
        }
    }
}

#[test]
fn a_roll_out_is_confirmed_and_holds_without_a_server() {
    const NAME: &str = "a_roll_out_is_confirmed_and_holds_without_a_server";
    if !skip::is_root(NAME) {
        return;
    }
    let guest = Guest::start();
    assert!(
        is_denied(&guest.bad),
        "the control: by its own settings it blocks"
    );
    let pid = guest.pid();

    // All guests only watch; what is opened is found, and not denied.
    let applied = guest.set(&["on_access.mode=monitor", "--note", "look first"]);
    assert_eq!(applied["settings"][0]["origin"], "site");
    guest.protection_is("monitoring");
    assert!(!is_denied(&guest.bad));
    let found = wait_for("a detection of what was opened", PATIENCE, || {
        let all = guest.test.site.console(&["detection", "list"])?;
        let all = all.as_array().unwrap().clone();
        let reported = all.into_iter().find(|found| found["action"] == "reported");
        reported.ok_or_else(|| anyhow::anyhow!("none is reported only"))
    });
    assert_eq!(
        found.unwrap()["path"],
        guest.bad.display().to_string().as_str()
    );

    // A group of them blocks.
    let query = format!("name:{}", guest.agent);
    let group = [
        "group",
        "create",
        "first",
        "--priority",
        "10",
        "--query",
        &query,
    ];
    let made = guest.test.site.console(&group).unwrap();
    assert_eq!(made["members"], 1);
    let applied = guest.set(&["--group", "first", "on_access.mode=block"]);
    assert_eq!(
        applied["settings"][0]["origin"],
        "group first (priority 10)"
    );
    assert!(is_denied(&guest.bad), "confirmed is in force");
    let status = guest.protection_is("blocking");
    assert_eq!(guest.pid(), pid, "in place");
    let print = status["policy"]["fingerprint"].clone();
    assert_eq!(print, applied["confirmed"]);
    assert_eq!(status["policy"]["layers"][0]["origin"], "site");

    // No server, and an agent that starts: the policy holds. Its own settings would block,
    // so it is the other setting that shows it.
    guest.set(&["--group", "first", "on_access.deadline_ms=4321"]);
    guest
        .test
        .site
        .process("server")
        .unwrap()
        .unwrap()
        .stop()
        .unwrap();
    guest.restart();
    let status = guest.protection_is("blocking");
    assert_eq!(
        status["policy"]["settings"]["on_access.deadline_ms"]["value"],
        4321
    );
    assert!(is_denied(&guest.bad));

    // What is kept is damaged, again and again: the guest is protected by its own
    // settings, and says so.
    let kept = guest.test.site.dir().join("var/agent/policy.json");
    for damage in [&b"{"[..], b"", &[0xff; 64]] {
        fs::write(&kept, damage).unwrap();
        guest.restart();
        let status = guest.protection_is("blocking");
        let note = status["policy"]["note"].as_str().unwrap();
        assert!(note.contains("damaged"), "{note}");
        assert!(is_denied(&guest.bad));
        assert!(!is_denied(&guest.clean));
    }
    let since = Instant::now();
    guest.test.site.start_part("server").unwrap();
    let applied = wait_for("the policy is sent again", PATIENCE, || {
        guest
            .test
            .site
            .console(&["policy", "effective", &guest.agent])
    });
    assert_eq!(
        applied.unwrap()["problem"],
        Value::Null,
        "after {:?}",
        since.elapsed()
    );

    // Back to what all have.
    let since = Instant::now();
    guest.policy(&["revert", "--group", "first", "0"]);
    guest.applied(since);
    guest.protection_is("monitoring");
    assert!(!is_denied(&guest.bad));
    let history = guest.policy(&["history", "--group", "first"]);
    assert_eq!(history.as_array().unwrap().len(), 3, "none is lost");
}

#[test]
fn settings_change_under_opens_and_none_slips_through() {
    const NAME: &str = "settings_change_under_opens_and_none_slips_through";
    if !skip::is_root(NAME) {
        return;
    }
    let guest = Guest::start();
    guest.set(&["on_access.deadline_ms=20000"]);
    let pid = guest.pid();
    let (over, opened, passed) = (
        Arc::new(AtomicBool::new(false)),
        Arc::new(AtomicU64::new(0)),
        Arc::new(AtomicU64::new(0)),
    );
    let openers: Vec<_> = (0..2)
        .map(|_| {
            let (over, opened, passed) = (over.clone(), opened.clone(), passed.clone());
            let (bad, clean) = (guest.bad.clone(), guest.clean.clone());
            std::thread::spawn(move || {
                while !over.load(Relaxed) {
                    fs::read(&clean).unwrap();
                    passed.fetch_add(u64::from(!is_denied(&bad)), Relaxed);
                    opened.fetch_add(1, Relaxed);
                    // Each denied open is a detection that is kept.
                    std::thread::sleep(BETWEEN);
                }
            })
        })
        .collect();
    for n in 0..4 {
        let before = opened.load(Relaxed);
        let deadline = format!("on_access.deadline_ms={}", 20_001 + n);
        let marks = [
            "on_access.ignore_marks=off",
            "on_access.ignore_marks=balanced",
        ][n % 2];
        guest.set(&[&deadline, marks]);
        wait_for("opens go on", PATIENCE, || {
            anyhow::ensure!(opened.load(Relaxed) > before + 10);
            Ok(())
        })
        .unwrap();
    }
    assert_eq!(passed.load(Relaxed), 0, "of {} opens", opened.load(Relaxed));
    // The control: what a policy lets through is seen to pass.
    guest.set(&["on_access.mode=monitor"]);
    wait_for("an open passes", PATIENCE, || {
        anyhow::ensure!(passed.load(Relaxed) > 0);
        Ok(())
    })
    .unwrap();
    over.store(true, Relaxed);
    openers
        .into_iter()
        .for_each(|opener| opener.join().unwrap());
    let status = guest.status();
    assert_eq!(guest.pid(), pid, "in place");
    let count = |key: &str| status["events"][key].as_u64().unwrap();
    let booked = [
        "scanned",
        "cached",
        "allowed_by_policy",
        "failed_open",
        "failed_closed",
        "pending",
    ];
    let booked: u64 = booked.iter().map(|key| count(key)).sum();
    assert_eq!(count("seen"), booked, "{}", status["events"]);
    assert_eq!(count("failed_open"), 0, "{}", status["events"]);
    assert_eq!(count("kernel_refused"), 0);
}
