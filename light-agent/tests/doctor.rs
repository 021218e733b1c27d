//! `palisade-agent doctor` as a process: each fault is made, and found.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a panic in a test is a failed test with a place in it"
)]

mod support;

use std::fs;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use serde_json::Value;
use support::agent::{Agent, BINARY};
use support::is_root;
use support::mount::Tmpfs;
use support::site::Site;
use support::svm::{Mode, Svm};
use support::world::World;

/// What was found: fault and weight of each, and what is said.
struct Found {
    code: i32,
    findings: Vec<Value>,
}

impl Found {
    fn of(output: &Output) -> Self {
        let json: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
            panic!("{error}: {output:?}");
        });
        Self {
            code: output.status.code().unwrap(),
            findings: json["findings"].as_array().unwrap().clone(),
        }
    }

    /// What is said of a fault.
    fn says(&self, fault: &str) -> String {
        let all: Vec<&str> = self
            .findings
            .iter()
            .filter(|finding| finding["fault"] == fault)
            .map(|finding| {
                assert!(!finding["remedy"].as_str().unwrap().is_empty());
                finding["what"].as_str().unwrap()
            })
            .collect();
        assert!(!all.is_empty(), "no {fault}: {:?}", self.findings);
        all.join("\n")
    }

    fn lacks(&self, fault: &str) {
        let found = self
            .findings
            .iter()
            .any(|finding| finding["fault"] == fault);
        assert!(!found, "{fault}: {:?}", self.findings);
    }
}

fn doctor(agent: &Agent) -> Found {
    Found::of(&agent.output(&["doctor", "-o", "json"]))
}

#[test]
fn a_dead_agent_is_no_obstacle_and_servers_are_tried() {
    let site = Site::new();
    let mut svm = Svm::start(&site);
    let settings = format!("[[svm]]\naddress = '{}'", svm.address);
    let mut agent = Agent::new(&site, &settings);
    let found = doctor(&agent);
    assert_eq!(found.code, 1);
    assert!(found.says("not_running").contains("agent.sock"));
    // The control: it is there, and was reached.
    found.lacks("no_svm");
    svm.kill();
    let began = Instant::now();
    let found = doctor(&agent);
    assert!(began.elapsed() < Duration::from_secs(25));
    assert!(found.says("no_svm").contains(&svm.address.to_string()));

    // The same of an agent that runs.
    agent.run();
    support::wait_until("it has tried", || {
        agent.status()["svm"]["reason"] != "not connected yet"
    });
    let found = doctor(&agent);
    found.lacks("not_running");
    assert!(found.says("no_svm").contains(&svm.address.to_string()));
    let text = agent.output(&["doctor"]);
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(
        text.contains("FAULT   no Protection Server can be reached"),
        "{text}"
    );
}

#[test]
fn settings_and_identity_are_looked_at() {
    let site = Site::new();
    let agent = Agent::new(&site, "[on_access]\npahts = ['/srv']");
    assert!(doctor(&agent).says("settings").contains("pahts"));

    for (from, until, fault, weight) in [
        (-9, -2, "certificate", "fault"),
        (-9, 1, "certificate", "notice"),
        (2, 9, "clock", "fault"),
    ] {
        let agent = Agent::of(&site.agent_valid(from, until), "");
        let found = doctor(&agent);
        assert!(found.says(fault).contains("certificate"));
        let finding = found.findings.iter().find(|found| found["fault"] == fault);
        assert_eq!(finding.unwrap()["weight"], weight);
    }
    let agent = Agent::new(&site, "");
    let found = doctor(&agent);
    found.lacks("certificate");
    found.lacks("clock");
    fs::write(agent.state().join("identity/key.pem"), "no key").unwrap();
    if support::is_root("a damaged identity") {
        assert!(doctor(&agent).says("identity").contains("key.pem"));
    }
    fs::remove_dir_all(agent.state().join("identity")).unwrap();
    assert!(doctor(&agent).says("not_enrolled").contains("no site"));
}

#[test]
fn a_healthy_guest_has_no_fault_and_each_of_these_is_one() {
    if !is_root("a_healthy_guest_has_no_fault_and_each_of_these_is_one") {
        return;
    }
    let mut world = World::started("");
    let found = doctor(&world.agent);
    assert_eq!(found.code, 0, "{:?}", found.findings);
    found.says("not_supervised");

    // Another agent beside it sees that one holds opens, and names it.
    let other = Agent::new(&Site::new(), "[on_access]\npaths = ['/proc']");
    let found = doctor(&other);
    let holder = format!("palisade-agent (pid {})", world.agent.pid());
    assert!(found.says("other_holder").contains(&holder));
    assert!(found.says("gaps").contains("/proc"));

    // The self-test gets no verdict of malware.
    world.agent.kill();
    world.svm.set(Mode::Encrypted);
    world.agent.run();
    support::wait_until("the self-test has failed", || {
        let reason = world.agent.status()["protection"]["reason"].clone();
        reason
            .as_str()
            .is_some_and(|reason| reason.contains("EICAR") || reason.contains("self-test"))
    });
    doctor(&world.agent).says("self_test");
    world.agent.kill();
    // The control: not any more. Other tests' agents may be there.
    let found = serde_json::to_string(&doctor(&other).findings).unwrap();
    assert!(!found.contains(&holder), "{found}");

    // It holds no opens.
    world.svm.set(Mode::Serve);
    let mut fallback = world.agent.command(&["run"]);
    fallback.args(["--fallback", "it failed again and again"]);
    world.agent.run_by(fallback);
    world.agent.wait_protection("monitoring");
    assert!(
        doctor(&world.agent)
            .says("fallback")
            .contains("again and again")
    );
}

#[test]
fn disk_descriptors_and_rights_are_looked_at() {
    use std::os::unix::process::CommandExt as _;
    if !is_root("disk_descriptors_and_rights_are_looked_at") {
        return;
    }
    let (site, small) = (Site::new(), Tmpfs::sized("20m"));
    let state = small.path().join("state");
    fs::create_dir(&state).unwrap();
    let agent = Agent::new(&site, &format!("state_dir = '{}'", state.display()));
    doctor(&agent).lacks("disk");
    fs::write(small.path().join("fill"), vec![0; 8 << 20]).unwrap();
    assert!(doctor(&agent).says("disk").contains("KiB left"));
    small.make_read_only();
    assert!(doctor(&agent).says("disk").contains("read-only"));

    let agent = Agent::new(&site, "");
    doctor(&agent).lacks("descriptors");
    let limited = Command::new("sh")
        .args(["-c", "ulimit -n 200; exec \"$@\"", "sh", BINARY, "--site"])
        .arg(agent.dir.path())
        .args(["doctor", "-o", "json"])
        .output()
        .unwrap();
    assert!(Found::of(&limited).says("descriptors").contains("200"));

    doctor(&agent).lacks("capability");
    let program = agent.dir.path().join("palisade-agent");
    fs::copy(BINARY, &program).unwrap();
    nix::unistd::chown(agent.dir.path(), Some(65534.into()), None).unwrap();
    let mut nobody = Command::new(&program);
    nobody.arg("--site").arg(agent.dir.path());
    let nobody = nobody
        .args(["doctor", "-o", "json"])
        .uid(65534)
        .gid(65534)
        .output()
        .unwrap();
    assert!(Found::of(&nobody).says("capability").contains("root"));
}
