//! The file that keeps verdicts over restarts: whatever is done to it, nothing is
//! believed that this agent did not write.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a panic in a test is a failed test with a place in it"
)]

mod support;

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use palisade_daemon::membership::Membership;
use palisade_light_agent::cache::Known;
use palisade_light_agent::cache::database::{self, Database, Held, Seal};
use palisade_light_agent::cache::kept::{Batch, Common, Entry, Kept};
use palisade_light_agent::cache::writer::Keeper;
use palisade_protocol::bounded::{List, Text};
use palisade_protocol::content::ContentId;
use palisade_protocol::scan::ScanOptions;
use palisade_protocol::verdict::{EngineGeneration, Generation, Generations, Verdict};
use rand::Rng as _;
use support::site::Site;
use support::wait_until;

fn generations(fingerprint: u8) -> Generations {
    List::cut([EngineGeneration {
        engine: Text::cut("e"),
        generation: Generation(1),
        fingerprint: [fingerprint; 16],
    }])
}

fn content(n: u64) -> ContentId {
    ContentId::of(&n.to_le_bytes())
}

fn entry(n: u64) -> Entry {
    let malware = n
        .is_multiple_of(4)
        .then(|| Box::new((format!("M{n}"), "e".to_owned())));
    Entry {
        order: n,
        size: n,
        malware,
    }
}

fn batch(numbers: std::ops::Range<u64>) -> Batch {
    Batch {
        common: Common {
            generations: generations(1),
            heard_ms: 7,
        },
        anew: true,
        put: numbers.map(|n| (content(n), entry(n))).collect(),
        removed: Vec::new(),
    }
}

fn options() -> ScanOptions {
    ScanOptions::default()
}

fn written(path: &Path, member: &Membership, numbers: std::ops::Range<u64>) {
    let seal = Seal::new(&member.identity, options());
    let (open, held) = Database::open(path, seal).unwrap();
    assert!(held.is_none());
    open.write(&batch(numbers)).unwrap();
}

/// What may be believed of a file; nothing if it is refused, by a panic even.
fn read(path: &Path, member: &Membership, options: ScanOptions) -> Option<Held> {
    let seal = Seal::new(&member.identity, options);
    let path = path.to_owned();
    std::panic::catch_unwind(move || Database::open(&path, seal).ok()?.1).ok()?
}

#[test]
fn it_holds_what_was_written() {
    let (dir, member) = (tempfile::tempdir().unwrap(), Site::new().agent());
    let path = database::file(dir.path());
    written(&path, &member, 1..300);
    let (common, mut entries) = read(&path, &member, options()).unwrap();
    assert_eq!(common, batch(0..0).common);
    entries.sort_by_key(|(_, entry)| entry.order);
    assert_eq!(entries, batch(1..300).put);
    let seal = Seal::new(&member.identity, options());
    let change = Batch {
        anew: false,
        put: vec![(content(500), entry(500))],
        removed: vec![content(1), content(2)],
        ..batch(0..0)
    };
    Database::open(&path, seal)
        .unwrap()
        .0
        .write(&change)
        .unwrap();
    let (_, entries) = read(&path, &member, options()).unwrap();
    assert_eq!(entries.len(), 298);
}

#[test]
fn another_agent_and_other_options_do_not_believe_it() {
    let site = Site::new();
    let (dir, member) = (tempfile::tempdir().unwrap(), site.agent());
    let path = database::file(dir.path());
    written(&path, &member, 1..10);
    assert!(read(&path, &site.agent(), options()).is_none());
    let other = ScanOptions {
        archives: !options().archives,
        ..options()
    };
    assert!(read(&path, &member, other).is_none());
    assert!(read(&path, &member, options()).is_some());
}

