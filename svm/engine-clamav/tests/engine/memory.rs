//! What a worker costs beyond the definitions that it shares: memory, and time
//! until it serves.

use crate::site::{LONG, Site, marker, run_in};
use palisade_worker::client::{EngineProcess, ScanOptions, SealedContent, WorkerHandle};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Signatures, so that there is something to share; about 50 MB in memory.
const HASHES: u32 = 100_000;
const BODIES: u32 = 20_000;
/// Files of this machine that are scanned, and most bytes of each.
const FILES: usize = 200;
const LARGEST: u64 = 4 << 20;
/// The promise: private memory of a worker after many scans (bytes).
const PRIVATE: u64 = 5 << 20;
/// The promise: from the end of a worker until its successor serves.
const BACK_WITHIN: Duration = Duration::from_millis(50);

/// A number that depends on its predecessor (xorshift), for signatures that match
/// nothing.
fn next(state: &mut u64) -> u64 {
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    *state
}

/// An engine with many signatures.
fn heavy() -> (Site, EngineProcess) {
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
    (site, engine)
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

fn checksum(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (0xedb8_8320 & (crc & 1).wrapping_neg())
        })
    })
}

/// A grey picture of this many pixels square, stored, which libclamav decodes to
/// eight times its size.
fn picture(side: u32) -> Vec<u8> {
    let mut file = b"\x89PNG\r\n\x1a\n".to_vec();
    let mut chunk = |kind: &[u8], data: &[u8]| {
        let body = [kind, data].concat();
        file.extend((data.len() as u32).to_be_bytes());
        file.extend(&body);
        file.extend(checksum(&body).to_be_bytes());
    };
    // One bit a pixel, no colour.
    let header = [
        &side.to_be_bytes()[..],
        &side.to_be_bytes(),
        &[1, 0, 0, 0, 0],
    ]
    .concat();
    chunk(b"IHDR", &header);
    let pixels = vec![0_u8; (side as usize / 8 + 1) * side as usize];
    let mut packed = vec![0x78, 0x01];
    let mut blocks = pixels.chunks(0xffff).peekable();
    while let Some(block) = blocks.next() {
        packed.push(u8::from(blocks.peek().is_none()));
        packed.extend((block.len() as u16).to_le_bytes());
        packed.extend((!(block.len() as u16)).to_le_bytes());
        packed.extend(block);
    }
    // Adler-32 of so many zeros.
    packed.extend(((pixels.len() as u32 % 65_521) << 16 | 1).to_be_bytes());
    chunk(b"IDAT", &packed);
    chunk(b"IEND", &[]);
    file
}

fn scan(worker: &mut WorkerHandle, bytes: &[u8]) {
    let content = SealedContent::from_bytes(bytes).unwrap();
    let options = ScanOptions {
        members: true,
        ..ScanOptions::default()
    };
    worker.scan(&content, options, LONG, &mut drop).unwrap();
}

#[test]
fn a_worker_costs_little_beyond_the_shared_definitions() {
    let (site, engine) = heavy();
    let mut workers = [
        engine.spawn_worker().unwrap(),
        engine.spawn_worker().unwrap(),
    ];
    let Ok(fresh) = workers[0].private_bytes() else {
        println!(
            "skipped: a_worker_costs_little_beyond_the_shared_definitions: \
             only root may look into a worker"
        );
        return;
    };
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
    // Large blocks between small ones: what a heap would keep.
    for side in [1000, 3000, 4000] {
        corpus.push(site.put(&format!("{side}.png"), &picture(side)));
    }
    let (mut scans, mut bytes) = (0, 0);
    for path in &corpus {
        let Ok(content) = std::fs::read(path) else {
            continue;
        };
        let large = content.len() as u64 > LARGEST && !path.starts_with(site.files());
        if content.is_empty() || large {
            continue;
        }
        // Both do the same, so that what they share is seen to be shared.
        for worker in &mut workers {
            scan(worker, &content);
        }
        scans += 1;
        bytes += content.len();
    }
    let private = workers
        .each_ref()
        .map(|worker| worker.private_bytes().unwrap());
    println!(
        "private memory of a worker: {} KiB fresh, {:?} KiB after {scans} scans of {} MiB",
        fresh >> 10,
        private.map(|bytes| bytes >> 10),
        bytes >> 20
    );
    assert!(private.iter().all(|bytes| *bytes <= PRIVATE), "{private:?}");
}

#[test]
fn a_successor_serves_at_once() {
    let (_site, engine) = heavy();
    let mut worker = engine.spawn_worker().unwrap();
    let mut took = Vec::new();
    for _ in 0..20 {
        scan(&mut worker, b"content");
        let pid = nix::unistd::Pid::from_raw(worker.pid());
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
        let killed = Instant::now();
        worker = engine.spawn_worker().unwrap();
        took.push(killed.elapsed());
    }
    took.sort();
    println!(
        "from a worker's end until its successor serves, without a spare: {:?} at best, {:?} in \
         the middle, {:?} at worst",
        took[0], took[10], took[19]
    );
    assert!(took[10] <= BACK_WITHIN, "{took:?}");
}

/// What a worker could not load any more is loaded before.
#[test]
fn character_sets_are_there_before_the_sandbox() {
    let site = Site::new(&[("marker.ndb", &marker().1)]);
    let engine = site.start();
    let worker = engine.spawn_worker().unwrap();
    let Ok(maps) = std::fs::read_to_string(format!("/proc/{}/maps", worker.pid())) else {
        println!(
            "skipped: character_sets_are_there_before_the_sandbox: \
             only root may look into a worker"
        );
        return;
    };
    for converter in ["/KOI8-R.so", "/CP1252.so", "/IBM037.so", "/EUC-JP.so"] {
        assert!(maps.contains(converter), "{converter} is not loaded");
    }
}
