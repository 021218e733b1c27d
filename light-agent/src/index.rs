//! Which files hold contents that were called clean, so that a content that turns out
//! to be malware is found again without anyone opening it: pure, but for its lock.
//!
//! Files that are opened are in this table; those that scans see are on disk ([`scans`]).
//! Owns the table and its bound. Does not own verdicts ([`crate::cache`], which
//! remembers only files that are sure not to change unseen), nor what is done about a
//! file ([`crate::again`]). A path is where the file was when it was opened: whoever
//! follows it looks whether it is the same file still.

pub mod scans;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use palisade_protocol::content::ContentId;
use palisade_protocol::scan::Named;

use crate::stamp::Stamp;

/// Files that are remembered, at the most; the one that was seen least recently is forgotten
/// first. With paths of usual length they take about 1.8 MiB.
pub const MAX_FILES: usize = 8192;

/// A file that held a content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Held {
    /// The content.
    pub content: ContentId,
    /// Device of the file system.
    pub device: u64,
    /// Inode.
    pub inode: u64,
    /// Its path, as the kernel named it.
    pub path: Box<[u8]>,
}

impl Held {
    /// Device and inode.
    pub fn place(&self) -> (u64, u64) {
        (self.device, self.inode)
    }
}

/// The table. Held by every task that hears a verdict.
#[derive(Debug)]
pub struct Index {
    bound: usize,
    inner: Mutex<Inner>,
}

/// Device and inode of a file.
type Place = (u64, u64);

#[derive(Debug)]
struct Seen {
    /// When last, by the table's own count.
    at: u64,
    content: ContentId,
    path: Box<[u8]>,
    /// Of the content, in bytes.
    size: u64,
    /// The Protection Server in use knows that it is held here.
    known: bool,
}

#[derive(Debug, Default)]
struct Inner {
    files: HashMap<Place, Seen>,
    /// By when they were seen last.
    order: BTreeMap<u64, Place>,
    count: u64,
}

impl Default for Index {
    fn default() -> Self {
        Self::new(MAX_FILES)
    }
}

impl Index {
    /// An empty table for at most `bound` files.
    pub fn new(bound: usize) -> Self {
        Self {
            bound,
            inner: Mutex::default(),
        }
    }

    /// A file's content was called clean. `known` says that the Protection Server in use
    /// did so: it knows that the content is held here.
    pub fn saw(&self, content: ContentId, file: &Stamp, path: &[u8], known: bool) {
        if self.bound == 0 {
            return;
        }
        let mut inner = self.lock();
        let key = (file.device, file.inode);
        inner.count += 1;
        let at = inner.count;
        let path = path.into();
        let seen = Seen {
            at,
            content,
            path,
            size: file.size,
            known,
        };
        let before = inner.files.insert(key, seen);
        if let Some(before) = before {
            inner.order.remove(&before.at);
        }
        inner.order.insert(at, key);
        while inner.files.len() > self.bound {
            let Some((_, oldest)) = inner.order.pop_first() else {
                break;
            };
            inner.files.remove(&oldest);
        }
    }

    /// The files that held these contents; they are forgotten here.
    pub fn take(&self, contents: &[ContentId]) -> Vec<Held> {
        let mut inner = self.lock();
        let taken: Vec<Held> = inner
            .files
            .extract_if(|_, seen| contents.contains(&seen.content))
            .map(|((device, inode), seen)| Held {
                content: seen.content,
                device,
                inode,
                path: seen.path,
            })
            .collect();
        if !taken.is_empty() {
            let Inner { files, order, .. } = &mut *inner;
            order.retain(|_, key| files.contains_key(key));
        }
        taken
    }

