//! Why definitions cannot be used: each with the object and the remedy.

use std::io;
use std::path::PathBuf;

/// Why definitions cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DefinitionsError {
    /// No source is set, and no generation is on disk.
    #[error(
        "there are no definitions: set definitions.source in {settings} to a directory with \
         ClamAV databases (.cvd .cld .ndb .hdb …) or YARA rules (.yar .yara), or let it follow \
         the site's repository (definitions.repository)"
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
    #[error("{path}: {error}{}", remedy(error), path = path.display())]
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
    /// The source does not keep still.
    #[error(
        "{source_dir} changes while it is copied; definitions are taken over when whoever writes \
         there is done", source_dir = source_dir.display()
    )]
    Unsettled {
        /// The source.
        source_dir: PathBuf,
    },
    /// The definitions call clean what is not.
    #[error(
        "these definitions do not find the EICAR test file, so they cannot be relied on for \
         anything; replace them by a whole set, or set definitions.require_eicar = false if a set \
         without its signature is meant"
    )]
    EicarMissed,
    /// The definitions find what is clean.
    #[error(
        "these definitions call {what} malware ({found}); take that signature out of {origin}, or \
         the file out of definitions.clean_corpus if it is no clean one"
    )]
    FalsePositive {
        /// Which clean content.
        what: String,
        /// The signature and its engine.
        found: String,
        /// Where the definitions are from.
        origin: String,
    },
    /// A scan with them came to no end.
    #[error("a check scan of {what} with these definitions failed: {detail}")]
    CheckFailed {
        /// Which content.
        what: String,
        /// What happened.
        detail: String,
    },
    /// The clean corpus cannot be read.
    #[error("{path}: {error}; check definitions.clean_corpus", path = path.display())]
    Corpus {
        /// What.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// There is no such generation.
    #[error("generation {generation} is not kept; {kept}")]
    NotKept {
        /// Which was asked for.
        generation: u64,
        /// A sentence with those that are.
        kept: String,
    },
    /// There is nothing to go back to.
    #[error(
        "there is no generation before the one in force; `palisade-scanserver definitions import \
         DIR` brings another"
    )]
    NoPrevious,
    /// A generation on disk is not what it was.
    #[error(
        "{path} is damaged: {detail}; activate another generation, or import the definitions again",
        path = path.display()
    )]
    Damaged {
        /// The generation's folder.
        path: PathBuf,
        /// What is wrong.
        detail: String,
    },
    /// No signature of this name is braked.
    #[error(
        "no signature {name} is reported only; `palisade-scanserver definitions status` names \
         those that are"
    )]
    NotBraked {
        /// The name.
        name: String,
    },
}

/// What helps against an error of the generations' folder, if that can be said.
fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "; the definitions in force stay; make room there, or lower definitions.keep, and import again"
        }
        io::ErrorKind::ReadOnlyFilesystem => {
            "; the definitions in force stay; mount it writable, and import again"
        }
        _ => "",
    }
}
