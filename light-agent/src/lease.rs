//! Whether a file has a writer, asked of the kernel: the crate's only unsafe code.
//!
//! A read lease is granted only while nobody has the file open for writing,
//! shared writable mappings included. It is taken, and given back at once; any
//! failure means "perhaps", and a file that perhaps has a writer is never
//! answered from a cache. SIGIO, which a broken lease sends, must be blocked in
//! every thread ([`block_signal`] before the first thread starts).

use std::os::fd::{AsFd, AsRawFd};

use nix::libc;
use nix::sys::signal::{SigSet, Signal};

use crate::fanotify::places::knows_writers;

/// Blocks SIGIO in this thread and in those that it starts.
///
/// # Errors
/// The kernel's.
pub fn block_signal() -> std::io::Result<()> {
    let mut signals = SigSet::empty();
    signals.add(Signal::SIGIO);
    Ok(signals.thread_block()?)
}

/// Whether it is certain that nobody has the file open for writing.
pub fn has_no_writer(file: impl AsFd) -> bool {
    set_lease(&file, libc::F_RDLCK) && set_lease(&file, libc::F_UNLCK)
}

/// Whether a verdict about it may be remembered: nobody has it open for writing, and were
/// that otherwise, the kernel would say so.
pub fn is_unwritten(file: impl AsFd) -> bool {
    knows_writers(&file) && has_no_writer(file)
}

#[allow(unsafe_code)]
fn set_lease(file: &impl AsFd, kind: libc::c_int) -> bool {
    // SAFETY: `fcntl(F_SETLEASE)` takes an open descriptor, which the borrow
    // keeps open for the call, and an integer; it touches no memory of ours.
    // JUSTIFICATION: neither nix nor rustix wraps F_SETLEASE.
    unsafe { libc::fcntl(file.as_fd().as_raw_fd(), libc::F_SETLEASE, kind) == 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_writer_is_seen() {
        block_signal().unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        let reader = std::fs::File::open(file.path()).unwrap();
        assert!(
            !has_no_writer(&reader),
            "the temporary file's own handle writes"
        );
        let path = file.into_temp_path();
        assert!(has_no_writer(&reader));
        drop(path);
    }
}
