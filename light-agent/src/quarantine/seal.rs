//! What makes a file in the quarantine unreadable, and proves that it is unchanged.
//!
//! ```text
//!  key of the guest ─HKDF(item's id)─► key of the content ─► chunks, numbered, the last marked
//!                                   └► key of the record  ─► one piece, a random nonce
//! ```
//!
//! AES-256-GCM. Each item has keys of its own, so that a chunk's number is a nonce that
//! never comes twice: a content is sealed once, under an id that is random. The number
//! and the mark of the last chunk are in the nonce: chunks that are cut off, repeated
//! or swapped do not open, nor do those of another item.

use std::io::{self, Read, Write};

use palisade_protocol::content::FRAGMENT_BYTES;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, MAX_TAG_LEN, NONCE_LEN, Nonce, UnboundKey};
use ring::hkdf::{HKDF_SHA256, Salt};
use ring::rand::{SecureRandom as _, SystemRandom};
use uuid::Uuid;

use super::key::Key;

/// Bytes of a chunk of content, before it is sealed: a fragment's.
const CHUNK: usize = FRAGMENT_BYTES as usize;
/// Begins a sealed content.
const CONTENT_MAGIC: &[u8; 8] = b"PALQC\0\0\x01";
/// Begins a sealed record.
const RECORD_MAGIC: &[u8; 8] = b"PALQR\0\0\x01";
/// Binds derived keys to their purpose.
const SALT: &[u8] = b"palisade quarantine 1";

/// The keys of one item.
#[derive(Debug)]
pub struct Sealer {
    id: Uuid,
    content: LessSafeKey,
    record: LessSafeKey,
}

impl Sealer {
    /// The keys of the item `id`.
    ///
    /// # Errors
    /// None that is known; the library's.
    pub fn new(key: &Key, id: Uuid) -> io::Result<Self> {
        let base = Salt::new(HKDF_SHA256, SALT).extract(&key.0);
        let derive = |purpose: &[u8]| {
            let info = [id.as_bytes(), purpose];
            let okm = base.expand(&info, &AES_256_GCM).map_err(failed)?;
            Ok::<_, io::Error>(LessSafeKey::new(UnboundKey::from(okm)))
        };
        Ok(Self {
            id,
            content: derive(b"content")?,
            record: derive(b"record")?,
        })
    }

    /// Seals all that `from` gives into `to`; tells each chunk to `seen` before.
    ///
    /// # Errors
    /// The reader's, the writer's, and those of `seen`.
    pub fn seal(
        &self,
        from: &mut impl Read,
        to: &mut impl Write,
        seen: &mut impl FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        to.write_all(CONTENT_MAGIC)?;
        let mut chunk = read_chunk(from, CHUNK)?;
        for number in 0.. {
            // Only a full chunk can have one behind it.
            let next = match chunk.len() == CHUNK {
                true => read_chunk(from, CHUNK)?,
                false => Vec::new(),
            };
            seen(&chunk)?;
            let nonce = chunk_nonce(number, next.is_empty());
            self.content
                .seal_in_place_append_tag(nonce, self.aad(), &mut chunk)
                .map_err(failed)?;
            to.write_all(&chunk)?;
            if next.is_empty() {
                break;
            }
            chunk = next;
        }
        Ok(())
    }

    /// Opens a sealed content, chunk by chunk, into `to`.
    ///
    /// # Errors
    /// The reader's, those of `to`, and that it is not what was sealed.
    pub fn open(
        &self,
        from: &mut impl Read,
        to: &mut impl FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let mut magic = [0; CONTENT_MAGIC.len()];
        from.read_exact(&mut magic).map_err(|_| damaged())?;
        if magic != *CONTENT_MAGIC {
            return Err(damaged());
        }
        let sealed = CHUNK + MAX_TAG_LEN;
        let mut chunk = read_chunk(from, sealed)?;
        for number in 0.. {
            let next = match chunk.len() == sealed {
                true => read_chunk(from, sealed)?,
                false => Vec::new(),
            };
            let nonce = chunk_nonce(number, next.is_empty());
            let clear = self
                .content
                .open_in_place(nonce, self.aad(), &mut chunk)
                .map_err(|_| damaged())?;
            to(clear)?;
            if next.is_empty() {
                break;
            }
            chunk = next;
        }
        Ok(())
    }

