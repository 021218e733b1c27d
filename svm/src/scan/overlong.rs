//! Contents that take too long: pure; time is an argument.
//!
//! A content that was not done within the time limit would take a lane for as long at
//! every open of every guest. It is remembered, and left alone for a while: first for a
//! minute, then for twice as long each time, up to a day, since the machine may have been
//! busy. As with contents that kill ([`super::poison`]), it is remembered of one set of
//! definitions and as long as that is loaded.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::time::{Duration, Instant};

/// Most contents that are remembered; the oldest are forgotten.
pub const MAX_REMEMBERED: usize = 4096;
/// How long it is left alone at first, and at the longest.
const LEFT_ALONE: (Duration, Duration) = (Duration::from_secs(60), Duration::from_secs(24 * 3600));

/// What is known of contents that took too long.
#[derive(Debug)]
pub struct Overlong<K, E> {
    known: HashMap<K, Known<E>>,
    /// In the order of their first times.
    order: VecDeque<K>,
    max: usize,
}

#[derive(Debug)]
struct Known<E> {
    end: E,
    until: Instant,
    wait: Duration,
}

impl<K: Hash + Eq + Clone, E> Overlong<K, E> {
    /// Nothing is known; `max` contents will be remembered.
    pub fn new(max: usize) -> Self {
        Self {
            known: HashMap::new(),
            order: VecDeque::new(),
            max,
        }
    }

    /// It took too long, and came to this.
    pub fn took_too_long(&mut self, key: &K, end: E, now: Instant) {
        let before = self.known.get(key).map(|known| known.wait);
        let wait = before.map_or(LEFT_ALONE.0, |wait| (wait * 2).min(LEFT_ALONE.1));
        if before.is_none() {
            if self.order.len() >= self.max
                && let Some(oldest) = self.order.pop_front()
            {
                self.known.remove(&oldest);
            }
            self.order.push_back(key.clone());
        }
        let until = now + wait;
        self.known.insert(key.clone(), Known { end, until, wait });
    }

    /// It was done in time.
    pub fn was_done(&mut self, key: &K) {
        if self.known.remove(key).is_some() {
            self.order.retain(|known| known != key);
        }
    }

    /// What a content came to that is left alone now.
    pub fn of(&self, key: &K, now: Instant) -> Option<&E> {
        let known = self.known.get(key)?;
        (now < known.until).then_some(&known.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_left_alone_longer_each_time_until_it_is_done() {
        let (mut overlong, start) = (Overlong::new(2), Instant::now());
        let after = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(overlong.of(&1, start), None);
        overlong.took_too_long(&1, "first", start);
        assert_eq!(overlong.of(&1, after(59)), Some(&"first"));
        assert_eq!(overlong.of(&1, after(60)), None);
        overlong.took_too_long(&1, "again", after(60));
        assert_eq!(overlong.of(&1, after(179)), Some(&"again"));
        assert_eq!(overlong.of(&1, after(180)), None);
        for n in 0..20 {
            overlong.took_too_long(&1, "again", after(n));
        }
        assert_eq!(overlong.of(&1, after(19 + 24 * 3600)), None);
        overlong.was_done(&1);
        overlong.took_too_long(&1, "anew", start);
        assert_eq!(overlong.of(&1, after(60)), None);
        // The oldest makes room.
        overlong.took_too_long(&2, "", start);
        overlong.took_too_long(&3, "", start);
        assert_eq!(overlong.of(&1, start), None);
        assert_eq!((overlong.known.len(), overlong.order.len()), (2, 2));
    }
}
