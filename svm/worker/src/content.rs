//! Content between processes: memory files that nobody can change any more.
//!
//! ```text
//! MemFile::create ──write_at──► MemFile ──seal──► SealedContent ──► other process
//!                                                      ▲               │
//!                                                      ├─── verify ◄───┤
//!                                                      └─── copied ◄───┘ a file that is not sealed
//! ```
//!
//! A reader that maps or parses content while its sender shrinks it would die of
//! SIGBUS, and one that reads it twice could be shown two contents; the seals rule
//! out both, and [`SealedContent::verify`] rules out a sender that did not seal.

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, FcntlArg, SealFlag, fallocate, fcntl};
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileExt, MetadataExt};

pub use crate::sys::Mapped;

/// Bytes that are copied at a time.
const COPY_BYTES: usize = 256 << 10;

/// What must be impossible before content is read.
const SEALS: SealFlag = SealFlag::F_SEAL_WRITE
    .union(SealFlag::F_SEAL_SHRINK)
    .union(SealFlag::F_SEAL_GROW);

/// Why a descriptor is not sealed content.
#[derive(Debug, thiserror::Error)]
pub enum ContentError {
    /// It can still be changed, or is no memory file at all.
    #[error("the content is not sealed")]
    NotSealed,
    /// It is a pipe, a socket, a device, a directory.
    #[error("the content is not a file")]
    NotAFile,
    /// Its length is not the one that was announced (bytes).
    #[error("the content has {actual} bytes, {announced} were announced")]
    WrongSize {
        /// Length that the sender gave (bytes).
        announced: u64,
        /// Length of the file (bytes).
        actual: u64,
    },
    /// The kernel would not say.
    #[error("the content cannot be examined: {0}")]
    Io(#[from] io::Error),
}

/// A memory file of a fixed size that is still being filled, by one or more
/// writers at once.
#[derive(Debug)]
pub struct MemFile {
    file: File,
    size: u64,
}

impl MemFile {
    /// Makes a file of `size` bytes, all zero. Pages are taken as they are written.
    pub fn create(size: u64) -> io::Result<Self> {
        let flags = MFdFlags::MFD_CLOEXEC | MFdFlags::MFD_ALLOW_SEALING;
        let no_exec = MFdFlags::from_bits_retain(nix::libc::MFD_NOEXEC_SEAL);
        let fd = match memfd_create(c"palisade-content", flags | no_exec) {
            // Kernels before 6.3 do not know the flag.
            Err(Errno::EINVAL) => memfd_create(c"palisade-content", flags)?,
            other => other?,
        };
        let file = File::from(fd);
        file.set_len(size)?;
        // Writers may not move the end: a wrong offset is an error, not a growth.
        fcntl(
            &file,
            FcntlArg::F_ADD_SEALS(SealFlag::F_SEAL_SHRINK | SealFlag::F_SEAL_GROW),
        )?;
        Ok(Self { file, size })
    }

    /// Length (bytes).
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Writes all of `bytes` at `offset` (bytes); fails if they do not fit.
    pub fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let fits = offset
            .checked_add(bytes.len() as u64)
            .is_some_and(|end| end <= self.size);
        if !fits {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "a write past the end of the content",
            ));
        }
        self.file.write_all_at(bytes, offset)
    }

    /// Fills `buffer` from `offset` (bytes).
    pub fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    /// Gives the memory of `length` bytes at `offset` back to the kernel, as far as it is
    /// whole pages; they read as zeros then.
    pub fn give_back(&self, offset: u64, length: u64) -> io::Result<()> {
        let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let offset = i64::try_from(offset).map_err(io::Error::other)?;
        let length = i64::try_from(length).map_err(io::Error::other)?;
        Ok(fallocate(&self.file, hole, offset, length)?)
    }

    /// Memory that the file takes (bytes).
    pub fn held_bytes(&self) -> io::Result<u64> {
        // The kernel counts blocks of 512 bytes, whatever the file system's.
        Ok(self.file.metadata()?.blocks() * 512)
    }

    /// Seals the content: from here on nobody can change it.
    pub fn seal(self) -> io::Result<SealedContent> {
        fcntl(
            &self.file,
            FcntlArg::F_ADD_SEALS(SEALS | SealFlag::F_SEAL_SEAL),
        )?;
        Ok(SealedContent {
            file: self.file,
            size: self.size,
        })
    }
}

/// Content that cannot change, of a known length.
#[derive(Debug)]
pub struct SealedContent {
    file: File,
    size: u64,
}

impl SealedContent {
    /// Sealed content of these bytes.
    pub fn from_bytes(bytes: &[u8]) -> io::Result<Self> {
        let file = MemFile::create(bytes.len() as u64)?;
        file.write_at(bytes, 0)?;
        file.seal()
    }

    /// Accepts a descriptor from another process, if it is sealed and has the
    /// announced size (bytes).
    pub fn verify(fd: OwnedFd, announced: u64) -> Result<Self, ContentError> {
        let seals = match fcntl(&fd, FcntlArg::F_GET_SEALS) {
            Ok(bits) => SealFlag::from_bits_truncate(bits),
            Err(Errno::EINVAL) => return Err(ContentError::NotSealed),
            Err(errno) => return Err(ContentError::Io(errno.into())),
        };
        if !seals.contains(SEALS) {
            return Err(ContentError::NotSealed);
        }
        let file = File::from(fd);
        let actual = file.metadata()?.len();
        if actual != announced {
            return Err(ContentError::WrongSize { announced, actual });
        }
        Ok(Self { file, size: actual })
    }

