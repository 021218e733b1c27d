//! How fast a scan is, and how long it will take; pure.
//!
//! The rate is that of the last while ([`MEMORY`]), since folders differ; the time left
//! is said once the files are counted and some are done.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// What the rate remembers: after this long, what was before counts for a third.
const MEMORY: Duration = Duration::from_secs(20);
/// The shortest time that the rate is taken over.
const STEP: Duration = Duration::from_millis(500);
/// The longest time left that is said.
const LONGEST: Duration = Duration::from_secs(30 * 86_400);

/// What is said of a scan under way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Progress {
    /// Files that are done.
    pub files: u64,
    /// Files that there are, once they are counted.
    pub files_total: Option<u64>,
    /// Files in a second, of late.
    pub files_per_s: Option<f64>,
    /// Seconds that it will take at this rate.
    pub left_s: Option<u64>,
}

/// Measures the rate. The time is the caller's: how long the scan has been running,
/// pauses left out.
#[derive(Debug, Clone, Default)]
pub struct Pace {
    rate: Option<f64>,
    at: Duration,
    files: u64,
}

impl Pace {
    /// Begins with files that were done before.
    pub fn starting_at(files: u64) -> Self {
        Self {
            files,
            ..Self::default()
        }
    }

    /// So many files are done by now. A time that goes back is not heeded.
    pub fn note(&mut self, running: Duration, files: u64) {
        let passed = running.saturating_sub(self.at);
        if passed < STEP {
            return;
        }
        let now = files.saturating_sub(self.files) as f64 / passed.as_secs_f64();
        let old = (-passed.as_secs_f64() / MEMORY.as_secs_f64()).exp();
        self.rate = Some(match self.rate {
            Some(rate) => rate * old + now * (1.0 - old),
            None => now,
        });
        (self.at, self.files) = (running, files);
    }

    /// What is to be said.
    pub fn progress(&self, files: u64, total: Option<u64>) -> Progress {
        // Files come and go while they are counted.
        let total = total.map(|total| total.max(files));
        let left_s = total.and_then(|total| match total - files {
            0 => Some(0),
            left => self
                .rate
                .map(|rate| left as f64 / rate)
                .filter(|left| *left <= LONGEST.as_secs_f64())
                .map(|left| left.ceil() as u64),
        });
        Progress {
            files,
            files_total: total,
            files_per_s: self.rate.map(|rate| (rate * 10.0).round() / 10.0),
            left_s,
        }
    }
}

/// A duration as people say it: `3 h 05 min`, `4 min 10 s`, `8 s`.
pub fn spoken(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {:02} s", seconds / 60, seconds % 60),
        _ => format!("{} h {:02} min", seconds / 3600, seconds / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_steady_scan_knows_when_it_ends() {
        let mut pace = Pace::starting_at(1000);
        for second in 1..=60 {
            pace.note(Duration::from_secs(second), 1000 + second * 50);
        }
        let said = pace.progress(4000, Some(5000));
        assert_eq!(
            (said.files_per_s, said.left_s, said.files_total),
            (Some(50.0), Some(20), Some(5000))
        );
        assert_eq!(pace.progress(4000, None).left_s, None);
        assert_eq!(pace.progress(5001, Some(5000)).left_s, Some(0));
    }

    #[test]
    fn what_was_long_ago_does_not_count() {
        let mut pace = Pace::default();
        pace.note(Duration::from_secs(10), 10_000);
        pace.note(Duration::from_secs(200), 10_190);
        let rate = pace.progress(10_190, None).files_per_s.unwrap();
        assert!((1.0..2.0).contains(&rate), "{rate}");
    }

    #[test]
    fn durations_as_people_say_them() {
        assert_eq!(spoken(8), "8 s");
        assert_eq!(spoken(250), "4 min 10 s");
        assert_eq!(spoken(11_100), "3 h 05 min");
    }

    proptest! {
        #[test]
        fn nothing_absurd_is_said(
            notes in prop::collection::vec((any::<u32>(), any::<u64>()), 0..8),
            files: u64,
            total in any::<Option<u64>>(),
        ) {
            let mut pace = Pace::default();
            for (ms, files) in notes {
                pace.note(Duration::from_millis(ms.into()), files);
            }
            let said = pace.progress(files, total);
            prop_assert!(said.files_per_s.is_none_or(|rate| rate.is_finite() && rate >= 0.0));
            prop_assert!(said.left_s.is_none_or(|left| left <= LONGEST.as_secs()));
            prop_assert!(said.files_total.is_none_or(|total| total >= files));
        }
    }
}
