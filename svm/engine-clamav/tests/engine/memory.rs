//! What a worker costs beyond the definitions that it shares.

use crate::site::{Site, marker, run_in};
use palisade_worker::client::{ScanOptions, SealedContent};
use std::fmt::Write;
use std::path::{Path, PathBuf};

use crate::site::LONG;

/// Signatures, so that there is something to share; about 50 MB in memory.
const HASHES: u32 = 100_000;
const BODIES: u32 = 20_000;
/// Files of this machine that are scanned, and most bytes of each.
const FILES: usize = 400;
const LARGEST: u64 = 4 << 20;
/// The promise: private memory of a worker after many scans (KiB).
const PRIVATE_KIB: u64 = 5 * 1024;

/// Private memory of a process (KiB): what would not be there without it.
fn private_kib(pid: i32) -> u64 {
    let rollup = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).unwrap();
    let value = |key: &str| -> u64 {
        let line = rollup.lines().find(|line| line.starts_with(key)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    value("Private_Clean:") + value("Private_Dirty:")
}

/// A number that depends on its predecessor (xorshift), for signatures that match
/// nothing.
fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

fn files(directory: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let (path, kind) = (entry.path(), entry.file_type().unwrap());
        if kind.is_dir() {
            files(&path, found);
        } else if kind.is_file() {
            found.push(path);
        }
    }
}

#[test]
fn a_worker_costs_little_beyond_the_shared_definitions() {
    let mut state = 0x9e37_79b9_7f4a_7c15;
    let (mut hashes, mut bodies) = (String::new(), marker().1);
    for n in 0..HASHES {
        for _ in 0..4 {
            write!(hashes, "{:016x}", next(&mut state)).unwrap();
        }
        let size = next(&mut state) % 4_000_000 + 512;
        writeln!(hashes, ":{size}:Synthetic.Hash-{n}:73").unwrap();
    }
    for n in 0..BODIES {
        let target = [0, 0, 1, 6][n as usize % 4];
        write!(bodies, "Synthetic.Body-{n}:{target}:*:").unwrap();
        for _ in 0..4 {
            write!(bodies, "{:016x}", next(&mut state)).unwrap();
        }
        bodies.push('\n');
    }
    let site = Site::new(&[("hashes.hsb", &hashes), ("bodies.ndb", &bodies)]);
    let engine = site.start();
    let mut worker = engine.spawn_worker().unwrap();
    let pid = worker.pid();
    if std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).is_err() {
        println!(
            "skipped: a_worker_costs_little_beyond_the_shared_definitions: \
             only root may look into a worker"
        );
        return;
    }
    let fresh = private_kib(pid);

    let mut corpus = Vec::new();
    for directory in [
        "/usr/bin",
        "/usr/lib/x86_64-linux-gnu",
        "/usr/share/perl",
        "/usr/share/doc",
    ] {
        let mut found = Vec::new();
        files(Path::new(directory), &mut found);
        found.sort();
        // Spread over the whole directory.
        let step = (found.len() / (FILES / 4)).max(1);
        corpus.extend(found.into_iter().step_by(step));
    }
    let mut archive: Vec<&str> = vec!["-q", "all.zip"];
    archive.extend(corpus.iter().take(40).filter_map(|path| path.to_str()));
    if run_in(&site.files(), "zip", &archive) {
        corpus.push(site.files().join("all.zip"));
    }
    // Large parts in the middle of small ones, packed: what a heap does not give back.
    for (size, name) in [
        (3, "three"),
        (9, "nine"),
        (27, "twenty-seven"),
        (31, "thirty-one"),
    ] {
        let text: Vec<u8> = (0..size << 20)
            .map(|_| b"0123456789abcdef"[next(&mut state) as usize % 16])
            .collect();
        site.put(name, &text);
        for (program, args) in [
            ("zip", vec!["-q", "large.zip"]),
            ("tar", vec!["-czf", "large.tgz"]),
        ] {
            let _ = std::fs::remove_file(site.files().join(args[1]));
            let all: Vec<&str> = args.iter().copied().chain([name]).collect();
            if run_in(&site.files(), program, &all) {
                let packed = site.files().join(format!("{name}-{}", args[1]));
                std::fs::rename(site.files().join(args[1]), &packed).unwrap();
                corpus.push(packed);
            }
        }
    }
    let options = ScanOptions {
        members: true,
        ..ScanOptions::default()
    };
    let (mut scans, mut bytes, mut peak) = (0, 0, fresh);
    for path in &corpus {
        let Ok(content) = std::fs::read(path) else {
            continue;
        };
        if content.is_empty() || content.len() as u64 > LARGEST && !path.starts_with(site.files()) {
            continue;
        }
        let content = SealedContent::from_bytes(&content).unwrap();
        worker
            .scan(&content, options.clone(), LONG, &mut drop)
            .unwrap();
        scans += 1;
        bytes += content.size();
        let now = private_kib(pid);
        if now > peak + 512 {
            println!("{now:6} KiB after {scans} ({})", path.display());
            peak = now;
        }
    }
    let private = private_kib(pid);
    let zygote = private_kib(engine.pid().try_into().unwrap());
    println!(
        "private: {fresh} KiB fresh, {private} KiB after {scans} scans of {} MB, {peak} KiB at \
         most; the zygote {zygote} KiB",
        bytes >> 20
    );
    assert!(private <= PRIVATE_KIB, "{private} KiB");
}

