//! Files that were let through without a verdict, until they are scanned: pure.
//!
//! Owns the order, the bounds in files and in bytes, and what is kept of a file: its
//! path, its stamp, why there was no verdict. A file that is let through again is the
//! same entry. Those that came first stay: what finds no room is counted.

use std::collections::{BTreeMap, HashMap};
use std::os::unix::ffi::OsStrExt as _;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::failure::Failure;
use crate::stamp::Stamp;
use crate::tasks::saved::SavedPath;

/// Bytes of all paths, at the most.
pub const MAX_PATH_BYTES: usize = 2 << 20;
/// How often a file is tried whose scan does not come to an end.
pub const MAX_TRIES: u8 = 3;

/// Whether a file that has no verdict for this reason may have one later.
pub fn is_deferrable(failure: Failure) -> bool {
    match failure {
        Failure::NoSvm
        | Failure::Deadline
        | Failure::Busy
        | Failure::OutOfFds
        | Failure::Changed
        | Failure::QueueFull
        | Failure::Stopping => true,
        Failure::Limit
        | Failure::Encrypted
        | Failure::TooLarge
        | Failure::EngineFailed
        | Failure::ReadError
        | Failure::Private => false,
    }
}

/// A file that waits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Item {
    /// Where it was, as the kernel named it.
    pub path: SavedPath,
    /// Device of the file system.
    pub device: u64,
    /// Inode.
    pub inode: u64,
    /// Size in bytes when it was let through the last time.
    pub size: u64,
    /// Modification time then, in nanoseconds since 1970.
    pub modified_ns: i128,
    /// Change time then.
    pub changed_ns: i128,
    /// Why there was no verdict the last time.
    #[serde(serialize_with = "reason_to", deserialize_with = "reason_from")]
    pub reason: Failure,
    /// How often it was let through.
    pub times: u64,
    /// The first time, in milliseconds since 1970.
    pub first_ms: u64,
    /// The exposure window that it belongs to.
    pub window: u64,
    /// Scans of it that came to no end.
    pub tries: u8,
}

impl Item {
    /// A file that was let through just now.
    pub fn new(path: SavedPath, stamp: &Stamp, reason: Failure, window: u64, now_ms: u64) -> Self {
        Self {
            path,
            device: stamp.device,
            inode: stamp.inode,
            size: stamp.size,
            modified_ns: stamp.modified_ns,
            changed_ns: stamp.changed_ns,
            reason,
            times: 1,
            first_ms: now_ms,
            window,
            tries: 0,
        }
    }

    fn place(&self) -> (u64, u64) {
        (self.device, self.inode)
    }

    fn bytes(&self) -> usize {
        self.path.0.as_os_str().as_bytes().len()
    }

    /// Whether a file is the one that was let through. Device numbers are not the same
    /// after a boot, so that they say nothing.
    pub fn is(&self, stamp: &Stamp) -> bool {
        self.inode == stamp.inode
    }

    /// Whether it is unchanged, too.
    pub fn is_unchanged(&self, stamp: &Stamp) -> bool {
        self.is(stamp)
            && self.size == stamp.size
            && self.modified_ns == stamp.modified_ns
            && self.changed_ns == stamp.changed_ns
    }
}

fn reason_to<S: Serializer>(reason: &Failure, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(reason.key())
}

fn reason_from<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Failure, D::Error> {
    let key = String::deserialize(deserializer)?;
    let found = Failure::ALL.iter().find(|failure| failure.key() == key);
    found
        .copied()
        .ok_or_else(|| serde::de::Error::custom(format!("unknown reason {key:?}")))
}

/// What became of a file that was let through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Noted {
    /// It waits from now on.
    New,
    /// It waited before.
    Again,
    /// There is no room.
    NoRoom,
}

/// The queue.
#[derive(Debug)]
pub struct Queue {
    bound: usize,
    items: BTreeMap<u64, Item>,
    places: HashMap<(u64, u64), u64>,
    bytes: usize,
    next: u64,
    not_kept: u64,
}

impl Queue {
    /// An empty one for at most `bound` files.
    pub fn new(bound: usize) -> Self {
        Self {
            bound,
            items: BTreeMap::new(),
            places: HashMap::new(),
            bytes: 0,
            next: 0,
            not_kept: 0,
        }
    }

    /// Takes note of a file that was let through.
    pub fn note(&mut self, item: Item) -> Noted {
        if let Some(at) = self.places.get(&item.place())
            && let Some(old) = self.items.get_mut(at)
        {
            let (bytes, was) = (item.bytes(), old.bytes());
            if self.bytes - was + bytes <= MAX_PATH_BYTES {
                self.bytes = self.bytes - was + bytes;
                old.path = item.path;
            }
            old.size = item.size;
            old.modified_ns = item.modified_ns;
            old.changed_ns = item.changed_ns;
            old.reason = item.reason;
            old.times = old.times.saturating_add(1);
            return Noted::Again;
        }
        if self.items.len() >= self.bound || self.bytes + item.bytes() > MAX_PATH_BYTES {
            self.not_kept += 1;
            return Noted::NoRoom;
        }
        self.insert(item);
        Noted::New
    }

    fn insert(&mut self, item: Item) {
        self.bytes += item.bytes();
        self.places.insert(item.place(), self.next);
        self.items.insert(self.next, item);
        self.next += 1;
    }

    /// The file that waits longest; it stays until [`done`](Self::done).
    pub fn next(&self) -> Option<Item> {
        self.items.first_key_value().map(|(_, item)| item.clone())
    }

