//! Contents that were scanned lately: what a changed file need not send again, and what
//! new definitions can be tried on unasked.
//!
//! ```text
//!                 ┌─ more than one fragment: its memory file ─┐──find──► pieces of a new
//!  scan done ─keep┤   at most MAX_CONTENTS (descriptors)      │          content
//!                 └─ one fragment: packed, without descriptor ┘──lend──► a scan by new
//!                     at most MAX_SMALL and `small` bytes                definitions
//!                        │
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
//! kept for [`crate::retro::rescan`] alone. In a [`pack`], it costs a copy of at most 256
//! KiB and no descriptor; a bound of its own keeps a scan of many small files from
//! displacing what saves sending, and it is forgotten last, because all of them take
//! little.
//!
//! What is on loan or being copied is not forgotten to make room, since that would give
//! nothing back ([`kept`]).
//!
//! **Invariant:** a tenant is never asked for less because of what another holds.
//! **Invariant:** every byte here was verified against its chaining value, or the
//! content's id, before it was sealed. **Invariant:** memory is counted until its last
//! user is done.

mod kept;
mod pack;

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use palisade_protocol::content::{ChainingValue, ContentId, Outline, has_outline};
use palisade_protocol::ids::TenantId;
use palisade_protocol::scan::ScanOptions;
use palisade_worker::client::SealedContent;

use crate::budget::Share;
use crate::cache::Key;

pub use kept::{Kept, Loan};
use pack::Pack;

/// Contents of more than one fragment that are kept at the most: each holds a
/// descriptor.
pub const MAX_CONTENTS: usize = 512;
/// Contents of one fragment that are kept at the most.
pub const MAX_SMALL: usize = 16_384;

/// Where a fragment of a new content can be copied from.
#[derive(Debug, Clone)]
pub struct Piece {
    /// Which fragment of the new content.
    pub index: u32,
    /// Holds its bytes.
    pub source: Arc<Kept>,
    /// Where, in bytes: the same offset in the old content as in the new one.
    pub offset: u64,
    /// How many bytes.
    pub length: u64,
}

/// How much is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Bounds {
    /// Bytes in all; 0 keeps nothing.
    pub bytes: u64,
    /// Bytes of contents of one fragment; 0 keeps none of them.
    pub small: u64,
}

/// The store. Clones share it.
#[derive(Debug, Clone)]
pub struct FragmentStore {
    inner: Arc<Mutex<Inner>>,
    /// Where contents of one fragment are, if any are kept.
    pack: Option<Arc<Pack>>,
}

#[derive(Debug, Default)]
struct Inner {
    bounds: Bounds,
    contents: HashMap<u64, Held>,
    large: Shelf,
    small: Shelf,
    places: HashMap<TenantId, HashMap<ChainingValue, u64>>,
    ids: HashMap<(TenantId, ContentId), u64>,
    /// Counts up: names contents, and orders their uses.
    tick: u64,
}

/// Contents that make room for each other.
#[derive(Debug, Default)]
struct Shelf {
    /// What they take of the budget.
    bytes: u64,
    /// Least recently used first: tick → content.
    order: BTreeMap<u64, u64>,
}

#[derive(Debug)]
struct Held {
    tenant: TenantId,
    outline: Outline,
    /// The options under which it was found clean when it was scanned last.
    clean_with: Vec<ScanOptions>,
    kept: Arc<Kept>,
    used: u64,
    /// Fragments that are found here, and not in a newer content.
    found_here: usize,
}

impl Held {
    fn is_large(&self) -> bool {
        has_outline(self.outline.size())
    }

    /// Whether forgetting it gives its memory back. Users come under the store's lock.
    fn is_idle(&self) -> bool {
        Arc::strong_count(&self.kept) == 1
    }

