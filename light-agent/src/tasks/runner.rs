//! Runs the tasks, one at a time.
//!
//! ```text
//!  desk ─► begin ─► cover (once) ─► scan ─┬─ all done ────────────► done
//!                                    │     ├─ no Protection Server ─► failed
//!                     each second:   │     ├─ paused, cancelled ────► stop
//!                     rate, place ◄──┘     └─ the agent ends ───────► goes on later
//! ```
//!
//! A task stops by dropping its scan: what was told to its [`Tally`] is done and is
//! never asked for again, the rest is not. The place is on disk every
//! [`CHECKPOINT`], so that a killed agent does that much again at the most.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use palisade_protocol::control::Action;
use palisade_protocol::ids::TenantId;
use palisade_protocol::scan::{ScanClass, ScanOptions};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::desk::Desk;
use super::ledger::Ledger;
use super::shown::Live;
use super::task::{State, Task};
use crate::current::Current;
use crate::index::scans::Scans;
use crate::packaged::{Packaged, Policy};
use crate::private::Private;
use crate::quarantine::remedies::Remedies;
use crate::scan::hands::Hands;
use crate::scan::places::Cover;
use crate::scan::progress::Pace;
use crate::scan::report::Report;
use crate::scan::walk::{self, Found, Plan};
use crate::scan::{self, Done, Job, Observer};
use crate::scanner::Scanner;
use crate::selection::LinkState;
use crate::{settings, spool};

/// Between looks at how the scan is getting on.
const LOOK: Duration = Duration::from_secs(1);
/// Between places on disk.
const CHECKPOINT: Duration = Duration::from_secs(5);
/// One walks, one counts, two open and hash.
const THREADS: usize = 4;

/// Whoever runs tasks.
pub struct Runner {
    /// Where they are ordered.
    pub desk: Desk,
    /// The sessions with Protection Servers.
    pub link: watch::Receiver<LinkState>,
    /// Where findings go.
    pub detections: spool::Sender,
    /// Whose guest this is.
    pub tenant: TenantId,
    /// As settings have it now; a task that has begun goes on as it was then.
    pub how: Current<How>,
    /// What rpm's packages have, if there are any.
    pub rpm_listing: PathBuf,
    /// Where it stands which files were clean.
    pub held: Option<Arc<Scans>>,
}

/// How tasks are done.
pub struct How {
    /// How scans are done.
    pub scan: settings::Scan,
    /// Requests at a time.
    pub asking: usize,
    /// What Protection Servers look into.
    pub options: ScanOptions,
    /// Of which nothing is sent.
    pub private: Private,
    /// What is done about malware.
    pub remedies: Remedies,
    /// What is not scanned.
    pub exclude: Vec<PathBuf>,
}

/// How a turn ended.
enum Turn {
    /// The task's end.
    Ended(State),
    /// It was paused or cancelled.
    Stopped,
    /// The agent ends.
    Closing,
}

impl Runner {
    /// Runs until told to stop; the task under way is then on disk.
    pub async fn run(self, mut stop: watch::Receiver<bool>) {
        let mut changes = self.desk.changes();
        loop {
            changes.borrow_and_update();
            if *stop.borrow() {
                return;
            }
            let Some(task) = self.desk.begin().await else {
                tokio::select! {
                    changed = changes.changed() => if changed.is_err() { return },
                    _ = stop.changed() => return,
                }
                continue;
            };
            let id = task.id;
            tracing::info!(task = id, kind = task.kind.as_str(), "a scan task runs");
            let turn = self.turn(task, &mut stop).await;
            self.desk.set_live(None);
            match turn {
                Turn::Ended(state) => {
                    tracing::info!(task = id, state = state.as_str(), "a scan task ended");
                    self.desk.end(id, state).await;
                }
                Turn::Stopped => tracing::info!(task = id, "a scan task stopped as ordered"),
                Turn::Closing => return,
            }
        }
    }

