//! The policy on disk, and which one is used at a start.
//!
//! `policy.json` is what came last, `policy-good.json` the last one that an agent has run
//! well with. A policy that was tried at two starts, and never ran well, is not tried
//! again: the good one is used, which is neither a frozen guest nor one without
//! protection, and the supervisor's own fallback is not reached. One that ran well before
//! is used whatever ended the agent since: what keeps a proven one from running is the
//! supervisor's matter.
//!
//! Each file carries its policy's fingerprint: what was damaged is not believed.

use std::io;
use std::path::Path;

use palisade_protocol::bounded::Text;
use palisade_protocol::policy::{Fingerprint, Policy, Refused, Why};
use serde::{Deserialize, Serialize};

use crate::state_file::StateFile;

/// Largest file that is read, in bytes.
const MAX_FILE_BYTES: u64 = 4 * 1024 * 1024;
/// Starts with a policy that never ran well, at the most.
const MOST_TRIES: u32 = 2;

/// A policy as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Entry {
    fingerprint: Fingerprint,
    /// How often an agent has begun to run with it since it was last proven.
    tries: u32,
    policy: Policy,
}

/// What a file holds.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Found {
    Absent,
    Damaged,
    Is(Entry),
}

impl Found {
    fn is(&self, fingerprint: Fingerprint) -> bool {
        matches!(self, Self::Is(entry) if entry.fingerprint == fingerprint)
    }
}

/// What an agent begins with.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Choice {
    /// The policy, if there is one to be used.
    pub policy: Option<(Policy, Fingerprint)>,
    /// The one that was tried in vain.
    pub refused: Option<Refused>,
    /// What is wrong with what was kept.
    pub note: Option<Why>,
    /// Whether it is the one that came last, and has yet to run well.
    on_trial: bool,
    /// Whether it is to be written over the one that came last, which is damaged.
    mends: bool,
}

/// Which of both is used.
fn choose(current: Found, good: Found) -> Choice {
    let instead = |good| match good {
        Found::Is(entry) => {
            let words = "the last one that the agent ran well with is in force";
            (Some((entry.policy, entry.fingerprint)), words)
        }
        _ => (None, "the guest's own settings alone are in force"),
    };
    match current {
        Found::Absent => Choice::default(),
        Found::Is(entry) if good.is(entry.fingerprint) || entry.tries < MOST_TRIES => Choice {
            on_trial: !good.is(entry.fingerprint),
            policy: Some((entry.policy, entry.fingerprint)),
            ..Choice::default()
        },
        Found::Is(entry) => {
            let (policy, words) = instead(good);
            let tries = entry.tries;
            let why = format!("the agent did not come up with it, {tries} times; {words}");
            Choice {
                policy,
                refused: Some(Refused {
                    fingerprint: entry.fingerprint,
                    why: Text::cut(&why),
                }),
                ..Choice::default()
            }
        }
        Found::Damaged => {
            let (policy, words) = instead(good);
            let note = format!("policy.json is damaged; until the server sends it again, {words}");
            Choice {
                mends: policy.is_some(),
                policy,
                note: Some(Text::cut(&note)),
                ..Choice::default()
            }
        }
    }
}

/// The files in a state folder.
#[derive(Debug, Clone)]
pub struct Files {
    current: StateFile,
    good: StateFile,
}

impl Files {
    /// The files in a state folder.
    pub fn new(state: &Path) -> Self {
        let file = |name: &str, damaged| StateFile::new(state.join(name), MAX_FILE_BYTES, damaged);
        Self {
            current: file("policy.json", "a damaged policy is not used"),
            good: file("policy-good.json", "a damaged policy is not used instead"),
        }
    }

    /// What would be begun with; nothing is noted.
    pub fn look(&self) -> Choice {
        choose(found(&self.current), found(&self.good))
    }

