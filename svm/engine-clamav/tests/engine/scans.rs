//! What the real engine program finds, and what it admits not to have seen.

use crate::site::{
    LONG, MARKER_NAME, Site, found, marker, run_in, scan_bytes, scan_file, scan_with,
};
use palisade_worker::client::{MemFile, NotScanned, Outcome, ScanOptions, WorkerError, WorkerExit};
use std::time::Duration;

fn limit(which: &str) -> Outcome {
    Outcome::NotScanned {
        reason: NotScanned::Limit {
            which: which.into(),
        },
    }
}

const ENCRYPTED: Outcome = Outcome::NotScanned {
    reason: NotScanned::Encrypted,
};

#[test]
fn a_marker_is_found_plain_and_not_elsewhere() {
    let (marker, line) = marker();
    let site = Site::new(&[("marker.ndb", &line)]);
    let (engine, loaded) = site.start_with(&[]).unwrap();
    assert_eq!((loaded.engine.as_str(), loaded.signatures), ("clamav", 1));
    assert!(
        loaded.engine_version.as_str().starts_with("1."),
        "{}",
        loaded.engine_version
    );
    let mut worker = engine.spawn_worker().unwrap();
    let bytes = format!("some text {marker} and more");
    assert_eq!(
        scan_bytes(&mut worker, bytes.as_bytes()),
        found(MARKER_NAME)
    );
    assert_eq!(
        scan_bytes(&mut worker, b"some text and more"),
        Outcome::Clean
    );
    assert_eq!(scan_bytes(&mut worker, b""), Outcome::Clean);
    assert_eq!(scan_bytes(&mut worker, b"m"), Outcome::Clean);
}

#[test]
fn a_marker_is_found_in_archives_and_members_carry_it() {
    let (marker, line) = marker();
    let site = Site::new(&[("marker.ndb", &line)]);
    let engine = site.start();
    let mut worker = engine.spawn_worker().unwrap();
    // Without the signature the whole archive is unpacked and handed over.
    let blind = Site::new(&[(
        "other.ndb",
        "Other:0:*:00112233445566778899aabbccddeeff00\n",
    )]);
    let blind_engine = blind.start();
    let mut blind_worker = blind_engine.spawn_worker().unwrap();

    let text = format!("first\n{marker}\n{}", "filling ".repeat(200));
    site.put("inner.txt", text.as_bytes());
    site.put("clean.txt", "clean ".repeat(300).as_bytes());
    let archives: [(&str, &str, &[&str]); 4] = [
        ("a.zip", "zip", &["-q", "a.zip", "clean.txt", "inner.txt"]),
        ("a.tar", "tar", &["cf", "a.tar", "clean.txt", "inner.txt"]),
        (
            "a.tar.gz",
            "tar",
            &["czf", "a.tar.gz", "clean.txt", "inner.txt"],
        ),
        (
            "a.7z",
            "7z",
            &["a", "-bd", "a.7z", "clean.txt", "inner.txt"],
        ),
    ];
    for (archive, program, args) in archives {
        if !run_in(&site.files(), program, args) {
            continue;
        }
        let bytes = std::fs::read(site.files().join(archive)).unwrap();
        assert_eq!(
            scan_bytes(&mut worker, &bytes),
            found(MARKER_NAME).inside("inner.txt".into()),
            "{archive}"
        );

        let options = ScanOptions {
            members: true,
            ..ScanOptions::default()
        };
        let (done, members) = scan_with(&mut blind_worker, &bytes, options);
        assert_eq!(done.outcome, Outcome::Clean, "{archive}");
        assert!(!done.members_truncated, "{archive}");
        let carrier = members.iter().find(|(_, bytes)| bytes == text.as_bytes());
        let names: Vec<_> = members.iter().map(|(name, _)| name).collect();
        let (name, _) = carrier.unwrap_or_else(|| panic!("{archive}: not among {names:?}"));
        assert!(name.ends_with("inner.txt"), "{archive}: {names:?}");
        let (_, members) = scan_with(&mut blind_worker, &bytes, ScanOptions::default());
        assert!(
            members.is_empty(),
            "{archive}: members that nobody asked for"
        );
    }
}

