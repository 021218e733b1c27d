//! A guest that joins anew, on the machine that it was, reads its old quarantine; one of
//! another tenant that says it is the same machine does not.
//!
//! A machine's UUID is the kernel's to say: each agent runs in mounts of its own, where
//! it says what the test wants.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a panic fails the test"
)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use common::TestSite;
use palisade_tests::definitions::Marker;
use palisade_tests::{command, skip};
use serde_json::Value;

/// Becomes the agent on a machine with a UUID of its own.
const ON_MACHINE: &str = "mount -t tmpfs machine /sys/class
mkdir -p /sys/class/dmi/id
echo \"$0\" > /sys/class/dmi/id/product_uuid
exec \"$@\"";

struct Guest {
    folder: PathBuf,
    machine: String,
    daemon: Option<Child>,
}

impl Guest {
    /// A new agent of this tenant, with a state folder of its own.
    fn new(site: &TestSite, name: &str, tenant: &str, machine: &str) -> Self {
        let folder = site.folder().join(name);
        fs::create_dir(&folder).unwrap();
        let settings = format!(
            "state_dir = '{0}/var'\nrun_dir = '{0}/run'\n[on_access]\nenabled = false\n\
             [remediation]\nmalware = 'quarantine'\n",
            folder.display()
        );
        fs::write(folder.join("agent.toml"), settings).unwrap();
        let guest = Self {
            folder,
            machine: machine.to_owned(),
            daemon: None,
        };
        let token = [
            "token",
            "create",
            "--component",
            "agent",
            "--tenant",
            tenant,
        ];
        let token = site.site.run("palisade", &token, common::SCAN).unwrap();
        let token = String::from_utf8(token.expect(&[0]).unwrap().stdout).unwrap();
        let done = guest.run(site, &["enrol", token.trim()]);
        assert!(done.status.success(), "{done:?}");
        guest
    }

    fn command(&self, site: &TestSite, arguments: &[&str]) -> Command {
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "sh", "-ec", ON_MACHINE, &self.machine])
            .arg(command::program("palisade-agent").unwrap())
            .arg("--site")
            .arg(site.site.dir())
            .arg("--config")
            .arg(self.folder.join("agent.toml"))
            .args(arguments)
            .stdin(Stdio::null());
        command
    }

    fn run(&self, site: &TestSite, arguments: &[&str]) -> Output {
        self.command(site, arguments).output().unwrap()
    }

    fn list(&self, site: &TestSite) -> Value {
        let done = self.run(site, &["quarantine", "list", "-o", "json"]);
        assert!(done.status.success(), "{done:?}");
        serde_json::from_slice(&done.stdout).unwrap()
    }

    fn start(&mut self, site: &TestSite) {
        let log = fs::File::create(self.folder.join("log")).unwrap();
        let child = self.command(site, &["run"]).stderr(log).spawn().unwrap();
        self.daemon = Some(child);
    }

    fn stop(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }

    fn log(&self) -> String {
        fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    fn key(&self) -> PathBuf {
        self.folder.join("var/quarantine.key")
    }

    /// Takes over the files of another's quarantine, and not its key.
    fn take_files_of(&self, other: &Self) {
        let done = Command::new("cp")
            .arg("-a")
            .arg(other.folder.join("var/quarantine"))
            .arg(self.folder.join("var"))
            .status()
            .unwrap();
        assert!(done.success());
        assert!(!self.key().exists());
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.stop();
        if std::thread::panicking() {
            eprintln!("--- {} ---\n{}", self.folder.display(), self.log());
        }
    }
}

fn wait(what: &str, mut holds: impl FnMut() -> bool) {
    command::wait_for(what, Duration::from_secs(60), || {
        anyhow::ensure!(holds(), "not yet");
        Ok(())
    })
    .unwrap();
}

#[test]
fn a_guest_that_joins_anew_reads_its_quarantine_and_another_tenant_does_not() {
    if !skip::is_root("a_guest_that_joins_anew_reads_its_quarantine") {
        return;
    }
    let marker = Marker::random();
    let site = TestSite::start(&[("marker.ndb", marker.ndb())]);
    let machine = uuid::Uuid::new_v4().to_string();
    let mut first = Guest::new(&site, "first", "acme", &machine);
    let bytes = [b"x", &marker.bytes[..]].concat();
    let bad = site.file("files/bad", &bytes);
    let scan = first.run(&site, &["scan", bad.to_str().unwrap()]);
    assert_eq!(scan.status.code(), Some(1), "{scan:?}");
    assert!(!bad.exists());
    first.start(&site);
    wait("the key is kept", || {
        first
            .log()
            .contains("the Integration Server keeps the quarantine's key")
    });
    first.stop();

    let mut rival = Guest::new(&site, "rival", "rival", &machine);
    rival.take_files_of(&first);
    rival.start(&site);
    // What it finds is delivered in its session, after it asked for the key.
    wait("it runs", || {
        rival.run(&site, &["status"]).status.success()
            && rival.log().contains("connected to the Integration Server")
    });
    let other = site.file("files/other", &[&bytes[..], b"y"].concat());
    rival.run(&site, &["scan", other.to_str().unwrap()]);
    let listed = |path: &Path| {
        let list = site.site.console(&["detection", "list"]).unwrap();
        list.to_string().contains(path.to_str().unwrap())
    };
    wait("its finding is delivered", || listed(&other));
    assert!(!rival.key().exists(), "another tenant's key was given away");
    let list = rival.list(&site);
    assert_eq!(list["items"].as_array().unwrap().len(), 0, "{list}");
    assert!(other.exists(), "and without a key nothing is moved");

    // The control: the same tenant.
    let mut again = Guest::new(&site, "again", "acme", &machine);
    again.take_files_of(&first);
    again.start(&site);
    wait("the key is back", || again.key().exists());
    assert_eq!(
        fs::read(again.key()).unwrap(),
        fs::read(first.key()).unwrap()
    );
    let list = again.list(&site);
    let id = list["items"][0]["id"].as_str().unwrap();
    let done = again.run(&site, &["quarantine", "restore", id]);
    assert!(done.status.success(), "{done:?}");
    assert_eq!(fs::read(&bad).unwrap(), bytes);
}
