//! One pull: verified metadata, then the files of the wanted generation, then its folder.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use jiff::Timestamp;
use palisade_protocol::bounded::Text;
use palisade_protocol::pull::{Answer, What};
use palisade_repository::reading::{self, MAX_ROOT_BYTES};
use palisade_repository::{Contents, FileInfo, Generation, RepositoryError, chain};

use super::folder::{Folder, FolderError};
use super::transport::{Cut, Fetching, Source, WholeError, whole};

/// Why there is nothing new.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// The session ended; what came stays, and the next pull goes on from there.
    #[error(transparent)]
    Cut(#[from] Cut),
    /// The server offers no repository.
    #[error(
        "the Integration Server has no definitions yet; import some with `palisade definitions import DIR`"
    )]
    NothingOffered,
    /// The metadata is not signed, is old, or is not what it was.
    #[error(
        "what the Integration Server publishes is refused: {0}; if its repository was begun anew on purpose, this Protection Server must be set up anew, too (docs/definitions.md)"
    )]
    Refused(#[from] RepositoryError),
    /// The metadata is over its time.
    #[error(
        "what the Integration Server publishes is not current ({0}): its clock or this one's is wrong, its timestamps are not signed anew, or somebody holds newer ones back"
    )]
    Expired(RepositoryError),
    /// A file is not what was signed.
    #[error(
        "the Integration Server has other bytes of {name} than those that are signed; import the definitions again there"
    )]
    Tampered {
        /// The file.
        name: String,
    },
    /// A file is not there.
    #[error(
        "the Integration Server lacks {name} of generation {generation}; import it again there"
    )]
    Lacking {
        /// The file.
        name: String,
        /// Its generation.
        generation: u64,
    },
    /// The generation is larger than it may be.
    #[error(
        "generation {generation} has {bytes} bytes, and definitions.max_size of this Protection Server is {max}"
    )]
    TooLarge {
        /// Which.
        generation: u64,
        /// Its bytes.
        bytes: u64,
        /// The bound.
        max: u64,
    },
    /// The disk is full, or cannot be written.
    #[error("definitions cannot be kept here: {0}; make room, or mend the disk")]
    Disk(#[from] FolderError),
}

/// What a pull came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pulled {
    /// The wanted generation.
    pub generation: u64,
    /// Whether its folder is another one than before.
    pub changed: bool,
    /// Bytes of files that came for it.
    pub bytes: u64,
}

/// Pulls what is wanted now.
///
/// # Errors
/// [`PullError`]; what was wanted before stays.
pub async fn pull<S: Source>(
    source: &Arc<S>,
    folder: &Folder,
    max_bytes: u64,
    now: Timestamp,
) -> Result<Pulled, PullError> {
    let contents = metadata(source, folder, now).await?;
    let Some((number, generation)) = contents.wanted() else {
        return Err(PullError::NothingOffered);
    };
    if generation.bytes() > max_bytes {
        return Err(PullError::TooLarge {
            generation: number,
            bytes: generation.bytes(),
            max: max_bytes,
        });
    }
    let bytes = files(source.as_ref(), folder, number, generation).await?;
    let (folder, generation) = (folder.clone(), generation.clone());
    let changed = blocking(move || folder.want(number, &generation)).await?;
    Ok(Pulled {
        generation: number,
        changed,
        bytes,
    })
}

