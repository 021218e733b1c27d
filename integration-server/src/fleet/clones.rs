//! Whether a newcomer takes the place of an open session with the same identity. Pure; time
//! is an argument, in steady milliseconds.
//!
//! ```text
//!  same machine, same boot ──────────────────────────► the newcomer replaces: it knows best
//!  another boot or another machine ─┬─ the first few ► the newcomer replaces: a restart, a
//!                                   │                  revert, a machine restored from a copy
//!                                   └─ again ────────► the newcomer is held while the other is
//!                                                      there, and that is an alert
//! ```
//!
//! Two machines with one identity, a clone and its original, would otherwise end each
//! other's sessions for ever, and nobody would see it. The two ends of a live migration are
//! one machine in one boot.

use std::collections::HashMap;

use palisade_protocol::control::HostFacts;
use uuid::Uuid;

/// Replacements by another machine or boot that are let happen within [`WINDOW_MS`]: what
/// restarts in a row needs no more, since a dead session is noticed within 20 s.
const MAX_REPLACED: usize = 2;
/// How long a replacement counts, in milliseconds.
const WINDOW_MS: u64 = 10 * 60 * 1000;
/// How long it is told that a newcomer was held, in milliseconds: it comes back within a
/// minute.
const TOLD_MS: u64 = 2 * 60 * 1000;

/// A machine in one boot, as it says itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Machine {
    product_uuid: Option<Uuid>,
    boot_id: Option<Uuid>,
}

impl Machine {
    /// Out of a greeting.
    pub fn of(host: &HostFacts) -> Self {
        Self {
            product_uuid: host.product_uuid,
            boot_id: host.boot_id,
        }
    }
}

/// A newcomer that is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// With whose identity.
    pub id: Uuid,
    /// Since when this goes on.
    pub since_ms: u64,
}

#[derive(Debug, Default)]
struct Rivals {
    /// When sessions were replaced, within the window.
    replaced: Vec<u64>,
    /// Since when, and when the last time, a newcomer was held.
    held: Option<(u64, u64)>,
}

/// What happened among machines with one identity, by identity. As many as had a session
/// replaced within the window.
#[derive(Debug, Default)]
pub struct Clones(HashMap<Uuid, Rivals>);

impl Clones {
    /// Whether a newcomer takes the place of an open session of another machine or boot.
    pub fn may_replace(&mut self, id: Uuid, open: Machine, new: Machine, now_ms: u64) -> bool {
        if open == new {
            return true;
        }
        self.forget_old(now_ms);
        let rivals = self.0.entry(id).or_default();
        if rivals.replaced.len() < MAX_REPLACED {
            rivals.replaced.push(now_ms);
            return true;
        }
        let since_ms = rivals.held.map_or(now_ms, |(since_ms, _)| since_ms);
        rivals.held = Some((since_ms, now_ms));
        false
    }

    /// Newcomers that are held.
    pub fn held(&self, now_ms: u64) -> Vec<Held> {
        let held = |(id, rivals): (&Uuid, &Rivals)| {
            let (since_ms, last_ms) = rivals.held?;
            let told = now_ms.saturating_sub(last_ms) < TOLD_MS;
            told.then_some(Held { id: *id, since_ms })
        };
        self.0.iter().filter_map(held).collect()
    }

    fn forget_old(&mut self, now_ms: u64) {
        self.0.retain(|_, rivals| {
            rivals
                .held
                .take_if(|(_, last_ms)| now_ms.saturating_sub(*last_ms) >= TOLD_MS);
            // While one is held, the row is not over.
            if rivals.held.is_none() {
                let young = |at_ms: &u64| now_ms.saturating_sub(*at_ms) < WINDOW_MS;
                rivals.replaced.retain(young);
            }
            rivals.held.is_some() || !rivals.replaced.is_empty()
        });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ID: Uuid = Uuid::from_u128(1);

    fn machine(product: u128, boot: u128) -> Machine {
        Machine {
            product_uuid: Some(Uuid::from_u128(product)),
            boot_id: Some(Uuid::from_u128(boot)),
        }
    }

    #[test]
    fn the_incumbent_stays_when_two_machines_replace_each_other() {
        let (one, other) = (machine(1, 1), machine(2, 2));
        let mut clones = Clones::default();
        assert!(clones.may_replace(ID, one, other, 0));
        assert!(clones.may_replace(ID, other, one, 30_000));
        assert!(clones.held(30_000).is_empty());
        for at_ms in (60_000..3_600_000).step_by(60_000) {
            assert!(!clones.may_replace(ID, one, other, at_ms));
            let since_ms = 60_000;
            assert_eq!(clones.held(at_ms), [Held { id: ID, since_ms }]);
            assert!(
                clones.may_replace(ID, one, one, at_ms),
                "its own next session"
            );
            let another = Uuid::from_u128(9);
            assert!(clones.may_replace(another, one, one, at_ms));
        }
        // The clone is gone for long.
        assert!(clones.held(3_600_000 + TOLD_MS).is_empty());
        assert!(clones.may_replace(ID, one, machine(1, 5), 3_600_000 + WINDOW_MS));
        assert_eq!(clones.0.len(), 1);
    }

    proptest! {
        /// A guest that restarts now and then is never held.
        #[test]
        fn restarts_are_no_clones(waits in prop::collection::vec(WINDOW_MS / 2..WINDOW_MS * 3, 1..40)) {
            let mut clones = Clones::default();
            let mut now_ms = 0;
            for (boot, wait) in (1..).zip(waits) {
                prop_assert!(clones.may_replace(ID, machine(1, boot), machine(1, boot + 1), now_ms));
                now_ms += wait;
            }
        }
    }
}
