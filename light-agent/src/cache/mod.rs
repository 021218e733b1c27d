//! Verdicts that the agent remembers, by file and by moment.
//!
//! Owns the map and its bound. An entry answers only for the very stamp (device,
//! inode, size, modification and change time) that it was taken for, only under
//! the definitions in force, and only while the file has no writer, which the
//! caller proves ([`lease`](crate::lease)). Only complete verdicts are kept.
//!
//! ```text
//!  stamp ─► remembered? ─► answered at once
//!              │ no
//!              └─► hash ─► kept by content? ─► answered ─► remembered by stamp
//!                             │  ▲    │ no
//!                 database ───┘  │    └─► asked
//!                 (at the start) └──────── verdict
//! ```
//!
//! | module | owns |
//! | --- | --- |
//! | [`kept`] | verdicts by content, which outlive the process, and when they are believed |
//! | [`database`] | their file |
//! | [`writer`] | the thread that writes it |
//! | [`recall`] | hashing a file in order to find it there |

pub mod database;
pub mod kept;
pub mod recall;
pub mod writer;

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock};

use palisade_protocol::content::ContentId;
use palisade_protocol::verdict::{Generations, Verdict, VerdictKind};
use tokio::sync::watch;

use self::writer::Keeper;
use crate::stamp::Stamp;

/// A verdict with what it is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Known {
    /// The content.
    pub content: ContentId,
    /// Its verdict: never [`Verdict::NotScanned`].
    pub verdict: Verdict,
}

struct Entry {
    stamp: Stamp,
    known: Known,
    epoch: u64,
}

#[derive(Default)]
struct Inner {
    entries: HashMap<(u64, u64), Entry>,
    /// Files in the order in which they came: the first are dropped first.
    order: VecDeque<(u64, u64)>,
    generations: Generations,
    epoch: u64,
}

/// The cache. Held by every thread that decides.
pub struct Cache {
    bound: usize,
    inner: Mutex<Inner>,
    heard: watch::Sender<Generations>,
    forgotten: RwLock<Option<Forgotten>>,
    keeper: Keeper,
}

/// Told that verdicts no longer answer; must not block.
pub type Forgotten = Box<dyn Fn() + Send + Sync>;

impl Cache {
    /// An empty cache for at most `bound` files; 0 remembers nothing.
    pub fn new(bound: usize) -> Self {
        Self {
            bound,
            inner: Mutex::new(Inner::default()),
            heard: watch::Sender::default(),
            forgotten: RwLock::default(),
            keeper: Keeper::default(),
        }
    }

    /// The same, whose verdicts outlive the process by their content.
    #[must_use]
    pub fn keeping(self, keeper: Keeper) -> Self {
        Self { keeper, ..self }
    }

    /// What outlives the process.
    pub fn keeper(&self) -> &Keeper {
        &self.keeper
    }

    /// Has somebody told when verdicts no longer answer, for whatever reason but a
    /// change of their own file; none has nobody told. The last to ask is told.
    pub fn on_forgotten(&self, tell: Option<Forgotten>) {
        let told = self.forgotten.write();
        *told.unwrap_or_else(PoisonError::into_inner) = tell;
    }

    fn tell_forgotten(&self) {
        let told = self.forgotten.read();
        if let Some(tell) = told.unwrap_or_else(PoisonError::into_inner).as_ref() {
            tell();
        }
    }

    /// The verdict for exactly this stamp under the definitions in force.
    pub fn get(&self, stamp: &Stamp) -> Option<Known> {
        let inner = self.lock();
        let entry = inner.entries.get(&(stamp.device, stamp.inode))?;
        (entry.stamp == *stamp && entry.epoch == inner.epoch).then(|| entry.known.clone())
    }

    /// Remembers a verdict that these definitions gave.
    pub fn put(&self, stamp: Stamp, known: Known, generations: &Generations) {
        if self.bound == 0 || known.verdict.kind() == VerdictKind::NotScanned {
            return;
        }
        self.keeper.put(&known, stamp.size, generations);
        self.insert(stamp, known, generations, true);
    }

    /// Remembers a verdict that was kept by its content, unless other definitions than
    /// those that gave it are in force by now.
    pub fn put_kept(&self, stamp: Stamp, known: Known, generations: &Generations) {
        if self.bound > 0 {
            self.insert(stamp, known, generations, false);
        }
    }

    fn insert(&self, stamp: Stamp, known: Known, generations: &Generations, newer: bool) {
        let mut inner = self.lock();
        if !newer && !inner.generations.is_empty() && inner.generations != *generations {
            return;
        }
        let changed = inner.use_generations(generations, &self.heard);
        let key = (stamp.device, stamp.inode);
        let entry = Entry {
            stamp,
            known,
            epoch: inner.epoch,
        };
        if inner.entries.insert(key, entry).is_none() {
            inner.order.push_back(key);
        }
        while inner.entries.len() > self.bound {
            let Some(oldest) = inner.order.pop_front() else {
                break;
            };
            inner.entries.remove(&oldest);
        }
        drop(inner);
        if changed {
            self.tell_forgotten();
        }
    }

