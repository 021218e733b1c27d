//! Verdicts that the SharedCache holds: how many a second, how quickly, and what a
//! thousand connected agents cost.
//!
//! The agents are sessions of clients within this process, which takes its part of
//! the cores: what is measured is both ends on one machine.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use palisade_protocol::content::ContentId;
use palisade_protocol::scan::VerdictSource;
use tokio::task::JoinSet;

use crate::bench::Bench;
use crate::client::{Client, dialler};
use crate::processes;
use crate::random::Random;
use crate::report::{Row, Target, short};
use crate::stats::{Summary, percentile};

/// Known contents that are asked for in turn.
const CONTENTS: usize = 256;
/// Their size in bytes.
pub(super) const CONTENT_BYTES: usize = 4096;
/// Identities among which the sessions are divided: an enrolment each would only
/// measure the Integration Server's limit.
const IDENTITIES: usize = 100;
/// Sessions that share a UDP socket.
const PER_ENDPOINT: usize = 64;
/// Requests at a time when as many as possible are asked for.
const AT_A_TIME: usize = 64;
/// Times that clamd is asked.
const PEER_REQUESTS: usize = 500;
/// How often requests that are due are sent.
const TICK: Duration = Duration::from_millis(1);
const MIB: f64 = 1024.0 * 1024.0;

pub(super) fn run(bench: &mut Bench) -> Result<Vec<Row>> {
    let contents = known(bench)?;
    let peer = peer(bench, &contents)?;
    let contents: Arc<Vec<ContentId>> =
        Arc::new(contents.iter().map(|bytes| ContentId::of(bytes)).collect());
    let (sessions, rate, span) = (bench.scale.sessions, bench.scale.rate, bench.scale.span);
    let server = bench.site.scanserver()?.pid;
    let before = processes::memory(server)?.pss;
    let (most, (paced, achieved), connected, under_load) = bench.runtime.block_on(async {
        let clients = Arc::new(connect(bench, sessions).await?);
        let connected = processes::memory(server)?.pss;
        let most = as_many_as_possible(&clients, &contents, span).await?;
        let paced = by_the_clock(&clients, &contents, rate, span).await?;
        let under_load = processes::memory(server)?.pss;
        Ok::<_, anyhow::Error>((most, paced, connected, under_load))
    })?;
    let at = |samples: &[f64], permille: usize| -> Result<Summary> {
        Ok(Summary::one(
            percentile(samples, permille).context("nothing was answered")?,
        ))
    };
    let mib = |bytes: u64| bytes.saturating_sub(before) as f64 / MIB;
    Ok(vec![
        Row::new(format!("cached verdicts, {AT_A_TIME} requests at a time"), "requests/s", Summary::one(most))
            .target(Target::AtLeast(f64::from(bench.scale.rate)))
            .note("clients and Protection Server share this machine's cores"),
        Row::new(format!("cached verdict at {rate} requests/s, p50"), "ms", at(&paced, 500)?)
            .against("clamd with its cache warm, by stream, one at a time, p50", at(&peer, 500)?),
        Row::new(format!("cached verdict at {rate} requests/s, p99"), "ms", at(&paced, 990)?)
            .against("clamd with its cache warm, by stream, one at a time, p99", at(&peer, 990)?)
            .target(Target::AtMost(2.0))
            .note(format!(
                "from the moment at which a request was due; {} requests/s were answered, over {sessions} sessions",
                short(achieved)
            )),
        Row::new(format!("memory for {sessions} connected agents"), "MiB", Summary::one(mib(under_load)))
            .target(Target::AtMost(1024.0))
            .note(format!(
                "daemon's Pss beyond what it had before: {} MiB when connected, this after the requests; sessions of {} identities",
                short(mib(connected)),
                IDENTITIES.min(sessions)
            )),
    ])
}

/// Small contents that the SharedCache knows after this.
pub(super) fn known(bench: &Bench) -> Result<Vec<Vec<u8>>> {
    let folder = bench.folder().join("known");
    fs::create_dir_all(&folder)?;
    let mut random = Random::new("known contents");
    let mut contents = Vec::new();
    for number in 0..CONTENTS {
        let mut bytes = vec![0; CONTENT_BYTES];
        random.fill(&mut bytes);
        fs::write(folder.join(number.to_string()), &bytes)?;
        contents.push(bytes);
    }
    bench.site.scan(&bench.first, &folder)?;
    Ok(contents)
}

