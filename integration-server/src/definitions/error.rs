//! Why something about the repository cannot be done: each with the remedy.

use std::io;
use std::path::{Path, PathBuf};

use palisade_repository::RepositoryError;
use palisade_repository::files::WalkError;

use crate::store::StoreError;

/// Why something about the repository cannot be done.
#[derive(Debug, thiserror::Error)]
pub enum DefinitionsError {
    /// There is no such generation.
    #[error("there is no generation {0}; `palisade definitions list` shows those that are there")]
    NoGeneration(u64),
    /// Nothing is there to go back to.
    #[error("there is no generation before the wanted one; import another one")]
    NoPrevious,
    /// Nothing was published yet.
    #[error("there are no definitions yet; `palisade definitions import DIR` brings the first")]
    Nothing,
    /// The publisher's key is elsewhere.
    #[error(
        "this server does not hold the publisher's key: sign with it (`--key FILE`), on the machine where it is"
    )]
    KeyElsewhere,
    /// What was sent is not usable.
    #[error("{0}")]
    Refused(String),
    /// Somebody was faster.
    #[error("the definitions have changed meanwhile; look at them, and try again")]
    Outdated,
    /// Files of a generation are not there.
    #[error("{0} files of the generation have not been sent")]
    Missing(usize),
    /// A part does not go on where the file has come to.
    #[error("{have} bytes of the file are there; go on from there")]
    OutOfPlace {
        /// So many.
        have: u64,
    },
    /// It is more than may be.
    #[error(
        "the generation has {bytes} bytes, and {max} are allowed (definitions.max_mib in server.toml)"
    )]
    TooLarge {
        /// So many it has.
        bytes: u64,
        /// So many it may have.
        max: u64,
    },
    /// Too much was sent that no generation has.
    #[error("{loose} bytes were sent that no generation has; it is removed within the hour")]
    Loose {
        /// So many.
        loose: u64,
    },
    /// The disk is full.
    #[error("the disk of {path} is full; nothing was changed: make room there, and try again", path = path.display())]
    Full {
        /// The folder.
        path: PathBuf,
    },
    /// A file cannot be used.
    #[error("{path}: {source}", path = path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The watched directory cannot be used.
    #[error(transparent)]
    Walk(#[from] WalkError),
    /// What is on disk is not what was published.
    #[error(
        "the repository in {folder} is damaged ({why}); put the folder back from a backup, or begin a new one (docs/definitions.md)", folder = folder.display()
    )]
    Damaged {
        /// Which.
        folder: PathBuf,
        /// What is wrong.
        why: String,
    },
    /// The metadata cannot be made.
    #[error(transparent)]
    Repository(#[from] RepositoryError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What a file system's error means.
pub fn at(path: &Path) -> impl FnOnce(io::Error) -> DefinitionsError + use<> {
    let path = path.to_owned();
    move |source| match source.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            DefinitionsError::Full { path }
        }
        _ => DefinitionsError::File { path, source },
    }
}
