//! What a worker that was taken over can do: the attempts of the planted engine,
//! inside the sandbox, where each fails, and outside it, where they succeed.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a panic here is a failed test"
)]

use palisade_worker::client::{
    EngineCommand, EngineProcess, Outcome, ScanOptions, SealedContent, WorkerError, WorkerExit,
};
use std::net::TcpListener;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;
use tempfile::TempDir;

const PLANTED: &str = env!("CARGO_BIN_EXE_palisade-planted-engine");
const LONG: Duration = Duration::from_secs(60);
/// So many have to be shown to succeed outside.
const AT_LEAST: usize = 40;

/// What the attempts are aimed at.
struct Target {
    folder: TempDir,
    tcp: TcpListener,
    unix: UnixListener,
}

impl Target {
    fn new() -> Self {
        let folder = TempDir::new().unwrap();
        for directory in ["scratch", "outside"] {
            std::fs::create_dir(folder.path().join(directory)).unwrap();
        }
        std::fs::write(folder.path().join("outside/secret"), "secret").unwrap();
        let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
        tcp.set_nonblocking(true).unwrap();
        let unix = UnixListener::bind(folder.path().join("outside/socket")).unwrap();
        unix.set_nonblocking(true).unwrap();
        Self { folder, tcp, unix }
    }

    fn outside(&self) -> PathBuf {
        self.folder.path().join("outside")
    }

    fn words(&self, process: u32, daemon: u32) -> [String; 4] {
        let port = self.tcp.local_addr().unwrap().port();
        let folder = self.outside().display().to_string();
        [
            folder,
            port.to_string(),
            process.to_string(),
            daemon.to_string(),
        ]
    }

    /// Nothing came, and nothing was changed.
    fn assert_untouched(&self) {
        let mut names: Vec<_> = std::fs::read_dir(self.outside())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        assert_eq!(names, ["secret", "socket"]);
        let secret = std::fs::read(self.outside().join("secret")).unwrap();
        assert_eq!(secret, b"secret");
        assert!(self.tcp.accept().is_err(), "a connection came out");
        assert!(self.unix.accept().is_err(), "a connection came out");
    }
}

/// Names of all attempts, and whether each is made outside as it is.
fn attempts() -> Vec<(String, bool)> {
    let output = Command::new(PLANTED).arg("attempts").output().unwrap();
    String::from_utf8(output.stdout)
        .unwrap()
        .lines()
        .map(|line| {
            let (name, outside) = line.split_once(' ').unwrap();
            (name.to_owned(), outside == "Plain")
        })
        .collect()
}

#[test]
fn every_attempt_to_escape_fails_in_a_worker() {
    let target = Target::new();
    let command = EngineCommand::new(PLANTED)
        .arg("--scratch")
        .arg(target.folder.path().join("scratch"))
        .arg("--worker-memory=536870912")
        .arg("--worker-scratch=16777216")
        .arg("--worker-scratch-files=256");
    let (engine, _) = EngineProcess::start(&command).unwrap();
    let words = target.words(engine.pid(), std::process::id()).join(" ");
    let attempts = attempts();
    assert!(attempts.len() >= AT_LEAST);
    let mut escaped = Vec::new();
    for (name, _) in &attempts {
        let mut worker = engine.spawn_worker().unwrap();
        assert!(worker.gaps().is_empty());
        let content = SealedContent::from_bytes(format!("escape {name} {words}").as_bytes());
        let result = worker.scan(&content.unwrap(), ScanOptions::default(), LONG, &mut drop);
        let (failed, what) = match result {
            Ok(done) => match done.outcome {
                Outcome::Found { names, .. } => {
                    let said = names[0].as_str();
                    (said.starts_with("refused "), said.to_owned())
                }
                other => (false, format!("{other:?}")),
            },
            Err(WorkerError::Died {
                exit: Some(exit @ WorkerExit::Signal(_)),
            }) => (true, exit.to_string()),
            Err(error) => (false, error.to_string()),
        };
        println!("{name:32} {what}");
        if !failed {
            escaped.push(format!("{name}: {what}"));
        }
    }
    println!("{} attempts, {} escaped", attempts.len(), escaped.len());
    assert!(escaped.is_empty(), "{escaped:#?}");
    target.assert_untouched();
    assert!(engine.is_alive());
    // The test's own control: an attempt that nobody knows is not refused.
    let mut worker = engine.spawn_worker().unwrap();
    let content = SealedContent::from_bytes(b"escape nothing").unwrap();
    let done = worker.scan(&content, ScanOptions::default(), LONG, &mut drop);
    assert_eq!(
        done.unwrap().outcome,
        Outcome::found(["unknown attempt nothing".into()], false)
    );
}

