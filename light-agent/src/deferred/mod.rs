//! Files that were let through without a verdict: they are kept, and scanned when a
//! Protection Server is back.
//!
//! ```text
//!  reader, guard ─► note ─► windows: counted
//!                    └────► queue ─► (Protection Server) ─► scanned ─► counted in its window
//!                             │                               └─ malware: as any finding
//!                             └─► deferred.jsonl, exposure.json
//! ```
//!
//! | module | owns |
//! | --- | --- |
//! | [`queue`] | which files wait, and how many at the most; pure |
//! | [`drain`] | scanning them, gently |
//! | [`store`] | their file |
//!
//! A note is taken by whoever answers the kernel: it takes a short lock, and waits for no
//! disk. What was noted within the last seconds before a kill (the last minute and a half,
//! where thousands wait) is lost, and so is what
//! waited in the kernel's and the agent's own queues then: the window says that no agent
//! ran, and its opens are not counted.

pub mod drain;
pub mod queue;
pub mod store;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use tokio::sync::{Notify, watch};

use self::queue::{Item, Noted, Queue, is_deferrable};
use crate::exposure::windows::{Cause, Result, Way, Window, Windows};
use crate::failure::Failure;
use crate::spool::now_ms;
use crate::stamp::Stamp;
use crate::tasks::saved::SavedPath;

impl Dirty {
    fn all() -> Self {
        Self {
            windows: true,
            items: true,
        }
    }
}

/// For `status`: the guest's time without verdicts.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Snapshot {
    /// The window that lasts, if one does.
    pub now: Option<Shown>,
    /// The last few that have ended, the newest first.
    pub last: Vec<Shown>,
    /// Files that wait to be scanned.
    pub waiting: usize,
    /// Files that found no room, since the agent started: a scan finds them.
    pub not_kept: u64,
}

/// A window as it is shown.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Shown {
    /// What is remembered of it.
    #[serde(flatten)]
    pub window: Window,
    /// Files of it that still wait.
    pub waiting: u64,
}

impl From<&Window> for Shown {
    fn from(window: &Window) -> Self {
        Self {
            window: window.clone(),
            waiting: window.waiting(),
        }
    }
}

struct State {
    queue: Queue,
    windows: Windows,
    /// What changed since it was saved.
    dirty: Dirty,
    said_full: bool,
}

/// What is to be saved.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Dirty {
    windows: bool,
    /// Files came or went. How often one that waits was let through again is counted in
    /// its window, and not worth writing all of them.
    items: bool,
}

struct Shared {
    state: Mutex<State>,
    noted: Notify,
    /// Told when a cause begins or ends, and when no file waits any more.
    turned: watch::Sender<()>,
}

/// The notes. Clones share them.
#[derive(Clone)]
pub struct Deferred(Arc<Shared>);

impl Deferred {
    /// What was kept, for at most `bound` files that wait.
    pub fn new(bound: usize, items: Vec<Item>, windows: Windows) -> Self {
        let mut queue = Queue::new(bound);
        for item in items {
            queue.note(item);
        }
        let state = State {
            queue,
            windows,
            dirty: Dirty::default(),
            said_full: false,
        };
        Self(Arc::new(Shared {
            state: Mutex::new(state),
            noted: Notify::new(),
            turned: watch::Sender::new(()),
        }))
    }

    /// A file was let through without a verdict. Must not block.
    pub fn note(&self, path: &[u8], stamp: &Stamp, reason: Failure, way: Way) {
        if !is_deferrable(reason) {
            return;
        }
        let now = now_ms();
        let path = SavedPath::from_bytes(path);
        let mut state = self.lock();
        let window = state.windows.let_through(way, now);
        let noted = state
            .queue
            .note(Item::new(path, stamp, reason, window, now));
        match noted {
            Noted::New => {
                state.windows.kept(window, true);
                state.dirty.items = true;
            }
            Noted::NoRoom => state.windows.kept(window, false),
            Noted::Again => {}
        }
        state.dirty.windows = true;
        drop(state);
        self.0.noted.notify_one();
    }