#[test]
fn explore_temporarily() {
    let site = Site::new(&[]);
    let defs = std::env::var("X_DEFS").unwrap();
    let command = palisade_worker::client::EngineCommand::new(crate::site::PROGRAM)
        .arg("--definitions")
        .arg(defs)
        .arg("--scratch")
        .arg(site.scratch());
    let (engine, _) = palisade_worker::client::EngineProcess::start(&command).unwrap();
    let t = std::time::Instant::now();
    let mut worker = engine.spawn_worker().unwrap();
    println!("X spawn {:?}", t.elapsed());
    let pid = worker.pid();
    let fresh = private_kib(pid);
    println!("X fresh {fresh}");
    let mut corpus = Vec::new();
    for directory in std::env::var("X_DIRS").unwrap().split(':') {
        files(Path::new(directory), &mut corpus);
    }
    let options = ScanOptions {
        members: true,
        ..ScanOptions::default()
    };
    let mut peak = fresh;
    let mut scans = 0;
    for path in &corpus {
        let Ok(content) = std::fs::read(path) else {
            continue;
        };
        if content.is_empty() || content.len() as u64 > 60 << 20 {
            continue;
        }
        let content = SealedContent::from_bytes(&content).unwrap();
        if let Err(e) = worker.scan(&content, options.clone(), LONG, &mut drop) {
            println!("X died {} {e}", path.display());
            worker = engine.spawn_worker().unwrap();
            continue;
        }
        scans += 1;
        let now = private_kib(worker.pid());
        if now > peak + 256 {
            println!(
                "X {now:6} KiB after {scans} ({} {})",
                path.display(),
                content.size()
            );
            peak = now;
            let maps = std::fs::read_to_string(format!("/proc/{}/smaps", worker.pid())).unwrap();
            let mut name = String::new();
            let mut out = Vec::new();
            for line in maps.lines() {
                if line.contains('-') && !line.starts_with(char::is_uppercase) {
                    name = line.to_owned();
                }
                if let Some(v) = line.strip_prefix("Private_Dirty:") {
                    let v: u64 = v.trim().trim_end_matches(" kB").parse().unwrap();
                    if v > 100 {
                        out.push((v, name.clone()));
                    }
                }
            }
            out.sort();
            out.reverse();
            for (v, n) in out.iter().take(5) {
                println!("X      {v} {n}");
            }
        }
    }
    println!("X end {} KiB after {scans}", private_kib(worker.pid()));
}
