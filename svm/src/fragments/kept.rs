//! One kept content: its bytes, and the memory that they are.
//!
//! ```text
//!  store ──► Kept ◄── Loan (a re-scan), Piece (copied into a new content): users
//!              │
//!              ▼
//!            memory, share ◄── Glance (a fragment is copied to disk): no user
//! ```
//!
//! The share of the budget goes back with the memory, not with the store: a content
//! that is forgotten while somebody copies or scans it still takes its memory, and is
//! still counted. A user may need it for as long as a scan takes, so that forgetting it
//! would give nothing back; a [`Glance`] ends with the copy of one fragment, so that its
//! content can be forgotten at any time.

use std::io;
use std::sync::Arc;

use palisade_worker::client::SealedContent;

use super::pack::{Pack, Packed};
use crate::budget::Share;

/// A content. Whoever has a reference but the store uses it.
#[derive(Debug)]
pub struct Kept(Arc<Memory>);

#[derive(Debug)]
struct Memory {
    // Dropped in this order: what is given back is free.
    bytes: Bytes,
    share: Share,
}

#[derive(Debug)]
enum Bytes {
    /// As it was scanned: a descriptor.
    File(SealedContent),
    /// Without a descriptor of its own.
    Packed(Packed),
}

impl Memory {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        match &self.bytes {
            Bytes::File(file) => file.read_exact_at(buffer, offset),
            Bytes::Packed(_) => Err(io::ErrorKind::Unsupported.into()),
        }
    }
}

impl Kept {
    /// The memory file itself.
    pub fn file(bytes: SealedContent, share: Share) -> Self {
        Self::new(Bytes::File(bytes), share)
    }

    /// A copy of it in a pack.
    ///
    /// # Errors
    /// When the memory file cannot be read, or there is no memory.
    pub fn packed(pack: &Arc<Pack>, bytes: &SealedContent, share: Share) -> io::Result<Self> {
        Ok(Self::new(Bytes::Packed(pack.put(bytes)?), share))
    }

    fn new(bytes: Bytes, share: Share) -> Self {
        Self(Arc::new(Memory {
            bytes,
            share: share.of_nobody(),
        }))
    }

    /// What it takes of the budget, in bytes.
    pub fn held_bytes(&self) -> u64 {
        self.0.share.bytes()
    }

    /// Fills `buffer` from `offset` (bytes); of contents of more than one fragment, which
    /// alone are found by their fragments.
    ///
    /// # Errors
    /// When there are not so many bytes.
    pub fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_exact_at(buffer, offset)
    }

    /// Its memory for a moment, without being a user.
    pub(super) fn glance(&self) -> Glance {
        Glance(Arc::clone(&self.0))
    }
}

/// A content's memory, to copy one fragment from: it stays counted, and its content can
/// be forgotten.
#[derive(Debug)]
pub(super) struct Glance(Arc<Memory>);

impl Glance {
    /// As [`Kept::read_exact_at`].
    ///
    /// # Errors
    /// When there are not so many bytes.
    pub fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_exact_at(buffer, offset)
    }
}

/// A kept content on loan. While there is one, its memory stays counted.
#[derive(Debug)]
pub struct Loan(Arc<Kept>);

impl Loan {
    pub(super) fn new(kept: &Arc<Kept>) -> Self {
        Self(Arc::clone(kept))
    }

    /// Bytes that [`Self::sealed`] makes beside the kept ones; 0 when it makes none.
    pub fn copies_bytes(&self) -> u64 {
        match &self.0.0.bytes {
            Bytes::File(_) => 0,
            Bytes::Packed(packed) => packed.length(),
        }
    }

    /// The content as engines take it: the kept memory file, or a new one.
    ///
    /// # Errors
    /// The kernel's.
    pub fn sealed(&self) -> io::Result<SealedContent> {
        match &self.0.0.bytes {
            Bytes::File(file) => file.try_clone(),
            Bytes::Packed(packed) => SealedContent::from_bytes(&packed.to_vec()?),
        }
    }
}
