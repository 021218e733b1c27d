//! The breaker's record on the disk: `supervisor.json` in the state folder.
//!
//! A record that cannot be read is an empty one: it is said, and protection goes on.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use super::breaker::Record;
use crate::state_file::StateFile;

/// Largest file that is read, in bytes.
const MAX_FILE_BYTES: u64 = 64 * 1024;

/// The file.
#[derive(Debug, Clone)]
pub struct RecordFile(StateFile);

impl RecordFile {
    /// The file in a state folder.
    pub fn new(state: &Path) -> Self {
        let path = state.join("supervisor.json");
        let damaged = "the supervisor's record is damaged and begins anew";
        Self(StateFile::new(path, MAX_FILE_BYTES, damaged))
    }

    /// What it says; nothing if there is none, or none that can be used.
    pub fn load(&self) -> Record {
        self.0.load().unwrap_or_default()
    }

    fn save(&self, record: &Record) -> bool {
        let saved = self.0.save(record);
        if let Err(error) = &saved {
            tracing::warn!(file = %self.0.path().display(), %error, "the supervisor's record cannot be kept");
        }
        saved.is_ok()
    }
}

/// The record of a supervisor that runs. Somebody else may change the file meanwhile
/// (`supervise --reset`): what it says then counts. A disk that takes nothing is said,
/// and no reason to stop or to forget.
#[derive(Debug)]
pub struct Keeping {
    file: RecordFile,
    record: Record,
    on_disk: Record,
}

impl Keeping {
    /// What is kept in a state folder.
    pub fn open(state: &Path) -> Self {
        let file = RecordFile::new(state);
        let record = file.load();
        Self {
            on_disk: record.clone(),
            record,
            file,
        }
    }

    /// What it says.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Changes it; says whether the disk has it.
    pub fn change(&mut self, change: impl FnOnce(&mut Record)) -> bool {
        let found = self.file.load();
        if found != self.on_disk {
            self.record = found.clone();
        }
        change(&mut self.record);
        let saved = self.file.save(&self.record);
        self.on_disk = match saved {
            true => self.record.clone(),
            false => found,
        };
        saved
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
        let mut keeping = Keeping::open(state.path());
        assert!(keeping.change(|record| record.bad_end(Ending::Stalled, now())));
        assert!(keeping.change(|record| record.starts(&boot())));
        assert_eq!(keeping.record().last, Some(Ending::Stalled));
        assert_eq!(&file.load(), keeping.record());
        for damaged in ["{", "[]", &"x".repeat(100_000)] {
            std::fs::write(state.path().join("supervisor.json"), damaged).unwrap();
            assert_eq!(file.load(), Record::default());
        }
    }

    #[test]
    fn a_reset_meanwhile_counts_and_a_disk_that_takes_nothing_does_not() {
        let state = tempfile::tempdir().unwrap();
        let mut keeping = Keeping::open(state.path());
        let crashes = |keeping: &mut Keeping| {
            for _ in 0..3 {
                keeping.change(|record| record.bad_end(Ending::Crashed, now()));
            }
        };
        crashes(&mut keeping);
        assert!(keeping.record().resting(now()).is_some());
        assert!(Keeping::open(state.path()).change(Record::reset));
        assert!(keeping.change(Record::fine));
        assert_eq!(keeping.record().resting(now()), None);
        assert_eq!(RecordFile::new(state.path()).load().resting(now()), None);
        // Nothing can be written over a folder.
        let file = state.path().join("supervisor.json");
        std::fs::remove_file(&file).unwrap();
        std::fs::create_dir(&file).unwrap();
        let mut keeping = Keeping::open(state.path());
        crashes(&mut keeping);
        assert!(keeping.record().resting(now()).is_some());
        assert!(!keeping.change(Record::fine));
        assert!(keeping.record().resting(now()).is_some());
    }
}
