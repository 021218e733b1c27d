//! The thread that reads a group's events, and does nothing else.
//!
//! It looks at what the event itself says (process, path by its descriptor,
//! `fstat`, remembered verdict), answers what is trivial and hands the rest on
//! through a bounded queue; a full queue is answered by the failure table. It
//! opens no path but the kernel's tables of mounts, writes no log and waits for nobody.
//!
//! What cannot be opened for it, for whatever cause, the kernel denies by itself: that is
//! counted, and ends nothing ([`VainReads`]).

use std::ffi::OsStr;
use std::io::Read as _;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::sync::mpsc;

use super::event::{Desk, Event};
use super::group::Group;
use super::names::Names;
use super::places::kind_of;
use super::programs::Programs;
use crate::accounts::Outcome;
use crate::cache::Cache;
use crate::deadline::Deadlines;
use crate::decide::{Decision, Facts, Scope, decide};
use crate::deferred::Deferred;
use crate::exposure::windows::Way;
use crate::failure::{Access, Answer, Failure};
use crate::learn::Learned;
use crate::lease::is_unwritten;
use crate::marks::Marks;
use crate::stamp::Stamp;

/// Said to a reader when another group watches the same already: what is queued still is
/// served as if nothing ended. Without it, whoever waits is let go by the failure table.
pub const HAND_OVER: u8 = b'h';

/// Reads that fail in a row, each without an event taken from the queue, after which the
/// group is of no more use: some milliseconds of a loop that gets nowhere.
const MOST_VAIN_READS: u32 = 10_000;

/// An event that a Protection Server has to be asked about.
pub struct Asked {
    /// The event.
    pub event: Arc<Event>,
    /// What the file looked like when it was opened.
    pub stamp: Stamp,
    /// Its path, as the kernel names it.
    pub path: Vec<u8>,
    /// Whether it was certain that nobody had it open for writing.
    pub no_writer: bool,
}

/// What a group tells of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// Opens.
    Opens,
    /// Files that were closed after writing.
    Writes,
}

impl Told {
    /// How an event's file would be let through.
    pub fn of(self, event: &Event) -> Way {
        match (self, event.access) {
            (Self::Writes, _) => Way::Written,
            (Self::Opens, Access::Open) => Way::Open,
            (Self::Opens, Access::Exec) => Way::Exec,
        }
    }
}

/// What the reader decides with.
pub struct Triage {
    /// Answers and their books.
    pub desk: Arc<Desk>,
    /// Which paths.
    pub scope: Scope,
    /// Whose opens are let through.
    pub programs: Programs,
    /// What is remembered.
    pub cache: Arc<Cache>,
    /// Has the kernel ask no more about some clean files.
    pub marks: Marks,
    /// Takes note of what is let through without a verdict.
    pub deferred: Deferred,
    /// Who answers what nobody does.
    pub deadlines: Deadlines,
    /// How long an answer may take.
    pub deadline: Duration,
    /// Largest content that is scanned; 0 while no Protection Server is connected.
    pub max_scan_bytes: Arc<AtomicU64>,
    /// Descriptors from this number on are the reserve.
    pub fd_reserve_from: i32,
    /// Whether anybody opens what it is told of.
    pub told: Told,
    /// Counts what costs how much, where settings ask for it.
    pub learned: Option<Learned>,
    /// Who asks.
    pub queue: mpsc::Sender<Asked>,
    /// How often the reader has turned, for whoever looks whether it moves.
    pub turns: Arc<AtomicU64>,
}

