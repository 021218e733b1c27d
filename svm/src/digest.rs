//! SHA-256 and MD5 of sealed content, in one reading.
//!
//! For people, feeds and lists; contents are told apart by BLAKE3 alone. Blocks: a
//! caller on the runtime uses a thread of its own.

use std::io;

use md5::Md5;
use palisade_worker::client::SealedContent;
use sha2::Sha256;

/// Bytes that are read at a time.
const READ_BYTES: usize = 256 * 1024;

/// Which digests are asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wanted {
    /// SHA-256.
    pub sha256: bool,
    /// MD5.
    pub md5: bool,
}

/// The digests that were asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Digests {
    /// SHA-256.
    pub sha256: Option<[u8; 32]>,
    /// MD5.
    pub md5: Option<[u8; 16]>,
}

impl Digests {
    /// Reads the content once.
    ///
    /// # Errors
    /// When the memory file cannot be read.
    pub fn of(content: &SealedContent, wanted: Wanted) -> io::Result<Self> {
        let mut sha256 = wanted.sha256.then(<Sha256 as sha2::Digest>::new);
        let mut md5 = wanted.md5.then(<Md5 as md5::Digest>::new);
        let mut buffer = vec![0; READ_BYTES];
        let mut offset = 0;
        while offset < content.size() {
            let count = (content.size() - offset).min(READ_BYTES as u64);
            let part = &mut buffer[..count as usize];
            content.read_exact_at(part, offset)?;
            if let Some(hasher) = &mut sha256 {
                sha2::Digest::update(hasher, &*part);
            }
            if let Some(hasher) = &mut md5 {
                md5::Digest::update(hasher, &*part);
            }
            offset += count;
        }
        Ok(Self {
            sha256: sha256.map(|hasher| sha2::Digest::finalize(hasher).into()),
            md5: md5.map(|hasher| md5::Digest::finalize(hasher).into()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_digests_and_only_what_was_asked_for() {
        let content = SealedContent::from_bytes(b"abc").unwrap();
        let both = Wanted {
            sha256: true,
            md5: true,
        };
        let digests = Digests::of(&content, both).unwrap();
        assert_eq!(
            digests.sha256.map(hex::encode).unwrap(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        assert_eq!(
            digests.md5.map(hex::encode).unwrap(),
            "900150983cd24fb0d6963f7d28e17f72"
        );
        let none = Digests::of(&content, Wanted::default()).unwrap();
        assert_eq!(none, Digests::default());
        // Over several readings, the same as in one.
        let long = vec![7; READ_BYTES * 2 + 1];
        let content = SealedContent::from_bytes(&long).unwrap();
        let whole: [u8; 32] = <Sha256 as sha2::Digest>::digest(&long).into();
        assert_eq!(Digests::of(&content, both).unwrap().sha256, Some(whole));
    }
}
