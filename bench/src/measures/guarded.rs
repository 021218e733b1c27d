//! File systems whose opens somebody holds: our agent, or clamonacc with prevention.
//! Each is a tmpfs of its own with the same files, and unmounted at the end.

use std::fs::{self, File};
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use palisade_tests::command::wait_for;
use palisade_tests::definitions::eicar;
use palisade_tests::process::Process;

use crate::bench::Bench;
use crate::random::Random;

/// Bytes of a file.
const FILE_BYTES: usize = 100 << 10;
/// How long files rest before they are opened: a verdict is not remembered of a file
/// that has just changed.
const SETTLE: Duration = Duration::from_secs(3);
/// How long protection may take to begin.
const BEGIN: Duration = Duration::from_secs(60);
/// A user who is not root.
pub(super) const SOMEBODY: u32 = 1000;
/// Where Debian's package puts it.
const CLAMONACC: &str = "/usr/sbin/clamonacc";

/// A file system of its own, unmounted at the end.
pub(super) struct Place(pub(super) PathBuf);

impl Place {
    /// Mounts a tmpfs and fills it with so many files.
    pub(super) fn mount(bench: &Bench, name: &str, owner: u32, files: usize) -> Result<Self> {
        let folder = bench.folder().join(name);
        fs::create_dir_all(&folder)?;
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("tmpfs"), &folder, Some("tmpfs"), flags, None::<&str>)
            .with_context(|| format!("cannot mount {}", folder.display()))?;
        let place = Self(folder);
        write_files(&place.0, files)?;
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

/// The same files each time.
pub(super) fn write_files(folder: &Path, count: usize) -> Result<()> {
    fs::create_dir_all(folder)?;
    let mut random = Random::new("opened files");
    let mut bytes = vec![0; FILE_BYTES];
    for number in 0..count {
        random.fill(&mut bytes);
        fs::write(folder.join(format!("file-{number:05}")), &bytes)?;
    }
    Ok(())
}

/// Where a side stands guard, and who it is.
pub(super) struct Guarded<'a> {
    /// The files.
    pub(super) place: &'a Path,
    /// The process, whose children belong to it.
    pub(super) pid: i32,
}

/// What is asked for.
pub(super) struct Wanted<'a> {
    /// A name of its own.
    pub(super) name: &'a str,
    /// Whose the files are.
    pub(super) owner: u32,
    /// How many.
    pub(super) files: usize,
    /// Which ignore marks the agent places.
    pub(super) ignore_marks: &'a str,
}

/// Does something below the protection of our agent, with its supervisor.
pub(super) fn ours<T>(
    bench: &Bench,
    wanted: &Wanted<'_>,
    work: impl FnOnce(Guarded<'_>) -> Result<T>,
) -> Result<T> {
    let place = Place::mount(bench, wanted.name, wanted.owner, wanted.files)?;
    let settings = format!(
        "[on_access]\npaths = ['{}']\nignore_marks = '{}'\n",
        place.0.display(),
        wanted.ignore_marks
    );
    let name = format!("watching-{}", wanted.name);
    let agent = bench.site.agent_with(&name, &settings)?;
    let daemon = bench.site.start_daemon(&agent)?;
    let done = wait_for("protection", BEGIN, || {
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
    .and_then(|()| {
        work(Guarded {
            place: &place.0,
            pid: daemon.pid,
        })
    });
    daemon.stop()?;
    done
}

/// clamonacc with prevention, over our clamd.
pub(super) fn clamonacc<T>(
    bench: &Bench,
    name: &str,
    files: usize,
    work: impl FnOnce(Guarded<'_>) -> Result<T>,
) -> Result<T> {
    ensure!(
        Path::new(CLAMONACC).exists(),
        "it is not installed (clamav-daemon)"
    );
    let place = Place::mount(bench, name, SOMEBODY, files)?;
    let folder = bench.folder().join(format!("clamonacc-{name}"));
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
    let done = wait_for("clamonacc", BEGIN, || {
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
            work(Guarded {
                place: &place.0,
                pid: daemon.pid,
            })
        }
        Err(said) => bail!("clamonacc ended: {}", said.trim()),
    });
    daemon.stop()?;
    done
}
