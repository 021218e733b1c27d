//! Opens of 100 KiB files on a protected file system: the first, whose content the
//! SharedCache knows, and later ones, of files that others than root may write and of
//! root's own with each kind of ignore marks; against clamonacc and against nobody.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::guarded::{self, Place, SOMEBODY, Wanted, write_files};
use crate::bench::Bench;
use crate::report::{Row, Target};
use crate::stats::{Summary, percentile};

/// Opens of known files after the first.
const REPEATED: usize = 5_000;
/// How long all opens may take: a side that hangs is given up.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long the agent is left alone after the first opens: marks are placed behind them.
const MARKING: Duration = Duration::from_secs(2);

pub(super) fn run(bench: &mut Bench) -> Result<Vec<Row>> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "protection of opens takes root"
    );
    let known = bench.folder().join("opened");
    write_files(&known, bench.scale.opens)?;
    bench.site.scan(&bench.first, &known)?;
    let native = {
        let place = Place::mount(bench, "native", SOMEBODY, bench.scale.opens)?;
        Opens::of(&place.0)?
    };
    let own = ours(bench, "users", SOMEBODY, "balanced")?;
    let balanced = ours(bench, "roots", 0, "balanced")?;
    let strict = ours(bench, "roots-strict", 0, "strict")?;
    let files = bench.scale.opens;
    let peer = guarded::clamonacc(bench, "watched", files, |guarded| Opens::of(guarded.place));
    fs::remove_dir_all(&known)?;
    let value = |samples: &[f64], permille: usize| -> Result<Summary> {
        Ok(Summary::one(
            percentile(samples, permille).context("nothing was opened")?,
        ))
    };
    let mut rows = Vec::new();
    for (name, permille) in [("p50", 500), ("p99", 990)] {
        let first = Row::new(
            format!("first open, content known to the SharedCache, {name}"),
            "µs",
            value(&own.first, permille)?,
        );
        let later = Row::new(
            format!("later opens of a user-writable file, {name}"),
            "µs",
            value(&own.later, permille)?,
        );
        let (mut first, mut later) = match &peer {
            Ok(peer) => (
                first.against("clamonacc", value(&peer.first, permille)?),
                later.against("clamonacc", value(&peer.later, permille)?),
            ),
            Err(error) => (
                first.note(format!("clamonacc cannot be measured here: {error:#}")),
                later,
            ),
        };
        first = first.limit(format!(
            "native: {} µs",
            crate::report::short(value(&native.first, permille)?.median)
        ));
        let wake = match permille {
            500 => bench.limits.wake_p50,
            _ => bench.limits.wake_p99,
        };
        later = later.limit(format!(
            "native: {} µs; to wake a thread on another core and be woken: {} µs",
            crate::report::short(value(&native.later, permille)?.median),
            crate::report::short(wake)
        ));
        if permille == 500 {
            first = first.target(Target::AtMost(300.0));
            later = later.target(Target::Ratio(0.1)).target(Target::AtMost(
                25.0 * value(&native.later, permille)?.median,
            ));
        }
        rows.extend([first, later]);
        let at_most = if permille == 500 { 1.2 } else { 2.0 };
        let without = value(&native.later, permille)?.median;
        for (level, opens, target) in [
            ("balanced", &balanced, Some(at_most * without)),
            ("strict", &strict, None),
        ] {
            let mut row = Row::new(
                format!("later opens of a file that only root may write, {level}, {name}"),
                "µs",
                value(&opens.later, permille)?,
            );
            if let Ok(peer) = &peer {
                row = row.against("clamonacc", value(&peer.later, permille)?);
            }
            if let Some(target) = target {
                row = row.target(Target::AtMost(target));
            }
            rows.push(row.limit(format!("native: {} µs", crate::report::short(without))));
        }
    }
    Ok(rows)
}

/// How long opens took, in microseconds.
#[derive(Debug, Default)]
struct Opens {
    first: Vec<f64>,
    later: Vec<f64>,
}

impl Opens {
    /// Opens each file once, then again and again.
    fn of(folder: &Path) -> Result<Self> {
        let folder = folder.to_owned();
        let (ended, end) = mpsc::channel();
        std::thread::spawn(move || {
            // Nobody waits any more after the patience.
            let _ = ended.send(Self::opened(&folder));
        });
        end.recv_timeout(PATIENCE).context("opens do not end")?
    }

    fn opened(folder: &Path) -> Result<Self> {
        let mut files: Vec<PathBuf> = Vec::new();
        for entry in fs::read_dir(folder)? {
            files.push(entry?.path());
        }
        files.sort();
        let timed = |path: &PathBuf| -> Result<f64> {
            let started = Instant::now();
            let file = File::open(path)?;
            let took = started.elapsed().as_secs_f64() * 1e6;
            drop(file);
            Ok(took)
        };
        let first = files.iter().map(timed).collect::<Result<_>>()?;
        std::thread::sleep(MARKING);
        Ok(Self {
            first,
            later: files
                .iter()
                .cycle()
                .take(REPEATED)
                .map(timed)
                .collect::<Result<_>>()?,
        })
    }
}

fn ours(bench: &Bench, name: &str, owner: u32, ignore_marks: &str) -> Result<Opens> {
    let wanted = Wanted {
        name,
        owner,
        files: bench.scale.opens,
        ignore_marks,
    };
    guarded::ours(bench, &wanted, |guarded| Opens::of(guarded.place))
}
