//! Files that are as their package has them: scans may take them last, or leave them
//! out (`scan.packaged`; off unless set).
//!
//! | module | owns |
//! | --- | --- |
//! | [`index`] | which paths packages list, with which digest |
//! | [`rpm`] | rpm's list, as its own program prints it |
//!
//! A scan on demand only: opens are asked for whatever package a file is of. A database
//! of the guest is no evidence against somebody who has become root there, who may write
//! it, and the SharedCache makes the files of packages cheap anyway, since all guests
//! have the same ones. What is left out is counted as `packaged`, never as clean.
//!
//! *Last* walks twice: at first past all that is as its package has it, then over the
//! rest of what packages list. A file that is listed and not as listed is scanned at
//! once: nothing is more suspicious.

pub mod index;
pub mod rpm;

use std::collections::HashSet;
use std::fs::File;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

use index::Index;

/// Paths that are listed, and were found to be something else, at the most; of more
/// than these, a scan that takes them last looks at some twice.
const MAX_DIFFERENT: usize = 65_536;

/// What scans do with files that are as their package has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// They are files as others are.
    #[default]
    Scan,
    /// They are scanned after all others.
    Last,
    /// They are not scanned.
    Skip,
}

/// What one scan knows of packages.
#[derive(Debug)]
pub struct Packaged {
    policy: Policy,
    index: Index,
    different: Mutex<HashSet<u64>>,
    /// The second walk gives every file: an earlier run set aside what is not known now.
    lost: bool,
}

impl Packaged {
    /// Reads the databases of the machine below `root`, and rpm's `listing`; none where
    /// the policy needs none.
    pub fn load(policy: Policy, root: &Path, listing: &Path) -> Option<Self> {
        if policy == Policy::Scan {
            return None;
        }
        let index = Index::load(root, listing);
        tracing::info!(files = index.len(), ?policy, "what packages list is known");
        Some(Self {
            policy,
            index,
            different: Mutex::default(),
            lost: false,
        })
    }

    /// For a scan that began with other lists, whose print is `print`.
    #[must_use]
    pub fn going_on(mut self, print: u64) -> Self {
        self.lost = self.policy == Policy::Last && print != self.print();
        self
    }

    /// Differs where the lists do.
    pub fn print(&self) -> u64 {
        self.index.print()
    }

    /// Whether what packages have is scanned after the rest.
    pub fn is_last(&self) -> bool {
        self.policy == Policy::Last
    }

    /// Whether an opened file is as the package has it that lists `path`.
    pub fn vouches(&self, path: &Path, file: &File) -> bool {
        if !self.index.lists(path) {
            return false;
        }
        let same = self.index.is_as_listed(path, file).unwrap_or_else(|error| {
            tracing::debug!(%error, "a file cannot be compared with its package's");
            false
        });
        if !same && self.is_last() {
            let mut different = self.different();
            if different.len() < MAX_DIFFERENT {
                different.insert(self.index.key(path));
            }
        }
        same
    }

    /// Whether the second walk gives this path: the first may have set it aside.
    pub fn was_set_aside(&self, path: &Path) -> bool {
        self.lost || (self.index.lists(path) && !self.different().contains(&self.index.key(path)))
    }

    fn different(&self) -> std::sync::MutexGuard<'_, HashSet<u64>> {
        self.different
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::index::tests::Database;
    use super::*;

    #[test]
    fn what_the_first_walk_scanned_is_not_given_to_the_second() {
        let database = Database::new();
        let same = database.file("usr/bin/same", "x");
        let other = database.file("usr/bin/other", "y");
        let free = database.file("usr/bin/free", "z");
        database.lists("a", &[("usr/bin/same", "x"), ("usr/bin/other", "not y")]);
        let load = |policy| Packaged::load(policy, database.root(), Path::new("/nothing"));
        assert!(load(Policy::Scan).is_none());
        let last = load(Policy::Last).unwrap();
        let vouched =
            |path: &Path| last.vouches(&database.listed(path), &File::open(path).unwrap());
        assert_eq!(
            (vouched(&same), vouched(&other), vouched(&free)),
            (true, false, false)
        );
        let again = |last: &Packaged| {
            [&same, &other, &free].map(|path| last.was_set_aside(&database.listed(path)))
        };
        assert_eq!(again(&last), [true, false, false]);
        // Begun anew: what differs is looked at twice rather than never.
        let anew = load(Policy::Last).unwrap().going_on(last.print());
        assert_eq!(again(&anew), [true, true, false]);
        // With other lists nobody knows what was set aside.
        database.lists("b", &[("usr/bin/more", "x")]);
        let anew = load(Policy::Last).unwrap().going_on(last.print());
        assert_eq!(again(&anew), [true, true, true]);
    }
}
