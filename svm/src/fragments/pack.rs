//! Many small contents in one memory file: one descriptor for all of them.
//!
//! ```text
//!   │ a… │ b │ (hole) │ c…… │ d │ ─► next          offsets only grow
//! ```
//!
//! Each begins on a page of its own, so that what it takes of the kernel is what it
//! holds of the budget; when it is dropped, its pages go back at once, as a hole. The
//! heap would keep them, and memory would be used twice. The file's length is no memory,
//! and is never reached.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use palisade_worker::client::{MemFile, SealedContent};

use crate::budget::UNIT_BYTES;

/// Length of the file: at a GiB a second, enough for 30 years.
const LENGTH: u64 = 1 << 60;

/// The file.
#[derive(Debug)]
pub struct Pack {
    file: MemFile,
    next: AtomicU64,
}

/// One content in it; its pages go back when it is dropped.
#[derive(Debug)]
pub struct Packed {
    pack: Arc<Pack>,
    offset: u64,
    length: u64,
}

impl Pack {
    /// An empty one.
    ///
    /// # Errors
    /// The kernel's.
    pub fn new() -> io::Result<Self> {
        Ok(Self {
            file: MemFile::create(LENGTH)?,
            next: AtomicU64::new(0),
        })
    }

    /// Copies a content into it.
    ///
    /// # Errors
    /// When the content cannot be read, or the kernel has no pages.
    pub fn put(self: &Arc<Self>, content: &SealedContent) -> io::Result<Packed> {
        let bytes = content.to_vec()?;
        let length = bytes.len() as u64;
        let pages = length.next_multiple_of(UNIT_BYTES);
        let packed = Packed {
            pack: Arc::clone(self),
            offset: self.next.fetch_add(pages, Ordering::Relaxed),
            length,
        };
        // Past the end it fails.
        self.file.write_at(&bytes, packed.offset)?;
        Ok(packed)
    }
}

impl Packed {
    /// Length (bytes).
    pub fn length(&self) -> u64 {
        self.length
    }

    /// All of it.
    ///
    /// # Errors
    /// The kernel's.
    pub fn to_vec(&self) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; usize::try_from(self.length).map_err(io::Error::other)?];
        self.pack.file.read_exact_at(&mut bytes, self.offset)?;
        Ok(bytes)
    }
}

impl Drop for Packed {
    fn drop(&mut self) {
        let pages = self.length.next_multiple_of(UNIT_BYTES);
        if let Err(error) = self.pack.file.give_back(self.offset, pages) {
            tracing::error!(%error, "memory of a small content does not go back");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn contents_keep_apart_and_their_pages_go_back() {
        let pack = Arc::new(Pack::new().unwrap());
        let contents = [1_usize, 4096, 4097, 100_000].map(|size| vec![size as u8 | 1; size]);
        let put = |bytes: &Vec<u8>| {
            pack.put(&SealedContent::from_bytes(bytes).unwrap())
                .unwrap()
        };
        let mut packed: Vec<Packed> = contents.iter().map(put).collect();
        let pages = |bytes: &Vec<u8>| (bytes.len() as u64).next_multiple_of(UNIT_BYTES);
        let held = || pack.file.held_bytes().unwrap();
        assert_eq!(held(), contents.iter().map(pages).sum::<u64>());
        for (one, bytes) in packed.iter().zip(&contents) {
            assert_eq!(&one.to_vec().unwrap(), bytes);
        }
        drop(packed.remove(1));
        assert_eq!(held(), contents.iter().map(pages).sum::<u64>() - 4096);
        assert_eq!(packed[1].to_vec().unwrap(), contents[2]);
        drop(packed);
        assert_eq!(held(), 0);
    }
}
