//! When each candidate is tried again: pure, with the time as an argument.
//!
//! A candidate that failed waits longer each time. A session that was lost soon counts
//! as a failure, too: one that comes and goes is not gone back to each time. Which of those
//! that may be tried comes first is said by when they were tried ([`Attempts::tried`]).

use std::time::{Duration, Instant};

use crate::link::Target;

/// The first wait after a failure.
const FIRST_WAIT: Duration = Duration::from_millis(250);
/// The longest wait while there is no session.
pub const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// The longest wait while another Protection Server is in use.
pub const LONGEST_WAIT_OF_SPARE: Duration = Duration::from_secs(30);
/// A session that lasted this long makes earlier failures forgotten.
const STEADY: Duration = Duration::from_secs(60);

/// What is remembered of one candidate's failures.
#[derive(Debug, Clone)]
pub struct Failure {
    /// When it failed the last time.
    pub at: Instant,
    /// Why.
    pub reason: String,
    times: u32,
    spread: f64,
}

impl Failure {
    fn wait(&self, longest: Duration) -> Duration {
        let doubled = FIRST_WAIT.saturating_mul(1 << self.times.saturating_sub(1).min(16));
        doubled.min(longest).mul_f64(self.spread)
    }
}

/// The failures of all candidates: as many as the list is long.
#[derive(Debug, Default)]
pub struct Attempts {
    failed: Vec<(Target, Failure)>,
    /// Since a session was found the last time.
    tried: Vec<(Target, Instant)>,
}

impl Attempts {
    /// Takes down that one is tried.
    pub fn begun(&mut self, target: &Target, now: Instant) {
        self.tried.retain(|(of, _)| of != target);
        self.tried.push((target.clone(), now));
    }

    /// When one was tried the last time since a session was found; none if not since.
    pub fn tried(&self, target: &Target) -> Option<Instant> {
        let mut tried = self.tried.iter();
        tried.find(|(of, _)| of == target).map(|(_, at)| *at)
    }

    /// A session was found: the next time, the order of preference counts again.
    pub fn found(&mut self) {
        self.tried.clear();
    }

    /// Takes down a failure; `spread` is about 1 and keeps agents from coming at once.
    pub fn failed(&mut self, target: &Target, now: Instant, reason: String, spread: f64) {
        let times = 1 + self.of(target).map_or(0, |failure| failure.times);
        self.forget(target);
        let failure = Failure {
            at: now,
            reason,
            times,
            spread,
        };
        self.failed.push((target.clone(), failure));
    }

    /// Takes down that a session is over which lasted this long.
    pub fn lost(
        &mut self,
        target: &Target,
        now: Instant,
        lasted: Duration,
        reason: String,
        spread: f64,
    ) {
        if lasted >= STEADY {
            self.forget(target);
        }
        self.failed(target, now, reason, spread);
    }

    /// The last failure of a candidate.
    pub fn of(&self, target: &Target) -> Option<&Failure> {
        let mut failed = self.failed.iter();
        failed.find(|(of, _)| of == target).map(|(_, what)| what)
    }

    /// When a candidate may be tried; now, if it never failed.
    pub fn due(&self, target: &Target, longest: Duration) -> Option<Instant> {
        let failure = self.of(target)?;
        Some(failure.at + failure.wait(longest))
    }

    /// Has every candidate tried at once: there is news of them. What is not among
    /// them is forgotten.
    pub fn news(&mut self, targets: &[Target]) {
        self.failed.retain(|(of, _)| targets.contains(of));
        self.tried.retain(|(of, _)| targets.contains(of));
        for (_, failure) in &mut self.failed {
            failure.times = 0;
            failure.spread = 0.0;
        }
    }

    fn forget(&mut self, target: &Target) {
        self.failed.retain(|(of, _)| of != target);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn target(port: u16) -> Target {
        Target {
            id: None,
            name: port.to_string(),
            addresses: vec![([127, 0, 0, 1], port).into()],
        }
    }

    proptest! {
        #[test]
        fn waits_grow_up_to_the_longest(times in 1..40u32, spread in 0.8..1.2f64) {
            let (mut attempts, now) = (Attempts::default(), Instant::now());
            let mut last = Duration::ZERO;
            for _ in 0..times {
                attempts.failed(&target(1), now, "no".into(), spread);
                let due = attempts.due(&target(1), LONGEST_WAIT);
                let wait = due.map(|due| due - now).unwrap_or_default();
                prop_assert!(wait >= last && wait <= LONGEST_WAIT.mul_f64(spread));
                last = wait;
            }
            // Another one is not kept waiting.
            prop_assert_eq!(attempts.due(&target(2), LONGEST_WAIT), None);
        }

        #[test]
        fn a_session_that_comes_and_goes_is_waited_for(times in 2..20u32, lasted in 0..120u64) {
            let (mut attempts, now) = (Attempts::default(), Instant::now());
            let lasted = Duration::from_secs(lasted);
            for _ in 0..times {
                attempts.lost(&target(1), now, lasted, "gone".into(), 1.0);
            }
            let wait = attempts.due(&target(1), LONGEST_WAIT).map(|due| due - now);
            if lasted >= STEADY {
                prop_assert_eq!(wait, Some(FIRST_WAIT));
            } else {
                prop_assert!(wait > Some(FIRST_WAIT));
            }
        }
    }

    #[test]
    fn news_have_all_tried_at_once_and_others_forgotten() {
        let (mut attempts, now) = (Attempts::default(), Instant::now());
        for port in [1, 2] {
            for _ in 0..5 {
                attempts.failed(&target(port), now, "no".into(), 1.0);
            }
        }
        attempts.news(&[target(1)]);
        assert_eq!(attempts.due(&target(1), LONGEST_WAIT), Some(now));
        assert!(attempts.of(&target(1)).is_some(), "it is still explained");
        assert!(attempts.of(&target(2)).is_none());
    }
}
