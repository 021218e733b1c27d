//! The supervised agent as a process: started, heard, stopped, killed.

use std::ffi::OsString;
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::breaker::Ending;
use super::fuse;
use super::watchdog::Watchdog;
use crate::pulse::Sign;

/// How often its end is looked for while it is waited for.
const LOOK: Duration = Duration::from_millis(20);
/// How long a killed process may take to be gone.
const GONE_WITHIN: Duration = Duration::from_secs(1);
/// After how long what keeps it is looked for again.
const AGAIN: Duration = Duration::from_secs(60);

/// How the C library is to keep memory: in few pools, since a thread that once read a file
/// keeps its own for ever, and what is large (a fragment of a file) goes back at once.
/// Under load that is about a sixth of the agent's memory.
const MALLOC: [(&str, &str); 3] = [
    ("MALLOC_ARENA_MAX", "2"),
    ("MALLOC_MMAP_THRESHOLD_", "131072"),
    ("MALLOC_TRIM_THRESHOLD_", "131072"),
];

/// The agent's program and what it is told.
#[derive(Debug, Clone)]
pub struct Program {
    /// The options before the command.
    pub options: Vec<OsString>,
    /// After how long an agent counts as one that runs well.
    pub settled_after: Duration,
}

impl Program {
    /// Starts an agent; `fallback` is why it must not hold opens, if it must not.
    ///
    /// # Errors
    /// The system's.
    pub fn start(&self, fallback: Option<&str>) -> io::Result<Agent> {
        let (socket, theirs) = UnixStream::pair()?;
        socket.set_nonblocking(true)?;
        let mut command = Command::new(program()?);
        command.args(&self.options).args(["run", "--supervised"]);
        if let Some(why) = fallback {
            command.arg("--fallback").arg(why);
        }
        let child = command
            .envs(MALLOC)
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            // Readiness is the supervisor's to tell, once, and stopping, too.
            .env_remove("NOTIFY_SOCKET")
            .spawn()?;
        Ok(Agent { child, socket })
    }
}

/// This program; after an upgrade the one that runs, which has no name any more.
fn program() -> io::Result<PathBuf> {
    let own = std::env::current_exe()?;
    Ok(if own.exists() {
        own
    } else {
        "/proc/self/exe".into()
    })
}

/// What was heard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heard {
    /// That it has started, among whatever else.
    pub ready: bool,
    /// Whether it lives.
    pub beat: Beat,
}

/// A sign of life, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Beat {
    /// The last of one or more: never [`Sign::Ready`], which is no promise of a next one.
    Sign(Sign),
    /// Nothing.
    None,
    /// It closed its end.
    Closed,
}

/// A started agent.
#[derive(Debug)]
pub struct Agent {
    child: Child,
    socket: UnixStream,
}

impl Agent {
    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Readable when there is something to hear.
    pub fn socket(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Takes what there is to hear.
    pub fn beat(&mut self) -> Heard {
        hear(&mut self.socket)
    }

    /// How it ended, if it did: `None` within is fine.
    pub fn ended(&mut self) -> Option<Option<Ending>> {
        match self.child.try_wait() {
            Ok(Some(status)) => Some(ending(status)),
            Ok(None) => None,
            Err(error) => {
                tracing::error!(%error, "the agent's end cannot be looked for");
                Some(Some(Ending::Crashed))
            }
        }
    }

    /// Waits for its end, and kills it if it does not come.
    pub fn end_within(&mut self, within: Duration, watchdog: &Watchdog) -> Option<Ending> {
        let until = Instant::now() + within;
        while Instant::now() < until {
            if let Some(end) = self.ended() {
                return end;
            }
            watchdog.feed();
            std::thread::sleep(LOOK);
        }
        self.kill(watchdog);
        Some(Ending::Stalled)
    }

    /// Tells it to stop, and kills it if it does not.
    pub fn stop(&mut self, within: Duration, watchdog: &Watchdog) {
        if let Ok(pid) = i32::try_from(self.child.id()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        self.end_within(within, watchdog);
    }

    /// Kills it: the kernel lets go whoever waits for it.
    pub fn kill(&mut self, watchdog: &Watchdog) {
        let _ = self.child.kill();
        let mut until = Instant::now() + GONE_WITHIN;
        let mut gone = self.ended().is_some();
        while !gone {
            watchdog.feed();
            std::thread::sleep(LOOK);
            gone = self.ended().is_some();
            if !gone && Instant::now() >= until {
                // It waits within the kernel, where no signal reaches it.
                let pid = self.child.id();
                fuse::free(pid, || {
                    gone = self.ended().is_some();
                    gone
                });
                until = Instant::now() + AGAIN;
            }
        }
    }
}

/// All that there is to hear now.
fn hear(socket: &mut UnixStream) -> Heard {
    let mut heard = Heard {
        ready: false,
        beat: Beat::None,
    };
    let mut signs = [0; 64];
    loop {
        match socket.read(&mut signs) {
            Ok(0) => {
                if heard.beat == Beat::None && !heard.ready {
                    heard.beat = Beat::Closed;
                }
                return heard;
            }
            Ok(n) => {
                for sign in signs[..n].iter().filter_map(|byte| Sign::of(*byte)) {
                    match sign {
                        Sign::Ready => heard.ready = true,
                        Sign::Idle | Sign::Busy => heard.beat = Beat::Sign(sign),
                    }
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return heard,
            Err(_) => {
                heard.beat = Beat::Closed;
                return heard;
            }
        }
    }
}

fn ending(status: ExitStatus) -> Option<Ending> {
    match (status.success(), status.signal()) {
        (true, _) => None,
        (false, Some(signal)) => {
            tracing::error!(signal, "the agent was ended by a signal");
            Some(Ending::Crashed)
        }
        (false, None) => Some(Ending::Failed),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn that_it_has_started_is_heard_whatever_follows() {
        for (said, ready, beat) in [
            (&b""[..], false, Beat::None),
            (b"r", true, Beat::None),
            (b"rb", true, Beat::Sign(Sign::Busy)),
            (b"irb", true, Beat::Sign(Sign::Busy)),
            (b"bi?", false, Beat::Sign(Sign::Idle)),
        ] {
            let (mut socket, mut theirs) = UnixStream::pair().unwrap();
            socket.set_nonblocking(true).unwrap();
            theirs.write_all(said).unwrap();
            assert_eq!(hear(&mut socket), Heard { ready, beat }, "{said:?}");
            drop(theirs);
            let closed = Heard {
                ready: false,
                beat: Beat::Closed,
            };
            assert_eq!(hear(&mut socket), closed);
        }
    }
}
