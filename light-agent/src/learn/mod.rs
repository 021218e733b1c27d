//! `on_access.mode = "learn"`: which folders and programs cost how much, before anybody
//! has to wait for it.
//!
//! Opens are not held, as in `monitor`; besides, each is counted by its folder and by the
//! program that opens, with the time that a verdict took. `palisade-agent status` shows
//! the most costly, and what may be worth an exclusion.
//!
//! | module | owns |
//! | --- | --- |
//! | [`tally`] | the counts, bounded whatever is opened; pure |
//! | [`advice`] | what may be worth an exclusion; pure |
//! | [`people`] | how it is shown |
//!
//! Counts are of this process's life. An exclusion is a hole: nothing is excluded by
//! itself, and folders that anybody may write to are never suggested.

pub mod advice;
pub mod people;
pub mod tally;

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use palisade_protocol::bounded::PathBytes;
use serde::Serialize;

use self::advice::{Advice, advise};
use self::tally::{Row, Tally};

/// Folders and programs that are counted apart, at the most.
const BOUND: usize = 256;
/// Of these, how many are shown.
const SHOWN: usize = 20;
/// Bytes of a name, at the most.
const MAX_NAME_BYTES: usize = 512;

/// For `status`.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Snapshot {
    /// The most costly folders.
    pub folders: Vec<Row>,
    /// The programs on whose opens verdicts took longest.
    pub programs: Vec<Row>,
    /// What may be worth an exclusion.
    pub suggestions: Vec<Advice>,
}

/// The counts. Clones share them.
#[derive(Clone)]
pub struct Learned(Arc<Mutex<Counts>>);

struct Counts {
    folders: Tally,
    programs: Tally,
}

impl Default for Learned {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(Counts {
            folders: Tally::new(BOUND),
            programs: Tally::new(BOUND),
        })))
    }
}

impl Learned {
    /// A file was opened by a process, where that may be asked for; its verdict took this
    /// long, if it took any.
    pub fn note(&self, path: &[u8], pid: Option<u32>, took: Option<Duration>) {
        let folder = Path::new(OsStr::from_bytes(path))
            .parent()
            .map_or_else(String::new, |folder| {
                PathBytes::from_path(folder).to_string()
            });
        let program = pid.map(program);
        let mut counts = self.lock();
        counts.folders.add(short(&folder), took);
        if let Some(program) = program {
            counts.programs.add(short(&program), took);
        }
    }

    /// What was learned.
    pub fn snapshot(&self) -> Snapshot {
        let (folders, programs) = {
            let counts = self.lock();
            (counts.folders.most_costly(), counts.programs.most_costly())
        };
        // Looks at folders, which may take its time: nobody waits for it.
        let suggestions = advise(&folders, advice::is_guarded);
        let shown = |mut rows: Vec<Row>| {
            rows.truncate(SHOWN);
            rows
        };
        Snapshot {
            suggestions,
            folders: shown(folders),
            programs: shown(programs),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Counts> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The name that the kernel has for a process; it may have ended.
fn program(pid: u32) -> String {
    let name = std::fs::read(format!("/proc/{pid}/comm")).unwrap_or_default();
    let name = String::from_utf8_lossy(&name);
    match name.trim() {
        "" => "(ended)".to_owned(),
        name => name.escape_debug().to_string(),
    }
}

fn short(name: &str) -> &str {
    let mut end = name.len().min(MAX_NAME_BYTES);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    &name[..end]
}