    /// A file was looked at as it was when it was taken: it waits no more, unless it was
    /// let through in another state meanwhile. Says whether it has left.
    pub fn done(&mut self, taken: &Item) -> bool {
        let Some(at) = self.places.get(&taken.place()).copied() else {
            return false;
        };
        let Some(item) = self.items.get(&at) else {
            return false;
        };
        if (item.modified_ns, item.changed_ns) != (taken.modified_ns, taken.changed_ns) {
            return false;
        }
        self.remove(at);
        true
    }

    /// The scan of a file came to no end: it waits behind the others. Says whether it was
    /// tried often enough, and has left.
    pub fn put_back(&mut self, taken: &Item, counts: bool) -> bool {
        let Some(at) = self.places.get(&taken.place()).copied() else {
            return false;
        };
        let Some(mut item) = self.remove(at) else {
            return false;
        };
        item.tries += u8::from(counts);
        if item.tries >= MAX_TRIES {
            return true;
        }
        self.insert(item);
        false
    }

    fn remove(&mut self, at: u64) -> Option<Item> {
        let item = self.items.remove(&at)?;
        self.places.remove(&item.place());
        self.bytes -= item.bytes();
        Some(item)
    }

    /// Files that wait, in their order.
    pub fn items(&self) -> impl Iterator<Item = &Item> {
        self.items.values()
    }

    /// Files that wait.
    pub fn len(&self) -> usize {
        self.items.len()
    }

    /// Whether none waits.
    pub fn is_empty(&self) -> bool {
        self.items.is_empty()
    }

    /// Files that found no room since the agent started.
    pub fn not_kept(&self) -> u64 {
        self.not_kept
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn item(inode: u64, changed_ns: i128, path: &str) -> Item {
        let stamp = Stamp {
            device: 1,
            inode,
            size: 3,
            modified_ns: 1,
            changed_ns,
            regular: true,
        };
        Item::new(
            SavedPath(path.into()),
            &stamp,
            Failure::NoSvm,
            1,
            1_800_000_000_000,
        )
    }

    #[test]
    fn a_file_is_one_entry_and_the_first_goes_first() {
        let mut queue = Queue::new(2);
        assert_eq!(queue.note(item(1, 5, "/a")), Noted::New);
        assert_eq!(queue.note(item(2, 5, "/b")), Noted::New);
        assert_eq!(queue.note(item(1, 6, "/c")), Noted::Again);
        assert_eq!(queue.note(item(3, 5, "/d")), Noted::NoRoom);
        assert_eq!((queue.len(), queue.not_kept()), (2, 1));
        let first = queue.next().unwrap();
        assert_eq!((first.times, first.path.0.to_str()), (2, Some("/c")));
        assert!(queue.done(&first));
        assert!(!queue.done(&first));
        assert_eq!(queue.next().unwrap().inode, 2);
    }

    #[test]
    fn what_changed_while_it_was_scanned_waits_on() {
        let mut queue = Queue::new(2);
        queue.note(item(1, 5, "/a"));
        let taken = queue.next().unwrap();
        queue.note(item(1, 6, "/a"));
        assert!(!queue.done(&taken));
        assert!(queue.done(&queue.next().unwrap()));
    }

    #[test]
    fn a_scan_without_end_is_tried_three_times() {
        let mut queue = Queue::new(2);
        queue.note(item(1, 5, "/a"));
        queue.note(item(2, 5, "/b"));
        assert!(!queue.put_back(&queue.next().unwrap(), true));
        assert_eq!(queue.next().unwrap().inode, 2, "behind the others");
        let one = item(1, 5, "/a");
        assert!(!queue.put_back(&one, false) && !queue.put_back(&one, true));
        assert!(queue.put_back(&one, true));
        assert_eq!(queue.len(), 1);
    }

    #[test]
    fn every_item_survives_as_json() {
        use std::os::unix::ffi::OsStrExt as _;
        for failure in Failure::ALL {
            let mut one = item(1, -5, "/a");
            one.reason = *failure;
            one.path = SavedPath(std::ffi::OsStr::from_bytes(b"/a\xff\n\\").into());
            let text = serde_json::to_string(&one).unwrap();
            assert_eq!(serde_json::from_str::<Item>(&text).unwrap(), one);
        }
        let odd = r#""reason":"boredom""#;
        let text = serde_json::to_string(&item(1, 1, "/a")).unwrap();
        let text = text.replace(r#""reason":"no_svm""#, odd);
        assert!(serde_json::from_str::<Item>(&text).is_err());
    }

    proptest! {
        // Paths that fill the bound are long.
        #![proptest_config(ProptestConfig::with_cases(24))]
        #[test]
        fn its_bounds_hold_and_nothing_is_lost_unsaid(
            steps in prop::collection::vec((0_u8..4, 0_u64..30, 0_usize..200_000), 0..150),
            bound in 0_usize..20,
        ) {
            let mut queue = Queue::new(bound);
            let (mut new, mut left) = (0, 0);
            for (step, inode, long) in steps {
                match step {
                    0 | 1 => {
                        let path = format!("/{}", "x".repeat(long));
                        new += usize::from(queue.note(item(inode, 5, &path)) == Noted::New);
                    }
                    2 => left += usize::from(queue.next().is_some_and(|item| queue.done(&item))),
                    _ => if let Some(item) = queue.next() {
                        left += usize::from(queue.put_back(&item, inode % 2 == 0));
                    }
                }
                prop_assert!(queue.len() <= bound);
                prop_assert_eq!(queue.bytes, queue.items().map(Item::bytes).sum::<usize>());
                prop_assert!(queue.bytes <= MAX_PATH_BYTES);
                prop_assert_eq!(queue.places.len(), queue.len());
                prop_assert_eq!(new - left, queue.len());
            }
        }
    }
}
