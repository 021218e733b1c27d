//! On-access scans, from the queue to the answer and what follows it.
//!
//! ```text
//!  queue ─► on-time slot ─► known by content? else scan ─► answer the kernel ─► remember, report
//!               │ deadline passed (answered by its thread), or will pass for certain
//!               └─► late slot ─► scan goes on ─► remember, report as late
//!                     └─ none free: given up, counted
//! ```
//!
//! Owns the slots and the order: the kernel is answered first, then the verdict is
//! remembered, then it is logged and reported. Does not own the deadline, which is
//! enforced elsewhere ([`deadline`](crate::deadline)).

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;

use palisade_protocol::bounded::PathBytes;
use palisade_protocol::control::{Action, Detection};
use palisade_protocol::ids::TenantId;
use palisade_protocol::scan::ScanClass;
use palisade_protocol::verdict::{NotScanned, Verdict};
use tokio::sync::{Notify, Semaphore, mpsc};

use crate::accounts::{Accounts, Outcome};
use crate::cache::recall::{Recalled, recall};
use crate::cache::{Cache, Known};
use crate::container;
use crate::content::Content;
use crate::deadline::Expires as _;
use crate::deferred::Deferred;
use crate::failure::{Answer, Failure};
use crate::fanotify::reader::{Asked, Told};
use crate::index::Index;
use crate::learn::Learned;
use crate::lease;
use crate::marks::Marks;
use crate::quarantine::remedies::Remedies;
use crate::scanner::{Scanned, Scanner, Terms};
use crate::selftest::TestFiles;
use crate::spool;
use crate::stamp::Stamp;

/// How long a scan may go on after its deadline.
const LATE: Duration = Duration::from_secs(120);

/// What on-access scans work with.
pub struct Guard {
    /// Gets verdicts.
    pub scanner: Scanner,
    /// Remembers them.
    pub cache: Arc<Cache>,
    /// Has the kernel ask no more about some of them.
    pub marks: Marks,
    /// Remembers which files were clean.
    pub index: Arc<Index>,
    /// Counts what is given up.
    pub accounts: Arc<Accounts>,
    /// Takes note of what is let through without a verdict.
    pub deferred: Deferred,
    /// Whether anybody opens what it is told of.
    pub told: Told,
    /// Counts what costs how much, where settings ask for it.
    pub learned: Option<Learned>,
    /// Takes detections; full means a counted drop.
    pub detections: spool::Sender,
    /// The agent's own test files, which are no detections.
    pub test_files: TestFiles,
    /// What is done about malware, besides denying its opens.
    pub remedies: Remedies,
    /// Whose guest this is.
    pub tenant: TenantId,
    /// Why it asks: whether somebody waits.
    pub class: ScanClass,
    /// Oldest clean verdict of earlier definitions that an open is answered by, in
    /// seconds.
    pub max_age_s: u32,
    /// Scans at a time before their deadline.
    pub on_time: Arc<Semaphore>,
    /// Scans at a time after it.
    pub late: Arc<Semaphore>,
}

impl Guard {
    /// Serves the queue until it closes.
    pub async fn run(self: Arc<Self>, mut queue: mpsc::Receiver<Asked>) {
        while let Some(asked) = queue.recv().await {
            let Ok(slot) = Arc::clone(&self.on_time).acquire_owned().await else {
                return;
            };
            let guard = Arc::clone(&self);
            tokio::spawn(async move {
                let due = asked.event.due().unwrap_or_else(Instant::now);
                let hopeless = Notify::new();
                let mut serve = std::pin::pin!(guard.serve(&asked, due, &hopeless));
                let done = tokio::select! {
                    biased;
                    served = serve.as_mut() => Some(served),
                    () = hopeless.notified() => None,
                    () = tokio::time::sleep_until(due.into()) => None,
                };
                drop(slot);
                if done == Some(Served::Done) {
                    return;
                }
                // Its thread may do the same at this moment; the first one counts.
                asked.event.expire();
                let Ok(_late) = guard.late.try_acquire() else {
                    // A re-check is asked for again.
                    if done != Some(Served::Recheck) {
                        guard.accounts.late_dropped();
                        guard.defer(&asked, Failure::Deadline);
                    }
                    return;
                };
                let finish = async {
                    let served = match done {
                        Some(served) => served,
                        None => serve.await,
                    };
                    if served != Served::Done {
                        guard.scan_late(&asked).await;
                    }
                };
                if tokio::time::timeout(LATE, finish).await.is_err() {
                    guard.accounts.late_dropped();
                    guard.defer(&asked, Failure::Deadline);
                }
            });
        }
    }

