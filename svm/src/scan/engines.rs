//! Running engines: one process each, restarted when it dies.
//!
//! ```text
//!   start ──► Up ──the process is gone──► Down ──after a while──► Starting ──► Up
//!              │                           ▲                          │
//!              │                           └────────── failed ────────┘
//!              └──stop──► Stopped, from any state
//! ```
//!
//! An [`EngineSet`] is one generation of definitions, loaded; it ends when the last
//! scan that began with it is done. An engine whose definitions two generations have
//! in common belongs to both sets, and its process ends with the last of them. Owns
//! the processes, and what one generation remembers of contents that kill; their
//! workers are the [`Crew`]'s.
//!
//! **Invariant:** an engine that is not `Up` gives no worker, and without a worker
//! of each engine no content is called clean.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use palisade_protocol::content::ContentId;
use palisade_protocol::ids::TenantId;
use palisade_protocol::scan::ScanOptions;
use palisade_protocol::verdict::Generations;
use palisade_worker::client::{EngineCommand, EngineProcess, SpawnError, StartError, WorkerHandle};

use super::crew::{Crew, Reserve};
use super::overlong::{self, Overlong};
use super::poison::{MAX_REMEMBERED, Poison};
use super::tally::End;
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
    poison: Mutex<Poison<PoisonKey>>,
    overlong: Mutex<Overlong<PoisonKey, End>>,
}

/// Which content killed. Of a tenant: what another's contents do must not show.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct PoisonKey {
    /// Whose.
    pub tenant: TenantId,
    /// Which.
    pub content: ContentId,
    /// What was looked into.
    pub options: ScanOptions,
}

impl EngineSet {
    /// Puts loaded engines together.
    pub fn new(number: u64, generations: Generations, engines: Vec<Arc<Engine>>) -> Self {
        for engine in &engines {
            engine.users.fetch_add(1, Ordering::AcqRel);
        }
        Self {
            number,
            generations,
            engines,
            lists: HashLists::default(),
            poison: Mutex::new(Poison::new(MAX_REMEMBERED)),
            overlong: Mutex::new(Overlong::new(overlong::MAX_REMEMBERED)),
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

    /// What these definitions' engines remember of contents that kill.
    pub fn poison(&self) -> MutexGuard<'_, Poison<PoisonKey>> {
        self.poison.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is remembered of contents that took them too long.
    pub fn overlong(&self) -> MutexGuard<'_, Overlong<PoisonKey, End>> {
        self.overlong.lock().unwrap_or_else(PoisonError::into_inner)
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
            if engine.users.fetch_sub(1, Ordering::AcqRel) == 1 {
                engine.leave();
            }
        }
    }
}

/// An engine of a set, or of several that have its definitions in common.
#[derive(Debug)]
pub struct Engine {
    kind: EngineKind,
    fingerprint: [u8; 16],
    /// The engine's own version, as its program said when it loaded them.
    version: String,
    /// Sets that it belongs to.
    users: AtomicUsize,
    command: Mutex<EngineCommand>,
    reserve: Reserve,
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
enum State {
    Up(Arc<Crew>),
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
    /// Starts the process, loads the definitions of this fingerprint, and sees a worker
    /// find its canary.
    ///
    /// # Errors
    /// As [`EngineProcess::start`]; a worker that does not serve counts as
    /// definitions that cannot be used.
    pub fn start(
        kind: EngineKind,
        fingerprint: [u8; 16],
        command: EngineCommand,
        reserve: Reserve,
    ) -> Result<Arc<Self>, StartError> {
        let (crew, version) = proven(kind, &command, reserve)?;
        Ok(Arc::new(Self {
            kind,
            fingerprint,
            version,
            users: AtomicUsize::new(0),
            command: Mutex::new(command),
            reserve,
            state: Mutex::new(State::Up(Arc::new(crew))),
            changed: Condvar::new(),
        }))
    }

    /// Which engine.
    pub fn kind(&self) -> EngineKind {
        self.kind
    }

    /// Of the definitions that it loaded.
    pub fn fingerprint(&self) -> [u8; 16] {
        self.fingerprint
    }

    /// The version of the engine that gives its verdicts.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// The same definitions are in another place from here on: a restart of the
    /// process loads them there.
    pub fn moved(&self, command: EngineCommand) {
        *self.command() = command;
    }

    /// Whether it gives workers. An engine whose process is found gone is started
    /// again.
    pub fn is_up(self: &Arc<Self>) -> bool {
        let gone = match &*self.lock() {
            State::Up(crew) if crew.process().is_alive() => return true,
            State::Up(crew) => Arc::clone(crew),
            State::Down | State::Stopped => return false,
        };
        self.went_down(gone);
        false
    }

