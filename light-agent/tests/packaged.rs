//! Scans that leave out what is as its package has it, or take it last: as processes
//! whose `/var/lib/dpkg/info` is the test's, in mounts of their own. What was scanned
//! is counted by the Protection Server.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a panic in a test is a failed test with a place in it"
)]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use md5::{Digest as _, Md5};
use serde_json::Value;
use support::agent::{Agent, BINARY};
use support::site::Site;
use support::svm::{Mode, Svm};
use support::{MARKER, is_root, wait_until};

/// Files of each kind where their order counts: many more than are in flight.
const MANY: usize = 300;
/// In flight at the most, with requests for four.
const IN_FLIGHT: usize = 32;

struct World {
    _site: Site,
    svm: Svm,
    agent: Agent,
    files: tempfile::TempDir,
    dpkg: tempfile::TempDir,
    salt: u64,
}

impl World {
    fn new(scan: &str) -> Self {
        let site = Site::new();
        let svm = Svm::start(&site);
        let settings = format!(
            "[scan]\nconcurrency = {}\n{scan}\n[[svm]]\naddress = '{}'\n",
            IN_FLIGHT / 4,
            svm.address
        );
        let agent = Agent::new(&site, &settings);
        Self {
            _site: site,
            svm,
            agent,
            files: tempfile::tempdir().unwrap(),
            dpkg: tempfile::tempdir().unwrap(),
            salt: rand::random(),
        }
    }

    fn content(&self, name: &str) -> String {
        format!("{name} {}", self.salt)
    }

    fn file(&self, name: &str) -> PathBuf {
        let path = self.files.path().join(name);
        fs::write(&path, self.content(name)).unwrap();
        path
    }

    /// dpkg lists these, with the contents that they have now.
    fn list(&self, paths: &[PathBuf]) {
        let lines: String = paths
            .iter()
            .map(|path| {
                let sum = hex::encode(Md5::digest(fs::read(path).unwrap()));
                format!("{sum}  {}\n", path.strip_prefix("/").unwrap().display())
            })
            .collect();
        fs::write(self.dpkg.path().join("palisade-test.md5sums"), lines).unwrap();
    }

    /// In mounts where dpkg's lists are the test's.
    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "sh", "-ec"])
            .arg("mount --bind \"$0\" /var/lib/dpkg/info; exec \"$@\"")
            .arg(self.dpkg.path())
            .arg(BINARY)
            .arg("--site")
            .arg(self.agent.dir.path())
            .args(args)
            .env_remove("PALISADE_SITE");
        command
    }

    fn scan(&self) -> (i32, Value) {
        let folder = self.files.path().to_str().unwrap();
        let output = self
            .command(&["scan", "-o", "json", folder])
            .output()
            .unwrap();
        let code = output.status.code().unwrap();
        let json = serde_json::from_slice(&output.stdout);
        let json = json
            .unwrap_or_else(|error| panic!("{error}: {}", String::from_utf8_lossy(&output.stderr)));
        (code, json)
    }

    fn asked(&self, name: &str) -> u32 {
        self.svm.asked(self.content(name).as_bytes())
    }
}

#[test]
fn what_is_as_its_package_has_it_is_left_out_and_counted_apart() {
    if !is_root("packages' lists are replaced in mounts of their own") {
        return;
    }
    for (policy, scanned, packaged) in [("scan", 4, 0), ("skip", 3, 1)] {
        let world = World::new(&format!("packaged = '{policy}'"));
        let same = world.file("same");
        let changed = world.file("changed");
        world.file("free");
        world.list(&[same, changed.clone()]);
        // As somebody does who replaces a tool.
        fs::write(&changed, [b"x", MARKER].concat()).unwrap();
        let as_listed = world.files.path().join("elsewhere");
        fs::write(&as_listed, world.content("same") + " but").unwrap();
        let (code, report) = world.scan();
        assert_eq!(code, 1, "{policy}: {report:#}");
        assert_eq!(report["malware"], 1, "{policy}: {report:#}");
        assert_eq!(
            (&report["scanned"], &report["packaged"]),
            (&scanned.into(), &packaged.into()),
            "{policy}: {report:#}"
        );
        let finding = report["findings"][0]["path"].as_str().unwrap();
        assert_eq!(Path::new(finding), changed);
        assert_eq!(world.asked("same") == 0, policy == "skip", "{policy}");
        assert!(world.asked("free") > 0, "{policy}");
        let folder = world.files.path().to_str().unwrap();
        let text = world.command(&["scan", folder]).output().unwrap().stdout;
        let text = String::from_utf8(text).unwrap();
        let says = "1 files are as their packages have them and were not scanned";
        assert_eq!(text.contains(says), policy == "skip", "{text}");
    }
}