/// How long clamd takes for what it knows, in milliseconds.
fn peer(bench: &Bench, contents: &[Vec<u8>]) -> Result<Vec<f64>> {
    for bytes in contents {
        bench.clamd.scan_bytes(bytes)?;
    }
    contents
        .iter()
        .cycle()
        .take(PEER_REQUESTS)
        .map(|bytes| {
            let started = Instant::now();
            let said = bench.clamd.scan_bytes(bytes)?;
            ensure!(said == "stream: OK", "clamd says {said}");
            Ok(started.elapsed().as_secs_f64() * 1e3)
        })
        .collect()
}

async fn connect(bench: &Bench, sessions: usize) -> Result<Vec<Client>> {
    let identities = bench
        .site
        .identities(None, IDENTITIES.min(sessions))
        .await?;
    let address = bench.site.scan_address()?;
    let mut clients = Vec::new();
    let mut endpoint = dialler(address)?;
    for number in 0..sessions {
        if number % PER_ENDPOINT == 0 {
            endpoint = dialler(address)?;
        }
        clients.push(
            Client::connect(&endpoint, address, &identities[number % identities.len()]).await?,
        );
    }
    Ok(clients)
}

/// Requests a second when the next is sent as soon as one is answered.
async fn as_many_as_possible(
    clients: &Arc<Vec<Client>>,
    contents: &Arc<Vec<ContentId>>,
    span: Duration,
) -> Result<f64> {
    let started = Instant::now();
    let answered = Arc::new(AtomicUsize::new(0));
    let mut tasks = JoinSet::new();
    for number in 0..AT_A_TIME {
        let (clients, contents, answered) = (
            Arc::clone(clients),
            Arc::clone(contents),
            Arc::clone(&answered),
        );
        tasks.spawn(async move {
            let client = &clients[number % clients.len()];
            let mut at = number;
            while started.elapsed() < span {
                ask(client, contents[at % contents.len()]).await?;
                at += 1;
                answered.fetch_add(1, Ordering::Relaxed);
            }
            Ok::<_, anyhow::Error>(())
        });
    }
    while let Some(ended) = tasks.join_next().await {
        ended??;
    }
    Ok(answered.load(Ordering::Relaxed) as f64 / started.elapsed().as_secs_f64())
}

/// Milliseconds from the moment at which each request was due to its answer, so that
/// a slow answer does not hide those that wait behind it; and requests a second that
/// were answered.
async fn by_the_clock(
    clients: &Arc<Vec<Client>>,
    contents: &Arc<Vec<ContentId>>,
    rate: u32,
    span: Duration,
) -> Result<(Vec<f64>, f64)> {
    let total = (f64::from(rate) * span.as_secs_f64()) as usize;
    let started = Instant::now();
    let mut tasks = JoinSet::new();
    let mut tick = tokio::time::interval(TICK);
    let mut sent = 0;
    while sent < total {
        tick.tick().await;
        let due = ((started.elapsed().as_secs_f64() * f64::from(rate)) as usize).min(total);
        for number in sent..due {
            let (clients, content) = (Arc::clone(clients), contents[number % contents.len()]);
            let at = started + Duration::from_secs_f64(number as f64 / f64::from(rate));
            tasks.spawn(async move {
                ask(&clients[number % clients.len()], content).await?;
                Ok::<_, anyhow::Error>(at.elapsed().as_secs_f64() * 1e3)
            });
        }
        sent = due;
    }
    let mut samples = Vec::with_capacity(total);
    while let Some(ended) = tasks.join_next().await {
        samples.push(ended??);
    }
    let achieved = samples.len() as f64 / started.elapsed().as_secs_f64();
    Ok((samples, achieved))
}

async fn ask(client: &Client, content: ContentId) -> Result<()> {
    let result = client.ask(content, CONTENT_BYTES as u64).await?;
    ensure!(
        result.source == VerdictSource::SharedCache,
        "a verdict came from {:?}",
        result.source
    );
    Ok(())
}
