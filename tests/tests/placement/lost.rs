//! An agent that is stopped or killed while its domain runs is an alert within what is
//! promised, and no sooner is it back than there is none.

use std::fs;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use palisade_tests::command::wait_for;
use palisade_tests::definitions::Marker;
use palisade_tests::skip;
use serde_json::Value;

use super::common::{TestSite, machine};
use super::openers::status;

/// From the loss of an agent to its alert.
const PROMISE: Duration = Duration::from_secs(30);
/// A wait that only a defect exhausts.
const PATIENCE: Duration = Duration::from_secs(90);

/// Processes that stand still until this is dropped, however the test ends.
struct Stopped([i32; 2]);

impl Stopped {
    fn new(pids: [i32; 2]) -> Self {
        let stopped = Self(pids);
        stopped.signal(Signal::SIGSTOP);
        stopped
    }

    fn signal(&self, signal: Signal) {
        for pid in self.0 {
            let _ = nix::sys::signal::kill(Pid::from_raw(pid), signal);
        }
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        self.signal(Signal::SIGCONT);
    }
}

fn alerts(test: &TestSite) -> Vec<Value> {
    let said = test
        .site
        .run("palisade", &["alert", "list", "-o", "json"], PATIENCE);
    // The exit code says whether there is one.
    let said = said.unwrap().expect(&[0, 1]).unwrap().json().unwrap();
    said.as_array().unwrap().clone()
}

fn is_alert_within_the_promise(test: &TestSite, lost: Instant, domain: &str) {
    let alert = loop {
        match alerts(test).pop() {
            Some(alert) => break alert,
            None => assert!(lost.elapsed() < PROMISE, "no alert after {PROMISE:?}"),
        }
        std::thread::sleep(Duration::from_millis(100));
    };
    println!("an alert {:?} after the loss", lost.elapsed());
    assert_eq!(
        (&alert["kind"], &alert["severity"], &alert["domain"]),
        (&"agent_lost".into(), &"critical".into(), &domain.into())
    );
}

fn ends(test: &TestSite) {
    wait_for("the end of the alert", PATIENCE, || {
        let alerts = alerts(test);
        anyhow::ensure!(alerts.is_empty(), "{alerts:?}");
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_real_agent_that_is_stopped_or_killed_is_an_alert_in_time() {
    const NAME: &str = "a_real_agent_that_is_stopped_or_killed_is_an_alert_in_time";
    if !skip::is_root(NAME) {
        return;
    }
    let domain = uuid::Uuid::new_v4().to_string();
    machine::with_smbios_uuid(&domain);
    let test = TestSite::prepare(&[("m.ndb", Marker::random().ndb())]);
    let node = test.file(
        "node.xml",
        format!(
            "<node><domain type='test'><name>guest</name><uuid>{domain}</uuid>\
             <memory>65536</memory><os><type>hvm</type></os></domain></node>"
        )
        .as_bytes(),
    );
    // Another agent's, which is told from this one.
    test.set(
        "server",
        &format!("libvirt = [{{ uri = 'test://{}' }}]", node.display()),
    );
    test.site.start().unwrap();
    let listed = test.site.console(&["agent", "list"]).unwrap();
    assert_eq!(listed[0]["domain"], domain.as_str(), "{listed}");
    assert!(alerts(&test).is_empty());

    let supervisor = test.site.process("agent").unwrap().unwrap();
    let agent = i32::try_from(status(&test)["agent"]["pid"].as_i64().unwrap()).unwrap();
    // Both: a supervisor that lives would start another agent. As a guest's root may do.
    let stopped = Stopped::new([supervisor.pid, agent]);
    is_alert_within_the_promise(&test, Instant::now(), &domain);
    drop(stopped);
    ends(&test);

    let agent = status(&test)["agent"]["pid"].as_i64().unwrap();
    supervisor.signal(Signal::SIGKILL).unwrap();
    let lost = Instant::now();
    wait_for("the end of the agent", PATIENCE, || {
        anyhow::ensure!(fs::exists(format!("/proc/{agent}/exe")).is_ok_and(|there| !there));
        Ok(())
    })
    .unwrap();
    is_alert_within_the_promise(&test, lost, &domain);
    test.site.start_part("agent").unwrap();
    ends(&test);
}
