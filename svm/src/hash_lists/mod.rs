//! Hash lists: contents that a site allows or denies, by SHA-256 or MD5.
//!
//! ```text
//! NAME.allow.sha256  NAME.allow.md5     fine, whatever engines say; each use is audited
//! NAME.deny.sha256   NAME.deny.md5      malware
//! ```
//!
//! | module | owns |
//! | --- | --- |
//! | [`parse`] | names and lines (pure) |
//! | this | reading lists, and looking hashes up |
//!
//! An engine like the others, but without a program: no hostile bytes are parsed, only
//! the digests of bytes that the Protection Server verified are looked up. Lists are
//! part of a generation of definitions. They are about whole contents; hashes of parts
//! inside archives belong into ClamAV's `.hdb` and `.hsb`. Where no list is loaded,
//! nothing is hashed.

mod parse;

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use palisade_worker::client::{Metadatum, Outcome};

use crate::digest::{Digests, Wanted};
use parse::{Effect, Hash, LineError};

pub use parse::kind_of;

/// Longest line, in bytes.
pub const MAX_LINE_BYTES: usize = 1024;
/// Most hashes in all lists of a generation.
pub const MAX_ENTRIES: usize = 1_000_000;

/// Why lists cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ListError {
    /// A file or the folder cannot be read.
    #[error("{path}: {error}", path = path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// A line is none.
    #[error("{path}:{line}: {error}", path = path.display())]
    Line {
        /// The list.
        path: PathBuf,
        /// Which line, counted from 1.
        line: u32,
        /// What is wrong.
        #[source]
        error: LineError,
    },
    /// A line does not end.
    #[error("{path}:{line}: the line is longer than {MAX_LINE_BYTES} bytes", path = path.display())]
    LongLine {
        /// The list.
        path: PathBuf,
        /// Which line, counted from 1.
        line: u32,
    },
    /// There is too much.
    #[error("{path}:{line}: the lists hold more than {MAX_ENTRIES} hashes", path = path.display())]
    TooMany {
        /// The list that was read.
        path: PathBuf,
        /// How far.
        line: u32,
    },
}

/// All lists of a generation.
#[derive(Debug, Default)]
pub struct HashLists {
    /// The lists' file names.
    names: Vec<String>,
    sha256: Table<32>,
    md5: Table<16>,
}

/// Hashes of one length, sorted.
#[derive(Debug)]
struct Table<const N: usize>(Vec<Entry<N>>);

#[derive(Debug)]
struct Entry<const N: usize> {
    hash: [u8; N],
    effect: Effect,
    size: Option<u64>,
    list: u32,
    line: u32,
    name: Option<Box<str>>,
}

impl<const N: usize> Default for Table<N> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

/// A hash that a list holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hit {
    /// The content is allowed; otherwise it is denied.
    pub allows: bool,
    /// What to call it, if it is denied.
    pub name: String,
    /// The list and its line.
    pub list: Metadatum,
}

impl Hit {
    /// What a deny list's hit comes to.
    pub fn denied(&self) -> Outcome {
        match Outcome::found([self.name.as_str().into()], false) {
            Outcome::Found {
                names,
                member,
                suspicious,
                ..
            } => Outcome::Found {
                names,
                member,
                metadata: vec![self.list.clone()],
                suspicious,
            },
            other => other,
        }
    }
}

impl HashLists {
    /// Reads every list directly in `folder`.
    ///
    /// # Errors
    /// [`ListError`], which names the file and the line.
    pub fn load(folder: &Path) -> Result<Self, ListError> {
        let at = |path: &Path| {
            let path = path.to_owned();
            move |error| ListError::Read { path, error }
        };
        let mut files = Vec::new();
        for entry in fs::read_dir(folder).map_err(at(folder))? {
            let path = entry.map_err(at(folder))?.path();
            files.extend(kind_of(&path).map(|kind| (path, kind)));
        }
        files.sort_by(|(a, _), (b, _)| a.cmp(b));
        let mut lists = Self::default();
        for (path, kind) in files {
            let file = File::open(&path).map_err(at(&path))?;
            lists.read(&path, BufReader::new(file), kind)?;
        }
        lists.sort();
        if lists
            .md5
            .0
            .iter()
            .any(|entry| entry.effect == Effect::Allow)
        {
            tracing::warn!(
                "a list allows contents by MD5, for which others with the same hash can be made; \
                 use SHA-256"
            );
        }
        if !lists.is_empty() {
            tracing::info!(
                lists = lists.names.len(),
                hashes = lists.len(),
                "hash lists loaded"
            );
        }
        Ok(lists)
    }

