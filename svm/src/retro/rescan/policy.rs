//! Which kept content is scanned anew next, and whether now: pure.
//!
//! ```text
//!  kept contents ──► Plan ──take──► is_due? ──► step ──► Begin │ Wait │ Never
//!                     ▲ put_back: a guest sends it just now
//! ```

use std::collections::VecDeque;

use palisade_protocol::verdict::{Generations, VerdictKind};

use crate::cache::{Entry, same_definitions};
use crate::scan::Occupancy;

/// Whether a content whose last scan found it clean has to be scanned by the definitions
/// in force. `last` is what the SharedCache has of it.
///
/// What was malware, suspicious or not scanned by earlier definitions is left to whoever
/// asks: nobody was told that it is clean.
pub fn is_due(last: Option<&Entry>, in_force: &Generations) -> bool {
    match last {
        None => true,
        Some(entry) => {
            entry.verdict.kind() == VerdictKind::Clean
                && !same_definitions(&entry.generations, in_force)
        }
    }
}

/// Memory for contents, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// All of it.
    pub total: u64,
    /// The largest content that a guest may send.
    pub largest: u64,
    /// What is free, or is given back when it is wanted.
    pub room: u64,
    /// Whether a guest's content waits for memory.
    pub is_wanted: bool,
}

/// What is to be done about a content now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// It is scanned.
    Begin,
    /// Guests' work goes first.
    Wait,
    /// It leaves no room for a guest's content, ever.
    Never,
}

/// Whether the lanes have time: nothing of the guests waits, and where there are several
/// lanes, one stays free for what comes next.
pub fn lanes_are_free(lanes: &Occupancy) -> bool {
    let usable = if lanes.lanes > 1 { lanes.lanes - 1 } else { 1 };
    lanes.waiting == 0 && lanes.busy < usable
}

/// What is to be done about a content of `size` bytes. While it is scanned its memory
/// cannot be given back, so it begins only if the largest content would find room beside
/// it.
pub fn step(lanes: &Occupancy, engines_are_up: bool, memory: &Memory, size: u64) -> Step {
    let needed = memory.largest.saturating_add(size);
    if needed > memory.total {
        return Step::Never;
    }
    if engines_are_up && !memory.is_wanted && memory.room >= needed && lanes_are_free(lanes) {
        Step::Begin
    } else {
        Step::Wait
    }
}

/// What a pass has still to look at, in its order.
#[derive(Debug)]
pub struct Plan<K>(VecDeque<K>);

impl<K> Plan<K> {
    /// These, the first of them first.
    pub fn new(contents: Vec<K>) -> Self {
        Self(contents.into())
    }

    /// The next one.
    pub fn take(&mut self) -> Option<K> {
        self.0.pop_front()
    }

    /// To be looked at again, after all others.
    pub fn put_back(&mut self, content: K) {
        self.0.push_back(content);
    }

    /// How many are left.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether none is left.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use palisade_protocol::bounded::{List, Text};
    use palisade_protocol::verdict::{
        Details, EngineGeneration, Generation, NotScanned, Verdict, VerdictKind,
    };
    use proptest::prelude::*;

    fn generations(fingerprint: u8) -> Generations {
        List::cut([EngineGeneration {
            engine: Text::cut("yara-x"),
            generation: Generation(fingerprint.into()),
            fingerprint: [fingerprint; 16],
        }])
    }

    fn entry(verdict: Verdict, fingerprint: u8) -> Entry {
        Entry {
            verdict,
            details: Details::default(),
            sha256: None,
            generations: generations(fingerprint),
            scanned_ms: 1,
        }
    }

    fn verdicts() -> [Verdict; 4] {
        let (name, engine) = (Text::cut("X"), Text::cut("yara-x"));
        [
            Verdict::Clean,
            Verdict::Malware {
                name: name.clone(),
                engine: engine.clone(),
            },
            Verdict::Suspicious { name, engine },
            Verdict::NotScanned(NotScanned::Encrypted),
        ]
    }

