//! Running engines: one process each, restarted when it dies.
//!
//! ```text
//!   start ──► Up ──the process is gone──► Down ──after a while──► Starting ──► Up
//!              │                           ▲                          │
//!              │                           └────────── failed ────────┘
//!              └──stop──► Stopped, from any state
//! ```
//!
//! An [`EngineSet`] is one generation of definitions, loaded; it ends, and its
//! processes with it, when the last scan that began with it is done. Owns the
//! processes; does not own workers, which belong to the lanes.
//!
//! **Invariant:** an engine that is not `Up` gives no worker, and without a worker
//! of each engine no content is called clean.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use palisade_protocol::verdict::Generations;
use palisade_worker::client::{EngineCommand, EngineProcess, SpawnError, StartError, WorkerHandle};

use crate::engine::EngineKind;
use crate::hash_lists::HashLists;

/// First and longest wait before an engine is started again.
const BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// One generation of definitions, loaded.
#[derive(Debug)]
pub struct EngineSet {
    number: u64,
    generations: Generations,
    engines: Vec<Arc<Engine>>,
    lists: HashLists,
}

impl EngineSet {
    /// Puts loaded engines together.
    pub fn new(number: u64, generations: Generations, engines: Vec<Arc<Engine>>) -> Self {
        Self {
            number,
            generations,
            engines,
            lists: HashLists::default(),
        }
    }

    /// The same, with hashes that are allowed and denied.
    pub fn with_lists(mut self, lists: HashLists) -> Self {
        self.lists = lists;
        self
    }

    /// Hashes that are allowed and denied.
    pub fn lists(&self) -> &HashLists {
        &self.lists
    }

    /// The generation's number.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// What verdicts say of it.
    pub fn generations(&self) -> &Generations {
        &self.generations
    }

    /// Its engines, in the order in which a content passes them.
    pub fn engines(&self) -> &[Arc<Engine>] {
        &self.engines
    }

    /// The engines that cannot scan now.
    pub fn down(&self) -> Vec<&'static str> {
        let down = self.engines.iter().filter(|engine| !engine.is_up());
        down.map(|engine| engine.kind.name()).collect()
    }

    /// Ends the processes now, whatever they do.
    pub fn stop(&self) {
        for engine in &self.engines {
            engine.stop();
        }
    }
}

impl Drop for EngineSet {
    fn drop(&mut self) {
        for engine in &self.engines {
            engine.leave();
        }
    }
}

/// An engine of a set.
#[derive(Debug)]
pub struct Engine {
    kind: EngineKind,
    command: EngineCommand,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
enum State {
    Up(Arc<EngineProcess>),
    /// A thread is about to start it, or does.
    Down,
    Stopped,
}

/// Why there is no worker.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{engine}: {detail}")]
pub struct NoWorker {
    /// Which engine.
    pub engine: &'static str,
    /// What happened.
    pub detail: String,
}

impl Engine {
    /// Starts the process, loads the definitions, and sees a worker find its canary.
    ///
    /// # Errors
    /// As [`EngineProcess::start`]; a worker that does not serve counts as
    /// definitions that cannot be used.
    pub fn start(kind: EngineKind, command: EngineCommand) -> Result<Arc<Self>, StartError> {
        let process = proven(kind, &command)?;
        Ok(Arc::new(Self {
            kind,
            command,
            state: Mutex::new(State::Up(Arc::new(process))),
            changed: Condvar::new(),
        }))
    }

    /// Which engine.
    pub fn kind(&self) -> EngineKind {
        self.kind
    }

    /// Whether it gives workers. An engine whose process is found gone is started
    /// again.
    pub fn is_up(self: &Arc<Self>) -> bool {
        let process = match &*self.lock() {
            State::Up(process) => Arc::clone(process),
            State::Down | State::Stopped => return false,
        };
        let alive = process.is_alive();
        if !alive {
            self.went_down(&process);
        }
        alive
    }

