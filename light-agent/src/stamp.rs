//! What a file looked like at one moment, by its open descriptor.
//!
//! Owns the one `fstat` of the crate's event path; never opens a path.

use std::os::fd::AsFd;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::sys::stat::{FileStat, SFlag, fstat};

/// A change time younger than this may hide a later change: file systems keep
/// times in steps, the coarsest of those in use of one second.
pub const RACY: Duration = Duration::from_secs(2);

/// Identity, size and times of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Stamp {
    /// Device of the file system.
    pub device: u64,
    /// Inode.
    pub inode: u64,
    /// Size in bytes.
    pub size: u64,
    /// Modification time, in nanoseconds since 1970.
    pub modified_ns: i128,
    /// Change time, in nanoseconds since 1970.
    pub changed_ns: i128,
    /// Whether it is a regular file.
    pub regular: bool,
}

impl Stamp {
    /// Takes the stamp of an open file.
    ///
    /// # Errors
    /// The kernel's.
    pub fn of(file: impl AsFd) -> std::io::Result<Self> {
        let stat: FileStat = fstat(file)?;
        let ns = |seconds: i64, ns: i64| i128::from(seconds) * 1_000_000_000 + i128::from(ns);
        Ok(Self {
            device: stat.st_dev,
            inode: stat.st_ino,
            size: u64::try_from(stat.st_size).unwrap_or(0),
            modified_ns: ns(stat.st_mtime, stat.st_mtime_nsec),
            changed_ns: ns(stat.st_ctime, stat.st_ctime_nsec),
            regular: SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFREG,
        })
    }

    /// Whether the content may differ between the two moments.
    pub fn content_moved(&self, later: &Self) -> bool {
        self.size != later.size || self.modified_ns != later.modified_ns
    }

    /// Whether the change time is old enough that a further change would show.
    pub fn settled(&self, now: SystemTime) -> bool {
        let now_ns = now
            .duration_since(UNIX_EPOCH)
            .map_or(0, |now| now.as_nanos());
        let now_ns = i128::try_from(now_ns).unwrap_or(i128::MAX);
        now_ns - self.changed_ns >= RACY.as_nanos() as i128
    }
}

/// Names (hard links) that an open file has now.
///
/// # Errors
/// The kernel's.
pub fn links(file: impl AsFd) -> std::io::Result<u64> {
    Ok(fstat(file)?.st_nlink)
}
