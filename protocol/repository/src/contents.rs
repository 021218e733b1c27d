//! What targets say: the generations that there are, their files, which one is wanted.
//!
//! ```text
//!  targets:  "7/daily.cld" {length, sha256}, "7/rules.yar" …, "6/…" …
//!  palisade: {"wanted": 7, "generations": {"7": {"added_ms": …, "origin": "…"}, "6": …}}
//! ```
//!
//! The number of the wanted generation is signed with the rest: whoever holds no
//! publisher key chooses none, not even an earlier one.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use crate::tuf::{TargetFile, Targets};
use crate::{RepositoryError, names};

/// Most generations that a repository has.
pub const MAX_GENERATIONS: usize = 16;
/// Most files of one generation.
pub const MAX_FILES: usize = 4096;
/// Most bytes of one generation.
pub const MAX_BYTES: u64 = 16 << 30;
/// Longest origin, in bytes.
pub const MAX_ORIGIN_BYTES: usize = 512;
/// The field of targets that is Palisade's own.
const FIELD: &str = "palisade";

/// A file of a generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct FileInfo {
    /// SHA-256 of its bytes.
    pub sha256: [u8; 32],
    /// How many there are.
    pub length: u64,
}

/// A generation of definitions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Generation {
    /// When it was imported, in milliseconds since 1970.
    pub added_ms: u64,
    /// What it was made of, for people.
    pub origin: String,
    /// Its files, by name.
    pub files: BTreeMap<String, FileInfo>,
}

impl Generation {
    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.files
            .values()
            .fold(0, |sum, file| sum.saturating_add(file.length))
    }

    /// Whether it keeps within its bounds.
    ///
    /// # Errors
    /// [`RepositoryError::Contents`] that names the bound.
    pub fn check(&self) -> Result<(), RepositoryError> {
        let bad = |why: String| Err(RepositoryError::Contents(why));
        if self.files.is_empty() {
            return bad("a generation has no files".to_owned());
        }
        if self.files.len() > MAX_FILES {
            return bad(format!("a generation has more than {MAX_FILES} files"));
        }
        if let Some(name) = self.files.keys().find(|name| !names::is_file_name(name)) {
            return bad(format!("{name:?} is no name of a file"));
        }
        if self.bytes() > MAX_BYTES {
            return bad(format!("a generation has more than {MAX_BYTES} bytes"));
        }
        if self.origin.len() > MAX_ORIGIN_BYTES {
            return bad(format!("an origin is over {MAX_ORIGIN_BYTES} bytes"));
        }
        Ok(())
    }
}

/// What a repository holds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Contents {
    /// The generation that Protection Servers shall have; 0 for none yet.
    pub wanted: u64,
    /// All that there are, by number.
    pub generations: BTreeMap<u64, Generation>,
}

impl Contents {
    /// What these targets say.
    ///
    /// # Errors
    /// [`RepositoryError::Contents`].
    pub fn of(targets: &Targets) -> Result<Self, RepositoryError> {
        let bad = |why: &str| RepositoryError::Contents(why.to_owned());
        let own = targets
            .extra
            .get(FIELD)
            .ok_or_else(|| bad("it has no generations"))?;
        let wanted = own["wanted"]
            .as_u64()
            .ok_or_else(|| bad("it wants no generation"))?;
        let listed = own["generations"]
            .as_object()
            .ok_or_else(|| bad("it has no generations"))?;
        if listed.len() > MAX_GENERATIONS {
            return Err(bad("it has too many generations"));
        }
        let mut generations = BTreeMap::new();
        for (number, about) in listed {
            let number: u64 = number
                .parse()
                .map_err(|_| bad("a generation has no number"))?;
            let generation = Generation {
                added_ms: about["added_ms"].as_u64().unwrap_or_default(),
                origin: about["origin"].as_str().unwrap_or_default().to_owned(),
                files: BTreeMap::new(),
            };
            generations.insert(number, generation);
        }
        for (path, target) in &targets.targets {
            let (number, name) = path
                .split_once('/')
                .ok_or_else(|| bad("a file is in no generation"))?;
            let generation = number
                .parse()
                .ok()
                .and_then(|number: u64| generations.get_mut(&number))
                .ok_or_else(|| bad("a file is in no generation"))?;
            generation.files.insert(name.to_owned(), info(target)?);
        }
        let contents = Self {
            wanted,
            generations,
        };
        contents.check()?;
        Ok(contents)
    }

