//! Which older verdicts are scanned anew, and when: pure policy.
//!
//! After new definitions, nearly every verdict is older than they are. The contents
//! are with the guests, so a re-check is asked of an agent that has just asked about
//! one. Whoever asks often is asked often: what many guests use is re-checked first,
//! what nobody uses is not re-checked at all. Does not own the clock or the load,
//! which are arguments.
//!
//! - While scans wait for workers, nothing is re-checked.
//! - A content is asked for once in [`AGAIN_AFTER`]: whoever was asked may be slow or
//!   gone.
//! - At most [`MAX_OPEN`] are remembered as asked for; while they are, no others are.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use super::Key;

/// After this long a content that was asked for may be asked for again.
pub const AGAIN_AFTER: Duration = Duration::from_secs(60);
/// Contents that are asked for within that time, at the most.
pub const MAX_OPEN: usize = 4096;
/// Load above which nothing is re-checked, in thousandths of capacity.
pub const MAX_LOAD_PERMILLE: u16 = 1_000;

/// What was asked for lately.
#[derive(Debug, Default)]
pub struct Rechecks {
    open: HashMap<Key, u64>,
    /// The same, by time: what is past its time comes first.
    order: VecDeque<(u64, Key)>,
}

impl Rechecks {
    /// Whether whoever asked about `key` just now should scan it anew. Times are
    /// milliseconds from any fixed moment.
    pub fn wants(&mut self, key: &Key, now_ms: u64, load_permille: u16) -> bool {
        self.forget_before(now_ms);
        if load_permille > MAX_LOAD_PERMILLE
            || self.open.len() >= MAX_OPEN
            || self.open.contains_key(key)
        {
            return false;
        }
        self.open.insert(key.clone(), now_ms);
        self.order.push_back((now_ms, key.clone()));
        true
    }

    /// A content that is asked for and was not scanned yet, at the most.
    pub fn open(&self) -> usize {
        self.open.len()
    }

    fn forget_before(&mut self, now_ms: u64) {
        let after_ms = AGAIN_AFTER.as_millis() as u64;
        while let Some((asked_ms, key)) = self.order.front() {
            if now_ms.saturating_sub(*asked_ms) < after_ms {
                return;
            }
            self.open.remove(key);
            self.order.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::key;
    use super::*;
    use proptest::prelude::*;

    const AGAIN_MS: u64 = AGAIN_AFTER.as_millis() as u64;

    #[test]
    fn a_content_is_asked_for_once_at_a_time_and_never_under_load() {
        let mut rechecks = Rechecks::default();
        assert!(!rechecks.wants(&key(b"a"), 0, MAX_LOAD_PERMILLE + 1));
        assert!(rechecks.wants(&key(b"a"), 0, 0));
        assert!(!rechecks.wants(&key(b"a"), AGAIN_MS - 1, 0));
        assert!(rechecks.wants(&key(b"b"), AGAIN_MS - 1, 0));
        assert!(
            rechecks.wants(&key(b"a"), AGAIN_MS, 0),
            "whoever was asked is gone"
        );
        assert_eq!(rechecks.open(), 2);
    }

    #[test]
    fn what_is_asked_for_is_bounded() {
        let mut rechecks = Rechecks::default();
        let granted = (0..10_000u32).filter(|n| rechecks.wants(&key(&n.to_le_bytes()), 0, 0));
        assert_eq!(granted.count(), MAX_OPEN);
        assert!(rechecks.wants(&key(b"later"), AGAIN_MS, 0));
    }

    proptest! {
        #[test]
        fn no_content_is_asked_for_twice_within_the_time(
            sightings in proptest::collection::vec((0..20u8, 0..5_000u64), 1..300),
        ) {
            let mut rechecks = Rechecks::default();
            let mut granted = std::collections::HashMap::new();
            let mut now = 0;
            for (content, wait) in sightings {
                now += wait;
                if rechecks.wants(&key(&[content]), now, 0) {
                    let before = granted.insert(content, now);
                    prop_assert!(before.is_none_or(|before| now - before >= AGAIN_MS));
                }
                prop_assert_eq!(rechecks.open.len(), rechecks.order.len());
            }
        }
    }
}
