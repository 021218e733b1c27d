//! Content ids and fragments.
//!
//! A content's id is its BLAKE3 hash. The content is a sequence of fragments of
//! [`FRAGMENT_BYTES`]; each is one aligned subtree of the BLAKE3 tree, so its
//! chaining value verifies it alone, and the chaining values of all fragments
//! (the [`Outline`]) verify against the content id before a byte is asked for.
//!
//! ```text
//!                content id = merge of all chaining values
//!               /                    \
//!        merge(0,1)               merge(2,3)
//!        /       \                /       \
//!   fragment 0  fragment 1   fragment 2  fragment 3 (may be shorter)
//! ```
//!
//! A content of at most one fragment has no tree above it: its fragment's hash
//! is the content id. Source: BLAKE3 specification, section 2.1, and the
//! `hazmat` module of the blake3 crate, whose functions panic on empty,
//! unaligned or overlong input; every length is checked here first.

use std::fmt;
use std::str::FromStr;

use blake3::hazmat::{self, HasherExt, Mode};
use serde::{Deserialize, Serialize};

/// Bytes of a whole fragment: 256 KiB, a power of two of BLAKE3's 1 KiB chunks.
pub const FRAGMENT_BYTES: u64 = 256 * 1024;

/// Largest content whose verdict can be asked for, in bytes. A request above it
/// is answered `not scanned: too large` without its outline.
pub const MAX_CONTENT_BYTES: u64 = 2 * 1024 * 1024 * 1024 - 1;

/// Most fragments of one content.
pub const MAX_FRAGMENTS: usize = MAX_CONTENT_BYTES.div_ceil(FRAGMENT_BYTES) as usize;

/// A content's BLAKE3 hash.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ContentId(pub [u8; 32]);

impl ContentId {
    /// The id of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }
}

impl fmt::Display for ContentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for ContentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl FromStr for ContentId {
    type Err = hex::FromHexError;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes)?;
        Ok(Self(bytes))
    }
}

/// The chaining value of one fragment, as a subtree that is not the root.
pub type ChainingValue = [u8; 32];

/// Why bytes or chaining values do not belong to a content.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ContentError {
    /// The content is above [`MAX_CONTENT_BYTES`].
    #[error("a content of {0} bytes is over the bound of {MAX_CONTENT_BYTES}")]
    TooLarge(u64),
    /// The outline does not have one chaining value a fragment.
    #[error("{got} chaining values came for a content of {want} fragments")]
    OutlineLength {
        /// How many came.
        got: usize,
        /// How many the size makes.
        want: usize,
    },
    /// The chaining values do not merge to the content id.
    #[error("the chaining values do not belong to content {0}")]
    OutlineMismatch(ContentId),
    /// There is no such fragment.
    #[error("fragment {index} does not exist in a content of {count} fragments")]
    NoSuchFragment {
        /// The index that came.
        index: u32,
        /// How many there are.
        count: usize,
    },
    /// A fragment has not the length that its place has.
    #[error("fragment {index} has {got} bytes and must have {want}")]
    FragmentLength {
        /// Which.
        index: u32,
        /// Bytes that came.
        got: u64,
        /// Bytes that it must have.
        want: u64,
    },
    /// A fragment's bytes are not those that the outline names.
    #[error("the bytes of fragment {index} do not belong to content {id}")]
    FragmentMismatch {
        /// Which.
        index: u32,
        /// Whose.
        id: ContentId,
    },
}

/// Fragments of a content of `size` bytes; an empty content has none.
///
/// # Errors
/// [`ContentError::TooLarge`].
pub fn fragment_count(size: u64) -> Result<usize, ContentError> {
    if size > MAX_CONTENT_BYTES {
        return Err(ContentError::TooLarge(size));
    }
    Ok(size.div_ceil(FRAGMENT_BYTES) as usize)
}

/// Whether a content of this size is described by chaining values at all; up to
/// one fragment its id says everything.
pub fn has_outline(size: u64) -> bool {
    size > FRAGMENT_BYTES
}

/// A content's id, size and verified chaining values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outline {
    id: ContentId,
    size: u64,
    chaining_values: Vec<ChainingValue>,
}

impl Outline {
    /// Checks a peer's claim: the chaining values must be as many as the size
    /// makes and merge to the content id. `size` itself stays a claim until the
    /// last fragment has verified, because a shorter last fragment has another
    /// chaining value but the same place.
    ///
    /// # Errors
    /// A [`ContentError`] that says what does not fit.
    pub fn verify(
        id: ContentId,
        size: u64,
        chaining_values: Vec<ChainingValue>,
    ) -> Result<Self, ContentError> {
        let count = fragment_count(size)?;
        let want = if has_outline(size) { count } else { 0 };
        if chaining_values.len() != want {
            return Err(ContentError::OutlineLength {
                got: chaining_values.len(),
                want,
            });
        }
        if has_outline(size) && root(&chaining_values) != id {
            return Err(ContentError::OutlineMismatch(id));
        }
        Ok(Self {
            id,
            size,
            chaining_values,
        })
    }

