//! Opens of 100 KiB files on a protected file system: the first, whose content the
//! SharedCache knows, and later ones, of files that others than root may write and of
//! root's own with each kind of ignore marks; against clamonacc and against nobody.

use std::fs::{self, File};
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use palisade_tests::command::wait_for;
use palisade_tests::definitions::eicar;
use palisade_tests::process::Process;

use crate::bench::Bench;
use crate::random::Random;
use crate::report::{Row, Target};
use crate::stats::{Summary, percentile};

/// Bytes of a file.
const FILE_BYTES: usize = 100 << 10;
/// How long files rest before they are opened: a verdict is not remembered of a file
/// that has just changed.
const SETTLE: Duration = Duration::from_secs(3);
/// Opens of known files after the first.
const REPEATED: usize = 5_000;
/// How long protection may take to begin.
const BEGIN: Duration = Duration::from_secs(60);
/// How long all opens may take: a side that hangs is given up.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long the agent is left alone after the first opens: marks are placed behind them.
const MARKING: Duration = Duration::from_secs(2);
/// A user who is not root.
const SOMEBODY: u32 = 1000;
/// Where Debian's package puts it.
const CLAMONACC: &str = "/usr/sbin/clamonacc";

pub(super) fn run(bench: &mut Bench) -> Result<Vec<Row>> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "protection of opens takes root"
    );
    let known = bench.folder().join("opened");
    write_files(&known, bench.scale.opens)?;
    bench.site.scan(&bench.first, &known)?;
    let native = {
        let place = Place::mount(bench, "native", SOMEBODY)?;
        Opens::of(&place.0)?
    };
    let own = ours(bench, "users", SOMEBODY, "balanced")?;
    let balanced = ours(bench, "roots", 0, "balanced")?;
    let strict = ours(bench, "roots-strict", 0, "strict")?;
    let peer = clamonacc(bench);
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

/// A file system of its own, unmounted at the end.
struct Place(PathBuf);

impl Place {
    /// Mounts a tmpfs and fills it with the files.
    fn mount(bench: &Bench, name: &str, owner: u32) -> Result<Self> {
        let folder = bench.folder().join(name);
        fs::create_dir_all(&folder)?;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("tmpfs"), &folder, Some("tmpfs"), flags, None::<&str>)
            .with_context(|| format!("cannot mount {}", folder.display()))?;
        let place = Self(folder);
        write_files(&place.0, bench.scale.opens)?;
        for entry in fs::read_dir(&place.0)? {
            chown(entry?.path(), Some(owner), None)?;
        }
        std::thread::sleep(SETTLE);
        Ok(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Err(error) = umount2(&self.0, MntFlags::MNT_DETACH) {
            eprintln!(
                "palisade-bench: {} stays mounted: {error}",
                self.0.display()
            );
        }
    }
}

fn write_files(folder: &Path, count: usize) -> Result<()> {
    fs::create_dir_all(folder)?;
    let mut random = Random::new("opened files");
    let mut bytes = vec![0; FILE_BYTES];
    for number in 0..count {
        random.fill(&mut bytes);
        fs::write(folder.join(format!("file-{number:05}")), &bytes)?;
    }
    Ok(())
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
    let place = Place::mount(bench, name, owner)?;
    let settings = format!(
        "[on_access]\npaths = ['{}']\nignore_marks = '{ignore_marks}'\n",
        place.0.display()
    );
    let agent = bench
        .site
        .agent_with(&format!("watching-{name}"), &settings)?;
    let daemon = bench.site.start_daemon(&agent)?;
    let opens = wait_for("protection", BEGIN, || {
        let status = bench.site.daemon_status(&agent)?;
        ensure!(
            status["protection"]["state"] == "blocking",
            "it says {}",
            status["protection"]
        );
        ensure!(
            !status["svm"]["id"].is_null(),
            "it has no Protection Server"
        );
        Ok(())
    })
    .and_then(|()| Opens::of(&place.0));
    daemon.stop()?;
    opens
}

/// clamonacc with prevention, over our clamd.
fn clamonacc(bench: &Bench) -> Result<Opens> {
    ensure!(
        Path::new(CLAMONACC).exists(),
        "it is not installed (clamav-daemon)"
    );
    let place = Place::mount(bench, "watched", SOMEBODY)?;
    let folder = bench.folder().join("clamonacc");
    fs::create_dir_all(&folder)?;
    let configuration = folder.join("clamonacc.conf");
    let common = fs::read_to_string(bench.clamd.configuration())?;
    // clamd gets descriptors and opens nothing, so that whom to leave out is no matter;
    // clamonacc wants somebody named.
    let text = format!(
        "{common}OnAccessIncludePath {}\nOnAccessPrevention yes\nOnAccessExcludeUname nobody\nOnAccessMaxThreads 8\n",
        place.0.display()
    );
    fs::write(&configuration, text)?;
    let mut command = Command::new(CLAMONACC);
    command
        .arg("--foreground")
        .arg("--fdpass")
        .arg("--config-file")
        .arg(&configuration);
    let log = folder.join("clamonacc.log");
    let daemon = Process::start("clamonacc", &command, &folder, &log)?;
    let infected = place.0.join("zz-test.com");
    let opens = wait_for("clamonacc", BEGIN, || {
        if !daemon.is_running() {
            return Ok(Err(fs::read_to_string(&log).unwrap_or_default()));
        }
        fs::write(&infected, eicar()).ok();
        ensure!(
            File::open(&infected).is_err(),
            "it does not prevent anything"
        );
        Ok(Ok(()))
    })
    .and_then(|begun| match begun {
        Ok(()) => {
            fs::remove_file(&infected)?;
            Opens::of(&place.0)
        }
        Err(said) => bail!("clamonacc ended: {}", said.trim()),
    });
    daemon.stop()?;
    opens
}