    /// Seals a record.
    ///
    /// # Errors
    /// When the kernel gives no randomness.
    pub fn seal_record(&self, clear: &[u8]) -> io::Result<Vec<u8>> {
        let mut nonce = [0; NONCE_LEN];
        SystemRandom::new().fill(&mut nonce).map_err(failed)?;
        let mut bytes = clear.to_vec();
        self.record
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), self.aad(), &mut bytes)
            .map_err(failed)?;
        Ok([&RECORD_MAGIC[..], &nonce, &bytes].concat())
    }

    /// Opens a record.
    ///
    /// # Errors
    /// That it is not what was sealed.
    pub fn open_record(&self, sealed: &[u8]) -> io::Result<Vec<u8>> {
        let rest = sealed.strip_prefix(RECORD_MAGIC).ok_or_else(damaged)?;
        let (nonce, rest) = rest.split_at_checked(NONCE_LEN).ok_or_else(damaged)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(failed)?;
        let mut bytes = rest.to_vec();
        let length = self
            .record
            .open_in_place(nonce, self.aad(), &mut bytes)
            .map_err(|_| damaged())?
            .len();
        bytes.truncate(length);
        Ok(bytes)
    }

    fn aad(&self) -> Aad<&[u8; 16]> {
        Aad::from(self.id.as_bytes())
    }
}

fn chunk_nonce(number: u64, last: bool) -> Nonce {
    let mut bytes = [0; NONCE_LEN];
    bytes[0] = u8::from(last);
    bytes[NONCE_LEN - 8..].copy_from_slice(&number.to_le_bytes());
    Nonce::assume_unique_for_key(bytes)
}

/// Up to `most` bytes; fewer only at the end.
fn read_chunk(from: &mut impl Read, most: usize) -> io::Result<Vec<u8>> {
    let mut chunk = Vec::with_capacity(most + MAX_TAG_LEN);
    from.take(most as u64).read_to_end(&mut chunk)?;
    Ok(chunk)
}

fn failed(_: ring::error::Unspecified) -> io::Error {
    io::Error::other("the content cannot be sealed")
}

fn damaged() -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        "it is damaged, or sealed with another key",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn sealed(sealer: &Sealer, clear: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        sealer
            .seal(&mut &clear[..], &mut out, &mut |_| Ok(()))
            .unwrap();
        out
    }

    fn opened(sealer: &Sealer, sealed: &[u8]) -> io::Result<Vec<u8>> {
        let mut out = Vec::new();
        sealer.open(&mut &sealed[..], &mut |bytes| {
            out.extend_from_slice(bytes);
            Ok(())
        })?;
        Ok(out)
    }

    fn sealer() -> Sealer {
        Sealer::new(&Key::new().unwrap(), Uuid::new_v4()).unwrap()
    }

    #[test]
    fn every_length_comes_back_and_nothing_of_it_is_readable() {
        let sealer = sealer();
        for length in [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 2 * CHUNK + 7] {
            let clear: Vec<u8> = (0..length).map(|n| (n % 251) as u8).collect();
            let sealed = sealed(&sealer, &clear);
            assert_eq!(opened(&sealer, &sealed).unwrap(), clear, "{length}");
            if length > 16 {
                assert!(!sealed.windows(16).any(|window| window == &clear[..16]));
            }
        }
    }

    #[test]
    fn chunks_that_are_cut_swapped_or_of_another_item_do_not_open() {
        let key = Key::new().unwrap();
        let ours = Sealer::new(&key, Uuid::new_v4()).unwrap();
        let other = Sealer::new(&key, Uuid::new_v4()).unwrap();
        let clear = vec![7; 2 * CHUNK];
        let bytes = sealed(&ours, &clear);
        assert!(opened(&other, &bytes).is_err(), "another item's");
        assert!(opened(&sealer(), &bytes).is_err(), "another key's");
        let chunk = CHUNK + MAX_TAG_LEN;
        let head = CONTENT_MAGIC.len();
        assert!(opened(&ours, &bytes[..head + chunk]).is_err(), "cut");
        assert!(opened(&ours, &bytes[..head]).is_err(), "all cut");
        let (first, second) = bytes[head..].split_at(chunk);
        let swapped = [&bytes[..head], second, first].concat();
        assert!(opened(&ours, &swapped).is_err());
        let repeated = [&bytes[..head], first, first].concat();
        assert!(opened(&ours, &repeated).is_err());
        let longer = [&bytes[..], &[0; 20]].concat();
        assert!(opened(&ours, &longer).is_err());
    }

    proptest! {
        /// One bit, anywhere, and neither content nor record opens.
        #[test]
        fn no_flipped_bit_goes_unnoticed(
            clear in prop::collection::vec(any::<u8>(), 0..600),
            place in any::<prop::sample::Index>(),
            bit in 0..8_u8,
        ) {
            let sealer = sealer();
            let mut content = sealed(&sealer, &clear);
            let at = place.index(content.len());
            content[at] ^= 1 << bit;
            prop_assert!(opened(&sealer, &content).is_err());
            let mut record = sealer.seal_record(&clear).unwrap();
            prop_assert_eq!(sealer.open_record(&record).unwrap(), clear);
            let at = place.index(record.len());
            record[at] ^= 1 << bit;
            prop_assert!(sealer.open_record(&record).is_err());
        }
    }
}
