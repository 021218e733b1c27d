//! The contents in memory, as the store holds them under its lock: which go first, and
//! where their fragments are. No I/O but giving back the memory of what is forgotten.
//!
//! ```text
//!  large: more than one fragment, found by their fragments ─┐ forgotten first
//!  small: one fragment, for re-scans alone ─────────────────┘ forgotten last
//!      each: least recently used first; what is in use is passed over
//! ```

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use palisade_protocol::content::{ChainingValue, ContentId, Outline, has_outline};
use palisade_protocol::ids::TenantId;
use palisade_protocol::scan::ScanOptions;

use super::super::kept::Kept;
use super::Bounds;
use crate::cache::Key;

/// Contents of more than one fragment that are kept at the most: each holds a
/// descriptor.
pub const MAX_CONTENTS: usize = 512;
/// Contents of one fragment that are kept at the most.
pub const MAX_SMALL: usize = 16_384;

#[derive(Debug, Default)]
pub struct Inner {
    pub(super) bounds: Bounds,
    pub(super) contents: HashMap<u64, Held>,
    pub(super) large: Shelf,
    pub(super) small: Shelf,
    pub(super) places: HashMap<TenantId, HashMap<ChainingValue, u64>>,
    pub(super) ids: HashMap<(TenantId, ContentId), u64>,
    /// Counts up: names contents, and orders their uses.
    tick: u64,
    /// Requests took memory from here before half of it was used.
    pub(super) pressed: bool,
}

/// Contents that make room for each other.
#[derive(Debug, Default)]
pub(super) struct Shelf {
    /// What they take of the budget.
    pub bytes: u64,
    /// Least recently used first: tick → content.
    pub order: BTreeMap<u64, u64>,
}

#[derive(Debug)]
pub(super) struct Held {
    pub tenant: TenantId,
    pub outline: Outline,
    /// The options under which it was found clean when it was scanned last.
    clean_with: Vec<ScanOptions>,
    pub kept: Arc<Kept>,
    used: u64,
    /// Fragments that are found here, and not in a newer content.
    found_here: usize,
    /// How many of its fragments, from the first on, are on disk.
    pub copied: usize,
}

/// A large content that was forgotten to make room, and how many fragments of it are not
/// on disk.
#[derive(Debug)]
pub(super) struct Gone {
    pub content: u64,
    pub lost: usize,
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

impl Inner {
    pub(super) fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            ..Self::default()
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        self.large.bytes + self.small.bytes
    }

    pub(super) fn contents(&self) -> usize {
        self.contents.len()
    }

    /// Half of what large contents may take, beside the small ones that there are.
    pub(super) fn half_of_large(&self) -> u64 {
        self.bounds.bytes.saturating_sub(self.small.bytes) / 2
    }

    /// The content that has this tenant's fragment at this place.
    pub(super) fn find(
        &self,
        tenant: &TenantId,
        index: u32,
        value: &ChainingValue,
        span: (u64, u64),
    ) -> Option<(u64, Arc<Kept>)> {
        let content = self.places.get(tenant)?.get(value)?;
        let held = self.contents.get(content)?;
        // A chaining value belongs to one place and one length.
        let is_same = held.outline.chaining_values().get(index as usize) == Some(value)
            && held.outline.span(index) == Ok(span);
        is_same.then(|| (*content, Arc::clone(&held.kept)))
    }

    pub(super) fn get(&self, key: &Key) -> Option<&Arc<Kept>> {
        let number = self.ids.get(&(key.tenant.clone(), key.content))?;
        let held = self.contents.get(number)?;
        (held.outline.size() == key.size).then_some(&held.kept)
    }

    pub(super) fn called_clean(&self) -> Vec<Key> {
        let mut held: Vec<&Held> = self.contents.values().collect();
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

    fn shelf(&mut self, large: bool) -> &mut Shelf {
        if large {
            &mut self.large
        } else {
            &mut self.small
        }
    }

    /// Whether there is room for one more content within the bounds, now that others
    /// were forgotten for it.
    pub(super) fn makes_room_for(
        &mut self,
        kept: &Kept,
        large: bool,
        gone: &mut Vec<Gone>,
    ) -> bool {
        let (bytes, bounds) = (kept.held_bytes(), self.bounds);
        let (of_its_kind, count) = match large {
            true => (bounds.bytes, MAX_CONTENTS),
            false => (bounds.small.min(bounds.bytes), MAX_SMALL),
        };
        if bytes > of_its_kind {
            return false;
        }
        loop {
            let shelf = self.shelf(large);
            // Bytes for a large one are made below, of both kinds.
            let fits = large || shelf.bytes + bytes <= of_its_kind;
            if fits && shelf.order.len() < count {
                break;
            }
            if self.forget_oldest(large, gone).is_none() {
                return false;
            }
        }
        let free = bounds.bytes.saturating_sub(self.bytes());
        self.forget_bytes(bytes.saturating_sub(free), gone)
    }

    /// Forgets contents for a request that wants their memory.
    pub(super) fn give_back(&mut self, bytes: u64, gone: &mut Vec<Gone>) {
        self.forget_bytes(bytes, gone);
        self.pressed |= !gone.is_empty();
    }

    /// A content that is here was scanned again.
    pub(super) fn used_again(&mut self, key: &Key, clean: bool) -> bool {
        let Some(number) = self.ids.get(&(key.tenant.clone(), key.content)).copied() else {
            return false;
        };
        if let Some(held) = self.contents.get_mut(&number) {
            held.scanned(key.options, clean);
        }
        self.touch(number);
        true
    }

    pub(super) fn insert(&mut self, key: &Key, clean: bool, outline: Outline, kept: Kept) {
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
            copied: 0,
        };
        held.scanned(key.options, clean);
        let shelf = self.shelf(held.is_large());
        shelf.bytes += held.kept.held_bytes();
        shelf.order.insert(number, number);
        self.pressed &= self.large.bytes <= self.half_of_large();
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

    pub(super) fn touch(&mut self, number: u64) {
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
    fn forget_bytes(&mut self, bytes: u64, gone: &mut Vec<Gone>) -> bool {
        let mut left = bytes;
        while left > 0 {
            let forgotten = self.forget_oldest(true, gone);
            let Some(given) = forgotten.or_else(|| self.forget_oldest(false, gone)) else {
                return false;
            };
            left = left.saturating_sub(given);
        }
        true
    }

    /// Forgets the least recently used content of a shelf that nobody uses now; gives
    /// how many bytes went back.
    fn forget_oldest(&mut self, large: bool, gone: &mut Vec<Gone>) -> Option<u64> {
        let shelf = if large { &self.large } else { &self.small };
        let idle = |number: &u64| {
            let held = self.contents.get(number)?;
            held.is_idle().then_some((*number, held))
        };
        let (content, held) = shelf.order.values().find_map(idle)?;
        if large {
            let lost = held.outline.fragments().saturating_sub(held.copied);
            gone.push(Gone { content, lost });
        }
        Some(self.forget(content))
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