    /// Puts other definitions into force: verdicts of earlier ones no longer answer.
    pub fn use_generations(&self, generations: &Generations) {
        self.keeper.hear(generations);
        let changed = self.lock().use_generations(generations, &self.heard);
        if changed {
            self.tell_forgotten();
        }
    }

    /// The definitions in force, as they are heard of.
    pub fn definitions(&self) -> watch::Receiver<Generations> {
        self.heard.subscribe()
    }

    /// Forgets the verdicts of these contents, so that their files are hashed and asked
    /// about again when they are opened. Gives how many were forgotten.
    pub fn forget(&self, contents: &[ContentId]) -> usize {
        self.keeper.forget(contents);
        let mut inner = self.lock();
        let before = inner.entries.len();
        inner
            .entries
            .retain(|_, entry| !contents.contains(&entry.known.content));
        let forgotten = before - inner.entries.len();
        if forgotten > 0 {
            let Inner { entries, order, .. } = &mut *inner;
            order.retain(|key| entries.contains_key(key));
        }
        drop(inner);
        // Also of files that are not remembered any more, but were marked when they were.
        self.tell_forgotten();
        forgotten
    }

    /// Files that are remembered.
    pub fn len(&self) -> usize {
        self.lock().entries.len()
    }

    /// Whether nothing is remembered.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// Says whether they are other ones.
    fn use_generations(
        &mut self,
        generations: &Generations,
        heard: &watch::Sender<Generations>,
    ) -> bool {
        let other = self.generations != *generations;
        if other {
            self.generations = generations.clone();
            self.epoch += 1;
            heard.send_replace(generations.clone());
        }
        other
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use palisade_protocol::bounded::{List, Text};
    use palisade_protocol::verdict::{EngineGeneration, Generation};
    use proptest::prelude::*;

    fn stamp(inode: u64, changed_ns: i128) -> Stamp {
        Stamp {
            device: 1,
            inode,
            size: 10,
            modified_ns: 5,
            changed_ns,
            regular: true,
        }
    }

    fn clean(inode: u64) -> Known {
        Known {
            content: ContentId::of(&inode.to_le_bytes()),
            verdict: Verdict::Clean,
        }
    }

    fn generations(number: u64) -> Generations {
        List::cut([EngineGeneration {
            engine: Text::cut("e"),
            generation: Generation(number),
            fingerprint: [0; 16],
        }])
    }

    #[test]
    fn only_the_same_stamp_under_the_same_definitions_answers() {
        let cache = Cache::new(8);
        cache.put(stamp(1, 7), clean(1), &generations(1));
        assert_eq!(cache.get(&stamp(1, 7)), Some(clean(1)));
        assert_eq!(cache.get(&stamp(1, 8)), None, "the change time moved");
        assert_eq!(
            cache.get(&Stamp {
                size: 11,
                ..stamp(1, 7)
            }),
            None
        );
        cache.use_generations(&generations(2));
        assert_eq!(cache.get(&stamp(1, 7)), None, "new definitions");
    }

    #[test]
    fn what_was_not_scanned_is_not_remembered() {
        use palisade_protocol::verdict::NotScanned;
        let cache = Cache::new(8);
        let known = Known {
            verdict: Verdict::NotScanned(NotScanned::Encrypted),
            ..clean(1)
        };
        cache.put(stamp(1, 7), known, &generations(1));
        assert!(cache.is_empty());
    }

    #[test]
    fn what_is_forgotten_answers_no_more_and_can_come_back() {
        let cache = Cache::new(2);
        for inode in [1, 2] {
            cache.put(stamp(inode, 7), clean(inode), &generations(1));
        }
        let [told, other] = [clean(1).content, ContentId([9; 32])];
        assert_eq!(cache.forget(&[told, other]), 1);
        assert_eq!(cache.get(&stamp(1, 7)), None);
        assert_eq!(cache.get(&stamp(2, 7)), Some(clean(2)));
        assert_eq!(cache.forget(&[told]), 0);
        cache.put(stamp(1, 8), clean(1), &generations(1));
        cache.put(stamp(3, 7), clean(3), &generations(1));
        assert_eq!(
            cache.get(&stamp(2, 7)),
            None,
            "the oldest left for the newest"
        );
        assert_eq!(cache.get(&stamp(1, 8)), Some(clean(1)));
    }

    proptest! {
        #[test]
        fn it_never_outgrows_its_bound(files in prop::collection::vec(0_u64..50, 0..200), bound in 0_usize..20) {
            let cache = Cache::new(bound);
            for file in files {
                cache.put(stamp(file, 7), clean(file), &generations(1));
                prop_assert!(cache.len() <= bound);
                prop_assert!(bound == 0 || cache.get(&stamp(file, 7)).is_some());
            }
        }
    }
}
