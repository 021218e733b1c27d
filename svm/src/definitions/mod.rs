//! Definitions: generations of signatures and rules, and which one is in force.
//!
//! ```text
//!  source ──listing──► changed? ──copy──► generation n ──engines load──► canary ──► in force
//!    ▲                    │ no               │ same bytes    │ malformed
//!    └── start, SIGHUP, ──┘                  └─► discarded ◄─┘  error with file and line;
//!        every poll_s                                           the one before stays
//! ```
//!
//! | module | owns |
//! | --- | --- |
//! | [`source`] | what the source directory holds, and copying it |
//! | [`store`] | generations on disk; which is active, which was before |
//! | this | the steps above, and when they run |
//!
//! Does not own running engines ([`crate::scan`]); it hands a set of loaded ones
//! over, and scans in flight keep the set that they began with.

pub mod source;
pub mod store;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use palisade_protocol::bounded::{List, Text};
use palisade_protocol::verdict::{EngineGeneration, Generation, Generations};
use palisade_worker::client::StartError;

use crate::engine::{EngineKind, Place};
use crate::hash_lists::HashLists;
use crate::scan::crew::Reserve;
use crate::scan::engines::{Engine, EngineSet};
use crate::settings::{Folders, Settings};
use source::Listing;
use store::{Manifest, Store};

/// Why definitions cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DefinitionsError {
    /// No source is set, and no generation is on disk.
    #[error(
        "there are no definitions: set definitions.source in {settings} to a directory with \
         ClamAV databases (.cvd .cld .ndb .hdb …) or YARA rules (.yar .yara)"
    )]
    NoSource {
        /// The settings file.
        settings: String,
    },
    /// The source holds nothing that finds anything.
    #[error(
        "{path} holds no definitions: put ClamAV databases (.cvd .cld .ndb .hdb …) or YARA rules \
         (.yar .yara) there, or set definitions.source to where they are", path = path.display()
    )]
    Empty {
        /// The source.
        path: PathBuf,
    },
    /// The source, or something in it, cannot be read.
    #[error("{path}: {error}; check definitions.source, and who may read it", path = path.display())]
    Source {
        /// What.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// The source is larger than it may be.
    #[error(
        "{source_dir} holds {bytes} bytes of definitions, and definitions.max_size is {max}",
        source_dir = source_dir.display()
    )]
    TooLarge {
        /// The source.
        source_dir: PathBuf,
        /// Its bytes.
        bytes: u64,
        /// The bound, in bytes.
        max: u64,
    },
    /// The source has more entries than are looked at.
    #[error("{source_dir} has more than {max} entries; this is no directory of definitions", source_dir = source_dir.display())]
    TooMany {
        /// The source.
        source_dir: PathBuf,
        /// The bound.
        max: usize,
    },
    /// Two files would have one name.
    #[error("{path}: another file has the same name in one folder; rename one", path = path.display())]
    SameName {
        /// One of them.
        path: PathBuf,
    },
    /// The generations' folder cannot be used.
    #[error("{path}: {error}", path = path.display())]
    Store {
        /// What.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// An engine does not start with them.
    #[error("{engine}: {detail}")]
    Engine {
        /// Which engine.
        engine: &'static str,
        /// File, line and reason of each problem.
        detail: String,
    },
}

/// What a look at the source came to.
#[derive(Debug)]
pub enum Refreshed {
    /// Nothing changed, or nothing that can be used.
    Unchanged,
    /// These engines are loaded, and their generation is active on disk.
    Activated(Arc<EngineSet>),
}

