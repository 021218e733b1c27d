//! Fragments on disk: one file without a name, of slots that each hold one sealed
//! fragment.
//!
//! ```text
//!  writer ──store──► seal ──► slot k at k × 256 KiB ──► read, open, verify ──► request
//!                              │                             │
//!                write fails: slot free, counted      does not open or verify: slot free,
//!                                                     counted, the agent is asked
//! ```
//!
//! The file has no name from its first byte on, its key no copy outside of this
//! process: nothing is left of either, however the daemon ends. Seals' tags stay in
//! memory with the index ([`super::slots`]), so that slots are pages exactly.
//!
//! A disk that is slow, full, broken or lies costs what agents then send again, never
//! a verdict: who waits for a read is [`read`]'s caller, for a time, and only
//! [`READERS`] threads are ever lost to a disk that does not answer.

use std::fs::{self, DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, PermissionsExt as _};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use palisade_protocol::content::{ChainingValue, FRAGMENT_BYTES, Outline};
use palisade_protocol::ids::TenantId;
use tokio::sync::{Semaphore, mpsc};

use super::seal::{Bound, Sealer};
use super::slots::{Content, Slots, Stored};
use super::{Piece, Source};
use crate::metrics::{DiskEvent, Metrics};

/// Requests that read from the disk at a time. Each has a thread and at most
/// [`READ_AHEAD`] + 2 fragments of memory beyond the budget: 8 MiB for all.
const READERS: usize = 8;
/// Fragments that are read before the first is taken.
const READ_AHEAD: usize = 2;
/// The folder is nobody else's.
const FOLDER_MODE: u32 = 0o700;

/// The file and its index.
#[derive(Debug)]
pub struct Disk {
    file: File,
    sealer: Sealer,
    slots: Mutex<Slots>,
    readers: Arc<Semaphore>,
    metrics: Arc<Metrics>,
    /// Whether it was said that writing fails; said again only after it went well.
    failing: AtomicBool,
    /// Whether it was said that what is read is not what was written.
    damaged: AtomicBool,
}

/// A fragment on disk, for one tenant.
#[derive(Debug, Clone)]
pub struct OnDisk {
    owner: Arc<(Arc<Disk>, TenantId)>,
    value: ChainingValue,
    stored: Stored,
}

impl Disk {
    /// A file for `bytes` bytes of fragments in `folder`, which is made if it lacks.
    ///
    /// # Errors
    /// When the folder cannot be used, or holds no such file.
    pub fn open(folder: &Path, bytes: u64, metrics: Arc<Metrics>) -> io::Result<Arc<Self>> {
        let mut builder = DirBuilder::new();
        builder.recursive(true).mode(FOLDER_MODE).create(folder)?;
        // It may have been there, with another mode.
        fs::set_permissions(folder, Permissions::from_mode(FOLDER_MODE))?;
        clear(folder)?;
        let capacity = bytes / FRAGMENT_BYTES;
        Self::on(tempfile::tempfile_in(folder)?, capacity, metrics)
    }

    pub(super) fn on(file: File, capacity: u64, metrics: Arc<Metrics>) -> io::Result<Arc<Self>> {
        let capacity = u32::try_from(capacity).unwrap_or(u32::MAX);
        Ok(Arc::new(Self {
            file,
            sealer: Sealer::new()?,
            slots: Mutex::new(Slots::new(capacity)),
            readers: Arc::new(Semaphore::new(READERS)),
            metrics,
            failing: AtomicBool::new(false),
            damaged: AtomicBool::new(false),
        }))
    }

    /// Bytes of fragments that are there.
    pub fn bytes(&self) -> u64 {
        self.slots().bytes()
    }

    /// Fragments that there is room for.
    pub(super) fn capacity(&self) -> usize {
        self.slots().capacity()
    }

    /// Whether a fragment is there already; then it stays as long as `content` does.
    pub(super) fn has(&self, tenant: &TenantId, value: &ChainingValue, content: Content) -> bool {
        self.slots().claim(tenant, value, content)
    }

    /// A content left the memory: it was in use until now.
    pub(super) fn touch(&self, content: Content) {
        self.slots().touch(content);
    }

    /// Fragments were forgotten before they were written.
    pub(super) fn skipped(&self, fragments: usize) {
        self.metrics.on_disk(DiskEvent::skipped, fragments as u64);
    }