/// Reads until `stop` closes, with or without [`HAND_OVER`], or the kernel fails; returns
/// the kernel's error.
///
/// # Errors
/// What the kernel said, when the group is of no more use.
pub fn run(group: &Group, stop: &UnixStream, triage: &Triage) -> nix::Result<()> {
    let own = std::process::id();
    let mut names = Names::new(&triage.scope.paths);
    let mut vain = VainReads::default();
    loop {
        triage.turns.fetch_add(1, Ordering::Relaxed);
        let mut wait = [
            PollFd::new(group.as_fd(), PollFlags::POLLIN),
            PollFd::new(stop.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut wait, PollTimeout::NONE) {
            Ok(_) => {}
            Err(Errno::EINTR) => continue,
            Err(error) => return Err(error),
        }
        if wait[1].any().unwrap_or(true) {
            // No new ones come, and nobody is to wait until the group is closed.
            let mut said = [0];
            let mut told = stop;
            let served = told.read(&mut said).is_ok_and(|n| n == 1) && said == [HAND_OVER];
            drain(group, triage, |event| match served {
                true => triage.sort(event, own, &mut names),
                false => drop(event),
            });
            return Ok(());
        }
        let before = vain.is_under_way().then(|| group.queued_bytes());
        match group.read() {
            Ok(events) => {
                vain = VainReads::default();
                for event in events {
                    // One may take a while: its opener's table of mounts is read.
                    triage.turns.fetch_add(1, Ordering::Relaxed);
                    if let Some(event) = Event::take(event, &triage.desk) {
                        triage.sort(event, own, &mut names);
                    }
                }
            }
            Err(Errno::EINTR) => {}
            // The event could not be opened for us (a lease, no descriptor left, a disk that
            // fails, a device that answers with any error that it likes), and the kernel
            // denied it, if it was held.
            Err(error) => {
                triage.desk.accounts.kernel_refused();
                if !vain.goes_on(before, group.queued_bytes()) {
                    return Err(error);
                }
            }
        }
    }
}

/// Hands on all that is queued still. What cannot be opened is passed over as ever: those
/// behind it wait for an answer, too.
fn drain(group: &Group, triage: &Triage, mut hand_on: impl FnMut(Event)) {
    let mut vain = VainReads::default();
    loop {
        triage.turns.fetch_add(1, Ordering::Relaxed);
        let before = group.queued_bytes();
        if before == 0 {
            return;
        }
        match group.read() {
            Ok(events) => {
                vain = VainReads::default();
                for event in events {
                    triage.turns.fetch_add(1, Ordering::Relaxed);
                    if let Some(event) = Event::take(event, &triage.desk) {
                        hand_on(event);
                    }
                }
            }
            Err(Errno::EINTR) => {}
            Err(_) => {
                triage.desk.accounts.kernel_refused();
                if !vain.goes_on(Some(before), group.queued_bytes()) {
                    return;
                }
            }
        }
    }
}

/// Reads that failed in a row. Which error it was says nothing: whoever may make a device
/// node chooses it. What tells a file that cannot be opened from a group that cannot be
/// read is that the event is gone from the queue.
#[derive(Debug, Default)]
struct VainReads {
    failed: bool,
    in_row: u32,
}

impl VainReads {
    fn is_under_way(&self) -> bool {
        self.failed
    }

    /// Whether to read again after one that failed, by what was queued before (if that was
    /// asked) and after it. Openers that come meanwhile hide that an event was taken, but
    /// not each time: each of them waits for its own to be taken.
    fn goes_on(&mut self, before: Option<u64>, after: u64) -> bool {
        self.failed = true;
        match before {
            Some(before) if after >= before => self.in_row += 1,
            _ => self.in_row = 0,
        }
        self.in_row < MOST_VAIN_READS
    }
}

impl Triage {
    /// Nobody is asked as long as none is excluded. What the kernel does not say is not.
    fn is_of_excluded_kind(&self, event: &Event) -> bool {
        let excluded = &self.scope.exclude_types;
        !excluded.is_empty() && kind_of(event).is_ok_and(|kind| excluded.contains(&kind))
    }

    fn sort(&self, event: Event, own: u32, names: &mut Names) {
        if event.pid == own {
            event.answer(Outcome::Policy);
            return;
        }
        let path = path_of(&event);
        let Ok(stamp) = Stamp::of(&event) else {
            event.fail(Failure::ReadError);
            return;
        };
        let facts = Facts {
            access: event.access,
            own: false,
            path: path.as_deref(),
            hidden: self.hides(&event, &stamp, path.as_deref(), names),
            kind_excluded: self.is_of_excluded_kind(&event),
            regular: stamp.regular,
            size: stamp.size,
            few_fds: event.as_fd().as_raw_fd() >= self.fd_reserve_from,
            max_scan_bytes: match self.max_scan_bytes.load(Ordering::Relaxed) {
                0 => None,
                max => Some(max),
            },
        };
        let protected = !facts.kind_excluded
            && (facts.hidden
                || path
                    .as_deref()
                    .is_some_and(|path| self.scope.covers(path, stamp.size)));
        // What it executes is another program.
        if protected && event.access == Access::Open && self.programs.are_run_by(event.pid) {
            event.answer(Outcome::Policy);
            return;
        }
        let mut no_writer = false;
        let decision = decide(&facts, &self.scope, &self.desk.table, || {
            // The stamp is taken again after the lease: a writer that came and
            // went between the two has moved it.
            no_writer = is_unwritten(&event) && Stamp::of(&event).is_ok_and(|now| now == stamp);
            if no_writer {
                self.cache.get(&stamp).map(|known| known.verdict)
            } else {
                None
            }
        });
        match decision {
            Decision::Answer(outcome) => {
                event.answer(outcome);
                if let (Some(learned), Outcome::Cached(_)) = (&self.learned, outcome) {
                    learned.note(path.as_deref().unwrap_or_default(), None, None);
                }
                if let Outcome::Failed(reason, _) = outcome {
                    self.note(&event, &path.unwrap_or_default(), &stamp, reason);
                }
                if self.marks.are_placed() && outcome == Outcome::Cached(Answer::Allow) {
                    self.marks.found_clean(&Arc::new(event), &stamp);
                }
            }
            Decision::Ask => {
                let event = Arc::new(event);
                event.due_at(Instant::now() + self.deadline, &self.deadlines);
                let path = path.unwrap_or_default();
                let asked = Asked {
                    event,
                    stamp,
                    path,
                    no_writer,
                };
                if let Err(refused) = self.queue.try_send(asked) {
                    let asked = refused.into_inner();
                    asked.event.fail(Failure::QueueFull);
                    self.note(&asked.event, &asked.path, &stamp, Failure::QueueFull);
                }
            }
        }
    }

    fn note(&self, event: &Event, path: &[u8], stamp: &Stamp, reason: Failure) {
        if event.is_let_through() {
            self.deferred.note(path, stamp, reason, self.told.of(event));
        }
    }
}

impl Triage {
    /// Whether it is a protected file whose name does not say so.
    fn hides(&self, event: &Event, stamp: &Stamp, path: Option<&[u8]>, names: &mut Names) -> bool {
        let scope = &self.scope;
        let matters = stamp.regular
            && stamp.size > 0
            && scope.fits(stamp.size)
            && !path.is_some_and(|path| scope.covers(path, stamp.size));
        let excluded =
            || path.is_some_and(|path| scope.excludes(Path::new(OsStr::from_bytes(path))));
        matters && names.hide(event.as_fd(), event.pid, path, excluded())
    }
}

/// The path of an open file, as the kernel names it: a link is read, nothing is opened.
fn path_of(event: &Event) -> Option<Vec<u8>> {
    let link = format!("/proc/self/fd/{}", event.as_fd().as_raw_fd());
    std::fs::read_link(link)
        .ok()
        .map(|path| path.into_os_string().into_vec())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_group_that_cannot_be_read_is_given_up() {
        let mut vain = VainReads::default();
        assert!(!vain.is_under_way());
        assert!(vain.goes_on(None, 24) && vain.is_under_way());
        for _ in 1..MOST_VAIN_READS {
            assert!(vain.goes_on(Some(24), 24));
        }
        assert!(!vain.goes_on(Some(24), 48));
    }

    proptest! {
        // As many as like may open what cannot be opened.
        #[test]
        fn files_that_cannot_be_opened_end_nothing(
            rounds in prop::collection::vec((1..MOST_VAIN_READS, 1..100_u64), 1..20),
        ) {
            let mut vain = VainReads::default();
            for (hidden, queued) in rounds {
                for _ in 1..hidden {
                    prop_assert!(vain.goes_on(Some(queued), queued));
                }
                prop_assert!(vain.goes_on(Some(queued), queued - 1));
            }
        }
    }
}