    /// Forks a worker that found its canary.
    ///
    /// # Errors
    /// [`NoWorker`]; an engine whose process is gone is being started again then.
    pub fn worker(self: &Arc<Self>) -> Result<WorkerHandle, NoWorker> {
        let no_worker = |detail: &dyn std::fmt::Display| NoWorker {
            engine: self.kind.name(),
            detail: detail.to_string(),
        };
        let process = match &*self.lock() {
            State::Up(process) => Arc::clone(process),
            State::Down => return Err(no_worker(&"it is being started again")),
            State::Stopped => return Err(no_worker(&"it is stopped")),
        };
        match process.spawn_worker() {
            Ok(worker) => Ok(worker),
            Err(error) => {
                tracing::error!(engine = self.kind.name(), %error, "no worker");
                if matches!(error, SpawnError::EngineGone) || !process.is_alive() {
                    self.went_down(&process);
                }
                Err(no_worker(&error))
            }
        }
    }

    fn went_down(self: &Arc<Self>, gone: &Arc<EngineProcess>) {
        let mut state = self.lock();
        // Several lanes notice; the first acts.
        if !matches!(&*state, State::Up(process) if Arc::ptr_eq(process, gone)) {
            return;
        }
        *state = State::Down;
        drop(state);
        tracing::error!(
            engine = self.kind.name(),
            "its process is gone; it is started again"
        );
        let engine = Arc::downgrade(self);
        let kind = self.kind;
        let thread = std::thread::Builder::new()
            .name(format!("{}-restart", self.kind.folder()))
            .spawn(move || restart(kind, &engine));
        if let Err(error) = thread {
            tracing::error!(engine = kind.name(), %error, "it cannot be started again");
        }
    }

    fn stop(&self) {
        let mut state = self.lock();
        if let State::Up(process) = &*state
            && let Ok(pid) = i32::try_from(process.pid())
        {
            // It is our child and not reaped yet: the number is still its own.
            // Its workers die with it.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        *state = State::Stopped;
        self.changed.notify_all();
    }

    /// As [`Self::stop`], but lets the process end by itself, workers first.
    fn leave(&self) {
        let before = std::mem::replace(&mut *self.lock(), State::Stopped);
        self.changed.notify_all();
        drop(before);
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits; false if it was stopped meanwhile.
    fn rest(&self, wait: Duration) -> bool {
        let deadline = Instant::now() + wait;
        let mut state = self.lock();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if matches!(*state, State::Stopped) {
                return false;
            }
            if left.is_zero() {
                return true;
            }
            state = self
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}

fn proven(kind: EngineKind, command: &EngineCommand) -> Result<EngineProcess, StartError> {
    let (process, loaded) = EngineProcess::start(command)?;
    for warning in &loaded.warnings {
        tracing::warn!(engine = kind.name(), %warning, "definitions");
    }
    let worker = process.spawn_worker().map_err(|error| StartError::Ended {
        program: command.program.clone(),
        status: error.to_string(),
    })?;
    drop(worker);
    tracing::info!(
        engine = kind.name(),
        version = loaded.engine_version.as_str(),
        signatures = loaded.signatures,
        load_ms = loaded.load_ms,
        pid = process.pid(),
        "engine loaded"
    );
    Ok(process)
}

/// Starts an engine again, until it is up or nobody needs it any more.
fn restart(kind: EngineKind, engine: &Weak<Engine>) {
    let mut wait = BACKOFF.0;
    loop {
        let Some(strong) = engine.upgrade() else {
            return;
        };
        if !strong.rest(wait) {
            return;
        }
        match proven(kind, &strong.command) {
            Ok(process) => {
                let mut state = strong.lock();
                if matches!(*state, State::Down) {
                    *state = State::Up(Arc::new(process));
                }
                return;
            }
            Err(error) => {
                wait = (wait * 2).min(BACKOFF.1);
                let again_s = wait.as_secs();
                tracing::error!(engine = kind.name(), %error, again_s, "it does not start");
            }
        }
    }
}
