//! What an open is answered at once, and what has to be asked: pure.
//!
//! ```text
//! own process ─┐
//! not regular ─┤
//! out of scope,┼─► allowed by policy        too few fds ─► failure table
//! empty ───────┘                            too large ───► failure table
//! remembered, no writer ─► cached verdict   else ────────► ask
//! ```
//!
//! Does not own reading the facts, the cache's contents, or the answer.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use palisade_protocol::verdict::Verdict;

use crate::accounts::Outcome;
use crate::failure::{Access, Answer, Failure, Table};

/// Which paths are protected.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scope {
    /// Below these.
    pub paths: Vec<PathBuf>,
    /// But not below these.
    pub exclude: Vec<PathBuf>,
    /// And not on file systems of these types, by the kernel's numbers.
    pub exclude_types: Vec<i64>,
    /// And nothing above this many bytes, if set.
    pub max_bytes: Option<u64>,
}

impl Scope {
    /// Whether a file of this path, as the kernel names it, and of this size in bytes
    /// is protected.
    pub fn covers(&self, path: &[u8], size: u64) -> bool {
        let path = Path::new(OsStr::from_bytes(path));
        self.fits(size)
            && self.paths.iter().any(|root| path.starts_with(root))
            && !self.excludes(path)
    }

    /// Whether this path is excluded.
    pub fn excludes(&self, path: &Path) -> bool {
        self.exclude.iter().any(|root| path.starts_with(root))
    }

    /// Whether a file of this size in bytes is scanned at all.
    pub fn fits(&self, size: u64) -> bool {
        self.max_bytes.is_none_or(|max| size <= max)
    }
}

/// What is known of an event without asking anybody.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// How it is opened.
    pub access: Access,
    /// Whether the agent itself opens it.
    pub own: bool,
    /// Its path, where the kernel gives one.
    pub path: Option<&'a [u8]>,
    /// Whether it is protected although its name does not say so.
    pub hidden: bool,
    /// Whether its file system is of an excluded type.
    pub kind_excluded: bool,
    /// Whether it is a regular file.
    pub regular: bool,
    /// Its size in bytes.
    pub size: u64,
    /// Whether descriptors run short.
    pub few_fds: bool,
    /// Largest content that the Protection Server scans, if one is connected.
    pub max_scan_bytes: Option<u64>,
}

/// What follows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    /// Answer at once.
    Answer(Outcome),
    /// Ask a Protection Server.
    Ask,
}

/// Decides on an event. `remembered` is asked for a verdict only when it matters,
/// and must have proven that the file has no writer.
pub fn decide(
    facts: &Facts<'_>,
    scope: &Scope,
    table: &Table,
    remembered: impl FnOnce() -> Option<Verdict>,
) -> Decision {
    let covered = facts
        .path
        .is_some_and(|path| scope.covers(path, facts.size))
        || (facts.hidden && scope.fits(facts.size));
    let covered = covered && !facts.kind_excluded;
    if facts.own || !facts.regular || !covered || facts.size == 0 {
        return Decision::Answer(Outcome::Policy);
    }
    let failed = |failure| {
        Decision::Answer(Outcome::Failed(
            failure,
            table.answer(failure, facts.access),
        ))
    };
    if facts.few_fds {
        return failed(Failure::OutOfFds);
    }
    if facts.max_scan_bytes.is_some_and(|max| facts.size > max) {
        return failed(Failure::TooLarge);
    }
    match remembered().map(|verdict| verdict_outcome(&verdict, facts.access, table)) {
        Some(Outcome::Scanned(answer)) => Decision::Answer(Outcome::Cached(answer)),
        _ => Decision::Ask,
    }
}

