//! The steps from a directory of definitions to a set of engines in force.
//!
//! One owner drives it, on a thread that may block: a step takes seconds. A step that
//! fails leaves what is active, on disk and in memory, as it was.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime};

use palisade_protocol::bounded::{List, Text};
use palisade_protocol::definitions::{
    DefinitionsStatus, GenerationEntry, MAX_GENERATIONS, Standing,
};
use palisade_protocol::verdict::{EngineGeneration, Generation, Generations};
use palisade_worker::client::StartError;

use super::DefinitionsError;
use super::check::Check;
use super::manifest::{EngineManifest, Manifest};
use super::source::Listing;
use super::store::{Copy, Store};
use crate::brake::signatures::Part;
use crate::cache::now_ms;
use crate::engine::{EngineKind, Place};
use crate::hash_lists::HashLists;
use crate::repository;
use crate::scan::crew::Reserve;
use crate::scan::engines::{Engine, EngineSet};
use crate::settings::{Folders, Settings};

/// A change within this time may be one of several: the source is looked at again.
const FRESH: Duration = Duration::from_secs(2);
/// Between two looks at a source that has just changed.
const SETTLE: Duration = Duration::from_millis(500);
/// So many looks in a row may differ before the source is left for later.
const MAX_LOOKS: usize = 20;
/// So often a copy is made anew because the source changed meanwhile.
const MAX_COPIES: usize = 3;

/// What makes of engines' words a verdict is this program, and its engine programs of the
/// same package.
const OWN_VERSION: &str = env!("CARGO_PKG_VERSION");

/// What a step came to.
#[derive(Debug)]
pub enum Change {
    /// Nothing changed, or nothing that can be used.
    Unchanged,
    /// The generation of this number is kept, and not in force.
    Staged(u64),
    /// The braked signature of this name acts from here on.
    Confirmed(String),
    /// These engines are loaded, and their generation is active on disk.
    Activated(Arc<EngineSet>),
}

/// Where definitions come from by themselves.
#[derive(Debug)]
enum Source {
    /// From nowhere: orders bring them.
    None,
    /// From a directory of this machine.
    Directory(PathBuf),
    /// From the site's repository: a folder that is another one for each generation.
    Repository(repository::Folder),
}

impl Source {
    /// The directory to look at now, if there is one.
    fn directory(&self) -> Option<PathBuf> {
        match self {
            Self::None => None,
            Self::Directory(directory) => Some(directory.clone()),
            Self::Repository(folder) => folder.wanted(),
        }
    }

    fn said(&self) -> Text<512> {
        match self {
            Self::None => Text::default(),
            Self::Directory(directory) => Text::cut(&directory.to_string_lossy()),
            Self::Repository(_) => Text::cut("the site's repository"),
        }
    }
}

/// Drives generations. One owner; its steps block for seconds.
#[derive(Debug)]
pub struct Keeper {
    store: Store,
    source: Source,
    extra: Vec<PathBuf>,
    settings_file: String,
    max_bytes: u64,
    place: Place,
    check: Check,
    active: Option<Manifest>,
    /// The loaded set of the active generation, while somebody has it.
    running: Weak<EngineSet>,
    /// What the source held at the last look, good or bad.
    seen: Option<Listing>,
    /// The version of each engine, as it said when it was loaded last.
    versions: BTreeMap<EngineKind, String>,
}

