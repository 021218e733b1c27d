//! Whether a content can be scanned in time: pure arithmetic over what was measured.
//!
//! What the Protection Server asked for, divided by the rate at which it got and scanned
//! earlier contents, and its queue on top. Somebody waits in `open`: where the answer
//! will come too late for certain, waiting for it serves nobody.
//!
//! Owns the rate; does not own what follows ([`guard`](crate::guard)). Small contents
//! say nothing of the rate and are never given up: round trips decide their time.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Contents below this many bytes are neither measured nor forecast.
pub const MIN_BYTES: u64 = 1 << 20;
/// A slower measurement counts for one part in this many; a faster one at once: what is
/// given up was too slow for certain, and a few slow contents do not make the next so.
const INERTIA: u64 = 4;
/// The slowest rate that is believed, in bytes per second: one bad moment must not have
/// everything given up.
const SLOWEST: u64 = 64 << 10;

/// What was measured. 0 while nothing was.
#[derive(Debug, Default)]
pub struct Forecast {
    bytes_per_s: AtomicU64,
}

impl Forecast {
    /// Takes down that so many bytes, once they were asked for, took so long, of which
    /// `queued` was the Protection Server's queue.
    pub fn measured(&self, bytes: u64, took: Duration, queued: Duration) {
        if bytes < MIN_BYTES {
            return;
        }
        // The queue is a hint: it explains the time, but never all of it.
        let busy = took.saturating_sub(queued).max(took / 4);
        let micros = u64::try_from(busy.as_micros()).unwrap_or(u64::MAX).max(1);
        let rate = (bytes.saturating_mul(1_000_000) / micros).max(SLOWEST);
        // Lost updates by others at the same moment are only less inertia.
        let old = self.bytes_per_s.load(Ordering::Relaxed);
        let new = match old {
            0 => rate,
            old => rate.max(old - old / INERTIA),
        };
        self.bytes_per_s.store(new, Ordering::Relaxed);
    }

    /// How long so many bytes will take, if that can be said.
    pub fn expected(&self, bytes: u64, queue: Duration) -> Option<Duration> {
        let rate = self.bytes_per_s.load(Ordering::Relaxed);
        if rate == 0 || bytes < MIN_BYTES {
            return None;
        }
        let millis = bytes.saturating_mul(1000) / rate;
        Some(queue.saturating_add(Duration::from_millis(millis)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn nothing_is_said_before_something_was_measured() {
        let forecast = Forecast::default();
        assert_eq!(forecast.expected(1 << 40, Duration::ZERO), None);
        forecast.measured(MIN_BYTES - 1, Duration::from_secs(9), Duration::ZERO);
        assert_eq!(forecast.expected(1 << 40, Duration::ZERO), None);
    }

    proptest! {
        #[test]
        fn a_steady_rate_is_found(bytes in MIN_BYTES..1 << 34, ms in 1..100_000u64, others in 0..20usize) {
            let (forecast, took) = (Forecast::default(), Duration::from_millis(ms));
            for _ in 0..=others {
                forecast.measured(bytes, took, Duration::ZERO);
            }
            let slowest = Duration::from_millis(bytes * 1000 / SLOWEST);
            let expected = forecast.expected(bytes, Duration::ZERO).unwrap_or_default();
            let near = took.min(slowest);
            let slack = near / 50 + Duration::from_millis(2);
            prop_assert!(expected <= near + slack && expected + slack >= near, "{expected:?} of {near:?}");
        }

        /// Whoever sends slow contents cannot have the fast ones of others given up.
        #[test]
        fn one_fast_content_restores_the_rate(slow in 1..40usize, seconds in 1..1000u64) {
            let forecast = Forecast::default();
            for _ in 0..slow {
                forecast.measured(MIN_BYTES, Duration::from_secs(seconds), Duration::ZERO);
            }
            forecast.measured(MIN_BYTES, Duration::from_millis(10), Duration::ZERO);
            let expected = forecast.expected(MIN_BYTES, Duration::ZERO).unwrap_or_default();
            prop_assert!(expected <= Duration::from_millis(11), "{:?}", expected);
        }

        #[test]
        fn more_bytes_and_a_longer_queue_never_take_less(
            bytes in MIN_BYTES..1 << 40, more in 0..1u64 << 40, queue in 0..10_000u64, longer in 0..10_000u64
        ) {
            let forecast = Forecast::default();
            forecast.measured(MIN_BYTES, Duration::from_secs(1), Duration::ZERO);
            let ms = Duration::from_millis;
            prop_assert!(forecast.expected(bytes, ms(queue)) <= forecast.expected(bytes + more, ms(queue + longer)));
        }

        #[test]
        fn the_queue_explains_a_part_of_the_time_at_most(ms in 4..100_000u64, queued in 0..1_000_000u64) {
            let (with, without) = (Forecast::default(), Forecast::default());
            let took = Duration::from_millis(ms);
            with.measured(1 << 30, took, Duration::from_millis(queued));
            without.measured(1 << 30, took, Duration::ZERO);
            let with = with.expected(1 << 30, Duration::ZERO).unwrap_or_default();
            let without = without.expected(1 << 30, Duration::ZERO).unwrap_or_default();
            prop_assert!(with <= without && with.as_millis() * 4 + 8 >= without.as_millis());
        }
    }
}
