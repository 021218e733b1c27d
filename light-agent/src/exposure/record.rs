//! The windows on the disk: `exposure.json` in the state folder, replaced whole.
//!
//! What cannot be read is an empty record: it is said, and windows begin anew.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use palisade_protocol::identity::write_atomic;
use serde::{Deserialize, Serialize};

use super::windows::{Alive, Windows};

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
pub struct RecordFile(PathBuf);

impl RecordFile {
    /// The file of a state folder.
    pub fn new(state: &Path) -> Self {
        Self(state.join("exposure.json"))
    }

    /// What it says; nothing if there is none, or none that can be used.
    pub fn load(&self) -> Option<Record> {
        let file = std::fs::File::open(&self.0).ok()?;
        let mut text = Vec::new();
        let read = file.take(MAX_FILE_BYTES).read_to_end(&mut text);
        let record = read
            .map_err(|error| error.to_string())
            .and_then(|_| {
                serde_json::from_slice::<Record>(&text).map_err(|error| error.to_string())
            })
            .and_then(|record| match record.version {
                VERSION => Ok(record),
                other => Err(format!("it is of version {other}")),
            });
        match record {
            Ok(record) => Some(Record {
                windows: record.windows.bounded(),
                ..record
            }),
            Err(error) => {
                tracing::warn!(
                    file = %self.0.display(), %error,
                    "the record of times without verdicts is damaged and begins anew"
                );
                None
            }
        }
    }

    /// Keeps it.
    ///
    /// # Errors
    /// The disk's.
    pub fn save(&self, record: &Record) -> std::io::Result<()> {
        let text = serde_json::to_vec(record)?;
        write_atomic(&self.0, &text, 0o600).map_err(std::io::Error::other)
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
