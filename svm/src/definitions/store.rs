//! Generations on disk.
//!
//! ```text
//! definitions/state.json         active, previous, refused; the last look at the source
//! definitions/3/manifest.json    engines, their fingerprints and numbers
//! definitions/3/clamav/…         what libclamav loads
//! definitions/3/yara/…           what YARA-X loads
//! definitions/new-4/             a copy that is being made, loaded, checked
//!
//!   copy ──► new-4 ──engines load it, the check passes──► admit ──► 4 ──► activate
//! ```
//!
//! A generation's folder appears whole (renamed into place) once its definitions
//! loaded and passed their check, and never changes; `state.json` is replaced whole,
//! and decides which is active. `new-…` folders are left over from an interrupted
//! step, and are removed.
//!
//! **Invariant:** a generation's number is never used twice, whatever became of it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use palisade_protocol::definitions::Standing;
use palisade_protocol::identity::write_atomic;
use serde::{Deserialize, Serialize};

use super::DefinitionsError;
use super::manifest::{EngineManifest, Manifest, Prints};
use super::source::{self, Fingerprint, Listing};
use crate::engine::EngineKind;

/// A copy that is no generation yet.
#[derive(Debug)]
pub struct Copy {
    /// What it holds.
    pub manifest: Manifest,
    folder: PathBuf,
}

impl Copy {
    /// Where an engine's definitions are until the copy is admitted.
    pub fn engine_folder(&self, engine: EngineKind) -> PathBuf {
        self.folder.join(engine.folder())
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct State {
    active: Option<u64>,
    previous: Option<u64>,
    /// The highest number that was ever used.
    last: u64,
    /// What was rolled back: not taken from the source again.
    refused: Option<Prints>,
    /// What the source held when it was last taken over, or found to hold nothing new.
    source: Option<Taken>,
}

/// A look at the source that needs no second one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Taken {
    #[serde(with = "hex::serde")]
    stamp: [u8; 32],
    prints: Prints,
}

/// What libclamav is given where it only unpacks for the others: it does not run
/// without a signature, and this one's 32 bytes (SHA-256 of "palisade unpacks") are
/// not expected to be anywhere.
const UNPACK_ONLY: (&str, &str) = (
    "palisade-unpack-only.ndb",
    "Palisade.Unpack.Only:0:*:92c7d50a02cd22eebcb5b77d23171becb1d8afc13746997c31522a65156526ed\n",
);

/// The folder of generations.
#[derive(Debug)]
pub struct Store {
    folder: PathBuf,
    /// Generations that are kept beside the active one.
    keep: usize,
    state: State,
}

impl Store {
    /// Opens the folder, and removes what interrupted steps left there.
    ///
    /// # Errors
    /// [`DefinitionsError::Store`] naming the path.
    pub fn open(folder: &Path, keep: usize) -> Result<Self, DefinitionsError> {
        fs::create_dir_all(folder).map_err(at(folder))?;
        let path = folder.join("state.json");
        let state = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes).unwrap_or_else(|error| {
                tracing::warn!(path = %path.display(), %error, "damaged; the generations are looked through");
                State::default()
            }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => State::default(),
            Err(error) => return Err(at(&path)(error)),
        };
        let mut store = Self {
            folder: folder.to_owned(),
            keep,
            state,
        };
        let highest = store.numbers()?.last().copied().unwrap_or(0);
        store.state.last = store.state.last.max(highest);
        if store.state.active.is_none() {
            // Only whole, checked generations carry a number for a name.
            store.state.active = (highest > 0).then_some(highest);
        }
        store.tidy()?;
        Ok(store)
    }

    /// The generations that may be put in force, the active one first, then the one
    /// before, then the others from the newest on, as far as they are readable.
    pub fn candidates(&self) -> Vec<Manifest> {
        let mut numbers = self.numbers().unwrap_or_default();
        numbers.sort_by_key(|number| {
            let rank = match Some(*number) {
                number if number == self.state.active => 0,
                number if number == self.state.previous => 1,
                _ => 2,
            };
            (rank, std::cmp::Reverse(*number))
        });
        let readable = |number| match self.manifest(number) {
            Ok(manifest) => Some(manifest),
            Err(error) => {
                tracing::warn!(%error, "a generation of definitions is damaged");
                None
            }
        };
        numbers.into_iter().filter_map(readable).collect()
    }

    /// The generations, by number, as far as they are readable.
    pub fn all(&self) -> Vec<Manifest> {
        let mut all = self.candidates();
        all.sort_by_key(|manifest| manifest.generation);
        all
    }

    /// The number of the generation before the active one.
    pub fn previous(&self) -> Option<u64> {
        self.state.previous
    }

    /// What a generation is now.
    pub fn standing(&self, manifest: &Manifest) -> Standing {
        let number = Some(manifest.generation);
        if number == self.state.active {
            Standing::Active
        } else if self.is_refused(&manifest.prints()) {
            Standing::Refused
        } else if number == self.state.previous {
            Standing::Previous
        } else {
            Standing::Kept
        }
    }

