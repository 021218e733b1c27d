//! What an agent costs a guest: memory and processor time at rest, memory while many
//! open files that it does not know; its supervisor counts, too. Beside clamonacc.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::guarded::{self, Guarded, SOMEBODY, Wanted};
use crate::bench::Bench;
use crate::processes;
use crate::report::{Row, Target};
use crate::stats::Summary;

/// How long it settles before rest is measured.
const SETTLES: Duration = Duration::from_secs(10);
/// Who opens at a time.
const OPENERS: usize = 32;
/// Files for each time that another measure opens one: none is opened twice.
const MORE: usize = 4;
/// Between looks at memory.
const LOOK: Duration = Duration::from_millis(50);
const MIB: f64 = 1024.0 * 1024.0;

/// What was seen of a side.
struct Cost {
    rest_mib: f64,
    /// Of one core.
    rest_percent: f64,
    /// Voluntary switches of all threads, a second.
    rest_wakes: f64,
    load_mib: f64,
}

pub(super) fn run(bench: &mut Bench) -> Result<Vec<Row>> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "protection of opens takes root"
    );
    let files = bench.scale.opens * MORE;
    let rest = bench.scale.span * 3;
    let wanted = Wanted {
        name: "cost",
        owner: SOMEBODY,
        files,
        ignore_marks: "balanced",
    };
    let own = guarded::ours(bench, &wanted, |guarded| Cost::of(&guarded, rest))?;
    let peer = guarded::clamonacc(bench, "cost-peer", files, |guarded| {
        Cost::of(&guarded, rest)
    });
    let row = |name: &str, unit, value: fn(&Cost) -> f64, target: Option<f64>| {
        let mut row = Row::new(name, unit, Summary::one(value(&own)));
        if let Ok(peer) = &peer {
            row = row.against("clamonacc", Summary::one(value(peer)));
        }
        match target {
            Some(most) => row.target(Target::AtMost(most)),
            None => row,
        }
    };
    let mut memory = row("agent at rest", "MiB", |cost| cost.rest_mib, Some(16.0)).note(
        "proportional shares (Pss) of supervisor and agent; clamonacc's clamd is not counted",
    );
    if let Err(error) = &peer {
        memory = memory.note(format!("clamonacc cannot be measured here: {error:#}"));
    }
    let load = row("agent under load", "MiB", |cost| cost.load_mib, Some(16.0)).note(format!(
        "the most that was seen while {OPENERS} open {files} files of 100 KiB that nobody knows"
    ));
    let percent = row(
        "processor time at rest",
        "% of a core",
        |cost| cost.rest_percent,
        Some(0.05),
    );
    let wakes = row("wake-ups at rest", "a second", |cost| cost.rest_wakes, None).note(
        "voluntary switches of all threads; signs of life and two sessions' keep-alive are in it",
    );
    Ok(vec![memory, load, percent, wakes])
}

impl Cost {
    fn of(guarded: &Guarded<'_>, rest: Duration) -> Result<Self> {
        thread::sleep(SETTLES);
        let rest_mib = processes::tree_pss(guarded.pid)? as f64 / MIB;
        let (cpu, wakes) = (processes::cpu(guarded.pid)?, switches(guarded.pid)?);
        thread::sleep(rest);
        let used = processes::cpu(guarded.pid)?.saturating_sub(cpu);
        let woken = switches(guarded.pid)?.saturating_sub(wakes);
        Ok(Self {
            rest_mib,
            rest_percent: used.as_secs_f64() / rest.as_secs_f64() * 100.0,
            rest_wakes: woken as f64 / rest.as_secs_f64(),
            load_mib: under_load(guarded)? as f64 / MIB,
        })
    }
}

/// The most memory that is seen while all files are opened, in bytes.
fn under_load(guarded: &Guarded<'_>) -> Result<u64> {
    let mut files: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir(guarded.place)? {
        files.push(entry?.path());
    }
    let ended = AtomicBool::new(false);
    thread::scope(|scope| {
        let looking = scope.spawn(|| {
            let mut most = 0;
            while !ended.load(Ordering::Relaxed) {
                most = most.max(processes::tree_pss(guarded.pid)?);
                thread::sleep(LOOK);
            }
            Ok::<_, anyhow::Error>(most)
        });
        let each = files.len().div_ceil(OPENERS).max(1);
        let openers: Vec<_> = files
            .chunks(each)
            .map(|some| scope.spawn(|| some.iter().try_for_each(|file| opened(file))))
            .collect();
        let opened: Vec<_> = openers.into_iter().map(|opener| opener.join()).collect();
        ended.store(true, Ordering::Relaxed);
        for opened in opened {
            opened.ok().context("an opener died")??;
        }
        looking.join().ok().context("who looks died")?
    })
}

fn opened(file: &Path) -> Result<()> {
    let started = Instant::now();
    File::open(file)
        .with_context(|| format!("after {:?}: {}", started.elapsed(), file.display()))?;
    Ok(())
}

/// How often threads of a process and all that descend from it have gone to wait.
fn switches(root: i32) -> Result<u64> {
    let mut sum = 0;
    for process in processes::tree(root)? {
        for task in fs::read_dir(format!("/proc/{}/task", process.pid))? {
            let status = fs::read_to_string(task?.path().join("status"))?;
            let count = status
                .lines()
                .find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
            sum += count
                .and_then(|count| count.trim().parse::<u64>().ok())
                .unwrap_or(0);
        }
    }
    Ok(sum)
}