/// Lists that others may write say nothing.
#[test]
fn a_list_that_others_may_write_is_not_believed() {
    if !is_root("packages' lists are replaced in mounts of their own") {
        return;
    }
    use std::os::unix::fs::PermissionsExt as _;
    let world = World::new("packaged = 'skip'");
    let same = world.file("same");
    world.list(&[same]);
    let list = world.dpkg.path().join("palisade-test.md5sums");
    fs::set_permissions(&list, fs::Permissions::from_mode(0o666)).unwrap();
    let (code, report) = world.scan();
    assert_eq!((code, &report["scanned"]), (0, &1.into()), "{report:#}");
    assert!(world.asked("same") > 0);
}

#[test]
fn what_packages_have_is_scanned_after_all_else() {
    if !is_root("packages' lists are replaced in mounts of their own") {
        return;
    }
    for policy in ["scan", "last"] {
        let world = World::new(&format!("packaged = '{policy}'"));
        let packaged: Vec<String> = (0..MANY).map(|n| format!("a {n}")).collect();
        let others: Vec<String> = (0..MANY).map(|n| format!("b {n}")).collect();
        let listed: Vec<PathBuf> = packaged.iter().map(|name| world.file(name)).collect();
        others.iter().for_each(|name| drop(world.file(name)));
        world.list(&listed);
        world.svm.set(Mode::Slow(Duration::from_millis(30)));
        let folder = world.files.path().to_str().unwrap();
        let mut scan = world
            .command(&["scan", "-o", "json", folder])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let scanned = |names: &[String]| names.iter().filter(|name| world.asked(name) > 0).count();
        wait_until("a package's file is asked for", || scanned(&packaged) > 0);
        let before = scanned(&others);
        assert_eq!(
            before + 2 * IN_FLIGHT >= MANY,
            policy == "last",
            "{policy}: {before} of {MANY} others came before"
        );
        world.svm.set(Mode::Serve);
        let report = ended(&mut scan);
        assert_eq!(
            (&report["scanned"], &report["packaged"]),
            (&(2 * MANY).into(), &0.into()),
            "{policy}: {report:#}"
        );
        assert_eq!(scanned(&packaged) + scanned(&others), 2 * MANY);
    }
}

fn ended(scan: &mut Child) -> Value {
    let report: Value = serde_json::from_reader(scan.stdout.take().unwrap()).unwrap();
    assert!(scan.wait().unwrap().success());
    report
}

/// A task takes packages' files last, too, and leaves none out though it is killed in
/// between and the lists change meanwhile.
#[test]
fn a_killed_task_leaves_out_nothing_that_it_set_aside() {
    if !is_root("packages' lists are replaced in mounts of their own") {
        return;
    }
    let mut world = World::new("packaged = 'last'");
    let packaged: Vec<String> = (0..MANY).map(|n| format!("a {n}")).collect();
    let others: Vec<String> = (0..MANY).map(|n| format!("b {n}")).collect();
    let listed: Vec<PathBuf> = packaged.iter().map(|name| world.file(name)).collect();
    others.iter().for_each(|name| drop(world.file(name)));
    world.list(&listed);
    world.svm.set(Mode::Slow(Duration::from_millis(100)));
    let run = world.command(&["run"]);
    world.agent.run_by(run);
    let folder = world.files.path().to_str().unwrap();
    assert!(
        world
            .agent
            .output(&["task", "start", folder])
            .status
            .success()
    );
    let kept = world.agent.state().join("tasks/1.json");
    wait_until("a place is on disk", || {
        let text = fs::read(&kept).unwrap_or_default();
        let saved: Value = serde_json::from_slice(&text).unwrap_or_default();
        saved["content"]["counters"]["scanned"].as_u64() > Some(20)
    });
    world.agent.kill();
    // The package is gone, its files are not.
    fs::remove_file(world.dpkg.path().join("palisade-test.md5sums")).unwrap();
    world.svm.set(Mode::Serve);
    let run = world.command(&["run"]);
    world.agent.run_by(run);
    wait_until("the task is done", || {
        let shown = world.agent.output(&["task", "-o", "json", "show", "1"]);
        let shown: Value = serde_json::from_slice(&shown.stdout).unwrap();
        shown["state"] == "done"
    });
    let missed = |names: &[String]| names.iter().filter(|name| world.asked(name) == 0).count();
    assert_eq!((missed(&packaged), missed(&others)), (0, 0));
}