    /// Where an engine's definitions of a generation are.
    pub fn engine_folder(&self, generation: u64, engine: EngineKind) -> PathBuf {
        self.place(generation).join(engine.folder())
    }

    /// Copies the listing, so that it can be loaded and checked. Engines whose
    /// definitions are those of a kept generation have its number for them.
    ///
    /// # Errors
    /// [`DefinitionsError`] naming the file; nothing is left then.
    pub fn copy(
        &mut self,
        listing: &Listing,
        origin: &Path,
        now_ms: u64,
    ) -> Result<Copy, DefinitionsError> {
        let number = self.state.last + 1;
        self.state.last = number;
        self.save()?;
        let folder = self.folder.join(format!("new-{number}"));
        let filled = self.fill(&folder, number, listing);
        match filled {
            Ok(engines) => Ok(Copy {
                manifest: Manifest {
                    generation: number,
                    engines,
                    origin: origin.to_owned(),
                    added_ms: now_ms,
                    bytes: listing.bytes(),
                },
                folder,
            }),
            Err(error) => {
                let _ = fs::remove_dir_all(&folder);
                Err(error)
            }
        }
    }

    fn fill(
        &self,
        folder: &Path,
        number: u64,
        listing: &Listing,
    ) -> Result<Vec<EngineManifest>, DefinitionsError> {
        remove(folder)?;
        let known = self.all();
        let mut engines = Vec::new();
        for engine in listing.engines() {
            let folder = folder.join(engine.folder());
            let fingerprint = source::copy(listing, engine, &folder)?;
            if !listing.serves(engine) {
                let (name, line) = UNPACK_ONLY;
                write(&folder.join(name), line.as_bytes())?;
            }
            let same = |other: &&EngineManifest| {
                other.engine == engine && other.fingerprint == fingerprint
            };
            let earlier = known
                .iter()
                .flat_map(|manifest| &manifest.engines)
                .find(same);
            engines.push(EngineManifest {
                engine,
                generation: earlier.map_or(number, |known| known.generation),
                fingerprint,
            });
        }
        Ok(engines)
    }

    /// Makes a copy a generation. It is not active yet.
    ///
    /// # Errors
    /// [`DefinitionsError::Store`].
    pub fn admit(&self, copy: Copy) -> Result<Manifest, DefinitionsError> {
        let Copy { manifest, folder } = copy;
        let path = folder.join("manifest.json");
        let text = serde_json::to_vec_pretty(&manifest).map_err(|error| at(&path)(error.into()))?;
        write(&path, &text)?;
        let place = self.place(manifest.generation);
        fs::rename(&folder, &place).map_err(at(&place))?;
        // So that a power cut does not leave a state file that names nothing.
        File::open(&self.folder)
            .and_then(|folder| folder.sync_all())
            .map_err(at(&self.folder))?;
        Ok(manifest)
    }

    /// Removes a copy that is of no use.
    ///
    /// # Errors
    /// [`DefinitionsError::Store`].
    pub fn discard(&self, copy: &Copy) -> Result<(), DefinitionsError> {
        remove(&copy.folder)
    }

    /// Makes a generation the active one; the one before it is kept as previous. What
    /// was refused is so no longer.
    ///
    /// # Errors
    /// [`DefinitionsError::Store`]; the old one then stays active.
    pub fn activate(&mut self, manifest: &Manifest) -> Result<(), DefinitionsError> {
        self.change(|state| {
            if state.active != Some(manifest.generation) {
                state.previous = state.active;
                state.active = Some(manifest.generation);
            }
            state.refused = None;
        })?;
        self.tidy()
    }

    /// Makes the previous generation the active one again, and refuses `from`.
    ///
    /// # Errors
    /// [`DefinitionsError::Store`]; nothing changed then.
    pub fn roll_back(&mut self, from: &Manifest, to: &Manifest) -> Result<(), DefinitionsError> {
        // What another rollback would go to: older than both.
        let before = self
            .all()
            .into_iter()
            .map(|manifest| manifest.generation)
            .rfind(|number| *number < to.generation.min(from.generation));
        let refused = from.prints();
        self.change(|state| {
            state.active = Some(to.generation);
            state.previous = before;
            state.refused = Some(refused);
        })?;
        self.tidy()
    }

    /// Whether these are what was rolled back.
    pub fn is_refused(&self, prints: &Prints) -> bool {
        self.state.refused.as_ref() == Some(prints)
    }

    /// Whether the source held exactly this when it was last taken over.
    pub fn is_taken(&self, listing: &Listing) -> bool {
        self.state
            .source
            .as_ref()
            .is_some_and(|taken| taken.stamp == listing.stamp())
    }

    /// Whether the source held these definitions when it was last taken over, wherever
    /// they were and whenever they were written.
    pub fn was_taken(&self, prints: &Prints) -> bool {
        self.state
            .source
            .as_ref()
            .is_some_and(|taken| taken.prints == *prints)
    }

    /// The source held this, and there is nothing more to do about it.
    ///
    /// # Errors
    /// [`DefinitionsError::Store`].
    pub fn take(&mut self, listing: &Listing, prints: Prints) -> Result<(), DefinitionsError> {
        let stamp = listing.stamp();
        self.change(|state| state.source = Some(Taken { stamp, prints }))
    }

