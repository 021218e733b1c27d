//! The thread that keeps verdicts on the disk, and the handle that everybody else has.
//!
//! ```text
//!  put, forget, hear ─► map (in memory) ─► noted ─► thread: batch ─► database
//!                                                       │ cannot be written
//!                    all of it, a minute later ◄────────┴─ said once, file removed
//! ```
//!
//! **Invariant:** nobody but this thread waits for the disk. What is noted is bounded,
//! and what does not fit is written anew as a whole, so that nothing is lost but by a
//! kill: then at most the last seconds, which are asked for again. What takes something
//! back is written at once.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

use palisade_protocol::content::ContentId;
use palisade_protocol::identity::Identity;
use palisade_protocol::scan::ScanOptions;
use palisade_protocol::verdict::{Generations, Verdict};
use serde::Serialize;
use tokio::sync::Semaphore;

use super::Known;
use super::database::{self, Database, Held, Seal, Unusable};
use super::kept::Kept;
use crate::spool::now_ms;

/// How long a verdict waits for others to share its batch.
const GATHER: Duration = Duration::from_secs(2);
/// How often it is written that definitions are in force still.
const TIME_EVERY: Duration = Duration::from_secs(600);
/// After a failed write, how long until the next.
const RETRY: Duration = Duration::from_secs(60);
/// How long a start may wait for the disk; what comes later is taken then.
const LOAD_WITHIN: Duration = Duration::from_secs(2);
/// How long an end may.
const CLOSE_WITHIN: Duration = Duration::from_secs(1);
/// Files that are hashed at a time in order to be found here, besides those that are
/// hashed to be asked about.
const HASHING: usize = 2;
/// Bytes of the thread's stack.
const STACK_BYTES: usize = 512 * 1024;

/// For `status`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Snapshot {
    /// Contents whose verdict is kept.
    pub contents: usize,
    /// Whether these are believed now.
    pub believed: bool,
    /// What earlier processes had kept.
    pub loaded: usize,
    /// Files that were answered from it since the start.
    pub answered: u64,
    /// Whether the disk has all of it.
    pub saved: bool,
    /// Why the disk has none of it, if so.
    pub problem: Option<String>,
}

struct State {
    kept: Kept,
    loaded: usize,
    answered: u64,
    writing: bool,
    problem: Option<String>,
    closing: bool,
    closed: bool,
}

struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    hashing: Semaphore,
}

/// The handle. Clones share all.
#[derive(Clone)]
pub struct Keeper(Arc<Shared>);

impl Keeper {
    /// Starts the thread, and waits a little for what earlier processes kept.
    pub fn start(state: &Path, identity: &Identity, kept: Kept) -> Self {
        let seal = Seal::new(identity, kept.options());
        let path = database::file(state);
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                kept,
                loaded: 0,
                answered: 0,
                writing: false,
                problem: None,
                closing: false,
                closed: false,
            }),
            changed: Condvar::new(),
            hashing: Semaphore::new(HASHING),
        });
        let (loaded, load) = mpsc::channel();
        let writer = Writer {
            path,
            seal,
            shared: Arc::clone(&shared),
            database: None,
        };
        let thread = std::thread::Builder::new()
            .name("verdicts".to_owned())
            .stack_size(STACK_BYTES)
            .spawn(move || writer.run(&loaded));
        match thread {
            Ok(_) => {
                let _ = load.recv_timeout(LOAD_WITHIN);
            }
            Err(error) => {
                let mut state = lock(&shared);
                state.problem = Some(format!("no thread to write with: {error}"));
                state.closed = true;
            }
        }
        Self(shared)
    }

    /// A Protection Server said which definitions are in force.
    pub fn hear(&self, generations: &Generations) {
        self.change(|kept| {
            kept.hear(generations, now_ms());
        });
    }

    /// Verdicts are believed for so many seconds while no Protection Server is heard of.
    pub fn believe_for(&self, max_age_s: u32) {
        self.change(|kept| kept.believe_for(max_age_s));
    }

    /// Keeps a verdict.
    pub fn put(&self, known: &Known, size: u64, generations: &Generations) {
        self.change(|kept| kept.put(known, size, generations));
    }

    /// Forgets these contents.
    pub fn forget(&self, contents: &[ContentId]) {
        self.change(|kept| kept.forget(contents));
    }

    fn change(&self, change: impl FnOnce(&mut Kept)) {
        let mut state = lock(&self.0);
        let before = (state.kept.is_dirty(), state.kept.is_urgent());
        change(&mut state.kept);
        if before != (state.kept.is_dirty(), state.kept.is_urgent()) {
            self.0.changed.notify_one();
        }
    }

    /// Whether a content of this size may be known now.
    pub fn may_know(&self, size: u64) -> bool {
        lock(&self.0).kept.may_know(size, now_ms())
    }

    /// The verdict of a content, and the definitions that gave it.
    pub fn get(&self, content: &ContentId, size: u64) -> Option<(Verdict, Generations)> {
        let mut state = lock(&self.0);
        let (verdict, common) = state.kept.get(content, size, now_ms())?;
        let found = (verdict, common.generations.clone());
        state.answered += 1;
        Some(found)
    }

    /// Turns to hash files.
    pub fn hashing(&self) -> &Semaphore {
        &self.0.hashing
    }

    /// What there is to say of it.
    pub fn snapshot(&self) -> Snapshot {
        let state = lock(&self.0);
        Snapshot {
            contents: state.kept.len(),
            believed: state.kept.is_believed(now_ms()),
            loaded: state.loaded,
            answered: state.answered,
            saved: !state.kept.is_dirty() && !state.writing && state.problem.is_none(),
            problem: state.problem.clone(),
        }
    }

    /// Writes what waits, within a moment, and ends the thread.
    pub fn close(&self) {
        let until = Instant::now() + CLOSE_WITHIN;
        let mut state = lock(&self.0);
        state.closing = true;
        self.0.changed.notify_all();
        while !state.closed && Instant::now() < until {
            let left = until.saturating_duration_since(Instant::now());
            state = self.0.wait(state, left);
        }
    }
}