    /// Writes a fragment, whose bytes are not readable afterwards.
    ///
    /// # Errors
    /// The file's: nothing was stored.
    pub(super) fn store(
        &self,
        tenant: &TenantId,
        value: &ChainingValue,
        content: Content,
        bytes: &mut [u8],
    ) -> io::Result<()> {
        let Some(slot) = self.slots().reserve(content) else {
            return Ok(());
        };
        let length = bytes.len() as u64;
        let bound = Bound {
            tenant,
            value,
            length,
        };
        let written = match self.sealer.seal(bound, bytes) {
            Some(seal) => self.file.write_all_at(bytes, offset(slot)).map(|()| seal),
            None => Err(io::Error::other("the key has no nonces left")),
        };
        match written {
            Ok(seal) => {
                let stored = Stored { slot, seal, length };
                self.slots().fill(tenant, value, content, stored);
                self.metrics.on_disk(DiskEvent::written, 1);
                if self.failing.swap(false, Ordering::Relaxed) {
                    tracing::info!("fragments are written to disk again");
                }
                Ok(())
            }
            Err(error) => {
                self.slots().release(slot);
                self.metrics.on_disk(DiskEvent::failed, 1);
                if !self.failing.swap(true, Ordering::Relaxed) {
                    tracing::warn!(%error, "fragments cannot be written to disk; what is forgotten meanwhile is sent again");
                }
                Err(error)
            }
        }
    }

    /// The fragments of `outline` that this tenant sent before, of those that `lacks`
    /// says are wanted.
    pub(super) fn find(
        self: &Arc<Self>,
        tenant: &TenantId,
        outline: &Outline,
        lacks: impl Fn(u32) -> bool,
    ) -> Vec<Piece> {
        let owner = Arc::new((Arc::clone(self), tenant.clone()));
        let mut slots = self.slots();
        let mut found = Vec::new();
        let mut used = Vec::new();
        for (index, value) in (0_u32..).zip(outline.chaining_values()) {
            if lacks(index)
                && let Some((stored, content)) = slots.find(tenant, value)
                && let Ok((offset, length)) = outline.span(index)
                && stored.length == length
            {
                let on_disk = OnDisk {
                    owner: Arc::clone(&owner),
                    value: *value,
                    stored,
                };
                found.push(Piece {
                    index,
                    source: Source::Disk(on_disk),
                    offset,
                    length,
                });
                if used.last() != Some(&content) {
                    used.push(content);
                }
            }
        }
        for content in used {
            slots.touch(content);
        }
        found
    }

    /// What was found there is not what was stored there.
    fn spoilt(&self, stored: &Stored, event: DiskEvent, why: &dyn std::fmt::Display) {
        if !self.slots().remove(stored) {
            // Something else is there by now: found too early, read too late.
            return;
        }
        self.metrics.on_disk(event, 1);
        if !self.damaged.swap(true, Ordering::Relaxed) {
            tracing::warn!(%why, "a fragment on disk is not readable as it was written, and is asked for again; further ones are only counted");
        }
    }

    /// What a test damages.
    #[cfg(test)]
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    fn slots(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl OnDisk {
    /// The bytes, if they are those that `outline` has at `index`.
    fn read(&self, outline: &Outline, index: u32) -> Option<Vec<u8>> {
        let (disk, tenant) = &*self.owner;
        let stored = &self.stored;
        let length = usize::try_from(stored.length).ok()?;
        let mut bytes = vec![0; length];
        if let Err(error) = disk.file.read_exact_at(&mut bytes, offset(stored.slot)) {
            disk.spoilt(stored, DiskEvent::failed, &error);
            return None;
        }
        let bound = Bound {
            tenant,
            value: &self.value,
            length: stored.length,
        };
        if !disk.sealer.open(&stored.seal, bound, &mut bytes) {
            disk.spoilt(stored, DiskEvent::damaged, &"it does not open");
            return None;
        }
        if let Err(error) = outline.verify_fragment(index, &bytes) {
            disk.spoilt(stored, DiskEvent::damaged, &error);
            return None;
        }
        disk.metrics.on_disk(DiskEvent::read, 1);
        Some(bytes)
    }
}

/// Reads pieces that are on disk, on a thread that may block: each with its index, and
/// verified against `outline`; those that cannot be had are left out. Who drops the
/// receiver waits no longer. `None` if enough others read.
pub fn read(pieces: Vec<Piece>, outline: Outline) -> Option<mpsc::Receiver<(Piece, Vec<u8>)>> {
    let readers = pieces.iter().find_map(|piece| match &piece.source {
        Source::Disk(on_disk) => Some(Arc::clone(&on_disk.owner.0.readers)),
        Source::Memory(_) => None,
    })?;
    let permit = readers.try_acquire_owned().ok()?;
    let (give, take) = mpsc::channel(READ_AHEAD);
    tokio::task::spawn_blocking(move || {
        let _permit = permit;
        for piece in pieces {
            let Source::Disk(on_disk) = &piece.source else {
                continue;
            };
            if give.is_closed() {
                return;
            }
            if let Some(bytes) = on_disk.read(&outline, piece.index)
                && give.blocking_send((piece, bytes)).is_err()
            {
                return;
            }
        }
    });
    Some(take)
}

/// Removes files that were left: only a daemon that ended between two calls of the
/// kernel leaves one, on a file system where each must have had a name. Folders stay:
/// another file system may be mounted here, and have its own.
fn clear(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if !entry.file_type()?.is_dir() {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn offset(slot: u32) -> u64 {
    u64::from(slot) * FRAGMENT_BYTES
}
