//! Contents that were called clean and are malware by newer definitions: their files
//! are found, hashed again and asked about, although nobody opens them.
//!
//! ```text
//!  notice ─► verdicts forgotten ─► named contents ─► files by index, ─► queue (bounded)
//!                                  (merged, bounded)  and what scans saw   │ one at a time
//!              reported ◄── malware ◄── asked again ◄── opened: still the same file?
//! ```
//!
//! A notice is no verdict: what the Protection Server says when it is asked decides,
//! and it is asked about the bytes that are in the file now. What is found is
//! reported, and treated as settings have it ([`crate::quarantine`]); a file that stays
//! where it is is asked about at its next open as any other.
//! A file that is gone, or another by now, is left alone: whatever is there is asked
//! about when it is opened.

use std::collections::{BTreeSet, HashSet};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use palisade_protocol::bounded::PathBytes;
use palisade_protocol::content::ContentId;
use palisade_protocol::control::Action;
use palisade_protocol::ids::TenantId;
use palisade_protocol::notice::Notice;
use palisade_protocol::scan::ScanClass;
use palisade_protocol::verdict::Verdict;
use tokio::sync::{Notify, mpsc};

use crate::cache::Cache;
use crate::content::Content;
use crate::current::Current;
use crate::index::{Held, Index, MAX_FILES, scans};
use crate::quarantine::remedies::Remedies;
use crate::scan::open::{self, Opened};
use crate::scanner::{Scanned, Scanner, Terms};
use crate::spool;
use crate::stamp::Stamp;

/// Contents that may wait for their files to be looked for.
const MAX_HEARD: usize = 16 * 1024;
/// How long one file may be asked about.
const PATIENCE: Duration = Duration::from_secs(600);

/// Contents that notices named and whose files were not looked for yet. What many notices
/// name in the meantime is one search: it reads two files through.
#[derive(Debug, Default)]
struct Heard {
    contents: Mutex<BTreeSet<ContentId>>,
    more: Notify,
}

impl Heard {
    /// Takes contents in; gives how many there was no room for.
    fn add(&self, contents: &[ContentId]) -> usize {
        let mut heard = self.lock();
        let mut dropped = 0;
        for content in contents {
            if heard.len() < MAX_HEARD {
                heard.insert(*content);
            } else if !heard.contains(content) {
                dropped += 1;
            }
        }
        drop(heard);
        self.more.notify_one();
        dropped
    }

