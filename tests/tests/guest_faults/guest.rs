//! A guest under test: a site whose agent protects a tmpfs, with settings of the test.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{self, Receiver};
use std::time::{Duration, Instant};

use nix::libc;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use palisade_tests::command;
use palisade_tests::definitions::{self, Marker};
use palisade_tests::process::Process;
use serde_json::Value;

use super::common::TestSite;

/// A wait that only a defect exhausts.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// An answer that nothing delays, on a machine that does other things, too.
pub const SOON: Duration = Duration::from_secs(5);

pub struct Guest {
    pub test: TestSite,
    pub marker: Marker,
}

impl Guest {
    /// Running and blocking, with these settings of its agent besides the site's.
    pub fn start(settings: &str) -> Self {
        let guest = Self::prepare(settings);
        guest.test.site.start().unwrap();
        guest.wait_state("blocking");
        guest
    }

    /// The same, not started yet.
    pub fn prepare(settings: &str) -> Self {
        let marker = Marker::random();
        let test = TestSite::prepare(&[("m.ndb", marker.ndb())]);
        // The self-test wants to find EICAR.
        definitions::write_builtin(&test.definitions()).unwrap();
        let guest = Self { test, marker };
        guest.set(settings);
        guest
    }

    /// Adds to the agent's settings; `{protected}` is the protected folder.
    pub fn set(&self, settings: &str) {
        let file = self.settings_file();
        let mut all: toml::Table = fs::read_to_string(&file).unwrap().parse().unwrap();
        let protected = self.test.protected.display().to_string();
        merge(
            &mut all,
            settings.replace("{protected}", &protected).parse().unwrap(),
        );
        fs::write(file, all.to_string()).unwrap();
    }

    pub fn settings_file(&self) -> PathBuf {
        self.test.site.dir().join("etc/agent.toml")
    }

    /// Starts the agent anew, by another program where one is given.
    pub fn restart_agent(&self, by: &[&str]) {
        self.stop_agent();
        let agent = command::program("palisade-agent").unwrap();
        let mut words = by.iter().map(PathBuf::from).chain([agent]);
        let mut command = Command::new(words.next().unwrap());
        command.args(words).arg("--site").arg(self.test.site.dir());
        self.start_agent(command.arg("supervise"), &self.test.site.log("agent"));
    }

    /// Starts it by a command, with its log where the test wants it.
    pub fn start_agent(&self, command: &Command, log: &Path) {
        let run = self.test.site.dir().join("run");
        Process::start("agent", command, &run, log).unwrap();
    }

    pub fn stop_agent(&self) {
        if let Some(agent) = self.test.site.process("agent").unwrap() {
            agent.stop().unwrap();
        }
    }

    pub fn try_status(&self) -> Option<Value> {
        let arguments = ["status", "-o", "json"];
        let said = self.test.site.run("palisade-agent", &arguments, PATIENCE);
        said.ok()?.json().ok()
    }

    pub fn status(&self) -> Value {
        self.try_status().expect("the agent answers")
    }

    pub fn wait_state(&self, state: &str) {
        wait_until(&format!("protection is {state}"), || {
            self.try_status()
                .is_some_and(|status| status["protection"]["state"] == state)
        });
    }

    /// The process that answers, which the supervisor started.
    pub fn agent_pid(&self) -> i32 {
        let pid = self.status()["agent"]["pid"].as_u64().unwrap();
        i32::try_from(pid).unwrap()
    }

    /// The events' counters once nothing is pending; checks that they add up.
    pub fn settled(&self) -> Value {
        let mut events = Value::Null;
        wait_until("no event is pending", || {
            events = self.status()["events"].clone();
            events["pending"] == 0
        });
        let parts = [
            "scanned",
            "cached",
            "allowed_by_policy",
            "failed_open",
            "failed_closed",
        ];
        let sum: u64 = parts.iter().map(|key| number(&events, key)).sum();
        assert_eq!(number(&events, "seen"), sum, "{events}");
        events
    }

    /// Writes a file below the protected folder.
    pub fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.test.protected.join(name);
        fs::write(&path, bytes).unwrap();
        path
    }

    /// A clean one, of a content of its own.
    pub fn clean(&self, name: &str) -> PathBuf {
        self.file(name, format!("clean {name}").as_bytes())
    }

    /// Malware, of a content of its own.
    pub fn bad(&self, name: &str) -> PathBuf {
        self.file(name, &self.malware(name))
    }

    pub fn malware(&self, name: &str) -> Vec<u8> {
        [name.as_bytes(), b" ", &self.marker.bytes].concat()
    }

    /// Sends the Protection Server a signal.
    pub fn signal_svm(&self, signal: Signal) {
        let svm = self.test.site.process("scanserver").unwrap().unwrap();
        svm.signal(signal).unwrap();
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // A stopped process takes no other signal than this and SIGKILL.
        let _ = self.test.site.process("scanserver").map(|svm| {
            svm.map(|svm| {
                let _ = svm.signal(Signal::SIGCONT);
            })
        });
        if std::thread::panicking() {
            let status = self.try_status().unwrap_or_default();
            eprintln!("the agent's status: {status:#}");
        }
    }
}

fn merge(into: &mut toml::Table, from: toml::Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(toml::Value::Table(into)), toml::Value::Table(from)) => merge(into, from),
            (_, value) => {
                into.insert(key, value);
            }
        }
    }
}

pub fn number(of: &Value, key: &str) -> u64 {
    of[key]
        .as_u64()
        .unwrap_or_else(|| panic!("no {key} in {of}"))
}

pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(started.elapsed() < PATIENCE, "never: {what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Whether it failed as a denied open does.
pub fn denied<T: std::fmt::Debug>(result: io::Result<T>) -> bool {
    match result {
        Ok(_) => false,
        Err(error) => {
            assert_eq!(error.raw_os_error(), Some(libc::EPERM), "{error}");
            true
        }
    }
}

/// Opens in a thread; gives how it went and how long it took.
pub fn open_aside(path: &Path) -> Receiver<(io::Result<File>, Duration)> {
    let (send, receive) = mpsc::channel();
    let path = path.to_owned();
    std::thread::spawn(move || {
        let started = Instant::now();
        let opened = File::open(path);
        let _ = send.send((opened, started.elapsed()));
    });
    receive
}

/// Opens, and fails if that takes long.
pub fn open_soon(path: &Path) -> io::Result<File> {
    let opened = open_aside(path).recv_timeout(SOON);
    opened.expect("an open that nothing delays").0
}

pub fn signal(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).unwrap();
}

/// A mount of the test's, gone with it.
pub struct Mount(pub PathBuf);

impl Mount {
    pub fn tmpfs(at: &Path, options: &str) -> Self {
        fs::create_dir_all(at).unwrap();
        let kind = Some("tmpfs");
        mount(kind, at, kind, MsFlags::empty(), Some(options)).unwrap();
        Self(at.to_owned())
    }

    pub fn overlay(at: &Path, options: &str) -> Self {
        fs::create_dir_all(at).unwrap();
        let kind = Some("overlay");
        mount(kind, at, kind, MsFlags::empty(), Some(options)).unwrap();
        Self(at.to_owned())
    }

    pub fn bind(from: &Path, at: &Path) -> Self {
        fs::create_dir_all(at).unwrap();
        let none: Option<&str> = None;
        mount(Some(from), at, none, MsFlags::MS_BIND, none).unwrap();
        Self(at.to_owned())
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}
