//! Opens that no system call of the opener's makes: io_uring's.
//!
//! The one file of this crate with unsafe code: a ring reads what its entries point to.

use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use io_uring::{IoUring, opcode, types};
use nix::libc;
use palisade_tests::skip;

use super::guest::{Guest, denied, number};

/// Opens by a ring of its own, and waits.
#[expect(
    unsafe_code,
    reason = "a ring takes addresses, and gives descriptors as numbers"
)]
fn open(path: &Path) -> io::Result<File> {
    let mut ring = IoUring::new(2)?;
    let name = CString::new(path.as_os_str().as_bytes())?;
    let entry = opcode::OpenAt::new(types::Fd(libc::AT_FDCWD), name.as_ptr())
        .flags(libc::O_RDONLY | libc::O_CLOEXEC)
        .build();
    // SAFETY: the name outlives the entry, whose end is waited for here.
    unsafe { ring.submission().push(&entry) }.map_err(io::Error::other)?;
    ring.submit_and_wait(1)?;
    let done = ring.completion().next().ok_or(io::ErrorKind::WouldBlock)?;
    match done.result() {
        error @ ..0 => Err(io::Error::from_raw_os_error(-error)),
        // SAFETY: the kernel has just opened it, and nobody else knows its number.
        opened => Ok(File::from(unsafe { OwnedFd::from_raw_fd(opened) })),
    }
}

#[test]
fn an_open_through_a_ring_is_held_as_any_other() {
    let test = "an_open_through_a_ring_is_held_as_any_other";
    if !skip::is_root(test) {
        return;
    }
    match open(Path::new("/")) {
        Ok(_) => {}
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENOSYS | libc::EPERM)) => {
            skip::skip(test, &format!("this kernel gives no rings: {error}"));
            return;
        }
        Err(error) => panic!("{error}"),
    }
    let guest = Guest::start("");
    let before = number(&guest.settled(), "seen");
    assert!(denied(open(&guest.bad("bad"))));
    open(&guest.clean("clean")).unwrap();
    let events = guest.settled();
    assert!(number(&events, "seen") >= before + 2, "{events}");
    // The control: nobody is asked about what lies elsewhere.
    let elsewhere = guest.test.file("bad", &guest.malware("elsewhere"));
    open(&elsewhere).unwrap();
}
