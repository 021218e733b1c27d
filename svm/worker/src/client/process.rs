//! One engine program: the process, its control socket, what it reported.

use super::{SpawnError, StartError, WorkerHandle};
use crate::ipc::{Channel, IpcError};
use crate::message::{Loaded, WorkerExit, WorkerId, ZygoteEvent, ZygoteRequest};
use std::collections::HashMap;
use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long an engine program may take to end after its control socket closed.
const END_WITHIN: Duration = Duration::from_secs(5);
/// How often its end is looked for in that time.
const END_POLL: Duration = Duration::from_millis(5);

/// How an engine program is started.
#[derive(Clone, Debug)]
pub struct EngineCommand {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<OsString>,
    /// How long it may load its definitions.
    pub load_timeout: Duration,
    /// How long a forked worker may take until it serves.
    pub serve_timeout: Duration,
    /// Processor time that a worker may use over one scan; without it the deadline of
    /// the clock is the only one.
    pub scan_cpu: Option<Duration>,
}

impl EngineCommand {
    /// A program without arguments, with 5 minutes for loading and 30 seconds for a
    /// worker to serve.
    pub fn new(program: impl Into<PathBuf>) -> Self {
        Self {
            program: program.into(),
            args: Vec::new(),
            load_timeout: Duration::from_secs(300),
            serve_timeout: Duration::from_secs(30),
            scan_cpu: None,
        }
    }

    /// Adds an argument.
    pub fn arg(mut self, arg: impl Into<OsString>) -> Self {
        self.args.push(arg.into());
        self
    }
}

/// A running engine program whose definitions are loaded.
#[derive(Debug)]
pub struct EngineProcess {
    shared: Arc<Shared>,
    child: Child,
    reader: Option<JoinHandle<()>>,
    next_worker: AtomicU64,
    serve_timeout: Duration,
    scan_cpu: Option<Duration>,
}

/// What the handles of one engine share.
#[derive(Debug)]
pub(super) struct Shared {
    control: Channel,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Workers with a handle, or with one in the making.
    workers: HashMap<WorkerId, WorkerState>,
    /// The zygote closed its end.
    gone: bool,
}

#[derive(Debug, Default)]
struct WorkerState {
    pid: Option<i32>,
    exit: Option<WorkerExit>,
}

impl EngineProcess {
    /// Starts the program and waits until its definitions are loaded.
    ///
    /// # Errors
    /// See [`StartError`]; nothing of the program is left then.
    pub fn start(command: &EngineCommand) -> Result<(Self, Loaded), StartError> {
        let program = command.program.clone();
        let failed = |source| StartError::Program {
            program: program.clone(),
            source,
        };
        let (ours, theirs) = Channel::pair().map_err(failed)?;
        let child = Command::new(&command.program)
            .args(&command.args)
            .stdin(theirs.into_fd())
            .stdout(Stdio::null())
            .spawn()
            .map_err(failed)?;
        let shared = Arc::new(Shared::new(ours));
        // From here on, dropping `process` ends and reaps the program.
        let mut process = Self {
            shared,
            child,
            reader: None,
            next_worker: AtomicU64::new(1),
            serve_timeout: command.serve_timeout,
            scan_cpu: command.scan_cpu,
        };
        let deadline = Instant::now() + command.load_timeout;
        let loaded = match process.shared.control.receive(Some(deadline)) {
            Ok(Some((ZygoteEvent::Loaded(loaded), _))) => loaded,
            Ok(Some((ZygoteEvent::LoadFailed { problems }, _))) => {
                return Err(StartError::Definitions(problems));
            }
            Ok(Some((other, _))) => {
                let source = IpcError::Malformed(format!("{other:?} before Loaded"));
                return Err(StartError::Protocol { program, source });
            }
            Ok(None) => {
                let status = process
                    .end()
                    .map_or_else(|e| e.to_string(), |s| s.to_string());
                return Err(StartError::Ended { program, status });
            }
            Err(IpcError::TimedOut) => {
                let _ = process.child.kill();
                return Err(StartError::TimedOut { program });
            }
            Err(source) => return Err(StartError::Protocol { program, source }),
        };
        let shared = Arc::clone(&process.shared);
        let reader = std::thread::Builder::new()
            .name("engine-events".to_owned())
            .spawn(move || shared.read_events())
            .map_err(failed)?;
        process.reader = Some(reader);
        Ok((process, loaded))
    }

