//! A lane: one thread, a worker of each engine as it needs one, one content at a time.
//!
//! ```text
//!             ┌────────────────────────────────────────────────┐
//!             │ hash lists, if there are any                   │
//!   Job ────► │ engine 1 (unpacks) ──members──► engine 2       │
//!             │ then engine 2 on the content itself            ├──► Done
//!             └────────────────────────────────────────────────┘
//! ```
//!
//! Members are scanned as they come, one at a time, while the worker that unpacks
//! goes on until the channel between is full; so their memory is bounded by the
//! worker's own bounds, and nothing is kept here.
//!
//! A worker that dies is replaced by one that is forked then, and the content tried once
//! more: a death may be another's fault, but two are the content's, and remembered. A
//! SIGKILL that is none of ours is never the content's: the kernel was out of memory, or
//! an administrator did it, and no content can do it from within the sandbox.
//!
//! A scan that is stopped to give way ([`Stop`]) has no verdict, unless one was decided:
//! its content goes back to the queue. The workers that are killed for it are nobody's
//! deaths.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use palisade_protocol::verdict::Generations;
use palisade_worker::client::{
    Member, Outcome, ScanDone, ScanOptions as WorkerOptions, SealedContent, WorkerError,
    WorkerExit, WorkerHandle,
};

use crate::admission::{Start, Ticket};
use crate::digest::Digests;
use crate::engine::EngineKind;
use crate::hash_lists::HashLists;
use crate::metrics::GaveWay;

use super::engines::{Engine, EngineSet, NoWorker, PoisonKey};
use super::pool;
use super::rerun::Task;
use super::stop::Stop;
use super::tally::{End, Tally};
use super::{Done, Job, Shared, Waiting, rerun};

/// How often a content is given to an engine whose worker died of it.
const ATTEMPTS: u32 = 2;
/// The engine's own limit is this part of the deadline that kills: it can end a
/// scan by itself and keep its worker.
const POLITE_PERMILLE: u128 = 900;

/// The lane's whole life.
pub(super) fn run(shared: &Shared) {
    let mut lane = Lane::new(shared.lane.clone());
    while let Some(turn) = next(shared, &mut lane) {
        let Turn {
            ticket,
            stop,
            waiting,
        } = turn;
        let Waiting { job, since, waited } = waiting;
        let waited = waited.unwrap_or_else(|| since.elapsed());
        let span = job.span.clone();
        let _request = span.enter();
        let started = Instant::now();
        let set = shared.active().clone();
        shared.retire(lane.adopt(set));
        let subject = PoisonKey {
            tenant: job.tenant.clone(),
            content: job.content,
            options: job.options,
        };
        let scanned = lane.scan(&subject, job.bytes, job.clean_by.as_ref(), &stop);
        let took = started.elapsed();
        let (content, took_ms) = (job.content, took.as_millis());
        match scanned {
            Scanned::Done(done) => {
                shared.ended(ticket);
                shared.measured(&done.end, waited, took);
                tracing::debug!(%content, took_ms, end = ?done.end, "scanned");
                // Whoever asked may be gone.
                let _ = job.reply.send(*done);
            }
            Scanned::GaveWay(bytes) => {
                shared.metrics.gave_way(GaveWay::stopped);
                tracing::debug!(%content, took_ms, "stopped to give way");
                let waiting = Waiting {
                    job: Job { bytes, ..job },
                    since,
                    waited: Some(waited),
                };
                shared.put_back(ticket, waiting);
            }
        }
    }
}

/// A scan that is this lane's.
struct Turn {
    ticket: Ticket,
    stop: Arc<Stop>,
    waiting: Waiting,
}

