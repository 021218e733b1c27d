//! The windows on the disk: `exposure.json` in the state folder, replaced whole.
//!
//! What cannot be read is an empty record: it is said, and windows begin anew.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::windows::{Alive, Windows};
use crate::state_file::StateFile;

/// The shape of the file.
const VERSION: u32 = 1;
/// Largest file that is read, in bytes.
const MAX_FILE_BYTES: u64 = 256 * 1024;

/// What is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    version: u32,
    /// When an agent was last known to run.
    pub alive: Alive,
    /// The windows.
    pub windows: Windows,
}

impl Record {
    /// A record of now.
    pub fn new(alive: Alive, windows: Windows) -> Self {
        Self {
            version: VERSION,
            alive,
            windows,
        }
    }
}

/// The file.
#[derive(Debug, Clone)]
pub struct RecordFile(StateFile);

impl RecordFile {
    /// The file of a state folder.
    pub fn new(state: &Path) -> Self {
        let path = state.join("exposure.json");
        let damaged = "the record of times without verdicts is damaged and begins anew";
        Self(StateFile::new(path, MAX_FILE_BYTES, damaged))
    }

    /// What it says; nothing if there is none, or none that can be used.
    pub fn load(&self) -> Option<Record> {
        self.0.load_checked(|record: Record| match record.version {
            VERSION => Ok(Record {
                windows: record.windows.bounded(),
                ..record
            }),
            other => Err(format!("it is of version {other}")),
        })
    }

    /// Keeps it.
    ///
    /// # Errors
    /// The disk's.
    pub fn save(&self, record: &Record) -> std::io::Result<()> {
        self.0.save(record)
    }
}

/// When the guest booted, in milliseconds since 1970; 0 if the kernel does not say.
pub fn booted_ms() -> u64 {
    let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let seconds = stat
        .lines()
        .find_map(|line| line.strip_prefix("btime "))
        .and_then(|seconds| seconds.trim().parse::<u64>().ok());
    seconds.unwrap_or(0).saturating_mul(1000)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exposure::windows::{Cause, Way};

    #[test]
    fn it_survives_and_a_damaged_one_begins_anew() {
        let state = tempfile::tempdir().unwrap();
        let file = RecordFile::new(state.path());
        assert_eq!(file.load(), None);
        let mut windows = Windows::default();
        windows.set(Cause::NoSvm, true, 5);
        windows.let_through(Way::Open, 6);
        let alive = Alive {
            boot: "b".to_owned(),
            at_ms: 7,
        };
        let record = Record::new(alive, windows);
        file.save(&record).unwrap();
        let loaded = file.load().unwrap();
        assert_eq!(loaded.windows.now(), record.windows.now());
        assert_eq!(loaded.alive, record.alive);
        for damaged in ["{", "[]", r#"{"version":9}"#, &"x".repeat(400_000)] {
            std::fs::write(state.path().join("exposure.json"), damaged).unwrap();
            assert_eq!(file.load(), None);
        }
        assert!(booted_ms() > 1_000_000_000_000);
    }
}