    async fn turn(&self, task: Task, stop: &mut watch::Receiver<bool>) -> Turn {
        let how = self.how.get();
        let hands = match Hands::background(task.priority, THREADS) {
            Ok(hands) => hands,
            Err(error) => return failed(format!("no threads for the task: {error}")),
        };
        let known = tokio::select! {
            known = self.cover(&task, &how, &hands) => known,
            turn = self.taken_away(task.id, stop) => return turn,
        };
        let (cover, packaged) = match known {
            Ok(known) => known,
            Err(error) => return failed(format!("what it covers cannot be found: {error}")),
        };
        let mut plan = cover.plan(&how.exclude);
        plan.done = task.resume();
        let mut job = Job::new(plan.clone(), &how.scan).in_background(how.asking, hands.clone());
        job.remedies = Some(how.remedies.clone());
        job.packaged = packaged.map(Arc::new);
        job.held = self.held.clone();
        let scanner = Scanner::new(self.link.clone(), how.asking, how.options)
            .keeping(how.private.clone())
            .by(hands.clone());
        let mut under_way = UnderWay::new(self, task, scanner);
        let counting = Counting::start(plan, &hands, under_way.task());
        let turn = under_way.scan(&job, counting, stop).await;
        if let Some(held) = &self.held {
            held.flush();
        }
        let task = under_way.task();
        self.desk.note(&task).await;
        turn
    }

    /// When somebody pauses or cancels the task, or the agent stops.
    async fn taken_away(&self, id: u64, stop: &mut watch::Receiver<bool>) -> Turn {
        let mut changes = self.desk.changes();
        loop {
            if !self.desk.has_turn(id) {
                return Turn::Stopped;
            }
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return Turn::Closing },
                _ = stop.changed() => return Turn::Closing,
            }
        }
    }

    /// What the task covers, as it was when it began, and what packages have of that.
    async fn cover(
        &self,
        task: &Task,
        how: &How,
        hands: &Hands,
    ) -> std::io::Result<(Cover, Option<Packaged>)> {
        let id = task.id;
        let kept = self
            .desk
            .with_store(move |store| Ok(store.cover(id)))
            .await?;
        if let Some(cover) = kept {
            let (policy, print) = cover.packaged;
            let packaged = self.packaged(policy, hands).await?;
            return Ok((cover, packaged.map(|packaged| packaged.going_on(print))));
        }
        let (kind, exclude) = (task.kind, how.exclude.clone());
        let paths: Vec<PathBuf> = task.paths.iter().map(|path| path.0.clone()).collect();
        let cover = hands.spawn(move || kind.cover(&paths, &exclude)).await;
        let mut cover = cover.map_err(std::io::Error::other)??;
        let packaged = self.packaged(how.scan.packaged, hands).await?;
        let print = packaged.as_ref().map_or(0, Packaged::print);
        cover.packaged = (how.scan.packaged, print);
        let saved = cover.clone();
        self.desk
            .with_store(move |store| store.save_cover(id, &saved))
            .await?;
        Ok((cover, packaged))
    }

    async fn packaged(&self, policy: Policy, hands: &Hands) -> std::io::Result<Option<Packaged>> {
        let listing = self.rpm_listing.clone();
        let known = hands.spawn(move || Packaged::load(policy, Path::new("/"), &listing));
        known.await.map_err(std::io::Error::other)
    }
}

fn failed(reason: String) -> Turn {
    Turn::Ended(State::Failed { reason })
}

/// Counts the files that are left, beside the scan.
struct Counting {
    ended: Arc<AtomicBool>,
    /// None once it is known.
    count: Option<JoinHandle<Option<u64>>>,
    before: u64,
}

impl Counting {
    fn start(plan: Plan, hands: &Hands, task: Task) -> Self {
        let ended = Arc::new(AtomicBool::new(false));
        let stop = Arc::clone(&ended);
        let known = task.files_total.is_some();
        Self {
            ended,
            count: (!known).then(|| hands.spawn(move || walk::count(&plan, &stop))),
            before: task.counters.files(),
        }
    }

    /// All files of the task, said once.
    async fn total(&mut self) -> u64 {
        if let Some(count) = &mut self.count {
            let left = count.await;
            self.count = None;
            if let Ok(Some(left)) = left {
                return self.before + left;
            }
        }
        std::future::pending().await
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
    }
}

/// What a scan did, as it is told file by file.
struct Tally {
    task: Task,
    ledger: Ledger,
}

/// One task that has the turn.
struct UnderWay<'a> {
    runner: &'a Runner,
    tally: Arc<Mutex<Tally>>,
    scanner: Scanner,
    began: Instant,
    ran_ms: u64,
    sent_bytes: u64,
    pace: Pace,
}