impl Keeper {
    /// Opens the generations in the state folder.
    ///
    /// # Errors
    /// [`DefinitionsError::Store`].
    pub fn open(
        settings: &Settings,
        settings_file: &Path,
        folders: &Folders,
        repository: Option<&repository::Folder>,
    ) -> Result<Self, DefinitionsError> {
        let definitions = &settings.definitions;
        let store = Store::open(
            &folders.state.join("definitions"),
            definitions.keep as usize,
        )?;
        Ok(Self {
            active: store.candidates().into_iter().next(),
            store,
            source: match (repository, &definitions.source) {
                (Some(folder), _) => Source::Repository(folder.clone()),
                (None, Some(directory)) => Source::Directory(directory.clone()),
                (None, None) => Source::None,
            },
            extra: definitions.extra.clone(),
            settings_file: settings_file.display().to_string(),
            max_bytes: definitions.max_size.0,
            place: Place {
                helpers: folders.helpers.clone(),
                scratch: folders.scratch(),
                load_timeout: Duration::from_secs(definitions.load_timeout_s.into()),
                max_scan_bytes: settings.scan.max_scan_size.0,
                clamav: settings.engines.clamav.arguments(),
                workers: settings.scan.confinement(),
                reserve: Reserve::for_lanes(settings.workers()),
            },
            check: Check::new(settings),
            running: Weak::new(),
            seen: None,
            versions: BTreeMap::new(),
        })
    }

    /// Whether there is anything that could be loaded.
    pub fn has_anything(&self) -> bool {
        self.active.is_some() || self.source.directory().is_some()
    }

    /// Loads what the first scans are done with: the source, if it is usable and
    /// new, or else the generation that was active before.
    ///
    /// # Errors
    /// [`DefinitionsError`] when neither can be used.
    pub fn start(&mut self) -> Result<Arc<EngineSet>, DefinitionsError> {
        let on_disk = self.store.candidates();
        match self.refresh() {
            Ok(Change::Activated(set)) => return Ok(set),
            Ok(_) => {}
            Err(error) if on_disk.is_empty() => return Err(error),
            Err(error) => tracing::error!(
                %error,
                "the definitions' source cannot be used; the last good generation stays in force"
            ),
        }
        let mut failure = None;
        for manifest in on_disk {
            match self.load_kept(&manifest) {
                Ok(set) => {
                    if self.store.standing(&manifest) != Standing::Active {
                        self.store.activate(&manifest)?;
                    }
                    self.in_force(manifest, &set);
                    return Ok(set);
                }
                Err(error) => {
                    let generation = manifest.generation;
                    tracing::error!(generation, %error, "a generation does not load");
                    failure = Some(error);
                }
            }
        }
        // No generation on disk loads: a fresh copy of the source may.
        (self.active, self.seen) = (None, None);
        match self.refresh()? {
            Change::Activated(set) => Ok(set),
            _ => Err(failure.unwrap_or_else(|| self.no_source())),
        }
    }

    /// Looks at the source; if it changed, loads it and makes it active. A source
    /// that is what was taken over before, or what was rolled back, changes nothing:
    /// what was imported or activated meanwhile stays until the source has another.
    ///
    /// # Errors
    /// [`DefinitionsError`], once for each change; what was active stays so.
    pub fn refresh(&mut self) -> Result<Change, DefinitionsError> {
        let Some(source) = self.source.directory() else {
            return match &self.active {
                Some(_) => Ok(Change::Unchanged),
                None => Err(self.no_source()),
            };
        };
        let listing = self.look(&source)?;
        let serves = self.active.is_some();
        if self.seen.as_ref() == Some(&listing) {
            return Ok(Change::Unchanged);
        }
        if serves && self.store.is_taken(&listing) {
            self.seen = Some(listing);
            return Ok(Change::Unchanged);
        }
        if !listing.is_usable() {
            self.seen = Some(listing);
            return Err(DefinitionsError::Empty { path: source });
        }
        let (listing, copy) = self.copy(&source)?;
        self.seen = Some(listing.clone());
        let prints = copy.manifest.prints();
        let same = |active: &Manifest| active.prints() == prints;
        if serves
            && (self.active.as_ref().is_some_and(same)
                || self.store.is_refused(&prints)
                || self.store.was_taken(&prints))
        {
            self.store.discard(&copy)?;
            self.store.take(&listing, prints)?;
            return Ok(Change::Unchanged);
        }
        let (manifest, set) = self.admit(copy, &listing)?;
        self.store.activate(&manifest)?;
        self.store.take(&listing, prints)?;
        self.in_force(manifest, &set);
        Ok(Change::Activated(set))
    }

    /// As [`Self::refresh`], and tries again what is known to be bad.
    ///
    /// # Errors
    /// As [`Self::refresh`].
    pub fn look_again(&mut self) -> Result<Change, DefinitionsError> {
        self.seen = None;
        self.refresh()
    }