    /// The contents that are held, the ones seen last first: all, or those that the
    /// Protection Server in use does not know of.
    pub fn contents(&self, all: bool) -> Vec<Named> {
        let inner = self.lock();
        let mut named: HashSet<ContentId> = HashSet::new();
        let latest = inner.order.values().rev();
        let files = latest.filter_map(|place| inner.files.get(place));
        files
            .filter(|seen| (all || !seen.known) && named.insert(seen.content))
            .map(|seen| Named {
                content: seen.content,
                size: seen.size,
            })
            .collect()
    }

    /// The Protection Server in use knows of these.
    pub fn told(&self, contents: &[Named]) {
        let contents: HashSet<ContentId> = contents.iter().map(|named| named.content).collect();
        let mut inner = self.lock();
        let files = inner.files.values_mut();
        files
            .filter(|seen| contents.contains(&seen.content))
            .for_each(|seen| seen.known = true);
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn stamp(inode: u64) -> Stamp {
        Stamp {
            device: 1,
            inode,
            size: 10,
            modified_ns: 5,
            changed_ns: 5,
            regular: true,
        }
    }

    fn content(number: u8) -> ContentId {
        ContentId([number; 32])
    }

    #[test]
    fn what_is_opened_again_is_remembered_longest() {
        let index = Index::new(2);
        index.saw(content(1), &stamp(1), b"/libc", true);
        index.saw(content(2), &stamp(2), b"/once", true);
        index.saw(content(1), &stamp(1), b"/libc", true);
        index.saw(content(3), &stamp(3), b"/other", true);
        assert!(index.take(&[content(2)]).is_empty());
        assert_eq!(index.take(&[content(1)]).len(), 1);
    }

    #[test]
    fn what_nobody_was_told_is_known() {
        let index = Index::new(9);
        index.saw(content(1), &stamp(1), b"/asked", true);
        index.saw(content(2), &stamp(2), b"/kept", false);
        index.saw(content(2), &stamp(3), b"/kept too", false);
        let numbers = |all| {
            let contents = index.contents(all).into_iter();
            contents
                .map(|named| (named.content.0[0], named.size))
                .collect::<Vec<_>>()
        };
        assert_eq!(numbers(true), [(2, 10), (1, 10)]);
        assert_eq!(numbers(false), [(2, 10)]);
        index.told(&index.contents(false));
        assert_eq!(numbers(false), []);
        index.saw(content(2), &stamp(2), b"/kept", false);
        assert_eq!(numbers(false), [(2, 10)]);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Saw(u64, u8),
        Take(Vec<u8>),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => (0_u64..12, 0_u8..5).prop_map(|(file, content)| Step::Saw(file, content)),
            1 => prop::collection::vec(0_u8..5, 0..3).prop_map(Step::Take),
        ];
        prop::collection::vec(step, 0..120)
    }

    proptest! {
        /// With room for all, exactly the files that hold a content now are given; with
        /// less, never one that does not, and never more than there is room for.
        #[test]
        fn who_holds_what_is_known(steps in steps(), bound in 0_usize..16) {
            let index = Index::new(bound);
            let mut all: BTreeMap<u64, u8> = BTreeMap::new();
            for step in steps {
                match step {
                    Step::Saw(file, number) => {
                        index.saw(content(number), &stamp(file), &file.to_le_bytes(), false);
                        all.insert(file, number);
                    }
                    Step::Take(numbers) => {
                        let contents: Vec<ContentId> = numbers.iter().copied().map(content).collect();
                        let taken = index.take(&contents);
                        for held in &taken {
                            let number = all.get(&held.inode).copied();
                            prop_assert!(number.is_some_and(|number| numbers.contains(&number)));
                            prop_assert_eq!(&*held.path, &held.inode.to_le_bytes()[..]);
                        }
                        let before = all.len();
                        all.retain(|_, number| !numbers.contains(number));
                        if bound >= 12 {
                            prop_assert_eq!(taken.len(), before - all.len());
                        }
                    }
                }
                let inner = index.lock();
                prop_assert!(inner.files.len() <= bound && inner.order.len() == inner.files.len());
            }
        }
    }
}
