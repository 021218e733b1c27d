//! What a worker costs beyond the rules that it shares.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a panic here is a failed test"
)]

use palisade_worker::client::{EngineCommand, EngineProcess, Outcome, ScanOptions, SealedContent};
use std::fmt::Write;
use std::time::Duration;
use tempfile::TempDir;

const LONG: Duration = Duration::from_secs(120);
/// Rules, so that there is something to share.
const RULES: u32 = 3000;
/// The promise: private memory of a worker after many scans (bytes).
const PRIVATE: u64 = 5 << 20;

#[test]
fn a_worker_costs_little_beyond_the_shared_rules() {
    let folder = TempDir::new().unwrap();
    let (rules, scratch) = (folder.path().join("rules"), folder.path().join("scratch"));
    let mut text = String::new();
    for n in 0..RULES {
        let marker = palisade_worker::zygote::random_hex(8).unwrap();
        writeln!(
            text,
            "rule R{n} {{ strings: $a = \"{marker}\" ascii wide $b = {{ {:02x} 11 ?? 22 {:02x} }} \
             condition: $a or (#b > 3 and filesize < 1MB) }}",
            n % 256,
            n / 256
        )
        .unwrap();
    }
    for directory in [&rules, &scratch] {
        std::fs::create_dir(directory).unwrap();
    }
    std::fs::write(rules.join("many.yar"), text).unwrap();
    let command = EngineCommand::new(env!("CARGO_BIN_EXE_palisade-engine-yara"))
        .arg("--rules")
        .arg(&rules)
        .arg("--scratch")
        .arg(&scratch);
    let (engine, _) = EngineProcess::start(&command).unwrap();
    let mut workers = [
        engine.spawn_worker().unwrap(),
        engine.spawn_worker().unwrap(),
    ];
    let Ok(fresh) = workers[0].private_bytes() else {
        println!(
            "skipped: a_worker_costs_little_beyond_the_shared_rules: only root may look into a worker"
        );
        return;
    };
    let program = std::fs::read(env!("CARGO_BIN_EXE_palisade-engine-yara")).unwrap();
    let mut scans = 0;
    // Small ones, which are read, and larger ones, which are mapped.
    for size in [1000, 100_000, 1 << 20, 3 << 20] {
        for part in program.chunks(size).take(64) {
            let content = SealedContent::from_bytes(part).unwrap();
            for worker in &mut workers {
                let done = worker.scan(&content, ScanOptions::default(), LONG, &mut drop);
                assert!(!matches!(done.unwrap().outcome, Outcome::NotScanned { .. }));
            }
            scans += 1;
        }
    }
    let private = workers
        .each_ref()
        .map(|worker| worker.private_bytes().unwrap());
    println!(
        "private memory of a worker: {} KiB fresh, {:?} KiB after {scans} scans",
        fresh >> 10,
        private.map(|bytes| bytes >> 10)
    );
    assert!(private.iter().all(|bytes| *bytes <= PRIVATE), "{private:?}");
}