fn lock(shared: &Shared) -> MutexGuard<'_, State> {
    shared.state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn wait<'a>(&self, state: MutexGuard<'a, State>, most: Duration) -> MutexGuard<'a, State> {
        self.changed
            .wait_timeout(state, most)
            .unwrap_or_else(PoisonError::into_inner)
            .0
    }
}

struct Writer {
    path: PathBuf,
    seal: Seal,
    shared: Arc<Shared>,
    database: Option<Database>,
}

impl Writer {
    fn run(mut self, loaded: &mpsc::Sender<()>) {
        let held = self.load();
        {
            let mut state = lock(&self.shared);
            match held {
                Some((common, entries)) => {
                    state.kept.take(common, entries);
                    state.loaded = state.kept.len();
                }
                None => state.kept.take_nothing(),
            }
        }
        let _ = loaded.send(());
        loop {
            let (closing, with_time) = self.wait();
            self.write(with_time || closing);
            if closing {
                self.database = None;
                lock(&self.shared).closed = true;
                self.shared.changed.notify_all();
                return;
            }
        }
    }

    /// Until something is to be written. Says whether it is the last time, and whether
    /// the time at which definitions were heard of is due.
    fn wait(&self) -> (bool, bool) {
        let time_at = Instant::now() + TIME_EVERY;
        let mut write_at: Option<Instant> = None;
        let mut state = lock(&self.shared);
        let earliest = match state.problem {
            Some(_) => Instant::now() + RETRY,
            None => Instant::now(),
        };
        loop {
            let now = Instant::now();
            if state.closing || now >= time_at {
                return (state.closing, now >= time_at);
            }
            if state.kept.is_dirty() || state.problem.is_some() {
                let gathered = match state.kept.is_urgent() {
                    true => now,
                    false => *write_at.get_or_insert(now + GATHER),
                };
                let at = gathered.max(earliest);
                if now >= at {
                    return (false, false);
                }
                state = self.shared.wait(state, (at - now).min(time_at - now));
            } else {
                state = self.shared.wait(state, time_at - now);
            }
        }
    }

    fn write(&mut self, with_time: bool) {
        let batch = {
            let mut state = lock(&self.shared);
            let anew = self.database.is_none();
            let batch = state.kept.batch(anew, with_time);
            state.writing = batch.is_some();
            batch
        };
        let Some(batch) = batch else { return };
        let (path, seal) = (&self.path, &self.seal);
        let database = &mut self.database;
        let written = guarded(|| {
            if database.is_none() {
                *database = Some(Database::open(path, seal.clone())?.0);
            }
            database.as_ref().map_or(Ok(()), |open| open.write(&batch))
        });
        lock(&self.shared).writing = false;
        match written {
            Ok(()) => {
                if lock(&self.shared).problem.take().is_some() {
                    tracing::info!(file = %self.path.display(), "remembered verdicts are kept on the disk again");
                }
            }
            Err(error) => self.lost(&error),
        }
    }

    /// What is on the disk is not what is in memory: it is removed, and written anew later.
    fn lost(&mut self, error: &str) {
        self.database = None;
        remove(&self.path);
        let problem = format!("{error}; they are kept in memory alone");
        let before = lock(&self.shared).problem.replace(problem);
        if before.is_none() {
            tracing::warn!(
                file = %self.path.display(), %error,
                "remembered verdicts cannot be kept on the disk: a restart begins without them; \
                 make room, or mend the disk"
            );
        }
    }

    fn load(&mut self) -> Option<Held> {
        if !self.path.exists() {
            // Made with the first batch.
            return None;
        }
        let (path, seal) = (self.path.clone(), self.seal.clone());
        match guarded(|| Database::open(&path, seal)) {
            Ok((database, held)) => {
                self.database = Some(database);
                held
            }
            Err(error) => {
                tracing::warn!(
                    file = %self.path.display(), %error,
                    "the remembered verdicts cannot be used, and begin anew"
                );
                remove(&self.path);
                None
            }
        }
    }
}

/// A file that somebody changed can make redb panic: that is an error as any other.
fn guarded<R>(work: impl FnOnce() -> Result<R, Unusable>) -> Result<R, String> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(done) => done.map_err(|error| error.to_string()),
        Err(_) => Err("it is damaged".to_owned()),
    }
}

fn remove(path: &Path) {
    if let Err(error) = std::fs::remove_file(path)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(file = %path.display(), %error, "it cannot be removed");
    }
}

/// Keeps nothing on any disk: for tests, and where nothing is to be remembered.
impl Default for Keeper {
    fn default() -> Self {
        Self(Arc::new(Shared {
            state: Mutex::new(State {
                kept: Kept::new(0, ScanOptions::default(), 0),
                loaded: 0,
                answered: 0,
                writing: false,
                problem: None,
                closing: false,
                closed: true,
            }),
            changed: Condvar::new(),
            hashing: Semaphore::new(HASHING),
        }))
    }
}
