//! What libclamav would call clean because it stopped, forgot, or was told not to
//! look: each of its ways to fail open, with its own defaults where those are what
//! makes it stop.

use crate::site::{MARKER_NAME, Site, found, marker, run_in, scan_bytes, scan_file, scan_with};
use palisade_worker::client::{NotScanned, Outcome, ScanOptions};
use std::path::Path;

fn limit(which: &str) -> Outcome {
    Outcome::NotScanned {
        reason: NotScanned::Limit {
            which: which.into(),
        },
    }
}

/// 25 zips, one in the other.
fn deep(site: &Site) -> bool {
    let files = site.files();
    site.put("deep.txt", "deep ".repeat(100).as_bytes());
    if !run_in(&files, "zip", &["-q", "n1.zip", "deep.txt"]) {
        return false;
    }
    (2..=25).all(|level| {
        let (outer, inner) = (format!("n{level}.zip"), format!("n{}.zip", level - 1));
        run_in(&files, "zip", &["-q", &outer, &inner])
    })
}

#[test]
fn twenty_five_zips_in_each_other() {
    let (_, line) = marker();
    let site = Site::new(&[("marker.ndb", &line)]);
    if !deep(&site) {
        return;
    }
    let engine = site.start();
    let mut worker = engine.spawn_worker().unwrap();
    let bytes = std::fs::read(site.files().join("n25.zip")).unwrap();
    assert_eq!(scan_bytes(&mut worker, &bytes), limit("MaxRecursion"));
    // Whoever asks for no heuristics is told all the same.
    let options = ScanOptions {
        heuristics: false,
        ..ScanOptions::default()
    };
    let outcome = scan_with(&mut worker, &bytes, options).0.outcome;
    assert_eq!(outcome, limit("MaxRecursion"));
    // So is whoever looks at it with heuristics switched off altogether.
    let (engine, _) = site.start_with(&["heuristic-alerts=no"]).unwrap();
    let mut worker = engine.spawn_worker().unwrap();
    assert_eq!(scan_bytes(&mut worker, &bytes), limit("MaxRecursion"));
    // Only who does not look into archives has nothing that could be missed.
    let options = ScanOptions {
        archives: false,
        ..ScanOptions::default()
    };
    let outcome = scan_with(&mut worker, &bytes, options).0.outcome;
    assert_eq!(outcome, Outcome::Clean);
}

#[test]
fn fifteen_thousand_members() {
    let (marker, line) = marker();
    let site = Site::new(&[("marker.ndb", &line)]);
    let files = site.files();
    let many = files.join("many");
    std::fs::create_dir(&many).unwrap();
    for n in 0..15_000 {
        std::fs::write(many.join(format!("{n:05}")), format!("member {n}")).unwrap();
    }
    // Long enough to be packed: it does not stand in the archive's own bytes.
    std::fs::write(many.join("99999"), format!("{marker} ").repeat(20)).unwrap();
    if !run_in(&many, "sh", &["-c", "ls | zip -q -@ ../many.zip"]) {
        return;
    }
    let zip = std::fs::read(files.join("many.zip")).unwrap();
    let engine = site.start();
    let mut worker = engine.spawn_worker().unwrap();
    assert_eq!(scan_bytes(&mut worker, &zip), limit("MaxFiles"));
    let (roomy, _) = site.start_with(&["max-files=20000"]).unwrap();
    let mut worker = roomy.spawn_worker().unwrap();
    let last = found(MARKER_NAME).inside("99999".into());
    assert_eq!(scan_bytes(&mut worker, &zip), last);
}

#[test]
fn three_hundred_megabytes_in_a_small_file() {
    let (marker, line) = marker();
    let site = Site::new(&[("marker.ndb", &line)]);
    let files = site.files();
    // Made by a pipe: no 300 MB on disk.
    let script = format!("(head -c 300000000 /dev/zero; printf %s '{marker}') | gzip -1 >big.gz");
    if !run_in(&files, "sh", &["-c", &script]) {
        return;
    }
    // With libclamav's own limits.
    let (engine, _) = site
        .start_with(&["max-filesize=104857600", "max-scansize=419430400"])
        .unwrap();
    let mut worker = engine.spawn_worker().unwrap();
    assert_eq!(
        scan_file(&mut worker, &files.join("big.gz")),
        limit("MaxFileSize")
    );
    // With ours it is looked at, down to its end.
    let engine = site.start();
    let mut worker = engine.spawn_worker().unwrap();
    assert_eq!(
        scan_file(&mut worker, &files.join("big.gz")),
        found(MARKER_NAME)
    );
}