    /// Takes a directory over, together with the extra directories, as a new
    /// generation; `stage_only` leaves it for a later [`Self::activate`]. Definitions
    /// that are kept already become no second generation.
    ///
    /// # Errors
    /// [`DefinitionsError`]; what was active stays so.
    pub fn import(
        &mut self,
        directory: &Path,
        stage_only: bool,
    ) -> Result<Change, DefinitionsError> {
        let (listing, copy) = self.copy(directory)?;
        if !listing.is_usable() {
            self.store.discard(&copy)?;
            let path = directory.to_owned();
            return Err(DefinitionsError::Empty { path });
        }
        let prints = copy.manifest.prints();
        let known = self.store.all();
        if let Some(known) = known.iter().find(|one| one.prints() == prints) {
            self.store.discard(&copy)?;
            let number = known.generation;
            return if stage_only {
                Ok(Change::Staged(number))
            } else {
                self.activate(number)
            };
        }
        let (manifest, set) = self.admit(copy, &listing)?;
        if stage_only {
            self.store.tidy()?;
            return Ok(Change::Staged(manifest.generation));
        }
        self.store.activate(&manifest)?;
        self.in_force(manifest, &set);
        Ok(Change::Activated(set))
    }

    /// Puts a kept generation in force.
    ///
    /// # Errors
    /// [`DefinitionsError`]; what was active stays so.
    pub fn activate(&mut self, number: u64) -> Result<Change, DefinitionsError> {
        let manifest = self.store.kept(number)?;
        if self.is_active(number) {
            return Ok(Change::Unchanged);
        }
        let set = self.load_kept(&manifest)?;
        self.store.activate(&manifest)?;
        self.in_force(manifest, &set);
        Ok(Change::Activated(set))
    }

    /// Puts the previous generation in force, and refuses the one that was, until the
    /// source has another or it is activated by its number.
    ///
    /// # Errors
    /// [`DefinitionsError`]; what was active stays so.
    pub fn roll_back(&mut self) -> Result<Change, DefinitionsError> {
        let (Some(from), Some(number)) = (self.active.clone(), self.store.previous()) else {
            return Err(DefinitionsError::NoPrevious);
        };
        let to = self.store.kept(number)?;
        let set = self.load_kept(&to)?;
        self.store.roll_back(&from, &to)?;
        self.in_force(to, &set);
        Ok(Change::Activated(set))
    }

    /// What there is.
    pub fn status(&self) -> DefinitionsStatus {
        let entry = |manifest: Manifest| GenerationEntry {
            generation: manifest.generation,
            standing: self.store.standing(&manifest),
            engines: self.generations(&manifest, &self.versions),
            origin: Text::cut(&manifest.origin.to_string_lossy()),
            added_ms: manifest.added_ms,
            bytes: manifest.bytes,
        };
        let all = self.store.all();
        let more = all.len().saturating_sub(MAX_GENERATIONS);
        DefinitionsStatus {
            generations: List::cut(all.into_iter().skip(more).map(entry)),
            source: self.source.said(),
            ..DefinitionsStatus::default()
        }
    }

    /// Where the definitions in force are, engine by engine.
    pub fn parts(&self) -> Vec<Part> {
        let Some(active) = &self.active else {
            return Vec::new();
        };
        let part = |of: &EngineManifest| Part {
            engine: of.engine,
            fingerprint: of.fingerprint,
            folder: self.store.engine_folder(active.generation, of.engine),
        };
        active.engines.iter().map(part).collect()
    }

    fn is_active(&self, number: u64) -> bool {
        let active = self.active.as_ref();
        active.is_some_and(|active| active.generation == number)
    }

