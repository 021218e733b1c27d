//! How many changes one account may make: each has its entry in the audit log, which is
//! never shortened. Pure but for its lock; time is an argument.
//!
//! The machine's own token and local commands have no account, and no such bound.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use uuid::Uuid;

/// Changes at once, after a rest.
pub const BURST: u64 = 600;
/// One more is possible after so long, in milliseconds.
pub const EACH_MS: u64 = 1_000;
/// Accounts that are remembered; with more, those that have rested are forgotten.
const MOST_REMEMBERED: usize = 10_000;

/// The changes of each account: when its whole burst is possible again, in milliseconds.
#[derive(Debug, Default)]
pub struct Paces(Mutex<HashMap<Uuid, u64>>);

impl Paces {
    /// Takes one change of an account down.
    ///
    /// # Errors
    /// How long to wait, in milliseconds.
    pub fn take(&self, account: Uuid, now_ms: u64) -> Result<(), u64> {
        let mut rested = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if rested.len() >= MOST_REMEMBERED {
            rested.retain(|_, at| *at > now_ms);
        }
        // A clock that was set back makes nobody wait for longer than a burst takes.
        let before = rested.get(&account).copied().unwrap_or_default();
        let before = before.clamp(now_ms, now_ms.saturating_add(BURST * EACH_MS));
        let after = before.saturating_add(EACH_MS);
        let most = now_ms.saturating_add(BURST * EACH_MS);
        if after > most {
            return Err(after - most);
        }
        rested.insert(account, after);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_burst_is_possible_and_then_one_at_a_time() {
        let (paces, account) = (Paces::default(), Uuid::new_v4());
        for _ in 0..BURST {
            paces.take(account, 5).unwrap();
        }
        assert_eq!(paces.take(account, 5), Err(EACH_MS));
        assert_eq!(paces.take(Uuid::new_v4(), 5), Ok(()));
        assert_eq!(paces.take(account, 5 + EACH_MS), Ok(()));
        assert!(paces.take(account, 5 + EACH_MS).is_err());
    }

    proptest! {
        #[test]
        fn no_time_has_more_than_its_share(waits in prop::collection::vec(0..3 * EACH_MS, 1..3000)) {
            let (paces, account) = (Paces::default(), Uuid::new_v4());
            let (mut now_ms, mut done) = (1, 0_u64);
            for wait in waits {
                now_ms += wait;
                match paces.take(account, now_ms) {
                    Ok(()) => done += 1,
                    Err(wait_ms) => prop_assert!(wait_ms <= EACH_MS),
                }
                prop_assert!(done <= BURST + now_ms / EACH_MS + 1);
            }
        }
    }
}
