//! A lane: one thread, one worker of each engine, one content at a time.
//!
//! ```text
//!             ┌────────────────────────────────────────────────┐
//!   Job ────► │ engine 1 (unpacks) ──members──► engine 2       │
//!             │ then engine 2 on the content itself            ├──► Done
//!             └────────────────────────────────────────────────┘
//! ```
//!
//! Members are scanned as they come, one at a time, while the worker that unpacks
//! goes on until the channel between is full; so their memory is bounded by the
//! worker's own bounds, and nothing is kept here.
//!
//! A worker that dies is replaced and the content tried once more: a death may be
//! another's fault (memory), but two are the content's.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use palisade_protocol::verdict::Generations;
use palisade_worker::client::{
    ScanOptions as WorkerOptions, SealedContent, WorkerError, WorkerHandle,
};

use super::engines::{Engine, EngineSet, NoWorker};
use super::tally::Tally;
use super::{Done, Shared, Waiting, rerun};

/// How often a content is given to an engine whose worker died of it.
const ATTEMPTS: u32 = 2;
/// The engine's own limit is this part of the deadline that kills: it can end a
/// scan by itself and keep its worker.
const POLITE_PERMILLE: u128 = 900;

/// The lane's whole life.
pub(super) fn run(shared: &Shared) {
    let mut lane = Lane {
        timeout: shared.timeout,
        set: None,
        workers: Vec::new(),
    };
    while let Some(Waiting { job, since }) = next(shared, &mut lane) {
        let waited = since.elapsed();
        shared.busy.fetch_add(1, Ordering::Relaxed);
        let started = Instant::now();
        let set = shared.active().clone();
        lane.adopt(set);
        let done = lane.scan(job.content, job.bytes, job.options, job.clean_by.as_ref());
        let took = started.elapsed();
        shared.busy.fetch_sub(1, Ordering::Relaxed);
        shared.measured(&done.end, waited, took);
        tracing::debug!(content = %job.content, took_ms = took.as_millis(), end = ?done.end, "scanned");
        // Whoever asked may be gone.
        let _ = job.reply.send(done);
    }
}

/// Waits for a job; `None` to stop. An idle lane does not hold on to a set that is
/// no longer in force.
fn next(shared: &Shared, lane: &mut Lane) -> Option<Waiting> {
    let mut state = shared.state();
    loop {
        if state.stopping {
            return None;
        }
        if let Some((_, waiting)) = state.jobs.pop(shared.now_ms()) {
            return Some(waiting);
        }
        if lane.is_outdated(shared) {
            drop(state);
            lane.adopt(None);
            state = shared.state();
            continue;
        }
        state = shared
            .ready
            .wait(state)
            .unwrap_or_else(std::sync::PoisonError::into_inner);
    }
}

struct Lane {
    timeout: Duration,
    set: Option<Arc<EngineSet>>,
    /// A worker of each engine of the set, in its order, as far as there is one.
    workers: Vec<Option<WorkerHandle>>,
}

impl Lane {
    fn is_outdated(&self, shared: &Shared) -> bool {
        match (&self.set, &*shared.active()) {
            (Some(own), Some(active)) => !Arc::ptr_eq(own, active),
            (Some(_), None) => true,
            (None, _) => false,
        }
    }

    fn adopt(&mut self, set: Option<Arc<EngineSet>>) {
        let same = match (&self.set, &set) {
            (Some(own), Some(other)) => Arc::ptr_eq(own, other),
            (own, other) => own.is_none() && other.is_none(),
        };
        if !same {
            // Workers first: the set's end waits for them.
            self.workers.clear();
            let engines = set.as_ref().map_or(0, |set| set.engines().len());
            self.workers.resize_with(engines, || None);
            self.set = set;
        }
    }

