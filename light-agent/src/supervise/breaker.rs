//! When an agent that keeps failing is started again, and in which mode: pure.
//!
//! ```text
//!            bad end                      bad ends: ENDS within WINDOW
//!  blocking ─────────► started again ... ─────────────────────────────► monitoring
//!     ▲                 1 s, 2 s, 4 s                                      │
//!     └────────────────── after an hour, then two, up to a day ◄──────────┘
//! ```
//!
//! A bad end is a crash, a stall, or a boot that did not come past its first minutes
//! while opens were held: an agent that hangs a boot must not hang the next one, too.
//! Owns the record and its rules; time, in seconds since 1970, and the boot's id are
//! arguments. Does not own the file ([`record`](super::record)) or the processes.

use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Bad ends within [`WINDOW`] that are taken as a rule.
pub const ENDS: usize = 3;
/// How far apart they may be.
pub const WINDOW: Duration = Duration::from_secs(600);
/// How long opens are not held the first time; doubled each time after.
pub const FIRST_REST: Duration = Duration::from_secs(3600);
/// How long at the most.
pub const LONGEST_REST: Duration = Duration::from_secs(86_400);
/// A run of this length is a good one: the next failure is the first again.
pub const SETTLED: Duration = Duration::from_secs(120);
/// The first wait before the agent is started again; doubled each time after.
const FIRST_WAIT: Duration = Duration::from_millis(200);
/// The longest.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// How an agent ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ending {
    /// By itself, with a message: what it said is in the log.
    Failed,
    /// By a signal that it did not handle.
    Crashed,
    /// Killed because it gave no sign of life.
    Stalled,
    /// The machine was started anew before the agent had settled.
    BootUnfinished,
}

impl Ending {
    /// For people.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Failed => "it ended with an error",
            Self::Crashed => "it crashed",
            Self::Stalled => "it gave no sign of life",
            Self::BootUnfinished => "the boot did not come to its end",
        }
    }
}

/// An agent that holds opens, or may do so soon, and has not settled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unsettled {
    /// The boot in which it was started.
    pub boot: String,
}

/// What is remembered over restarts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Record {
    /// Bad ends of late, oldest first: when, in seconds since 1970.
    pub ends: Vec<u64>,
    /// The last one.
    pub last: Option<Ending>,
    /// All of them.
    pub restarts: u64,
    /// Until when opens are not held.
    pub resting_until: Option<u64>,
    /// How often that came about without a good run between.
    pub rests: u32,
    /// The agent that runs, until it has settled.
    pub unsettled: Option<Unsettled>,
    /// Bad ends in a row.
    pub in_a_row: u32,
}

impl Record {
    /// The supervisor starts, in this boot: an agent of an earlier boot that had not
    /// settled is a bad end. One of this boot was ended with its supervisor.
    pub fn begin(&mut self, boot: &str, now: u64) {
        let unfinished = self.unsettled.take();
        if unfinished.is_some_and(|agent| agent.boot != boot) {
            self.bad_end(Ending::BootUnfinished, now);
        }
    }

    /// An agent is started.
    pub fn starts(&mut self, boot: &str) {
        self.unsettled = Some(Unsettled {
            boot: boot.to_owned(),
        });
    }

    /// It ended as it was told to, or settled.
    pub fn fine(&mut self) {
        self.unsettled = None;
    }

    /// The time without holding opens is over, by a clock that nobody sets.
    pub fn rested(&mut self) {
        self.fine();
        self.resting_until = None;
    }

    /// An administrator mended the cause.
    pub fn reset(&mut self) {
        self.resting_until = None;
        self.rests = 0;
        self.ends.clear();
    }

    /// It has run well for [`SETTLED`].
    pub fn settled(&mut self) {
        self.fine();
        self.in_a_row = 0;
    }

    /// It ended badly.
    pub fn bad_end(&mut self, ending: Ending, now: u64) {
        self.unsettled = None;
        self.last = Some(ending);
        self.restarts = self.restarts.saturating_add(1);
        self.in_a_row = self.in_a_row.saturating_add(1);
        // An agent that says why it does not start holds no opens.
        if ending == Ending::Failed {
            return;
        }
        // A clock that was put back leaves ends in the future: they count for nothing.
        let window = WINDOW.as_secs();
        self.ends.retain(|&end| end <= now && now - end <= window);
        self.ends.push(now);
        if self.ends.len() >= ENDS && self.resting(now).is_none() {
            let rest = FIRST_REST
                .saturating_mul(1 << self.rests.min(8))
                .min(LONGEST_REST);
            self.resting_until = Some(now.saturating_add(rest.as_secs()));
            self.rests = self.rests.saturating_add(1);
            self.ends.clear();
        }
    }