impl<'a> UnderWay<'a> {
    fn new(runner: &'a Runner, task: Task, scanner: Scanner) -> Self {
        Self {
            runner,
            scanner,
            began: Instant::now(),
            ran_ms: task.running_ms,
            sent_bytes: task.counters.sent_bytes,
            pace: Pace::starting_at(task.counters.files()),
            tally: Arc::new(Mutex::new(Tally {
                ledger: Ledger::from(task.resume()),
                task,
            })),
        }
    }

    /// The task as it is now, with its place.
    fn task(&self) -> Task {
        let mut tally = lock(&self.tally);
        let Tally { task, ledger } = &mut *tally;
        task.note_place(ledger.upto(), &ledger.ahead());
        task.counters.sent_bytes = self.sent_bytes + self.scanner.sent_bytes();
        let ran = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        task.running_ms = self.ran_ms.saturating_add(ran);
        task.clone()
    }

    async fn scan(
        &mut self,
        job: &Job,
        mut counting: Counting,
        stop: &mut watch::Receiver<bool>,
    ) -> Turn {
        let mut watching = Watching {
            tally: Arc::clone(&self.tally),
            detections: self.runner.detections.clone(),
            tenant: self.runner.tenant.clone(),
        };
        let scanner = self.scanner.clone();
        let mut scanning = std::pin::pin!(scan::run(job, &scanner, &mut watching));
        let mut changes = self.runner.desk.changes();
        let mut look = tokio::time::interval(LOOK);
        let mut kept = Instant::now();
        loop {
            tokio::select! {
                (_, outcome) = &mut scanning => return Turn::Ended(match outcome {
                    Ok(()) => State::Done,
                    Err(reason) => State::Failed { reason: reason.to_string() },
                }),
                total = counting.total() => {
                    lock(&self.tally).task.files_total = Some(total);
                }
                Ok(()) = changes.changed() => {
                    if !self.runner.desk.has_turn(lock(&self.tally).task.id) {
                        return Turn::Stopped;
                    }
                }
                _ = stop.changed() => return Turn::Closing,
                _ = look.tick() => {
                    if let Some(reason) = self.look() {
                        return failed(reason);
                    }
                    if kept.elapsed() >= CHECKPOINT {
                        kept = Instant::now();
                        let task = self.task();
                        self.runner.desk.note(&task).await;
                    }
                }
            }
        }
    }

    /// Shows how it is getting on; the reason, if it waited long enough.
    fn look(&mut self) -> Option<String> {
        let mut waits_for = None;
        let mut gives_up = None;
        if let LinkState::Down { since, reason } = &*self.runner.link.borrow() {
            waits_for = Some(format!("no Protection Server: {reason}"));
            // Time before the task's turn is not its own.
            let patience_s = self.runner.how.get().scan.svm_wait_s;
            if (*since).max(self.began).elapsed().as_secs() >= patience_s {
                gives_up = Some(format!(
                    "no Protection Server for {patience_s} s ({reason}); resume it when one can be reached"
                ));
            }
        }
        let tally = lock(&self.tally);
        let (id, total) = (tally.task.id, tally.task.files_total);
        let mut counters = tally.task.counters;
        drop(tally);
        counters.sent_bytes = self.sent_bytes + self.scanner.sent_bytes();
        let running = self.began.elapsed();
        self.pace.note(running, counters.files());
        let ran = u64::try_from(running.as_millis()).unwrap_or(u64::MAX);
        self.runner.desk.set_live(Some(Live {
            id,
            counters,
            progress: self.pace.progress(counters.files(), total),
            running_ms: self.ran_ms.saturating_add(ran),
            waits_for,
        }));
        gives_up
    }
}

/// Takes down and reports what is done.
struct Watching {
    tally: Arc<Mutex<Tally>>,
    detections: spool::Sender,
    tenant: TenantId,
}

impl Observer for Watching {
    fn done(&mut self, found: &Found, done: &Done, _: &Report) {
        let mut tally = lock(&self.tally);
        tally.task.count(found, done);
        tally.ledger.done(found);
        drop(tally);
        if let Done::Scanned(scanned) = done {
            let (tenant, path) = (self.tenant.clone(), &found.at.path);
            let detection =
                spool::detection(tenant, path, scanned, Action::Reported, ScanClass::OnDemand);
            detection
                .into_iter()
                .for_each(|detection| self.detections.send(detection));
        }
    }

    fn takes_more(&self) -> bool {
        !lock(&self.tally).ledger.is_full()
    }
}

fn lock(tally: &Mutex<Tally>) -> MutexGuard<'_, Tally> {
    tally.lock().unwrap_or_else(PoisonError::into_inner)
}
