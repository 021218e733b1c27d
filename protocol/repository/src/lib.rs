//! The signed repository of definitions, as both of its ends see it.
//!
//! ```text
//!  publisher key ─► root, targets ─┐                      ┌─► targets: which generation is
//!                                  ├─► files of metadata ─┤    wanted, its files by SHA-256
//!  online key ─► snapshot, time ───┘   (TUF 1.0)          └─► files, fetched by their hash
//! ```
//!
//! Metadata, signatures and their verification are The Update Framework's, by
//! `sigstore-tuf`; which keys there are and what targets mean is said here.
//!
//! | module | owns |
//! | --- | --- |
//! | [`crypto`] | the library's hashes and signatures, by ring |
//! | [`keys`] | keys that sign, and signatures on a document |
//! | [`roles`] | the four roles' documents |
//! | [`contents`] | what targets say: generations, their files, which one is wanted |
//! | [`names`] | names of metadata files, and of files of definitions |
//! | [`files`] | what is a file of definitions, and a bounded walk through a directory |
//! | [`reading`] | a reader's bounds, and a whole set of metadata checked at once |
//!
//! Does not own files on disk or how they travel: the server's repository and the
//! Protection Server's follower do. **Invariant:** nothing here reads a clock.

#![forbid(unsafe_code)]

pub mod contents;
pub mod crypto;
pub mod files;
pub mod keys;
pub mod names;
pub mod reading;
pub mod roles;

pub use contents::{Contents, FileInfo, Generation};
pub use sigstore_tuf as tuf;

/// Why a repository's data cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RepositoryError {
    /// The metadata is not what it must be.
    #[error("{}", chain(.0))]
    Metadata(#[from] tuf::Error),
    /// The targets say something that is no list of generations.
    #[error("the signed list of definitions is not usable: {0}")]
    Contents(String),
    /// A key cannot be used.
    #[error("the signing key is not usable: {0}")]
    Key(&'static str),
    /// A document cannot be written or read as JSON.
    #[error("a document of the repository is not usable: {0}")]
    Json(#[from] serde_json::Error),
}

/// An error and its causes in one sentence.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        text.push_str(": ");
        text.push_str(&source.to_string());
        cause = source.source();
    }
    text
}
