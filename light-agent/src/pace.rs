//! Waits that are spread out, so that many agents do not come at once.

use std::time::Duration;

use rand::Rng as _;

/// A wait between `low` and `high` times as long.
pub fn jittered(wait: Duration, low: f64, high: f64) -> Duration {
    wait.mul_f64(rand::rng().random_range(low..high))
}