/// What the publisher says, verified by the roots that follow the pinned one.
async fn metadata<S: Source>(
    source: &Arc<S>,
    folder: &Folder,
    now: Timestamp,
) -> Result<Contents, PullError> {
    let pinned = match folder.pinned()? {
        Some(pinned) => pinned,
        None => first_root(source.as_ref(), folder).await?,
    };
    let cut = Arc::new(AtomicBool::new(false));
    let fetching = Fetching::new(Arc::clone(source), Arc::clone(&cut));
    let verified = folder.verified()?;
    let before = verified.versions();
    let mut reader = reading::reader(fetching, &pinned)?.with_store(Arc::clone(&verified));
    if let Err(error) = reader.refresh(now).await {
        return Err(match error {
            _ if cut.load(Ordering::Relaxed) => PullError::Cut(Cut),
            palisade_repository::tuf::Error::Expired { .. } => PullError::Expired(error.into()),
            error => PullError::Refused(error.into()),
        });
    }
    let targets = reader
        .trusted()
        .targets_role("targets")
        .ok_or(RepositoryError::Metadata(
            palisade_repository::tuf::Error::NotRefreshed,
        ))?;
    // The verifier looks at versions, too; what a publisher took back must not come again,
    // whatever it has forgotten. Only another root can begin below.
    let root = reader.trusted().root().version;
    if let Some((_, floor)) = before.filter(|(by, floor)| *by == root && targets.version < *floor) {
        let rollback = palisade_repository::tuf::Error::Rollback {
            role: "targets".to_owned(),
            trusted: floor,
            new: targets.version,
        };
        return Err(RepositoryError::Metadata(rollback).into());
    }
    let contents = Contents::of(targets)?;
    blocking(move || verified.commit()).await?;
    Ok(contents)
}

/// Nothing is trusted yet: the root of the session's own server is, from here on.
async fn first_root<S: Source>(source: &S, folder: &Folder) -> Result<Vec<u8>, PullError> {
    let what = What::Metadata(Text::cut("root.json"));
    let root = match whole(source, &what, MAX_ROOT_BYTES).await {
        Ok(Some(root)) => root,
        Ok(None) => return Err(PullError::NothingOffered),
        Err(WholeError::Cut(cut)) => return Err(cut.into()),
        Err(WholeError::TooLong) => {
            let why = format!("the root is over {MAX_ROOT_BYTES} bytes");
            return Err(RepositoryError::Contents(why).into());
        }
    };
    let read = reading::root(&root)?;
    folder.pin(&root)?;
    tracing::info!(
        version = read.version,
        "the root of the site's definitions is trusted from here on"
    );
    Ok(root)
}

/// Fetches files that are not here; says how many bytes came.
async fn files<S: Source>(
    source: &S,
    folder: &Folder,
    number: u64,
    generation: &Generation,
) -> Result<u64, PullError> {
    folder.forget_others(generation);
    let mut came = 0_u64;
    for (name, file) in &generation.files {
        if folder.has(file) {
            continue;
        }
        came = came.saturating_add(fetch(source, folder, number, (name, file)).await?);
    }
    Ok(came)
}

async fn fetch<S: Source>(
    source: &S,
    folder: &Folder,
    generation: u64,
    (name, file): (&str, &FileInfo),
) -> Result<u64, PullError> {
    let tampered = || PullError::Tampered {
        name: name.to_owned(),
    };
    let what = What::File(file.sha256);
    let begin = folder.come(file);
    let mut have = begin;
    while have < file.length {
        let (length, bytes) = match source.part(&what, have).await? {
            Answer::Part { length, bytes } => (length, bytes),
            Answer::Busy => return Err(Cut.into()),
            Answer::Absent => {
                return Err(PullError::Lacking {
                    name: name.to_owned(),
                    generation,
                });
            }
        };
        let after = have.saturating_add(bytes.len() as u64);
        // Nothing is written beyond what was signed, however much the server has.
        if length != file.length || bytes.is_empty() || after > file.length {
            return Err(tampered());
        }
        let (to, of) = (folder.clone(), *file);
        blocking(move || to.add(&of, &bytes)).await?;
        have = after;
    }
    let (to, of) = (folder.clone(), *file);
    match blocking(move || to.finish(&of)).await? {
        true => Ok(have - begin),
        false => Err(tampered()),
    }
}

/// Does something on a thread that may block.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, FolderError> + Send + 'static,
) -> Result<T, FolderError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => Err(FolderError {
            path: "a worker thread".into(),
            source: std::io::Error::other(error),
        }),
    }
}

impl PullError {
    /// The same in one sentence.
    pub fn sentence(&self) -> String {
        chain(self)
    }
}
