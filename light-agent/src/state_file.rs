//! A small JSON file of the state folder: replaced whole; one that cannot be used is
//! said, and counts as none.
//!
//! Owns reading within a bound, writing, what is logged, and the lock by which one process
//! at a time uses the folder. What an absent file means,
//! and whether a failed write is an error, is whoever's file it is. Not for files that
//! are worth a part of themselves ([`deferred`](crate::deferred)) or whose loss must stop
//! a start (the identity).

use std::fs::{File, Metadata, TryLockError};
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use palisade_protocol::identity::write_atomic;
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Held by whoever uses a state folder.
pub const LOCK: &str = "lock";

/// Takes a state folder for this process, for as long as the file is open.
///
/// # Errors
/// That another process has it, or the system's.
pub fn claim(state: &Path) -> anyhow::Result<File> {
    let path = state.join(LOCK);
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(PRIVATE)
        .open(&path)
        .with_context(|| format!("{} cannot be written", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => bail!(
            "the agent runs, or is about to be started again, with the state folder {}: stop it \
             first (`systemctl stop palisade-agent`)",
            state.display()
        ),
        Err(TryLockError::Error(error)) => {
            Err(error).with_context(|| format!("{} cannot be locked", path.display()))
        }
    }
}

/// Opens a file that nobody but root, or whoever runs this, may write.
///
/// # Errors
/// The system's, and that others may write it.
pub fn believed(file: &Path) -> io::Result<(File, Metadata)> {
    let file = File::open(file)?;
    let facts = file.metadata()?;
    let own = nix::unistd::geteuid().as_raw();
    if !facts.is_file() || facts.mode() & 0o022 != 0 || ![0, own].contains(&facts.uid()) {
        return Err(io::Error::other("others than root may write it"));
    }
    Ok((file, facts))
}

/// Of the owner alone.
const PRIVATE: u32 = 0o600;
/// Readable by all.
const READABLE: u32 = 0o644;

/// The file.
#[derive(Debug, Clone)]
pub struct StateFile {
    path: PathBuf,
    max_bytes: u64,
    mode: u32,
    damaged: &'static str,
}

impl StateFile {
    /// A file of at most `max_bytes`; `damaged` is what it means, for people, when it
    /// cannot be used.
    pub fn new(path: PathBuf, max_bytes: u64, damaged: &'static str) -> Self {
        Self {
            path,
            max_bytes,
            mode: PRIVATE,
            damaged,
        }
    }

    /// The same, for everybody to read.
    #[must_use]
    pub fn readable(self) -> Self {
        Self {
            mode: READABLE,
            ..self
        }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it holds; none if it is not there, or cannot be used.
    pub fn load<T: DeserializeOwned>(&self) -> Option<T> {
        self.load_checked(Ok)
    }

    /// The same, of what `check` lets pass.
    pub fn load_checked<T: DeserializeOwned, U>(
        &self,
        check: impl FnOnce(T) -> Result<U, String>,
    ) -> Option<U> {
        let read = self
            .read()
            .and_then(|text| serde_json::from_slice(&text).map_err(io::Error::other))
            .and_then(|value| check(value).map_err(io::Error::other));
        read.inspect_err(|error| {
            if error.kind() != io::ErrorKind::NotFound {
                tracing::warn!(file = %self.path.display(), %error, "{}", self.damaged);
            }
        })
        .ok()
    }

    fn read(&self) -> io::Result<Vec<u8>> {
        let mut text = Vec::new();
        let file = File::open(&self.path)?;
        file.take(self.max_bytes + 1).read_to_end(&mut text)?;
        if text.len() as u64 > self.max_bytes {
            let why = format!("it has more than {} bytes", self.max_bytes);
            return Err(io::Error::other(why));
        }
        Ok(text)
    }

    /// Replaces it.
    ///
    /// # Errors
    /// The disk's.
    pub fn save<T: Serialize>(&self, value: &T) -> io::Result<()> {
        let text = serde_json::to_vec_pretty(value)?;
        write_atomic(&self.path, &text, self.mode).map_err(io::Error::other)
    }

    /// Removes it; says whether it was there.
    ///
    /// # Errors
    /// The system's.
    pub fn remove(&self) -> io::Result<bool> {
        match std::fs::remove_file(&self.path) {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn it_survives_and_one_that_cannot_be_used_is_none() {
        let state = tempfile::tempdir().unwrap();
        let path = state.path().join("x.json");
        let file = StateFile::new(path.clone(), 64, "it begins anew");
        let load = || file.load::<Vec<u64>>();
        assert_eq!(load(), None);
        assert!(!file.remove().unwrap());
        file.save(&vec![1, 2]).unwrap();
        assert_eq!(load(), Some(vec![1, 2]));
        let refused = file.load_checked(|_: Vec<u64>| Err::<(), _>("another version".to_owned()));
        assert_eq!(refused, None);
        let mode = || std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(), 0o600);
        file.clone().readable().save(&vec![3]).unwrap();
        assert_eq!((mode(), load()), (0o644, Some(vec![3])));
        // To the byte.
        let padded = |bytes: usize| format!("{:>bytes$}", "[7]");
        std::fs::write(&path, padded(64)).unwrap();
        assert_eq!(load(), Some(vec![7]));
        for damaged in [padded(65).as_bytes(), b"", b"{", b"{}", b"[\xff]", b"[1]]"] {
            std::fs::write(&path, damaged).unwrap();
            assert_eq!(load(), None, "{damaged:?}");
        }
        assert!(file.remove().unwrap());
        std::fs::create_dir(&path).unwrap();
        assert_eq!(load(), None, "it cannot be read");
        assert!(file.save(&vec![1]).is_err());
    }
}