    /// What verdicts say of a generation: its definitions; the programs that read them,
    /// since another version may find what this one did not; and what the engines are told
    /// here, since a verdict by other limits is another verdict.
    fn generations(
        &self,
        manifest: &Manifest,
        versions: &BTreeMap<EngineKind, String>,
    ) -> Generations {
        List::cut(manifest.engines.iter().map(|part| {
            let version = versions.get(&part.engine).map_or("", String::as_str);
            let settings = part.engine.settings(&self.place);
            EngineGeneration {
                engine: Text::cut(part.engine.name()),
                generation: Generation(part.generation),
                fingerprint: configured(part.fingerprint, version, &settings),
            }
        }))
    }

    fn no_source(&self) -> DefinitionsError {
        DefinitionsError::NoSource {
            settings: self.settings_file.clone(),
        }
    }

    fn look(&self, directory: &Path) -> Result<Listing, DefinitionsError> {
        Listing::of(directory, &self.extra, self.max_bytes)
    }

    /// A copy of a directory that was the same before and after, and the listing of
    /// both moments.
    fn copy(&mut self, directory: &Path) -> Result<(Listing, Copy), DefinitionsError> {
        let mut failure = None;
        for _ in 0..MAX_COPIES {
            let listing = self.still(directory)?;
            let copied = self.store.copy(&listing, directory, now_ms());
            let after = self.look(directory);
            match (copied, after) {
                (Ok(copy), Ok(after)) if after == listing => return Ok((listing, copy)),
                // Its own doing, and not that of somebody who writes there.
                (Err(error), Ok(after)) if after == listing => return Err(error),
                (Ok(copy), _) => self.store.discard(&copy)?,
                (Err(error), _) => failure = Some(error),
            }
        }
        if let Some(error) = failure {
            tracing::debug!(%error, "the last copy failed");
        }
        Err(DefinitionsError::Unsettled {
            source_dir: directory.to_owned(),
        })
    }

    /// The directory's listing once nobody seems to write there. Nothing waits for
    /// that before there is a set that serves meanwhile.
    fn still(&self, directory: &Path) -> Result<Listing, DefinitionsError> {
        let mut listing = self.look(directory)?;
        if self.running.strong_count() == 0 || !listing.is_fresh(SystemTime::now(), FRESH) {
            return Ok(listing);
        }
        for _ in 0..MAX_LOOKS {
            std::thread::sleep(SETTLE);
            let again = self.look(directory)?;
            if again == listing {
                return Ok(listing);
            }
            listing = again;
        }
        Err(DefinitionsError::Unsettled {
            source_dir: directory.to_owned(),
        })
    }

    /// Loads and checks a copy, and makes it a generation. Nothing is left of one that
    /// cannot be used.
    fn admit(
        &self,
        copy: Copy,
        listing: &Listing,
    ) -> Result<(Manifest, Arc<EngineSet>), DefinitionsError> {
        let origin = copy.manifest.origin.display().to_string();
        let loaded = self
            .load(&copy.manifest, &|engine| copy.engine_folder(engine))
            .and_then(|set| {
                self.check.run(&set, listing, &origin)?;
                Ok(set)
            });
        match loaded {
            Ok(set) => Ok((self.store.admit(copy)?, set)),
            Err(error) => {
                let error = named_as_in_source(error, &copy, listing);
                self.store.discard(&copy)?;
                Err(error)
            }
        }
    }

    fn load_kept(&self, manifest: &Manifest) -> Result<Arc<EngineSet>, DefinitionsError> {
        self.store.verify(manifest)?;
        let number = manifest.generation;
        self.load(manifest, &|engine| self.store.engine_folder(number, engine))
    }

