//! Verdicts by content, which outlive the process, and when they may be believed: pure.
//!
//! The cache above knows a file by its stamp. A stamp means nothing after a gap: a disk
//! can be changed from outside with its times kept, a device number can come to stand
//! for another file system, and a guest can be cloned or reverted. So nothing of stamps
//! is kept. What is kept is what a Protection Server said of a *content*, and a file is
//! hashed before it is looked for here: whatever happened to it meanwhile, the verdict
//! is about the bytes that are in it now.
//!
//! **The rule.** A kept verdict answers if its content id and size are those of the bytes
//! that were just hashed, if it was given with the scan options in force, and if the
//! definitions that gave it are in force:
//!
//! - a Protection Server has said so in this process's life, or
//! - none was heard of yet, and they were last said to be in force no longer than
//!   `on_access.max_verdict_age_s` ago by a clock that was not put back.
//!
//! Definitions are the same if every engine has the same fingerprint, whatever numbers
//! two Protection Servers gave them. Other ones end all that is kept. A suspicion is not
//! kept: an operator's word may change it without new definitions.
//!
//! Owns the map, its bound and what is to be written of it; time is an argument. Does
//! not own the disk ([`super::database`]) or the hashing ([`super::recall`]).

use std::collections::{HashMap, VecDeque};

use palisade_protocol::content::ContentId;
use palisade_protocol::scan::ScanOptions;
use palisade_protocol::verdict::{Generations, Verdict};
use serde::{Deserialize, Serialize};

use super::Known;

/// Contents that are kept, at the most, whatever the setting: with 65,536 they take
/// about 6 MiB of memory, and 8 on the disk.
pub const MOST: usize = 65_536;
/// Changes that wait to be written one by one; with more, all is written anew.
const MAX_CHANGES: usize = 2048;

/// A verdict as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// When it came, among the others.
    pub order: u64,
    /// The content's size in bytes.
    pub size: u64,
    /// Signature and engine, if it is malware; clean otherwise.
    pub malware: Option<Box<(String, String)>>,
}

impl Entry {
    /// The verdict, as a Protection Server gave it.
    pub fn verdict(&self) -> Verdict {
        use palisade_protocol::bounded::Text;
        match self.malware.as_deref() {
            None => Verdict::Clean,
            Some((name, engine)) => Verdict::Malware {
                name: Text::cut(name),
                engine: Text::cut(engine),
            },
        }
    }
}

/// What all entries have in common.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Common {
    /// The definitions that gave them.
    pub generations: Generations,
    /// When a Protection Server last said that they are in force, in milliseconds since
    /// 1970.
    pub heard_ms: u64,
}

impl Common {
    /// Every engine with the fingerprint of its definitions.
    pub(super) fn definitions(generations: &Generations) -> Vec<(&str, [u8; 16])> {
        let mut all: Vec<_> = generations
            .iter()
            .map(|engine| (engine.engine.as_str(), engine.fingerprint))
            .collect();
        all.sort_unstable();
        all
    }

    fn are(&self, generations: &Generations) -> bool {
        self.generations == *generations
            || Self::definitions(&self.generations) == Self::definitions(generations)
    }
}

/// What is to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// In force for all entries.
    pub common: Common,
    /// Whether the database is emptied first.
    pub anew: bool,
    /// To be added, or changed.
    pub put: Vec<(ContentId, Entry)>,
    /// To be removed.
    pub removed: Vec<ContentId>,
}

/// The map.
#[derive(Debug)]
pub struct Kept {
    bound: usize,
    options: ScanOptions,
    max_age_ms: u64,
    common: Common,
    /// A Protection Server said in this process's life that the definitions are in force.
    confirmed: bool,
    entries: HashMap<ContentId, Entry>,
    /// By their order; may name contents that have left.
    order: VecDeque<(u64, ContentId)>,
    /// How many entries have a size: what has none of these need not be hashed.
    sizes: HashMap<u64, u32>,
    next: u64,
    changes: Vec<ContentId>,
    anew: bool,
    urgent: bool,
    heard: bool,
    /// Whether what an earlier process kept was taken, or is known to be nothing.
    taken: bool,
    /// A content was taken back before: what comes now may hold it.
    refuses: bool,
}

impl Kept {
    /// Nothing yet, for at most `bound` contents looked into as `options` say; believed
    /// for `max_age_s` seconds while no Protection Server is heard of.
    pub fn new(bound: usize, options: ScanOptions, max_age_s: u32) -> Self {
        Self {
            bound: bound.min(MOST),
            options,
            max_age_ms: u64::from(max_age_s) * 1000,
            common: Common::default(),
            confirmed: false,
            entries: HashMap::new(),
            order: VecDeque::new(),
            sizes: HashMap::new(),
            next: 0,
            changes: Vec::new(),
            anew: false,
            urgent: false,
            heard: false,
            taken: false,
            refuses: false,
        }
    }

    /// They are believed for so many seconds from now on, while no Protection Server is
    /// heard of.
    pub fn believe_for(&mut self, max_age_s: u32) {
        self.max_age_ms = u64::from(max_age_s) * 1000;
    }

    /// The options that verdicts were given with.
    pub fn options(&self) -> ScanOptions {
        self.options
    }

    /// An earlier process kept nothing.
    pub fn take_nothing(&mut self) {
        self.taken = true;
    }

