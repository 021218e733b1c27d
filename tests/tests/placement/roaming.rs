//! A guest whose address changes keeps its session, and what it has asked is answered.

use std::fs;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use palisade_tests::command::{self, wait_for};
use palisade_tests::definitions::Marker;
use palisade_tests::process::Process;
use palisade_tests::skip;
use serde_json::Value;

use super::common::machine::{ip, run, with_own_network};
use super::common::servers::explain;
use super::common::{TestSite, machine};
use super::openers::{ANSWERED, all_had_verdicts, open_while};

/// The site's side of the cable, and what the guest is called on it, one after the other.
const SITE: &str = "10.77.0.1";
const GUESTS: [&str; 3] = ["10.77.0.2", "10.77.0.3", "10.77.0.4"];
/// A Protection Server that stands still for this long keeps its session: shorter than the
/// silence after which an agent gives it up.
const PAUSE: Duration = Duration::from_millis(700);

/// A network with a cable into this thread's.
struct Guest(Child);

impl Guest {
    fn start() -> Self {
        let sleep = ["--net", "--", "sleep", "600"];
        let child = Command::new("unshare")
            .args(sleep)
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let guest = Self(child);
        let own = fs::read_link("/proc/thread-self/ns/net").unwrap();
        wait_for("a network of the guest's", Duration::from_secs(10), || {
            let its = fs::read_link(guest.network())?;
            anyhow::ensure!(its != own);
            Ok(())
        })
        .unwrap();
        let pid = guest.0.id().to_string();
        let peer = ["peer", "name", "guest", "netns", &pid];
        ip(&[&["link", "add", "site", "type", "veth"][..], &peer].concat());
        ip(&["address", "add", &format!("{SITE}/24"), "dev", "site"]);
        ip(&["link", "set", "site", "up"]);
        guest.ip(&["link", "set", "lo", "up"]);
        guest.ip(&["link", "set", "guest", "up"]);
        guest.ip(&[
            "address",
            "add",
            &format!("{}/24", GUESTS[0]),
            "dev",
            "guest",
        ]);
        guest
    }

    fn network(&self) -> String {
        format!("/proc/{}/ns/net", self.0.id())
    }

    fn ip(&self, arguments: &[&str]) {
        let within = format!("--net={}", self.network());
        run(
            "nsenter",
            &[&[within.as_str(), "ip"][..], arguments].concat(),
        );
    }

    /// Its old address is gone before it has the new one.
    fn moves(&self, from: &str, to: &str) {
        self.ip(&["address", "del", &format!("{from}/24"), "dev", "guest"]);
        self.ip(&["address", "add", &format!("{to}/24"), "dev", "guest"]);
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn in_use(test: &TestSite) -> anyhow::Result<Value> {
    let explained = explain(test);
    let svms = explained["svms"].as_array().cloned().unwrap_or_default();
    let used = svms.into_iter().find(|svm| svm["role"] == "in-use");
    used.ok_or_else(|| anyhow::anyhow!("{explained:#}"))
}

#[test]
fn a_change_of_the_guests_address_keeps_its_session_and_what_it_asked() {
    const NAME: &str = "a_change_of_the_guests_address_keeps_its_session_and_what_it_asked";
    if !skip::is_root(NAME) {
        return;
    }
    with_own_network();
    machine::with_smbios_uuid(&uuid::Uuid::new_v4().to_string());
    let guest = Guest::start();
    let marker = Marker::random();
    let test = TestSite::prepare(&[("m.ndb", marker.ndb())]);
    for part in ["server", "scanserver"] {
        let file = test
            .site
            .dir()
            .join("etc")
            .join(part)
            .with_extension("toml");
        let text = fs::read_to_string(&file).unwrap();
        fs::write(file, text.replace("127.0.0.1", SITE)).unwrap();
    }
    for part in ["server", "scanserver"] {
        test.site.start_part(part).unwrap();
    }
    let token = test.site.dir().join("etc/agent.token");
    fs::write(token, test.site.join_token("agent").unwrap()).unwrap();
    let within = format!("--net={}", guest.network());
    let mut agent = Command::new("nsenter");
    agent
        .arg(within)
        .arg(command::program("palisade-agent").unwrap());
    agent.arg("--site").arg(test.site.dir()).arg("supervise");
    let run = test.site.dir().join("run");
    Process::start("agent", &agent, &run, &test.site.log("agent")).unwrap();
    test.site.start_part("agent").unwrap();
    let before = wait_for("a session", Duration::from_secs(60), || in_use(&test)).unwrap();
    let svm = test.site.process("scanserver").unwrap().unwrap();

    let opened = open_while(&test.protected.join("files"), &marker, || {
        std::thread::sleep(Duration::from_secs(2));
        for pair in GUESTS.windows(2) {
            // What is asked now is not answered before the address is another.
            svm.signal(Signal::SIGSTOP).unwrap();
            std::thread::sleep(PAUSE / 2);
            guest.moves(pair[0], pair[1]);
            std::thread::sleep(PAUSE / 2);
            svm.signal(Signal::SIGCONT).unwrap();
            std::thread::sleep(Duration::from_secs(3));
        }
    });
    println!("{opened:?}");
    assert!(opened.all > 50, "{opened:?}");
    assert_eq!(opened.wrong, 0);
    // One was under way while the Protection Server stood still.
    assert!(opened.longest >= PAUSE / 2, "{opened:?}");
    assert!(opened.longest <= ANSWERED, "{opened:?}");
    all_had_verdicts(&test);
    // The same session as before, which is older now.
    let after = in_use(&test).unwrap();
    let age = |svm: &Value| svm["connected_s"].as_u64().unwrap();
    assert!(age(&after) >= age(&before) + 8, "{before} {after}");
    assert!(after["failure"].is_null(), "{after}");
    let log = fs::read_to_string(test.site.log("agent")).unwrap();
    assert!(!log.contains("lost the Protection Server"), "{log}");
}
