//! On-demand scans: every regular file below the given paths is asked for.
//!
//! ```text
//!  walk ─► paths ─► opened, small files hashed ─► N files in flight ─► report
//!  (blocking thread)  (blocking pool, some at a time)
//! ```
//!
//! | module | owns |
//! | --- | --- |
//! | [`what`], [`places`], [`mounts`] | what a quick and a full scan cover |
//! | [`walk`], [`order`] | which files are scanned, and in which order |
//! | [`open`] | how they are opened |
//! | [`remote`], [`reach`] | file systems whose server may never answer, and names that may lead there |
//! | [`hands`] | the threads that do that, and their priority |
//! | [`progress`] | the rate and the time left |
//! | [`report`] | the counts and findings, as JSON and for people |
//! | [`command`] | `palisade-agent scan`: sessions, progress, exit code |
//!
//! Memory and descriptors are bounded by the files in flight. A scan waits for a
//! Protection Server that went away and goes on when it is back; it ends without
//! one only after the patience that settings give.
//!
//! [`run`] may be dropped at any time: what its observer was told of is done, and the
//! rest is not.

pub mod command;
pub mod hands;
pub mod mounts;
pub mod open;
pub mod order;
pub mod places;
pub mod progress;
pub mod reach;
pub mod remote;
pub mod report;
pub mod walk;
pub mod what;

use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use palisade_protocol::content::MAX_CONTENT_BYTES;
use palisade_protocol::scan::ScanClass;
use palisade_protocol::verdict::{NotScanned, Verdict};
use tokio::sync::mpsc;

use crate::content::{self, Content, Hashed};
use crate::index::scans::Scans;
use crate::packaged::Packaged;
use crate::quarantine::remedies::Remedies;
use crate::scanner::{Scanned, Scanner, Terms};
use crate::settings;
use hands::Hands;
use open::Opened;
use report::Report;
use walk::{Found, Plan};

/// Files that are hashed or looked up for each that is asked for: enough to fill
/// batches.
const FILES_PER_REQUEST: usize = 4;
/// Files that are opened and hashed in one go: a thread that is woken for each file
/// costs as much as to hash it.
const FILES_PER_HOP: usize = 16;
/// Longer than anything runs.
const FOR_EVER: Duration = Duration::from_secs(100 * 365 * 86_400);
/// Paths that may wait for a slot.
const MAX_QUEUED: usize = 256;

/// What is scanned, and how.
#[derive(Debug, Clone)]
pub struct Job {
    /// Which files.
    pub plan: Plan,
    /// Files in flight: hashed, looked up, or asked for.
    pub concurrency: usize,
    /// Oldest clean verdict of earlier definitions that will do, in seconds.
    pub max_age_s: u32,
    /// How long it waits while no Protection Server is connected.
    pub svm_wait: Duration,
    /// Who walks and opens.
    pub hands: Hands,
    /// Whether the report lists what is not clean.
    pub lists_findings: bool,
    /// What is done about malware; it is only reported if nothing is set.
    pub remedies: Option<Remedies>,
    /// What packages have, if that is not scanned as all else.
    pub packaged: Option<Arc<Packaged>>,
    /// Where it stands which files were clean, to be found when one turns out not to be.
    pub held: Option<Arc<Scans>>,
}

impl Job {
    /// A job as settings have it, which somebody waits for.
    pub fn new(plan: Plan, settings: &settings::Scan) -> Self {
        Self {
            plan,
            concurrency: settings.concurrency * FILES_PER_REQUEST,
            max_age_s: settings.max_verdict_age_s,
            svm_wait: Duration::from_secs(settings.svm_wait_s),
            hands: Hands::default(),
            lists_findings: true,
            remedies: None,
            packaged: None,
            held: None,
        }
    }

    /// The same in the background, with so many requests at a time: it waits for a
    /// Protection Server for as long as it is let.
    #[must_use]
    pub fn in_background(self, asking: usize, hands: Hands) -> Self {
        Self {
            concurrency: asking * FILES_PER_REQUEST,
            svm_wait: FOR_EVER,
            hands,
            lists_findings: false,
            ..self
        }
    }

    fn terms(&self) -> Terms {
        Terms {
            class: ScanClass::OnDemand,
            max_age_s: self.max_age_s,
            until: None,
            without_svm: self.svm_wait,
        }
    }
}

/// Told of each file as it is done.
pub trait Observer {
    /// One file is done.
    fn done(&mut self, found: &Found, result: &Done, report: &Report);

    /// Whether more files may be begun; asked anew after each that is done.
    fn takes_more(&self) -> bool {
        true
    }
}

/// How one file ended.
#[derive(Debug)]
pub enum Done {
    /// With a verdict, or a reason for none.
    Scanned(Box<Scanned>),
    /// It cannot be opened.
    Failed(String),
    /// It is no regular file any more.
    Skipped,
    /// It is as its package has it, and that is not scanned.
    Packaged,
    /// The same, and its turn comes after all others'.
    SetAside,
}