    /// Reads one list, which is called `path`, from anywhere; nothing if the name is
    /// no list's.
    ///
    /// # Errors
    /// [`ListError`], which names the file and the line.
    pub fn parse(path: &Path, from: impl BufRead) -> Result<Self, ListError> {
        let mut lists = Self::default();
        if let Some(kind) = kind_of(path) {
            lists.read(path, from, kind)?;
            lists.sort();
        }
        Ok(lists)
    }

    fn sort(&mut self) {
        self.sha256.sort();
        self.md5.sort();
    }

    fn read(
        &mut self,
        path: &Path,
        mut from: impl BufRead,
        (effect, hash): (Effect, Hash),
    ) -> Result<(), ListError> {
        let list = u32::try_from(self.names.len()).unwrap_or(u32::MAX);
        let name = path.file_name().unwrap_or_default();
        self.names.push(name.to_string_lossy().into_owned());
        let mut bytes = Vec::new();
        for line in 1.. {
            bytes.clear();
            let read = (&mut from)
                .take(MAX_LINE_BYTES as u64 + 1)
                .read_until(b'\n', &mut bytes)
                .map_err(|error| ListError::Read {
                    path: path.to_owned(),
                    error,
                })?;
            if read == 0 {
                break;
            }
            if read > MAX_LINE_BYTES {
                return Err(ListError::LongLine {
                    path: path.to_owned(),
                    line,
                });
            }
            if self.len() == MAX_ENTRIES {
                return Err(ListError::TooMany {
                    path: path.to_owned(),
                    line,
                });
            }
            let text = String::from_utf8_lossy(&bytes);
            let place = Place { effect, list, line };
            match hash {
                Hash::Sha256 => self.sha256.add(&text, place),
                Hash::Md5 => self.md5.add(&text, place),
            }
            .map_err(|error| ListError::Line {
                path: path.to_owned(),
                line,
                error,
            })?;
        }
        Ok(())
    }

    /// Hashes in all lists.
    pub fn len(&self) -> usize {
        self.sha256.0.len() + self.md5.0.len()
    }

    /// Whether there is nothing to look up.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The digests that are needed for [`Self::find`].
    pub fn wanted(&self) -> Wanted {
        Wanted {
            sha256: !self.sha256.0.is_empty(),
            md5: !self.md5.0.is_empty(),
        }
    }

    /// What the lists say of a content of `size` bytes. An allowing list goes before a
    /// denying one, SHA-256 before MD5, then the lists go by their names.
    pub fn find(&self, digests: &Digests, size: u64) -> Option<Hit> {
        for effect in [Effect::Allow, Effect::Deny] {
            let sha256 = digests.sha256.as_ref();
            let md5 = digests.md5.as_ref();
            let hit = sha256
                .and_then(|hash| self.sha256.find(hash, size, effect))
                .map(|entry| self.hit(entry))
                .or_else(|| {
                    md5.and_then(|hash| self.md5.find(hash, size, effect))
                        .map(|entry| self.hit(entry))
                });
            if hit.is_some() {
                return hit;
            }
        }
        None
    }

    fn hit<const N: usize>(&self, entry: &Entry<N>) -> Hit {
        let list = self.names.get(entry.list as usize);
        let place = format!("{}:{}", list.map_or("", String::as_str), entry.line);
        Hit {
            allows: entry.effect == Effect::Allow,
            name: match &entry.name {
                Some(name) => name.to_string(),
                None => format!("Palisade.DenyList.{}", hex::encode(&entry.hash[..4])),
            },
            list: Metadatum {
                key: match entry.effect {
                    Effect::Allow => "allow list".into(),
                    Effect::Deny => "deny list".into(),
                },
                value: place.as_str().into(),
            },
        }
    }
}

/// Where an entry stands.
#[derive(Clone, Copy)]
struct Place {
    effect: Effect,
    list: u32,
    line: u32,
}

impl<const N: usize> Table<N> {
    fn add(&mut self, text: &str, place: Place) -> Result<(), LineError> {
        if let Some(line) = parse::line::<N>(text)? {
            self.0.push(Entry {
                hash: line.hash,
                effect: place.effect,
                size: line.size,
                list: place.list,
                line: place.line,
                name: line.name.map(Box::from),
            });
        }
        Ok(())
    }

    /// By hash; of equal ones in the order of lists and lines, which a stable sort keeps.
    fn sort(&mut self) {
        self.0.sort_by_key(|entry| entry.hash);
    }