/// Drives generations. One owner; its steps block for seconds.
#[derive(Debug)]
pub struct Keeper {
    store: Store,
    source: Option<PathBuf>,
    extra: Vec<PathBuf>,
    settings_file: String,
    max_bytes: u64,
    place: Place,
    active: Option<Manifest>,
    /// What the source held at the last look, good or bad.
    seen: Option<Listing>,
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
    ) -> Result<Self, DefinitionsError> {
        Ok(Self {
            store: Store::open(&folders.state.join("definitions"))?,
            source: settings.definitions.source.clone(),
            extra: settings.definitions.extra.clone(),
            settings_file: settings_file.display().to_string(),
            max_bytes: settings.definitions.max_size.0,
            place: Place {
                helpers: folders.helpers.clone(),
                scratch: folders.scratch(),
                load_timeout: Duration::from_secs(settings.definitions.load_timeout_s.into()),
                max_scan_bytes: settings.scan.max_scan_size.0,
                clamav: settings.engines.clamav.arguments(),
                workers: settings.scan.confinement(),
                reserve: Reserve::for_lanes(settings.workers()),
            },
            active: None,
            seen: None,
        })
    }

    /// Loads what the first scans are done with: the source, if it is usable and
    /// new, or else the generation that was active before.
    ///
    /// # Errors
    /// [`DefinitionsError`] when neither can be used.
    pub fn start(&mut self) -> Result<Arc<EngineSet>, DefinitionsError> {
        let on_disk = self.store.candidates();
        self.active = on_disk.first().cloned();
        match self.refresh() {
            Ok(Refreshed::Activated(set)) => return Ok(set),
            Ok(Refreshed::Unchanged) => {}
            Err(error) if on_disk.is_empty() => return Err(error),
            Err(error) => tracing::error!(
                %error,
                "the definitions' source cannot be used; the last good generation stays in force"
            ),
        }
        let mut failure = None;
        for manifest in on_disk {
            match self.load(&manifest) {
                Ok(set) => {
                    self.store.activate(&manifest)?;
                    self.active = Some(manifest);
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
            Refreshed::Activated(set) => Ok(set),
            Refreshed::Unchanged => Err(failure.unwrap_or_else(|| DefinitionsError::NoSource {
                settings: self.settings_file.clone(),
            })),
        }
    }

    /// Looks at the source; if it changed, loads it and makes it active.
    ///
    /// # Errors
    /// [`DefinitionsError`], once for each change; what was active stays so.
    pub fn refresh(&mut self) -> Result<Refreshed, DefinitionsError> {
        let Some(source) = self.source.clone() else {
            return match &self.active {
                Some(_) => Ok(Refreshed::Unchanged),
                None => Err(DefinitionsError::NoSource {
                    settings: self.settings_file.clone(),
                }),
            };
        };
        let listing = Listing::of(&source, &self.extra, self.max_bytes)?;
        if self.seen.as_ref() == Some(&listing) {
            return Ok(Refreshed::Unchanged);
        }
        self.seen = Some(listing.clone());
        if !listing.is_usable() {
            return Err(DefinitionsError::Empty { path: source });
        }
        let staged = match self.store.stage(&listing, self.active.as_ref()) {
            Ok(staged) => staged,
            Err(error) => {
                // Somebody may be writing there: the next look tries again.
                self.seen = None;
                return Err(error);
            }
        };
        if self
            .active
            .as_ref()
            .is_some_and(|active| active.same_definitions(&staged))
        {
            self.store.discard(&staged)?;
            return Ok(Refreshed::Unchanged);
        }
        let loaded = self.load(&staged).and_then(|set| {
            self.store.activate(&staged)?;
            Ok(set)
        });
        match loaded {
            Ok(set) => {
                self.active = Some(staged);
                Ok(Refreshed::Activated(set))
            }
            Err(error) => {
                self.store.discard(&staged)?;
                Err(named_as_in_source(error, &self.store, &staged, &listing))
            }
        }
    }

    /// Starts every engine of a generation, and sees each find its canary.
    fn load(&self, manifest: &Manifest) -> Result<Arc<EngineSet>, DefinitionsError> {
        let mut engines = Vec::new();
        let mut lists = HashLists::default();
        for engine in &manifest.engines {
            let folder = self.store.engine_folder(manifest.generation, engine.engine);
            let Some(command) = engine.engine.command(&folder, &self.place) else {
                lists = HashLists::load(&folder).map_err(|error| DefinitionsError::Engine {
                    engine: engine.engine.name(),
                    detail: error.to_string(),
                })?;
                continue;
            };
            let started =
                Engine::start(engine.engine, command, self.place.reserve).map_err(|error| {
                    DefinitionsError::Engine {
                        engine: engine.engine.name(),
                        detail: match error {
                            StartError::Program { .. } => format!(
                                "{error}; set helpers_dir to where {} is",
                                engine.engine.program().unwrap_or_default()
                            ),
                            other => other.to_string(),
                        },
                    }
                })?;
            engines.push(started);
        }
        let set = EngineSet::new(
            manifest.generation,
            generations(manifest, &self.place),
            engines,
        );
        Ok(Arc::new(set.with_lists(lists)))
    }
}

fn generations(manifest: &Manifest, place: &Place) -> Generations {
    List::cut(manifest.engines.iter().map(|engine| EngineGeneration {
        engine: Text::cut(engine.engine.name()),
        generation: Generation(engine.generation),
        fingerprint: configured(engine.fingerprint, &engine.engine.settings(place)),
    }))
}

/// The fingerprint of definitions with what their engine is told: a verdict by other
/// limits is another verdict.
fn configured(definitions: [u8; 16], settings: &[String]) -> [u8; 16] {
    if settings.is_empty() {
        return definitions;
    }
    let mut hasher = blake3::Hasher::new();
    hasher.update(&definitions);
    for setting in settings {
        hasher.update(&(setting.len() as u64).to_le_bytes());
        hasher.update(setting.as_bytes());
    }
    let mut bytes = [0; 16];
    hasher.finalize_xof().fill(&mut bytes);
    bytes
}

/// Engines know the copies; people know the files that they wrote.
fn named_as_in_source(
    error: DefinitionsError,
    store: &Store,
    staged: &Manifest,
    listing: &Listing,
) -> DefinitionsError {
    let DefinitionsError::Engine { engine, mut detail } = error else {
        return error;
    };
    let Some(kind) = EngineKind::ALL
        .into_iter()
        .find(|kind| kind.name() == engine)
    else {
        return DefinitionsError::Engine { engine, detail };
    };
    let folder = store.engine_folder(staged.generation, kind);
    // Longest names first: one may be the beginning of another.
    let mut files: Vec<_> = listing
        .files
        .iter()
        .filter(|file| file.engine == kind)
        .collect();
    files.sort_by_key(|file| std::cmp::Reverse(file.stored.len()));
    for file in files {
        let copy = folder.join(&file.stored).display().to_string();
        detail = detail.replace(&copy, &file.path.display().to_string());
    }
    DefinitionsError::Engine { engine, detail }
}
