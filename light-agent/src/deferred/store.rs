//! The files that wait, on the disk: `deferred.jsonl` in the state folder, one a line.
//!
//! Replaced whole. A line that is damaged ends it: what was before it is kept, and the
//! loss is said.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

use palisade_protocol::identity::write_atomic;

use super::queue::Item;

/// The shape of the file: its first line.
const HEAD: &str = "palisade deferred 1";
/// Largest file that is read, in bytes.
const MAX_FILE_BYTES: u64 = 32 << 20;

/// The file of a state folder.
#[derive(Debug, Clone)]
pub struct Store(PathBuf);

impl Store {
    /// The file of a state folder.
    pub fn new(state: &Path) -> Self {
        Self(state.join("deferred.jsonl"))
    }

    /// The files that wait; none if there is nothing, or nothing that can be used.
    pub fn load(&self) -> Vec<Item> {
        let (items, problem) = self.read();
        if let Some(problem) = problem {
            tracing::warn!(
                file = %self.0.display(), kept = items.len(), %problem,
                "the list of files that wait to be scanned is damaged: a scan finds what it lost"
            );
        }
        items
    }

    fn read(&self) -> (Vec<Item>, Option<String>) {
        let mut text = Vec::new();
        let read = std::fs::File::open(&self.0)
            .and_then(|file| file.take(MAX_FILE_BYTES).read_to_end(&mut text));
        match read {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => return (Vec::new(), None),
            Err(error) => return (Vec::new(), Some(error.to_string())),
        }
        let text = text.strip_suffix(b"\n").unwrap_or(&text);
        let mut lines = text.split(|byte| *byte == b'\n');
        if lines.next() != Some(HEAD.as_bytes()) {
            return (Vec::new(), Some("it is of another version".to_owned()));
        }
        let mut items = Vec::new();
        for line in lines {
            match serde_json::from_slice(line) {
                Ok(item) => items.push(item),
                Err(error) => return (items, Some(error.to_string())),
            }
        }
        (items, None)
    }

    /// Keeps them.
    ///
    /// # Errors
    /// The disk's.
    pub fn save(&self, items: &[Item]) -> io::Result<()> {
        let mut text = format!("{HEAD}\n").into_bytes();
        for item in items {
            serde_json::to_writer(&mut text, item)?;
            text.push(b'\n');
        }
        write_atomic(&self.0, &text, 0o600).map_err(io::Error::other)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Failure;
    use crate::stamp::Stamp;
    use crate::tasks::saved::SavedPath;

    #[test]
    fn they_survive_and_damage_costs_what_is_behind_it() {
        let state = tempfile::tempdir().unwrap();
        let store = Store::new(state.path());
        assert_eq!(store.load(), []);
        let stamp = Stamp {
            device: 1,
            inode: 2,
            size: 3,
            modified_ns: 4,
            changed_ns: 5,
            regular: true,
        };
        let item =
            |path: &[u8]| Item::new(SavedPath::from_bytes(path), &stamp, Failure::Busy, 7, 8);
        let items = [item(b"/a\xff\n"), item(b"/b")];
        store.save(&items).unwrap();
        assert_eq!(store.load(), items);
        let file = state.path().join("deferred.jsonl");
        let good = std::fs::read_to_string(&file).unwrap();
        std::fs::write(&file, &good[..good.len() - 9]).unwrap();
        assert_eq!(store.load(), items[..1]);
        std::fs::write(&file, format!("other\n{good}")).unwrap();
        assert_eq!(store.load(), []);
        std::fs::write(&file, [0xff; 10]).unwrap();
        assert_eq!(store.load(), []);
    }
}
