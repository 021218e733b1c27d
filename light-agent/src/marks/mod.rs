//! Ignore marks: files that were found clean and that the kernel asks no more about.
//!
//! ```text
//!  clean, remembered ──► queue ──► no writer, policy ──► marked ──► still so? else unmarked
//!                                                          │
//!    other definitions, a notice, every 10 minutes ──► all marks lifted
//! ```
//!
//! An open of a marked file costs what it costs without an agent. A `write` to the file
//! clears its mark in the kernel; what does not is the reason for [`policy`] and for the
//! lease that is asked for before and after. A change of owner or mode does not, either:
//! so all marks are lifted every [`LONGEST`].
//!
//! Owns the one thread that places and lifts marks, so that no reader and no scan ever
//! waits for the questions that it takes. Does not own the verdicts
//! ([`cache`](crate::cache)): a mark stands only while one is remembered.

mod facts;
pub mod policy;

use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use palisade_protocol::verdict::Verdict;

use self::facts::Mounts;
pub use self::policy::Level;
use crate::cache::Cache;
use crate::fanotify::event::Event;
use crate::fanotify::group::Group;
use crate::lease;
use crate::stamp::Stamp;
use crate::threads;

/// Files that wait to be marked, at the most; more are marked when they are opened again.
const QUEUE: usize = 256;
/// How long a mark stands at the longest.
pub const LONGEST: Duration = Duration::from_secs(600);

/// What is counted.
#[derive(Debug, Default)]
pub struct Counts {
    placed: AtomicU64,
    lifted: AtomicU64,
}

/// The counts at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
pub struct Snapshot {
    /// How far marks go.
    pub level: Level,
    /// Marks that were placed.
    pub placed: u64,
    /// Times that all were lifted.
    pub lifted: u64,
}

struct Candidate {
    /// Keeps the file open.
    event: Arc<Event>,
    /// The file as it was when it was found clean.
    stamp: Stamp,
}

/// Places marks. Clones share it.
#[derive(Clone)]
pub struct Marks {
    level: Level,
    queue: Option<SyncSender<Option<Candidate>>>,
    lift: Arc<AtomicBool>,
    counts: Arc<Counts>,
}

impl Marks {
    /// Places none.
    pub fn none() -> Self {
        Self {
            level: Level::Off,
            queue: None,
            lift: Arc::default(),
            counts: Arc::default(),
        }
    }

    /// Starts the thread; it ends when nobody could give it files any more. Where the
    /// kernel lacks marks that do not pin their files, none are placed.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(level: Level, group: &Arc<Group>, cache: &Arc<Cache>) -> std::io::Result<Self> {
        if level == Level::Off {
            return Ok(Self::none());
        }
        let (queue, queued) = sync_channel(QUEUE);
        let marks = Self {
            level,
            queue: Some(queue),
            lift: Arc::default(),
            counts: Arc::default(),
        };
        let mut marker = Marker {
            level,
            group: Arc::downgrade(group),
            cache: Arc::clone(cache),
            lift: Arc::clone(&marks.lift),
            counts: Arc::clone(&marks.counts),
            mounts: Mounts::default(),
            first: None,
        };
        threads::vital("marks", move || marker.run(&queued))?;
        marks.follow(cache);
        Ok(marks)
    }

    /// Has all of them lifted when verdicts are forgotten, and no others' any more.
    pub fn follow(&self, cache: &Cache) {
        let lifting = self.clone();
        cache.on_forgotten(match self.queue {
            Some(_) => Some(Box::new(move || lifting.lift_all())),
            None => None,
        });
    }

    /// A file was found clean and is remembered.
    pub fn found_clean(&self, event: &Arc<Event>, stamp: &Stamp) {
        if let Some(queue) = &self.queue {
            let candidate = Candidate {
                event: Arc::clone(event),
                stamp: *stamp,
            };
            // Full: it is marked when it is opened again.
            let _ = queue.try_send(Some(candidate));
        }
    }

    /// Whether any are placed.
    pub fn are_placed(&self) -> bool {
        self.queue.is_some()
    }

    /// Has all marks lifted soon: verdicts were forgotten.
    pub fn lift_all(&self) {
        self.lift.store(true, Relaxed);
        if let Some(queue) = &self.queue {
            // Full: whoever takes the next one looks first.
            let _ = queue.try_send(None);
        }
    }

    /// The counts now.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot {
            level: self.level,
            placed: self.counts.placed.load(Relaxed),
            lifted: self.counts.lifted.load(Relaxed),
        }
    }
}

struct Marker {
    level: Level,
    /// It closes with its events and its reader, whoever else is there.
    group: Weak<Group>,
    cache: Arc<Cache>,
    lift: Arc<AtomicBool>,
    counts: Arc<Counts>,
    mounts: Mounts,
    /// When the oldest mark that stands was placed.
    first: Option<Instant>,
}

impl Marker {
    fn run(&mut self, queue: &Receiver<Option<Candidate>>) {
        loop {
            // Without any mark nothing has to be lifted, and nobody wakes.
            let next = match self.first {
                Some(first) => queue.recv_timeout(LONGEST.saturating_sub(first.elapsed())),
                None => queue.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            if self.lift.swap(false, Relaxed)
                || self.first.is_some_and(|first| first.elapsed() >= LONGEST)
            {
                self.lift_all();
            }
            match next {
                Ok(Some(candidate)) => self.consider(&candidate),
                Ok(None) | Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    }

    fn lift_all(&mut self) {
        if let Some(group) = self.group.upgrade() {
            group.lift_ignore_marks();
        }
        self.first = None;
        self.counts.lifted.fetch_add(1, Relaxed);
    }

    fn consider(&mut self, candidate: &Candidate) {
        let Some(group) = self.group.upgrade() else {
            return;
        };
        let file = candidate.event.as_fd();
        let allowed =
            facts::of(file, &mut self.mounts).is_ok_and(|facts| self.level.allows(&facts));
        if !allowed || !self.is_clean(candidate) || group.ignore(file).is_err() {
            return;
        }
        self.first.get_or_insert_with(Instant::now);
        self.counts.placed.fetch_add(1, Relaxed);
        // A writer that came before the mark was seen by nobody; other definitions may
        // have come meanwhile, and their lifting may have passed this mark.
        let still = facts::of(file, &mut self.mounts).is_ok_and(|facts| self.level.allows(&facts));
        if !still || !self.is_clean(candidate) {
            group.ignore_no_more(file);
        }
    }

    /// Whether the very content that is there now is remembered as clean, and nobody
    /// can write to it.
    fn is_clean(&self, candidate: &Candidate) -> bool {
        let file = &*candidate.event;
        lease::is_unwritten(file)
            && Stamp::of(file).is_ok_and(|now| now == candidate.stamp)
            && self
                .cache
                .get(&candidate.stamp)
                .is_some_and(|known| known.verdict == Verdict::Clean)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_that_are_off_leave_nobody_who_is_told() {
        let cache = Cache::new(1);
        let told = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&told);
        cache.on_forgotten(Some(Box::new(move || {
            count.fetch_add(1, Relaxed);
        })));
        cache.forget(&[]);
        Marks::none().follow(&cache);
        cache.forget(&[]);
        assert_eq!(told.load(Relaxed), 1);
    }
}