/// Bytes are changed, cut off and exchanged at random: what is believed after it was
/// written so.
#[test]
fn nothing_is_believed_of_a_damaged_file_that_was_not_written() {
    const ROUNDS: usize = 300;
    std::panic::set_hook(Box::new(|_| {}));
    let (dir, member) = (tempfile::tempdir().unwrap(), Site::new().agent());
    let path = database::file(dir.path());
    written(&path, &member, 1..200);
    let good = fs::read(&path).unwrap();
    let all: std::collections::HashMap<_, _> = batch(1..200).put.into_iter().collect();
    let used = good.iter().rposition(|byte| *byte != 0).unwrap();
    let (mut refused, mut rng) = (0, rand::rng());
    for round in 0..ROUNDS {
        let mut bad = good.clone();
        match round % 3 {
            0 => bad.truncate(rng.random_range(0..good.len())),
            1 => bad[rng.random_range(0..=used)] ^= 1 << rng.random_range(0..8),
            _ => {
                let from = rng.random_range(0..=used);
                let upto = good.len().min(from + 64);
                rng.fill(&mut bad[from..upto]);
            }
        }
        fs::write(&path, &bad).unwrap();
        match read(&path, &member, options()) {
            None => refused += 1,
            Some((common, entries)) => {
                assert_eq!(common, batch(0..0).common);
                for (content, entry) in entries {
                    assert_eq!(all.get(&content), Some(&entry));
                }
            }
        }
    }
    let _ = std::panic::take_hook();
    assert!(refused > ROUNDS / 4, "{refused}");
}

fn keeper(state: &Path, member: &Membership) -> Keeper {
    Keeper::start(state, &member.identity, Kept::new(100, options(), 86_400))
}

fn clean(n: u64) -> Known {
    Known {
        content: content(n),
        verdict: Verdict::Clean,
    }
}

#[test]
fn a_keeper_takes_over_from_the_last_one_and_begins_anew_with_a_damaged_file() {
    let (dir, member) = (tempfile::tempdir().unwrap(), Site::new().agent());
    let first = keeper(dir.path(), &member);
    first.hear(&generations(1));
    for n in 1..50 {
        first.put(&clean(n), n, &generations(1));
    }
    first.close();
    let second = keeper(dir.path(), &member);
    assert_eq!(second.snapshot().loaded, 49);
    assert_eq!(
        second.get(&content(7), 7),
        Some((Verdict::Clean, generations(1)))
    );
    second.forget(&[content(7)]);
    second.close();
    let third = keeper(dir.path(), &member);
    assert_eq!(third.get(&content(7), 7), None);
    assert_eq!(third.snapshot().loaded, 48);
    third.hear(&generations(2));
    assert_eq!(third.get(&content(8), 8), None);
    third.close();
    assert_eq!(keeper(dir.path(), &member).snapshot().loaded, 0);

    for damage in ["", "nonsense", &"x".repeat(20_000)] {
        let (dir, member) = (tempfile::tempdir().unwrap(), Site::new().agent());
        let path = database::file(dir.path());
        fs::write(&path, damage).unwrap();
        let keeper = keeper(dir.path(), &member);
        assert_eq!(keeper.snapshot().loaded, 0);
        keeper.hear(&generations(1));
        keeper.put(&clean(1), 1, &generations(1));
        keeper.close();
        assert_eq!(self::keeper(dir.path(), &member).snapshot().loaded, 1);
    }
}

/// A disk that takes nothing: the work goes on in memory.
#[test]
fn with_a_disk_that_takes_nothing_it_goes_on_in_memory_and_says_so() {
    let (dir, member) = (tempfile::tempdir().unwrap(), Site::new().agent());
    let keeper = keeper(dir.path(), &member);
    // Now nothing can be made there.
    fs::remove_dir_all(dir.path()).unwrap();
    fs::write(dir.path(), "a file").unwrap();
    keeper.hear(&generations(1));
    keeper.put(&clean(1), 1, &generations(1));
    wait_until("it says so", || keeper.snapshot().problem.is_some());
    assert!(keeper.get(&content(1), 1).is_some());
    let began = Instant::now();
    for n in 2..5000 {
        keeper.put(&clean(n), n, &generations(1));
    }
    assert!(began.elapsed() < Duration::from_secs(5));
    assert_eq!(keeper.snapshot().contents, 100);
    fs::remove_file(dir.path()).unwrap();
}
