//! What is done about a finding, from the verdict to the word that is reported.
//!
//! ```text
//!  malware ─► policy ─► turn (one at a time, few wait) ─► facts ─► judged ─► taken
//!                                                            └─ why it stays: logged
//! ```
//!
//! Shared by all that find something: opens, writes, contents that turned out to be
//! malware, and on-demand scans. Whatever goes wrong here leaves the file blocked where
//! it is.

use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use palisade_protocol::bounded::PathBytes;
use palisade_protocol::control::Action;
use palisade_protocol::scan::ScanClass;
use palisade_protocol::verdict::{Verdict, VerdictKind};
use tokio::sync::Semaphore;

use super::facts::{self, Around};
use super::policy::{Kept, Movement, Remedy, judge};
use super::record::Found;
use super::take::{Subject, take};
use super::vault::Vault;
use crate::content::Content;
use crate::mode::Mode;
use crate::packaged::rpm;
use crate::scanner::Scanned;
use crate::settings::{Folders, Settings};
use crate::spool::now_ms;

/// Findings that may wait for their turn, each with an open file; more stay blocked.
const MAX_WAITING: usize = 64;

/// What is done about findings. Clones share the turns.
#[derive(Debug, Clone)]
pub struct Remedies {
    vault: Vault,
    remedy: Remedy,
    around: Around,
    turn: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
}

impl Remedies {
    /// As settings have it.
    pub fn new(settings: &Settings, folders: &Folders) -> Self {
        let own = |path: &PathBuf| path.canonicalize().unwrap_or_else(|_| path.clone());
        Self {
            vault: Vault::new(&folders.state, settings.quarantine.limits()),
            remedy: settings.remediation.malware,
            around: Around {
                own: vec![own(&folders.state), own(&folders.run)],
                monitoring: settings.on_access.mode != Mode::Block,
                rpm_listing: rpm::listing(&folders.state),
            },
            turn: Arc::new(Semaphore::new(1)),
            waiting: Arc::new(Semaphore::new(MAX_WAITING)),
        }
    }

    /// The same as other settings have it: whoever waits keeps his turn.
    #[must_use]
    pub fn changed(&self, settings: &Settings, folders: &Folders) -> Self {
        Self {
            turn: Arc::clone(&self.turn),
            waiting: Arc::clone(&self.waiting),
            ..Self::new(settings, folders)
        }
    }

    /// The quarantine.
    pub fn vault(&self) -> &Vault {
        &self.vault
    }

    /// Whether anything is done about such a verdict at all.
    pub fn concern(&self, verdict: &Verdict) -> bool {
        self.remedy != Remedy::Block && verdict.kind() == VerdictKind::Malware
    }

    /// Does what settings ask for; gives the word for it, or nothing where the file
    /// stays.
    pub async fn treat(
        &self,
        content: &Content,
        path: &Path,
        scanned: &Scanned,
        class: ScanClass,
        pid: u32,
    ) -> Option<Action> {
        if !self.concern(&scanned.verdict) {
            return None;
        }
        let done = self.try_to(content, path, scanned, class, pid).await;
        let path = PathBytes::from_path(path);
        match done {
            Ok(Movement::Quarantine) => Some(Action::Quarantined),
            Ok(Movement::Delete) => {
                tracing::warn!(%path, "deleted, as remediation.malware has it");
                Some(Action::Deleted)
            }
            Err(reason) => {
                tracing::warn!(%path, %reason, "it stays where it is");
                None
            }
        }
    }

    async fn try_to(
        &self,
        content: &Content,
        path: &Path,
        scanned: &Scanned,
        class: ScanClass,
        pid: u32,
    ) -> Result<Movement, Kept> {
        let found = found(scanned, class, pid).ok_or(Kept::NotMalware)?;
        let _waiting = self.waiting.try_acquire().map_err(|_| Kept::Busy)?;
        let _turn = self.turn.acquire().await.map_err(|_| Kept::Busy)?;
        let (this, content, path) = (self.clone(), content.clone(), path.to_owned());
        let verdict = scanned.verdict.kind();
        let work = move || this.now(&content, &path, verdict, found);
        match tokio::task::spawn_blocking(work).await {
            Ok(done) => done,
            // The runtime ends.
            Err(error) => Err(Kept::Failed(error.to_string())),
        }
    }

    fn now(
        &self,
        content: &Content,
        path: &Path,
        verdict: VerdictKind,
        found: Found,
    ) -> Result<Movement, Kept> {
        let facts = facts::gather(content, path, verdict, &self.around)
            .map_err(|error| Kept::Failed(error.to_string()))?;
        let movement = judge(self.remedy, &facts)?;
        let subject = Subject {
            file: content.as_fd(),
            path,
            found,
        };
        let id = take(&self.vault, movement, &subject, &())?;
        let links = crate::stamp::links(content).unwrap_or(0);
        let path = PathBytes::from_path(path);
        if movement == Movement::Quarantine {
            tracing::warn!(%path, %id, "moved into quarantine");
        }
        if links > 0 {
            tracing::warn!(%path, links, "it had other names (hard links): they are still there, and blocked");
        }
        Ok(movement)
    }
}

fn found(scanned: &Scanned, class: ScanClass, pid: u32) -> Option<Found> {
    let Verdict::Malware { name, engine } = &scanned.verdict else {
        return None;
    };
    Some(Found {
        time_ms: now_ms(),
        name: name.to_string(),
        engine: engine.to_string(),
        member: scanned.details.member.as_ref().map(ToString::to_string),
        content: scanned.content?,
        sha256: scanned.sha256,
        class,
        pid,
    })
}