#[test]
fn encrypted_is_not_clean_and_malware_beside_it_wins() {
    let (marker, line) = marker();
    let site = Site::new(&[("marker.ndb", &line)]);
    let engine = site.start();
    let mut worker = engine.spawn_worker().unwrap();
    site.put("secret.txt", "a secret ".repeat(50).as_bytes());
    site.put("open.txt", format!("{marker} ").repeat(20).as_bytes());
    let files = site.files();
    if !run_in(
        &files,
        "zip",
        &["-q", "-P", "password", "e.zip", "secret.txt"],
    ) {
        return;
    }
    assert_eq!(scan_file(&mut worker, &files.join("e.zip")), ENCRYPTED);
    // First the encrypted part, then the malware.
    run_in(&files, "zip", &["-q", "e.zip", "open.txt"]);
    assert_eq!(
        scan_file(&mut worker, &files.join("e.zip")),
        found(MARKER_NAME).inside("open.txt".into())
    );
    if run_in(
        &files,
        "7z",
        &["a", "-bd", "-ppassword", "-mhe=on", "e.7z", "secret.txt"],
    ) {
        assert_eq!(scan_file(&mut worker, &files.join("e.7z")), ENCRYPTED);
    }
}

#[test]
fn a_limit_is_not_clean_and_malware_beside_it_wins() {
    let (marker, line) = marker();
    let site = Site::new(&[("marker.ndb", &line)]);
    let files = site.files();
    let (engine, _) = site
        .start_with(&["max-files=50", "max-scansize=4000000"])
        .unwrap();
    let mut worker = engine.spawn_worker().unwrap();

    // 25 zips, one in the other.
    site.put("0.zip", b"");
    site.put("deep.txt", "deep ".repeat(100).as_bytes());
    if !run_in(&files, "zip", &["-q", "n1.zip", "deep.txt"]) {
        return;
    }
    for level in 2..=25 {
        let (outer, inner) = (format!("n{level}.zip"), format!("n{}.zip", level - 1));
        run_in(&files, "zip", &["-q", &outer, &inner]);
    }
    assert_eq!(
        scan_file(&mut worker, &files.join("n25.zip")),
        limit("MaxRecursion")
    );
    assert_eq!(
        scan_file(&mut worker, &files.join("n9.zip")),
        Outcome::Clean
    );

    // Deep first, then malware, in one archive.
    site.put("open.txt", format!("{marker} ").repeat(20).as_bytes());
    run_in(&files, "zip", &["-q", "both.zip", "n25.zip", "open.txt"]);
    assert_eq!(
        scan_file(&mut worker, &files.join("both.zip")),
        found(MARKER_NAME).inside("open.txt".into())
    );

    // Many parts.
    let names: Vec<String> = (0..100).map(|n| format!("part{n}.txt")).collect();
    for name in &names {
        site.put(name, format!("{name} ").repeat(40).as_bytes());
    }
    let mut args = vec!["-q", "many.zip"];
    args.extend(names.iter().map(String::as_str));
    run_in(&files, "zip", &args);
    assert_eq!(
        scan_file(&mut worker, &files.join("many.zip")),
        limit("MaxFiles")
    );

    // Much to unpack.
    site.put("big.bin", &vec![b'b'; 12_000_000]);
    run_in(&files, "zip", &["-q", "big.zip", "big.bin"]);
    let big = scan_file(&mut worker, &files.join("big.zip"));
    assert!(
        matches!(
            &big,
            Outcome::NotScanned {
                reason: NotScanned::Limit { .. }
            }
        ),
        "{big:?}"
    );
}

