//! The engine program's side: load once, fork workers, kill and reap them.
//!
//! ```text
//! run ── load ──► LoadFailed, exit 1
//!          │
//!          └─ namespaces ─► Loaded ──► loop { control socket, SIGCHLD }
//!                              Spawn ► fork ─► child: sandbox ► warm up ► seccomp ► canary ► serve
//!                              Kill  ► SIGKILL
//!                              child gone ► reap, remove its scratch, Exited
//!                              end of file ► kill and reap all, exit 0
//! ```
//!
//! One thread, and nothing but the definitions in memory: what the zygote does is
//! done in every worker's past. Content never reaches it.

mod members;
mod sandbox;
mod serve;

pub use crate::sys::keep_charsets;
pub use members::{MemberSink, check_canary};
pub use sandbox::{Confinement, Group, Limits, Policy, User};

use crate::content::SealedContent;
use crate::ipc::{Channel, IpcError};
use crate::message::{
    DefinitionProblem, Loaded, MAX_PROBLEMS, Outcome, ScanOptions, WorkerExit, WorkerId,
    ZygoteEvent, ZygoteRequest,
};
use crate::sys;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use sandbox::{Gap, Scratch};
use std::collections::HashMap;
use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

/// An engine whose definitions are loaded. The zygote holds one and uses it for
/// nothing but to fork; every worker has its own copy of it.
pub trait Engine {
    /// Makes a worker of this copy, once, after the sandbox was entered: here go
    /// threads, caches and the scratch directory, which is the worker's alone.
    ///
    /// # Errors
    /// In words; the worker then does not serve.
    fn enter_worker(&mut self, scratch: &Path) -> Result<(), String>;

    /// Scans content that must be found, in the way that is most likely to fail
    /// silently (through a temporary file, if the engine makes any).
    ///
    /// # Errors
    /// In words, if it was not found; the worker then stops serving.
    fn canary(&mut self) -> Result<(), String>;

    /// Scans one content. What the engine unpacks goes to `members`, which does
    /// nothing if the options do not ask for it.
    fn scan(
        &mut self,
        content: &SealedContent,
        options: &ScanOptions,
        members: &mut MemberSink<'_>,
    ) -> Outcome;
}

/// What loading gave.
#[derive(Debug)]
pub struct LoadReport<E> {
    /// The engine, ready to be forked.
    pub engine: E,
    /// Its version.
    pub version: String,
    /// How many signatures or rules are active, the canary not counted.
    pub signatures: u64,
    /// Remarks that did not stop it.
    pub warnings: Vec<DefinitionProblem>,
}

/// What every zygote needs to know.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where workers get their scratch directories. It must exist.
    pub scratch: PathBuf,
    /// The sandbox of each worker.
    pub confinement: Confinement,
}

/// Runs an engine program: everything after the command line. `name` is the
/// engine's, as it is reported.
///
/// The control socket is standard input; `load` runs once, before any fork.
pub fn run<E: Engine>(
    name: &str,
    settings: &Settings,
    load: impl FnOnce() -> Result<LoadReport<E>, Vec<DefinitionProblem>>,
) -> ExitCode {
    let control = match take_control() {
        Ok(control) => control,
        Err(error) => {
            eprintln!(
                "{name}: standard input is not a control socket ({error}); \
                 palisade-scanserver starts this program"
            );
            return ExitCode::from(2);
        }
    };
    let started = Instant::now();
    let prepared = absolute(settings).map_err(|found| vec![found]);
    let (settings, report) = match prepared.and_then(|settings| Ok((settings, load()?))) {
        Ok(report) => report,
        Err(mut problems) => {
            problems.truncate(MAX_PROBLEMS);
            if problems.is_empty() {
                problems.push(problem(&settings.scratch, None, "loading failed"));
            }
            for problem in &problems {
                eprintln!("{name}: {problem}");
            }
            // If the daemon is gone there is nobody to tell.
            let _ = control.send(&ZygoteEvent::LoadFailed { problems }, None);
            return ExitCode::FAILURE;
        }
    };
    sys::close_heap();
    let loaded = ZygoteEvent::Loaded(Loaded {
        engine: name.into(),
        engine_version: report.version.as_str().into(),
        signatures: report.signatures,
        load_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
        warnings: report.warnings.into_iter().take(MAX_PROBLEMS).collect(),
    });
    let mut zygote = Zygote {
        namespaces: sandbox::own_namespaces(&settings.scratch, &settings.confinement),
        settings: &settings,
        control,
        children: HashMap::new(),
    };
    let ended = zygote
        .control
        .send(&loaded, None)
        .and_then(|()| zygote.serve(report.engine));
    zygote.end_all();
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(IpcError::Io(error)) if error.kind() == io::ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{name}: {error}");
            ExitCode::FAILURE
        }
    }
}

/// A problem with definitions, in the form that is reported.
pub fn problem(file: &Path, line: Option<u32>, message: impl AsRef<str>) -> DefinitionProblem {
    use std::os::unix::ffi::OsStrExt;
    DefinitionProblem {
        file: crate::text::Text::lossy(file.as_os_str().as_bytes()),
        line,
        message: message.as_ref().into(),
    }
}

/// Random bytes as hex (`bytes` of them, at most 64), for markers that no content
/// can know.
pub fn random_hex(bytes: usize) -> io::Result<String> {
    let mut random = [0; 64];
    let random = &mut random[..bytes.min(64)];
    fs::File::open("/dev/urandom")?.read_exact(random)?;
    Ok(hex::encode(random))
}