    /// Waits for contents; gives all that there are.
    async fn next(&self) -> Vec<ContentId> {
        loop {
            let all = std::mem::take(&mut *self.lock());
            if !all.is_empty() {
                return all.into_iter().collect();
            }
            self.more.notified().await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<ContentId>> {
        self.contents.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Hears of contents. Clones share the queue.
#[derive(Clone)]
pub struct Listener {
    cache: Arc<Cache>,
    heard: Arc<Heard>,
}

impl Listener {
    /// Takes a notice: returns at once.
    pub fn hear(&self, notice: &Notice) {
        let contents = notice.contents.len();
        let forgotten = self.cache.forget(&notice.contents);
        let dropped = self.heard.add(&notice.contents);
        tracing::warn!(
            contents,
            forgotten,
            "contents that were clean are malware now: their files are asked about again"
        );
        if dropped > 0 {
            tracing::error!(
                dropped,
                "too many contents at once: their files are asked about when they are opened"
            );
        }
    }
}

/// Looks for the files of what was heard.
struct Search {
    heard: Arc<Heard>,
    index: Arc<Index>,
    files: mpsc::Sender<Held>,
    /// Where it stands what scans saw.
    state: PathBuf,
}

impl Search {
    async fn run(self) {
        loop {
            let contents = self.heard.next().await;
            let opened = self.index.take(&contents);
            let state = self.state.clone();
            // Two files are read through: not on a thread that opens wait for.
            let scanned =
                tokio::task::spawn_blocking(move || scans::find(&state, &contents, MAX_FILES));
            let Ok(scanned) = scanned.await else {
                // The runtime ends.
                return;
            };
            tracing::info!(
                opened = opened.len(),
                scanned = scanned.len(),
                "files to ask about again"
            );
            let known: HashSet<(u64, u64)> = opened.iter().map(Held::place).collect();
            let others = scanned.into_iter();
            let others = others.filter(|file| !known.contains(&file.place()));
            self.ask_about(opened.into_iter().chain(others));
        }
    }

    fn ask_about(&self, files: impl Iterator<Item = Held>) {
        let dropped = files.filter_map(|file| self.files.try_send(file).err());
        let dropped = dropped.count();
        if dropped > 0 {
            tracing::error!(
                dropped,
                "too many files at once: these are asked about when they are opened"
            );
        }
    }
}

/// What asking takes.
pub struct Again {
    /// Gets verdicts.
    pub scanner: Scanner,
    /// Takes detections; full means a counted drop.
    pub detections: spool::Sender,
    /// What is done about malware.
    pub remedies: Remedies,
    /// Whose guest this is.
    pub tenant: TenantId,
}

/// Starts asking, for as long as somebody listens.
pub fn start(
    again: Current<Again>,
    cache: Arc<Cache>,
    index: Arc<Index>,
    state: PathBuf,
) -> Listener {
    let (files, mut waiting) = mpsc::channel(MAX_FILES);
    tokio::spawn(async move {
        while let Some(held) = waiting.recv().await {
            again.get().ask(held).await;
        }
    });
    let heard = Arc::<Heard>::default();
    let search = Search {
        heard: Arc::clone(&heard),
        index,
        files,
        state,
    };
    tokio::spawn(search.run());
    Listener { cache, heard }
}

impl Again {
    async fn ask(&self, held: Held) {
        let path = PathBuf::from(OsStr::from_bytes(&held.path));
        let at = path.clone();
        let opened = tokio::task::spawn_blocking(move || open(&at, &held)).await;
        let shown = PathBytes::from_path(&path);
        let content = match opened {
            Ok(Ok(Some(content))) => content,
            Ok(Ok(None)) => {
                tracing::info!(path = %shown, "another file is there by now");
                return;
            }
            Ok(Err(error)) => {
                tracing::info!(path = %shown, %error, "it cannot be asked about again");
                return;
            }
            // The runtime ends.
            Err(_) => return,
        };
        let terms = Terms {
            class: ScanClass::OnDemand,
            max_age_s: 0,
            until: Some(Instant::now() + PATIENCE),
            without_svm: PATIENCE,
        };
        let scanned = self.scanner.scan(&content, terms).await;
        match &scanned.verdict {
            Verdict::Malware { name, .. } | Verdict::Suspicious { name, .. } => {
                tracing::warn!(path = %shown, %name, "was called clean, and is not by newer definitions");
            }
            Verdict::NotScanned(reason) => {
                tracing::warn!(path = %shown, %reason, "asked about again, and not scanned");
            }
            Verdict::Clean => {}
        }
        self.report(&content, &path, &scanned).await;
    }

    /// Does what settings ask for about a finding, and reports what came of it.
    pub async fn report(&self, content: &Content, path: &Path, scanned: &Scanned) {
        let class = ScanClass::OnDemand;
        let remedies = &self.remedies;
        let done = remedies.treat(content, path, scanned, class, 0).await;
        let found = spool::detection(
            self.tenant.clone(),
            path,
            scanned,
            done.unwrap_or(Action::Reported),
            class,
        );
        if let Some(found) = found {
            self.detections.send(found);
        }
    }
}

/// The file at the path, if it is the one that was seen.
fn open(path: &std::path::Path, held: &Held) -> std::io::Result<Option<Content>> {
    let Opened::Regular(file) = open::open_again(path)? else {
        return Ok(None);
    };
    let stamp = Stamp::of(&file)?;
    let same = (stamp.device, stamp.inode) == (held.device, held.inode);
    Ok(same.then(|| Content::File(Arc::new(file))))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: usize) -> ContentId {
        let mut id = [0; 32];
        id[..8].copy_from_slice(&number.to_be_bytes());
        ContentId(id)
    }

    /// However many notices come while files are looked for: they are one more search, of a
    /// bounded number of contents, each once.
    #[tokio::test]
    async fn notices_that_come_meanwhile_are_merged_and_bounded() {
        let heard = Heard::default();
        for _ in 0..1000 {
            assert_eq!(heard.add(&[id(1), id(2)]), 0);
        }
        assert_eq!(heard.next().await, [id(1), id(2)]);
        let many: Vec<ContentId> = (0..MAX_HEARD + 3).map(id).collect();
        assert_eq!(heard.add(&many), 3);
        assert_eq!(heard.add(&[id(1)]), 0, "it is there");
        assert_eq!(heard.next().await.len(), MAX_HEARD);
        assert_eq!(heard.add(&many[MAX_HEARD..]), 0);
        assert_eq!(heard.next().await, many[MAX_HEARD..]);
    }
}
