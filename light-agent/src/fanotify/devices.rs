//! Device nodes: whether the open of one is an event on the running kernel, and which file
//! systems hold them.
//!
//! Where it is one (Linux 6.1), the kernel opens the device for the reader, too: the agent
//! has no terminal, so that `/dev/tty` would be denied, and with others an open begins
//! something. Where it is none (Linux 6.18), a `/dev` is a file system as any other.

use std::fs::File;
use std::os::fd::BorrowedFd;

use nix::fcntl::AT_FDCWD;
use nix::sys::fanotify::{EventFFlags, Fanotify, InitFlags, MarkFlags, MaskFlags};
use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, StatxFlags, openat2, statx};
use rustix::io::Errno;

/// The device whose open is tried: it does nothing.
const NULL: &str = "/dev/null";
/// Its number.
const NULL_NUMBER: (u32, u32) = (1, 3);
/// The type of a tmpfs, as `statfs` says it.
const TMPFS: i64 = 0x0102_1994;
/// Tries to find what is in memory: a rename elsewhere can disturb one.
const TRIES: usize = 4;

/// Whether opens of device nodes are events: tried. What cannot be tried is taken for yes.
pub fn are_seen() -> bool {
    tried().unwrap_or(true)
}

fn tried() -> Option<bool> {
    let flags = InitFlags::FAN_CLASS_NOTIF | InitFlags::FAN_NONBLOCK | InitFlags::FAN_CLOEXEC;
    let group = Fanotify::init(flags, EventFFlags::O_RDONLY | EventFFlags::O_CLOEXEC).ok()?;
    let (add, open) = (MarkFlags::FAN_MARK_ADD, MaskFlags::FAN_OPEN);
    group.mark(add, open, AT_FDCWD, Some(NULL)).ok()?;
    File::open(NULL).ok()?;
    Some(group.read_events().is_ok_and(|events| !events.is_empty()))
}

/// Whether a folder is that of a tmpfs and holds `null`, as every `/dev` does: a node that
/// nobody can make by being root in a namespace of users alone. Asks for nothing that is
/// not in memory.
pub fn are_in(folder: BorrowedFd<'_>) -> bool {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let within = ResolveFlags::CACHED | ResolveFlags::NO_XDEV | ResolveFlags::NO_SYMLINKS;
    let open = || openat2(folder, "null", flags, Mode::empty(), within);
    let mut tries = std::iter::repeat_with(open).take(TRIES);
    let Some(Ok(file)) = tries.find(|opened| opened.as_ref().err() != Some(&Errno::AGAIN)) else {
        return false;
    };
    let tmpfs = rustix::fs::fstatfs(folder).is_ok_and(|there| there.f_type == TMPFS);
    let asked = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let is_null = statx(&file, c"", asked, StatxFlags::TYPE).is_ok_and(|there| {
        FileType::from_raw_mode(there.stx_mode.into()) == FileType::CharacterDevice
            && (there.stx_rdev_major, there.stx_rdev_minor) == NULL_NUMBER
    });
    tmpfs && is_null
}
