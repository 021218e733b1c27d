//! What makes a fragment on disk worthless to whoever has the disk.
//!
//! One AEAD key (AES-256-GCM) for each start of the daemon: made from the kernel's
//! randomness, held in memory alone, so that what a process leaves on a disk is noise
//! once it has ended. The associated data binds a fragment to its tenant, its chaining
//! value and its length: bytes of another place do not open.
//!
//! **Nonces.** A seal's nonce is its number, and numbers count up over all slots from
//! the key's first use; they are given out here alone, and the key dies with the
//! counter. So no nonce comes twice, however often a slot is written. At 2^64 seals it
//! would end, and the numbers of all fragments that a disk can take in a machine's life
//! are far fewer. A number is what a reader holds, too: a slot that was written anew
//! meanwhile does not open.

use std::sync::atomic::{AtomicU64, Ordering};

use palisade_protocol::content::ChainingValue;
use palisade_protocol::ids::TenantId;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, Tag, UnboundKey};
use ring::rand::{SecureRandom as _, SystemRandom};

/// Bytes of the key.
const KEY_BYTES: usize = 32;
/// Bytes of a seal's tag.
const TAG_BYTES: usize = 16;

/// What a fragment is bound to.
#[derive(Debug, Clone, Copy)]
pub struct Bound<'a> {
    /// Whose it is.
    pub tenant: &'a TenantId,
    /// What it is.
    pub value: &'a ChainingValue,
    /// Its length in bytes.
    pub length: u64,
}

impl Bound<'_> {
    /// Fixed lengths first, so that no two bindings read the same.
    fn bytes(&self) -> Vec<u8> {
        let tenant = self.tenant.as_str().as_bytes();
        [&self.value[..], &self.length.to_le_bytes(), tenant].concat()
    }
}

/// What opens a fragment, beside the key. It is kept in memory, not on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seal {
    number: u64,
    tag: [u8; TAG_BYTES],
}

/// The key of this start.
#[derive(Debug)]
pub struct Sealer {
    key: LessSafeKey,
    next: AtomicU64,
}

impl Sealer {
    /// A key that nobody has.
    ///
    /// # Errors
    /// When the kernel gives no randomness.
    pub fn new() -> std::io::Result<Self> {
        let nothing = |_| std::io::Error::other("the kernel gives no randomness for a key");
        let mut bytes = [0; KEY_BYTES];
        SystemRandom::new().fill(&mut bytes).map_err(nothing)?;
        let key = UnboundKey::new(&AES_256_GCM, &bytes).map_err(nothing)?;
        Ok(Self {
            key: LessSafeKey::new(key),
            next: AtomicU64::new(0),
        })
    }

    /// Makes `bytes` unreadable in place. `None` when there are no numbers left.
    pub fn seal(&self, bound: Bound<'_>, bytes: &mut [u8]) -> Option<Seal> {
        let next = |number: u64| number.checked_add(1);
        let number = self
            .next
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, next)
            .ok()?;
        let tag = self
            .key
            .seal_in_place_separate_tag(nonce(number), Aad::from(bound.bytes()), bytes)
            .ok()?;
        let tag = tag.as_ref().try_into().ok()?;
        Some(Seal { number, tag })
    }

    /// Makes `bytes` readable in place, if they are what was sealed so.
    pub fn open(&self, seal: &Seal, bound: Bound<'_>, bytes: &mut [u8]) -> bool {
        let (nonce, bound) = (nonce(seal.number), Aad::from(bound.bytes()));
        self.key
            .open_in_place_separate_tag(nonce, bound, Tag::from(seal.tag), bytes, 0..)
            .is_ok()
    }
}

fn nonce(number: u64) -> Nonce {
    let mut bytes = [0; NONCE_LEN];
    let (number, start) = (number.to_le_bytes(), NONCE_LEN - 8);
    bytes[start..].copy_from_slice(&number);
    Nonce::assume_unique_for_key(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn tenant(name: &str) -> TenantId {
        name.parse().unwrap()
    }

    #[test]
    fn what_was_sealed_opens_for_the_same_place_and_key_alone() {
        let (ours, other) = (Sealer::new().unwrap(), Sealer::new().unwrap());
        let (a, b) = (tenant("a"), tenant("b"));
        let (value, another) = ([1; 32], [2; 32]);
        let clear = b"some bytes".to_vec();
        let length = clear.len() as u64;
        let bound = |tenant, value, length| Bound {
            tenant,
            value,
            length,
        };
        let right = bound(&a, &value, length);
        let mut sealed = clear.clone();
        let seal = ours.seal(right, &mut sealed).unwrap();
        assert_ne!(sealed, clear);
        let opens = |by: &Sealer, seal: &Seal, bound| {
            let mut bytes = sealed.clone();
            by.open(seal, bound, &mut bytes) && bytes == clear
        };
        assert!(opens(&ours, &seal, right));
        assert!(!opens(&other, &seal, right), "another start's key");
        assert!(!opens(&ours, &seal, bound(&b, &value, length)), "tenant");
        assert!(!opens(&ours, &seal, bound(&a, &another, length)), "value");
        assert!(!opens(&ours, &seal, bound(&a, &value, 9)), "length");
        let later = Seal {
            number: seal.number + 1,
            ..seal
        };
        assert!(!opens(&ours, &later, right), "another writing");
    }

    #[test]
    fn the_same_bytes_are_sealed_differently_each_time_and_numbers_end() {
        let sealer = Sealer::new().unwrap();
        let (a, value) = (tenant("a"), [1; 32]);
        let bound = Bound {
            tenant: &a,
            value: &value,
            length: 64,
        };
        let mut seen = std::collections::HashSet::new();
        for number in 0..100 {
            let mut bytes = [0; 64];
            let seal = sealer.seal(bound, &mut bytes).unwrap();
            assert_eq!(seal.number, number);
            assert!(seen.insert(bytes), "a nonce came twice");
        }
        sealer.next.store(u64::MAX, Ordering::Relaxed);
        assert!(sealer.seal(bound, &mut [0; 64]).is_none());
        assert!(sealer.seal(bound, &mut [0; 64]).is_none());
    }

    proptest! {
        /// One bit, anywhere, and it does not open.
        #[test]
        fn no_flipped_bit_goes_unnoticed(
            clear in prop::collection::vec(any::<u8>(), 1..2000),
            place in any::<prop::sample::Index>(),
            bit in 0..8_u8,
        ) {
            let sealer = Sealer::new().unwrap();
            let (a, value) = (tenant("a"), [1; 32]);
            let bound = Bound { tenant: &a, value: &value, length: clear.len() as u64 };
            let mut bytes = clear.clone();
            let seal = sealer.seal(bound, &mut bytes).unwrap();
            let place = place.index(bytes.len());
            bytes[place] ^= 1 << bit;
            prop_assert!(!sealer.open(&seal, bound, &mut bytes));
        }
    }
}