    /// What is begun with: a try, until it has run well. A damaged file is mended by the
    /// good one: the server does not send again what is in force.
    pub fn begin(&self) -> Choice {
        let mut choice = self.look();
        if let (true, Some((policy, fingerprint))) = (choice.mends, &choice.policy)
            && let Err(error) = self.keep(policy, *fingerprint, false)
        {
            tracing::error!(%error, "the damaged policy.json cannot be replaced");
        }
        if choice.on_trial
            && let Found::Is(mut entry) = found(&self.current)
        {
            entry.tries += 1;
            if let Err(error) = self.current.save(&entry) {
                let note = format!("that the policy is tried cannot be noted on disk: {error}");
                tracing::error!("{note}");
                choice.note = Some(Text::cut(&note));
            }
        }
        choice
    }

    /// Keeps a policy, in place of the one before. `under_way`: an agent runs with it now.
    ///
    /// # Errors
    /// The disk's.
    pub fn keep(
        &self,
        policy: &Policy,
        fingerprint: Fingerprint,
        under_way: bool,
    ) -> io::Result<()> {
        self.current.save(&Entry {
            fingerprint,
            tries: u32::from(under_way),
            policy: policy.clone(),
        })
    }

    /// Forgets the one that came last: it was refused, and there was none before.
    ///
    /// # Errors
    /// The disk's.
    pub fn forget(&self) -> io::Result<()> {
        self.current.remove().map(drop)
    }

