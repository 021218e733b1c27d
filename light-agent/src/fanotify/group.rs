//! The fanotify group: made, marked, answered.
//!
//! Owns the group's descriptor. Events are opened non-blocking, so that a lease
//! on a file refuses its own opener and does not freeze the reader.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use nix::errno::Errno;
use nix::fcntl::AT_FDCWD;
use nix::sys::fanotify::{
    EventFFlags, Fanotify, FanotifyEvent, FanotifyResponse, InitFlags, MarkFlags, MaskFlags,
    Response,
};

use super::event::Respond;
use crate::failure::Answer;
use crate::mode::Mode;

/// Why nothing can be protected on access. Each says what helps.
#[derive(Debug, thiserror::Error)]
pub enum Unavailable {
    /// The process may not.
    #[error(
        "on-access protection needs root (CAP_SYS_ADMIN), and the agent runs without it; \
         start it as root or as the system's service. On-demand scans work as they are"
    )]
    NoCapability,
    /// The kernel has no fanotify permission events.
    #[error(
        "this kernel has no fanotify permission events \
         (CONFIG_FANOTIFY_ACCESS_PERMISSIONS, Linux 5.0 or later): {0}"
    )]
    Kernel(Errno),
    /// The group cannot be made.
    #[error("the kernel refuses a fanotify group: {0}")]
    Init(Errno),
}

/// The bit of CAP_SYS_ADMIN in a capability set.
const CAP_SYS_ADMIN: u32 = 21;

/// Whether this process holds CAP_SYS_ADMIN, by the kernel's own account.
pub fn has_capability() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|set| u64::from_str_radix(set.trim(), 16).ok())
        .is_some_and(|set| set & (1 << CAP_SYS_ADMIN) != 0)
}

/// What a group is told of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Watched {
    /// Opens, which wait for an answer.
    HeldOpens,
    /// Opens, which nobody holds.
    Opens,
    /// Files that were closed after they could be written to.
    Writes,
}

impl Watched {
    /// How opens are watched in a mode.
    pub fn opens(mode: Mode) -> Self {
        match mode {
            Mode::Block => Self::HeldOpens,
            Mode::Monitor | Mode::Learn => Self::Opens,
        }
    }

    fn mask(self) -> MaskFlags {
        match self {
            Self::HeldOpens => MaskFlags::FAN_OPEN_PERM | MaskFlags::FAN_OPEN_EXEC_PERM,
            Self::Opens => MaskFlags::FAN_OPEN | MaskFlags::FAN_OPEN_EXEC,
            Self::Writes => MaskFlags::FAN_CLOSE_WRITE,
        }
    }
}

/// An open group. It closes when the last [`Event`](super::event::Event) and the
/// reader let it go, and with it all that wait are released.
#[derive(Debug)]
pub struct Group {
    kernel: Fanotify,
    watched: Watched,
    /// Whether all marks were taken away.
    ended: Mutex<bool>,
}

impl Group {
    /// Makes a group: of permission events where opens are held, else of notifications.
    ///
    /// # Errors
    /// [`Unavailable`], which says what helps.
    pub fn open(watched: Watched) -> Result<Self, Unavailable> {
        if !has_capability() {
            return Err(Unavailable::NoCapability);
        }
        let class = match watched {
            // Past the usual bound of a queue, opens would be let through unseen.
            Watched::HeldOpens => InitFlags::FAN_CLASS_CONTENT | InitFlags::FAN_UNLIMITED_QUEUE,
            // Nobody waits: what does not fit is dropped by the kernel, and counted.
            Watched::Opens | Watched::Writes => InitFlags::FAN_CLASS_NOTIF,
        };
        let flags = class | InitFlags::FAN_CLOEXEC | InitFlags::FAN_NONBLOCK;
        let events = EventFFlags::O_RDONLY
            | EventFFlags::O_LARGEFILE
            | EventFFlags::O_CLOEXEC
            | EventFFlags::O_NONBLOCK;
        match Fanotify::init(flags, events) {
            Ok(kernel) => Ok(Self {
                kernel,
                watched,
                ended: Mutex::new(false),
            }),
            Err(Errno::EPERM) => Err(Unavailable::NoCapability),
            Err(error @ (Errno::ENOSYS | Errno::EINVAL)) => Err(Unavailable::Kernel(error)),
            Err(error) => Err(Unavailable::Init(error)),
        }
    }

