//! How much is measured: every count of a run stands here.

use std::time::Duration;

use crate::signatures::Counts;

/// The counts of a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scale {
    /// Its name, for the report.
    pub name: &'static str,
    /// The signature set.
    pub signatures: Counts,
    /// Bytes of real files in the corpus, at the most.
    pub corpus_bytes: u64,
    /// Repetitions of what takes long.
    pub repeats: usize,
    /// Repetitions of what is quick.
    pub quick_repeats: usize,
    /// Agents that start from one image.
    pub agents: usize,
    /// Bytes of the large file that is changed in place.
    pub large_bytes: u64,
    /// Connected agents while verdicts are asked for.
    pub sessions: usize,
    /// Requests a second, sent by the clock.
    pub rate: u32,
    /// How long requests are sent.
    pub span: Duration,
    /// Files that are opened.
    pub opens: usize,
    /// Pairs of probes for another tenant's contents.
    pub probes: usize,
    /// Workers that are killed.
    pub kills: usize,
}

impl Scale {
    /// What `BENCHMARKS.md` holds.
    pub const FULL: Self = Self {
        name: "full",
        signatures: Counts {
            hashes: 400_000,
            bodies: 80_000,
            logical: 5_000,
            yara: 2_000,
        },
        corpus_bytes: 253_000_000,
        repeats: 3,
        quick_repeats: 5,
        agents: 50,
        large_bytes: 400_000_000,
        sessions: 1_000,
        rate: 10_000,
        span: Duration::from_secs(10),
        opens: 500,
        probes: 10_000,
        kills: 10,
    };
    /// The same in less than five minutes.
    pub const QUICK: Self = Self {
        name: "quick",
        corpus_bytes: 60_000_000,
        repeats: 1,
        quick_repeats: 3,
        agents: 10,
        large_bytes: 60_000_000,
        sessions: 200,
        span: Duration::from_secs(4),
        opens: 200,
        probes: 2_000,
        kills: 3,
        ..Self::FULL
    };
    /// The least that exercises both sides: numbers of no meaning, in seconds.
    pub const SMOKE: Self = Self {
        name: "smoke",
        signatures: Counts {
            hashes: 400,
            bodies: 80,
            logical: 5,
            yara: 5,
        },
        corpus_bytes: 4_000_000,
        repeats: 1,
        quick_repeats: 1,
        agents: 3,
        large_bytes: 6_000_000,
        sessions: 20,
        rate: 200,
        span: Duration::from_secs(1),
        opens: 20,
        probes: 100,
        kills: 1,
    };
}
