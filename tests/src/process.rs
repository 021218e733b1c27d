//! A long-running program: detached from the terminal, its output in a log file,
//! known by pid *and* start time, so that a pid used again is never ended.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::command::wait_for;

/// How long a program may take to end by itself after SIGTERM.
pub const STOP_TIMEOUT: Duration = Duration::from_secs(15);

/// A program that was started, as its pid file tells.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Process {
    /// What it is called within the site.
    pub name: String,
    /// Its process id.
    pub pid: i32,
    /// When it started, in clock ticks since boot (`/proc/PID/stat`, field 22).
    pub started: u64,
    #[serde(skip)]
    file: PathBuf,
}

impl Process {
    /// Starts a program; stdout and stderr are appended to `log`.
    ///
    /// # Errors
    /// When it cannot be started.
    pub fn start(name: &str, command: &Command, run: &Path, log: &Path) -> Result<Self> {
        fs::create_dir_all(run)?;
        let log = File::options().create(true).append(true).open(log)?;
        // A session of its own: the terminal's end must not be the site's.
        let mut detached = Command::new("setsid");
        detached.arg(command.get_program()).args(command.get_args());
        for (key, value) in command.get_envs() {
            match value {
                Some(value) => detached.env(key, value),
                None => detached.env_remove(key),
            };
        }
        let child = detached
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("cannot start {command:?}"))?;
        let pid = i32::try_from(child.id())?;
        // Reaps the child for as long as this process lives; later, init does.
        std::thread::spawn(move || {
            let mut child = child;
            let _ = child.wait();
        });
        let started = start_time(pid).with_context(|| format!("{name} ended at once"))?;
        let process = Self {
            name: name.to_owned(),
            pid,
            started,
            file: run.join(format!("{name}.pid")),
        };
        fs::write(&process.file, serde_json::to_string(&process)?)?;
        Ok(process)
    }

    /// The program that a pid file names, if it is still running.
    ///
    /// # Errors
    /// When the file is there and unreadable.
    pub fn find(name: &str, run: &Path) -> Result<Option<Self>> {
        let file = run.join(format!("{name}.pid"));
        let text = match fs::read_to_string(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| file.display().to_string()),
        };
        let mut process: Self = serde_json::from_str(&text)
            .with_context(|| format!("{} is damaged", file.display()))?;
        process.file = file;
        Ok(process.is_running().then_some(process))
    }

    /// Whether this very process is still there.
    pub fn is_running(&self) -> bool {
        start_time(self.pid) == Some(self.started)
    }

    /// Sends a signal, if it is still this process.
    ///
    /// # Errors
    /// When it may not be signalled.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        if !self.is_running() {
            return Ok(());
        }
        match kill(Pid::from_raw(self.pid), signal) {
            Ok(()) | Err(Errno::ESRCH) => Ok(()),
            Err(error) => bail!("cannot signal {} (pid {}): {error}", self.name, self.pid),
        }
    }

    /// Ends it: asked first, killed after [`STOP_TIMEOUT`].
    ///
    /// # Errors
    /// When it cannot be ended.
    pub fn stop(&self) -> Result<()> {
        self.signal(Signal::SIGTERM)?;
        if self.wait(STOP_TIMEOUT).is_err() {
            self.signal(Signal::SIGKILL)?;
            self.wait(Duration::from_secs(5))?;
        }
        self.forget()
    }

    /// Kills it without asking, as a crash would.
    ///
    /// # Errors
    /// When it cannot be killed.
    pub fn kill(&self) -> Result<()> {
        self.signal(Signal::SIGKILL)?;
        self.wait(Duration::from_secs(5))?;
        self.forget()
    }

    fn forget(&self) -> Result<()> {
        match fs::remove_file(&self.file) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }

    fn wait(&self, deadline: Duration) -> Result<()> {
        wait_for(&format!("the end of {}", self.name), deadline, || {
            if self.is_running() {
                bail!("pid {} still runs", self.pid)
            } else {
                Ok(())
            }
        })
    }
}

/// Field 22 of `/proc/PID/stat`; `None` for no process and for a zombie.
fn start_time(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The name in field 2 may hold anything, so fields count from the last ')'.
    let after = &stat[stat.rfind(')')? + 2..];
    let mut fields = after.split(' ');
    let state = fields.next()?;
    // A killed program's first thread is a zombie while others still hold its files.
    let threads = fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    if state == "X" || (state == "Z" && threads <= 1) {
        return None;
    }
    fields.nth(18)?.parse().ok()
}