    async fn serve(&self, asked: &Asked, due: Instant, hopeless: &Notify) -> Served {
        let terms = Terms {
            class: self.class,
            max_age_s: self.max_age_s,
            until: Some(due),
            // Whoever nobody waits for may wait.
            without_svm: match self.class {
                ScanClass::OnAccess => Duration::ZERO,
                ScanClass::OnDemand => LATE,
            },
        };
        // Nobody is kept waiting, where nobody waits.
        let hopeless = asked.event.is_held().then_some(hopeless);
        let began = Instant::now();
        let (scanned, from) = self.scan(asked, terms, hopeless).await;
        if let Some(learned) = &self.learned {
            let took = (from == Whose::Asked).then(|| began.elapsed());
            learned.note(&asked.path, Some(asked.event.pid), took);
        }
        self.conclude(asked, &scanned, from);
        if scanned.recheck {
            return Served::Recheck;
        }
        match scanned.verdict {
            // The deadline ended it, not the content: the scan goes on without one.
            Verdict::NotScanned(NotScanned::TimedOut | NotScanned::Overloaded) => {
                Served::Unfinished
            }
            Verdict::NotScanned(reason) => {
                self.defer(asked, Failure::from(&reason));
                Served::Done
            }
            _ => Served::Done,
        }
    }

    async fn scan_late(&self, asked: &Asked) {
        let terms = Terms {
            class: ScanClass::OnDemand,
            max_age_s: 0,
            until: Some(Instant::now() + LATE),
            without_svm: LATE,
        };
        let (scanned, from) = self.scan(asked, terms, None).await;
        self.conclude(asked, &scanned, from);
        if let Verdict::NotScanned(reason) = &scanned.verdict {
            self.defer(asked, Failure::from(reason));
        }
    }

    /// What was let through without a verdict is scanned when there can be one.
    fn defer(&self, asked: &Asked, reason: Failure) {
        let own = self.test_files.are(&asked.stamp);
        if asked.event.is_let_through() && !own {
            let way = self.told.of(&asked.event);
            self.deferred.note(&asked.path, &asked.stamp, reason, way);
        }
    }

    /// Scans, and again if the file changed meanwhile: the verdict must be about
    /// what the opener will read.
    async fn scan(
        &self,
        asked: &Asked,
        terms: Terms,
        hopeless: Option<&Notify>,
    ) -> (Scanned, Whose) {
        let content = Content::Event(Arc::clone(&asked.event));
        // No cache answers for a file that has a writer, and what was written just now is
        // not known from before.
        let hashed = match self.class == ScanClass::OnAccess && asked.no_writer {
            true => recall(self.cache.keeper(), &content, self.scanner.is_connected()).await,
            false => Recalled::Nothing,
        };
        let hashed = match hashed {
            Recalled::Known(scanned) if !self.moved(&content, &scanned) => {
                return (*scanned, Whose::Kept);
            }
            Recalled::Hashed(hashed) => Some(*hashed),
            Recalled::Known(_) | Recalled::Nothing => None,
        };
        let scan = |hashed| {
            self.scanner
                .scan_foreseeing(&content, hashed, terms, hopeless)
        };
        let mut scanned = scan(hashed).await;
        if self.moved(&content, &scanned) {
            scanned = scan(None).await;
            if self.moved(&content, &scanned) && scanned.verdict == Verdict::Clean {
                scanned.verdict = Verdict::NotScanned(NotScanned::Changed);
            }
        }
        (scanned, Whose::Asked)
    }

    fn moved(&self, content: &Content, scanned: &Scanned) -> bool {
        match (scanned.stamp, Stamp::of(content)) {
            (Some(before), Ok(now)) => before.content_moved(&now),
            _ => false,
        }
    }

