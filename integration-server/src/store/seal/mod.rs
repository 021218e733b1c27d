//! Values that nobody reads without the master key.
//!
//! ```text
//!   master key (outside the store) ─wraps─► data keys (table data_keys) ─seal─► values
//!                                         └► index key ─► what is found by equality
//! ```
//!
//! Owns how a value is sealed, opened and found; does not own which values are
//! ([`catalog`]) or where the master key is ([`master`]).
//!
//! AES-256-GCM, as in the agent's quarantine. Each value has a key of its own, derived
//! from the data key and half of a random nonce: so many values go under one data key
//! that 96 random bits alone would repeat. The table, the column and the row are
//! authenticated with it: a value that is moved to another place does not open.
//!
//! ```text
//!   version 1 byte │ data key 4 bytes │ salt 24 bytes │ nonce 12 bytes │ sealed │ tag 16
//! ```

pub mod catalog;
pub mod master;

use std::collections::BTreeMap;

use ring::aead::{AES_256_GCM, Aad, LessSafeKey, MAX_TAG_LEN, NONCE_LEN, Nonce, UnboundKey};
use ring::rand::{SecureRandom as _, SystemRandom};

/// The form of a sealed value.
const VERSION: u8 = 1;
/// Bytes of a data key's number.
const NUMBER_LEN: usize = 4;
/// Random bytes that a value's own key is derived with.
const SALT_LEN: usize = 24;
/// Bytes before what is sealed.
const HEAD_LEN: usize = 1 + NUMBER_LEN + SALT_LEN + NONCE_LEN;

/// A key of 256 bits, which no message shows.
#[derive(Clone, PartialEq, Eq)]
pub struct Key([u8; 32]);

impl Key {
    /// These bytes as a key.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// A new one.
    ///
    /// # Errors
    /// [`Unsealed::Randomness`].
    pub fn random() -> Result<Self, Unsealed> {
        random().map(Self)
    }

    /// Its bytes: to be written where it is kept, and nowhere else.
    pub fn bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(…)")
    }
}

/// Why a value cannot be sealed or opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unsealed {
    /// It is not what this place and key sealed.
    #[error("it was changed or moved, or was sealed with another key")]
    Changed,
    /// Its key is not among those that were read at start.
    #[error(
        "it was sealed with data key {0}, which is newer than this server's start; restart the server"
    )]
    UnknownKey(u32),
    /// The system gives no random numbers.
    #[error("the system gives no random numbers")]
    Randomness,
}

/// The store's keys, opened.
#[derive(Debug, Clone)]
pub struct Seals {
    // By number; the last one seals.
    values: BTreeMap<u32, Key>,
    index: Key,
}

impl Seals {
    /// These keys; the one with the highest number seals.
    pub fn new(values: BTreeMap<u32, Key>, index: Key) -> Self {
        Self { values, index }
    }

    /// The same with one more key, which seals from now on.
    #[must_use]
    pub fn with(mut self, number: u32, key: Key) -> Self {
        self.values.insert(number, key);
        self
    }

    /// One of the keys that seal values.
    pub fn key(&self, number: u32) -> Option<&Key> {
        self.values.get(&number)
    }

    /// The key of what is found by equality.
    pub fn index_key(&self) -> &Key {
        &self.index
    }

    /// The place of a row's values.
    pub fn seat<'a>(&'a self, table: &'static str, row: impl Into<String>) -> Seat<'a> {
        Seat {
            seals: self,
            table,
            row: row.into(),
        }
    }

    /// What a value is found by: the same for the same value of the same column, and
    /// nothing to whoever lacks the key.
    pub fn index(&self, table: &str, column: &str, value: &[u8]) -> Vec<u8> {
        let mut hasher = blake3::Hasher::new_keyed(&self.index.0);
        for part in [table.as_bytes(), b"\0", column.as_bytes(), b"\0", value] {
            hasher.update(part);
        }
        hasher.finalize().as_bytes().to_vec()
    }
}

/// One row of one table.
#[derive(Debug, Clone)]
pub struct Seat<'a> {
    seals: &'a Seals,
    table: &'static str,
    row: String,
}

impl Seat<'_> {
    /// Seals a value of a column.
    ///
    /// # Errors
    /// [`Unsealed`].
    pub fn seal(&self, column: &str, value: &[u8]) -> Result<Vec<u8>, Unsealed> {
        let (number, key) = self
            .seals
            .values
            .last_key_value()
            .ok_or(Unsealed::UnknownKey(0))?;
        seal(key, *number, &self.place(column), value)
    }

    /// Seals a value that may be absent.
    ///
    /// # Errors
    /// [`Unsealed`].
    pub fn seal_some<V: AsRef<[u8]>>(
        &self,
        column: &str,
        value: Option<V>,
    ) -> Result<Option<Vec<u8>>, Unsealed> {
        value
            .map(|value| self.seal(column, value.as_ref()))
            .transpose()
    }

    /// Opens what was sealed here.
    ///
    /// # Errors
    /// [`Unsealed`].
    pub fn open(&self, column: &str, sealed: &[u8]) -> Result<Vec<u8>, Unsealed> {
        let number = number(sealed).ok_or(Unsealed::Changed)?;
        let key = self.seals.values.get(&number);
        let key = key.ok_or(Unsealed::UnknownKey(number))?;
        open(key, &self.place(column), sealed)
    }

    /// Names end with a NUL, which none of them holds: no two places are written alike.
    fn place(&self, column: &str) -> Vec<u8> {
        [self.table, column, &self.row].join("\0").into_bytes()
    }
}

