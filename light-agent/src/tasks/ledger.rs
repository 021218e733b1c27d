//! How far a scan is, though its files are done out of order; pure.
//!
//! A place is passed once all before it is done. What is done behind it is kept by
//! name, and no new files are begun while that is much ([`MAX_AHEAD`]): one file that
//! takes long holds up the place.

use std::collections::{BTreeMap, BTreeSet};

use crate::scan::walk::{Found, Position, Resume};

/// Files that may be done behind the first one that is not. More than a walk mixes and
/// has in flight, so that what this holds up is never what it waits for.
pub const MAX_AHEAD: usize = 4096;

/// The files of one run.
#[derive(Debug, Clone, Default)]
pub struct Ledger {
    /// The first number that is not done.
    next: u64,
    /// Done, but not all before.
    done: BTreeMap<u64, Position>,
    /// All up to here is done.
    upto: Option<Position>,
    /// Done by an earlier run, and not passed yet.
    before: BTreeSet<Position>,
}

impl Ledger {
    /// Begins where an earlier run ended.
    pub fn from(done: Resume) -> Self {
        Self {
            upto: done.upto,
            before: done.ahead,
            ..Self::default()
        }
    }

    /// A file is done.
    pub fn done(&mut self, found: &Found) {
        self.done.insert(found.number, found.at.clone());
        while let Some(at) = self.done.remove(&self.next) {
            self.next += 1;
            // A problem may have no place of its own, but that of a folder above.
            if self.upto.as_ref().is_none_or(|upto| *upto < at) {
                self.upto = Some(at);
            }
        }
        if let Some(upto) = &self.upto {
            while self.before.first().is_some_and(|first| first <= upto) {
                self.before.pop_first();
            }
        }
    }

    /// Whether no new files may be begun.
    pub fn is_full(&self) -> bool {
        self.done.len() >= MAX_AHEAD
    }

    /// All up to here is done.
    pub fn upto(&self) -> Option<&Position> {
        self.upto.as_ref()
    }

    /// And these behind it, the first of them if they are many: what is left out is
    /// scanned again.
    pub fn ahead(&self) -> BTreeSet<Position> {
        self.before
            .iter()
            .chain(self.done.values())
            .cloned()
            .collect::<BTreeSet<_>>()
            .into_iter()
            .take(2 * MAX_AHEAD)
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(name: u32) -> Position {
        Position {
            root: 0,
            path: format!("/{name:05}").into(),
        }
    }

    /// As a walk gives them: what is not done, numbered.
    fn walk(files: u32, done: &Resume) -> Vec<Found> {
        (0..files)
            .map(at)
            .filter(|at| done.upto.as_ref().is_none_or(|upto| at > upto))
            .filter(|at| !done.ahead.contains(at))
            .zip(0..)
            .map(|(at, number)| Found {
                number,
                at,
                again: false,
                problem: None,
            })
            .collect()
    }

    proptest! {
        /// However often a scan is left, and in whatever order its files are done,
        /// each file is done once.
        #[test]
        fn nothing_is_skipped_and_nothing_is_done_twice(
            files in 1_u32..80,
            runs in prop::collection::vec(
                prop::collection::vec(any::<prop::sample::Index>(), 0..30), 0..6),
        ) {
            let mut done = BTreeSet::new();
            let mut resume = Resume::default();
            // The last run does all.
            let whole = runs.len();
            for (turn, run) in runs.into_iter().chain([Vec::new()]).enumerate() {
                let mut ledger = Ledger::from(resume.clone());
                let mut left = walk(files, &resume);
                let mut picks = run.into_iter();
                while !left.is_empty() {
                    let found = match picks.next() {
                        Some(index) => left.remove(index.index(left.len())),
                        None if turn == whole => left.remove(left.len() - 1),
                        None => break,
                    };
                    ledger.done(&found);
                    prop_assert!(done.insert(found.at.clone()), "{:?} twice", found.at);
                }
                resume = Resume { upto: ledger.upto().cloned(), ahead: ledger.ahead() };
            }
            prop_assert_eq!(done.len(), files as usize);
            prop_assert!(walk(files, &resume).is_empty());
        }
    }

    #[test]
    fn one_slow_file_holds_up_the_rest_at_a_bound() {
        let mut ledger = Ledger::default();
        let files = walk(MAX_AHEAD as u32 + 1, &Resume::default());
        for found in &files[1..] {
            assert!(!ledger.is_full());
            ledger.done(found);
        }
        assert!(ledger.is_full());
        assert_eq!(ledger.upto(), None);
        ledger.done(&files[0]);
        assert!(!ledger.is_full() && ledger.ahead().is_empty());
    }
}