/// What nothing but seccomp and the ban on new processes keeps a worker from, on
/// some machines at least. Of the rest each is kept by another part of the sandbox.
const BY_SECCOMP_ALONE: [&str; 22] = [
    "signal-by-descriptor",
    "inotify",
    "unix-socketpair",
    "netlink",
    "vsock",
    "fork",
    "clone3",
    "thread",
    "clone-into-namespaces",
    "exec-a-memory-file",
    "make-memory-executable",
    "map-executable-memory",
    "shared-memory",
    "system-v-shared-memory",
    "become-dumpable",
    "personality",
    "bpf",
    "perf-event",
    "io-uring",
    "userfaultfd",
    "keyring",
    "quota",
];

/// The same in the engine's warm-up, before seccomp: one defence is not all there is.
#[test]
fn most_attempts_fail_without_seccomp_too() {
    let target = Target::new();
    let scratch = target.folder.path().join("scratch");
    let mut escaped = Vec::new();
    for (name, _) in attempts() {
        let process = std::os::unix::process::parent_id();
        let words = target.words(process, std::process::id()).join(" ");
        let command = EngineCommand::new(PLANTED)
            .arg("--scratch")
            .arg(&scratch)
            .arg("--worker-memory=536870912")
            .arg("--worker-scratch=16777216")
            .arg("--worker-scratch-files=256")
            .arg("--early")
            .arg(format!("{name} {words}"));
        let (engine, _) = EngineProcess::start(&command).unwrap();
        let what = engine.spawn_worker().unwrap_err().to_string();
        println!("{name:32} {what}");
        let refused = what.contains("refused ") || what.contains("killed by");
        if !refused && !BY_SECCOMP_ALONE.contains(&name.as_str()) {
            escaped.push(name);
        }
    }
    assert!(escaped.is_empty(), "{escaped:#?}");
    target.assert_untouched();
}

/// The negative control: what fails in there is possible out here, so it is the
/// sandbox that it fails by.
#[test]
fn the_same_attempts_succeed_outside() {
    if !nix::unistd::geteuid().is_root() {
        println!(
            "skipped: the_same_attempts_succeed_outside: only root could do all that workers cannot"
        );
        return;
    }
    let mut lacking = Vec::new();
    let attempts = attempts();
    for (name, plain) in &attempts {
        let target = Target::new();
        let mut sleeper = Sleeper::new();
        let id = sleeper.0.id();
        let mut command = if *plain {
            Command::new(PLANTED)
        } else {
            let mut command = Command::new("unshare");
            command.args([
                "--user",
                "--map-root-user",
                "--mount",
                "--net",
                "--ipc",
                "--uts",
                "--pid",
                "--fork",
                PLANTED,
            ]);
            command
        };
        let output = command
            .args(["attempt", name])
            .args(target.words(id, id))
            .current_dir(target.folder.path().join("scratch"))
            .stdin(Stdio::null())
            .output()
            .unwrap();
        sleeper.end();
        let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        println!("{name:32} {said}");
        if !said.starts_with("escaped") {
            lacking.push(name);
        }
    }
    println!("not possible on this machine: {lacking:?}");
    let shown = attempts.len() - lacking.len();
    assert!(shown >= AT_LEAST, "{shown} attempts succeed outside");
}

/// A process for attempts to be aimed at.
struct Sleeper(Child);

impl Sleeper {
    fn new() -> Self {
        Self(Command::new("sleep").arg("60").spawn().unwrap())
    }

    fn end(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}
