//! A process of the agent's own that opens files when it is told to, so that the
//! self-test's opens come from somebody else.
//!
//! It is started before the fanotify group exists and holds none of it: nothing
//! that could keep openers waiting is ever forked. It ends when its standard
//! input closes, which the agent's end does by itself.
//!
//! ```text
//!  agent ── path, NUL ──► probe: open(O_RDONLY)
//!        ◄── one line: 0, or the errno ──
//! ```

use std::ffi::OsStr;
use std::fs::OpenOptions;
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use nix::libc;

/// The hidden subcommand that is the probe.
pub const COMMAND: &str = "probe-opens";

/// The agent's end.
#[derive(Debug)]
pub struct Probe {
    child: Child,
    paths: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Probe {
    /// Starts the process: the running program again.
    ///
    /// # Errors
    /// The system's.
    pub fn start() -> io::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .arg(COMMAND)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let gone = || io::Error::other("the probe has no pipes");
        let paths = Some(child.stdin.take().ok_or_else(gone)?);
        let answers = BufReader::new(child.stdout.take().ok_or_else(gone)?);
        Ok(Self {
            child,
            paths,
            answers,
        })
    }

    /// Has a file opened; gives the errno with which that failed, if it did. Waits
    /// as long as the open does.
    ///
    /// # Errors
    /// When the probe is gone.
    pub fn open(&mut self, path: &Path) -> io::Result<Result<(), i32>> {
        let paths = self
            .paths
            .as_mut()
            .ok_or_else(|| io::Error::other("the probe ended"))?;
        let mut line = path.as_os_str().as_bytes().to_vec();
        line.push(0);
        paths.write_all(&line)?;
        let mut answer = String::new();
        self.answers.read_line(&mut answer)?;
        match answer.trim().parse() {
            Ok(0) => Ok(Ok(())),
            Ok(errno) => Ok(Err(errno)),
            Err(_) => Err(io::Error::other("the probe ended")),
        }
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.paths = None;
        let _ = self.child.wait();
    }
}

/// The probe's own side: serves until its input ends.
///
/// # Errors
/// The pipes'.
pub fn serve() -> io::Result<()> {
    let mut paths = io::stdin().lock();
    let mut answers = io::stdout().lock();
    loop {
        let mut path = Vec::new();
        if paths.read_until(0, &mut path)? == 0 {
            return Ok(());
        }
        path.pop();
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
            .open(OsStr::from_bytes(&path));
        let errno = match opened {
            Ok(_) => 0,
            Err(error) => error.raw_os_error().unwrap_or(libc::EIO),
        };
        writeln!(answers, "{errno}")?;
        answers.flush()?;
    }
}
