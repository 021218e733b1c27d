//! Which slot of the file holds what, which are free, and what goes first: no I/O.
//!
//! ```text
//!  reserve ──► slot, not found yet ──► fill ──► found by (tenant, chaining value)
//!     │  ▲            └─ release (not written)        │
//!     │  └──────────── free ◄──── remove (damaged) ───┤
//!     └─ none free: the content that was used longest ago goes, all of it
//! ```
//!
//! A slot holds one fragment. It belongs to the newest content that has the fragment:
//! a content whose fragments all went over to newer ones is gone.
//!
//! **Invariant:** each slot is free, reserved, or of one fragment of one content.

use std::collections::{BTreeMap, HashMap, HashSet};

use palisade_protocol::content::ChainingValue;
use palisade_protocol::ids::TenantId;

use super::seal::Seal;

/// Number of a slot in the file.
pub type Slot = u32;
/// Number of a content, never that of another one.
pub type Content = u64;

/// What lies in a slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    /// Which slot.
    pub slot: Slot,
    /// What opens it.
    pub seal: Seal,
    /// Bytes of it that are used.
    pub length: u64,
}

#[derive(Debug)]
struct Filled {
    content: Content,
    value: ChainingValue,
    seal: Seal,
    length: u64,
}

#[derive(Debug)]
struct Group {
    tenant: TenantId,
    slots: HashSet<Slot>,
    used: u64,
}

/// The index of all slots.
#[derive(Debug)]
pub struct Slots {
    capacity: Slot,
    /// The slot after the last one that was ever given out; the file is no longer.
    next: Slot,
    free: Vec<Slot>,
    filled: HashMap<Slot, Filled>,
    places: HashMap<TenantId, HashMap<ChainingValue, Slot>>,
    groups: HashMap<Content, Group>,
    /// Least recently used first: tick → content.
    order: BTreeMap<u64, Content>,
    tick: u64,
    bytes: u64,
}

impl Slots {
    /// So many slots, all free.
    pub fn new(capacity: Slot) -> Self {
        Self {
            capacity,
            next: 0,
            free: Vec::new(),
            filled: HashMap::new(),
            places: HashMap::new(),
            groups: HashMap::new(),
            order: BTreeMap::new(),
            tick: 0,
            bytes: 0,
        }
    }

    /// How many there are.
    pub fn capacity(&self) -> usize {
        self.capacity as usize
    }

    /// Bytes of the fragments that are there.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether this tenant's fragment is there already; then it is `content`'s from
    /// here on.
    pub fn claim(&mut self, tenant: &TenantId, value: &ChainingValue, content: Content) -> bool {
        let Some(slot) = self.slot(tenant, value) else {
            return false;
        };
        let before = self.filled.get_mut(&slot);
        let before = before.map(|filled| std::mem::replace(&mut filled.content, content));
        if let Some(before) = before
            && before != content
        {
            self.leave(before, slot);
            self.join(tenant, content, slot);
        }
        true
    }

    /// A slot to be written for `content`, which loses none for it. `None` if all are
    /// its own.
    pub fn reserve(&mut self, content: Content) -> Option<Slot> {
        if self.free.is_empty() && self.next == self.capacity {
            let mut oldest = self.order.values().copied();
            let oldest = oldest.find(|other| *other != content)?;
            self.forget(oldest);
        }
        self.free.pop().or_else(|| {
            let slot = self.next;
            (slot < self.capacity).then(|| {
                self.next += 1;
                slot
            })
        })
    }

    /// Gives back a slot that was not written.
    pub fn release(&mut self, slot: Slot) {
        self.free.push(slot);
    }

    /// What was written to a reserved slot is found from here on.
    pub fn fill(
        &mut self,
        tenant: &TenantId,
        value: &ChainingValue,
        content: Content,
        stored: Stored,
    ) {
        let Stored { slot, seal, length } = stored;
        if let Some(before) = self.slot(tenant, value) {
            self.empty(before);
        }
        let places = self.places.entry(tenant.clone()).or_default();
        places.insert(*value, slot);
        self.bytes += length;
        let filled = Filled {
            content,
            value: *value,
            seal,
            length,
        };
        self.filled.insert(slot, filled);
        self.join(tenant, content, slot);
    }

