//! A file's content, as it is hashed and sent: always by its open descriptor.
//!
//! Owns reading at an offset and the outline (content id and chaining values);
//! memory is one fragment for each thread that hashes, whatever the file's size.
//! Everything here but [`hash_at_once`] blocks and belongs on the blocking pool.

use std::cell::RefCell;
use std::fs::File;
use std::io::IoSliceMut;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};
use nix::sys::uio::pread;
use palisade_protocol::bounded::Text;
use palisade_protocol::codec::CodecError;
use palisade_protocol::content::{ContentError, FRAGMENT_BYTES, Outline, OutlineBuilder};
use palisade_protocol::frame;
use palisade_protocol::verdict::NotScanned;
use rustix::io::{ReadWriteFlags, preadv2};

use crate::fanotify::event::Event;
use crate::stamp::Stamp;

/// An open file to be scanned. Clones share the descriptor.
#[derive(Clone)]
pub enum Content {
    /// A file that the agent opened.
    File(Arc<File>),
    /// A file that somebody else is opening.
    Event(Arc<Event>),
}

impl AsFd for Content {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::File(file) => file.as_fd(),
            Self::Event(event) => event.as_fd(),
        }
    }
}

/// A content's outline and the moment it was taken at.
#[derive(Debug, Clone)]
pub struct Hashed {
    /// Content id, size and chaining values.
    pub outline: Outline,
    /// The file before it was read.
    pub stamp: Stamp,
}

/// Hashes a content, unless it is above `max` bytes. A file that changes
/// meanwhile is hashed once more, and then given up.
///
/// # Errors
/// Why it cannot be scanned: too large, changed, or unreadable.
pub fn hash(content: &Content, max: u64) -> Result<Hashed, NotScanned> {
    hash_once(content, max).or_else(|reason| match reason {
        NotScanned::Changed => hash_once(content, max),
        other => Err(other),
    })
}

/// Hashes a content of one fragment without waiting for storage: `None` if not all of
/// it is in memory, if it is larger or changes, or whatever else [`hash`] has to say.
/// An opener waits: this spares it the way to another thread and back.
pub fn hash_at_once(content: &Content, max: u64) -> Option<Hashed> {
    let stamp = Stamp::of(content).ok()?;
    if stamp.size > max.min(FRAGMENT_BYTES) {
        return None;
    }
    let mut builder = OutlineBuilder::new();
    with_buffer(stamp.size, |bytes| {
        if read_from_memory(content, bytes)? != bytes.len() {
            return None;
        }
        match bytes.is_empty() {
            true => Some(()),
            false => builder.push(bytes).ok(),
        }
    })?;
    if stamp.content_moved(&Stamp::of(content).ok()?) {
        return None;
    }
    Some(Hashed {
        outline: builder.finish(),
        stamp,
    })
}

/// Reads from the start what the page cache holds.
fn read_from_memory(content: &Content, into: &mut [u8]) -> Option<usize> {
    match preadv2(
        content,
        &mut [IoSliceMut::new(into)],
        0,
        ReadWriteFlags::NOWAIT,
    ) {
        Ok(read) => Some(read),
        // It does not know the flag, and is memory throughout.
        Err(rustix::io::Errno::OPNOTSUPP)
            if fstatfs(content).is_ok_and(|system| system.filesystem_type() == TMPFS_MAGIC) =>
        {
            pread(content, into, 0).ok()
        }
        Err(_) => None,
    }
}

