//! The breaker's record on the disk: `supervisor.json` in the state folder.
//!
//! A record that cannot be read is an empty one: it is said, and protection goes on.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use palisade_protocol::identity::write_atomic;

use super::breaker::Record;

/// Largest file that is read, in bytes.
const MAX_FILE_BYTES: u64 = 64 * 1024;

/// The file.
#[derive(Debug, Clone)]
pub struct RecordFile(PathBuf);

impl RecordFile {
    /// The file in a state folder.
    pub fn new(state: &Path) -> Self {
        Self(state.join("supervisor.json"))
    }

    /// What it says; nothing if there is none, or none that can be used.
    pub fn load(&self) -> Record {
        let size = match std::fs::metadata(&self.0) {
            Ok(metadata) => metadata.len(),
            Err(_) => return Record::default(),
        };
        let read = || -> Result<Record, String> {
            if size > MAX_FILE_BYTES {
                return Err(format!("{size} bytes are too many"));
            }
            let text = std::fs::read(&self.0).map_err(|error| error.to_string())?;
            serde_json::from_slice(&text).map_err(|error| error.to_string())
        };
        read().unwrap_or_else(|error| {
            tracing::warn!(file = %self.0.display(), %error, "the supervisor's record is damaged and begins anew");
            Record::default()
        })
    }

    /// Keeps it; a disk that takes nothing is said, and no reason to stop.
    pub fn save(&self, record: &Record) {
        let text = serde_json::to_vec_pretty(record).unwrap_or_default();
        if let Err(error) = write_atomic(&self.0, &text, 0o600) {
            tracing::warn!(file = %self.0.display(), %error, "the supervisor's record cannot be kept");
        }
    }
}

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_secs())
}

/// The kernel's id of this boot.
pub fn boot() -> String {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    id.trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervise::breaker::Ending;

    #[test]
    fn it_survives_and_a_damaged_one_begins_anew() {
        let state = tempfile::tempdir().unwrap();
        let file = RecordFile::new(state.path());
        assert_eq!(file.load(), Record::default());
        let mut record = Record::default();
        record.bad_end(Ending::Stalled, now());
        record.starts(&boot());
        file.save(&record);
        assert_eq!(file.load(), record);
        for damaged in ["{", "[]", &"x".repeat(100_000)] {
            std::fs::write(state.path().join("supervisor.json"), damaged).unwrap();
            assert_eq!(file.load(), Record::default());
        }
    }
}
