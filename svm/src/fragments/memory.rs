//! The store as requests and re-scans know it, and the contents that are in memory.
//!
//! ```text
//!  scan done ──keep──► contents, most recently used last ──find──► pieces of a new content
//!                        │         │ the older half                     ▲
//!                        │         └─next_copy──► writer ──► disk ──────┘ what memory lacks
//!                        └─ make_room: the memory is wanted for contents in flight
//! ```
//!
//! A content stays as the sealed memory file that was scanned, with its share of the
//! one budget for contents ([`crate::budget`]): keeping copies nothing, and memory
//! that a request needs is given back at once. Fragments are found by tenant and
//! chaining value; the chaining value is that of a place, so what moved within a file
//! is not found, and what was changed in place is.
//!
//! A content of one fragment saves nobody a byte, but most malware is so small: it is
//! kept for [`crate::retro::rescan`] alone. In a [`pack`](super::pack), it costs a copy of
//! at most 256 KiB and no descriptor; a bound of its own keeps a scan of many small files
//! from displacing what saves sending, and it is forgotten last, because all of them take
//! little.
//!
//! What is on loan or being copied into a new content is not forgotten to make room,
//! since that would give nothing back ([`kept`](super::kept)). What is being copied to
//! disk is: its memory comes back when one fragment is copied.
//!
//! With a disk behind it, the contents that will be forgotten next are copied there
//! while they are still here ([`ahead`] says which).
//!
//! | module | owns |
//! | --- | --- |
//! | [`contents`] | the contents, what is found where, what goes first |
//! | [`ahead`] | which fragment is copied to disk next |
//! | this | what others may ask for; telling the disk what left |

mod ahead;
mod contents;
#[cfg(test)]
mod tests;

use std::io;
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use palisade_protocol::content::{Outline, has_outline};
use palisade_protocol::ids::TenantId;
use palisade_worker::client::SealedContent;

use super::disk::Disk;
use super::kept::{Kept, Loan};
use super::pack::Pack;
use super::{Piece, Source, writer};
use crate::budget::Share;
use crate::cache::Key;

pub(super) use ahead::Copying;
use contents::Gone;
pub(super) use contents::Inner;

/// How much is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Bounds {
    /// Bytes of memory in all; 0 keeps nothing.
    pub bytes: u64,
    /// Bytes of contents of one fragment; 0 keeps none of them.
    pub small: u64,
}

/// The store. Clones share it.
#[derive(Debug, Clone)]
pub struct FragmentStore {
    pub(super) inner: Arc<Mutex<Inner>>,
    /// Where contents of one fragment are, if any are kept.
    pack: Option<Arc<Pack>>,
    pub(super) tier: Option<Tier>,
}

/// What is behind the memory.
#[derive(Debug, Clone)]
pub(super) struct Tier {
    pub disk: Arc<Disk>,
    /// Wakes the writer.
    pub wake: SyncSender<()>,
}

impl FragmentStore {
    /// A store with these bounds.
    pub fn new(bounds: Bounds) -> Self {
        let pack = match (bounds.small > 0).then(Pack::new).transpose() {
            Ok(pack) => pack.map(Arc::new),
            Err(error) => {
                tracing::error!(%error, "small contents are not kept for re-scans");
                None
            }
        };
        Self {
            inner: Arc::new(Mutex::new(Inner::new(bounds))),
            pack,
            tier: None,
        }
    }

    /// The same, with a disk behind it.
    ///
    /// # Errors
    /// When there is no thread for it.
    pub fn with_disk(bounds: Bounds, disk: Arc<Disk>) -> io::Result<Self> {
        let store = Self::new(bounds);
        let wake = writer::start(Arc::downgrade(&store.inner), Arc::clone(&disk))?;
        Ok(Self {
            tier: Some(Tier { disk, wake }),
            ..store
        })
    }