/// The settings with a scratch directory that exists, by its absolute path: workers
/// change their directory.
fn absolute(settings: &Settings) -> Result<Settings, DefinitionProblem> {
    let scratch = &settings.scratch;
    let unusable = |error: io::Error| {
        problem(
            scratch,
            None,
            format!("unusable as scratch directory: {error}"),
        )
    };
    let absolute = scratch.canonicalize().map_err(unusable)?;
    if !absolute.is_dir() {
        return Err(unusable(io::ErrorKind::NotADirectory.into()));
    }
    Ok(Settings {
        scratch: absolute,
        confinement: settings.confinement,
    })
}

/// Takes the control socket off standard input, so that no child inherits it there.
fn take_control() -> io::Result<Channel> {
    let stdin = io::stdin();
    let control = Channel::from_fd(stdin.as_fd().try_clone_to_owned()?)?;
    nix::unistd::dup2_stdin(fs::File::open("/dev/null")?)?;
    Ok(control)
}

/// A forked worker that was not reaped yet.
#[derive(Debug)]
struct Child {
    worker: WorkerId,
    scratch: Scratch,
}

struct Zygote<'a> {
    settings: &'a Settings,
    /// What this machine lacks for workers' namespaces.
    namespaces: Option<Gap>,
    control: Channel,
    children: HashMap<Pid, Child>,
}

impl Zygote<'_> {
    fn serve<E: Engine>(&mut self, engine: E) -> Result<(), IpcError> {
        let mut engine = Some(engine);
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGCHLD);
        mask.thread_block()?;
        let signals = SignalFd::with_flags(&mask, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
        loop {
            let mut fds = [
                PollFd::new(self.control.as_fd(), PollFlags::POLLIN),
                PollFd::new(signals.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut fds, PollTimeout::NONE) {
                Err(Errno::EINTR) => continue,
                other => other?,
            };
            let readable = |fd: &PollFd<'_>| fd.revents().is_some_and(|events| !events.is_empty());
            let (asked, child_gone) = (readable(&fds[0]), readable(&fds[1]));
            if child_gone {
                while let Ok(Some(_)) = signals.read_signal() {}
                self.reap()?;
            }
            if !asked {
                continue;
            }
            match self.control.receive(None)? {
                None => return Ok(()),
                Some((ZygoteRequest::Kill { worker }, _)) => self.kill(worker),
                Some((ZygoteRequest::Spawn { worker }, fd)) => {
                    self.spawn(worker, fd, &mut engine)?;
                }
            }
        }
    }

    fn spawn<E: Engine>(
        &mut self,
        worker: WorkerId,
        fd: Option<OwnedFd>,
        engine: &mut Option<E>,
    ) -> Result<(), IpcError> {
        let scratch = self.scratch(worker);
        let prepared = fd
            .ok_or_else(|| "no channel came with the request".to_owned())
            .and_then(|fd| Channel::from_fd(fd).map_err(|error| error.to_string()))
            .and_then(
                |channel| match scratch.prepare(&self.settings.confinement) {
                    Ok(()) => Ok(channel),
                    Err(error) => Err(format!("scratch directory: {error}")),
                },
            );
        let parent = Pid::this();
        let forked = prepared.and_then(|channel| match sys::fork_single_threaded() {
            Ok(pid) => Ok((pid, channel)),
            Err(error) => Err(format!("fork: {error}")),
        });
        match forked {
            Ok((Some(pid), _)) => {
                self.children.insert(pid, Child { worker, scratch });
                self.control.send(
                    &ZygoteEvent::Spawned {
                        worker,
                        pid: pid.as_raw(),
                    },
                    None,
                )
            }
            Ok((None, channel)) => {
                let Some(engine) = engine.take() else {
                    sys::exit_now(serve::EXIT_REFUSED)
                };
                let place = serve::Place {
                    worker,
                    parent,
                    scratch,
                    confinement: self.settings.confinement,
                    namespaces: self.namespaces,
                };
                sys::exit_now(serve::serve(engine, &channel, &place))
            }
            Err(detail) => {
                // Whatever was made of the directory is of no use to anybody.
                scratch.clear();
                let exit = WorkerExit::NotStarted {
                    detail: detail.as_str().into(),
                };
                self.control
                    .send(&ZygoteEvent::Exited { worker, exit }, None)
            }
        }
    }

    fn scratch(&self, worker: WorkerId) -> Scratch {
        let within = &self.settings.scratch;
        match self.namespaces {
            None => Scratch::Private(within.clone()),
            Some(_) => Scratch::Shared(within.join(format!("{}-{worker}", Pid::this()))),
        }
    }

    fn kill(&self, worker: WorkerId) {
        for (pid, child) in &self.children {
            if child.worker == worker {
                // It is ours and not reaped: it can only be dead already.
                let _ = kill(*pid, Signal::SIGKILL);
            }
        }
    }

    fn reap(&mut self) -> Result<(), IpcError> {
        loop {
            let (pid, exit) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, WorkerExit::Code(code)),
                Ok(WaitStatus::Signaled(pid, signal, _)) => {
                    (pid, WorkerExit::Signal(signal as i32))
                }
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return Ok(()),
                Ok(_) | Err(Errno::EINTR) => continue,
                Err(errno) => return Err(errno.into()),
            };
            if let Some(child) = self.children.remove(&pid) {
                child.scratch.clear();
                self.control.send(
                    &ZygoteEvent::Exited {
                        worker: child.worker,
                        exit,
                    },
                    None,
                )?;
            }
        }
    }

    /// Leaves nothing behind: no process, no directory.
    fn end_all(&mut self) {
        for pid in self.children.keys() {
            let _ = kill(*pid, Signal::SIGKILL);
        }
        for (pid, child) in self.children.drain() {
            while waitpid(pid, None) == Err(Errno::EINTR) {}
            child.scratch.clear();
        }
    }
}