    fn find(&self, hash: &[u8; N], size: u64, effect: Effect) -> Option<&Entry<N>> {
        let first = self.0.partition_point(|entry| entry.hash < *hash);
        self.0[first..]
            .iter()
            .take_while(|entry| entry.hash == *hash)
            .find(|entry| entry.effect == effect && entry.size.is_none_or(|wanted| wanted == size))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn lists(files: &[(&str, &[u8])]) -> Result<HashLists, ListError> {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            fs::write(dir.path().join(name), text).unwrap();
        }
        HashLists::load(dir.path())
    }

    fn digests(byte: u8) -> Digests {
        Digests {
            sha256: Some([byte; 32]),
            md5: Some([byte; 16]),
        }
    }

    fn sha(byte: u8) -> String {
        hex::encode([byte; 32])
    }

    #[test]
    fn allow_wins_and_sizes_count() {
        let deny = format!("{}:5:Bad.One\n{}\n{}\n", sha(1), sha(1), sha(2));
        let allow = format!("{}  fine.exe\n", sha(2));
        let md5 = format!("# by MD5\n{}:*:By.Md5\n", hex::encode([3; 16]));
        let lists = lists(&[
            ("b.deny.sha256", deny.as_bytes()),
            ("a.allow.sha256", allow.as_bytes()),
            ("c.deny.md5", md5.as_bytes()),
            ("main.cvd.sha256", b"no list"),
        ])
        .unwrap();
        assert_eq!(lists.len(), 5);
        let said = |byte, size| {
            let hit = lists.find(&digests(byte), size)?;
            Some((hit.allows, hit.name, hit.list.value.as_str().to_owned()))
        };
        let denied = |name: &str, place: &str| Some((false, name.to_owned(), place.to_owned()));
        assert_eq!(said(1, 5), denied("Bad.One", "b.deny.sha256:1"));
        // The one without a size.
        assert_eq!(
            said(1, 6),
            denied("Palisade.DenyList.01010101", "b.deny.sha256:2")
        );
        assert_eq!(said(3, 9), denied("By.Md5", "c.deny.md5:2"));
        let (allows, _, place) = said(2, 1).unwrap();
        assert!(allows);
        assert_eq!(place, "a.allow.sha256:1");
        assert_eq!(said(4, 1), None);
        assert!(lists.wanted().sha256 && lists.wanted().md5);
    }

    #[test]
    fn mistakes_name_file_and_line() {
        let good = sha(1);
        let said =
            |name: &str, text: &str| lists(&[(name, text.as_bytes())]).unwrap_err().to_string();
        let short = said("x.deny.sha256", &format!("{good}\n\nabc\n"));
        assert!(
            short.contains("x.deny.sha256:3: 64 hexadecimal digits"),
            "{short}"
        );
        let kind = said("x.allow.md5", &format!("{good}\n"));
        assert!(
            kind.contains("x.allow.md5:1: 32 hexadecimal digits"),
            "{kind}"
        );
        let long = said("x.deny.sha256", &format!("{good}\n# {}", "c".repeat(2000)));
        assert!(
            long.contains("x.deny.sha256:2: the line is longer than 1024"),
            "{long}"
        );
        assert!(lists(&[("x.deny.md5", b"\xff\xfe\n")]).is_err());
        let nothing = HashLists::load(Path::new("/nowhere"))
            .unwrap_err()
            .to_string();
        assert!(nothing.starts_with("/nowhere: "), "{nothing}");
    }

    proptest! {
        /// Whatever bytes a list holds, reading it ends, and what it takes it finds.
        #[test]
        fn no_list_panics(bytes in proptest::collection::vec(any::<u8>(), 0..3000)) {
            let _ = HashLists::parse(Path::new("x.deny.md5"), bytes.as_slice());
        }

        #[test]
        fn what_is_listed_is_found_and_nothing_else(listed in proptest::collection::vec((any::<u8>(), any::<bool>()), 0..40), asked: u8) {
            let mut lists = HashLists::default();
            for effect in [Effect::Allow, Effect::Deny] {
                let text: String = listed
                    .iter()
                    .filter(|(_, allow)| *allow == (effect == Effect::Allow))
                    .map(|(byte, _)| sha(*byte) + "\n")
                    .collect();
                lists.read(Path::new("x"), text.as_bytes(), (effect, Hash::Sha256)).unwrap();
            }
            lists.sort();
            let found = lists.find(&digests(asked), 1).map(|hit| hit.allows);
            let has = |allow: bool| listed.contains(&(asked, allow));
            let expected = if has(true) { Some(true) } else { has(false).then_some(false) };
            prop_assert_eq!(found, expected);
        }
    }
}
