//! A lane: one thread, one worker of each engine, one content at a time.
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
//! A worker that dies is replaced and the content tried once more: a death may be
//! another's fault (memory), but two are the content's.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use palisade_protocol::content::ContentId;
use palisade_protocol::scan::ScanOptions;
use palisade_protocol::verdict::Generations;
use palisade_worker::client::{
    Member, Outcome, ScanOptions as WorkerOptions, SealedContent, WorkerError, WorkerHandle,
};

use crate::digest::Digests;
use crate::engine::EngineKind;
use crate::hash_lists::HashLists;

use super::engines::{Engine, EngineSet, NoWorker};
use super::rerun::Task;
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
        let _request = job.span.enter();
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
        content: ContentId,
        bytes: SealedContent,
        options: ScanOptions,
        clean_by: Option<&Generations>,
    ) -> Done {
        let mut tally = Tally::new();
        let mut sha256 = None;
        let set = self.set.clone();
        match &set {
            None => tally.absent(NoWorker {
                engine: "engines",
                detail: "none is loaded".to_owned(),
            }),
            Some(set) => {
                sha256 = look_up(set.lists(), &bytes, &mut tally);
                let kinds = set.engines().iter().map(|engine| engine.kind());
                let plan = rerun::plan(kinds, set.generations(), clean_by, options.archives);
                self.ask_all(set, content, &bytes, options, &plan, &mut tally);
            }
        }
        Done {
            end: tally.end(),
            generations: set.map(|set| set.generations().clone()).unwrap_or_default(),
            bytes,
            sha256,
        }
    }

    /// Has one engine after the other scan the content, until nothing can change the
    /// verdict any more.
    fn ask_all(
        &mut self,
        set: &Arc<EngineSet>,
        content: ContentId,
        bytes: &SealedContent,
        options: ScanOptions,
        plan: &[Task],
        tally: &mut Tally,
    ) {
        for (index, task) in plan.iter().enumerate() {
            if tally.is_decided() {
                break;
            }
            let members = match *task {
                Task::Skip => continue,
                Task::Scan { members } => members,
            };
            let step = Step {
                set,
                index,
                deadline: Instant::now() + self.timeout,
                members,
                content,
                options,
                part: "",
            };
            self.ask(&step, bytes, tally);
        }
    }

    /// Has one engine scan `bytes`, and the others what it unpacks. Gives the time
    /// that all of it took.
    fn ask(&mut self, step: &Step<'_>, bytes: &SealedContent, tally: &mut Tally) -> Duration {
        let engine = step.engine().kind();
        tracing::debug!(content = %step.content, engine = engine.name(), "an engine is asked");
        let started = Instant::now();
        let mut others = Duration::ZERO;
        for attempt in 1..=ATTEMPTS {
            let mut worker = match self.take(step) {
                Ok(worker) => worker,
                Err(no_worker) => {
                    tally.absent(no_worker);
                    break;
                }
            };
            let left = step.deadline.saturating_duration_since(Instant::now());
            let result = worker.scan(bytes, step.worker_options(left), left, &mut |member| {
                others += self.ask_about_member(step, &member, tally);
            });
            match result {
                Ok(done) => {
                    self.put_back(step.index, worker);
                    tally.said(engine, &done.outcome, step.part);
                    if done.members_truncated {
                        tally.limit(engine, "members");
                    }
                    break;
                }
                Err(WorkerError::TimedOut) => {
                    tracing::warn!(content = %step.content, engine = engine.name(), "timed out");
                    tally.timed_out(engine);
                    break;
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
        let took = started.elapsed();
        tally.took(engine, took.saturating_sub(others));
        took
    }

    fn ask_about_member(
        &mut self,
        step: &Step<'_>,
        member: &Member,
        tally: &mut Tally,
    ) -> Duration {
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
    content: ContentId,
    /// What to look into.
    options: ScanOptions,
    /// The part of the content that is scanned; empty for the content itself.
    part: &'a str,
}

impl Step<'_> {
    fn engine(&self) -> &Arc<Engine> {
        &self.set.engines()[self.index]
    }

    fn worker_options(&self, left: Duration) -> WorkerOptions {
        WorkerOptions {
            members: self.members,
            archives: self.options.archives,
            heuristics: self.options.heuristics,
            pua: self.options.pua,
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
