use super::*;
use palisade_protocol::bounded::{List, Text};
use palisade_protocol::verdict::{EngineGeneration, Generation};
use proptest::prelude::*;

const NOW: u64 = 1_800_000_000_000;
const DAY_MS: u64 = 86_400_000;

fn generations(number: u64, fingerprint: u8) -> Generations {
    List::cut([EngineGeneration {
        engine: Text::cut("e"),
        generation: Generation(number),
        fingerprint: [fingerprint; 16],
    }])
}

fn content(n: u64) -> ContentId {
    ContentId::of(&n.to_le_bytes())
}

fn known(n: u64) -> Known {
    Known {
        content: content(n),
        verdict: match n % 3 {
            0 => Verdict::Malware {
                name: Text::cut("M"),
                engine: Text::cut("e"),
            },
            _ => Verdict::Clean,
        },
    }
}

fn kept(bound: usize) -> Kept {
    Kept::new(bound, ScanOptions::default(), 86_400)
}

fn with(numbers: &[u64]) -> Kept {
    let mut kept = kept(100);
    kept.hear(&generations(1, 1), NOW);
    for n in numbers {
        kept.put(&known(*n), *n, &generations(1, 1));
    }
    kept
}

/// A later process, that has what this one wrote.
fn restarted(kept: &mut Kept) -> Kept {
    let batch = kept.batch(true, true).unwrap();
    let mut later = self::kept(100);
    later.take(batch.common, batch.put);
    later
}

fn verdict(kept: &Kept, n: u64, now: u64) -> Option<Verdict> {
    kept.get(&content(n), n, now).map(|(verdict, _)| verdict)
}

#[test]
fn a_later_process_believes_it_for_a_day_or_when_a_server_confirms() {
    let mut later = restarted(&mut with(&[1, 3]));
    assert_eq!(verdict(&later, 1, NOW + 1), Some(Verdict::Clean));
    assert_eq!(verdict(&later, 3, NOW + 1), Some(known(3).verdict));
    assert!(later.may_know(3, NOW + 1) && !later.may_know(4, NOW + 1));
    assert_eq!(verdict(&later, 1, NOW + DAY_MS), None, "too long ago");
    assert_eq!(verdict(&later, 1, NOW - 1), None, "the clock was put back");
    assert!(
        !later.hear(&generations(77, 1), NOW + 9 * DAY_MS),
        "the same by another number"
    );
    assert_eq!(verdict(&later, 1, NOW - DAY_MS), Some(Verdict::Clean));
}

#[test]
fn other_definitions_end_it_also_on_the_disk() {
    let mut later = restarted(&mut with(&[1, 2]));
    assert_eq!(later.batch(false, false), None, "nothing new");
    assert!(later.hear(&generations(1, 2), NOW));
    assert_eq!(verdict(&later, 1, NOW), None);
    later.put(&known(5), 5, &generations(1, 1));
    assert!(later.is_empty(), "of definitions that are not in force");
    assert!(later.is_urgent());
    let batch = later.batch(false, false).unwrap();
    assert!(batch.anew && batch.put.is_empty());
    assert_eq!(batch.common.generations, generations(1, 2));
}

#[test]
fn with_no_age_allowed_it_waits_for_a_server() {
    let mut first = with(&[1]);
    let batch = first.batch(true, true).unwrap();
    let mut later = Kept::new(100, ScanOptions::default(), 0);
    later.take(batch.common, batch.put);
    assert_eq!(verdict(&later, 1, NOW), None);
    later.hear(&generations(1, 1), NOW);
    assert_eq!(verdict(&later, 1, NOW), Some(Verdict::Clean));
}

#[test]
fn what_loads_after_other_definitions_came_is_not_taken() {
    let mut first = with(&[1]);
    let batch = first.batch(true, true).unwrap();
    let mut later = kept(100);
    later.hear(&generations(2, 2), NOW);
    later.batch(false, false);
    later.take(batch.common, batch.put);
    assert!(later.is_empty());
    assert!(later.batch(false, false).unwrap().anew);
}

#[test]
fn another_size_is_another_content() {
    assert_eq!(with(&[1]).get(&content(1), 2, NOW), None);
}

#[test]
fn a_suspicion_is_not_kept() {
    let mut kept = with(&[]);
    let verdict = Verdict::Suspicious {
        name: Text::cut("S"),
        engine: Text::cut("e"),
    };
    let known = Known {
        content: content(1),
        verdict,
    };
    kept.put(&known, 1, &generations(1, 1));
    assert!(kept.is_empty());
}

#[derive(Debug, Clone)]
enum Step {
    Put(u64),
    Forget(u64),
    Hear(u8),
    Write(bool),
    /// The batch that was taken last could not be written.
    Lost,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        8 => (0_u64..40).prop_map(Step::Put),
        2 => (0_u64..40).prop_map(Step::Forget),
        1 => (0_u8..3).prop_map(Step::Hear),
        3 => any::<bool>().prop_map(Step::Write),
        1 => Just(Step::Lost),
    ];
    prop::collection::vec(step, 0..150)
}

proptest! {
    #[test]
    fn what_was_written_is_what_is_there(steps in steps(), bound in 0_usize..12) {
        let mut kept = kept(bound);
        let mut disk: HashMap<ContentId, Entry> = HashMap::new();
        let mut in_force = 0;
        kept.hear(&generations(1, 0), NOW);
        for step in steps {
            match step {
                Step::Put(n) => kept.put(&known(n), n, &generations(1, in_force)),
                Step::Forget(n) => kept.forget(&[content(n)]),
                Step::Hear(which) => {
                    in_force = which;
                    kept.hear(&generations(1, which), NOW);
                }
                Step::Write(anew) => write(&mut disk, kept.batch(anew, true)),
                Step::Lost => {
                    let _ = kept.batch(false, true);
                    write(&mut disk, kept.batch(true, true));
                }
            }
            prop_assert!(kept.len() <= bound);
            prop_assert!(kept.order.len() <= 2 * bound.max(1));
            prop_assert_eq!(kept.sizes.values().sum::<u32>() as usize, kept.len());
        }
        write(&mut disk, kept.batch(false, true));
        prop_assert_eq!(&disk, &kept.entries);
    }
}

fn write(disk: &mut HashMap<ContentId, Entry>, batch: Option<Batch>) {
    let Some(batch) = batch else { return };
    if batch.anew {
        disk.clear();
    }
    for content in batch.removed {
        disk.remove(&content);
    }
    disk.extend(batch.put);
}
