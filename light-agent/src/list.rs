//! The last list of Protection Servers, kept so that the agent works when the
//! Integration Server is gone.

use std::path::{Path, PathBuf};

use palisade_protocol::control::SvmList;
use palisade_protocol::identity::{IdentityError, write_atomic};

/// Largest list file that is read, in bytes.
const MAX_FILE_BYTES: u64 = 4 * 1024 * 1024;

/// The file `svm-list.json` in the state folder.
#[derive(Debug, Clone)]
pub struct ListFile(PathBuf);

impl ListFile {
    /// The file in a state folder.
    pub fn new(state: &Path) -> Self {
        Self(state.join("svm-list.json"))
    }

    /// The list that was kept, if there is a usable one: a damaged one is only a
    /// list that has to be fetched again.
    pub fn load(&self) -> Option<SvmList> {
        let metadata = std::fs::metadata(&self.0).ok()?;
        if metadata.len() > MAX_FILE_BYTES {
            return None;
        }
        let text = std::fs::read(&self.0).ok()?;
        serde_json::from_slice(&text)
            .inspect_err(|error| {
                tracing::warn!(file = %self.0.display(), %error, "the kept list is damaged and not used");
            })
            .ok()
    }

    /// Keeps a list.
    ///
    /// # Errors
    /// The disk's.
    pub fn save(&self, list: &SvmList) -> Result<(), IdentityError> {
        let text = serde_json::to_vec_pretty(list).unwrap_or_default();
        write_atomic(&self.0, &text, 0o644)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use palisade_protocol::bounded::List;

    #[test]
    fn a_list_survives_and_a_damaged_one_is_none() {
        let state = tempfile::tempdir().unwrap();
        let file = ListFile::new(state.path());
        assert_eq!(file.load(), None);
        let list = SvmList {
            etag: 3,
            own_path: Default::default(),
            own_tags: List::default(),
            svms: List::default(),
        };
        file.save(&list).unwrap();
        assert_eq!(file.load(), Some(list));
        std::fs::write(state.path().join("svm-list.json"), "{").unwrap();
        assert_eq!(file.load(), None);
    }
}
