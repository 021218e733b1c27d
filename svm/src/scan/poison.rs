//! Contents that kill: pure.
//!
//! A death may be another's fault, so a content is tried once more, and what survives
//! starts from none; two
//! are the content's, and it is not tried again. What is remembered is remembered
//! of one generation of definitions, since the next may deal with it, and lives as
//! long as that is loaded: never on disk, where a mistake would outlive a restart.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

/// Most contents that are remembered; the oldest are forgotten, and would have to
/// kill twice again.
pub const MAX_REMEMBERED: usize = 4096;
/// Deaths that are the content's fault.
const DEATHS: u32 = 2;

/// What is known of contents that killed.
#[derive(Debug)]
pub struct Poison<K> {
    known: HashMap<K, Death>,
    /// In the order of their first deaths.
    order: VecDeque<K>,
    max: usize,
    /// How many of the known are poison.
    count: usize,
}

#[derive(Debug)]
struct Death {
    count: u32,
    detail: String,
}

impl<K: Hash + Eq + Clone> Poison<K> {
    /// Nothing is known; `max` contents will be remembered.
    pub fn new(max: usize) -> Self {
        Self {
            known: HashMap::new(),
            order: VecDeque::new(),
            max,
            count: 0,
        }
    }

    /// A worker died of this content; whether it is poison from now on.
    pub fn killed(&mut self, key: &K, detail: &str) -> bool {
        if let Some(death) = self.known.get_mut(key) {
            death.count = death.count.saturating_add(1);
            detail.clone_into(&mut death.detail);
            let is_news = death.count == DEATHS;
            self.count += usize::from(is_news);
            return is_news;
        }
        if self.order.len() >= self.max
            && let Some(oldest) = self.order.pop_front()
        {
            let death = self.known.remove(&oldest);
            self.count -= usize::from(death.is_some_and(|death| death.count >= DEATHS));
        }
        self.order.push_back(key.clone());
        let death = Death {
            count: 1,
            detail: detail.to_owned(),
        };
        self.known.insert(key.clone(), death);
        false
    }

    /// A worker survived it: the death before was another's fault. What killed twice
    /// is not asked about again, so it stays.
    pub fn survived(&mut self, key: &K) {
        if self
            .known
            .get(key)
            .is_some_and(|death| death.count < DEATHS)
        {
            self.known.remove(key);
            self.order.retain(|known| known != key);
        }
    }

    /// How many contents are poison.
    pub fn count(&self) -> usize {
        self.count
    }

    /// What a content that is poison did.
    pub fn of(&self, key: &K) -> Option<&str> {
        let death = self.known.get(key)?;
        (death.count >= DEATHS).then_some(death.detail.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn two_deaths_in_a_row_are_remembered() {
        let mut poison = Poison::new(2);
        assert!(!poison.killed(&1, "first"));
        assert_eq!(poison.of(&1), None);
        poison.survived(&1);
        assert!(!poison.killed(&1, "again"));
        assert!(poison.killed(&1, "SIGSEGV"));
        assert_eq!(poison.of(&1), Some("SIGSEGV"));
        // Only the moment in which it becomes poison is news.
        assert!(!poison.killed(&1, "late"));
        poison.survived(&1);
        assert!(poison.of(&1).is_some());
        // The oldest makes room.
        poison.killed(&2, "");
        poison.killed(&3, "");
        assert_eq!(poison.of(&1), None);
    }

    proptest! {
        #[test]
        fn it_is_bounded_and_says_what_happened(
            max in 1..6_usize,
            steps in proptest::collection::vec((0..8_u8, any::<bool>()), 0..80),
        ) {
            let mut poison = Poison::new(max);
            for (key, died) in steps {
                let before = poison.of(&key).is_some();
                if died {
                    let news = poison.killed(&key, "died");
                    prop_assert_eq!(news, !before && poison.of(&key).is_some());
                } else {
                    poison.survived(&key);
                    prop_assert_eq!(poison.of(&key).is_some(), before);
                }
                prop_assert!(poison.known.len() <= max);
                prop_assert_eq!(poison.known.len(), poison.order.len());
                let count = (0..8).filter(|key| poison.of(key).is_some()).count();
                prop_assert_eq!(poison.count(), count);
            }
        }
    }
}