fn number(sealed: &[u8]) -> Option<u32> {
    match sealed.split_first_chunk::<{ 1 + NUMBER_LEN }>()?.0 {
        [VERSION, number @ ..] => Some(u32::from_le_bytes(*number)),
        _ => None,
    }
}

/// Seals a value under a key of its own.
fn seal(key: &Key, number: u32, place: &[u8], value: &[u8]) -> Result<Vec<u8>, Unsealed> {
    let salt: [u8; SALT_LEN] = random()?;
    let nonce: [u8; NONCE_LEN] = random()?;
    let mut out = Vec::with_capacity(HEAD_LEN + value.len() + MAX_TAG_LEN);
    out.push(VERSION);
    out.extend(number.to_le_bytes());
    out.extend(salt);
    out.extend(nonce);
    let mut sealed = value.to_vec();
    own_key(key, &salt)?
        .seal_in_place_append_tag(
            Nonce::assume_unique_for_key(nonce),
            Aad::from(place),
            &mut sealed,
        )
        .map_err(|_| Unsealed::Changed)?;
    out.append(&mut sealed);
    Ok(out)
}

fn open(key: &Key, place: &[u8], sealed: &[u8]) -> Result<Vec<u8>, Unsealed> {
    let salt = sealed
        .get(1 + NUMBER_LEN..)
        .and_then(|rest| rest.first_chunk::<SALT_LEN>());
    let nonce = sealed
        .get(1 + NUMBER_LEN + SALT_LEN..)
        .and_then(|rest| rest.first_chunk::<NONCE_LEN>());
    let (Some(salt), Some(nonce)) = (salt, nonce) else {
        return Err(Unsealed::Changed);
    };
    let mut value = sealed.get(HEAD_LEN..).unwrap_or_default().to_vec();
    let length = own_key(key, salt)?
        .open_in_place(
            Nonce::assume_unique_for_key(*nonce),
            Aad::from(place),
            &mut value,
        )
        .map_err(|_| Unsealed::Changed)?
        .len();
    value.truncate(length);
    Ok(value)
}

fn own_key(key: &Key, salt: &[u8; SALT_LEN]) -> Result<LessSafeKey, Unsealed> {
    let own = blake3::keyed_hash(&key.0, salt);
    UnboundKey::new(&AES_256_GCM, own.as_bytes())
        .map(LessSafeKey::new)
        .map_err(|_| Unsealed::Changed)
}

fn random<const N: usize>() -> Result<[u8; N], Unsealed> {
    let mut bytes = [0; N];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| Unsealed::Randomness)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn seals(first: u8) -> Seals {
        let values = [(1, Key::new([first; 32]))].into();
        Seals::new(values, Key::new([9; 32]))
    }

    proptest! {
        #[test]
        fn what_was_sealed_opens_in_its_place_alone(
            value in proptest::collection::vec(any::<u8>(), 0..200),
            row in "[a-z0-9/]{0,8}",
            other in "[a-z0-9/]{0,8}",
            at in any::<prop::sample::Index>(),
            flip in 1_u8..,
        ) {
            let seals = seals(1);
            let seat = seals.seat("agents", row.as_str());
            let sealed = seat.seal("name", &value).unwrap();
            // The control: untouched, in its place.
            prop_assert_eq!(seat.open("name", &sealed).unwrap(), value.clone());
            prop_assert!(seat.open("hostname", &sealed).is_err());
            prop_assert!(seals.seat("svms", row.as_str()).open("name", &sealed).is_err());
            if other != row {
                prop_assert!(seals.seat("agents", other.as_str()).open("name", &sealed).is_err());
            }
            let mut changed = sealed.clone();
            changed[at.index(sealed.len())] ^= flip;
            prop_assert!(seat.open("name", &changed).is_err());
            prop_assert!(seat.open("name", &sealed[..at.index(sealed.len())]).is_err());
            prop_assert!(super::tests::seals(2).seat("agents", row.as_str()).open("name", &sealed).is_err());
            prop_assert!(seat.seal("name", &value).unwrap() != sealed, "never the same twice");
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            prop_assert!(seals(1).seat("agents", "x").open("name", &bytes).is_err());
        }

        #[test]
        fn an_index_is_of_its_value_and_column(a in ".{0,20}", b in ".{0,20}") {
            let seals = seals(1);
            let of = |column: &str, value: &str| seals.index("agents", column, value.as_bytes());
            prop_assert_eq!(of("name", &a) == of("name", &b), a == b);
            prop_assert_ne!(of("name", &a), of("product_uuid", &a));
        }
    }

    #[test]
    fn a_newer_key_seals_and_the_older_one_still_opens() {
        let old = seals(1);
        let sealed = old.seat("agents", "x").seal("name", b"guest").unwrap();
        let both = old.clone().with(2, Key::new([2; 32]));
        assert_eq!(
            both.seat("agents", "x").open("name", &sealed).unwrap(),
            b"guest"
        );
        let newer = both.seat("agents", "x").seal("name", b"guest").unwrap();
        assert_eq!(
            old.seat("agents", "x").open("name", &newer),
            Err(Unsealed::UnknownKey(2))
        );
    }
}