    /// Where this tenant's fragment is, and whose.
    pub fn find(&self, tenant: &TenantId, value: &ChainingValue) -> Option<(Stored, Content)> {
        let slot = self.slot(tenant, value)?;
        let filled = self.filled.get(&slot)?;
        let stored = Stored {
            slot,
            seal: filled.seal,
            length: filled.length,
        };
        Some((stored, filled.content))
    }

    /// Makes a content the most recently used.
    pub fn touch(&mut self, content: Content) {
        if let Some(group) = self.groups.get_mut(&content) {
            self.tick += 1;
            self.order.remove(&group.used);
            group.used = self.tick;
            self.order.insert(group.used, content);
        }
    }

    /// Frees the slot, if what lies there is still what was found. Whether it was.
    pub fn remove(&mut self, stored: &Stored) -> bool {
        let same = self
            .filled
            .get(&stored.slot)
            .is_some_and(|filled| filled.seal == stored.seal);
        if same {
            self.empty(stored.slot);
        }
        same
    }

    fn slot(&self, tenant: &TenantId, value: &ChainingValue) -> Option<Slot> {
        self.places.get(tenant)?.get(value).copied()
    }

    fn join(&mut self, tenant: &TenantId, content: Content, slot: Slot) {
        self.tick += 1;
        let tick = self.tick;
        let group = self.groups.entry(content).or_insert_with(|| Group {
            tenant: tenant.clone(),
            slots: HashSet::new(),
            used: tick,
        });
        group.slots.insert(slot);
        self.order.remove(&group.used);
        group.used = tick;
        self.order.insert(tick, content);
    }

    /// Takes the slot from its content, which is gone with its last one.
    fn leave(&mut self, content: Content, slot: Slot) {
        if let Some(group) = self.groups.get_mut(&content) {
            group.slots.remove(&slot);
            if group.slots.is_empty() {
                self.order.remove(&group.used);
                self.groups.remove(&content);
            }
        }
    }

    fn empty(&mut self, slot: Slot) {
        let Some(filled) = self.filled.remove(&slot) else {
            return;
        };
        self.bytes = self.bytes.saturating_sub(filled.length);
        if let Some(group) = self.groups.get(&filled.content)
            && let Some(places) = self.places.get_mut(&group.tenant)
        {
            places.remove(&filled.value);
            if places.is_empty() {
                self.places.remove(&group.tenant);
            }
        }
        self.leave(filled.content, slot);
        self.free.push(slot);
    }