/// Waits for a job; `None` to stop. An idle lane does not hold on to a set that is
/// no longer in force.
fn next(shared: &Shared, lane: &mut Lane) -> Option<Turn> {
    let mut state = shared.state();
    loop {
        if state.stopping {
            return None;
        }
        if let Some(Start { ticket, item }) = state.jobs.next(shared.now_us()) {
            let stop = Arc::new(Stop::default());
            state.stops.insert(ticket, Arc::clone(&stop));
            if state.jobs.is_crowded() {
                shared.crowded.notify_one();
            }
            return Some(Turn {
                ticket,
                stop,
                waiting: item,
            });
        }
        if lane.is_outdated(shared) {
            drop(state);
            shared.retire(lane.adopt(None));
            state = shared.state();
            continue;
        }
        state = shared
            .ready
            .wait(state)
            .unwrap_or_else(std::sync::PoisonError::into_inner);
    }
}

impl Shared {
    /// A scan ended: somebody else may have its place, besides who is next on its lane.
    fn ended(&self, ticket: Ticket) {
        let mut state = self.state();
        state.stops.remove(&ticket);
        state.jobs.end(ticket, self.now_us());
        self.tell(state);
    }

    /// A scan gave way: its content waits again.
    fn put_back(&self, ticket: Ticket, waiting: Waiting) {
        let mut state = self.state();
        state.stops.remove(&ticket);
        let now_us = self.now_us();
        if state.stopping {
            // Dropped, as is all that waits.
            state.jobs.end(ticket, now_us);
        } else {
            state.jobs.put_back(ticket, waiting, now_us);
        }
        self.tell(state);
    }
}

/// What bounds the scans of a lane.
#[derive(Debug, Clone)]
pub(super) struct Bounds {
    /// Time that each engine may take over one content.
    pub(super) timeout: Duration,
    /// Contents after which a worker ends.
    pub(super) recycle_after: u64,
    /// Counts contents that killed twice.
    pub(super) poisoned: Arc<AtomicU64>,
}

pub(super) struct Lane {
    bounds: Bounds,
    set: Option<Arc<EngineSet>>,
}

/// What became of a content on a lane.
#[derive(Debug)]
pub(super) enum Scanned {
    /// Its scan ended.
    Done(Box<Done>),
    /// Its scan was stopped: nothing is known of it. The content comes back.
    GaveWay(SealedContent),
}

impl Lane {
    fn is_outdated(&self, shared: &Shared) -> bool {
        match (&self.set, &*shared.active()) {
            (Some(own), Some(active)) => !Arc::ptr_eq(own, active),
            (Some(_), None) => true,
            (None, _) => false,
        }
    }

    pub(super) fn new(bounds: Bounds) -> Self {
        Self { bounds, set: None }
    }

    /// Goes over to another set; whoever calls this lets go of the one before: its end
    /// waits for processes.
    pub(super) fn adopt(&mut self, set: Option<Arc<EngineSet>>) -> Option<Arc<EngineSet>> {
        let same = match (&self.set, &set) {
            (Some(own), Some(other)) => Arc::ptr_eq(own, other),
            (own, other) => own.is_none() && other.is_none(),
        };
        if same {
            return None;
        }
        std::mem::replace(&mut self.set, set)
    }

    pub(super) fn scan(
        &self,
        subject: &PoisonKey,
        bytes: SealedContent,
        clean_by: Option<&Generations>,
        stop: &Stop,
    ) -> Scanned {
        let mut tally = Tally::new();
        let mut sha256 = None;
        match &self.set {
            None => tally.absent(NoWorker {
                engine: "engines",
                detail: "none is loaded".to_owned(),
            }),
            Some(set) => {
                sha256 = look_up(set.lists(), &bytes, &mut tally);
                let poisoned = set.poison().of(subject).map(str::to_owned);
                match poisoned {
                    Some(detail) => tally.poisoned(&detail),
                    None => {
                        let kinds = set.engines().iter().map(|engine| engine.kind());
                        let archives = subject.options.archives;
                        let plan = rerun::plan(kinds, set.generations(), clean_by, archives);
                        self.ask_all(set, subject, &bytes, &plan, stop, &mut tally);
                    }
                }
            }
        }
        // Whatever was not asked in the meantime is in no tally.
        if stop.is_stopped() && !tally.is_decided() {
            return Scanned::GaveWay(bytes);
        }
        let end = tally.end();
        if let (Some(set), Ok(end)) = (&self.set, &end) {
            remember(set, subject, end);
        }
        Scanned::Done(Box::new(Done {
            end,
            generations: self
                .set
                .as_ref()
                .map(|set| set.generations().clone())
                .unwrap_or_default(),
            bytes,
            sha256,
        }))
    }