    /// A sealed copy of a file from another process, which may still be writing to
    /// it: what was there as it was read. The caller bounds `announced`, its size
    /// (bytes).
    pub fn copied(fd: OwnedFd, announced: u64) -> Result<Self, ContentError> {
        let theirs = File::from(fd);
        let metadata = theirs.metadata()?;
        if !metadata.is_file() {
            return Err(ContentError::NotAFile);
        }
        let actual = metadata.len();
        if actual != announced {
            return Err(ContentError::WrongSize { announced, actual });
        }
        let ours = MemFile::create(announced)?;
        let mut buffer = vec![0; COPY_BYTES.min(usize::try_from(announced).unwrap_or(COPY_BYTES))];
        let mut offset = 0;
        while offset < announced {
            let left = usize::try_from(announced - offset).unwrap_or(usize::MAX);
            let part = left.min(COPY_BYTES);
            theirs.read_exact_at(&mut buffer[..part], offset)?;
            ours.write_at(&buffer[..part], offset)?;
            offset += part as u64;
        }
        Ok(ours.seal()?)
    }

    /// A file that nobody else has, in place of a sealed one.
    pub(crate) fn of_own(file: File) -> io::Result<Self> {
        let size = file.metadata()?.len();
        Ok(Self { file, size })
    }

    /// All of the content as a slice, of which pages are read as they are looked at.
    pub fn map(&self) -> io::Result<Mapped<'_>> {
        let size = usize::try_from(self.size).map_err(io::Error::other)?;
        Mapped::new(self.file.as_fd(), size)
    }

    /// Length (bytes).
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Fills `buffer` from `offset` (bytes).
    pub fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buffer, offset)
    }

    /// All of the content, in memory.
    pub fn to_vec(&self) -> io::Result<Vec<u8>> {
        let size = usize::try_from(self.size).map_err(io::Error::other)?;
        let mut bytes = Vec::new();
        bytes.try_reserve_exact(size).map_err(io::Error::other)?;
        bytes.resize(size, 0);
        self.read_exact_at(&mut bytes, 0)?;
        Ok(bytes)
    }

    /// Another descriptor of the same content.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            file: self.file.try_clone()?,
            size: self.size,
        })
    }
}

impl AsFd for SealedContent {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sealed_content_cannot_change_and_is_accepted() {
        let file = MemFile::create(6).unwrap();
        file.write_at(b"def", 3).unwrap();
        file.write_at(b"abc", 0).unwrap();
        assert!(file.write_at(b"x", 6).is_err());
        assert!(file.write_at(b"x", u64::MAX).is_err());
        let sealed = file.seal().unwrap();
        assert_eq!(sealed.to_vec().unwrap(), b"abcdef");
        assert!(sealed.file.write_all_at(b"x", 0).is_err());
        assert!(sealed.file.set_len(1).is_err());
        let fd = sealed.as_fd().try_clone_to_owned().unwrap();
        assert_eq!(SealedContent::verify(fd, 6).unwrap().size(), 6);
    }

    #[test]
    fn memory_that_is_given_back_is_none_and_reads_as_zeros() {
        let file = MemFile::create(1 << 40).unwrap();
        assert_eq!(file.held_bytes().unwrap(), 0, "a length is no memory");
        let offset = (1 << 40) - 3 * 4096;
        file.write_at(&[7; 3 * 4096], offset).unwrap();
        file.give_back(offset + 4096, 4096).unwrap();
        assert_eq!(file.held_bytes().unwrap(), 2 * 4096);
        let mut bytes = [1; 3 * 4096];
        file.read_exact_at(&mut bytes, offset).unwrap();
        let expected = [[7; 4096], [0; 4096], [7; 4096]].concat();
        assert_eq!(bytes, *expected);
    }

    #[test]
    fn what_is_not_sealed_or_not_as_long_is_refused() {
        let open = MemFile::create(3).unwrap();
        let fd = open.file.as_fd().try_clone_to_owned().unwrap();
        assert!(matches!(
            SealedContent::verify(fd, 3),
            Err(ContentError::NotSealed)
        ));

        let disk = tempfile::tempfile().unwrap();
        assert!(matches!(
            SealedContent::verify(disk.into(), 0),
            Err(ContentError::NotSealed)
        ));

        let (pipe, _other) = nix::unistd::pipe().unwrap();
        assert!(matches!(
            SealedContent::copied(pipe.try_clone().unwrap(), 0),
            Err(ContentError::NotAFile)
        ));
        assert!(matches!(
            SealedContent::verify(pipe, 0),
            Err(ContentError::NotSealed)
        ));

        let sealed = SealedContent::from_bytes(b"abc").unwrap();
        let fd = sealed.as_fd().try_clone_to_owned().unwrap();
        assert!(matches!(
            SealedContent::verify(fd, 4),
            Err(ContentError::WrongSize {
                announced: 4,
                actual: 3
            })
        ));
    }

    #[test]
    fn a_copy_is_what_was_there_and_stays_so() {
        let bytes: Vec<u8> = (0..COPY_BYTES + 7).map(|n| n as u8).collect();
        let theirs = tempfile::tempfile().unwrap();
        theirs.write_all_at(&bytes, 0).unwrap();
        let size = bytes.len() as u64;
        let copy = SealedContent::copied(theirs.try_clone().unwrap().into(), size).unwrap();
        theirs.write_all_at(b"changed", 0).unwrap();
        assert_eq!(copy.to_vec().unwrap(), bytes);
        assert_eq!(&*copy.map().unwrap(), bytes);
        let fd = copy.as_fd().try_clone_to_owned().unwrap();
        assert!(SealedContent::verify(fd, size).is_ok());
        assert!(matches!(
            SealedContent::copied(theirs.into(), 1),
            Err(ContentError::WrongSize { .. })
        ));
        let empty = SealedContent::copied(tempfile::tempfile().unwrap().into(), 0).unwrap();
        assert!(empty.map().unwrap().is_empty());
    }
}
