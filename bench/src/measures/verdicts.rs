//! Verdicts that the SharedCache holds: how many a second, how quickly, and what a
//! thousand connected agents cost.
//!
//! The agents are sessions of clients within this process. The Protection Server has one
//! core for itself, engines included, and the clients have the others.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use palisade_protocol::content::ContentId;
use palisade_protocol::scan::VerdictSource;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;

use super::echo;
use crate::bench::Bench;
use crate::client::{Client, dialler};
use crate::cores::Parts;
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
/// Windows of time that are looked at on their own.
const WINDOWS_PER_SECOND: usize = 10;
const MIB: f64 = 1024.0 * 1024.0;

pub(super) fn run(bench: &mut Bench) -> Result<Vec<Row>> {
    let parts = Parts::one_and_the_others()?;
    parts.on_one(|| bench.site.restart(&bench.first))??;
    let contents = known(bench)?;
    let peer = peer(bench, &contents)?;
    let contents: Arc<Vec<ContentId>> =
        Arc::new(contents.iter().map(|bytes| ContentId::of(bytes)).collect());
    let (sessions, rate, span) = (bench.scale.sessions, bench.scale.rate, bench.scale.span);
    let server = bench.site.scanserver()?.pid;
    let before = processes::memory(server)?.pss;
    let (most, paced, connected, under_load) = parts.on_the_others(|| {
        // Its threads are where this one is.
        let runtime = Runtime::new().context("no runtime")?;
        runtime.block_on(async {
            let clients = Arc::new(connect(bench, sessions).await?);
            let connected = processes::memory(server)?.pss;
            let most = as_many_as_possible(&clients, &contents, span).await?;
            let paced = by_the_clock(&clients, &contents, rate, span).await?;
            let under_load = processes::memory(server)?.pss;
            Ok::<_, anyhow::Error>((most, paced, connected, under_load))
        })
    })??;
    // What is measured next has all cores.
    bench.site.restart(&bench.first)?;
    let at = |samples: &[f64], permille: usize| -> Result<Summary> {
        Ok(Summary::one(
            percentile(samples, permille).context("nothing was answered")?,
        ))
    };
    let echo = echo::by_the_clock(rate, span)?;
    let windows = window_p99s(&paced.answered, rate);
    let mib = |bytes: u64| bytes.saturating_sub(before) as f64 / MIB;
    Ok(vec![
        Row::new(format!("cached verdicts, {AT_A_TIME} requests at a time"), "requests/s", Summary::one(most))
            .target(Target::AtLeast(f64::from(bench.scale.rate)))
            .note("the Protection Server has one core, its engines included, and the clients have the others"),
        Row::new(format!("cached verdict at {rate} requests/s, p50"), "ms", at(&paced.answered, 500)?)
            .against("clamd with its cache warm, by stream, one at a time, p50", at(&peer, 500)?),
        Row::new(format!("cached verdict at {rate} requests/s, p99"), "ms", at(&paced.answered, 990)?)
            .against("clamd with its cache warm, by stream, one at a time, p99", at(&peer, 990)?)
            .target(Target::AtMost(2.0))
            .limit(format!(
                "a bare datagram there and back at the same rate: {} ms p99, {} ms p50",
                short(at(&echo, 990)?.median),
                short(at(&echo, 500)?.median)
            ))
            .note(format!(
                "from the moment at which a request was due; {} requests/s were answered, over {sessions} sessions; the client sent up to {} ms late (p99), which is in the figure",
                short(paced.achieved),
            short(at(&paced.late, 990)?.median)
            )),
        Row::new("the same p99, of each tenth of a second alone", "ms", Summary::of(&windows).context("nothing was answered")?)
            .note("its median says what most moments are like, its spread what the moments cost in which this machine's cores were elsewhere"),
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

/// What came of requests that were sent by the clock.
struct Paced {
    /// Milliseconds from the moment at which each request was due to its answer, so
    /// that a slow answer does not hide those that wait behind it.
    answered: Vec<f64>,
    /// Milliseconds by which each was sent late: that much is the client's own.
    late: Vec<f64>,
    /// Requests a second that were answered.
    achieved: f64,
}

async fn by_the_clock(
    clients: &Arc<Vec<Client>>,
    contents: &Arc<Vec<ContentId>>,
    rate: u32,
    span: Duration,
) -> Result<Paced> {
    let (clients, contents) = (Arc::clone(clients), Arc::clone(contents));
    let runtime = tokio::runtime::Handle::current();
    let started = Instant::now();
    // A thread of its own: the runtime's clock is too coarse for this.
    let sending = tokio::task::spawn_blocking(move || {
        let total = (f64::from(rate) * span.as_secs_f64()) as usize;
        let mut sent = Vec::with_capacity(total);
        for number in 0..total {
            let due = started + Duration::from_secs_f64(number as f64 / f64::from(rate));
            if let Some(early) = due.checked_duration_since(Instant::now()) {
                std::thread::sleep(early);
            }
            let (clients, content) = (Arc::clone(&clients), contents[number % contents.len()]);
            let late = due.elapsed().as_secs_f64() * 1e3;
            let answer = runtime.spawn(async move {
                ask(&clients[number % clients.len()], content).await?;
                Ok::<_, anyhow::Error>(due.elapsed().as_secs_f64() * 1e3)
            });
            sent.push((late, answer));
        }
        sent
    });
    let (mut answered, mut late) = (Vec::new(), Vec::new());
    for (own, answer) in sending.await? {
        late.push(own);
        answered.push(answer.await??);
    }
    let achieved = answered.len() as f64 / started.elapsed().as_secs_f64();
    Ok(Paced {
        answered,
        late,
        achieved,
    })
}

/// The p99 of the requests of each tenth of a second.
fn window_p99s(answered: &[f64], rate: u32) -> Vec<f64> {
    answered
        .chunks_exact((rate as usize / WINDOWS_PER_SECOND).max(1))
        .filter_map(|window| percentile(window, 990))
        .collect()
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