/// Two contents with one MD5 (X. Wang et al., 2004). libclamav's cache of clean files
/// would not look at the second.
#[test]
fn a_collision_of_md5_is_no_way_past() {
    const CLEAN: &str = "d131dd02c5e6eec4693d9a0698aff95c2fcab58712467eab4004583eb8fb7f89\
                         55ad340609f4b30283e488832571415a085125e8f7cdc99fd91dbdf280373c5b\
                         d8823e3156348f5bae6dacd436c919c6dd53e2b487da03fd02396306d248cda0\
                         e99f33420f577ee8ce54b67080a80d1ec69821bcb6a8839396f9652b6ff72a70";
    let clean: Vec<u8> = (0..CLEAN.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&CLEAN[at..at + 2], 16).unwrap())
        .collect();
    let mut bad = clean.clone();
    for at in [19, 45, 59, 83, 109, 123] {
        bad[at] ^= 0x80;
    }
    // A signature of what differs.
    let hex: String = bad[16..64]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    let site = Site::new(&[("pair.ndb", &format!("Marker.Test:0:*:{hex}\n"))]);
    let (one, two) = (site.put("1", &clean), site.put("2", &bad));
    if let Some((a, b)) = md5(&one).zip(md5(&two)) {
        assert_eq!(a, b, "the pair does not collide");
    }
    let engine = site.start();
    let mut worker = engine.spawn_worker().unwrap();
    assert_eq!(scan_bytes(&mut worker, &clean), Outcome::Clean);
    assert_eq!(scan_bytes(&mut worker, &bad), found(MARKER_NAME));
    assert_eq!(scan_bytes(&mut worker, &clean), Outcome::Clean);
}

fn md5(file: &Path) -> Option<String> {
    let output = std::process::Command::new("md5sum")
        .arg(file)
        .output()
        .ok()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    said.split(' ').next().map(str::to_owned)
}

#[test]
fn every_limit_is_named() {
    let (_, line) = marker();
    let site = Site::new(&[("marker.ndb", &line)]);
    let files = site.files();
    let large: String = (0..40_000).map(|n| format!("{n} ")).collect();
    site.put("large.txt", large.as_bytes());
    site.put("other.txt", large.replace('1', "one").as_bytes());
    if !run_in(&files, "zip", &["-q", "a.zip", "large.txt", "other.txt"]) || !deep(&site) {
        return;
    }
    for (setting, file, which) in [
        ("max-filesize=100000", "a.zip", "MaxFileSize"),
        ("max-scansize=100000", "a.zip", "MaxScanSize"),
        ("max-files=3", "n5.zip", "MaxFiles"),
        ("max-recursion=4", "n5.zip", "MaxRecursion"),
    ] {
        let (engine, _) = site.start_with(&[setting]).unwrap();
        let mut worker = engine.spawn_worker().unwrap();
        let path = files.join(file);
        assert_eq!(scan_file(&mut worker, &path), limit(which), "{setting}");
        let engine = site.start();
        let mut worker = engine.spawn_worker().unwrap();
        assert_eq!(scan_file(&mut worker, &path), Outcome::Clean, "{file}");
    }
}

/// Whoever sets very little may be told of it for everything, but is served.
#[test]
fn the_canary_is_found_whatever_is_set() {
    let (marker, line) = marker();
    let site = Site::new(&[("marker.ndb", &line)]);
    for setting in ["scan-archive=no", "max-scantime=1", "heuristic-alerts=no"] {
        let (engine, _) = site.start_with(&[setting]).unwrap();
        let mut worker = engine.spawn_worker().unwrap();
        let outcome = scan_bytes(&mut worker, marker.as_bytes());
        let timed_out = Outcome::NotScanned {
            reason: NotScanned::TimedOut,
        };
        assert!(
            outcome == found(MARKER_NAME) || (setting == "max-scantime=1" && outcome == timed_out),
            "{setting}: {outcome:?}"
        );
    }
}

/// Time is a limit that may not be reached another time: it is told apart.
#[test]
fn a_scan_that_takes_too_long_says_so() {
    let (_, line) = marker();
    let site = Site::new(&[("marker.ndb", &line)]);
    let files = site.files();
    let script = "head -c 60000000 /dev/zero | gzip -1 >big.gz";
    if !run_in(&files, "sh", &["-c", script]) {
        return;
    }
    let engine = site.start();
    let mut worker = engine.spawn_worker().unwrap();
    let bytes = std::fs::read(files.join("big.gz")).unwrap();
    let options = ScanOptions {
        timeout_ms: 1,
        ..ScanOptions::default()
    };
    let outcome = scan_with(&mut worker, &bytes, options).0.outcome;
    let timed_out = Outcome::NotScanned {
        reason: NotScanned::TimedOut,
    };
    assert_eq!(outcome, timed_out);
    assert_eq!(scan_bytes(&mut worker, &bytes), Outcome::Clean);
}
