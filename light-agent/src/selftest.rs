//! Whether opens are really blocked: tried, not assumed.
//!
//! In each protected file system the agent writes the EICAR test file, has another
//! process open it, and takes nothing but a denied open, by a verdict of malware,
//! for "blocking"; where the mode is to monitor, an open that went on and a verdict of
//! malware after it. At the start, when the Protection Server changes, and hourly.
//!
//! Owns the test files and the judgement; the opening is [`probe`](crate::probe)'s.

use std::collections::HashSet;
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::libc;
use palisade_protocol::control::Protection;
use palisade_protocol::verdict::{NotScanned, Verdict};
use tokio::sync::watch;

use crate::fanotify::places::Place;
use crate::health::{Health, NO_SVM, off};
use crate::mode::Mode;
use crate::probe::Probe;
use crate::selection::LinkState;
use crate::stamp::Stamp;

/// Between tests while protection works.
pub const EVERY: Duration = Duration::from_secs(3600);
/// The first wait after a test that failed; it doubles up to [`EVERY`].
const RETRY: Duration = Duration::from_secs(10);

/// How long a verdict may take to be noted after the kernel was answered by it.
const NOTED_WITHIN: Duration = Duration::from_millis(200);
/// How long the test file's verdict may take where nobody waits for it.
const FOUND_WITHIN: Duration = Duration::from_secs(5);
/// How often it is looked for.
const LOOK: Duration = Duration::from_millis(10);

/// The standard antivirus test file (<https://www.eicar.org>), kept back to front so
/// that this program does not hold it.
pub fn eicar() -> Vec<u8> {
    let reversed = br"*H+H$!ELIF-TSET-SURIVITNA-DRADNATS-RACIE$}7)CC7)^P(45XZP\4[PA@%P!O5X";
    let mut bytes = std::hint::black_box(reversed).to_vec();
    bytes.reverse();
    bytes
}

/// The test file that is open now, and what was said of it. Clones share it.
#[derive(Debug, Clone, Default)]
pub struct TestFiles(Arc<Mutex<Option<Current>>>);

#[derive(Debug)]
struct Current {
    device: u64,
    inode: u64,
    verdict: Option<Verdict>,
}

impl TestFiles {
    /// Takes note of a verdict if it is about the test file; says whether it is.
    pub fn note(&self, stamp: &Stamp, verdict: &Verdict) -> bool {
        let mut current = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match current.as_mut() {
            Some(file) if (file.device, file.inode) == (stamp.device, stamp.inode) => {
                file.verdict = Some(verdict.clone());
                true
            }
            _ => false,
        }
    }

    /// Whether a file is the test file.
    pub fn are(&self, stamp: &Stamp) -> bool {
        let current = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let place = (stamp.device, stamp.inode);
        current
            .as_ref()
            .is_some_and(|file| (file.device, file.inode) == place)
    }

    fn set(&self, current: Option<Current>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = current;
    }

    fn verdict(&self) -> Option<Verdict> {
        let current = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        current.as_ref().and_then(|file| file.verdict.clone())
    }
}

/// The self-test of one agent.
pub struct SelfTest {
    paths: Vec<PathBuf>,
    files: TestFiles,
    probe: Arc<Mutex<Probe>>,
    mode: Mode,
}

impl SelfTest {
    /// A test with one file in each file system of the places.
    pub fn new(places: &[Place], files: TestFiles, probe: Arc<Mutex<Probe>>, mode: Mode) -> Self {
        let mut devices = HashSet::new();
        let name = format!(".palisade-selftest-{}", uuid::Uuid::new_v4());
        let paths = places
            .iter()
            .filter_map(|place| {
                let metadata = std::fs::metadata(&place.path).ok()?;
                let folder = if metadata.is_dir() {
                    place.path.as_path()
                } else {
                    place.path.parent()?
                };
                devices.insert(metadata.dev()).then(|| folder.join(&name))
            })
            .collect();
        Self {
            paths,
            files,
            probe,
            mode,
        }
    }

    /// The files that it will use: they must be in scope.
    pub fn paths(&self) -> &[PathBuf] {
        &self.paths
    }

