//! Generations on disk.
//!
//! ```text
//! definitions/state.json         {"active": 3, "previous": 2, "last": 3}
//! definitions/3/manifest.json    engines, their fingerprints and numbers
//! definitions/3/clamav/…         what libclamav loads
//! definitions/3/yara/…           what YARA-X loads
//! definitions/new-4/             a copy in the making
//! ```
//!
//! A generation's folder appears whole (renamed into place) and never changes;
//! `state.json` is replaced whole, and decides which is active. What it does not
//! name is left over from an interrupted step, and is removed.
//!
//! **Invariant:** a generation's number is never used twice, whatever became of it.

use std::fs;
use std::path::{Path, PathBuf};

use palisade_protocol::identity::write_atomic;
use serde::{Deserialize, Serialize};

use super::DefinitionsError;
use super::source::{self, Listing};
use crate::engine::EngineKind;

/// What a generation holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// Its number.
    pub generation: u64,
    /// The engines that have definitions in it, in [`EngineKind::ALL`]'s order.
    pub engines: Vec<EngineManifest>,
}

/// One engine's definitions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EngineManifest {
    /// Which engine.
    pub engine: EngineKind,
    /// The generation that first had exactly these.
    pub generation: u64,
    /// Over their names and bytes.
    #[serde(with = "hex::serde")]
    pub fingerprint: [u8; 16],
}