    /// Whether files found no room that nobody was told about yet.
    pub fn is_newly_full(&self) -> bool {
        let mut state = self.lock();
        let newly = state.queue.not_kept() > 0 && !state.said_full;
        state.said_full |= newly;
        newly
    }

    /// Changes the windows, if there is something to change.
    pub fn windows(&self, change: impl FnOnce(&mut Windows) -> bool) {
        let mut state = self.lock();
        let changed = change(&mut state.windows);
        state.dirty.windows |= changed;
        drop(state);
        if changed {
            self.0.turned.send_replace(());
        }
    }

    /// Hears when a cause begins or ends, and when no file waits any more.
    pub fn turns(&self) -> watch::Receiver<()> {
        self.0.turned.subscribe()
    }

    /// A cause begins or ends.
    pub fn cause(&self, cause: Cause, on: bool) {
        let now = now_ms();
        self.windows(|windows| windows.set(cause, on, now));
    }

    /// The file that waits longest, as soon as one waits.
    async fn next(&self) -> Item {
        loop {
            let noted = self.0.noted.notified();
            if let Some(item) = self.lock().queue.next() {
                return item;
            }
            noted.await;
        }
    }

    fn done(&self, item: &Item, result: Result, changed: bool) {
        let mut state = self.lock();
        if state.queue.done(item) {
            state.windows.result(item.window, result, changed);
        }
        state.dirty = Dirty::all();
        if state.queue.is_empty() {
            self.0.turned.send_replace(());
        }
    }

    fn put_back(&self, item: &Item, counts: bool) {
        let mut state = self.lock();
        if state.queue.put_back(item, counts) {
            state.windows.result(item.window, Result::NotScanned, false);
        }
        state.dirty = Dirty::all();
    }

    /// What there is to save, if anything changed since the last time: the windows, and
    /// the files where these changed and `items` says that it is time for them.
    pub fn to_save(&self, items: bool) -> Option<(Option<Vec<Item>>, Windows)> {
        let mut state = self.lock();
        let items = items && std::mem::take(&mut state.dirty.items);
        if !std::mem::take(&mut state.dirty.windows) && !items {
            return None;
        }
        let items = items.then(|| state.queue.items().cloned().collect());
        Some((items, state.windows.clone()))
    }

    /// What was to be saved was not.
    pub fn not_saved(&self) {
        self.lock().dirty = Dirty::all();
    }

    /// Files that wait.
    pub fn waiting(&self) -> usize {
        self.lock().queue.len()
    }

    /// The windows now.
    pub fn windows_now(&self) -> Windows {
        self.lock().windows.clone()
    }

    /// What there is to say.
    pub fn snapshot(&self) -> Snapshot {
        let state = self.lock();
        Snapshot {
            now: state.windows.now().map(Into::into),
            last: state.windows.ended().map(Into::into).collect(),
            waiting: state.queue.len(),
            not_kept: state.queue.not_kept(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_are_written_when_they_come_or_go_and_it_is_time() {
        let deferred = Deferred::new(8, Vec::new(), Windows::default());
        let stamp = |inode| Stamp {
            device: 1,
            inode,
            size: 3,
            modified_ns: 4,
            changed_ns: 5,
            regular: true,
        };
        let note = |inode| deferred.note(b"/f", &stamp(inode), Failure::NoSvm, Way::Open);
        let saved = |items| {
            let saved = deferred.to_save(items);
            saved.map(|(items, _)| items.map(|items| items.len()))
        };
        assert_eq!(saved(true), None);
        note(1);
        assert_eq!(saved(false), Some(None), "the windows alone");
        assert_eq!(saved(true), Some(Some(1)), "they are not forgotten");
        note(1);
        assert_eq!(saved(true), Some(None), "none came or went");
        note(2);
        assert_eq!(saved(true), Some(Some(2)));
        assert_eq!(saved(true), None);
        deferred.not_saved();
        assert_eq!(saved(true), Some(Some(2)));
        let item = deferred.lock().queue.next().unwrap();
        deferred.done(&item, Result::Clean, false);
        assert_eq!(saved(true), Some(Some(1)));
    }
}