    fn scan(
        &mut self,
        content: palisade_protocol::content::ContentId,
        bytes: SealedContent,
        options: palisade_protocol::scan::ScanOptions,
        clean_by: Option<&Generations>,
    ) -> Done {
        let mut tally = Tally::new(options);
        let Some(set) = self.set.clone() else {
            tally.absent(NoWorker {
                engine: "engines",
                detail: "none is loaded".to_owned(),
            });
            return Done {
                end: tally.end(),
                generations: Default::default(),
                bytes,
            };
        };
        let kinds = set.engines().iter().map(|engine| engine.kind());
        let plan = rerun::plan(kinds, set.generations(), clean_by, options.archives);
        for (index, task) in plan.into_iter().enumerate() {
            if tally.is_decided() {
                break;
            }
            let members = match task {
                rerun::Task::Skip => continue,
                rerun::Task::Scan { members } => members,
            };
            let deadline = Instant::now() + self.timeout;
            let step = Step {
                set: &set,
                index,
                deadline,
                members,
                content,
            };
            self.ask(&step, &bytes, &mut tally);
        }
        Done {
            end: tally.end(),
            generations: set.generations().clone(),
            bytes,
        }
    }

    /// Has one engine scan `bytes`, and the others what it unpacks.
    fn ask(&mut self, step: &Step<'_>, bytes: &SealedContent, tally: &mut Tally) {
        let engine = step.engine().kind();
        tracing::debug!(content = %step.content, engine = engine.name(), "an engine is asked");
        for attempt in 1..=ATTEMPTS {
            let mut worker = match self.take(step) {
                Ok(worker) => worker,
                Err(no_worker) => return tally.absent(no_worker),
            };
            let left = step.deadline.saturating_duration_since(Instant::now());
            let options = WorkerOptions {
                members: step.members,
                timeout_ms: polite_ms(left),
            };
            let result = worker.scan(bytes, options, left, &mut |member| {
                self.ask_about_member(step, &member.content, tally);
            });
            match result {
                Ok(done) => {
                    self.put_back(step.index, worker);
                    tally.said(engine, &done.outcome);
                    if done.members_truncated {
                        tally.limit("members");
                    }
                    return;
                }
                Err(WorkerError::TimedOut) => {
                    tracing::warn!(content = %step.content, engine = engine.name(), "timed out");
                    return tally.timed_out();
                }
                Err(error) => {
                    tracing::warn!(
                        content = %step.content, engine = engine.name(), attempt, %error,
                        "a worker was lost in a scan"
                    );
                    if attempt == ATTEMPTS {
                        // A content that kills twice is to be remembered here.
                        tally.failed(engine, &error.to_string());
                    }
                }
            }
        }
    }

    fn ask_about_member(&mut self, step: &Step<'_>, member: &SealedContent, tally: &mut Tally) {
        for (index, engine) in step.set.engines().iter().enumerate() {
            // A member of a content that is malware already is of no interest.
            if index != step.index && engine.kind().takes_members() && !tally.is_decided() {
                let inner = Step {
                    index,
                    members: false,
                    ..*step
                };
                self.ask(&inner, member, tally);
            }
        }
    }

    fn take(&mut self, step: &Step<'_>) -> Result<WorkerHandle, NoWorker> {
        match self.workers.get_mut(step.index).and_then(Option::take) {
            Some(worker) if worker.is_usable() => Ok(worker),
            _ => step.engine().worker(),
        }
    }

    fn put_back(&mut self, index: usize, worker: WorkerHandle) {
        if let Some(place) = self.workers.get_mut(index) {
            *place = Some(worker);
        }
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
    /// The content, for the log.
    content: palisade_protocol::content::ContentId,
}

impl Step<'_> {
    fn engine(&self) -> &Arc<Engine> {
        &self.set.engines()[self.index]
    }
}

fn polite_ms(left: Duration) -> u32 {
    u32::try_from((left.as_millis() * POLITE_PERMILLE / 1000).max(1)).unwrap_or(u32::MAX)
}