    #[test]
    fn what_is_unknown_or_was_clean_by_other_definitions_is_due() {
        let in_force = generations(2);
        assert!(is_due(None, &in_force));
        for verdict in verdicts() {
            let clean = verdict.kind() == VerdictKind::Clean;
            assert_eq!(is_due(Some(&entry(verdict.clone(), 1)), &in_force), clean);
            assert!(!is_due(Some(&entry(verdict, 2)), &in_force));
        }
    }

    #[test]
    fn one_lane_is_used_when_it_is_idle_and_of_several_one_stays_free() {
        let free = |lanes, busy, waiting| {
            lanes_are_free(&Occupancy {
                lanes,
                busy,
                waiting,
            })
        };
        assert!(free(1, 0, 0) && !free(1, 1, 0) && !free(1, 0, 1));
        assert!(free(2, 0, 0) && !free(2, 1, 0));
        assert!(free(8, 6, 0) && !free(8, 7, 0) && !free(8, 0, 1));
    }

    fn states() -> impl Strategy<Value = (Occupancy, bool, Memory)> {
        let lanes = (1..9_usize, 0..9_usize, 0..3_usize).prop_map(|(lanes, busy, waiting)| {
            let busy = busy.min(lanes);
            Occupancy {
                lanes,
                busy,
                waiting,
            }
        });
        let memory = (1..100_u64, 0..100_u64, 0..100_u64, any::<bool>()).prop_map(
            |(total, largest, room, is_wanted)| Memory {
                total,
                largest: largest.min(total),
                room: room.min(total),
                is_wanted,
            },
        );
        (lanes, any::<bool>(), memory)
    }

    proptest! {
        /// Whatever is begun, guests have what they had: a lane, their places in the
        /// queue, and memory for the largest content.
        #[test]
        fn guests_work_is_never_pushed_aside((lanes, up, memory) in states(), size in 1..100_u64) {
            if step(&lanes, up, &memory, size) == Step::Begin {
                prop_assert_eq!(lanes.waiting, 0);
                prop_assert!(!memory.is_wanted && up);
                prop_assert!(lanes.busy + 1 < lanes.lanes || lanes.lanes == 1 && lanes.busy == 0);
                prop_assert!(memory.room - size >= memory.largest);
            }
        }

        /// What has to wait is begun once there is no load; what is given up would have
        /// waited for ever.
        #[test]
        fn without_load_everything_begins_or_is_given_up((lanes, up, memory) in states(), size in 1..100_u64) {
            let idle = Occupancy { busy: 0, waiting: 0, ..lanes };
            let all = Memory { room: memory.total, is_wanted: false, ..memory };
            let at_best = step(&idle, true, &all, size);
            prop_assert_ne!(at_best, Step::Wait);
            let now = step(&lanes, up, &memory, size);
            prop_assert_eq!(now == Step::Never, at_best == Step::Never);
        }

        /// Every content is looked at, in its order, however often others are put back.
        #[test]
        fn a_plan_loses_nothing(count in 0..30_u32, back in prop::collection::vec(any::<bool>(), 0..40)) {
            let mut plan = Plan::new((0..count).collect());
            let (mut firsts, mut done, mut back) = (Vec::new(), Vec::new(), back.into_iter());
            let mut seen = std::collections::BTreeSet::new();
            while let Some(content) = plan.take() {
                if seen.insert(content) {
                    firsts.push(content);
                }
                match back.next() {
                    Some(true) => plan.put_back(content),
                    _ => done.push(content),
                }
                prop_assert_eq!(plan.len() + done.len(), count as usize);
            }
            let all: Vec<u32> = (0..count).collect();
            done.sort_unstable();
            prop_assert_eq!((&firsts, &done), (&all, &all));
            prop_assert!(plan.is_empty());
        }
    }
}
