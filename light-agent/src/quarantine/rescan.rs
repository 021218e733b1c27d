//! What newer definitions say of the files in the quarantine.
//!
//! ```text
//!  other definitions ─► each file: opened into memory ─► asked about ─► noted in its record
//!  (or the command)                                          │ clean, and settings allow it
//!                                                            └─► restored
//! ```
//!
//! A file is unsealed into memory alone, one at a time, and the quarantine is not locked
//! while it is asked about. What was private at its place stays private here: it is
//! asked about by its hashes. Which definitions are in force is the cache's to hear.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use palisade_protocol::scan::ScanClass;
use palisade_protocol::verdict::{Generations, NotScanned, Verdict, VerdictKind};
use rustix::fs::{MemfdFlags, memfd_create};
use tokio::sync::watch;
use uuid::Uuid;

use super::record::{Again, Record};
use super::restore::restore;
use super::vault::Vault;
use crate::content::Content;
use crate::current::Current;
use crate::private::Private;
use crate::scanner::{Scanned, Scanner, Terms};
use crate::spool::now_ms;
use crate::state_file::StateFile;

/// How long one file may be asked about.
const PATIENCE: Duration = Duration::from_secs(600);
/// Larger files are not unsealed into memory, and not asked about.
const MAX_BYTES: u64 = 512 << 20;
/// Definitions of several engines come one after the other: how long is waited for
/// the others.
const SETTLE: Duration = Duration::from_secs(2);
/// Bytes of the note of the definitions that were asked, at the most.
const MAX_NOTE_BYTES: u64 = 64 * 1024;

/// What asking takes.
pub struct Rescan {
    /// The quarantine.
    pub vault: Vault,
    /// Gets verdicts.
    pub scanner: Scanner,
    /// Gets verdicts by hashes alone.
    pub by_hashes: Scanner,
    /// What is private at its place.
    pub private: Vec<PathBuf>,
    /// Whether what is clean now is put back to its place.
    pub restore_clean: bool,
}

/// What was said of one file.
#[derive(Debug, Clone)]
pub struct Said {
    /// Which.
    pub id: Uuid,
    /// Where it was; unknown where its record does not open.
    pub record: Option<Record>,
    /// The verdict.
    pub verdict: Verdict,
    /// Whether it was put back, and why not if it was tried.
    pub restored: Option<Result<PathBuf, String>>,
    /// The definitions that said it.
    pub generations: Generations,
}

impl Rescan {
    /// A re-scan as settings have it.
    pub fn new(vault: Vault, scanner: &Scanner, private: &[PathBuf], restore_clean: bool) -> Self {
        Self {
            vault,
            scanner: scanner.clone(),
            by_hashes: scanner.clone().keeping(Private::new(&["/".into()])),
            private: private.to_vec(),
            restore_clean,
        }
    }

    /// Asks about every file.
    ///
    /// # Errors
    /// The quarantine's folders'.
    pub async fn all(&self) -> io::Result<Vec<Said>> {
        let vault = self.vault.clone();
        let ids = blocking(move || vault.lock()?.ids()).await?;
        let mut said = Vec::new();
        for id in ids {
            said.extend(self.one(id).await);
        }
        Ok(said)
    }

    /// Asks about one file; nothing if it left meanwhile.
    async fn one(&self, id: Uuid) -> Option<Said> {
        let vault = self.vault.clone();
        let unsealed = match blocking(move || unseal(&vault, id)).await {
            Ok(unsealed) => unsealed?,
            Err(error) => {
                tracing::error!(%id, %error, "a file in quarantine cannot be asked about");
                return Some(Said {
                    id,
                    record: None,
                    verdict: Verdict::NotScanned(NotScanned::ReadError {
                        detail: palisade_protocol::bounded::Text::cut(&error.to_string()),
                    }),
                    restored: None,
                    generations: Generations::default(),
                });
            }
        };
        let (mut record, file) = unsealed;
        let path = record.path.as_path();
        let scanner = match self.private.iter().any(|private| path.starts_with(private)) {
            true => &self.by_hashes,
            false => &self.scanner,
        };
        let scanned = match file {
            Some(file) => {
                let content = Content::File(Arc::new(file));
                let terms = Terms {
                    class: ScanClass::OnDemand,
                    max_age_s: 0,
                    until: Some(Instant::now() + PATIENCE),
                    without_svm: PATIENCE,
                };
                Some(scanner.scan(&content, terms).await)
            }
            None => None,
        };
        let verdict = match &scanned {
            Some(scanned) => scanned.verdict.clone(),
            None => Verdict::NotScanned(NotScanned::TooLarge { max: MAX_BYTES }),
        };
        record.again = Some(Again {
            time_ms: now_ms(),
            verdict: verdict.kind().as_str().to_owned(),
            name: match &verdict {
                Verdict::Malware { name, .. } | Verdict::Suspicious { name, .. } => {
                    name.to_string()
                }
                Verdict::NotScanned(reason) => reason.to_string(),
                Verdict::Clean => String::new(),
            },
        });
        let clean = scanned.as_ref().is_some_and(is_clean);
        let (vault, noted, put_back) = (
            self.vault.clone(),
            record.clone(),
            clean && self.restore_clean,
        );
        let restored = blocking(move || conclude(&vault, &noted, put_back)).await;
        let restored = restored.unwrap_or_else(|error| Some(Err(error.to_string())));
        tell(&record, &verdict, restored.as_ref());
        Some(Said {
            id,
            record: Some(record),
            verdict,
            restored,
            generations: scanned
                .map(|scanned| scanned.generations)
                .unwrap_or_default(),
        })
    }
}