    /// How long opens are not held yet, if they are not.
    pub fn resting(&self, now: u64) -> Option<Duration> {
        let left = self.resting_until?.checked_sub(now)?;
        // No rest is that long: the clock was put back, and must not keep protection off.
        (1..=LONGEST_REST.as_secs())
            .contains(&left)
            .then(|| Duration::from_secs(left))
    }

    /// How long to wait before the next start.
    pub fn wait(&self) -> Duration {
        match self.in_a_row {
            0 => Duration::ZERO,
            n => FIRST_WAIT
                .saturating_mul(1 << (n - 1).min(16))
                .min(LONGEST_WAIT),
        }
    }

    /// Why opens are not held, for people, while they are not.
    pub fn why(&self, now: u64) -> Option<String> {
        let left = self.resting(now)?;
        let last = self.last.map_or("", Ending::as_str);
        Some(format!(
            "the agent failed {ENDS} times within {} minutes (the last time {last}): opens are \
             not held for {} more minutes; `palisade-agent supervise --reset` after the cause is \
             mended holds them again at once",
            WINDOW.as_secs() / 60,
            left.as_secs().div_ceil(60),
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: u64 = 1_800_000_000;

    #[test]
    fn three_bad_ends_let_opens_go_for_an_hour_and_then_for_two() {
        let mut record = Record::default();
        for second in [0, 200] {
            record.bad_end(Ending::Crashed, NOW + second);
            assert_eq!(record.resting(NOW + second), None);
        }
        record.bad_end(Ending::Stalled, NOW + 400);
        assert_eq!(record.resting(NOW + 400), Some(FIRST_REST));
        let why = record.why(NOW + 401).unwrap();
        assert!(
            why.contains("no sign of life") && why.contains("60 more minutes"),
            "{why}"
        );
        let later = NOW + 400 + FIRST_REST.as_secs();
        assert_eq!(record.resting(later), None);
        for second in 0..3 {
            record.bad_end(Ending::Crashed, later + second);
        }
        assert_eq!(record.resting(later + 2), Some(2 * FIRST_REST));
    }

    #[test]
    fn ends_far_apart_and_errors_that_were_said_are_no_rule() {
        let mut record = Record::default();
        for n in 0..20 {
            record.bad_end(Ending::Crashed, NOW + n * 400);
            record.bad_end(Ending::Failed, NOW + n * 400);
            assert_eq!(record.resting(NOW + n * 400), None, "{n}");
        }
        assert_eq!(record.restarts, 40);
    }

    #[test]
    fn a_boot_that_hung_three_times_is_not_hung_again() {
        let mut record = Record::default();
        for (n, boot) in ["a", "b", "c"].iter().enumerate() {
            record.begin(boot, NOW + 60 * n as u64);
            assert_eq!(record.resting(NOW + 60 * n as u64), None);
            record.starts(boot);
        }
        record.begin("d", NOW + 180);
        assert!(record.resting(NOW + 180).is_some());
        assert_eq!(record.last, Some(Ending::BootUnfinished));
    }

    #[test]
    fn a_boot_after_a_settled_agent_or_a_clean_stop_is_none_of_its_business() {
        let mut record = Record::default();
        for boot in ["a", "b", "c", "d"] {
            record.begin(boot, NOW);
            record.starts(boot);
            record.settled();
        }
        // The same boot: somebody killed the supervisor.
        record.starts("e");
        record.begin("e", NOW);
        assert_eq!(record, Record::default());
    }

    proptest! {
        #[test]
        fn protection_always_comes_back_whatever_the_clock_does(
            steps in prop::collection::vec((0_u64..4, -90_000_i64..90_000), 0..60),
        ) {
            let mut record = Record::default();
            let mut now = NOW;
            for (kind, seconds) in steps {
                now = now.saturating_add_signed(seconds);
                match kind {
                    0 => record.bad_end(Ending::Crashed, now),
                    1 => record.bad_end(Ending::Failed, now),
                    2 => record.settled(),
                    _ => record.begin(&now.to_string(), now),
                }
                // The supervisor sleeps by another clock; whatever this one says then.
                let mut rested = record.clone();
                rested.rested();
                for later in [0, now, now + 1, u64::MAX] {
                    prop_assert_eq!(rested.resting(later), None);
                }
                for earlier in [0, now.saturating_sub(2 * LONGEST_REST.as_secs())] {
                    prop_assert_eq!(record.resting(earlier), None);
                }
                prop_assert!(record.ends.len() < ENDS);
                prop_assert!(record.wait() <= LONGEST_WAIT);
                if let Some(left) = record.resting(now) {
                    prop_assert!(left <= LONGEST_REST);
                    prop_assert!(record.why(now).is_some());
                }
            }
        }
    }
}
