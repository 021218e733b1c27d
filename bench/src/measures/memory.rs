//! Memory of the Protection Server with its workers, in rest and while definitions
//! are loaded anew; and how soon a killed worker is replaced.

use std::fs::File;
use std::io::Write as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use palisade_tests::command::wait_for;

use crate::agents::{scan_small, scanner, small_content};
use crate::bench::{Bench, LANES};
use crate::clamd::Way;
use crate::processes::{self, Process};
use crate::random::Random;
use crate::report::{Row, Target};
use crate::stats::Summary;

/// Start of an engine program's name, as the kernel keeps it.
const ENGINE: &str = "palisade-engine";
/// Between two looks at memory during a reload.
const LOOK: Duration = Duration::from_millis(5);
/// How long new definitions may take until they are in force.
const RELOAD_TIMEOUT: Duration = Duration::from_secs(180);
/// How long killed workers may take to end.
const END_TIMEOUT: Duration = Duration::from_secs(10);
/// Small scans before and after a worker is killed, for comparison.
const USUAL: usize = 20;
const MIB: f64 = 1024.0 * 1024.0;

pub(super) fn run(bench: &mut Bench) -> Result<Vec<Row>> {
    // Workers that have scanned, and a clamd that has, are what is compared.
    bench.forget()?;
    bench.site.scan(&bench.first, &bench.corpus.folder)?;
    bench.clamd.scan(Way::Descriptor, &bench.corpus.folder)?;
    let mut rows = at_rest(bench)?;
    rows.push(killed_worker(bench)?);
    rows.push(reload(bench)?);
    Ok(rows)
}

/// The forked workers: engine processes whose parent is one, too.
fn workers(all: &[Process]) -> Vec<i32> {
    let engines: Vec<&Process> = all
        .iter()
        .filter(|process| process.name.starts_with(ENGINE))
        .collect();
    let is_engine = |pid: i32| engines.iter().any(|engine| engine.pid == pid);
    engines
        .iter()
        .filter(|engine| is_engine(engine.parent))
        .map(|engine| engine.pid)
        .collect()
}

fn at_rest(bench: &Bench) -> Result<Vec<Row>> {
    let all = processes::tree(bench.site.scanserver()?.pid)?;
    let workers = workers(&all);
    ensure!(!workers.is_empty(), "there are no workers");
    let mut engines = 0;
    let mut private = Vec::new();
    for process in all
        .iter()
        .filter(|process| process.name.starts_with(ENGINE))
    {
        let memory = processes::memory(process.pid)?;
        engines += memory.pss;
        if workers.contains(&process.pid) {
            private.push(memory.private as f64 / MIB);
        }
    }
    let whole = processes::tree_pss(bench.site.scanserver()?.pid)?;
    let peer = processes::memory(bench.clamd.pid())?;
    let peer = || Summary::one(peer.pss as f64 / MIB);
    Ok(vec![
        Row::new(
            format!("zygote and {} workers", workers.len()),
            "MiB",
            Summary::one(engines as f64 / MIB),
        )
        .against(format!("clamd, {LANES} threads"), peer())
        .note("proportional shares (Pss), after a scan of the corpus"),
        Row::new(
            "Protection Server in all, daemon included",
            "MiB",
            Summary::one(whole as f64 / MIB),
        )
        .against(format!("clamd, {LANES} threads"), peer()),
        Row::new(
            "private memory of one worker",
            "MiB",
            Summary::of(&private).context("no worker")?,
        )
        .target(Target::AtMost(5.0)),
    ])
}