    /// Starts the engines of a generation that do not run with the same definitions
    /// already, one after the other, and sees each find its canary.
    fn load(
        &self,
        manifest: &Manifest,
        folder: &dyn Fn(EngineKind) -> PathBuf,
    ) -> Result<Arc<EngineSet>, DefinitionsError> {
        let running = self.running.upgrade();
        let mut engines = Vec::new();
        let mut lists = HashLists::default();
        for part in &manifest.engines {
            let folder = folder(part.engine);
            let Some(command) = part.engine.command(&folder, &self.place) else {
                lists = HashLists::load(&folder).map_err(|error| DefinitionsError::Engine {
                    engine: part.engine.name(),
                    detail: error.to_string(),
                })?;
                continue;
            };
            let same = |engine: &&Arc<Engine>| {
                engine.kind() == part.engine && engine.fingerprint() == part.fingerprint
            };
            let unchanged = running
                .as_ref()
                .and_then(|running| running.engines().iter().find(same));
            engines.push(match unchanged {
                Some(engine) => Arc::clone(engine),
                None => {
                    let reserve = self.place.reserve;
                    Engine::start(part.engine, part.fingerprint, command, reserve)
                        .map_err(|error| failed(part.engine, &error))?
                }
            });
        }
        let version = |engine: &Arc<Engine>| (engine.kind(), engine.version().to_owned());
        let versions = engines.iter().map(version).collect();
        let generations = self.generations(manifest, &versions);
        let set = EngineSet::new(manifest.generation, generations, engines);
        Ok(Arc::new(set.with_lists(lists)))
    }

    /// A set that was loaded is the active generation's: what has to be loaded again
    /// is loaded from there.
    fn in_force(&mut self, manifest: Manifest, set: &Arc<EngineSet>) {
        for engine in set.engines() {
            let folder = self.store.engine_folder(manifest.generation, engine.kind());
            if let Some(command) = engine.kind().command(&folder, &self.place) {
                engine.moved(command);
            }
            let version = engine.version().to_owned();
            self.versions.insert(engine.kind(), version);
        }
        self.running = Arc::downgrade(set);
        self.active = Some(manifest);
    }
}

/// The fingerprint of definitions with this program's version, their engine's, and what it
/// is told.
fn configured(definitions: [u8; 16], version: &str, settings: &[String]) -> [u8; 16] {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&definitions);
    let told = settings.iter().map(String::as_str);
    for part in [OWN_VERSION, version].into_iter().chain(told) {
        hasher.update(&(part.len() as u64).to_le_bytes());
        hasher.update(part.as_bytes());
    }
    let mut bytes = [0; 16];
    hasher.finalize_xof().fill(&mut bytes);
    bytes
}

fn failed(engine: EngineKind, error: &StartError) -> DefinitionsError {
    DefinitionsError::Engine {
        engine: engine.name(),
        detail: match error {
            StartError::Program { .. } => {
                let program = engine.program().unwrap_or_default();
                format!("{error}; set helpers_dir to where {program} is")
            }
            other => other.to_string(),
        },
    }
}

/// Engines know the copies; people know the files that they wrote.
fn named_as_in_source(error: DefinitionsError, copy: &Copy, listing: &Listing) -> DefinitionsError {
    let DefinitionsError::Engine { engine, mut detail } = error else {
        return error;
    };
    // Longest names first: one may be the beginning of another.
    let mut files: Vec<_> = listing
        .files
        .iter()
        .filter(|file| file.engine.name() == engine)
        .collect();
    files.sort_by_key(|file| std::cmp::Reverse(file.stored.len()));
    for file in files {
        let stored = copy.engine_folder(file.engine).join(&file.stored);
        let stored = stored.display().to_string();
        detail = detail.replace(&stored, &file.path.display().to_string());
    }
    DefinitionsError::Engine { engine, detail }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_definitions_versions_and_settings_are_other_fingerprints() {
        let settings = |settings: &[&str]| settings.iter().map(|&one| one.to_owned()).collect();
        let of = |definitions, version: &str, told: Vec<String>| {
            configured([definitions; 16], version, &told)
        };
        let base = of(1, "1.4.2", settings(&["a=1", "b=2"]));
        assert_eq!(base, of(1, "1.4.2", settings(&["a=1", "b=2"])));
        assert_ne!(base, of(2, "1.4.2", settings(&["a=1", "b=2"])));
        assert_ne!(base, of(1, "1.4.3", settings(&["a=1", "b=2"])));
        assert_ne!(base, of(1, "1.4.2", settings(&["a=1", "b=3"])));
        assert_ne!(base, of(1, "1.4.2", settings(&["a=1b=2"])));
        assert_ne!(of(1, "", Vec::new()), [1; 16], "our own version counts");
    }
}