/// Runs a scan to its end. The error is why it could not go on; the report then
/// holds what was done until then.
pub async fn run(
    job: &Job,
    scanner: &Scanner,
    observer: &mut impl Observer,
) -> (Report, Result<(), NotScanned>) {
    let (found, mut paths) = mpsc::channel(MAX_QUEUED);
    let plan = job.plan.clone();
    let packaged = job.packaged.clone();
    let walking = job
        .hands
        .spawn(move || walk::walk(&plan, packaged.as_deref(), &found));
    let mut scan = Scan {
        report: Report::default(),
        observer,
        lists_findings: job.lists_findings,
    };
    let hop = FILES_PER_HOP.min(job.concurrency);
    let mut batch = Vec::with_capacity(hop);
    let mut preparing = FuturesUnordered::new();
    let mut in_flight = FuturesUnordered::new();
    let mut taken = 0;
    let mut outcome = Ok(());
    let mut open = true;
    while open || taken > 0 {
        let takes = taken + hop <= job.concurrency && scan.observer.takes_more();
        tokio::select! {
            count = paths.recv_many(&mut batch, hop), if open && takes => {
                open = count > 0;
                let files = scan.without_errors(batch.drain(..));
                if !files.is_empty() {
                    taken += files.len();
                    let packaged = job.packaged.clone();
                    preparing.push(
                        job.hands
                            .spawn(move || prepare_all(files, packaged.as_deref())),
                    );
                }
            },
            Some(prepared) = preparing.next() => match prepared {
                Ok(prepared) => in_flight.extend(
                    prepared
                        .into_iter()
                        .map(|(file, opened)| scan_file(file, opened, scanner, job)),
                ),
                Err(error) => match error.try_into_panic() {
                    Ok(panic) => std::panic::resume_unwind(panic),
                    // The runtime ends.
                    Err(_) => break,
                },
            },
            Some((file, done)) = in_flight.next() => {
                taken -= 1;
                if let Done::Scanned(scanned) = &done
                    && scanned.verdict == Verdict::NotScanned(NotScanned::NoSvm)
                {
                    // Nothing further can be scanned: what waits is not tried.
                    outcome = Err(NotScanned::NoSvm);
                    open = false;
                    paths.close();
                }
                scan.done(&file, &done);
            }
        }
    }
    drop(paths);
    let _ = walking.await;
    let mut report = scan.report;
    report.sent_bytes = scanner.sent_bytes();
    (report, outcome)
}

/// What a scan tells.
struct Scan<'a, O> {
    report: Report,
    observer: &'a mut O,
    lists_findings: bool,
}

impl<O: Observer> Scan<'_, O> {
    fn done(&mut self, found: &Found, done: &Done) {
        self.report.add(&found.at.path, done);
        self.observer.done(found, done, &self.report);
        if !self.lists_findings {
            self.report.findings.clear();
        }
    }

    /// The files among what was found; the rest is told.
    fn without_errors(&mut self, found: impl Iterator<Item = Found>) -> Vec<Found> {
        found
            .filter_map(|found| match found.problem.clone() {
                None => Some(found),
                Some(reason) => {
                    self.done(&found, &Done::Failed(reason));
                    None
                }
            })
            .collect()
    }
}

/// A file as it was opened.
enum Prepared {
    /// To be asked for; with its outline where that took no waiting.
    Content(Content, Option<Hashed>),
    /// It is done.
    Done(Done),
}

fn prepare_all(files: Vec<Found>, packaged: Option<&Packaged>) -> Vec<(Found, Prepared)> {
    files
        .into_iter()
        .map(|file| {
            let prepared = prepare(&file, packaged);
            let prepared = prepared.unwrap_or_else(|error| {
                Prepared::Done(Done::Failed(format!("cannot be read: {error}")))
            });
            (file, prepared)
        })
        .collect()
}

/// Opens a file; one that is small and in memory is hashed on the way.
fn prepare(found: &Found, packaged: Option<&Packaged>) -> std::io::Result<Prepared> {
    let path = found.at.path.as_path();
    let Opened::Regular(file) = open::open(path)? else {
        return Ok(Prepared::Done(Done::Skipped));
    };
    match packaged {
        // The first walk came to it after the second had found it.
        Some(packaged) if found.again && !packaged.was_set_aside(path) => {
            return Ok(Prepared::Done(Done::Skipped));
        }
        Some(packaged) if !found.again && packaged.vouches(path, &file) => {
            return Ok(Prepared::Done(match packaged.is_last() {
                true => Done::SetAside,
                false => Done::Packaged,
            }));
        }
        _ => {}
    }
    let content = Content::File(Arc::new(file));
    let hashed = content::hash_at_once(&content, MAX_CONTENT_BYTES);
    Ok(Prepared::Content(content, hashed))
}

async fn scan_file(file: Found, prepared: Prepared, scanner: &Scanner, job: &Job) -> (Found, Done) {
    let done = match prepared {
        Prepared::Content(content, hashed) => {
            let mut scanned = scanner.scan_hashed(&content, hashed, job.terms()).await;
            if let Some(remedies) = &job.remedies {
                scanned.action = remedies
                    .treat(&content, &file.at.path, &scanned, ScanClass::OnDemand, 0)
                    .await;
            }
            if let Some(held) = &job.held
                && scanned.verdict == Verdict::Clean
                && scanned.source.is_some()
                && let (Some(id), Some(stamp)) = (scanned.content, &scanned.stamp)
            {
                held.saw(id, stamp, &file.at.path);
            }
            Done::Scanned(Box::new(scanned))
        }
        Prepared::Done(done) => done,
    };
    (file, done)
}