    /// A worker that found its canary, and has seen no other tenant's content.
    ///
    /// # Errors
    /// [`NoWorker`]; an engine whose process is gone is being started again then.
    pub fn worker(self: &Arc<Self>, tenant: &TenantId) -> Result<WorkerHandle, NoWorker> {
        self.worker_by(|crew| crew.take(tenant))
    }

    /// A worker that was forked just now: whatever ended others has not ended it.
    ///
    /// # Errors
    /// As [`Self::worker`].
    pub fn fresh_worker(self: &Arc<Self>) -> Result<WorkerHandle, NoWorker> {
        self.worker_by(Crew::fresh)
    }

    fn worker_by(
        self: &Arc<Self>,
        take: impl FnOnce(&Crew) -> Result<WorkerHandle, SpawnError>,
    ) -> Result<WorkerHandle, NoWorker> {
        let no_worker = |detail: &dyn std::fmt::Display| NoWorker {
            engine: self.kind.name(),
            detail: detail.to_string(),
        };
        let crew = match &*self.lock() {
            State::Up(crew) => Arc::clone(crew),
            State::Down => return Err(no_worker(&"it is being started again")),
            State::Stopped => return Err(no_worker(&"it is stopped")),
        };
        match take(&crew) {
            Ok(worker) => Ok(worker),
            Err(error) => {
                tracing::error!(engine = self.kind.name(), %error, "no worker");
                if matches!(error, SpawnError::EngineGone) || !crew.process().is_alive() {
                    self.went_down(crew);
                }
                Err(no_worker(&error))
            }
        }
    }

    /// Takes a worker back that may go on.
    pub fn give_back(&self, tenant: TenantId, worker: WorkerHandle) {
        let crew = match &*self.lock() {
            State::Up(crew) => Arc::clone(crew),
            State::Down | State::Stopped => return,
        };
        // If the process is another by now, the worker is dead, and found to be.
        crew.give_back(tenant, worker);
    }

    fn went_down(self: &Arc<Self>, gone: Arc<Crew>) {
        let mut state = self.lock();
        // Several lanes notice; the first acts.
        if !matches!(&*state, State::Up(crew) if Arc::ptr_eq(crew, &gone)) {
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
            .spawn(move || {
                // Its end is waited for here, and by nobody who has a request to serve.
                drop(gone);
                restart(kind, &engine);
            });
        if let Err(error) = thread {
            tracing::error!(engine = kind.name(), %error, "it cannot be started again");
        }
    }

    fn stop(&self) {
        let mut state = self.lock();
        if let State::Up(crew) = &*state
            && let Ok(pid) = i32::try_from(crew.process().pid())
        {
            // It is our child and not reaped yet: the number is still its own.
            // Its workers die with it.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        let before = std::mem::replace(&mut *state, State::Stopped);
        drop(state);
        self.changed.notify_all();
        drop(before);
    }

    /// As [`Self::stop`], but lets the process end by itself, workers first.
    fn leave(&self) {
        let before = std::mem::replace(&mut *self.lock(), State::Stopped);
        self.changed.notify_all();
        drop(before);
    }

    fn command(&self) -> MutexGuard<'_, EngineCommand> {
        self.command.lock().unwrap_or_else(PoisonError::into_inner)
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

/// Starts the process and sees a worker of it find its canary; gives the engine's version,
/// too.
fn proven(
    kind: EngineKind,
    command: &EngineCommand,
    reserve: Reserve,
) -> Result<(Crew, String), StartError> {
    let (process, loaded) = EngineProcess::start(command)?;
    for warning in &loaded.warnings {
        tracing::warn!(engine = kind.name(), %warning, "definitions");
    }
    let program = || command.program.clone();
    let worker = process
        .spawn_worker()
        .map_err(|source| StartError::NoWorker {
            program: program(),
            source,
        })?;
    for gap in worker.gaps() {
        tracing::warn!(
            engine = kind.name(),
            gap = gap.as_str(),
            "the sandbox is not whole"
        );
    }
    tracing::info!(
        engine = kind.name(),
        version = loaded.engine_version.as_str(),
        signatures = loaded.signatures,
        load_ms = loaded.load_ms,
        pid = process.pid(),
        "engine loaded"
    );
    let crew = Crew::start(process, worker, reserve).map_err(|source| StartError::Program {
        program: program(),
        source,
    })?;
    Ok((crew, loaded.engine_version.to_string()))
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
        let command = strong.command().clone();
        match proven(kind, &command, strong.reserve) {
            Ok((crew, version)) => {
                if version != strong.version {
                    // Its verdicts count as the version's before, which at the next start
                    // are older ones, and are given again.
                    tracing::warn!(
                        engine = kind.name(),
                        before = strong.version,
                        version,
                        "its program was replaced while it ran"
                    );
                }
                let mut state = strong.lock();
                if matches!(*state, State::Down) {
                    *state = State::Up(Arc::new(crew));
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