    fn forget(&mut self, content: Content) {
        let slots = self.groups.get(&content).map(|group| &group.slots);
        let slots: Vec<Slot> = slots.into_iter().flatten().copied().collect();
        for slot in slots {
            self.empty(slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::seal::{Bound, Sealer};
    use super::*;
    use proptest::prelude::*;

    fn tenant(name: &str) -> TenantId {
        name.parse().unwrap()
    }

    /// A seal like no other.
    fn seal(sealer: &Sealer) -> Seal {
        let (tenant, value) = (tenant("a"), [0; 32]);
        let bound = Bound {
            tenant: &tenant,
            value: &value,
            length: 0,
        };
        sealer.seal(bound, &mut []).unwrap()
    }

    impl Slots {
        fn check(&self, reserved: usize) {
            let mut all: Vec<Slot> = self.free.clone();
            all.extend(self.filled.keys());
            assert_eq!(all.len() + reserved, self.next as usize, "a slot is lost");
            all.sort_unstable();
            all.dedup();
            assert_eq!(all.len() + reserved, self.next as usize, "a slot is twice");
            assert!(self.next <= self.capacity);
            let grouped: usize = self.groups.values().map(|group| group.slots.len()).sum();
            assert_eq!(grouped, self.filled.len());
            let placed: usize = self.places.values().map(HashMap::len).sum();
            assert_eq!(placed, self.filled.len());
            assert_eq!(self.order.len(), self.groups.len());
            assert!(self.groups.values().all(|group| !group.slots.is_empty()));
            assert!(self.places.values().all(|places| !places.is_empty()));
            let bytes: u64 = self.filled.values().map(|filled| filled.length).sum();
            assert_eq!(self.bytes, bytes);
        }
    }

    #[test]
    fn the_content_that_was_used_longest_ago_goes_first_and_whole() {
        let sealer = Sealer::new().unwrap();
        let mut slots = Slots::new(4);
        let a = tenant("a");
        let put = |slots: &mut Slots, value: u8, content| {
            let slot = slots.reserve(content)?;
            let stored = Stored {
                slot,
                seal: seal(&sealer),
                length: 7,
            };
            slots.fill(&a, &[value; 32], content, stored);
            Some(slot)
        };
        for (value, content) in [(1, 10), (2, 10), (3, 11), (4, 11)] {
            put(&mut slots, value, content).unwrap();
        }
        slots.touch(10);
        put(&mut slots, 5, 12).unwrap();
        let found = |slots: &Slots, value: u8| slots.find(&a, &[value; 32]).is_some();
        let there = |slots: &Slots| [1, 2, 3, 4, 5].map(|value| found(slots, value));
        assert_eq!(there(&slots), [true, true, false, false, true]);
        slots.check(0);
        // A content does not push itself out.
        for value in 6..9 {
            put(&mut slots, value, 12).unwrap();
        }
        assert!(put(&mut slots, 9, 12).is_none());
        assert_eq!(there(&slots), [false, false, false, false, true]);
        slots.check(0);
    }

    #[test]
    fn what_was_written_anew_is_not_removed_for_what_was_found_before() {
        let sealer = Sealer::new().unwrap();
        let mut slots = Slots::new(1);
        let a = tenant("a");
        let put = |slots: &mut Slots, value: u8, content| {
            let slot = slots.reserve(content).unwrap();
            let stored = Stored {
                slot,
                seal: seal(&sealer),
                length: 7,
            };
            slots.fill(&a, &[value; 32], content, stored);
            stored
        };
        let old = put(&mut slots, 1, 10);
        let new = put(&mut slots, 2, 11);
        assert_eq!(old.slot, new.slot);
        assert!(!slots.remove(&old));
        assert!(slots.remove(&new));
        assert!(slots.find(&a, &[2; 32]).is_none());
        slots.check(0);
    }

    #[derive(Debug, Clone)]
    enum Step {
        /// Tenant, value, content; whether it is written in the end.
        Put(u8, u8, u64, bool),
        Touch(u64),
        Remove(u8, u8),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (0..2_u8, 0..12_u8, 0..4_u64, any::<bool>())
                .prop_map(|(tenant, value, content, written)| {
                    // A content is of one tenant.
                    Step::Put(tenant, value, content * 2 + u64::from(tenant), written)
                }),
            1 => (0..8_u64).prop_map(Step::Touch),
            1 => (0..2_u8, 0..12_u8).prop_map(|(tenant, value)| Step::Remove(tenant, value)),
        ]
    }

    proptest! {
        /// Against a map of what was put last: what is found is that, of its own tenant.
        #[test]
        fn what_is_found_is_what_was_put_there_last(
            capacity in 1..8_u32,
            steps in prop::collection::vec(step(), 1..80),
        ) {
            let sealer = Sealer::new().unwrap();
            let tenants = [tenant("a"), tenant("b")];
            let mut slots = Slots::new(capacity);
            let mut model: HashMap<(u8, u8), Stored> = HashMap::new();
            for step in steps {
                match step {
                    Step::Put(owner, value, content, written) => {
                        let (of, bytes) = (&tenants[owner as usize], [value; 32]);
                        if slots.claim(of, &bytes, content) {
                            prop_assert!(model.contains_key(&(owner, value)));
                        } else if let Some(slot) = slots.reserve(content) {
                            slots.check(1);
                            if written {
                                let stored = Stored { slot, seal: seal(&sealer), length: u64::from(value) };
                                slots.fill(of, &bytes, content, stored);
                                model.insert((owner, value), stored);
                                prop_assert!(slots.find(of, &bytes).is_some());
                            } else {
                                slots.release(slot);
                            }
                        }
                    }
                    Step::Touch(content) => slots.touch(content),
                    Step::Remove(owner, value) => {
                        if let Some((stored, _)) = slots.find(&tenants[owner as usize], &[value; 32]) {
                            prop_assert!(slots.remove(&stored));
                            model.remove(&(owner, value));
                        }
                    }
                }
                slots.check(0);
                for owner in 0..2_u8 {
                    for value in 0..12_u8 {
                        if let Some((stored, content)) = slots.find(&tenants[owner as usize], &[value; 32]) {
                            prop_assert_eq!(Some(&stored), model.get(&(owner, value)));
                            prop_assert_eq!(content % 2, u64::from(owner), "another tenant's");
                        }
                    }
                }
            }
        }
    }
}