    /// Takes what an earlier process kept, unless other definitions came first, or
    /// contents were taken back meanwhile.
    pub fn take(&mut self, common: Common, mut entries: Vec<(ContentId, Entry)>) {
        self.taken = true;
        if self.refuses || (self.confirmed && !common.are(&self.common.generations)) {
            self.anew = true;
            self.urgent = true;
            return;
        }
        if !self.confirmed {
            self.common = common;
        }
        entries.sort_unstable_by_key(|(_, entry)| entry.order);
        for (content, entry) in entries {
            if !self.entries.contains_key(&content) {
                self.insert(content, entry.size, entry.malware);
            }
        }
        // The database holds these already, but for what does not fit.
        self.cut();
    }

    /// A Protection Server said which definitions are in force. Says whether what was
    /// kept ended with that.
    pub fn hear(&mut self, generations: &Generations, now_ms: u64) -> bool {
        let other = !self.common.are(generations);
        if other {
            self.clear();
        }
        if other || self.common.generations != *generations {
            self.common.generations = generations.clone();
        }
        self.heard = true;
        self.confirmed = true;
        self.common.heard_ms = now_ms;
        other
    }

    fn clear(&mut self) {
        self.entries.clear();
        self.order.clear();
        self.sizes.clear();
        self.changes.clear();
        self.anew = true;
        self.urgent = true;
    }

    /// Keeps a verdict of these definitions, if they are those in force.
    pub fn put(&mut self, known: &Known, size: u64, generations: &Generations) {
        let malware = match &known.verdict {
            Verdict::Clean => None,
            Verdict::Malware { name, engine } => {
                Some(Box::new((name.to_string(), engine.to_string())))
            }
            Verdict::Suspicious { .. } | Verdict::NotScanned(_) => return,
        };
        if self.bound == 0 || !self.common.are(generations) {
            return;
        }
        let same = |entry: &Entry| entry.size == size && entry.malware == malware;
        if self.entries.get(&known.content).is_some_and(same) {
            return;
        }
        self.insert(known.content, size, malware);
        self.note(known.content);
        self.cut();
    }

    fn insert(&mut self, content: ContentId, size: u64, malware: Option<Box<(String, String)>>) {
        self.drop_entry(&content);
        let order = self.next;
        self.next += 1;
        let entry = Entry {
            order,
            size,
            malware,
        };
        self.entries.insert(content, entry);
        self.order.push_back((order, content));
        *self.sizes.entry(size).or_default() += 1;
    }

    fn drop_entry(&mut self, content: &ContentId) -> bool {
        let Some(entry) = self.entries.remove(content) else {
            return false;
        };
        if let Some(count) = self.sizes.get_mut(&entry.size) {
            *count -= 1;
            if *count == 0 {
                self.sizes.remove(&entry.size);
            }
        }
        true
    }

    /// Drops the oldest beyond the bound, and places of those that have left.
    fn cut(&mut self) {
        while self.entries.len() > self.bound {
            let Some((order, content)) = self.order.pop_front() else {
                break;
            };
            let oldest = self.entries.get(&content);
            if oldest.is_some_and(|entry| entry.order == order) {
                self.drop_entry(&content);
                self.note(content);
            }
        }
        if self.order.len() > 2 * self.bound {
            let Self { entries, order, .. } = self;
            order.retain(|(at, content)| entries.get(content).is_some_and(|e| e.order == *at));
        }
    }

    fn note(&mut self, content: ContentId) {
        if self.changes.len() < MAX_CHANGES {
            self.changes.push(content);
        } else {
            self.anew = true;
        }
    }

    /// Forgets these contents.
    pub fn forget(&mut self, contents: &[ContentId]) {
        self.refuses |= !self.taken;
        for content in contents {
            if self.drop_entry(content) {
                self.note(*content);
                self.urgent = true;
            }
        }
    }

    /// Whether a content of this size may be known now: others need not be hashed.
    pub fn may_know(&self, size: u64, now_ms: u64) -> bool {
        self.is_believed(now_ms) && self.sizes.contains_key(&size)
    }

    /// What is kept of a content, if it is to be believed now, and the definitions that
    /// gave it.
    pub fn get(&self, content: &ContentId, size: u64, now_ms: u64) -> Option<(Verdict, &Common)> {
        let entry = self.entries.get(content)?;
        (entry.size == size && self.is_believed(now_ms)).then(|| (entry.verdict(), &self.common))
    }

    /// The rule's part about definitions.
    pub fn is_believed(&self, now_ms: u64) -> bool {
        let age = now_ms.checked_sub(self.common.heard_ms);
        self.confirmed || age.is_some_and(|age| age < self.max_age_ms)
    }

    /// Contents that are kept.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Whether something is to be written at once, for it takes something back.
    pub fn is_urgent(&self) -> bool {
        self.urgent
    }

    /// Whether anything is to be written.
    pub fn is_dirty(&self) -> bool {
        self.anew || !self.changes.is_empty()
    }

    /// What is to be written now; `anew` writes all. With nothing but the time at which
    /// definitions were heard of, only if asked for it.
    pub fn batch(&mut self, anew: bool, with_time: bool) -> Option<Batch> {
        let anew = anew || self.anew;
        if !anew && self.changes.is_empty() && !(with_time && self.heard) {
            return None;
        }
        let changes = std::mem::take(&mut self.changes);
        self.anew = false;
        self.urgent = false;
        self.heard = false;
        let mut batch = Batch {
            common: self.common.clone(),
            anew,
            put: Vec::new(),
            removed: Vec::new(),
        };
        if anew {
            let all = self.entries.iter();
            batch.put = all.map(|(id, entry)| (*id, entry.clone())).collect();
            return Some(batch);
        }
        for content in changes {
            match self.entries.get(&content) {
                Some(entry) => batch.put.push((content, entry.clone())),
                None => batch.removed.push(content),
            }
        }
        Some(batch)
    }
}

#[cfg(test)]
mod tests;
