//! Scanning the files that wait: one at a time, while a Protection Server is connected,
//! after everything that somebody waits for.
//!
//! ```text
//!  next ─► opened ─► scanned ─► counted ─► pause (as long as the scan took, at least)
//!   ▲        │          ├─ malware: reported and treated as settings have it
//!   │        └─ gone    └─ no end (no server, no capacity): waits behind the others
//!   └──────────────────────────────────────────────────────────────────────────────
//! ```
//!
//! What is at the path now is scanned. A file that changed since is scanned, too, and
//! said to have changed; another file at the path is none of this queue's.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use palisade_protocol::bounded::PathBytes;
use palisade_protocol::scan::ScanClass;
use palisade_protocol::verdict::{NotScanned, Verdict};
use tokio::sync::watch;

use super::Deferred;
use super::queue::Item;
use crate::again::Again;
use crate::content::Content;
use crate::current::Current;
use crate::exposure::windows::Result;
use crate::index::Index;
use crate::pace::jittered;
use crate::scan::open::{self, Opened};
use crate::scanner::Terms;
use crate::selection::LinkState;
use crate::stamp::Stamp;

/// How long one file may be asked about.
const PATIENCE: Duration = Duration::from_secs(120);
/// The shortest pause between two files.
const SHORTEST_PAUSE: Duration = Duration::from_millis(40);
/// The longest, whatever a scan took.
const LONGEST_PAUSE: Duration = Duration::from_secs(5);
/// The pause after a scan that came to no end.
const REST: Duration = Duration::from_secs(5);
/// How long a Protection Server that came back is left to those who wait.
const SETTLE: Duration = Duration::from_secs(1);

/// What scanning takes.
pub struct Drain {
    /// The files.
    pub deferred: Deferred,
    /// Whether a Protection Server is connected.
    pub link: watch::Receiver<LinkState>,
    /// Asks and reports.
    pub again: Current<Again>,
    /// Files whose content was clean.
    pub index: Arc<Index>,
}

/// What came of one file.
enum Ended {
    /// It waits no more.
    Done { result: Result, changed: bool },
    /// It waits on; whether that was a try.
    Later(bool),
}

impl Drain {
    /// Scans for ever.
    pub async fn run(mut self) {
        loop {
            let item = self.deferred.next().await;
            if self.link.borrow_and_update().link().is_none() {
                if self.link.changed().await.is_err() {
                    return;
                }
                tokio::time::sleep(jittered(SETTLE, 0.5, 1.5)).await;
                continue;
            }
            let began = Instant::now();
            let pause = match self.one(&item).await {
                Ended::Done { result, changed } => {
                    self.deferred.done(&item, result, changed);
                    began.elapsed().clamp(SHORTEST_PAUSE, LONGEST_PAUSE)
                }
                Ended::Later(counts) => {
                    self.deferred.put_back(&item, counts);
                    REST
                }
            };
            tokio::time::sleep(jittered(pause, 0.8, 1.2)).await;
        }
    }

    async fn one(&self, item: &Item) -> Ended {
        let path = item.path.0.clone();
        let shown = PathBytes::from_path(&path);
        let opened = tokio::task::spawn_blocking(move || open(path)).await;
        let (content, stamp) = match opened {
            Ok(Ok(Some((content, stamp)))) if item.is(&stamp) => (content, stamp),
            Ok(Ok(_)) => return gone(&shown, "another file, or none, is there by now"),
            Ok(Err(error)) if error.kind() == std::io::ErrorKind::NotFound => {
                return gone(&shown, "it is not there any more");
            }
            Ok(Err(error)) => {
                tracing::info!(path = %shown, %error, "was let through unscanned, and cannot be opened");
                return done(Result::NotScanned, false);
            }
            // The runtime ends.
            Err(_) => return Ended::Later(false),
        };
        let changed = !item.is_unchanged(&stamp);
        let terms = Terms {
            class: ScanClass::OnDemand,
            max_age_s: 0,
            until: Some(Instant::now() + PATIENCE),
            without_svm: Duration::ZERO,
        };
        let again = self.again.get();
        let scanned = again.scanner.scan(&content, terms).await;
        let result = match &scanned.verdict {
            Verdict::Clean => {
                if let (Some(id), Some(stamp)) = (scanned.content, scanned.stamp) {
                    use std::os::unix::ffi::OsStrExt as _;
                    let path = item.path.0.as_os_str().as_bytes();
                    self.index.saw(id, &stamp, path, !scanned.by_spare);
                }
                Result::Clean
            }
            Verdict::Malware { name, .. } => {
                tracing::warn!(path = %shown, %name, "was let through unscanned, and is malware");
                Result::Malware
            }
            Verdict::Suspicious { name, .. } => {
                tracing::warn!(path = %shown, %name, "was let through unscanned, and is suspicious");
                Result::Suspicious
            }
            Verdict::NotScanned(NotScanned::NoSvm) => return Ended::Later(false),
            Verdict::NotScanned(
                NotScanned::Overloaded | NotScanned::TimedOut | NotScanned::Changed,
            ) => return Ended::Later(true),
            Verdict::NotScanned(reason) => {
                tracing::info!(path = %shown, %reason, "was let through, and is not scanned");
                Result::NotScanned
            }
        };
        again.report(&content, &item.path.0, &scanned).await;
        done(result, changed)
    }
}

fn done(result: Result, changed: bool) -> Ended {
    Ended::Done { result, changed }
}

fn gone(path: &PathBytes, why: &str) -> Ended {
    tracing::info!(%path, "was let through unscanned: {why}");
    done(Result::Gone, false)
}

fn open(path: PathBuf) -> std::io::Result<Option<(Content, Stamp)>> {
    let Opened::Regular(file) = open::open_again(&path)? else {
        return Ok(None);
    };
    let stamp = Stamp::of(&file)?;
    Ok(Some((Content::File(Arc::new(file)), stamp)))
}
