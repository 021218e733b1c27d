//! Settings of what is kept of scanned contents: their meaning and their bounds.

use super::{ByteSize, Scan, Settings};
use crate::fragments::Bounds;

/// Thousandths of `scan.fragment_store` that contents of one fragment may take, which
/// are kept for re-scans alone.
const SMALL_PERMILLE: u64 = 250;
/// Least disk that is worth a file, in bytes.
const LEAST_DISK: u64 = 1 << 20;
/// Most disk, in bytes: what lies where takes memory.
const MOST_DISK: u64 = 256 << 30;

impl Scan {
    /// Bytes of memory that contents may take that were scanned.
    pub fn fragment_store(&self) -> ByteSize {
        self.fragment_store.unwrap_or(ByteSize(self.memory.0 / 2))
    }

    /// Bounds of the keys about fragments: whether each is kept, the key, what it holds,
    /// what it may hold.
    pub(super) fn fragment_rules(&self) -> [(bool, &'static str, String, String); 3] {
        let (store, disk) = (self.fragment_store(), self.fragment_disk);
        [
            (
                store <= self.memory,
                "scan.fragment_store",
                store.to_string(),
                format!("it is part of scan.memory ({})", self.memory),
            ),
            (
                disk.0 == 0 || (LEAST_DISK..=MOST_DISK).contains(&disk.0),
                "scan.fragment_disk",
                disk.to_string(),
                format!("0, or {LEAST_DISK} to {MOST_DISK} bytes are possible"),
            ),
            (
                disk.0 == 0 || store.0 > 0,
                "scan.fragment_disk",
                disk.to_string(),
                "it takes what leaves scan.fragment_store, which keeps nothing".to_owned(),
            ),
        ]
    }
}

impl Settings {
    /// How much is kept of contents that were scanned.
    pub fn kept(&self) -> Bounds {
        let bytes = self.scan.fragment_store().0;
        Bounds {
            bytes,
            small: match self.retroactive.rescan {
                true => bytes / 1000 * SMALL_PERMILLE,
                false => 0,
            },
        }
    }
}