    fn scanned(&mut self, options: ScanOptions, clean: bool) {
        self.clean_with.retain(|with| *with != options);
        if clean {
            self.clean_with.push(options);
        }
    }
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
            pack,
            inner: Arc::new(Mutex::new(Inner {
                bounds,
                ..Inner::default()
            })),
        }
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
        if has_outline(size) {
            let mut inner = self.inner();
            if inner.makes_room_for_large(share.bytes()) {
                inner.insert(key, clean, outline, Kept::file(bytes, share));
            }
            return;
        }
        let Some(pack) = &self.pack else {
            return;
        };
        if self.inner().used_again(key, clean) {
            return;
        }
        match Kept::packed(pack, &bytes, share) {
            Ok(packed) => {
                let mut inner = self.inner();
                if inner.makes_room_for_small(packed.held_bytes()) {
                    inner.insert(key, clean, outline, packed);
                }
            }
            Err(error) => tracing::error!(%error, "a small content is not kept"),
        }
    }

    /// The fragments of `outline` that can be copied from what this tenant sent before.
    pub fn find(&self, tenant: &TenantId, outline: &Outline) -> Vec<Piece> {
        let mut inner = self.inner();
        let mut found = Vec::new();
        let mut used = Vec::new();
        let Some(places) = inner.places.get(tenant) else {
            return found;
        };
        for (index, value) in (0_u32..).zip(outline.chaining_values()) {
            // A chaining value belongs to one place and one length.
            if let Some(content) = places.get(value)
                && let Some(held) = inner.contents.get(content)
                && held.outline.chaining_values().get(index as usize) == Some(value)
                && let Ok((offset, length)) = outline.span(index)
                && held.outline.span(index) == Ok((offset, length))
            {
                found.push(Piece {
                    index,
                    source: Arc::clone(&held.kept),
                    offset,
                    length,
                });
                if used.last() != Some(content) {
                    used.push(*content);
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
        let inner = self.inner();
        let mut held: Vec<&Held> = inner.contents.values().collect();
        held.sort_unstable_by_key(|held| std::cmp::Reverse(held.used));
        let names = held.iter().flat_map(|held| {
            held.clean_with.iter().map(|options| Key {
                tenant: held.tenant.clone(),
                content: held.outline.id(),
                size: held.outline.size(),
                options: *options,
            })
        });
        names.collect()
    }

    /// Lends a content, if it is still here. That is no use of it: it is forgotten no
    /// later.
    pub fn lend(&self, key: &Key) -> Option<Loan> {
        let inner = self.inner();
        let number = inner.ids.get(&(key.tenant.clone(), key.content))?;
        let held = inner.contents.get(number)?;
        (held.outline.size() == key.size).then(|| Loan::new(&held.kept))
    }

    /// Forgets contents, until `bytes` are given back or none is left that would give
    /// any: the least recently used first, and those of one fragment last.
    pub fn make_room(&self, bytes: u64) {
        self.inner().forget_bytes(bytes);
    }

    /// Bytes of the budget that are kept.
    pub fn bytes(&self) -> u64 {
        self.inner().bytes()
    }

    /// Contents that are kept.
    pub fn contents(&self) -> usize {
        self.inner().contents.len()
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn bytes(&self) -> u64 {
        self.large.bytes + self.small.bytes
    }

    fn shelf(&mut self, large: bool) -> &mut Shelf {
        if large {
            &mut self.large
        } else {
            &mut self.small
        }
    }

    fn makes_room_for_large(&mut self, bytes: u64) -> bool {
        if bytes > self.bounds.bytes {
            return false;
        }
        while self.large.order.len() >= MAX_CONTENTS {
            if self.forget_oldest(true).is_none() {
                return false;
            }
        }
        let free = self.bounds.bytes.saturating_sub(self.bytes());
        self.forget_bytes(bytes.saturating_sub(free))
    }

    fn makes_room_for_small(&mut self, bytes: u64) -> bool {
        if bytes > self.bounds.small.min(self.bounds.bytes) {
            return false;
        }
        while self.small.order.len() >= MAX_SMALL || self.small.bytes + bytes > self.bounds.small {
            if self.forget_oldest(false).is_none() {
                return false;
            }
        }
        let free = self.bounds.bytes.saturating_sub(self.bytes());
        self.forget_bytes(bytes.saturating_sub(free))
    }

    /// A content that is here was scanned again.
    fn used_again(&mut self, key: &Key, clean: bool) -> bool {
        let Some(number) = self.ids.get(&(key.tenant.clone(), key.content)).copied() else {
            return false;
        };
        if let Some(held) = self.contents.get_mut(&number) {
            held.scanned(key.options, clean);
        }
        self.touch(number);
        true
    }

    fn insert(&mut self, key: &Key, clean: bool, outline: Outline, kept: Kept) {
        let id = (key.tenant.clone(), key.content);
        let before = self.ids.get(&id).copied();
        let clean_with = before.and_then(|before| self.contents.get(&before));
        let clean_with = clean_with.map_or_else(Vec::new, |held| held.clean_with.clone());
        if let Some(before) = before {
            self.forget(before);
        }
        self.tick += 1;
        let number = self.tick;
        let mut superseded: HashMap<u64, usize> = HashMap::new();
        if has_outline(outline.size()) {
            let places = self.places.entry(key.tenant.clone()).or_default();
            for value in outline.chaining_values() {
                if let Some(before) = places.insert(*value, number) {
                    *superseded.entry(before).or_default() += 1;
                }
            }
        }
        let mut held = Held {
            tenant: key.tenant.clone(),
            found_here: outline.fragments(),
            outline,
            clean_with,
            kept: Arc::new(kept),
            used: number,
        };
        held.scanned(key.options, clean);
        let shelf = self.shelf(held.is_large());
        shelf.bytes += held.kept.held_bytes();
        shelf.order.insert(number, number);
        self.contents.insert(number, held);
        self.ids.insert(id, number);
        for (before, fragments) in superseded {
            let worthless = match self.contents.get_mut(&before) {
                Some(held) => {
                    held.found_here = held.found_here.saturating_sub(fragments);
                    held.found_here * 2 < held.outline.fragments()
                }
                None => false,
            };
            // The new one holds most of it: an older version of the same file.
            if worthless {
                self.forget(before);
            }
        }
    }

    fn touch(&mut self, number: u64) {
        self.tick += 1;
        let tick = self.tick;
        let Some(held) = self.contents.get_mut(&number) else {
            return;
        };
        let (before, large) = (held.used, held.is_large());
        held.used = tick;
        let order = &mut self.shelf(large).order;
        order.remove(&before);
        order.insert(tick, number);
    }

    /// Whether so many bytes went back.
    fn forget_bytes(&mut self, bytes: u64) -> bool {
        let mut left = bytes;
        while left > 0 {
            let forgotten = self.forget_oldest(true);
            let Some(given) = forgotten.or_else(|| self.forget_oldest(false)) else {
                return false;
            };
            left = left.saturating_sub(given);
        }
        true
    }

    /// Forgets the least recently used content of a shelf that nobody uses now; gives
    /// how many bytes went back.
    fn forget_oldest(&mut self, large: bool) -> Option<u64> {
        let shelf = if large { &self.large } else { &self.small };
        let is_idle = |number: &u64| self.contents.get(number).is_some_and(Held::is_idle);
        let oldest = shelf.order.values().copied().find(is_idle)?;
        Some(self.forget(oldest))
    }

    fn forget(&mut self, number: u64) -> u64 {
        let Some(held) = self.contents.remove(&number) else {
            return 0;
        };
        let bytes = held.kept.held_bytes();
        let shelf = self.shelf(held.is_large());
        shelf.order.remove(&held.used);
        shelf.bytes = shelf.bytes.saturating_sub(bytes);
        let id = (held.tenant.clone(), held.outline.id());
        if self.ids.get(&id) == Some(&number) {
            self.ids.remove(&id);
        }
        if let Some(places) = self.places.get_mut(&held.tenant) {
            for value in held.outline.chaining_values() {
                if places.get(value) == Some(&number) {
                    places.remove(value);
                }
            }
            if places.is_empty() {
                self.places.remove(&held.tenant);
            }
        }
        bytes
    }
}

#[cfg(test)]
mod tests;
