//! The physical limits as rows of their own; they were measured before the rest.

use anyhow::Result;

use crate::bench::Bench;
use crate::report::Row;
use crate::stats::Summary;

pub(super) fn run(bench: &mut Bench) -> Result<Vec<Row>> {
    let limits = bench.limits;
    let megabytes = |rate: Summary| Summary {
        samples: rate.samples,
        median: rate.median / 1e6,
        min: rate.min / 1e6,
        max: rate.max / 1e6,
    };
    Ok(vec![
        Row::new("BLAKE3 on one core", "MB/s", megabytes(limits.blake3)),
        Row::new("a copy in memory", "MB/s", megabytes(limits.copy)),
        Row::new(
            "quinn on loopback, one stream",
            "MB/s",
            megabytes(limits.quinn),
        )
        .note("quinn's own bounds, TLS included, both ends on this machine"),
        Row::new(
            "reading and hashing the corpus on one core",
            "s",
            limits.hash_corpus,
        ),
        Row::new(
            "a native open and close, p50",
            "µs",
            Summary::one(limits.open_p50),
        ),
        Row::new(
            "a native open and close, p99",
            "µs",
            Summary::one(limits.open_p99),
        ),
        Row::new(
            "a thread on another core is woken, and wakes this one, p50",
            "µs",
            Summary::one(limits.wake_p50),
        )
        .note("what answers an open in another process takes that much at the least"),
        Row::new(
            "a thread on another core is woken, and wakes this one, p99",
            "µs",
            Summary::one(limits.wake_p99),
        ),
    ])
}
