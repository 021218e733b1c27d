//! Members that take turns: each has one place in the circle while it has anything.
//!
//! Owns the order among members; what a member holds is its own. [`super`] has a ring
//! of tenants, each with a ring of agents, each with its entries.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

/// What a member holds.
pub(super) trait Holds {
    /// What is taken from it.
    type Item;
    /// Takes the next; `None` when there is nothing.
    fn take(&mut self) -> Option<Self::Item>;
    /// Whether there is nothing.
    fn is_empty(&self) -> bool;
    /// How much there is.
    fn count(&self) -> usize;
}

impl<T> Holds for VecDeque<T> {
    type Item = T;
    fn take(&mut self) -> Option<T> {
        self.pop_front()
    }
    fn is_empty(&self) -> bool {
        self.is_empty()
    }
    fn count(&self) -> usize {
        self.len()
    }
}

/// The circle.
#[derive(Debug)]
pub(super) struct Ring<K, V> {
    members: HashMap<K, V>,
    turn: VecDeque<K>,
    count: usize,
}

impl<K, V> Default for Ring<K, V> {
    fn default() -> Self {
        Self {
            members: HashMap::new(),
            turn: VecDeque::new(),
            count: 0,
        }
    }
}

impl<K: Clone + Eq + Hash, V: Holds + Default> Ring<K, V> {
    /// Puts one thing to a member, which takes its place behind all others if it had
    /// nothing.
    pub(super) fn put(&mut self, key: &K, put: impl FnOnce(&mut V)) {
        if !self.members.contains_key(key) {
            self.turn.push_back(key.clone());
        }
        put(self.members.entry(key.clone()).or_default());
        self.count += 1;
    }

    /// What a member holds.
    pub(super) fn of(&self, key: &K) -> Option<&V> {
        self.members.get(key)
    }

    /// Things that are served until `key` has had `turns` of its own, if nothing else
    /// comes and everybody goes before it.
    pub(super) fn ahead_of(&self, key: &K, turns: usize) -> usize {
        let others = self.members.iter().filter(|(member, _)| *member != key);
        let theirs: usize = others.map(|(_, held)| held.count().min(turns)).sum();
        theirs + turns.saturating_sub(1)
    }
}

impl<K: Clone + Eq + Hash, V: Holds + Default> Holds for Ring<K, V> {
    type Item = (K, V::Item);

    fn take(&mut self) -> Option<Self::Item> {
        let key = self.turn.pop_front()?;
        let held = self.members.get_mut(&key)?;
        let item = held.take()?;
        self.count -= 1;
        if held.is_empty() {
            self.members.remove(&key);
        } else {
            self.turn.push_back(key.clone());
        }
        Some((key, item))
    }

    fn is_empty(&self) -> bool {
        self.count == 0
    }

    fn count(&self) -> usize {
        self.count
    }
}