thread_local! {
    /// A fragment's room, kept: to ask the system for it takes as long as to hash it.
    static FRAGMENT: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// Room for `bytes`, at most a fragment's.
fn with_buffer<R>(bytes: u64, body: impl FnOnce(&mut [u8]) -> R) -> R {
    let bytes = usize::try_from(bytes.min(FRAGMENT_BYTES)).unwrap_or(0);
    FRAGMENT.with_borrow_mut(|buffer| {
        if buffer.len() < bytes {
            buffer.resize(bytes, 0);
        }
        body(&mut buffer[..bytes])
    })
}

fn hash_once(content: &Content, max: u64) -> Result<Hashed, NotScanned> {
    let stamp = Stamp::of(content).map_err(|error| unreadable(&error))?;
    if stamp.size > max {
        return Err(NotScanned::TooLarge { max });
    }
    with_buffer(stamp.size.max(1), |fragment| {
        hash_as(content, max, stamp, fragment)
    })
}

fn hash_as(
    content: &Content,
    max: u64,
    stamp: Stamp,
    fragment: &mut [u8],
) -> Result<Hashed, NotScanned> {
    let mut builder = OutlineBuilder::new();
    let mut offset = 0;
    loop {
        let length = read_full(content, offset, fragment)?;
        if length == 0 {
            break;
        }
        offset += length as u64;
        if offset > stamp.size {
            return Err(NotScanned::Changed);
        }
        builder
            .push(&fragment[..length])
            .map_err(|error| match error {
                ContentError::TooLarge(_) => NotScanned::TooLarge { max },
                _ => NotScanned::Changed,
            })?;
        // The end is where the size says; one byte more shows that it grew.
        if (length as u64) < FRAGMENT_BYTES && offset == stamp.size {
            break;
        }
    }
    let now = Stamp::of(content).map_err(|error| unreadable(&error))?;
    if offset != stamp.size || stamp.content_moved(&now) {
        return Err(NotScanned::Changed);
    }
    Ok(Hashed {
        outline: builder.finish(),
        stamp,
    })
}

/// Why there is no fragment to send.
#[derive(Debug)]
pub enum NoFragment {
    /// The file is no longer as it was hashed, or unreadable.
    Content(NotScanned),
    /// It cannot be encoded.
    Codec(CodecError),
}

impl From<CodecError> for NoFragment {
    fn from(error: CodecError) -> Self {
        Self::Codec(error)
    }
}

/// Reads one fragment of a hashed content into the frame that carries it; gives its
/// length in bytes, too.
///
/// # Errors
/// [`NotScanned::Changed`] when the file is shorter by now, or unreadable.
pub fn fragment(
    content: &Content,
    outline: &Outline,
    index: u32,
) -> Result<(u64, Vec<u8>), NoFragment> {
    let changed = || NoFragment::Content(NotScanned::Changed);
    let (offset, length) = outline.span(index).map_err(|_| changed())?;
    let count = usize::try_from(length).map_err(|_| changed())?;
    let frame = frame::fragment(index, count, |into| {
        match read_full(content, offset, into).map_err(NoFragment::Content)? {
            read if read == into.len() => Ok(()),
            _ => Err(changed()),
        }
    })?;
    Ok((length, frame))
}

fn read_full(content: &Content, offset: u64, into: &mut [u8]) -> Result<usize, NotScanned> {
    let mut filled = 0;
    while filled < into.len() {
        let at = i64::try_from(offset + filled as u64).unwrap_or(i64::MAX);
        match pread(content, &mut into[filled..], at) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(Errno::EINTR) => {}
            Err(error) => return Err(unreadable(&error.into())),
        }
    }
    Ok(filled)
}

