//! The files that one guest had scanned, in another guest of the same tenant: ours
//! from the SharedCache, clamd by stream with its cache warm, and a clamd that the
//! other guest has for itself.

use anyhow::{Result, ensure};

use super::first_scan::elapsed;
use crate::bench::Bench;
use crate::clamd::Way;
use crate::pass;
use crate::report::{Row, Target, short};

pub(super) fn run(bench: &mut Bench) -> Result<Vec<Row>> {
    let corpus = bench.corpus.folder.clone();
    // Both have it; what the first scan takes is another measure.
    bench.site.scan(&bench.first, &corpus)?;
    bench.clamd.restart()?;
    let alone = bench.clamd.scan(Way::Descriptor, &corpus)?;
    bench.clamd.scan(Way::Stream, &corpus)?;
    let (mut ours, mut warm) = (Vec::new(), Vec::new());
    for _ in 0..bench.scale.quick_repeats {
        ours.push(bench.site.scan(&bench.second, &corpus)?);
        warm.push(bench.clamd.scan(Way::Stream, &corpus)?);
    }
    for own in &ours {
        pass::same(own, &alone, &corpus)?;
        ensure!(
            own.sent == Some(0),
            "content was sent again: {:?} bytes",
            own.sent
        );
    }
    let limit = format!(
        "reading and hashing the corpus on one core: {} s",
        short(bench.limits.hash_corpus.median)
    );
    Ok(vec![
        Row::new("second guest", "s", elapsed(&ours)?)
            .against("clamd in each guest, by descriptor", elapsed(&[alone])?)
            .target(Target::AtMost(0.35))
            .target(Target::Ratio(1.0 / 50.0))
            .limit(limit.clone()),
        Row::new("second guest", "s", elapsed(&ours)?)
            .against(
                "a shared clamd with its cache warm, by stream",
                elapsed(&warm)?,
            )
            .target(Target::Ratio(1.0 / 6.0))
            .limit(limit)
            .note("no content byte was sent"),
    ])
}
