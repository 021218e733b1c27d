//! The fuzz targets on the stable toolchain: every corpus is run through its decoder,
//! and so are mutations of it. `scripts/soak fuzz` is the long run.
//!
//! The control: a target panics where a decoder breaks a promise, and
//! `a_broken_promise_is_found` shows that a panic is found and named.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a panic fails the test"
)]

use std::collections::BTreeSet;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

use palisade_tests::fuzz::mutate::mutate;
use palisade_tests::fuzz::{TARGETS, Target, seeds};
use rand::SeedableRng as _;
use rand::rngs::StdRng;

/// Mutations of all targets here; `scripts/soak` sets `PALISADE_EXECUTIONS` to ten million.
const EXECUTIONS: u64 = 100_000;
/// No target gets more time than this here, however slow the machine.
const TIME_PER_TARGET: Duration = Duration::from_secs(4);
/// What all executions together may add to this process at its largest, in KiB: many
/// times what the largest frame takes.
const MAX_GROWTH_KIB: u64 = 64 * 1024;

/// Where a corpus is to be written anew, as snapshots are with `INSTA_UPDATE`.
const WRITE: &str = "PALISADE_WRITE_CORPUS";

fn corpus(target: &Target) -> Vec<(String, Vec<u8>)> {
    let folder = seeds::corpora().join(target.name);
    let mut files: Vec<(String, Vec<u8>)> = fs::read_dir(&folder)
        .unwrap_or_else(|error| panic!("{}: {error}; set {WRITE}=1", folder.display()))
        .map(|entry| {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            (name, fs::read(path).unwrap())
        })
        .collect();
    files.sort();
    files
}

fn write_corpora() {
    for target in TARGETS {
        let folder = seeds::corpora().join(target.name);
        let _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        for (name, bytes) in seeds::of(target.name) {
            fs::write(folder.join(name), bytes).unwrap();
        }
    }
}

/// Runs the target; says which bytes it was that it did not survive.
fn survives(target: &Target, bytes: &[u8], what: &str) -> bool {
    catch_unwind(AssertUnwindSafe(|| (target.run)(bytes)))
        .unwrap_or_else(|_| panic!("{}: {what}: {}", target.name, hex::encode(bytes)))
}

#[test]
fn every_target_has_its_corpus_and_survives_it() {
    if std::env::var_os(WRITE).is_some() {
        write_corpora();
    }
    let mut folders = BTreeSet::new();
    for entry in fs::read_dir(seeds::corpora()).unwrap() {
        folders.insert(entry.unwrap().file_name().into_string().unwrap());
    }
    let names: BTreeSet<String> = TARGETS.iter().map(|one| one.name.to_owned()).collect();
    assert_eq!(folders, names, "a corpus for each target, and no other");
    let manifest = fs::read_to_string(seeds::repository().join("fuzz/Cargo.toml")).unwrap();
    for target in TARGETS {
        let program = format!("name = \"{}\"\n", target.name);
        assert!(manifest.contains(&program), "fuzz/ lacks {}", target.name);
        let files = corpus(target);
        assert!((1..=seeds::MAX_FILES).contains(&files.len()));
        let mut accepted = 0;
        for (name, bytes) in &files {
            assert!(bytes.len() <= seeds::MAX_BYTES, "{}/{name}", target.name);
            accepted += usize::from(survives(target, bytes, name));
        }
        println!(
            "{}: {} files, {accepted} accepted",
            target.name,
            files.len()
        );
        // Otherwise nothing behind the first refusal was ever seen.
        assert!(accepted > 0, "{}: stale; set {WRITE}=1", target.name);
        assert!(accepted < files.len(), "{}: accepts all", target.name);
    }
}

fn largest_kib() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let kib = line.unwrap().split_whitespace().nth(1).unwrap();
    kib.parse().unwrap()
}

#[test]
fn every_decoder_survives_mutations() {
    let asked: Option<u64> = std::env::var("PALISADE_EXECUTIONS")
        .ok()
        .map(|text| text.parse().unwrap());
    let share = asked.unwrap_or(EXECUTIONS).div_ceil(TARGETS.len() as u64);
    let seed: u64 = rand::random();
    println!("seed {seed}, {share} executions for each target");
    let mut rng = StdRng::seed_from_u64(seed);
    let (mut total, mut before) = (0, None);
    for target in TARGETS {
        let files: Vec<Vec<u8>> = corpus(target).into_iter().map(|(_, bytes)| bytes).collect();
        // Keys and contents that a target makes once are no growth.
        (target.run)(&files[0]);
        before.get_or_insert_with(largest_kib);
        let (started, mut done, mut accepted) = (Instant::now(), 0, 0);
        while done < share && (asked.is_some() || started.elapsed() < TIME_PER_TARGET) {
            let mut bytes = files[done as usize % files.len()].clone();
            mutate(&mut rng, &mut bytes, &files);
            accepted += u64::from(survives(target, &bytes, &format!("seed {seed}")));
            done += 1;
        }
        println!("{}: {done} executions, {accepted} accepted", target.name);
        total += done;
    }
    let grown = largest_kib() - before.unwrap();
    println!("{total} executions; {grown} KiB more at the largest");
    assert!(total >= TARGETS.len() as u64 * 100);
    assert!(grown < MAX_GROWTH_KIB, "{grown} KiB (seed {seed})");
}

/// The control: a decoder that breaks its promise for one byte in a few is found.
#[test]
fn a_broken_promise_is_found() {
    let broken = Target {
        name: "broken",
        run: |bytes| {
            assert!(!bytes.contains(&0x85), "the promise");
            true
        },
    };
    let mut rng = StdRng::seed_from_u64(rand::random());
    let found = catch_unwind(AssertUnwindSafe(|| {
        for _ in 0..100_000 {
            let mut bytes = vec![0; 8];
            mutate(&mut rng, &mut bytes, &[]);
            survives(&broken, &bytes, "here");
        }
    }));
    let said = found.expect_err("100,000 mutations hit a single byte");
    let said = said.downcast_ref::<String>().unwrap();
    assert!(said.starts_with("broken: here: ") && said.contains("85"));
}
