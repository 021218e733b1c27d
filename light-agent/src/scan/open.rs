//! Opening what a scan looks at: no link is followed, nothing waits, and no device is
//! opened to find out that it is one.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use nix::libc;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use rustix::io::Errno;

use super::places::is_executable_of_process;

/// What an opened path is.
#[derive(Debug)]
pub enum Opened {
    /// A regular file.
    Regular(File),
    /// Something else, put in place of a regular file meanwhile.
    Other,
}

/// Opens a file for reading, without waiting and without following a link, but for
/// that by which the kernel names what a process executes. What is no regular file is
/// never opened: to open a device can do something (a watchdog begins to count).
///
/// # Errors
/// The kernel's.
pub fn open(path: &Path) -> io::Result<Opened> {
    let follows = if is_executable_of_process(path) {
        0
    } else {
        libc::O_NOFOLLOW
    };
    let there = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_PATH | follows | libc::O_CLOEXEC)
        .open(path)?;
    regular(&there)
}

/// The same of a path that the kernel gave, at which no folder is a link: one that is by
/// now was put there for whoever comes back.
///
/// # Errors
/// The kernel's; `ELOOP` for a link anywhere.
pub fn open_again(path: &Path) -> io::Result<Opened> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let there = match openat2(CWD, path, flags, Mode::empty(), resolve) {
        Ok(there) => File::from(there),
        // Before Linux 5.6.
        Err(Errno::NOSYS) => return open(path),
        Err(error) => return Err(error.into()),
    };
    regular(&there)
}

/// Opens what `there` names, if that is a regular file.
fn regular(there: &File) -> io::Result<Opened> {
    let kind = there.metadata()?.file_type();
    if kind.is_symlink() {
        return Err(io::Error::from_raw_os_error(libc::ELOOP));
    }
    if !kind.is_file() {
        return Ok(Opened::Other);
    }
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC)
        .open(format!("/proc/self/fd/{}", there.as_raw_fd()))?;
    Ok(Opened::Regular(file))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::sync::atomic::{self, AtomicBool};

    #[test]
    fn opening_never_waits_and_follows_no_link() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(matches!(open(&fifo), Ok(Opened::Other)));
        let link = dir.path().join("link");
        symlink("/etc/hostname", &link).unwrap();
        assert_eq!(open(&link).unwrap_err().raw_os_error(), Some(libc::ELOOP));
        // A folder that became a link since the kernel named a file in it.
        fs::create_dir(dir.path().join("real")).unwrap();
        fs::write(dir.path().join("real/file"), "x").unwrap();
        symlink("real", dir.path().join("moved")).unwrap();
        let through = dir.path().join("moved/file");
        assert!(matches!(open(&through), Ok(Opened::Regular(_))));
        for again in [&link, &through] {
            let refused = open_again(again).unwrap_err();
            assert_eq!(refused.raw_os_error(), Some(libc::ELOOP));
        }
        let straight = fs::canonicalize(dir.path()).unwrap().join("real/file");
        assert!(matches!(open_again(&straight), Ok(Opened::Regular(_))));
    }

    /// As a device is not, too.
    #[test]
    fn what_is_no_file_is_not_opened() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        // A writer that does not wait is let in by whoever reads, and only by that.
        let write = || {
            OpenOptions::new()
                .write(true)
                .custom_flags(libc::O_NONBLOCK)
                .open(&fifo)
        };
        let watched = std::sync::Arc::new(AtomicBool::new(false));
        let (over, path) = (std::sync::Arc::clone(&watched), fifo.clone());
        let opener = std::thread::spawn(move || {
            for _ in 0..20_000 {
                assert!(matches!(open(&path), Ok(Opened::Other)));
                assert!(matches!(open_again(&path), Ok(Opened::Other)));
            }
            over.store(true, atomic::Ordering::Relaxed);
        });
        while !watched.load(atomic::Ordering::Relaxed) {
            assert_eq!(write().unwrap_err().raw_os_error(), Some(libc::ENXIO));
        }
        opener.join().unwrap();
    }
}
