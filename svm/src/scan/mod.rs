//! Scanning: from sealed content to a verdict.
//!
//! ```text
//!  submit ──► admission queue ──► lane 1 ──┬─ a worker of each engine ──► End
//!                  ▲         └──► lane 2 ──┘         │
//!                  └───────── stopped to give way ───┘
//! ```
//!
//! | module | owns |
//! | --- | --- |
//! | [`engines`] | engine processes, and their restarts |
//! | [`crew`] | one process' workers: idle ones by tenant, spares |
//! | [`pool`] | which idle worker may take which content, and how long it lives (pure) |
//! | [`lane`] | one thread, one content at a time through all engines |
//! | [`warden`], [`stop`] | long scans give way: when it is time, and how |
//! | [`rerun`] | which engines a content needs (pure) |
//! | [`poison`] | contents that killed twice (pure) |
//! | [`overlong`] | contents that took too long, and are left alone for a while (pure) |
//! | [`tally`] | from what engines say to one verdict (pure) |
//! | [`trial`] | scans with a set that is not in force, to check it |
//! | this | the queue's driver, the active set, and the load |
//!
//! What one engine unpacks is scanned by the other in the same lane, while the first
//! goes on; no lane ever waits for a worker that another holds.

pub mod crew;
pub mod engines;
mod lane;
pub mod overlong;
pub mod poison;
pub mod pool;
mod rerun;
mod stop;
pub mod tally;
pub mod trial;
mod warden;

use std::collections::HashMap;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use palisade_protocol::content::ContentId;
use palisade_protocol::ids::{AgentId, TenantId};
use palisade_protocol::scan::{LoadHint, ScanClass, ScanOptions};
use palisade_protocol::verdict::Generations;
use palisade_worker::client::SealedContent;
use tokio::sync::oneshot;
use tracing::Span;

use crate::admission::{Ask, Bounds, Layout, Queue, Ticket};
use crate::failure::Failure;
use crate::metrics::{Ended, Metrics};
use engines::{EngineSet, NoWorker};
use stop::Stop;
use tally::End;

/// One content to scan.
#[derive(Debug)]
pub struct Job {
    /// Whose content.
    pub tenant: TenantId,
    /// Which content.
    pub content: ContentId,
    /// Its bytes, verified.
    pub bytes: SealedContent,
    /// What to look into.
    pub options: ScanOptions,
    /// The definitions under which it was found clean before.
    pub clean_by: Option<Generations>,
    /// The request that it is part of, for the log.
    pub span: Span,
    /// Where the result goes.
    pub reply: oneshot::Sender<Done>,
}

/// What became of a job.
#[derive(Debug)]
pub struct Done {
    /// The verdict, or that an engine could not be asked.
    pub end: Result<End, NoWorker>,
    /// The definitions that gave it.
    pub generations: Generations,
    /// The content comes back, so that it can be hashed.
    pub bytes: SealedContent,
    /// Its SHA-256, if that was needed already.
    pub sha256: Option<[u8; 32]>,
}

/// Who asks, and how urgently.
#[derive(Debug, Clone)]
pub struct Asker {
    /// Whose guest.
    pub tenant: TenantId,
    /// Whose request.
    pub agent: AgentId,
    /// On-access or on-demand.
    pub class: ScanClass,
    /// When the answer is of no more use.
    pub deadline: Option<Instant>,
}

/// What the lanes do and what waits for them, at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Occupancy {
    /// Lanes that there are.
    pub lanes: usize,
    /// Lanes that scan.
    pub busy: usize,
    /// Contents that wait for one.
    pub waiting: usize,
}

/// The scanner. Clones share it.
#[derive(Debug, Clone)]
pub struct Scanner {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    started: Instant,
    layout: Layout,
    lane: lane::Bounds,
    queue: Mutex<State>,
    /// Something can be started, or a lane has something else to do.
    ready: Condvar,
    /// On-access waits, and no lane is free: the warden's.
    crowded: Condvar,
    metrics: Arc<Metrics>,
    active: Mutex<Option<Arc<EngineSet>>>,
    /// Every set that a lane may still use, so that a stop reaches them all.
    sets: Mutex<Vec<Weak<EngineSet>>>,
    /// Where sets go that a lane has done with; none once the scanner ended.
    retired: Mutex<Option<mpsc::Sender<Arc<EngineSet>>>>,
}

