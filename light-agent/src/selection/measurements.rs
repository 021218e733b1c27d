//! What sessions have shown of Protection Servers, remembered for some minutes beyond their
//! end: one that was found slow is not found again and again.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use palisade_protocol::ids::SvmId;
use palisade_protocol::selection::Measured;

/// How long a load counts for a move, and for what a new request has to wait.
pub const LOAD_FRESH: Duration = Duration::from_secs(60);
/// How long it is remembered what was measured.
pub const REMEMBERED: Duration = Duration::from_secs(5 * 60);
/// Protection Servers whose measurements are remembered.
const MAX_REMEMBERED: usize = 64;

/// What a session has shown, and when it said its load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Measurement {
    /// When.
    pub at: Instant,
    /// What.
    pub measured: Measured,
}

/// The last measurement of each Protection Server.
#[derive(Debug, Default)]
pub struct Measurements(BTreeMap<SvmId, Measurement>);

impl Measurements {
    /// Takes down what open sessions show now, and forgets what is old.
    pub fn take(&mut self, shown: impl IntoIterator<Item = (SvmId, Measurement)>, now: Instant) {
        self.0.extend(shown);
        self.0.retain(|_, one| is_young(one, now));
        while self.0.len() > MAX_REMEMBERED {
            let oldest = self.0.iter().min_by_key(|(_, one)| one.at);
            let Some(oldest) = oldest.map(|(id, _)| *id) else {
                return;
            };
            self.0.remove(&oldest);
        }
    }

    /// What is remembered of a Protection Server.
    pub fn of(&self, id: SvmId) -> Option<Measured> {
        self.0.get(&id).map(|one| one.measured)
    }
}

fn is_young(one: &Measurement, now: Instant) -> bool {
    now.saturating_duration_since(one.at) < REMEMBERED
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_old_or_too_much_is_forgotten() {
        let (mut kept, start) = (Measurements::default(), Instant::now());
        let at = |ms| Measurement {
            at: start + Duration::from_millis(ms),
            measured: Measured::default(),
        };
        let ids: Vec<SvmId> = (0..=MAX_REMEMBERED).map(|_| SvmId::random()).collect();
        for (ms, id) in (0..).zip(&ids) {
            kept.take([(*id, at(ms))], start + Duration::from_millis(ms));
        }
        assert_eq!(kept.of(ids[0]), None, "the oldest made room");
        assert!(ids[1..].iter().all(|id| kept.of(*id).is_some()));
        kept.take([], start + REMEMBERED + Duration::from_millis(1));
        assert_eq!(kept.of(ids[1]), None);
        assert!(kept.of(ids[2]).is_some());
    }
}