/// What the kernel is told for a verdict.
pub fn verdict_outcome(verdict: &Verdict, access: Access, table: &Table) -> Outcome {
    match verdict {
        Verdict::Clean => Outcome::Scanned(Answer::Allow),
        Verdict::Malware { .. } => Outcome::Scanned(Answer::Deny),
        Verdict::Suspicious { .. } => Outcome::Scanned(table.suspicious(access)),
        Verdict::NotScanned(reason) => {
            let failure = Failure::from(reason);
            Outcome::Failed(failure, table.answer(failure, access))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use palisade_protocol::bounded::Text;
    use palisade_protocol::verdict::NotScanned;
    use proptest::prelude::*;

    fn scope() -> Scope {
        Scope {
            paths: vec!["/home".into()],
            exclude: vec!["/home/cache".into()],
            exclude_types: Vec::new(),
            max_bytes: Some(3),
        }
    }

    #[test]
    fn a_prefix_ends_at_a_component() {
        let covers = |path| scope().covers(path, 1);
        assert!(covers(b"/home/a\xff"));
        assert!(covers(b"/home"));
        assert!(!covers(b"/homework"));
        assert!(!covers(b"/home/cache/x"));
        assert!(covers(b"/home/cachet"));
        assert!(covers(b"/home/gone (deleted)"));
    }

    fn verdicts() -> impl Strategy<Value = Verdict> {
        let name = || Text::cut("n");
        prop_oneof![
            Just(Verdict::Clean),
            Just(Verdict::Malware {
                name: name(),
                engine: Text::cut("e")
            }),
            Just(Verdict::Suspicious {
                name: name(),
                engine: Text::cut("e")
            }),
            Just(Verdict::NotScanned(NotScanned::Encrypted)),
            Just(Verdict::NotScanned(NotScanned::NoSvm)),
        ]
    }

    proptest! {
        #[test]
        fn decisions_keep_their_promises(
            exec: bool, own: bool, hidden: bool, kind_excluded: bool, regular: bool, few_fds: bool, size in 0_u64..6,
            path in prop::option::of(prop_oneof![
                Just(&b"/home/f"[..]), Just(&b"/home/cache/f"[..]), Just(&b"/etc/f"[..])
            ]),
            max_scan_bytes in prop::option::of(0_u64..4),
            remembered in prop::option::of(verdicts()),
        ) {
            let access = if exec { Access::Exec } else { Access::Open };
            let facts = Facts {
                access, own, path, hidden, kind_excluded, regular, size, few_fds, max_scan_bytes
            };
            let table = Table::default();
            let mut asked = false;
            let decision = decide(&facts, &scope(), &table, || { asked = true; remembered.clone() });
            let protected = !kind_excluded && (hidden || path == Some(&b"/home/f"[..]));
            let covered = !own && regular && (1..=3).contains(&size) && protected;
            prop_assert_eq!(decision == Decision::Answer(Outcome::Policy), !covered);
            if asked {
                prop_assert!(covered && !few_fds);
                match remembered {
                    Some(Verdict::Malware { .. }) =>
                        prop_assert_eq!(decision, Decision::Answer(Outcome::Cached(Answer::Deny))),
                    Some(Verdict::Clean) =>
                        prop_assert_eq!(decision, Decision::Answer(Outcome::Cached(Answer::Allow))),
                    // What was not scanned is never an answer from memory.
                    Some(Verdict::NotScanned(_)) | None => prop_assert_eq!(decision, Decision::Ask),
                    Some(Verdict::Suspicious { .. }) => {}
                }
            }
        }

        #[test]
        fn only_clean_is_scanned_and_allowed_without_policy(verdict in verdicts(), exec: bool) {
            let access = if exec { Access::Exec } else { Access::Open };
            match (&verdict, verdict_outcome(&verdict, access, &Table::default())) {
                (Verdict::Clean, Outcome::Scanned(Answer::Allow))
                | (Verdict::Malware { .. }, Outcome::Scanned(Answer::Deny))
                | (Verdict::Suspicious { .. }, Outcome::Scanned(_))
                | (Verdict::NotScanned(_), Outcome::Failed(..)) => {}
                (verdict, outcome) => prop_assert!(false, "{verdict:?} gave {outcome:?}"),
            }
        }
    }
}