    /// Has one engine after the other scan the content, until nothing can change the
    /// verdict any more.
    fn ask_all(
        &self,
        set: &Arc<EngineSet>,
        subject: &PoisonKey,
        bytes: &SealedContent,
        plan: &[Task],
        stop: &Stop,
        tally: &mut Tally,
    ) {
        for (index, task) in plan.iter().enumerate() {
            if tally.is_decided() || stop.is_stopped() {
                break;
            }
            let members = match *task {
                Task::Skip => continue,
                Task::Scan { members } => members,
            };
            let step = Step {
                set,
                index,
                deadline: Instant::now() + self.bounds.timeout,
                members,
                subject,
                part: "",
                stop,
            };
            self.ask(&step, bytes, tally);
        }
    }

    /// Has one engine scan `bytes`, and the others what it unpacks. Gives the time
    /// that all of it took.
    fn ask(&self, step: &Step<'_>, bytes: &SealedContent, tally: &mut Tally) -> Duration {
        let engine = step.engine().kind();
        let content = step.subject.content;
        tracing::debug!(%content, engine = engine.name(), "an engine is asked");
        let started = Instant::now();
        let mut others = Duration::ZERO;
        for attempt in 1..=ATTEMPTS {
            // Who kills one worker may have killed all that wait, and a process takes a
            // moment to die: the second is one that was forked after that.
            let taken = match attempt {
                1 => step.engine().worker(&step.subject.tenant),
                _ => step.engine().fresh_worker(),
            };
            let mut worker = match taken {
                Ok(worker) => worker,
                Err(no_worker) => {
                    tally.absent(no_worker);
                    break;
                }
            };
            if !step.stop.enter(&worker) {
                break;
            }
            let left = step.deadline.saturating_duration_since(Instant::now());
            let result = worker.scan(bytes, step.worker_options(left), left, &mut |member| {
                others += self.ask_about_member(step, &member, tally);
            });
            let is_whole = step.stop.leave();
            match result {
                Ok(done) => {
                    if is_whole {
                        self.put_back(step, worker, &done);
                    }
                    tally.said(engine, &done.outcome, step.part);
                    if done.members_truncated {
                        tally.limit(engine, "members");
                    }
                    step.set.poison().survived(step.subject);
                    break;
                }
                // It was killed for others.
                Err(_) if !is_whole => break,
                Err(error @ (WorkerError::TimedOut | WorkerError::OutOfCpuTime)) => {
                    tracing::warn!(%content, engine = engine.name(), %error, "timed out");
                    tally.timed_out(engine);
                    break;
                }
                Err(error) => {
                    tracing::warn!(
                        %content, engine = engine.name(), attempt, %error,
                        "a worker was lost in a scan"
                    );
                    let detail = format!("{}: {error}", engine.name());
                    let is_its_own = !is_anothers(&error);
                    if is_its_own && step.set.poison().killed(step.subject, &detail) {
                        let poisoned = self.bounds.poisoned.fetch_add(1, Ordering::Relaxed) + 1;
                        tracing::error!(
                            %content, tenant = %step.subject.tenant, engine = engine.name(),
                            %error, poisoned,
                            "a content killed its worker twice; it is not scanned again with \
                             these definitions"
                        );
                    }
                    if attempt == ATTEMPTS && is_its_own {
                        tally.failed(engine, &error.to_string());
                    } else if attempt == ATTEMPTS {
                        tally.killed(engine, &error.to_string());
                    }
                }
            }
        }
        let took = started.elapsed();
        tally.took(engine, took.saturating_sub(others));
        took
    }