/// Clean by the definitions in force, and nothing less.
fn is_clean(scanned: &Scanned) -> bool {
    scanned.verdict == Verdict::Clean && !scanned.older
}

fn tell(record: &Record, verdict: &Verdict, restored: Option<&Result<PathBuf, String>>) {
    let (id, path) = (record.id, &record.path);
    match restored {
        Some(Ok(_)) => {
            tracing::warn!(%id, %path, "clean by newer definitions: restored from quarantine");
        }
        Some(Err(error)) => {
            tracing::error!(%id, %path, %error, "clean by newer definitions, and cannot be restored");
        }
        None if verdict.kind() == VerdictKind::Clean => {
            tracing::warn!(%id, %path, "clean by newer definitions; it stays in quarantine until somebody restores it");
        }
        None => {
            tracing::debug!(%id, %path, verdict = verdict.kind().as_str(), "asked about again");
        }
    }
}

/// A file of the quarantine in memory, if it is not too large.
fn unseal(vault: &Vault, id: Uuid) -> io::Result<Option<(Record, Option<File>)>> {
    let locked = vault.lock()?;
    if !locked.ids()?.contains(&id) {
        return Ok(None);
    }
    let record = locked.record(id)?;
    if record.size > MAX_BYTES {
        return Ok(Some((record, None)));
    }
    let mut file = File::from(memfd_create("palisade-quarantine", MemfdFlags::CLOEXEC)?);
    let content = locked.content(id, &mut |chunk| file.write_all(chunk))?;
    if content != record.found.content {
        return Err(io::Error::other("its content is not what was found"));
    }
    Ok(Some((record, Some(file))))
}

/// Notes what was said, and puts the file back where that is wanted.
fn conclude(
    vault: &Vault,
    record: &Record,
    put_back: bool,
) -> io::Result<Option<Result<PathBuf, String>>> {
    let locked = vault.lock()?;
    if !locked.ids()?.contains(&record.id) {
        return Ok(None);
    }
    locked.put_record(record)?;
    if !put_back {
        return Ok(None);
    }
    let restored = restore(&locked, record.id, None).map_err(|error| error.to_string());
    Ok(Some(restored))
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => Err(io::Error::other(error)),
    }
}

/// Settles what an earlier process left half done, then re-scans whenever other
/// definitions are heard of, for ever. `state` is where the
/// definitions are noted that were asked last.
pub async fn follow(
    rescan: Current<Rescan>,
    state: PathBuf,
    mut heard: watch::Receiver<Generations>,
) {
    let vault = rescan.get().vault.clone();
    if vault.exists()
        && let Err(error) = blocking(move || vault.lock().map(drop)).await
    {
        tracing::error!(%error, "what was cut short in the quarantine cannot be settled yet");
    }
    let note = StateFile::new(
        state.join("quarantine/definitions.json"),
        MAX_NOTE_BYTES,
        "the quarantine is scanned again, though its definitions may be known",
    );
    let mut asked: Generations = note.load().unwrap_or_default();
    // What was heard before anybody listened counts, too.
    heard.mark_changed();
    loop {
        if heard.changed().await.is_err() {
            return;
        }
        let rescan = rescan.get();
        if !rescan.vault.exists() {
            continue;
        }
        tokio::time::sleep(SETTLE).await;
        let mut now = heard.borrow_and_update().clone();
        if now == asked || now.is_empty() {
            continue;
        }
        match rescan.all().await {
            Ok(said) if said.iter().all(|said| was_answered(&said.verdict)) => {
                if let Some(last) = said.last().filter(|last| !last.generations.is_empty()) {
                    now = last.generations.clone();
                }
                tracing::info!(files = said.len(), "the quarantine was scanned again");
                asked = now;
                if let Err(error) = note.save(&asked) {
                    tracing::warn!(%error, "the definitions that the quarantine was scanned by cannot be noted");
                }
            }
            // It is tried again with the next definitions, or the next look.
            Ok(_) => tracing::info!("some files in quarantine were not scanned again"),
            Err(error) => tracing::error!(%error, "the quarantine cannot be scanned again"),
        }
    }
}

/// Whether somebody looked at it, or never will.
fn was_answered(verdict: &Verdict) -> bool {
    !matches!(
        verdict,
        Verdict::NotScanned(NotScanned::NoSvm | NotScanned::Overloaded | NotScanned::TimedOut)
    )
}