/// From the kill of all workers to the end of the next scan, less what a scan takes.
fn killed_worker(bench: &Bench) -> Result<Row> {
    let address = bench.site.scan_address()?;
    let pid = bench.site.scanserver()?.pid;
    let back = bench.runtime.block_on(async {
        let identity = bench
            .site
            .identities(None, 1)
            .await?
            .pop()
            .context("no identity")?;
        let scanner = scanner(identity, address, 1);
        let mut random = Random::new("small contents");
        let mut usual = Vec::new();
        for _ in 0..USUAL {
            let content = small_content(&mut random)?;
            usual.push(scan_small(&scanner, &content, Instant::now()).await?);
        }
        let usual = Summary::of(&usual).context("nothing was scanned")?.median;
        let mut back = Vec::new();
        for _ in 0..bench.scale.kills {
            let content = small_content(&mut random)?;
            let workers = workers(&processes::tree(pid)?);
            ensure!(!workers.is_empty(), "there are no workers");
            let killed = Instant::now();
            for worker in &workers {
                kill(Pid::from_raw(*worker), Signal::SIGKILL)?;
            }
            gone(&workers).await?;
            let took = scan_small(&scanner, &content, killed).await?;
            back.push((took - usual).max(0.0));
        }
        Ok::<_, anyhow::Error>(back)
    })?;
    let row = Row::new(
        "a killed worker is back",
        "ms",
        Summary::of(&back).context("none was killed")?,
    );
    Ok(row.target(Target::AtMost(50.0)).note(
        "from the kill of all workers, spare ones too, to the end of the next scan, less what a scan takes: their end, fork, sandbox and canary are in it",
    ))
}

/// Waits until processes have ended: a scan that is given to one that is about to end
/// counts as one that killed it.
async fn gone(processes: &[i32]) -> Result<()> {
    let started = Instant::now();
    while processes
        .iter()
        .any(|pid| processes::memory(*pid).is_ok_and(|memory| memory.rss > 0))
    {
        ensure!(started.elapsed() < END_TIMEOUT, "killed workers do not end");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(())
}

/// The most memory while definitions that changed are loaded, in engines.
fn reload(bench: &Bench) -> Result<Row> {
    let (server, peer) = (bench.site.scanserver()?, bench.clamd.pid());
    let own_rest = processes::tree_pss(server.pid)?;
    let peer_rest = processes::tree_pss(peer)?;
    let file = bench.definitions().join("synthetic.hsb");
    let mut changed = File::options()
        .append(true)
        .open(&file)
        .context("synthetic.hsb")?;
    writeln!(
        changed,
        "{}:1000:Synthetic.Hash-new:73",
        Random::new("one more").hex(32)
    )?;
    let generation = |bench: &Bench| -> Result<String> {
        Ok(bench.site.scanserver_report()?["definitions"].to_string())
    };
    let before = generation(bench)?;
    let own = peak(server.pid, || {
        server.signal(Signal::SIGHUP)?;
        wait_for("the new definitions", RELOAD_TIMEOUT, || {
            ensure!(generation(bench)? != before, "they are not in force");
            Ok(())
        })
    })?;
    let other = peak(peer, || bench.clamd.reload())?;
    Ok(Row::new(
        "peak while definitions are loaded anew",
        "engines",
        Summary::one(own as f64 / own_rest as f64),
    )
    .against(
        "clamd, which loads beside, too",
        Summary::one(other as f64 / peer_rest as f64),
    )
    .target(Target::AtMost(2.1))
    .note(format!(
        "in bytes: {:.0} MiB at the most, {:.0} MiB in rest; clamd {:.0} and {:.0} MiB",
        own as f64 / MIB,
        own_rest as f64 / MIB,
        other as f64 / MIB,
        peer_rest as f64 / MIB
    )))
}

/// The largest memory of a tree of processes while `work` is done. A fork between a
/// look's readings has its pages counted twice: what a peak is lasts for three looks.
fn peak(root: i32, work: impl FnOnce() -> Result<()>) -> Result<u64> {
    let (done, most) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut last = [0; 3];
            while !done.load(Ordering::Relaxed) {
                if let Ok(pss) = processes::tree_pss(root) {
                    last.rotate_left(1);
                    last[2] = pss;
                    let least = last.iter().min().copied().unwrap_or(0);
                    most.fetch_max(least, Ordering::Relaxed);
                }
                std::thread::sleep(LOOK);
            }
        });
        let worked = work();
        done.store(true, Ordering::Relaxed);
        worked
    })?;
    Ok(most.load(Ordering::Relaxed))
}