    /// Forks a worker and waits until it serves.
    ///
    /// # Errors
    /// See [`SpawnError`]; nothing of the worker is left then.
    pub fn spawn_worker(&self) -> Result<WorkerHandle, SpawnError> {
        let worker = self.next_worker.fetch_add(1, Ordering::Relaxed);
        let (ours, theirs) = Channel::pair().map_err(IpcError::from)?;
        if !self.shared.expect(worker) {
            return Err(SpawnError::EngineGone);
        }
        // From here on, dropping `handle` kills the worker and forgets it.
        let handle = WorkerHandle::new(Arc::clone(&self.shared), worker, ours, self.scan_cpu);
        let request = ZygoteRequest::Spawn { worker };
        match self.shared.control.send(&request, Some(theirs.as_fd())) {
            Ok(()) => drop(theirs),
            Err(IpcError::Io(_)) => return Err(SpawnError::EngineGone),
            Err(error) => return Err(error.into()),
        }
        handle.wait_serving(Instant::now() + self.serve_timeout)
    }

    /// The program's process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Whether workers can still be spawned.
    pub fn is_alive(&self) -> bool {
        !self.shared.lock().gone
    }

    fn end(&mut self) -> io::Result<ExitStatus> {
        self.shared.control.shut();
        let deadline = Instant::now() + END_WITHIN;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() >= deadline {
                // Its workers die with it.
                self.child.kill()?;
                return self.child.wait();
            }
            std::thread::sleep(END_POLL);
        }
    }
}

impl Drop for EngineProcess {
    fn drop(&mut self) {
        if self.end().is_err() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if let Some(reader) = self.reader.take() {
            // The reader cannot panic, and ends with the control socket.
            let _ = reader.join();
        }
    }
}

impl Shared {
    pub(super) fn new(control: Channel) -> Self {
        Self {
            control,
            state: Mutex::default(),
            changed: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the zygote is there to be asked for this worker.
    fn expect(&self, worker: WorkerId) -> bool {
        let mut state = self.lock();
        if !state.gone {
            state.workers.insert(worker, WorkerState::default());
        }
        !state.gone
    }

    /// Kills a worker and forgets it.
    pub(super) fn kill_and_forget(&self, worker: WorkerId) {
        self.kill(worker);
        self.lock().workers.remove(&worker);
    }

    /// Kills a worker, wherever it is stuck.
    pub(super) fn kill(&self, worker: WorkerId) {
        // Without a zygote the worker is dead already.
        let _ = self.control.send(&ZygoteRequest::Kill { worker }, None);
    }

    /// Process id of a worker; waits a while for the zygote to report it.
    pub(super) fn pid_of(&self, worker: WorkerId, wait: Duration) -> Option<i32> {
        self.reported(worker, wait, |state| state.pid)
    }

    /// What ended a worker; waits a while for the zygote to report it.
    pub(super) fn exit_of(&self, worker: WorkerId, wait: Duration) -> Option<WorkerExit> {
        self.reported(worker, wait, |state| state.exit.clone())
    }

    fn reported<T>(
        &self,
        worker: WorkerId,
        wait: Duration,
        what: impl Fn(&WorkerState) -> Option<T>,
    ) -> Option<T> {
        let pending = |state: &mut State| {
            !state.gone
                && state
                    .workers
                    .get(&worker)
                    .is_some_and(|state| what(state).is_none())
        };
        let (state, _) = self
            .changed
            .wait_timeout_while(self.lock(), wait, pending)
            .unwrap_or_else(PoisonError::into_inner);
        state.workers.get(&worker).and_then(&what)
    }

    fn read_events(&self) {
        while let Ok(Some((event, _))) = self.control.receive::<ZygoteEvent>(None) {
            let mut state = self.lock();
            // Workers whose handles are gone are of no interest any more.
            match event {
                ZygoteEvent::Spawned { worker, pid } => {
                    if let Some(known) = state.workers.get_mut(&worker) {
                        known.pid = Some(pid);
                    }
                }
                ZygoteEvent::Exited { worker, exit } => {
                    if let Some(known) = state.workers.get_mut(&worker) {
                        known.exit = Some(exit);
                    }
                }
                ZygoteEvent::Loaded(_) | ZygoteEvent::LoadFailed { .. } => break,
            }
            self.changed.notify_all();
        }
        // After a malformed event the zygote is not to be relied on.
        self.control.shut();
        self.lock().gone = true;
        self.changed.notify_all();
    }
}
