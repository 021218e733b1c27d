//! Which engines a content needs: pure.
//!
//! A content that was found clean before needs those engines alone whose definitions
//! changed since; one that unpacks for such an engine runs with it. And where the one
//! that unpacks changed, it may unpack what it did not before: members that no engine
//! ever saw, so that all that take members are asked about them.

use palisade_protocol::verdict::Generations;

use crate::engine::EngineKind;

/// What one engine does with a content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Task {
    /// Nothing with the content itself, which it found clean by the same definitions; of
    /// what another engine unpacks it is asked about every member all the same.
    Skip,
    /// It scans the content.
    Scan {
        /// It hands over what it unpacks.
        members: bool,
    },
}

/// What each engine does, in the order of `engines`. `clean_by` are the definitions
/// under which the content was found clean before, by every engine.
pub(super) fn plan(
    engines: impl Iterator<Item = EngineKind> + Clone,
    in_force: &Generations,
    clean_by: Option<&Generations>,
    archives: bool,
) -> Vec<Task> {
    let unchanged = |engine: EngineKind| {
        let fingerprint = |set: &Generations| {
            let own = set
                .iter()
                .find(|used| used.engine.as_str() == engine.name());
            own.map(|used| used.fingerprint)
        };
        let before = clean_by.and_then(fingerprint);
        before.is_some() && before == fingerprint(in_force)
    };
    let others_unpack = engines
        .clone()
        .any(|engine| engine.unpacks() && !unchanged(engine));
    let wants_members =
        |engine: EngineKind| engine.takes_members() && (others_unpack || !unchanged(engine));
    let members_are_wanted = archives && engines.clone().any(wants_members);
    let task = |engine: EngineKind| {
        let members = engine.unpacks() && members_are_wanted;
        if unchanged(engine) && !members {
            Task::Skip
        } else {
            Task::Scan { members }
        }
    };
    engines.map(task).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use palisade_protocol::bounded::{List, Text};
    use palisade_protocol::verdict::{EngineGeneration, Generation};
    use proptest::prelude::*;

    const ALL: [EngineKind; 2] = [EngineKind::Clamav, EngineKind::Yara];
    const SCAN: Task = Task::Scan { members: false };
    const UNPACK: Task = Task::Scan { members: true };

    fn set(clamav: u8, yara: u8) -> Generations {
        let of = |(engine, fingerprint): (EngineKind, u8)| EngineGeneration {
            engine: Text::cut(engine.name()),
            generation: Generation(1),
            fingerprint: [fingerprint; 16],
        };
        List::cut([(EngineKind::Clamav, clamav), (EngineKind::Yara, yara)].map(of))
    }

    fn tasks(clean_by: Option<Generations>, archives: bool) -> Vec<Task> {
        plan(ALL.into_iter(), &set(1, 1), clean_by.as_ref(), archives)
    }

    #[test]
    fn what_did_not_change_is_not_run_again() {
        assert_eq!(tasks(None, true), [UNPACK, SCAN]);
        assert_eq!(tasks(None, false), [SCAN, SCAN]);
        assert_eq!(tasks(Some(set(9, 9)), true), [UNPACK, SCAN]);
        assert_eq!(
            tasks(Some(set(9, 1)), true),
            [UNPACK, Task::Skip],
            "it may unpack what the other never saw"
        );
        assert_eq!(tasks(Some(set(9, 1)), false), [SCAN, Task::Skip]);
        assert_eq!(
            tasks(Some(set(1, 9)), true),
            [UNPACK, SCAN],
            "it unpacks for the other"
        );
        assert_eq!(tasks(Some(set(1, 9)), false), [Task::Skip, SCAN]);
        assert_eq!(tasks(Some(set(1, 1)), true), [Task::Skip, Task::Skip]);
    }

    proptest! {
        /// An engine is left out only if the same definitions of it said clean before; and
        /// members, only if both what unpacks them and what scans them did.
        #[test]
        fn nothing_is_left_out_that_changed(before in (0..3_u8, 0..3_u8), now in (0..3_u8, 0..3_u8), archives: bool) {
            let (clean_by, in_force) = (set(before.0, before.1), set(now.0, now.1));
            let tasks = plan(ALL.into_iter(), &in_force, Some(&clean_by), archives);
            prop_assert!(tasks[0] != Task::Skip || before.0 == now.0);
            prop_assert!(tasks[1] != Task::Skip || before.1 == now.1);
            let unpacks = tasks[0] == UNPACK;
            prop_assert_eq!(unpacks, archives && before != now);
        }
    }
}
