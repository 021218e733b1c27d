//! An agent in a folder of its own, as a real process.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use palisade_daemon::membership::Membership;
use serde_json::Value;

use super::site::Site;
use super::wait_until;

pub const BINARY: &str = env!("CARGO_BIN_EXE_palisade-agent");

pub struct Agent {
    pub dir: tempfile::TempDir,
    process: Option<Child>,
}

impl Agent {
    /// An enrolled agent with these settings.
    pub fn new(site: &Site, settings: &str) -> Self {
        Self::of(&site.agent(), settings)
    }

    /// An agent of this membership.
    pub fn of(member: &Membership, settings: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        member.save(&dir.path().join("var/agent")).unwrap();
        fs::create_dir_all(dir.path().join("etc")).unwrap();
        fs::write(dir.path().join("etc/agent.toml"), settings).unwrap();
        Self { dir, process: None }
    }

    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(BINARY);
        command
            .arg("--site")
            .arg(self.dir.path())
            .args(args)
            .env_remove("PALISADE_SITE");
        command
    }

    pub fn output(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Scans, and gives the exit code and the JSON.
    pub fn scan(&self, paths: &[&Path]) -> (i32, Value) {
        let mut command = self.command(&["scan", "-o", "json"]);
        let output = command.args(paths).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        let json = serde_json::from_str(&text).unwrap_or_else(|error| {
            panic!(
                "{error}: {text:?}; stderr: {}",
                String::from_utf8_lossy(&output.stderr)
            )
        });
        (output.status.code().unwrap(), json)
    }

    /// Starts the daemon, and waits until it answers.
    pub fn run(&mut self) {
        let command = self.command(&["run"]);
        self.run_by(command);
    }

    /// The same in mounts of its own, after a script that may change them.
    pub fn run_with_mounts(&mut self, script: &str) {
        let mut command = Command::new("unshare");
        command
            .args([
                "--mount",
                "sh",
                "-ec",
                &format!("{script}\nexec \"$@\""),
                "sh",
                BINARY,
            ])
            .arg("--site")
            .arg(self.dir.path())
            .arg("run")
            .env_remove("PALISADE_SITE");
        self.run_by(command);
    }

    /// The same in a process namespace of its own, too: what it finds there is the test's
    /// alone. Gives the first process of that namespace.
    pub fn run_apart(&mut self) -> i32 {
        let mut command = Command::new("unshare");
        command
            .args(["--mount", "--pid", "--fork", "--mount-proc", "--kill-child"])
            .arg(BINARY)
            .arg("--site")
            .arg(self.dir.path())
            .arg("run")
            .env_remove("PALISADE_SITE");
        self.run_by(command);
        let outer = self.pid();
        let children = fs::read_to_string(format!("/proc/{outer}/task/{outer}/children"));
        children.unwrap().trim().parse().unwrap()
    }

    /// Starts the daemon with its supervisor, and waits until it answers.
    pub fn supervise(&mut self) {
        let command = self.command(&["supervise"]);
        self.run_by(command);
    }

    pub fn run_by(&mut self, command: Command) {
        self.spawn(command);
        wait_until("the agent answers", || self.try_status().is_some());
    }

    /// Starts it and does not wait.
    pub fn spawn(&mut self, mut command: Command) {
        let log = fs::File::options()
            .create(true)
            .append(true)
            .open(self.log_path())
            .unwrap();
        let child = command.stderr(log).stdin(Stdio::null()).spawn().unwrap();
        self.process = Some(child);
    }

    pub fn status(&self) -> Value {
        self.try_status()
            .unwrap_or_else(|| panic!("no status; log:\n{}", self.log()))
    }

    pub fn try_status(&self) -> Option<Value> {
        let output = self.output(&["status", "-o", "json"]);
        output
            .status
            .success()
            .then(|| serde_json::from_slice(&output.stdout).unwrap())
    }

    pub fn wait_protection(&self, state: &str) {
        wait_until(&format!("protection {state}"), || {
            self.try_status()
                .is_some_and(|status| status["protection"]["state"] == state)
        });
    }

    /// The events' counters once nothing is pending; checks that they add up.
    pub fn settled_events(&self) -> Value {
        let mut events = Value::Null;
        wait_until("no event is pending", || {
            events = self.status()["events"].clone();
            events["pending"] == 0
        });
        let n = |key: &str| events[key].as_u64().unwrap();
        assert_eq!(
            n("seen"),
            n("scanned")
                + n("cached")
                + n("allowed_by_policy")
                + n("failed_open")
                + n("failed_closed"),
            "{events}"
        );
        let failures: u64 = events["failures"]
            .as_object()
            .unwrap()
            .values()
            .map(|n| n.as_u64().unwrap())
            .sum();
        assert_eq!(failures, n("failed_open") + n("failed_closed"), "{events}");
        events
    }

    /// The process that answers, which a supervisor may have started.
    pub fn serving_pid(&self) -> i32 {
        let pid = self.status()["agent"]["pid"].as_u64().unwrap();
        pid.try_into().unwrap()
    }

    pub fn pid(&self) -> i32 {
        self.process.as_ref().unwrap().id().try_into().unwrap()
    }

    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.pid()), signal).unwrap();
    }

    /// Waits for the daemon's end.
    pub fn wait(&mut self) -> Option<i32> {
        self.process.take().unwrap().wait().unwrap().code()
    }

    /// Kills the daemon as nothing but a kill does, and waits for its end.
    pub fn kill(&mut self) {
        self.signal(nix::sys::signal::Signal::SIGKILL);
        self.wait();
    }

    /// The state folder.
    pub fn state(&self) -> PathBuf {
        self.dir.path().join("var/agent")
    }

    fn log_path(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    pub fn log(&self) -> String {
        let mut text = Vec::new();
        if let Ok(mut file) = fs::File::open(self.log_path()) {
            file.read_to_end(&mut text).unwrap();
        }
        String::from_utf8_lossy(&text).into_owned()
    }

    /// All detections that wait in the spool.
    pub fn spooled(&self) -> Vec<Value> {
        let Ok(entries) = fs::read_dir(self.dir.path().join("var/agent/spool")) else {
            return vec![];
        };
        entries
            .map(|entry| entry.unwrap().path())
            .filter(|path| {
                path.extension()
                    .is_some_and(|extension| extension == "jsonl")
            })
            .flat_map(|path| {
                let text = fs::read_to_string(path).unwrap();
                text.lines()
                    .map(|line| serde_json::from_str(line).unwrap())
                    .collect::<Vec<_>>()
            })
            .collect()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if let Some(mut process) = self.process.take() {
            let _ = process.kill();
            let _ = process.wait();
        }
        if std::thread::panicking() {
            eprintln!("the agent's log:\n{}", self.log());
        }
    }
}