    /// Whether all keeps within its bounds.
    ///
    /// # Errors
    /// [`RepositoryError::Contents`].
    pub fn check(&self) -> Result<(), RepositoryError> {
        if self.generations.len() > MAX_GENERATIONS {
            return Err(RepositoryError::Contents(format!(
                "there are more than {MAX_GENERATIONS} generations"
            )));
        }
        if self.wanted != 0 && !self.generations.contains_key(&self.wanted) {
            return Err(RepositoryError::Contents(format!(
                "generation {} is wanted, and not there",
                self.wanted
            )));
        }
        self.generations.values().try_for_each(Generation::check)
    }

    /// The wanted generation with its number.
    pub fn wanted(&self) -> Option<(u64, &Generation)> {
        let generation = self.generations.get(&self.wanted)?;
        Some((self.wanted, generation))
    }

    /// A name of a target's file.
    pub fn path(number: u64, name: &str) -> String {
        format!("{number}/{name}")
    }

    pub(crate) fn write(&self, targets: &mut Map<String, Value>) {
        let (mut files, mut generations) = (Map::new(), Map::new());
        for (number, generation) in &self.generations {
            for (name, file) in &generation.files {
                let target = json!({
                    "length": file.length,
                    "hashes": { "sha256": hex::encode(file.sha256) },
                });
                files.insert(Self::path(*number, name), target);
            }
            let about = json!({ "added_ms": generation.added_ms, "origin": generation.origin });
            generations.insert(number.to_string(), about);
        }
        targets.insert("targets".to_owned(), files.into());
        let own = json!({ "wanted": self.wanted, "generations": generations });
        targets.insert(FIELD.to_owned(), own);
    }

    /// With one generation more, which is wanted if so said; of those before, the oldest
    /// go that are more than `keep`, but for the wanted one and the one before it.
    ///
    /// # Errors
    /// [`RepositoryError::Contents`].
    pub fn with(
        &self,
        generation: Generation,
        wanted: bool,
        keep: usize,
    ) -> Result<(u64, Self), RepositoryError> {
        generation.check()?;
        let mut next = self.clone();
        let last = next.generations.keys().next_back().copied().unwrap_or(0);
        let number = last
            .checked_add(1)
            .ok_or_else(|| RepositoryError::Contents("there are no numbers left".to_owned()))?;
        next.generations.insert(number, generation);
        if wanted {
            next.wanted = number;
        }
        let keep = keep.clamp(2, MAX_GENERATIONS);
        while next.generations.len() > keep {
            let spare = [next.wanted, self.wanted, number];
            let Some(oldest) = next
                .generations
                .keys()
                .copied()
                .find(|one| !spare.contains(one))
            else {
                break;
            };
            next.generations.remove(&oldest);
        }
        next.check()?;
        Ok((number, next))
    }

    /// With another generation wanted; none when there is no such one.
    pub fn wanting(&self, number: u64) -> Option<Self> {
        self.generations.contains_key(&number).then(|| Self {
            wanted: number,
            generations: self.generations.clone(),
        })
    }

    /// The generation that a rollback goes to: the one before the wanted one.
    pub fn before(&self) -> Option<u64> {
        let before = self.generations.range(..self.wanted);
        before.map(|(number, _)| *number).next_back()
    }
}

fn info(target: &TargetFile) -> Result<FileInfo, RepositoryError> {
    let sha256 = target
        .hashes
        .get("sha256")
        .and_then(|text| hash(text))
        .ok_or_else(|| RepositoryError::Contents("a file has no SHA-256".to_owned()))?;
    Ok(FileInfo {
        sha256,
        length: target.length,
    })
}

/// A SHA-256 from its hexadecimal text.
pub fn hash(text: &str) -> Option<[u8; 32]> {
    let mut hash = [0; 32];
    hex::decode_to_slice(text, &mut hash).ok()?;
    Some(hash)
}
