//! One program run to its end: with a deadline, and its output kept.

use std::ffi::OsStr;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// How a program ended and what it said.
#[derive(Debug)]
pub struct Finished {
    /// The program and its arguments, for messages.
    pub line: String,
    /// Its exit code; `None` when a signal ended it.
    pub code: Option<i32>,
    /// What it wrote to stdout.
    pub stdout: Vec<u8>,
    /// What it wrote to stderr.
    pub stderr: String,
}

impl Finished {
    /// Its output as JSON.
    ///
    /// # Errors
    /// When it is none; the message shows what came instead.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_slice(&self.stdout).with_context(|| {
            format!(
                "{} (exit {:?}) printed no JSON: {:?}; stderr: {}",
                self.line,
                self.code,
                String::from_utf8_lossy(&self.stdout),
                self.stderr
            )
        })
    }

    /// Itself, if it ended with one of these codes.
    ///
    /// # Errors
    /// Otherwise, with its stderr.
    pub fn expect(self, codes: &[i32]) -> Result<Self> {
        match self.code {
            Some(code) if codes.contains(&code) => Ok(self),
            code => bail!("{} ended with {code:?}: {}", self.line, self.stderr.trim()),
        }
    }
}

/// Runs a program to its end.
///
/// # Errors
/// When it cannot be started, or outlives the deadline (it is killed then).
pub fn run<A: AsRef<OsStr>>(
    program: &Path,
    arguments: impl IntoIterator<Item = A>,
    deadline: Duration,
) -> Result<Finished> {
    let mut command = Command::new(program);
    command.args(arguments);
    finish(command, deadline)
}

/// Runs a prepared command to its end.
///
/// # Errors
/// As [`run`].
pub fn finish(mut command: Command, deadline: Duration) -> Result<Finished> {
    let line = format!("{command:?}");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {line}"))?;
    let stdout = drain(child.stdout.take());
    let stderr = drain(child.stderr.take());
    let end = Instant::now() + deadline;
    let status = loop {
        match child.try_wait()? {
            Some(status) => break status,
            None if Instant::now() > end => {
                child.kill()?;
                child.wait()?;
                bail!("{line} did not end within {} s", deadline.as_secs());
            }
            None => thread::sleep(Duration::from_millis(10)),
        }
    };
    Ok(Finished {
        line,
        code: ExitStatus::code(&status),
        stdout: stdout.join().unwrap_or_default(),
        stderr: String::from_utf8_lossy(&stderr.join().unwrap_or_default()).into_owned(),
    })
}

fn drain(pipe: Option<impl Read + Send + 'static>) -> thread::JoinHandle<Vec<u8>> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        if let Some(mut pipe) = pipe {
            // A pipe that breaks has said all it will.
            let _ = pipe.read_to_end(&mut bytes);
        }
        bytes
    })
}

/// Where this workspace's programs are: beside the running one, or in the folder
/// above it (tests run in `target/*/deps`).
///
/// # Errors
/// When a program is missing; the message says how to build it.
pub fn program(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe()?;
    let near = own
        .ancestors()
        .skip(1)
        .take(2)
        .map(|folder| folder.join(name));
    near.into_iter()
        .find(|path| path.is_file())
        .with_context(|| format!("{name} is not built: run `cargo build --workspace`"))
}

/// Repeats `check` until it gives a value.
///
/// # Errors
/// After `deadline`, with the last reason.
pub fn wait_for<T>(
    what: &str,
    deadline: Duration,
    mut check: impl FnMut() -> Result<T>,
) -> Result<T> {
    let end = Instant::now() + deadline;
    loop {
        match check() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() > end => {
                return Err(error)
                    .with_context(|| format!("waited {} s for {what}", deadline.as_secs()));
            }
            Err(_) => thread::sleep(Duration::from_millis(100)),
        }
    }
}