    fn ask_about_member(&self, step: &Step<'_>, member: &Member, tally: &mut Tally) -> Duration {
        let mut took = Duration::ZERO;
        for (index, engine) in step.set.engines().iter().enumerate() {
            // A member of a content that is malware already is of no interest, unless
            // it is what makes it so.
            let kind = engine.kind();
            let of_interest = !tally.is_decided() || tally.may_be_deeper(kind, &member.name);
            if index != step.index && kind.takes_members() && of_interest {
                let inner = Step {
                    index,
                    members: false,
                    part: &member.name,
                    ..*step
                };
                took += self.ask(&inner, &member.content, tally);
            }
        }
        took
    }

    fn put_back(&self, step: &Step<'_>, worker: WorkerHandle, done: &ScanDone) {
        if pool::is_fit(done, worker.scans(), self.bounds.recycle_after) {
            step.engine().give_back(step.subject.tenant.clone(), worker);
        }
    }
}

/// Whether somebody else killed the worker: by SIGKILL, or with the process that it was
/// forked from, which is the one that says how a worker ended.
fn is_anothers(error: &WorkerError) -> bool {
    match error {
        WorkerError::Died {
            exit: Some(WorkerExit::Signal(signal)),
        } => *signal == Signal::SIGKILL as i32,
        WorkerError::Died { exit } => exit.is_none(),
        _ => false,
    }
}

/// What takes too long, or more than there is, is left alone for a while.
fn remember(set: &EngineSet, subject: &PoisonKey, end: &End) {
    let mut overlong = set.overlong();
    if end.exhausted {
        overlong.took_too_long(subject, end.clone(), Instant::now());
    } else if end.lasting {
        overlong.was_done(subject);
    }
}

/// One engine's turn at one content.
#[derive(Clone, Copy)]
struct Step<'a> {
    set: &'a EngineSet,
    /// The engine's place in the set.
    index: usize,
    deadline: Instant,
    /// Whether others want what it unpacks.
    members: bool,
    /// Whose content it is, and which.
    subject: &'a PoisonKey,
    /// The part of the content that is scanned; empty for the content itself.
    part: &'a str,
    stop: &'a Stop,
}

impl Step<'_> {
    fn engine(&self) -> &Arc<Engine> {
        &self.set.engines()[self.index]
    }

    fn worker_options(&self, left: Duration) -> WorkerOptions {
        let options = self.subject.options;
        WorkerOptions {
            members: self.members,
            archives: options.archives,
            heuristics: options.heuristics,
            pua: options.pua,
            name: self.part.into(),
            timeout_ms: polite_ms(left),
        }
    }
}

/// Looks the content's hashes up, where there are lists; gives its SHA-256, if that
/// was needed.
fn look_up(lists: &HashLists, bytes: &SealedContent, tally: &mut Tally) -> Option<[u8; 32]> {
    if lists.is_empty() {
        return None;
    }
    let engine = EngineKind::HashList;
    let started = Instant::now();
    let digests = Digests::of(bytes, lists.wanted());
    match &digests {
        Ok(digests) => match lists.find(digests, bytes.size()) {
            Some(hit) if hit.allows => tally.allowed(engine, &[hit.list]),
            Some(hit) => tally.said(engine, &hit.denied(), ""),
            None => tally.said(engine, &Outcome::Clean, ""),
        },
        Err(error) => tally.failed(engine, &error.to_string()),
    }
    tally.took(engine, started.elapsed());
    digests.ok().and_then(|digests| digests.sha256)
}

fn polite_ms(left: Duration) -> u32 {
    u32::try_from((left.as_millis() * POLITE_PERMILLE / 1000).max(1)).unwrap_or(u32::MAX)
}