    /// Keeps a content that was verified and scanned, and whether it was found clean.
    /// What is above the bounds has no room.
    pub fn keep(
        &self,
        key: &Key,
        clean: bool,
        outline: Outline,
        bytes: SealedContent,
        share: Share,
    ) {
        let size = outline.size();
        if size == 0 || bytes.size() != size || outline.id() != key.content {
            return;
        }
        let kept = match (has_outline(size), &self.pack) {
            (true, _) => Kept::file(bytes, share),
            (false, None) => return,
            (false, Some(pack)) => {
                if self.inner().used_again(key, clean) {
                    return;
                }
                match Kept::packed(pack, &bytes, share) {
                    Ok(packed) => packed,
                    Err(error) => {
                        tracing::error!(%error, "a small content is not kept");
                        return;
                    }
                }
            }
        };
        let mut gone = Vec::new();
        let mut inner = self.inner();
        if inner.makes_room_for(&kept, has_outline(size), &mut gone) {
            inner.insert(key, clean, outline, kept);
        }
        drop(inner);
        self.settle(&gone);
    }

    /// The fragments of `outline` that can be had of what this tenant sent before: in
    /// memory, or else on disk.
    pub fn find(&self, tenant: &TenantId, outline: &Outline) -> Vec<Piece> {
        let mut found = self.find_in_memory(tenant, outline);
        if let Some(tier) = &self.tier {
            // In order of their indices, as they were looked for.
            let lacks = |index| {
                found
                    .binary_search_by_key(&index, |piece| piece.index)
                    .is_err()
            };
            let on_disk = tier.disk.find(tenant, outline, lacks);
            found.extend(on_disk);
        }
        found
    }

    fn find_in_memory(&self, tenant: &TenantId, outline: &Outline) -> Vec<Piece> {
        let mut inner = self.inner();
        let mut found = Vec::new();
        let mut used = Vec::new();
        for (index, value) in (0_u32..).zip(outline.chaining_values()) {
            if let Ok((offset, length)) = outline.span(index)
                && let Some((content, kept)) = inner.find(tenant, index, value, (offset, length))
            {
                found.push(Piece {
                    index,
                    source: Source::Memory(kept),
                    offset,
                    length,
                });
                if used.last() != Some(&content) {
                    used.push(content);
                }
            }
        }
        for content in used {
            inner.touch(content);
        }
        found
    }

    /// What was found clean when it was scanned last, the most recently used first: at
    /// most a name for each way in which each content was scanned.
    pub fn called_clean(&self) -> Vec<Key> {
        self.inner().called_clean()
    }

    /// Lends a content, if it is still here. That is no use of it: it is forgotten no
    /// later.
    pub fn lend(&self, key: &Key) -> Option<Loan> {
        let inner = self.inner();
        inner.get(key).map(Loan::new)
    }

    /// Forgets contents, until `bytes` are given back or none is left that would give
    /// any: the least recently used first, and those of one fragment last.
    pub fn make_room(&self, bytes: u64) {
        let mut gone = Vec::new();
        self.inner().give_back(bytes, &mut gone);
        self.settle(&gone);
    }

    /// Bytes of the budget that are kept.
    pub fn bytes(&self) -> u64 {
        self.inner().bytes()
    }

    /// Bytes that are kept on disk.
    pub fn bytes_on_disk(&self) -> u64 {
        self.tier.as_ref().map_or(0, |tier| tier.disk.bytes())
    }

    /// Contents that are kept in memory.
    pub fn contents(&self) -> usize {
        self.inner().contents()
    }

    /// What the disk has to know after contents came and went.
    fn settle(&self, gone: &[Gone]) {
        let Some(tier) = &self.tier else {
            return;
        };
        for Gone { content, lost } in gone {
            tier.disk.touch(*content);
            tier.disk.skipped(*lost);
        }
        // A full channel has woken it already.
        let _ = tier.wake.try_send(());
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        locked(&self.inner)
    }
}

pub(super) fn locked(inner: &Mutex<Inner>) -> MutexGuard<'_, Inner> {
    inner.lock().unwrap_or_else(PoisonError::into_inner)
}
