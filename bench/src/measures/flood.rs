//! One agent asks for ten times as much as the others: what the others notice.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use palisade_light_agent::scanner::Scanner;
use tokio::task::JoinSet;

use crate::agents::{scan_small, scanner, small_content};
use crate::bench::Bench;
use crate::random::Random;
use crate::report::{Row, Target};
use crate::stats::{Summary, percentile};

/// Agents besides the one.
const OTHERS: usize = 8;
/// New contents that each of them has scanned, in a second.
const RATE: u32 = 10;
/// How many times as much the one asks for.
const FLOOD: u32 = 10;
/// Requests of one agent at a time.
const ASKING: usize = 32;
/// What the others' 99th percentile may grow to.
const MOST: f64 = 1.2;

pub(super) fn run(bench: &mut Bench) -> Result<Vec<Row>> {
    let (address, span) = (bench.site.scan_address()?, bench.scale.span);
    let (usual, flooded) = bench.runtime.block_on(async {
        let identities = bench.site.identities(None, OTHERS + 1).await?;
        let agents: Vec<Scanner> = identities
            .into_iter()
            .map(|identity| scanner(identity, address, ASKING))
            .collect();
        // Sessions are open and workers there after this.
        others(&agents, "warm", RATE, Duration::from_secs(1)).await?;
        let usual = others(&agents, "usual", RATE, span).await?;
        let flooded = others(&agents, "flood", RATE * FLOOD, span).await?;
        Ok::<_, anyhow::Error>((usual, flooded))
    })?;
    let p99 = |samples: &[f64]| -> Result<Summary> {
        Ok(Summary::one(
            percentile(samples, 990).context("nothing was scanned")?,
        ))
    };
    Ok(vec![
        Row::new(format!("others' new contents while one agent asks for {FLOOD} times as much, p99"), "ms", p99(&flooded)?)
            .against("the same while it asks for as much as they", p99(&usual)?)
            .target(Target::Ratio(MOST))
            .note(format!("{OTHERS} others, {RATE} new contents a second each; from the moment at which a request was due")),
    ])
}

/// All agents have new contents scanned by the clock, the first at `rate`, the others
/// at [`RATE`]; gives how long the others waited, in milliseconds.
async fn others(agents: &[Scanner], phase: &str, rate: u32, span: Duration) -> Result<Vec<f64>> {
    let mut tasks = JoinSet::new();
    for (number, agent) in agents.iter().enumerate() {
        let random = Random::new(&format!("{phase} {number}"));
        let rate = if number == 0 { rate } else { RATE };
        let agent = agent.clone();
        tasks.spawn(async move {
            Ok::<_, anyhow::Error>((number, paced(agent, random, rate, span).await?))
        });
    }
    let mut waited = Vec::new();
    while let Some(ended) = tasks.join_next().await {
        let (number, samples) = ended??;
        if number > 0 {
            waited.extend(samples);
        }
    }
    Ok(waited)
}

async fn paced(agent: Scanner, mut random: Random, rate: u32, span: Duration) -> Result<Vec<f64>> {
    let started = Instant::now();
    let every = Duration::from_secs(1) / rate;
    let mut scans = JoinSet::new();
    for number in 0.. {
        let due = started + every * number;
        if due >= started + span {
            break;
        }
        let content = small_content(&mut random)?;
        tokio::time::sleep_until(due.into()).await;
        let agent = agent.clone();
        scans.spawn(async move { scan_small(&agent, &content, due).await });
    }
    let mut samples = Vec::new();
    while let Some(ended) = scans.join_next().await {
        samples.push(ended??);
    }
    Ok(samples)
}