/// Why a file cannot be read, as a verdict.
pub fn unreadable(error: &std::io::Error) -> NotScanned {
    NotScanned::ReadError {
        detail: Text::cut(&error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use palisade_protocol::content::{ContentId, MAX_CONTENT_BYTES};
    use palisade_protocol::frame::PREFIX_BYTES;
    use palisade_protocol::scan::ToSvmRef;
    use proptest::prelude::*;
    use std::io::Write as _;

    fn content_of(bytes: &[u8]) -> Content {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(bytes).unwrap();
        Content::File(Arc::new(file))
    }

    fn pattern(length: usize) -> Vec<u8> {
        (0..length).map(|i| (i * 31 % 251) as u8).collect()
    }

    #[test]
    fn the_content_id_is_the_plain_hash_at_every_border() {
        let fragment = FRAGMENT_BYTES as usize;
        for length in [
            0,
            1,
            1023,
            fragment - 1,
            fragment,
            fragment + 1,
            2 * fragment,
            3 * fragment + 7,
        ] {
            let bytes = pattern(length);
            let content = content_of(&bytes);
            let hashed = hash(&content, MAX_CONTENT_BYTES).unwrap();
            let id = ContentId(*blake3::hash(&bytes).as_bytes());
            assert_eq!(hashed.outline.id(), id, "{length}");
            assert_eq!(hashed.outline.size(), length as u64);
            let at_once = hash_at_once(&content, MAX_CONTENT_BYTES).map(|hashed| hashed.outline);
            let one_fragment = (length <= fragment).then_some(hashed.outline);
            assert_eq!(at_once, one_fragment, "{length}");
        }
    }

    #[test]
    fn fragments_verify_against_the_outline() {
        let content = content_of(&pattern(3 * FRAGMENT_BYTES as usize + 7));
        let outline = hash(&content, MAX_CONTENT_BYTES).unwrap().outline;
        for index in 0..4 {
            let (length, frame) = fragment(&content, &outline, index).unwrap();
            let ToSvmRef::Fragment(sent) = ToSvmRef::decode(&frame[PREFIX_BYTES..]).unwrap() else {
                panic!("no fragment")
            };
            assert_eq!((sent.index, sent.bytes.len() as u64), (index, length));
            outline.verify_fragment(index, sent.bytes).unwrap();
        }
        assert!(fragment(&content, &outline, 4).is_err());
    }

    #[test]
    fn a_sparse_file_above_the_bound_is_not_read() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(5 * 1024 * 1024 * 1024).unwrap();
        let max = 512 * 1024 * 1024;
        let reason = hash(&Content::File(Arc::new(file)), max).unwrap_err();
        assert_eq!(reason, NotScanned::TooLarge { max });
    }

    #[test]
    fn what_is_not_in_memory_is_not_read_at_once() {
        let file = tempfile::NamedTempFile::new_in(env!("CARGO_MANIFEST_DIR")).unwrap();
        std::fs::write(file.path(), pattern(50_000)).unwrap();
        let reopened = || Content::File(Arc::new(file.reopen().unwrap()));
        let content = reopened();
        assert!(hash_at_once(&content, MAX_CONTENT_BYTES).is_some());
        assert!(hash_at_once(&content, 49_999).is_none(), "above the bound");
        file.as_file().sync_all().unwrap();
        let advice = nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED;
        nix::fcntl::posix_fadvise(&file, 0, 0, advice).unwrap();
        assert!(hash_at_once(&reopened(), MAX_CONTENT_BYTES).is_none());
        let hashed = hash(&reopened(), MAX_CONTENT_BYTES).unwrap();
        assert_eq!(hashed.outline.id(), ContentId::of(&pattern(50_000)));
    }

    #[test]
    fn a_file_that_shrank_is_changed() {
        let file = Arc::new(tempfile::tempfile().unwrap());
        file.set_len(2 * FRAGMENT_BYTES).unwrap();
        let content = Content::File(Arc::clone(&file));
        let outline = hash(&content, MAX_CONTENT_BYTES).unwrap().outline;
        file.set_len(FRAGMENT_BYTES + 1).unwrap();
        assert!(matches!(
            fragment(&content, &outline, 1),
            Err(NoFragment::Content(NotScanned::Changed))
        ));
    }

    #[test]
    fn a_file_whose_size_is_a_lie_is_not_clean() {
        let file = std::fs::File::open("/proc/version").unwrap();
        let reason = hash(&Content::File(Arc::new(file)), MAX_CONTENT_BYTES).unwrap_err();
        assert_eq!(reason, NotScanned::Changed);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn any_content_hashes_as_blake3_does(bytes in prop::collection::vec(any::<u8>(), 0..700_000)) {
            let hashed = hash(&content_of(&bytes), MAX_CONTENT_BYTES).unwrap();
            prop_assert_eq!(hashed.outline.id().0, *blake3::hash(&bytes).as_bytes());
        }
    }
}