impl Manifest {
    /// Whether another generation holds the same definitions.
    pub fn same_definitions(&self, other: &Self) -> bool {
        let prints = |manifest: &Self| {
            let print = |engine: &EngineManifest| (engine.engine, engine.fingerprint);
            manifest.engines.iter().map(print).collect::<Vec<_>>()
        };
        prints(self) == prints(other)
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct State {
    active: Option<u64>,
    previous: Option<u64>,
    /// The highest number that was ever used.
    last: u64,
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
    state: State,
}

impl Store {
    /// Opens the folder, and removes what interrupted steps left there.
    ///
    /// # Errors
    /// [`DefinitionsError::Store`] naming the path.
    pub fn open(folder: &Path) -> Result<Self, DefinitionsError> {
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
            state,
        };
        let numbers = store.numbers()?;
        let highest = numbers.iter().copied().max().unwrap_or(0);
        store.state.last = store.state.last.max(highest);
        if store.state.active.is_none() {
            // Only whole generations carry a number for a name.
            store.state.active = (highest > 0).then_some(highest);
        }
        store.tidy()?;
        Ok(store)
    }

    /// The active generation, then the one before it, as far as they are readable.
    pub fn candidates(&self) -> Vec<Manifest> {
        [self.state.active, self.state.previous]
            .into_iter()
            .flatten()
            .filter_map(|number| match self.manifest(number) {
                Ok(manifest) => Some(manifest),
                Err(error) => {
                    tracing::warn!(%error, "a generation of definitions is damaged");
                    None
                }
            })
            .collect()
    }

    /// Where an engine's definitions of a generation are.
    pub fn engine_folder(&self, generation: u64, engine: EngineKind) -> PathBuf {
        self.folder
            .join(generation.to_string())
            .join(engine.folder())
    }

    /// Copies the listing into a new generation, which is not active yet.
    /// `active` lends its numbers to engines whose definitions did not change.
    ///
    /// # Errors
    /// [`DefinitionsError`] naming the file; nothing is left then.
    pub fn stage(
        &mut self,
        listing: &Listing,
        active: Option<&Manifest>,
    ) -> Result<Manifest, DefinitionsError> {
        let number = self.state.last + 1;
        let temporary = self.folder.join(format!("new-{number}"));
        let staged = self.fill(&temporary, number, listing, active);
        if staged.is_err() {
            let _ = fs::remove_dir_all(&temporary);
        }
        staged
    }

    fn fill(
        &mut self,
        temporary: &Path,
        number: u64,
        listing: &Listing,
        active: Option<&Manifest>,
    ) -> Result<Manifest, DefinitionsError> {
        remove(temporary)?;
        let mut engines = Vec::new();
        for engine in listing.engines() {
            let folder = temporary.join(engine.folder());
            let fingerprint = source::copy(listing, engine, &folder)?;
            if !listing.serves(engine) {
                let (name, line) = UNPACK_ONLY;
                write(&folder.join(name), line.as_bytes())?;
            }
            let unchanged = active
                .and_then(|active| active.engines.iter().find(|known| known.engine == engine))
                .filter(|known| known.fingerprint == fingerprint);
            let generation = unchanged.map_or(number, |known| known.generation);
            engines.push(EngineManifest {
                engine,
                generation,
                fingerprint,
            });
        }
        let manifest = Manifest {
            generation: number,
            engines,
        };
        let path = temporary.join("manifest.json");
        let text = serde_json::to_vec_pretty(&manifest).map_err(|error| at(&path)(error.into()))?;
        write(&path, &text)?;
        self.state.last = number;
        self.save()?;
        let place = self.folder.join(number.to_string());
        fs::rename(temporary, &place).map_err(at(&place))?;
        Ok(manifest)
    }

    /// Removes a staged generation that is of no use.
    ///
    /// # Errors
    /// [`DefinitionsError::Store`].
    pub fn discard(&self, manifest: &Manifest) -> Result<(), DefinitionsError> {
        remove(&self.folder.join(manifest.generation.to_string()))
    }

    /// Makes a generation the active one; the one before it is kept as previous.
    ///
    /// # Errors
    /// [`DefinitionsError::Store`]; the old one then stays active.
    pub fn activate(&mut self, manifest: &Manifest) -> Result<(), DefinitionsError> {
        let before = self.state.clone();
        if self.state.active != Some(manifest.generation) {
            self.state.previous = self.state.active;
            self.state.active = Some(manifest.generation);
        }
        if let Err(error) = self.save() {
            self.state = before;
            return Err(error);
        }
        self.tidy()
    }

    fn manifest(&self, number: u64) -> Result<Manifest, DefinitionsError> {
        let path = self.folder.join(number.to_string()).join("manifest.json");
        let bytes = fs::read(&path).map_err(at(&path))?;
        serde_json::from_slice(&bytes).map_err(|error| at(&path)(error.into()))
    }

    fn save(&self) -> Result<(), DefinitionsError> {
        let path = self.folder.join("state.json");
        let text = serde_json::to_vec(&self.state).map_err(|error| at(&path)(error.into()))?;
        write(&path, &text)
    }

    fn numbers(&self) -> Result<Vec<u64>, DefinitionsError> {
        let entries = fs::read_dir(&self.folder).map_err(at(&self.folder))?;
        let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        Ok(names.filter_map(|name| name.parse().ok()).collect())
    }

    fn tidy(&self) -> Result<(), DefinitionsError> {
        for number in self.numbers()? {
            if ![self.state.active, self.state.previous].contains(&Some(number)) {
                remove(&self.folder.join(number.to_string()))?;
            }
        }
        for entry in fs::read_dir(&self.folder)
            .map_err(at(&self.folder))?
            .flatten()
        {
            if entry.file_name().to_string_lossy().starts_with("new-") {
                remove(&entry.path())?;
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
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(at(path)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Bench {
        dir: tempfile::TempDir,
    }

    impl Bench {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            fs::create_dir(dir.path().join("source")).unwrap();
            Self { dir }
        }

        fn put(&self, name: &str, text: &str) -> Listing {
            let source = self.dir.path().join("source");
            fs::write(source.join(name), text).unwrap();
            Listing::of(&source, &[], 1000).unwrap()
        }

        fn store(&self) -> Store {
            Store::open(&self.dir.path().join("definitions")).unwrap()
        }
    }

    #[test]
    fn numbers_grow_and_the_previous_one_is_kept() {
        let bench = Bench::new();
        let mut store = bench.store();
        let mut active: Option<Manifest> = None;
        for text in ["a", "b", "c"] {
            let staged = store
                .stage(&bench.put("x.yar", text), active.as_ref())
                .unwrap();
            store.activate(&staged).unwrap();
            active = Some(staged);
        }
        let numbers = |store: &Store| {
            store
                .candidates()
                .iter()
                .map(|manifest| manifest.generation)
                .collect::<Vec<_>>()
        };
        assert_eq!(numbers(&store), [3, 2]);
        let mut store = bench.store();
        assert_eq!(numbers(&store), [3, 2]);
        let bad = store
            .stage(&bench.put("x.yar", "bad"), active.as_ref())
            .unwrap();
        assert_eq!(bad.generation, 4);
        store.discard(&bad).unwrap();
        let next = store
            .stage(&bench.put("x.yar", "d"), active.as_ref())
            .unwrap();
        assert_eq!(next.generation, 5, "a number is never used twice");
    }

    #[test]
    fn an_engine_keeps_its_number_while_its_definitions_stay() {
        let bench = Bench::new();
        let mut store = bench.store();
        bench.put("x.yar", "a");
        let first = store.stage(&bench.put("x.ndb", "a"), None).unwrap();
        let second = store.stage(&bench.put("x.ndb", "b"), Some(&first)).unwrap();
        let numbers: Vec<u64> = second
            .engines
            .iter()
            .map(|engine| engine.generation)
            .collect();
        assert_eq!(numbers, [2, 1]);
        assert!(!first.same_definitions(&second));
        let third = store
            .stage(&bench.put("x.ndb", "b"), Some(&second))
            .unwrap();
        assert!(second.same_definitions(&third));
    }

    #[test]
    fn interrupted_steps_leave_nothing() {
        let bench = Bench::new();
        let mut store = bench.store();
        let first = store.stage(&bench.put("x.yar", "a"), None).unwrap();
        store.activate(&first).unwrap();
        store.stage(&bench.put("x.yar", "b"), Some(&first)).unwrap();
        fs::create_dir(bench.dir.path().join("definitions/new-9")).unwrap();
        let store = bench.store();
        assert_eq!(store.numbers().unwrap(), [1]);
        assert!(!bench.dir.path().join("definitions/new-9").exists());
    }

    #[test]
    fn a_damaged_state_file_finds_the_newest_whole_generation() {
        let bench = Bench::new();
        let mut store = bench.store();
        let first = store.stage(&bench.put("x.yar", "a"), None).unwrap();
        store.activate(&first).unwrap();
        fs::write(bench.dir.path().join("definitions/state.json"), "{").unwrap();
        assert_eq!(bench.store().candidates(), [first]);
    }
}
