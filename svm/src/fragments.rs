//! Fragments of contents that were scanned lately: what a changed file need not
//! send again.
//!
//! ```text
//!  scan done ──keep──► contents, most recently used last ──find──► pieces of a new content
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
//! **Invariant:** a tenant is never asked for less because of what another holds.
//! **Invariant:** every byte here was verified against its chaining value before it
//! was sealed.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use palisade_protocol::content::{ChainingValue, Outline, has_outline};
use palisade_protocol::ids::TenantId;
use palisade_worker::client::SealedContent;

use crate::budget::Share;

/// Contents that are kept at the most: each holds a descriptor.
const MAX_CONTENTS: usize = 512;

/// Where a fragment of a new content can be copied from.
#[derive(Debug, Clone)]
pub struct Piece {
    /// Which fragment of the new content.
    pub index: u32,
    /// Holds its bytes.
    pub source: Arc<SealedContent>,
    /// Where, in bytes: the same offset in the old content as in the new one.
    pub offset: u64,
    /// How many bytes.
    pub length: u64,
}

/// The store. Clones share it.
#[derive(Debug, Clone)]
pub struct FragmentStore {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Most bytes that are kept; 0 keeps nothing.
    bound: u64,
    bytes: u64,
    contents: HashMap<u64, Held>,
    /// Least recently used first: tick → content.
    order: BTreeMap<u64, u64>,
    places: HashMap<TenantId, HashMap<ChainingValue, u64>>,
    /// Counts up: names contents, and orders their uses.
    tick: u64,
}

#[derive(Debug)]
struct Held {
    tenant: TenantId,
    outline: Outline,
    bytes: Arc<SealedContent>,
    used: u64,
    /// Fragments that are found here, and not in a newer content.
    found_here: usize,
    /// Given back to the budget when the content is forgotten.
    _share: Share,
}

impl FragmentStore {
    /// A store of at most `bound` bytes; 0 keeps nothing.
    pub fn new(bound: u64) -> Self {
        Self {
            inner: Arc::new(Mutex::new(Inner {
                bound,
                ..Inner::default()
            })),
        }
    }

