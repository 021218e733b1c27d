//! What an agent of one tenant learns of another tenant's files from the time that an
//! answer takes: pairs of probes, one for a content that the other tenant had scanned,
//! one for a content that nobody has.

use std::time::Instant;

use anyhow::{Context as _, Result};
use palisade_protocol::content::ContentId;

use super::verdicts::{CONTENT_BYTES, known};
use crate::bench::Bench;
use crate::client::{Client, dialler};
use crate::random::Random;
use crate::report::{Row, Target};
use crate::stats::Summary;

/// The tenant that asks.
const TENANT: &str = "curious";
/// Percent by which the medians may differ.
const MOST_PERCENT: f64 = 2.0;

pub(super) fn run(bench: &mut Bench) -> Result<Vec<Row>> {
    let contents = known(bench)?;
    let theirs: Vec<ContentId> = contents.iter().map(|bytes| ContentId::of(bytes)).collect();
    let mut random = Random::new("contents that nobody has");
    let nobodys: Vec<ContentId> = theirs
        .iter()
        .map(|_| {
            let mut hash = [0; 32];
            random.fill(&mut hash);
            ContentId(hash)
        })
        .collect();
    let (known, unknown) = bench.runtime.block_on(async {
        let identity = bench
            .site
            .identities(Some(TENANT), 1)
            .await?
            .pop()
            .context("no identity")?;
        let address = bench.site.scan_address()?;
        let client = Client::connect(&dialler(address)?, address, &identity).await?;
        let (mut known, mut unknown) = (Vec::new(), Vec::new());
        let pairs = theirs.iter().zip(&nobodys).cycle().take(bench.scale.probes);
        for (number, (own, other)) in pairs.enumerate() {
            // Whoever comes second has it warmer, so they take turns.
            if number % 2 == 0 {
                known.push(probe(&client, *own).await?);
                unknown.push(probe(&client, *other).await?);
            } else {
                unknown.push(probe(&client, *other).await?);
                known.push(probe(&client, *own).await?);
            }
        }
        Ok::<_, anyhow::Error>((known, unknown))
    })?;
    let summary = |samples: &[f64]| Summary::of(samples).context("nothing was asked");
    let (known, unknown) = (summary(&known)?, summary(&unknown)?);
    let differ = (known.median - unknown.median).abs() * 100.0 / unknown.median;
    Ok(vec![
        Row::new("a probe for another tenant's content", "µs", known)
            .against("for a content that nobody has", unknown),
        Row::new("by which the medians differ", "%", Summary::one(differ))
            .target(Target::AtMost(MOST_PERCENT))
            .note(format!("{} interleaved pairs", bench.scale.probes)),
    ])
}

/// How long it takes until content is asked for, in microseconds.
async fn probe(client: &Client, content: ContentId) -> Result<f64> {
    let started = Instant::now();
    client.is_asked_for(content, CONTENT_BYTES as u64).await?;
    Ok(started.elapsed().as_secs_f64() * 1e6)
}
