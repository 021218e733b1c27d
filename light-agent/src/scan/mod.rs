//! On-demand scans: every regular file below the given paths is asked for.
//!
//! ```text
//!  walk (blocking thread) ─► paths (bounded) ─► N files in flight ─► report
//! ```
//!
//! | module | owns |
//! | --- | --- |
//! | [`walk`] | which files are scanned, and how they are opened |
//! | [`report`] | the counts and findings, as JSON and for people |
//! | [`command`] | `palisade-agent scan`: sessions, progress, exit code |
//!
//! Memory and descriptors are bounded by the files in flight. A scan waits for a
//! Protection Server that went away and goes on when it is back; it ends without
//! one only after the patience that settings give.

pub mod command;
pub mod report;
pub mod walk;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures_util::stream::{FuturesUnordered, StreamExt as _};
use palisade_protocol::content::MAX_CONTENT_BYTES;
use palisade_protocol::scan::ScanClass;
use palisade_protocol::verdict::{NotScanned, Verdict};
use tokio::sync::mpsc;

use crate::content::{self, Content};
use crate::scanner::{Scanned, Scanner, Terms};
use crate::settings;
use report::Report;
use walk::{Found, Opened};

/// Files that are hashed or looked up for each that is asked for: enough to fill
/// batches.
const FILES_PER_REQUEST: usize = 4;
/// Paths that may wait for a slot.
const MAX_QUEUED: usize = 256;

/// What is scanned, and how.
#[derive(Debug, Clone)]
pub struct Job {
    /// The given paths, absolute.
    pub paths: Vec<PathBuf>,
    /// Not below these, unless given.
    pub exclude: Vec<PathBuf>,
    /// Files in flight: hashed, looked up, or asked for.
    pub concurrency: usize,
    /// Oldest clean verdict of earlier definitions that will do, in seconds.
    pub max_age_s: u32,
    /// How long it waits while no Protection Server is connected.
    pub svm_wait: Duration,
}

impl Job {
    /// A job as settings have it.
    pub fn new(paths: Vec<PathBuf>, exclude: Vec<PathBuf>, settings: &settings::Scan) -> Self {
        Self {
            paths,
            exclude,
            concurrency: settings.concurrency * FILES_PER_REQUEST,
            max_age_s: settings.max_verdict_age_s,
            svm_wait: Duration::from_secs(settings.svm_wait_s),
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
    fn done(&mut self, path: &Path, result: &Done, report: &Report);
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
}

/// Runs a scan to its end. The error is why it could not go on; the report then
/// holds what was done until then.
pub async fn run(
    job: &Job,
    scanner: &Scanner,
    observer: &mut impl Observer,
) -> (Report, Result<(), NotScanned>) {
    let (found, mut paths) = mpsc::channel(MAX_QUEUED);
    let (roots, exclude) = (job.paths.clone(), job.exclude.clone());
    let walking = tokio::task::spawn_blocking(move || walk::walk(&roots, &exclude, &found));
    let mut report = Report::default();
    let mut in_flight = FuturesUnordered::new();
    let mut outcome = Ok(());
    let mut open = true;
    while open || !in_flight.is_empty() {
        tokio::select! {
            next = paths.recv(), if open && in_flight.len() < job.concurrency => match next {
                Some(Found::File(path)) => in_flight.push(scan_file(path, scanner, job.terms())),
                Some(Found::Error { path, reason }) => {
                    let done = Done::Failed(reason);
                    report.add(&path, &done);
                    observer.done(&path, &done, &report);
                }
                None => open = false,
            },
            Some((path, done)) = in_flight.next() => {
                if let Done::Scanned(scanned) = &done
                    && scanned.verdict == Verdict::NotScanned(NotScanned::NoSvm)
                {
                    // Nothing further can be scanned: what waits is not tried.
                    outcome = Err(NotScanned::NoSvm);
                    open = false;
                    paths.close();
                }
                report.add(&path, &done);
                observer.done(&path, &done, &report);
            }
        }
    }
    drop(paths);
    let _ = walking.await;
    report.sent_bytes = scanner.sent_bytes();
    (report, outcome)
}

async fn scan_file(path: PathBuf, scanner: &Scanner, terms: Terms) -> (PathBuf, Done) {
    let at = path.clone();
    // A small file in memory is hashed on the way: that spares another hop.
    let opened = tokio::task::spawn_blocking(move || match walk::open(&at)? {
        Opened::Regular(file) => {
            let content = Content::File(Arc::new(file));
            let hashed = content::hash_at_once(&content, MAX_CONTENT_BYTES);
            Ok(Some((content, hashed)))
        }
        Opened::Other => Ok::<_, std::io::Error>(None),
    });
    let done = match opened.await {
        Ok(Ok(Some((content, hashed)))) => {
            let scanned = scanner.scan_hashed(&content, hashed, terms).await;
            Done::Scanned(Box::new(scanned))
        }
        Ok(Ok(None)) => Done::Skipped,
        Ok(Err(error)) => Done::Failed(format!("cannot be read: {error}")),
        Err(error) => Done::Failed(error.to_string()),
    };
    (path, done)
}