    /// Keeps a content that was verified and scanned. Contents of one fragment are not
    /// worth a descriptor, and those above the bound have no room.
    pub fn keep(&self, tenant: &TenantId, outline: Outline, bytes: SealedContent, share: Share) {
        let mut inner = self.inner();
        let size = outline.size();
        if !has_outline(size) || size > inner.bound || bytes.size() != size {
            return;
        }
        let wanted = size.saturating_sub(inner.bound - inner.bytes);
        inner.forget_bytes(wanted);
        while inner.contents.len() >= MAX_CONTENTS {
            inner.forget_oldest();
        }
        inner.insert(tenant, outline, bytes, share.of_nobody());
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
                    source: Arc::clone(&held.bytes),
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

    /// Forgets the least recently used contents, until `bytes` are given back or none
    /// is left.
    pub fn make_room(&self, bytes: u64) {
        self.inner().forget_bytes(bytes);
    }

    /// Bytes that are kept.
    pub fn bytes(&self) -> u64 {
        self.inner().bytes
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
    fn insert(&mut self, tenant: &TenantId, outline: Outline, bytes: SealedContent, share: Share) {
        self.tick += 1;
        let number = self.tick;
        let places = self.places.entry(tenant.clone()).or_default();
        let mut superseded: HashMap<u64, usize> = HashMap::new();
        for value in outline.chaining_values() {
            if let Some(before) = places.insert(*value, number) {
                *superseded.entry(before).or_default() += 1;
            }
        }
        self.bytes += outline.size();
        self.order.insert(number, number);
        let held = Held {
            tenant: tenant.clone(),
            found_here: outline.fragments(),
            outline,
            bytes: Arc::new(bytes),
            used: number,
            _share: share,
        };
        self.contents.insert(number, held);
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
        if let Some(held) = self.contents.get_mut(&number) {
            self.order.remove(&held.used);
            held.used = self.tick;
            self.order.insert(held.used, number);
        }
    }

    fn forget_bytes(&mut self, bytes: u64) {
        let until = self.bytes.saturating_sub(bytes);
        while self.bytes > until {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        if let Some((_, number)) = self.order.first_key_value() {
            self.forget(*number);
        }
    }

    fn forget(&mut self, number: u64) {
        let Some(held) = self.contents.remove(&number) else {
            return;
        };
        self.order.remove(&held.used);
        self.bytes = self.bytes.saturating_sub(held.outline.size());
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
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::Budget;
    use palisade_protocol::content::{FRAGMENT_BYTES, OutlineBuilder};
    use palisade_protocol::ids::AgentId;
    use proptest::prelude::*;

    const FRAGMENT: usize = FRAGMENT_BYTES as usize;

    /// A content whose fragments are named by numbers; the last has `tail` bytes.
    fn content(names: &[u8], tail: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = names
            .iter()
            .flat_map(|name| vec![*name; FRAGMENT])
            .collect();
        bytes.truncate((names.len() - 1) * FRAGMENT + tail);
        bytes
    }

    fn outline(bytes: &[u8]) -> Outline {
        let mut builder = OutlineBuilder::new();
        for part in bytes.chunks(FRAGMENT) {
            builder.push(part).unwrap();
        }
        builder.finish()
    }

    fn tenant(name: &str) -> TenantId {
        name.parse().unwrap()
    }

    async fn keep(store: &FragmentStore, budget: &Budget, owner: &str, bytes: &[u8]) {
        let share = budget
            .take(AgentId::random(), bytes.len() as u64)
            .await
            .unwrap();
        let sealed = SealedContent::from_bytes(bytes).unwrap();
        store.keep(&tenant(owner), outline(bytes), sealed, share);
    }

    fn indices(store: &FragmentStore, owner: &str, bytes: &[u8]) -> Vec<u32> {
        let found = store.find(&tenant(owner), &outline(bytes));
        for piece in &found {
            let mut copy = vec![0; piece.length as usize];
            piece.source.read_exact_at(&mut copy, piece.offset).unwrap();
            let start = piece.offset as usize;
            assert_eq!(
                copy,
                bytes[start..start + copy.len()],
                "another fragment's bytes"
            );
        }
        found.iter().map(|piece| piece.index).collect()
    }

    #[tokio::test]
    async fn what_stayed_in_its_place_is_found_by_its_own_tenant_alone() {
        let (store, budget) = (
            FragmentStore::new(64 << 20),
            Budget::new(64 << 20, 64 << 20),
        );
        keep(&store, &budget, "a", &content(&[1, 2, 3, 4], 100)).await;
        assert_eq!(
            indices(&store, "a", &content(&[1, 9, 3, 4], 100)),
            [0, 2, 3]
        );
        assert_eq!(indices(&store, "a", &content(&[1, 9, 3, 4], 99)), [0, 2]);
        assert_eq!(indices(&store, "a", &content(&[2, 1, 3, 4], 100)), [2, 3]);
        assert!(indices(&store, "b", &content(&[1, 2, 3, 4], 100)).is_empty());
    }

    #[tokio::test]
    async fn the_newest_version_takes_the_place_of_the_one_before() {
        let (store, budget) = (
            FragmentStore::new(64 << 20),
            Budget::new(64 << 20, 64 << 20),
        );
        keep(&store, &budget, "a", &content(&[1, 2, 3, 4], FRAGMENT)).await;
        keep(&store, &budget, "a", &content(&[1, 9, 3, 4], FRAGMENT)).await;
        assert_eq!(store.contents(), 1);
        assert_eq!(
            indices(&store, "a", &content(&[1, 2, 3, 4], FRAGMENT)),
            [0, 2, 3]
        );
    }

    #[tokio::test]
    async fn memory_that_is_wanted_is_given_back_oldest_first() {
        let size = 2 * FRAGMENT_BYTES;
        let budget = Budget::new(4 * size, size);
        let store = FragmentStore::new(3 * size);
        for name in [1, 3, 5, 7] {
            keep(&store, &budget, "a", &content(&[name, name + 1], FRAGMENT)).await;
        }
        assert_eq!((store.contents(), store.bytes()), (3, 3 * size));
        assert!(indices(&store, "a", &content(&[1, 2], FRAGMENT)).is_empty());
        // Its use makes the content with 3 the newest.
        assert_eq!(indices(&store, "a", &content(&[3, 4], FRAGMENT)), [0, 1]);
        store.make_room(1);
        assert!(indices(&store, "a", &content(&[5, 6], FRAGMENT)).is_empty());
        assert_eq!(indices(&store, "a", &content(&[3, 4], FRAGMENT)), [0, 1]);
        store.make_room(u64::MAX);
        assert_eq!((store.contents(), store.bytes()), (0, 0));
        assert_eq!(budget.free_bytes(), 4 * size, "every share came back");
        assert!(store.inner().places.is_empty() && store.inner().order.is_empty());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        /// Whatever comes: the bounds hold, the indices agree, the bytes are the right ones.
        #[test]
        fn it_stays_within_its_bound_and_true(
            steps in prop::collection::vec(
                (0..2_usize, prop::collection::vec(0..4_u8, 2..5), 1..FRAGMENT),
                1..12,
            ),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
            runtime.block_on(async {
                let budget = Budget::new(64 << 20, 64 << 20);
                let bound = 10 * FRAGMENT_BYTES;
                let store = FragmentStore::new(bound);
                for (owner, names, tail) in steps {
                    let owner = ["a", "b"][owner];
                    let bytes = content(&names, tail);
                    indices(&store, owner, &bytes);
                    keep(&store, &budget, owner, &bytes).await;
                    let all = (0..bytes.chunks(FRAGMENT).count() as u32).collect::<Vec<_>>();
                    assert_eq!(indices(&store, owner, &bytes), all);
                    let inner = store.inner();
                    assert!(inner.bytes <= bound);
                    assert_eq!(inner.order.len(), inner.contents.len());
                    let sum: u64 = inner.contents.values().map(|held| held.outline.size()).sum();
                    assert_eq!(inner.bytes, sum);
                    for (tenant, places) in &inner.places {
                        for content in places.values() {
                            assert_eq!(&inner.contents[content].tenant, tenant);
                        }
                    }
                }
            });
        }
    }
}