    /// The content's id.
    pub fn id(&self) -> ContentId {
        self.id
    }

    /// The content's claimed size in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The chaining values, in order; none up to one fragment.
    pub fn chaining_values(&self) -> &[ChainingValue] {
        &self.chaining_values
    }

    /// How many fragments there are.
    pub fn fragments(&self) -> usize {
        self.size.div_ceil(FRAGMENT_BYTES) as usize
    }

    /// Offset and length in bytes of a fragment.
    ///
    /// # Errors
    /// [`ContentError::NoSuchFragment`].
    pub fn span(&self, index: u32) -> Result<(u64, u64), ContentError> {
        let count = self.fragments();
        if index as usize >= count {
            return Err(ContentError::NoSuchFragment { index, count });
        }
        let offset = u64::from(index) * FRAGMENT_BYTES;
        Ok((offset, FRAGMENT_BYTES.min(self.size - offset)))
    }

    /// Checks one fragment's bytes on their own.
    ///
    /// # Errors
    /// A [`ContentError`] that says what does not fit.
    pub fn verify_fragment(&self, index: u32, bytes: &[u8]) -> Result<(), ContentError> {
        let (offset, want) = self.span(index)?;
        if bytes.len() as u64 != want {
            return Err(ContentError::FragmentLength {
                index,
                got: bytes.len() as u64,
                want,
            });
        }
        let matches = match self.chaining_values.get(index as usize) {
            Some(value) => subtree(offset, bytes) == *value,
            None => ContentId::of(bytes) == self.id,
        };
        if matches {
            Ok(())
        } else {
            Err(ContentError::FragmentMismatch { index, id: self.id })
        }
    }
}

/// Hashes a content fragment by fragment, as it is read from its start.
#[derive(Debug, Default)]
pub struct OutlineBuilder {
    size: u64,
    /// Held back until it is known whether it is the only one.
    first: Option<Box<[u8]>>,
    chaining_values: Vec<ChainingValue>,
    ended: bool,
}

impl OutlineBuilder {
    /// A builder that has seen nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next fragment: [`FRAGMENT_BYTES`] of it, or fewer at the end.
    ///
    /// # Errors
    /// [`ContentError::FragmentLength`] for a fragment that is empty, too long, or
    /// follows a short one; [`ContentError::TooLarge`].
    pub fn push(&mut self, fragment: &[u8]) -> Result<(), ContentError> {
        let length = fragment.len() as u64;
        if length == 0 || length > FRAGMENT_BYTES || self.ended {
            return Err(ContentError::FragmentLength {
                index: u32::try_from(self.size / FRAGMENT_BYTES).unwrap_or(u32::MAX),
                got: length,
                want: FRAGMENT_BYTES,
            });
        }
        if self.size + length > MAX_CONTENT_BYTES {
            return Err(ContentError::TooLarge(self.size + length));
        }
        if self.size == 0 {
            self.first = Some(fragment.into());
        } else {
            if let Some(first) = self.first.take() {
                self.chaining_values.push(subtree(0, &first));
            }
            self.chaining_values.push(subtree(self.size, fragment));
        }
        self.size += length;
        self.ended = length < FRAGMENT_BYTES;
        Ok(())
    }

    /// The outline of all that was pushed.
    pub fn finish(self) -> Outline {
        let id = match &self.first {
            Some(only) => ContentId::of(only),
            None if self.chaining_values.is_empty() => ContentId::of(b""),
            None => root(&self.chaining_values),
        };
        Outline {
            id,
            size: self.size,
            chaining_values: self.chaining_values,
        }
    }
}

/// The chaining value of a fragment that is not the whole content. `offset` is a
/// multiple of [`FRAGMENT_BYTES`] and `bytes` holds 1 to [`FRAGMENT_BYTES`] bytes,
/// which is what the callers checked and what blake3 demands.
fn subtree(offset: u64, bytes: &[u8]) -> ChainingValue {
    debug_assert!(offset.is_multiple_of(FRAGMENT_BYTES) && !bytes.is_empty());
    let mut hasher = blake3::Hasher::new();
    hasher.set_input_offset(offset).update(bytes);
    hasher.finalize_non_root()
}

/// The hash of the tree over two or more fragments.
fn root(values: &[ChainingValue]) -> ContentId {
    let (left, right) = values.split_at(left_subtree(values.len()));
    ContentId(*hazmat::merge_subtrees_root(&merge(left), &merge(right), Mode::Hash).as_bytes())
}

/// The chaining value of the subtree over one or more fragments. The depth is
/// the logarithm of the count, at most 13 for [`MAX_FRAGMENTS`].
fn merge(values: &[ChainingValue]) -> ChainingValue {
    match values {
        [one] => *one,
        more => {
            let (left, right) = more.split_at(left_subtree(more.len()));
            hazmat::merge_subtrees_non_root(&merge(left), &merge(right), Mode::Hash)
        }
    }
}

/// BLAKE3 gives the left subtree the largest power of two below the whole.
fn left_subtree(count: usize) -> usize {
    debug_assert!(count >= 2);
    count.next_power_of_two() / 2
}