    /// The agent has run well with this one, if it is the one that came last.
    ///
    /// # Errors
    /// The disk's.
    pub fn proven(&self, fingerprint: Fingerprint) -> io::Result<()> {
        match found(&self.current) {
            Found::Is(mut entry) if entry.fingerprint == fingerprint => {
                if entry.tries > 0 {
                    entry.tries = 0;
                    self.current.save(&entry)?;
                }
                if found(&self.good) != Found::Is(entry.clone()) {
                    self.good.save(&entry)?;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// The agent was told to end, or ended in order with an error: that says nothing
    /// against its policy.
    ///
    /// # Errors
    /// The disk's.
    pub fn ended(&self, fingerprint: Fingerprint) -> io::Result<()> {
        match found(&self.current) {
            Found::Is(mut entry) if entry.fingerprint == fingerprint && entry.tries > 0 => {
                entry.tries -= 1;
                self.current.save(&entry)
            }
            _ => Ok(()),
        }
    }
}

fn found(file: &StateFile) -> Found {
    let checked = file.load_checked(|entry: Entry| {
        let right = entry
            .policy
            .fingerprint()
            .map_err(|error| error.to_string());
        match right {
            Ok(right) if right == entry.fingerprint => Ok(entry),
            Ok(_) => Err("its fingerprint is not that of its policy".to_owned()),
            Err(error) => Err(error),
        }
    });
    match checked {
        Some(entry) => Found::Is(entry),
        // A link that leads nowhere is damage, too.
        None if file.path().symlink_metadata().is_ok() => Found::Damaged,
        None => Found::Absent,
    }
}

#[cfg(test)]
mod tests {
    use super::super::overlay::tests::policy;
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn one(n: u64) -> (Policy, Fingerprint) {
        let policy = policy(&[("on_access.deadline_ms", json!(n))]);
        let fingerprint = policy.fingerprint().unwrap();
        (policy, fingerprint)
    }

    fn files() -> (tempfile::TempDir, Files) {
        let dir = tempfile::tempdir().unwrap();
        let files = Files::new(dir.path());
        (dir, files)
    }

    #[test]
    fn what_is_kept_is_used_and_what_ran_well_stays() {
        let (_dir, files) = files();
        assert_eq!(files.begin(), Choice::default());
        let (first, print) = one(500);
        files.keep(&first, print, true).unwrap();
        files.proven(print).unwrap();
        for _ in 0..5 {
            let choice = files.begin();
            assert_eq!(choice.policy, Some((first.clone(), print)));
            assert_eq!((choice.refused, choice.note), (None, None));
            files.ended(print).unwrap();
        }
    }

    #[test]
    fn what_was_tried_in_vain_gives_way_to_what_ran_well() {
        let (_dir, files) = files();
        let ((good, good_print), (bad, bad_print)) = (one(500), one(600));
        files.keep(&good, good_print, true).unwrap();
        files.proven(good_print).unwrap();
        // The agent runs with it, and dies; it is started, and dies.
        files.keep(&bad, bad_print, true).unwrap();
        assert_eq!(files.begin().policy, Some((bad.clone(), bad_print)));
        for _ in 0..3 {
            let choice = files.begin();
            assert_eq!(choice.policy, Some((good.clone(), good_print)));
            let refused = choice.refused.unwrap();
            assert_eq!(refused.fingerprint, bad_print);
            assert!(refused.why.contains("2 times"), "{}", refused.why);
        }
        // What runs well meanwhile is not the one that did not.
        files.proven(good_print).unwrap();
        assert!(files.begin().refused.is_some());
        // Another one is another one.
        let (next, print) = one(700);
        files.keep(&next, print, false).unwrap();
        assert_eq!(files.begin().policy, Some((next, print)));
        // Without any that ran well there is none.
        let (_dir, files) = super::tests::files();
        files.keep(&bad, bad_print, true).unwrap();
        files.begin();
        let choice = files.begin();
        assert_eq!(choice.policy, None);
        assert!(choice.refused.unwrap().why.contains("own settings"));
    }

    #[test]
    fn an_end_that_was_ordered_is_no_try() {
        let (_dir, files) = files();
        let (policy, print) = one(500);
        files.keep(&policy, print, false).unwrap();
        for _ in 0..5 {
            assert!(files.begin().policy.is_some());
            files.ended(print).unwrap();
        }
    }

    #[test]
    fn what_ran_well_is_used_however_often_the_agent_dies() {
        let (_dir, files) = files();
        let (policy, print) = one(500);
        files.keep(&policy, print, true).unwrap();
        files.proven(print).unwrap();
        for _ in 0..5 {
            let choice = files.begin();
            assert_eq!(choice.policy, Some((policy.clone(), print)));
            assert!(choice.refused.is_none());
        }
    }

    #[test]
    fn a_damaged_file_is_mended_by_what_ran_well() {
        let (dir, files) = files();
        let (policy, print) = one(500);
        files.keep(&policy, print, true).unwrap();
        files.proven(print).unwrap();
        std::fs::write(dir.path().join("policy.json"), "damaged").unwrap();
        let choice = files.begin();
        assert_eq!(choice.policy, Some((policy.clone(), print)));
        assert!(choice.note.is_some());
        let next = files.begin();
        assert_eq!((next.policy, next.note), (Some((policy, print)), None));
    }

    proptest! {
        #[test]
        fn no_damage_is_believed_and_none_is_fatal(
            at in any::<prop::sample::Index>(), to in any::<u8>(), cut in any::<bool>(), both in any::<bool>(),
        ) {
            let (dir, files) = files();
            let (policy, print) = one(500);
            files.keep(&policy, print, true).unwrap();
            files.proven(print).unwrap();
            let damage = |name: &str| {
                let path = dir.path().join(name);
                let mut bytes = std::fs::read(&path).unwrap();
                let at = at.index(bytes.len());
                match cut {
                    true => bytes.truncate(at),
                    false => bytes[at] = to,
                }
                std::fs::write(&path, &bytes).unwrap();
            };
            damage("policy.json");
            if both {
                damage("policy-good.json");
            }
            let choice = files.look();
            // Whatever is used is what was kept: a file that still says the same, or the
            // other one.
            if let Some((used, of)) = &choice.policy {
                prop_assert_eq!((used, *of), (&policy, print));
            } else {
                prop_assert!(both || choice.refused.is_some() || choice.note.is_some());
            }
            prop_assert!(both || choice.policy.is_some() || choice.refused.is_some());
        }
    }
}
