//! A reader's bounds, and a whole set of metadata checked at once.

use jiff::Timestamp;

use crate::tuf::{Metadata, Repository, Root, Targets, TrustedMetadataSet, Updater, UpdaterConfig};
use crate::{Contents, RepositoryError, crypto};

/// Largest root, in bytes.
pub const MAX_ROOT_BYTES: u64 = 64 * 1024;
/// Largest timestamp, in bytes.
pub const MAX_TIMESTAMP_BYTES: u64 = 16 * 1024;
/// Largest snapshot, in bytes.
pub const MAX_SNAPSHOT_BYTES: u64 = 16 * 1024;
/// Largest targets, in bytes: 16 generations of 4,096 files with short names.
pub const MAX_TARGETS_BYTES: u64 = 16 * 1024 * 1024;
/// Most changes of the root that are followed at a time.
pub const MAX_ROOT_CHANGES: u32 = 64;

fn bounds() -> UpdaterConfig {
    let mut bounds = UpdaterConfig::default();
    bounds.root_max_length = MAX_ROOT_BYTES;
    bounds.timestamp_max_length = MAX_TIMESTAMP_BYTES;
    bounds.snapshot_max_length = MAX_SNAPSHOT_BYTES;
    bounds.targets_max_length = MAX_TARGETS_BYTES;
    bounds.max_root_rotations = MAX_ROOT_CHANGES;
    // There are none, and so none is looked for.
    bounds.max_delegations = 1;
    bounds
}

/// A reader that trusts this root and what it leads to.
///
/// # Errors
/// The root is none, or not signed by itself.
pub fn reader(
    repository: impl Repository + 'static,
    root: &[u8],
) -> Result<Updater, RepositoryError> {
    crypto::install();
    Ok(Updater::new(repository, root)?.with_config(bounds()))
}

/// The root in this document, if it is signed by itself.
///
/// # Errors
/// What is wrong with it.
pub fn root(document: &[u8]) -> Result<Root, RepositoryError> {
    crypto::install();
    Ok(TrustedMetadataSet::from_root(document)?.root().clone())
}

/// What is in targets that nobody has verified.
///
/// # Errors
/// What is wrong with them.
pub fn unverified_targets(document: &[u8]) -> Result<Targets, RepositoryError> {
    crypto::install();
    Ok(Metadata::<Targets>::from_slice(document)?.into_signed())
}

/// What targets say, if they are signed as this root wants it.
///
/// # Errors
/// What is wrong with them.
pub fn signed_targets(
    document: &[u8],
    root: &Root,
) -> Result<(Targets, Contents), RepositoryError> {
    crypto::install();
    let targets = Metadata::<Targets>::from_slice(document)?;
    let signers = root
        .role("targets")
        .ok_or_else(|| RepositoryError::Contents("the root names no role targets".to_owned()))?;
    targets.verify_threshold(&root.keys, signers, "targets")?;
    let targets = targets.into_signed();
    let contents = Contents::of(&targets)?;
    Ok((targets, contents))
}

/// The documents of a repository.
#[derive(Debug, Clone, Copy)]
pub struct Documents<'a> {
    /// The root that is trusted, and those that follow it.
    pub roots: &'a [Vec<u8>],
    /// The timestamp.
    pub timestamp: &'a [u8],
    /// The snapshot.
    pub snapshot: &'a [u8],
    /// The targets.
    pub targets: &'a [u8],
}

/// What a reader who trusts the first root gets of these documents at this moment.
///
/// # Errors
/// What he would refuse.
pub fn verify(documents: Documents<'_>, now: Timestamp) -> Result<Contents, RepositoryError> {
    crypto::install();
    let (first, others) = documents
        .roots
        .split_first()
        .ok_or_else(|| RepositoryError::Contents("there is no root".to_owned()))?;
    let mut trusted = TrustedMetadataSet::from_root(first)?;
    for root in others {
        trusted.update_root(root)?;
    }
    trusted.check_root_expired(now)?;
    trusted.update_timestamp(documents.timestamp, now)?;
    trusted.update_snapshot(documents.snapshot, now)?;
    Contents::of(trusted.update_targets(documents.targets, now)?)
}
