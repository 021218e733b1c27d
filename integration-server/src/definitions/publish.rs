//! The documents of a new version. Pure: keys, contents and time are arguments.

use std::time::Duration;

use jiff::Timestamp;
use palisade_repository::keys::{SigningKey, sign};
use palisade_repository::reading::{self, Documents};
use palisade_repository::roles::{self, Signers};
use palisade_repository::{Contents, RepositoryError};

const DAY: u64 = 24 * 3600;
/// How long a root is valid.
pub const ROOT_FOR: Duration = Duration::from_secs(3650 * DAY);
/// How long targets are valid: a publisher elsewhere signs as seldom as once a year.
pub const TARGETS_FOR: Duration = Duration::from_secs(400 * DAY);

/// The documents of a version, signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Version {
    /// Its number.
    pub number: u64,
    /// The targets' number, and their document.
    pub targets: (u64, Vec<u8>),
    /// The snapshot's document.
    pub snapshot: Vec<u8>,
    /// The timestamp's document.
    pub timestamp: Vec<u8>,
}

/// The number after one: seconds since 1970, so that a repository that was put back from
/// an old backup goes on above what it had.
pub fn next_number(last: u64, now: Timestamp) -> u64 {
    let now = u64::try_from(now.as_second()).unwrap_or(0);
    last.saturating_add(1).max(now)
}

/// When something ends that is valid for so long.
pub fn until(now: Timestamp, lasts: Duration) -> Timestamp {
    now.checked_add(lasts).unwrap_or(Timestamp::MAX)
}

/// The first root.
///
/// # Errors
/// [`RepositoryError`].
pub fn first_root(
    publisher: &SigningKey,
    online: &SigningKey,
    now: Timestamp,
) -> Result<Vec<u8>, RepositoryError> {
    let signers = Signers {
        publisher: publisher.public().clone(),
        online: online.public().clone(),
    };
    let root = roles::root(1, until(now, ROOT_FOR), &signers);
    sign(&root, &[publisher])
}

/// Targets that say this.
///
/// # Errors
/// [`RepositoryError`].
pub fn targets(
    number: u64,
    contents: &Contents,
    publisher: &SigningKey,
    now: Timestamp,
) -> Result<Vec<u8>, RepositoryError> {
    contents.check()?;
    let targets = roles::targets(number, until(now, TARGETS_FOR), contents);
    let document = sign(&targets, &[publisher])?;
    if document.len() as u64 > reading::MAX_TARGETS_BYTES {
        return Err(RepositoryError::Contents(
            "the list of all files is too long; keep fewer generations".to_owned(),
        ));
    }
    Ok(document)
}

/// The version with these targets.
///
/// # Errors
/// [`RepositoryError`].
pub fn version(
    number: u64,
    targets: (u64, Vec<u8>),
    online: &SigningKey,
    (now, lasts): (Timestamp, Duration),
) -> Result<Version, RepositoryError> {
    // The snapshot may be as old as the targets: that it is current says the timestamp.
    let snapshot = roles::snapshot(number, until(now, TARGETS_FOR), (targets.0, &targets.1));
    let snapshot = sign(&snapshot, &[online])?;
    let timestamp = roles::timestamp(number, until(now, lasts), (number, &snapshot));
    Ok(Version {
        number,
        targets,
        snapshot,
        timestamp: sign(&timestamp, &[online])?,
    })
}

impl Version {
    /// What a reader gets who follows these roots.
    ///
    /// # Errors
    /// What he would refuse.
    pub fn verify(&self, roots: &[Vec<u8>], now: Timestamp) -> Result<Contents, RepositoryError> {
        let documents = Documents {
            roots,
            timestamp: &self.timestamp,
            snapshot: &self.snapshot,
            targets: &self.targets.1,
        };
        reading::verify(documents, now)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use palisade_repository::{FileInfo, Generation};
    use proptest::prelude::*;

    use super::*;

    fn key() -> SigningKey {
        SigningKey::from_pkcs8(&SigningKey::generate().unwrap()).unwrap()
    }

    fn generation(byte: u8) -> Generation {
        Generation {
            added_ms: 1,
            origin: "somewhere".to_owned(),
            files: BTreeMap::from([(
                format!("{byte}.ndb"),
                FileInfo {
                    sha256: [byte; 32],
                    length: byte.into(),
                },
            )]),
        }
    }

    fn now() -> Timestamp {
        Timestamp::from_second(1_800_000_000).unwrap()
    }

    #[test]
    fn a_reader_gets_what_was_published_and_nothing_of_other_keys() {
        let (publisher, online, other) = (key(), key(), key());
        let root = first_root(&publisher, &online, now()).unwrap();
        let (number, contents) = Contents::default().with(generation(7), true, 5).unwrap();
        assert_eq!(number, 1);
        let lasts = Duration::from_secs(60);
        let made = |publisher: &SigningKey, online: &SigningKey| {
            let document = targets(5, &contents, publisher, now()).unwrap();
            version(5, (5, document), online, (now(), lasts)).unwrap()
        };
        let good = made(&publisher, &online);
        let roots = [root];
        assert_eq!(good.verify(&roots, now()).unwrap(), contents);
        assert!(made(&other, &online).verify(&roots, now()).is_err());
        assert!(made(&publisher, &other).verify(&roots, now()).is_err());
        // Whoever has the server's key alone signs no targets.
        assert!(made(&online, &online).verify(&roots, now()).is_err());
        let late = until(now(), lasts * 2);
        assert!(good.verify(&roots, late).is_err());
        let mut changed = good;
        changed.targets.1 = targets(5, &Contents::default(), &publisher, now()).unwrap();
        assert!(changed.verify(&roots, now()).is_err());
    }

    proptest! {
        #[test]
        fn what_is_kept_is_bounded_and_what_is_wanted_stays(
            wanted in proptest::collection::vec(any::<bool>(), 1..40),
            keep in 1_usize..20,
        ) {
            let mut contents = Contents::default();
            let mut last = 0;
            for (byte, want) in (1_u8..).zip(wanted) {
                let before = contents.wanted;
                let (number, next) = contents.with(generation(byte), want, keep).unwrap();
                prop_assert_eq!(number, last + 1);
                last = number;
                prop_assert_eq!(next.wanted, if want { number } else { before });
                prop_assert!(next.wanted == 0 || next.generations.contains_key(&next.wanted));
                prop_assert!(before == 0 || next.generations.contains_key(&before));
                prop_assert!(next.generations.len() <= keep.clamp(3, 16));
                contents = next;
            }
        }

        #[test]
        fn numbers_only_grow(last in 0_u64..1 << 40, now in 0_i64..1 << 40) {
            let now = Timestamp::from_second(now.min(100_000_000_000)).unwrap();
            prop_assert!(next_number(last, now) > last);
        }
    }
}
