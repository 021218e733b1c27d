//! Who notices that a cause begins or ends, and has windows and waiting files saved.
//!
//! One task, woken by changes and by a clock. Everything that waits for the disk is done
//! aside, and a disk that takes nothing is said once.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::{Duration, Instant};

use palisade_protocol::control::Protection;
use tokio::sync::watch;

use super::record::{Record, RecordFile, booted_ms};
use super::windows::{Alive, Cause, Windows};
use crate::deferred::Deferred;
use crate::deferred::queue::Item;
use crate::deferred::store::Store;
use crate::health::{NO_SVM, Posture, UNTESTED};
use crate::selection::LinkState;
use crate::settings::Settings;
use crate::spool::now_ms;
use crate::supervise::record::boot;

/// How long a change waits for others to be saved with it.
const SAVE_EVERY: Duration = Duration::from_secs(3);
/// Files that wait, of which each more second between two saves allows so many to be
/// written: many guests of one host may be without a Protection Server at the same time.
const ITEMS_PER_S: u64 = 100;
/// How often it is written that the agent runs, in rounds of [`SAVE_EVERY`].
const ALIVE_ROUNDS: u32 = 10;

/// Where all of it is kept.
#[derive(Debug, Clone)]
pub struct Files {
    store: Store,
    record: RecordFile,
    boot: String,
}

impl Files {
    /// The files of a state folder.
    pub fn new(state: &Path) -> Self {
        Self {
            store: Store::new(state),
            record: RecordFile::new(state),
            boot: boot(),
        }
    }

    /// What was kept; the time since then is a window of its own, which lasts until the
    /// agent has started. Of an agent that protects nothing no window is kept.
    pub fn load(&self, settings: &Settings, protects: bool) -> Deferred {
        let record = self.record.load();
        let known = record.as_ref().map(|record| record.alive.clone());
        let windows = record.map(|record| record.windows).unwrap_or_default();
        let deferred = Deferred::new(
            settings.on_access.deferred_files,
            self.store.load(),
            windows,
        );
        if let Some(last) = known.filter(|_| protects) {
            deferred.windows(|windows| {
                windows.started(&last, &self.boot, booted_ms(), now_ms());
                true
            });
        }
        deferred
    }

    /// Saves what changed; the files that wait, too, if `items` says so; that the agent
    /// runs in any case, if `alive` does.
    ///
    /// # Errors
    /// The disk's.
    pub fn save(&self, deferred: &Deferred, items: bool, alive: bool) -> std::io::Result<()> {
        let changed = deferred.to_save(items);
        if changed.is_none() && !alive {
            return Ok(());
        }
        let saved = self.write(changed, deferred);
        if saved.is_err() {
            deferred.not_saved();
        }
        saved
    }

    fn write(
        &self,
        changed: Option<(Option<Vec<Item>>, Windows)>,
        deferred: &Deferred,
    ) -> std::io::Result<()> {
        let windows = match changed {
            Some((items, windows)) => {
                if let Some(items) = items {
                    self.store.save(&items)?;
                }
                windows
            }
            None => deferred.windows_now(),
        };
        let alive = Alive {
            boot: self.boot.clone(),
            at_ms: now_ms(),
        };
        self.record.save(&Record::new(alive, windows))
    }
}

/// Whether there is anything to be exposed: as settings have it, whatever is switched.
pub fn protects(settings: &Settings) -> bool {
    settings.on_access.enabled && !settings.on_access.paths.is_empty()
}

/// Watches for ever; the causes that stand were there from the start.
pub async fn watch(
    files: Files,
    deferred: Deferred,
    mut link: watch::Receiver<LinkState>,
    mut posture: watch::Receiver<Posture>,
    standing: BTreeSet<Cause>,
) {
    for cause in [Cause::Fallback, Cause::Bypass] {
        deferred.cause(cause, standing.contains(&cause));
    }
    let mut turn = tokio::time::interval(SAVE_EVERY);
    turn.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let (mut rounds, mut failing) = (0_u32, false);
    let mut items_at = Instant::now();
    loop {
        let connected = link.borrow_and_update().link().is_some();
        let is_off = is_off(&posture.borrow_and_update().protection);
        // Switched off is said as that.
        let off = connected && is_off && !standing.contains(&Cause::Bypass);
        deferred.cause(Cause::NoSvm, !connected);
        deferred.cause(Cause::Off, off);
        // Whatever is to be said of now has been said.
        deferred.cause(Cause::NotRunning, false);
        tokio::select! {
            changed = link.changed() => if changed.is_err() { return },
            changed = posture.changed() => if changed.is_err() { return },
            _ = turn.tick() => {
                deferred.windows(|windows| windows.tick(now_ms()));
                if deferred.is_newly_full() {
                    tracing::error!(
                        "more files were let through without a verdict than are kept to be \
                         scanned later: `palisade-agent scan --full` finds them"
                    );
                }
                let alive = rounds.is_multiple_of(ALIVE_ROUNDS);
                rounds = rounds.wrapping_add(1);
                let items = Instant::now() >= items_at;
                if items {
                    items_at = Instant::now() + between_items(deferred.waiting());
                }
                let (files, deferred) = (files.clone(), deferred.clone());
                let saved =
                    tokio::task::spawn_blocking(move || files.save(&deferred, items, alive)).await;
                let Ok(saved) = saved else { return };
                if let Err(error) = &saved && !failing {
                    tracing::warn!(%error, "files that wait to be scanned cannot be kept on the disk");
                }
                failing = saved.is_err();
            }
        }
    }
}

/// How long after so many files were saved they are saved again at the earliest.
fn between_items(waiting: usize) -> Duration {
    Duration::from_secs(waiting as u64 / ITEMS_PER_S)
}

/// Whether nothing is protected, for more than the moment and for a cause of its own.
pub fn is_off(protection: &Protection) -> bool {
    match protection {
        // What is true until the next self-test has ended is no cause of its own.
        Protection::Off { reason } => {
            reason.as_str() != UNTESTED && !reason.as_str().starts_with(NO_SVM)
        }
        Protection::Blocking | Protection::Monitoring => false,
    }
}
