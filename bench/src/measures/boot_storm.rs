//! Many guests start from one golden image at once: each is an agent with an
//! identity of its own that runs the agent's own code, within this process.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use palisade_light_agent::scan::report::Report;
use palisade_light_agent::scan::walk::{Found, Plan};
use palisade_light_agent::scan::{self, Done, Job, Observer};
use palisade_light_agent::scanner::Scanner;
use palisade_light_agent::selection::{Choice, Source, keep};
use palisade_light_agent::settings::{self, StaticSvm};
use palisade_protocol::identity::Identity;
use tokio::task::JoinSet;

use super::first_scan::elapsed;
use crate::bench::Bench;
use crate::clamd::Way;
use crate::processes;
use crate::report::{Row, Target, short};
use crate::stats::Summary;
use crate::wire::{Counter, Transport};

/// How long an agent waits for the Protection Server.
const SVM_WAIT: Duration = Duration::from_secs(60);
/// A storm's time against one agent's and the hashing.
const MOST: f64 = 1.3;

pub(super) fn run(bench: &mut Bench) -> Result<Vec<Row>> {
    let agents = bench.scale.agents;
    let identities = bench
        .runtime
        .block_on(bench.site.identities(None, agents))?;
    let address = bench.site.scan_address()?;
    bench.site.restart(&bench.first)?;
    let one = bench
        .runtime
        .block_on(storm(&identities[..1], address, &bench.corpus.folder))?;
    let hashing = hash_all(bench)?;
    let (mut took, mut scanned, mut sent, mut wire) =
        (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let (mut agents_cpu, mut server_cpu) = (Duration::ZERO, Duration::ZERO);
    for _ in 0..bench.scale.repeats.min(2) {
        bench.site.restart(&bench.first)?;
        let counter = Counter::start(Transport::Udp, address.port());
        let before = bench.site.scans()?;
        let server = bench.site.scanserver()?.pid;
        let cpu = (processes::own_cpu()?, processes::cpu(server)?);
        let all = bench
            .runtime
            .block_on(storm(&identities, address, &bench.corpus.folder))?;
        ensure!(
            all.files == one.files * agents as u64 && all.infected == one.infected * agents as u64,
            "the agents looked at {} files and found {}; one looked at {} and found {}",
            all.files,
            all.infected,
            one.files,
            one.infected
        );
        agents_cpu = processes::own_cpu()?.saturating_sub(cpu.0);
        server_cpu = processes::cpu(server)?.saturating_sub(cpu.1);
        took.push(all.took.as_secs_f64());
        scanned.push((bench.site.scans()? - before) as f64);
        sent.push(all.sent as f64 / 1e6);
        if let Ok(counter) = counter {
            wire.push(counter.bytes()? as f64 / 1e6);
        }
    }
    bench.clamd.restart()?;
    let alone = elapsed(&[bench.clamd.scan(Way::Descriptor, &bench.corpus.folder)?])?.median;
    let summary = |samples: &[f64]| Summary::of(samples).context("nothing was measured");
    let most = MOST * one.took.as_secs_f64() + hashing;
    let image = bench.corpus.bytes as f64 / 1e6;
    let mut rows = vec![
        Row::new(format!("{agents} agents, one image"), "s", summary(&took)?)
            .against(format!("{agents} scans by clamd, computed from one"), Summary::one(alone * agents as f64))
            .target(Target::AtMost(most))
            .limit(format!("hashing the image {agents} times on all cores: {} s", short(hashing)))
            .note(format!(
                "one agent: {} s; the target is {MOST} times that and the hashing; the agents share this machine's cores, of which they took {} s of processor time, the Protection Server {} s",
                short(one.took.as_secs_f64()),
                short(agents_cpu.as_secs_f64()),
                short(server_cpu.as_secs_f64())
            )),
        Row::new("contents scanned", "contents", summary(&scanned)?)
            .target(Target::AtMost(bench.corpus.distinct as f64))
            .limit(format!("{} different contents", bench.corpus.distinct))
            .note("by the Protection Server's own metric"),
        Row::new("content bytes sent", "MB", summary(&sent)?)
            .against(format!("{agents} images"), Summary::one(image * agents as f64))
            .target(Target::AtMost(bench.corpus.distinct_bytes as f64 / 1e6)),
    ];
    if let Ok(wire) = summary(&wire) {
        rows.push(
            Row::new("bytes on the wire to the Protection Server", "MB", wire).against(
                format!("{agents} images"),
                Summary::one(image * agents as f64),
            ),
        );
    }
    Ok(rows)
}

/// What a storm came to.
#[derive(Debug, Default)]
struct Storm {
    took: Duration,
    files: u64,
    infected: u64,
    sent: u64,
}

async fn storm(identities: &[Identity], address: SocketAddr, image: &Path) -> Result<Storm> {
    let started = Instant::now();
    let mut agents = JoinSet::new();
    for identity in identities {
        let settings = settings::Scan::default();
        let concurrency = settings.concurrency;
        let plan = Plan {
            roots: vec![image.to_owned()],
            ..Plan::default()
        };
        let job = Job {
            svm_wait: SVM_WAIT,
            ..Job::new(plan, &settings)
        };
        let identity = identity.clone();
        agents.spawn(async move {
            let source = Source::Static(vec![StaticSvm { id: None, address }]);
            let scanner = Scanner::new(
                keep(identity, source, Choice::default()).state,
                concurrency,
                settings.options(),
            );
            scan::run(&job, &scanner, &mut Quiet).await
        });
    }
    let mut storm = Storm::default();
    while let Some(ended) = agents.join_next().await {
        let (report, outcome) = ended?;
        outcome.map_err(|reason| anyhow::anyhow!("an agent could not go on: {reason}"))?;
        storm.files += report.files();
        storm.infected += report.malware;
        storm.sent += report.sent_bytes;
    }
    storm.took = started.elapsed();
    Ok(storm)
}

struct Quiet;

impl Observer for Quiet {
    fn done(&mut self, _found: &Found, _result: &Done, _report: &Report) {}
}

/// Reads and hashes the image as often as there are agents, on all cores; in seconds.
fn hash_all(bench: &Bench) -> Result<f64> {
    let cores = std::thread::available_parallelism()?.get() as f64;
    Ok(bench.limits.hash_corpus.median * bench.scale.agents as f64 / cores)
}