    /// Marks the whole file system that holds `path`: opens from every mount
    /// namespace are seen.
    ///
    /// # Errors
    /// The kernel's; `ECANCELED` once all marks were taken away.
    pub fn mark(&self, path: &Path) -> nix::Result<()> {
        let ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        if *ended {
            return Err(Errno::ECANCELED);
        }
        self.kernel.mark(
            MarkFlags::FAN_MARK_ADD | MarkFlags::FAN_MARK_FILESYSTEM,
            self.watched.mask(),
            AT_FDCWD,
            Some(path),
        )
    }

    /// Takes that back.
    pub fn unmark(&self, path: &Path) {
        // None there is as good.
        let _ = self.kernel.mark(
            MarkFlags::FAN_MARK_REMOVE | MarkFlags::FAN_MARK_FILESYSTEM,
            self.watched.mask(),
            AT_FDCWD,
            Some(path),
        );
    }

    /// Has the kernel ask no more about opens of this file, until it is written to. The
    /// mark does not keep the file in memory.
    ///
    /// # Errors
    /// The kernel's: `EINVAL` before Linux 5.19.
    pub fn ignore(&self, file: BorrowedFd<'_>) -> nix::Result<()> {
        self.ignore_mark(
            MarkFlags::FAN_MARK_ADD | MarkFlags::FAN_MARK_EVICTABLE,
            file,
        )
    }

    /// Takes that back.
    pub fn ignore_no_more(&self, file: BorrowedFd<'_>) {
        // Gone is as good.
        let _ = self.ignore_mark(MarkFlags::FAN_MARK_REMOVE, file);
    }

    fn ignore_mark(&self, flags: MarkFlags, file: BorrowedFd<'_>) -> nix::Result<()> {
        let flags = flags | MarkFlags::FAN_MARK_IGNORED_MASK;
        self.kernel
            .mark(flags, self.watched.mask(), file, None::<&Path>)
    }

    /// Takes back every [`ignore`](Self::ignore).
    pub fn lift_ignore_marks(&self) {
        let _ = self.kernel.mark(
            MarkFlags::FAN_MARK_FLUSH,
            MaskFlags::empty(),
            AT_FDCWD,
            Some(Path::new("/")),
        );
    }

    /// Takes every mark away, for good: no new events come, which nobody would read.
    pub fn unmark_all(&self) {
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        *ended = true;
        let flush = MarkFlags::FAN_MARK_FLUSH | MarkFlags::FAN_MARK_FILESYSTEM;
        let _ = self
            .kernel
            .mark(flush, MaskFlags::empty(), AT_FDCWD, Some(Path::new("/")));
        self.lift_ignore_marks();
    }

    /// Reads what is queued, without waiting.
    ///
    /// # Errors
    /// The kernel's; `EAGAIN` and `EMFILE` may mean that it denied an event itself.
    pub fn read(&self) -> nix::Result<Vec<FanotifyEvent>> {
        self.kernel.read_events()
    }

    /// How many bytes of events wait to be read.
    pub fn queued_bytes(&self) -> u64 {
        // The kernel knows the question of every group.
        rustix::io::ioctl_fionread(&self.kernel).unwrap_or(0)
    }
}

impl AsFd for Group {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.kernel.as_fd()
    }
}

impl Respond for Group {
    fn respond(&self, file: BorrowedFd<'_>, answer: Answer) {
        if self.watched != Watched::HeldOpens {
            // It asked nothing.
            return;
        }
        let response = match answer {
            Answer::Allow => Response::FAN_ALLOW,
            Answer::Deny => Response::FAN_DENY,
        };
        // ENOENT: the opener was killed meanwhile, and nobody waits any more.
        let _ = self
            .kernel
            .write_response(FanotifyResponse::new(file, response));
    }
}