    /// Whether a generation's files are those that were copied.
    ///
    /// # Errors
    /// [`DefinitionsError::Damaged`].
    pub fn verify(&self, manifest: &Manifest) -> Result<(), DefinitionsError> {
        for engine in &manifest.engines {
            let folder = self.engine_folder(manifest.generation, engine.engine);
            let damaged = |detail: String| DefinitionsError::Damaged {
                path: folder.clone(),
                detail,
            };
            let mut names = Vec::new();
            let entries = fs::read_dir(&folder).map_err(|error| damaged(error.to_string()))?;
            for entry in entries {
                let entry = entry.map_err(|error| damaged(error.to_string()))?;
                names.push(entry.file_name().to_string_lossy().into_owned());
            }
            names.retain(|name| name != UNPACK_ONLY.0);
            names.sort();
            let mut fingerprint = Fingerprint::default();
            for name in &names {
                let mut hasher = blake3::Hasher::new();
                File::open(folder.join(name))
                    .and_then(|file| hasher.update_reader(file).map(drop))
                    .map_err(|error| damaged(format!("{name}: {error}")))?;
                fingerprint.add(name, &hasher.finalize());
            }
            if fingerprint.finish() != engine.fingerprint {
                return Err(damaged(
                    "its files are not those that were copied".to_owned(),
                ));
            }
        }
        Ok(())
    }

    /// The generation of this number.
    ///
    /// # Errors
    /// [`DefinitionsError::NotKept`], or what is wrong with it.
    pub fn kept(&self, number: u64) -> Result<Manifest, DefinitionsError> {
        let numbers = self.numbers()?;
        if numbers.contains(&number) {
            return self.manifest(number);
        }
        let list: Vec<String> = numbers.iter().map(u64::to_string).collect();
        Err(DefinitionsError::NotKept {
            generation: number,
            kept: match list.as_slice() {
                [] => "there is none yet".to_owned(),
                _ => format!("there are {}", list.join(", ")),
            },
        })
    }

    fn manifest(&self, number: u64) -> Result<Manifest, DefinitionsError> {
        let path = self.place(number).join("manifest.json");
        let bytes = fs::read(&path).map_err(at(&path))?;
        serde_json::from_slice(&bytes).map_err(|error| at(&path)(error.into()))
    }

    fn change(&mut self, change: impl FnOnce(&mut State)) -> Result<(), DefinitionsError> {
        let before = self.state.clone();
        change(&mut self.state);
        if self.state == before {
            return Ok(());
        }
        self.save().inspect_err(|_| self.state = before)
    }

    fn save(&self) -> Result<(), DefinitionsError> {
        let path = self.folder.join("state.json");
        let text = serde_json::to_vec(&self.state).map_err(|error| at(&path)(error.into()))?;
        write(&path, &text)
    }

    fn place(&self, number: u64) -> PathBuf {
        self.folder.join(number.to_string())
    }

    /// The generations' numbers, in order.
    fn numbers(&self) -> Result<Vec<u64>, DefinitionsError> {
        let entries = fs::read_dir(&self.folder).map_err(at(&self.folder))?;
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        let mut numbers: Vec<u64> = names.filter_map(|name| name.parse().ok()).collect();
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// Removes what is more than is kept, and what became nothing. What cannot be
    /// removed is left, and said.
    ///
    /// # Errors
    /// [`DefinitionsError::Store`] when the folder cannot be read.
    pub fn tidy(&self) -> Result<(), DefinitionsError> {
        let named = [self.state.active, self.state.previous];
        let mut others = self.numbers()?;
        others.retain(|number| !named.contains(&Some(*number)));
        let beside = usize::from(self.state.previous.is_some());
        let more = others
            .len()
            .saturating_sub(self.keep.saturating_sub(beside));
        let mut left: Vec<PathBuf> = others[..more].iter().map(|n| self.place(*n)).collect();
        let entries = fs::read_dir(&self.folder).map_err(at(&self.folder))?;
        left.extend(entries.flatten().filter_map(|entry| {
            let name = entry.file_name();
            let name = name.to_string_lossy();
            // Copies, and a state file that was being written.
            (name.starts_with("new-") || name == "state.new").then(|| entry.path())
        }));
        for path in left {
            if let Err(error) = remove(&path) {
                tracing::warn!(%error, "a leftover of definitions cannot be removed");
            }
        }
        Ok(())
    }
}

fn at(path: &Path) -> impl FnOnce(std::io::Error) -> DefinitionsError + use<> {
    let path = path.to_owned();
    move |error| DefinitionsError::Store { path, error }
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), DefinitionsError> {
    write_atomic(path, bytes, 0o644).map_err(|error| at(path)(std::io::Error::other(error)))
}

fn remove(path: &Path) -> Result<(), DefinitionsError> {
    let removed = match path.is_dir() {
        true => fs::remove_dir_all(path),
        false => fs::remove_file(path),
    };
    match removed {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(at(path)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
