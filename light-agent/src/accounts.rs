//! Where every event of a group went: counters, and the sum that must hold.
//!
//! Owns the numbers; each event's own answer books itself here, once, so that
//!
//! ```text
//! seen = scanned + cached + allowed_by_policy + failed_open + failed_closed + pending
//! ```
//!
//! **Invariant:** nothing but [`Accounts::book`] adds to the right-hand side.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use palisade_protocol::control::EventCounters;

use crate::failure::{Answer, Failure};

/// How an event was answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// By a Protection Server's verdict.
    Scanned(Answer),
    /// By a verdict that the agent remembered.
    Cached(Answer),
    /// Policy does not cover it: allowed.
    Policy,
    /// By the failure table.
    Failed(Failure, Answer),
}

impl Outcome {
    /// What the kernel is told.
    pub fn answer(self) -> Answer {
        match self {
            Self::Scanned(answer) | Self::Cached(answer) | Self::Failed(_, answer) => answer,
            Self::Policy => Answer::Allow,
        }
    }
}

/// The counters since the agent started.
#[derive(Debug, Default)]
pub struct Accounts {
    seen: AtomicU64,
    scanned: AtomicU64,
    cached: AtomicU64,
    policy: AtomicU64,
    failed_open: AtomicU64,
    failed_closed: AtomicU64,
    denied: AtomicU64,
    failures: [AtomicU64; Failure::ALL.len()],
    kernel_refused: AtomicU64,
    overflows: AtomicU64,
    late_dropped: AtomicU64,
}

/// The counters at one moment.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize)]
pub struct Snapshot {
    /// Events read from the kernel.
    pub seen: u64,
    /// Answered by a Protection Server's verdict.
    pub scanned: u64,
    /// Answered by a remembered verdict.
    pub cached: u64,
    /// Allowed because policy does not cover them.
    pub allowed_by_policy: u64,
    /// Allowed by the failure table.
    pub failed_open: u64,
    /// Denied by the failure table.
    pub failed_closed: u64,
    /// Not answered yet.
    pub pending: u64,
    /// Denied, for whatever cause.
    pub denied: u64,
    /// Events that the kernel could not give to the agent; an open that was held it denied.
    pub kernel_refused: u64,
    /// Overflows of the kernel's queue.
    pub overflows: u64,
    /// Scans that were given up after their deadline, because too many were under way.
    pub late_dropped: u64,
    /// Answers of the failure table, by reason.
    pub failures: std::collections::BTreeMap<&'static str, u64>,
}

impl Accounts {
    /// An event was read.
    pub fn seen(&self) {
        self.seen.fetch_add(1, Relaxed);
    }

    /// Events that were read so far.
    pub fn total_seen(&self) -> u64 {
        self.seen.load(Relaxed)
    }

    /// An event was answered.
    pub fn book(&self, outcome: Outcome) {
        let counter = match outcome {
            Outcome::Scanned(_) => &self.scanned,
            Outcome::Cached(_) => &self.cached,
            Outcome::Policy => &self.policy,
            Outcome::Failed(failure, answer) => {
                self.failures[failure as usize].fetch_add(1, Relaxed);
                match answer {
                    Answer::Allow => &self.failed_open,
                    Answer::Deny => &self.failed_closed,
                }
            }
        };
        counter.fetch_add(1, Relaxed);
        if outcome.answer() == Answer::Deny {
            self.denied.fetch_add(1, Relaxed);
        }
    }

    /// The kernel could not hand an event over, and denied it if it was a held open.
    pub fn kernel_refused(&self) {
        self.kernel_refused.fetch_add(1, Relaxed);
    }

    /// The kernel's queue overflowed.
    pub fn overflow(&self) {
        self.overflows.fetch_add(1, Relaxed);
    }

    /// A scan was given up after its deadline.
    pub fn late_dropped(&self) {
        self.late_dropped.fetch_add(1, Relaxed);
    }

    /// The counters now. What is answered is read before what was seen, so that
    /// `pending` is never negative.
    pub fn snapshot(&self) -> Snapshot {
        let scanned = self.scanned.load(Relaxed);
        let cached = self.cached.load(Relaxed);
        let allowed_by_policy = self.policy.load(Relaxed);
        let failed_open = self.failed_open.load(Relaxed);
        let failed_closed = self.failed_closed.load(Relaxed);
        let answered = scanned + cached + allowed_by_policy + failed_open + failed_closed;
        let seen = self.seen.load(Relaxed).max(answered);
        let failures = Failure::ALL
            .iter()
            .map(|failure| {
                (
                    failure.key(),
                    self.failures[*failure as usize].load(Relaxed),
                )
            })
            .collect();
        Snapshot {
            seen,
            scanned,
            cached,
            allowed_by_policy,
            failed_open,
            failed_closed,
            pending: seen - answered,
            denied: self.denied.load(Relaxed),
            kernel_refused: self.kernel_refused.load(Relaxed),
            overflows: self.overflows.load(Relaxed),
            late_dropped: self.late_dropped.load(Relaxed),
            failures,
        }
    }
}

impl Snapshot {
    /// Whether every event that was seen is accounted for; `pending` must be 0.
    pub fn balances(&self) -> bool {
        self.pending == 0
            && self.failures.values().sum::<u64>() == self.failed_open + self.failed_closed
    }

    /// As it is reported: events that wait are reported once they are answered.
    pub fn reported(&self) -> EventCounters {
        EventCounters {
            seen: self.seen - self.pending,
            scanned: self.scanned,
            cached: self.cached,
            allowed_by_policy: self.allowed_by_policy,
            failed_open: self.failed_open,
            failed_closed: self.failed_closed,
        }
    }
}
