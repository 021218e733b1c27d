//! The last list of Protection Servers, kept so that the agent works when the
//! Integration Server is gone.

use std::path::Path;

use palisade_protocol::control::SvmList;

use crate::state_file::StateFile;

/// Largest list file that is read, in bytes.
const MAX_FILE_BYTES: u64 = 4 * 1024 * 1024;

/// The file `svm-list.json` in the state folder.
#[derive(Debug, Clone)]
pub struct ListFile(StateFile);

impl ListFile {
    /// The file in a state folder.
    pub fn new(state: &Path) -> Self {
        let path = state.join("svm-list.json");
        let damaged = "the kept list is damaged and not used";
        Self(StateFile::new(path, MAX_FILE_BYTES, damaged).readable())
    }

    /// The list that was kept, if there is a usable one: a damaged one is only a
    /// list that has to be fetched again.
    pub fn load(&self) -> Option<SvmList> {
        self.0.load()
    }

    /// Keeps a list.
    ///
    /// # Errors
    /// The disk's.
    pub fn save(&self, list: &SvmList) -> std::io::Result<()> {
        self.0.save(list)
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
            revoked: List::default(),
        };
        file.save(&list).unwrap();
        assert_eq!(file.load(), Some(list));
        std::fs::write(state.path().join("svm-list.json"), "{").unwrap();
        assert_eq!(file.load(), None);
    }
}