#[test]
fn too_large_is_said_before_it_is_scanned() {
    let (_, line) = marker();
    let site = Site::new(&[("marker.ndb", &line)]);
    let (engine, _) = site.start_with(&["max-filesize=1000"]).unwrap();
    let mut worker = engine.spawn_worker().unwrap();
    let too_large = Outcome::NotScanned {
        reason: NotScanned::TooLarge {
            max: i32::MAX as u64 - 1,
        },
    };
    assert_eq!(scan_bytes(&mut worker, &[b'x'; 1001]), limit("MaxFileSize"));
    assert_eq!(scan_bytes(&mut worker, &[b'x'; 1000]), Outcome::Clean);

    // 2 GiB - 1, where libclamav would call it clean; no page of it is ever made.
    let (engine, _) = site
        .start_with(&["max-filesize=0", "max-scansize=0"])
        .unwrap();
    let mut worker = engine.spawn_worker().unwrap();
    let sparse = MemFile::create(i32::MAX as u64).unwrap().seal().unwrap();
    let done = worker
        .scan(&sparse, ScanOptions::default(), LONG, &mut drop)
        .unwrap();
    assert_eq!(done.outcome, too_large);
}

#[test]
fn what_can_still_change_is_refused() {
    let (marker, line) = marker();
    let site = Site::new(&[("marker.ndb", &line)]);
    let engine = site.start();
    let mut worker = engine.spawn_worker().unwrap();
    let path = site.put("f", marker.as_bytes());
    let file = std::fs::File::open(path).unwrap();
    let done = worker
        .scan_unverified(file.into(), marker.len() as u64, LONG)
        .unwrap();
    assert_eq!(
        done.outcome,
        Outcome::engine_error("the content is not sealed")
    );
}

#[test]
fn a_worker_that_dies_or_hangs_is_replaced() {
    let (marker, line) = marker();
    let site = Site::new(&[("marker.ndb", &line)]);
    let engine = site.start();
    let mut worker = engine.spawn_worker().unwrap();
    let stop = |pid: i32, signal: &str| {
        assert!(run_in(&site.files(), "kill", &[signal, &pid.to_string()]));
    };
    stop(worker.pid(), "-KILL");
    let content = MemFile::create(1).unwrap().seal().unwrap();
    let error = worker
        .scan(&content, ScanOptions::default(), LONG, &mut drop)
        .unwrap_err();
    assert!(
        matches!(
            error,
            WorkerError::Died {
                exit: Some(WorkerExit::Signal(9))
            }
        ),
        "{error:?}"
    );

    // Stopped, it would answer never.
    let mut worker = engine.spawn_worker().unwrap();
    stop(worker.pid(), "-STOP");
    let deadline = Duration::from_millis(200);
    let error = worker
        .scan(&content, ScanOptions::default(), deadline, &mut drop)
        .unwrap_err();
    assert!(matches!(error, WorkerError::TimedOut), "{error:?}");

    let mut worker = engine.spawn_worker().unwrap();
    assert_eq!(
        scan_bytes(&mut worker, marker.as_bytes()),
        found(MARKER_NAME)
    );
}

#[test]
fn a_second_look_is_a_look() {
    let (marker, line) = marker();
    let site = Site::new(&[("marker.ndb", &line)]);
    let engine = site.start();
    let mut worker = engine.spawn_worker().unwrap();
    site.put("inner.txt", "filling ".repeat(200).as_bytes());
    if !run_in(&site.files(), "zip", &["-q", "a.zip", "inner.txt"]) {
        return;
    }
    let bytes = std::fs::read(site.files().join("a.zip")).unwrap();
    let options = ScanOptions {
        members: true,
        ..ScanOptions::default()
    };
    let (_, first) = scan_with(&mut worker, &bytes, options.clone());
    let (_, second) = scan_with(&mut worker, &bytes, options);
    assert_eq!(first, second);
    assert!(!first.is_empty());
    assert_eq!(
        scan_bytes(&mut worker, marker.as_bytes()),
        found(MARKER_NAME)
    );
}
