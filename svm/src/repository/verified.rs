//! Metadata that was verified, and the versions below which nothing goes.
//!
//! What a pull verifies is kept all at once, when it is all right, in one file that is
//! replaced whole. Kept one by one, a timestamp that leads to a refused snapshot would
//! stand beside the snapshot before, which does not fit it, and the next pull would have no
//! version to compare with: what was refused once would be taken the second time.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use palisade_repository::reading;
use palisade_repository::tuf::{self, MetadataStore};

use super::folder::{FolderError, at, write};

/// Documents by the verifier's names for them.
type Documents = BTreeMap<String, String>;

/// The verifier's store: in memory, until it is committed.
#[derive(Debug)]
pub struct Verified {
    file: PathBuf,
    documents: Mutex<Documents>,
}

impl Verified {
    pub(super) fn open(file: PathBuf) -> Result<Arc<Self>, FolderError> {
        let documents = match fs::read(&file) {
            Ok(text) => serde_json::from_slice(&text).map_err(|error| at(&file)(error.into()))?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Documents::new(),
            Err(error) => return Err(at(&file)(error)),
        };
        Ok(Arc::new(Self {
            file,
            documents: Mutex::new(documents),
        }))
    }

    fn documents(&self) -> MutexGuard<'_, Documents> {
        self.documents
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// The version of the targets that are here, and of the root that they were verified
    /// by; none before the first.
    pub fn versions(&self) -> Option<(u64, u64)> {
        let documents = self.documents();
        let targets = documents.get("targets.json")?.as_bytes();
        let root = documents.get("root.json")?.as_bytes();
        let targets = reading::unverified_targets(targets).ok()?.version;
        Some((reading::root(root).ok()?.version, targets))
    }

    /// Keeps what was verified since, in place of what was kept before.
    ///
    /// # Errors
    /// [`FolderError`]; what was kept before stays.
    pub fn commit(&self) -> Result<(), FolderError> {
        let text = serde_json::to_vec(&*self.documents());
        let text = text.map_err(|error| at(&self.file)(error.into()))?;
        if fs::read(&self.file).is_ok_and(|kept| kept == text) {
            return Ok(());
        }
        write(&self.file, &text)
    }
}

impl MetadataStore for Verified {
    fn load(&self, name: &str) -> tuf::Result<Option<Vec<u8>>> {
        let documents = self.documents();
        Ok(documents.get(name).map(|text| text.clone().into_bytes()))
    }

    fn store(&self, name: &str, bytes: &[u8]) -> tuf::Result<()> {
        // Of those with a version in their name, only roots are read again.
        if !name.as_bytes().first().is_some_and(u8::is_ascii_digit)
            && let Ok(text) = std::str::from_utf8(bytes)
        {
            self.documents().insert(name.to_owned(), text.to_owned());
        }
        Ok(())
    }
}