/// A job, since when there is one, and how long it waited for its first lane.
#[derive(Debug)]
struct Waiting {
    job: Job,
    since: Instant,
    waited: Option<Duration>,
}

#[derive(Debug)]
struct State {
    jobs: Queue<TenantId, AgentId, Waiting>,
    /// One for each scan that runs.
    stops: HashMap<Ticket, Arc<Stop>>,
    stopping: bool,
}

/// The lanes' threads, to be waited for.
#[derive(Debug)]
pub struct Lanes {
    lanes: Vec<JoinHandle<()>>,
    warden: JoinHandle<()>,
    /// Lets go of sets that lanes have done with: the last one that does waits until
    /// the engines' processes have ended, which no scan must do.
    retiring: JoinHandle<()>,
}

impl Scanner {
    /// Starts the lanes, each of which gives each engine `timeout` for one
    /// content, and each worker `recycle_after` contents.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn start(
        layout: Layout,
        timeout: Duration,
        recycle_after: u64,
        bounds: Bounds,
        metrics: Arc<Metrics>,
        first: Arc<EngineSet>,
    ) -> std::io::Result<(Self, Lanes)> {
        let (retire, retired) = mpsc::channel::<Arc<EngineSet>>();
        let retiring = std::thread::Builder::new()
            .name("retiring".to_owned())
            .spawn(move || retired.into_iter().for_each(drop))?;
        let shared = Arc::new(Shared {
            started: Instant::now(),
            layout,
            lane: lane::Bounds {
                timeout,
                recycle_after,
                poisoned: Arc::default(),
            },
            queue: Mutex::new(State {
                jobs: Queue::new(bounds, layout),
                stops: HashMap::new(),
                stopping: false,
            }),
            ready: Condvar::new(),
            crowded: Condvar::new(),
            metrics,
            sets: Mutex::new(vec![Arc::downgrade(&first)]),
            active: Mutex::new(Some(first)),
            retired: Mutex::new(Some(retire)),
        });
        let mut threads = Vec::new();
        // A thread is no lane: which of them is on which is the queue's to say.
        for number in 0..layout.all() {
            let shared = Arc::clone(&shared);
            let thread = std::thread::Builder::new()
                .name(format!("lane-{number}"))
                .spawn(move || lane::run(&shared))?;
            threads.push(thread);
        }
        let warden = std::thread::Builder::new()
            .name("warden".to_owned())
            .spawn({
                let shared = Arc::clone(&shared);
                move || warden::run(&shared)
            })?;
        let lanes = Lanes {
            lanes: threads,
            warden,
            retiring,
        };
        Ok((Self { shared }, lanes))
    }

    /// Puts another set in force. Scans in flight end with the one they have.
    /// Blocks until the processes that nobody uses any more have ended.
    pub fn activate(&self, set: Arc<EngineSet>) {
        self.shared.remember(&set);
        let generation = set.number();
        let before = self.shared.active().replace(set);
        tracing::info!(generation, "definitions are in force");
        // Ends the processes, unless a lane still uses them.
        drop(before);
        // Idle lanes let go of their workers of the old set; under the lock, so that
        // none falls asleep between its look and its wait.
        let _state = self.shared.state();
        self.shared.ready.notify_all();
    }

    /// The definitions in force; empty when there are none.
    pub fn generations(&self) -> Generations {
        // Under the lock and without a share: whoever drops a set's last share waits
        // for its processes.
        let active = self.shared.active();
        active
            .as_ref()
            .map(|set| set.generations().clone())
            .unwrap_or_default()
    }

    /// Whether a request like this would be queued now: asked before its content
    /// is.
    ///
    /// # Errors
    /// [`Failure::Queue`], [`Failure::NoEngine`] or [`Failure::Stopping`].
    pub fn check(&self, asker: &Asker) -> Result<(), Failure> {
        match self.shared.active().as_ref() {
            None => return Err(Failure::NoEngine("no definitions are loaded".to_owned())),
            Some(set) => {
                let down = set.down();
                if !down.is_empty() && down.len() == set.engines().len() {
                    return Err(Failure::NoEngine(format!("{} is down", down.join(", "))));
                }
            }
        }
        let state = self.shared.state();
        if state.stopping {
            return Err(Failure::Stopping);
        }
        let (ask, now_us) = self.shared.ask(asker);
        state.jobs.check(&ask, now_us).map_err(Failure::from)
    }

    /// Queues a content.
    ///
    /// # Errors
    /// As [`Self::check`].
    pub fn submit(&self, asker: &Asker, job: Job) -> Result<(), Failure> {
        self.submit_if(asker, job, |_| true).map(|_| ())
    }

    /// Queues a content if `fits` says so, which sees the lanes and the queue as they are
    /// when the content would join it; gives whether it did.
    ///
    /// # Errors
    /// As [`Self::check`].
    pub fn submit_if(
        &self,
        asker: &Asker,
        job: Job,
        fits: impl FnOnce(&Occupancy) -> bool,
    ) -> Result<bool, Failure> {
        let mut state = self.shared.state();
        if state.stopping {
            return Err(Failure::Stopping);
        }
        if !fits(&self.shared.occupancy(&state)) {
            return Ok(false);
        }
        let (ask, now_us) = self.shared.ask(asker);
        let waiting = Waiting {
            job,
            since: Instant::now(),
            waited: None,
        };
        state
            .jobs
            .push(ask, waiting, now_us)
            .map_err(|(busy, _)| busy)?;
        self.shared.tell(state);
        Ok(true)
    }

    /// What the lanes do at this moment.
    pub fn occupancy(&self) -> Occupancy {
        self.shared.occupancy(&self.shared.state())
    }

    /// Load at this moment.
    pub fn load(&self) -> LoadHint {
        let (work, wait_ms) = {
            let jobs = &self.shared.state().jobs;
            let running = jobs.on_lanes() + jobs.aside();
            (running + jobs.len(), jobs.wait_ms())
        };
        let permille = (work * 1000).div_ceil(self.lanes());
        LoadHint {
            load_permille: u16::try_from(permille).unwrap_or(u16::MAX),
            queue_wait_ms: wait_ms,
        }
    }

    /// Contents of a class that wait for a lane.
    pub fn waiting(&self, class: ScanClass) -> usize {
        self.shared.state().jobs.waiting(class)
    }

    /// Contents that gave way and wait for a side lane.
    pub fn waiting_long(&self) -> usize {
        self.shared.state().jobs.waiting_long()
    }

    /// Scans at a time, but for those on side lanes.
    pub fn lanes(&self) -> usize {
        self.shared.layout.lanes.max(1)
    }

    /// Engines of the set in force that cannot scan now.
    pub fn down(&self) -> Vec<&'static str> {
        let active = self.shared.active();
        active.as_ref().map(|set| set.down()).unwrap_or_default()
    }

    /// Lanes that scan.
    pub fn busy(&self) -> usize {
        self.shared.state().jobs.on_lanes()
    }

    /// Long scans on side lanes.
    pub fn aside(&self) -> usize {
        self.shared.state().jobs.aside()
    }

    /// Contents that killed their worker twice, since the start.
    pub fn poisoned(&self) -> u64 {
        self.shared.lane.poisoned.load(Ordering::Relaxed)
    }

    /// Contents that killed their workers twice, and are not scanned by the definitions in
    /// force.
    pub fn poisoned_now(&self) -> u64 {
        let active = self.shared.active();
        active.as_ref().map_or(0, |set| set.poison().count() as u64)
    }

    /// What is known of a content that killed its worker twice with the definitions
    /// in force, or took too long a while ago: it need not be sent.
    pub fn known_poison(
        &self,
        tenant: &TenantId,
        content: ContentId,
        options: ScanOptions,
    ) -> Option<End> {
        let key = engines::PoisonKey {
            tenant: tenant.clone(),
            content,
            options,
        };
        let active = self.shared.active();
        let set = active.as_ref()?;
        if let Some(end) = set.overlong().of(&key, Instant::now()) {
            return Some(end.clone());
        }
        let mut tally = tally::Tally::new();
        tally.poisoned(set.poison().of(&key)?);
        tally.end().ok()
    }

    /// Takes nothing more; what waits is dropped, which its requests see.
    pub fn stop(&self) {
        let mut state = self.shared.state();
        state.stopping = true;
        state.jobs.clear();
        drop(state);
        self.shared.ready.notify_all();
        self.shared.crowded.notify_all();
    }

    /// Waits for the lanes; after `patience` the engines are killed. Nothing runs
    /// any more when this returns.
    pub fn finish(self, lanes: Lanes, patience: Duration) {
        let deadline = Instant::now() + patience;
        self.stop();
        while Instant::now() < deadline && !lanes.lanes.iter().all(JoinHandle::is_finished) {
            std::thread::sleep(Duration::from_millis(10));
        }
        let active = self.shared.active().take();
        if !lanes.lanes.iter().all(JoinHandle::is_finished) {
            tracing::warn!("scans are still running; their engines are killed");
            for set in self.shared.sets().iter().filter_map(Weak::upgrade) {
                set.stop();
            }
        }
        for lane in lanes.lanes {
            if lane.join().is_err() {
                tracing::error!("a lane panicked");
            }
        }
        if lanes.warden.join().is_err() {
            tracing::error!("the thread that has long scans give way panicked");
        }
        drop(active);
        self.shared.close_retirement();
        if lanes.retiring.join().is_err() {
            tracing::error!("the thread that ends engines panicked");
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn occupancy(&self, state: &State) -> Occupancy {
        Occupancy {
            lanes: self.layout.lanes.max(1),
            busy: state.jobs.on_lanes(),
            waiting: state.jobs.len(),
        }
    }

    fn active(&self) -> MutexGuard<'_, Option<Arc<EngineSet>>> {
        self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sets(&self) -> MutexGuard<'_, Vec<Weak<EngineSet>>> {
        self.sets.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remember(&self, set: &Arc<EngineSet>) {
        let mut sets = self.sets();
        sets.retain(|set| set.strong_count() > 0);
        sets.push(Arc::downgrade(set));
    }

    /// Takes a set off a lane's hands.
    fn retire(&self, set: Option<Arc<EngineSet>>) {
        let retired = self.retired.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Some(set), Some(retired)) = (set, retired.as_ref()) {
            // Without its thread, the set ends here.
            let _ = retired.send(set);
        }
    }

    fn close_retirement(&self) {
        drop(
            self.retired
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .take(),
        );
    }

    /// Wakes who has something to do now.
    fn tell(&self, state: MutexGuard<'_, State>) {
        let crowded = state.jobs.is_crowded();
        drop(state);
        if crowded {
            self.crowded.notify_one();
        } else {
            self.ready.notify_one();
        }
    }

    fn now_us(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX)
    }

    fn ask(&self, asker: &Asker) -> (Ask<TenantId, AgentId>, u64) {
        let deadline_us = asker.deadline.map(|deadline| {
            let from_start = deadline.saturating_duration_since(self.started);
            u64::try_from(from_start.as_micros()).unwrap_or(u64::MAX)
        });
        (
            Ask {
                tenant: asker.tenant.clone(),
                agent: asker.agent,
                class: asker.class,
                deadline_us,
            },
            self.now_us(),
        )
    }

    /// A scan ended after this long in the queue and in its lane.
    fn measured(&self, end: &Result<End, NoWorker>, waited: Duration, took: Duration) {
        let ended = match end {
            Ok(end) => Ended::from(end.verdict.kind()),
            Err(_) => Ended::no_engine,
        };
        self.metrics
            .scanned(ended, waited.as_secs_f64(), took.as_secs_f64());
    }
}

impl From<crate::admission::Busy> for Failure {
    fn from(busy: crate::admission::Busy) -> Self {
        Self::Queue {
            retry_after_ms: busy.retry_after_ms,
        }
    }
}