    /// Answers the kernel, then does what a verdict asks for.
    fn conclude(&self, asked: &Asked, scanned: &Scanned, from: Whose) {
        let outcome = match (asked.event.outcome(&scanned.verdict), from) {
            (Outcome::Scanned(answer), Whose::Kept) => Outcome::Cached(answer),
            (outcome, _) => outcome,
        };
        let in_time = asked.event.answer(outcome);
        // At once: whoever was refused may be gone soon.
        let container = matches!(
            scanned.verdict,
            Verdict::Malware { .. } | Verdict::Suspicious { .. }
        )
        .then(|| container::of(asked.event.pid, asked.event.seen))
        .flatten();
        self.remember(asked, scanned, from);
        let path = Path::new(OsStr::from_bytes(&asked.path));
        if self.test_files.note(&asked.stamp, &scanned.verdict) {
            tracing::debug!(path = %PathBytes::from_path(path), "self-test file: {:?}", scanned.verdict.kind());
            return;
        }
        let action = match outcome {
            Outcome::Scanned(Answer::Deny) | Outcome::Cached(Answer::Deny) if in_time => {
                Action::Blocked
            }
            _ if in_time => Action::Reported,
            _ => Action::Late,
        };
        match &scanned.verdict {
            Verdict::NotScanned(reason) => tracing::info!(
                path = %PathBytes::from_path(path), pid = asked.event.pid,
                failure = Failure::from(reason).key(), answer = outcome.answer().as_str(), in_time,
                "not scanned: {reason}"
            ),
            Verdict::Clean => {}
            Verdict::Malware { .. } | Verdict::Suspicious { .. } => {
                let found = detection(&self.tenant, path.into(), scanned, action, asked);
                if let Some(mut found) = found {
                    found.container = container;
                    self.act(found, asked, scanned);
                }
            }
        }
    }

    /// Does what settings ask for, if anything, and reports what came of it.
    fn act(&self, mut found: Detection, asked: &Asked, scanned: &Scanned) {
        let detections = self.detections.clone();
        if !self.remedies.concern(&scanned.verdict) {
            log(&found);
            detections.send(found);
            return;
        }
        let content = Content::Event(Arc::clone(&asked.event));
        let path = PathBuf::from(OsStr::from_bytes(&asked.path));
        let (remedies, scanned) = (self.remedies.clone(), scanned.clone());
        tokio::spawn(async move {
            let (class, pid) = (found.class, found.pid);
            let done = remedies.treat(&content, &path, &scanned, class, pid).await;
            found.action = done.unwrap_or(found.action);
            log(&found);
            detections.send(found);
        });
    }

    fn remember(&self, asked: &Asked, scanned: &Scanned, from: Whose) {
        // What was kept, or came from the one that stands by, says nothing of the
        // definitions in force.
        if from == Whose::Asked
            && !scanned.by_spare
            && !scanned.older
            && !scanned.generations.is_empty()
        {
            self.cache.use_generations(&scanned.generations);
        }
        let (Some(content), Some(stamp)) = (scanned.content, scanned.stamp) else {
            return;
        };
        if scanned.verdict == Verdict::Clean {
            let known = from == Whose::Asked && !scanned.by_spare;
            self.index.saw(content, &stamp, &asked.path, known);
        }
        // What is older is asked for again, until it was scanned anew; what the one that
        // stands by said, at the next open.
        if !scanned.older
            && !scanned.by_spare
            && asked.no_writer
            && stamp == asked.stamp
            && stamp.settled(SystemTime::now())
            && lease::is_unwritten(&*asked.event)
            && Stamp::of(&*asked.event).is_ok_and(|now| now == stamp)
        {
            let known = Known {
                content,
                verdict: scanned.verdict.clone(),
            };
            match from {
                Whose::Asked => self.cache.put(stamp, known, &scanned.generations),
                Whose::Kept => self.cache.put_kept(stamp, known, &scanned.generations),
            }
            if scanned.verdict == Verdict::Clean {
                self.marks.found_clean(&asked.event, &stamp);
            }
        }
    }
}

/// Whose verdict it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    /// A Protection Server's, just now.
    Asked,
    /// One that was kept by its content.
    Kept,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Served {
    Done,
    /// The deadline ended the scan, and the content still has no verdict.
    Unfinished,
    /// The opener has gone on with an older verdict, which should be renewed.
    Recheck,
}

fn detection(
    tenant: &TenantId,
    path: PathBuf,
    scanned: &Scanned,
    action: Action,
    asked: &Asked,
) -> Option<Detection> {
    let mut found = spool::detection(tenant.clone(), &path, scanned, action, ScanClass::OnAccess)?;
    found.pid = asked.event.pid;
    Some(found)
}

fn log(found: &Detection) {
    let what = match found.action {
        Action::Blocked => "blocked",
        Action::Reported => "found, and not blocked",
        Action::Late => "found after the open had been answered",
        Action::Quarantined => "found, and moved into quarantine",
        Action::Deleted => "found, and deleted",
    };
    tracing::warn!(
        path = %found.path, member = %found.member.as_deref().unwrap_or_default(),
        pid = found.pid, container = %found.container.as_deref().unwrap_or_default(),
        verdict = found.verdict.as_str(),
        name = %found.name, engine = %found.engine, size = found.size,
        blake3 = %hex::encode(found.blake3),
        sha256 = %found.sha256.map(hex::encode).unwrap_or_default(),
        "{what}"
    );
}