    /// Tests whenever there is reason to, and keeps the health's protection true.
    pub async fn run(self, health: Health, mut link: watch::Receiver<LinkState>) {
        let mut wait = RETRY;
        loop {
            let state = link.borrow_and_update().clone();
            health.set_link(&state);
            let protection = match &state {
                LinkState::Up { .. } => self.test().await,
                LinkState::Down { reason, .. } => off(&format!("{NO_SVM}: {reason}")),
            };
            wait = match protection {
                Protection::Blocking | Protection::Monitoring => EVERY,
                Protection::Off { .. } => wait,
            };
            health.set_protection(protection);
            tokio::select! {
                changed = link.changed() => {
                    if changed.is_err() {
                        return;
                    }
                    wait = RETRY;
                }
                () = tokio::time::sleep(wait) => wait = (wait * 2).min(EVERY),
            }
        }
    }

    async fn test(&self) -> Protection {
        if self.paths.is_empty() {
            return off("no protected path is there");
        }
        for path in &self.paths {
            let (path, files, probe) = (path.clone(), self.files.clone(), Arc::clone(&self.probe));
            let mode = self.mode;
            let tried =
                tokio::task::spawn_blocking(move || try_one(&path, &files, &probe, mode)).await;
            match tried {
                Ok(Ok(())) => {}
                Ok(Err(reason)) => return off(&reason),
                Err(error) => return off(&format!("the self-test failed: {error}")),
            }
        }
        match self.mode {
            Mode::Block => Protection::Blocking,
            Mode::Monitor | Mode::Learn => Protection::Monitoring,
        }
    }
}

fn try_one(path: &Path, files: &TestFiles, probe: &Mutex<Probe>, mode: Mode) -> Result<(), String> {
    let folder = path.parent().unwrap_or(path).display();
    write(path).map_err(|error| format!("the self-test cannot write in {folder}: {error}"))?;
    let patience = match mode {
        Mode::Block => NOTED_WITHIN,
        Mode::Monitor | Mode::Learn => FOUND_WITHIN,
    };
    let opened = watched_open(path, files, probe, patience);
    let _ = std::fs::remove_file(path);
    match opened.map_err(|error| format!("the self-test cannot run: {error}; restart the agent"))? {
        (Err(libc::EPERM), Some(Verdict::Malware { .. })) if mode == Mode::Block => Ok(()),
        (Ok(()), Some(Verdict::Malware { .. })) if mode != Mode::Block => Ok(()),
        (Err(libc::EPERM), verdict) => Err(format!(
            "the self-test's file in {folder} was denied, but not by a verdict of malware ({})",
            describe(verdict.as_ref())
        )),
        (Err(errno), _) => Err(format!(
            "the self-test's file in {folder} could not be opened: {}",
            std::io::Error::from_raw_os_error(errno)
        )),
        (Ok(()), Some(Verdict::Clean)) => Err(format!(
            "the Protection Server does not know the EICAR test file (opened in {folder}); \
             its definitions lack the signature"
        )),
        (Ok(()), verdict) => Err(format!(
            "the EICAR test file in {folder} was not {} ({})",
            match mode {
                Mode::Block => "blocked",
                Mode::Monitor | Mode::Learn => "found",
            },
            describe(verdict.as_ref())
        )),
    }
}

fn describe(verdict: Option<&Verdict>) -> String {
    match verdict {
        None => "no verdict came in time".to_owned(),
        Some(Verdict::NotScanned(NotScanned::NoSvm)) => "no Protection Server".to_owned(),
        Some(Verdict::NotScanned(reason)) => format!("not scanned: {reason}"),
        Some(Verdict::Clean) => "clean".to_owned(),
        Some(Verdict::Malware { name, .. } | Verdict::Suspicious { name, .. }) => {
            name.as_str().to_owned()
        }
    }
}

fn write(path: &Path) -> std::io::Result<()> {
    let _ = std::fs::remove_file(path);
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(path)?;
    file.write_all(&eicar())
}

type Opened = (Result<(), i32>, Option<Verdict>);

fn watched_open(
    path: &Path,
    files: &TestFiles,
    probe: &Mutex<Probe>,
    patience: Duration,
) -> std::io::Result<Opened> {
    let metadata = std::fs::symlink_metadata(path)?;
    // Until it is over: one of earlier settings may still be under way.
    let mut probe = probe.lock().unwrap_or_else(PoisonError::into_inner);
    files.set(Some(Current {
        device: metadata.dev(),
        inode: metadata.ino(),
        verdict: None,
    }));
    let opened = probe.open(path);
    let until = Instant::now() + patience;
    let verdict = loop {
        let verdict = files.verdict();
        if verdict.is_some() || Instant::now() >= until {
            break verdict;
        }
        std::thread::sleep(LOOK);
    };
    files.set(None);
    Ok((opened?, verdict))
}
