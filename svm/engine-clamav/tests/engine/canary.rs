//! libclamav finds nothing when it cannot write its temporary files, and does not
//! say so. These tests take the scratch directory away in earnest.

use crate::site::{LONG, MARKER_NAME, PROGRAM, Site, found, marker, run_in, scan_bytes};
use palisade_worker::client::{
    EngineCommand, EngineProcess, NotScanned, Outcome, ScanOptions, SealedContent, SpawnError,
};
use std::process::Command;

/// Runs the engine with its scratch on a file system that has room for so many
/// entries, its root among them, in name spaces of its own: the worker's directory
/// can be made, but no temporary file in it.
fn on_a_full_scratch(site: &Site, inodes: u32) -> Option<EngineCommand> {
    let script =
        format!("mount -t tmpfs -o nr_inodes={inodes},mode=700 none \"$0\" && exec \"$@\"");
    let unshare = ["--user", "--map-root-user", "--mount", "sh", "-c"];
    let tried = Command::new("unshare")
        .args(unshare)
        .arg(&script)
        .arg(site.scratch())
        .arg("true")
        .status();
    if !tried.is_ok_and(|status| status.success()) {
        println!("skipped: this machine does not let us mount a file system in a name space");
        return None;
    }
    let mut command = EngineCommand::new("unshare");
    for arg in unshare {
        command = command.arg(arg);
    }
    Some(
        command
            .arg(script)
            .arg(site.scratch())
            .arg(PROGRAM)
            .arg("--definitions")
            .arg(site.definitions())
            .arg("--scratch")
            .arg(site.scratch()),
    )
}

#[test]
fn a_worker_that_cannot_write_its_scratch_does_not_serve() {
    let (_, line) = marker();
    let site = Site::new(&[("marker.ndb", &line)]);
    // The root and the worker's directory; then, one directory of libclamav's more.
    for inodes in [2, 3] {
        let Some(command) = on_a_full_scratch(&site, inodes) else {
            return;
        };
        let (engine, _) = EngineProcess::start(&command).unwrap();
        match engine.spawn_worker() {
            Err(SpawnError::CanaryMissed { detail }) => println!("as it should: {detail}"),
            other => panic!("{other:?}"),
        }
    }
    // The same with room for a few files: it serves, so it was the room.
    let Some(command) = on_a_full_scratch(&site, 100) else {
        return;
    };
    let (engine, _) = EngineProcess::start(&command).unwrap();
    assert!(engine.spawn_worker().is_ok());
}

#[test]
fn a_scratch_that_goes_away_later_is_an_error_and_never_clean() {
    let (marker, line) = marker();
    let site = Site::new(&[("marker.ndb", &line)]);
    let engine = site.start();
    let mut worker = engine.spawn_worker().unwrap();
    site.put("inner.txt", format!("{marker} ").repeat(100).as_bytes());
    site.put("clean.txt", "clean ".repeat(100).as_bytes());
    let zipped = |name: &str| {
        let archive = format!("{name}.zip");
        run_in(&site.files(), "zip", &["-q", &archive, name])
            .then(|| std::fs::read(site.files().join(archive)).unwrap())
    };
    let (Some(dirty), Some(clean)) = (zipped("inner.txt"), zipped("clean.txt")) else {
        return;
    };
    let inside = found(MARKER_NAME).inside("inner.txt".into());
    assert_eq!(scan_bytes(&mut worker, &dirty), inside);
    assert_eq!(scan_bytes(&mut worker, &clean), Outcome::Clean);

    // A file in place of the worker's directory.
    for entry in std::fs::read_dir(site.scratch()).unwrap() {
        let path = entry.unwrap().path();
        std::fs::remove_dir_all(&path).unwrap();
        std::fs::write(&path, "").unwrap();
    }
    let outcome = scan_bytes(&mut worker, &clean);
    assert!(
        matches!(
            &outcome,
            Outcome::NotScanned {
                reason: NotScanned::EngineError { .. }
            }
        ),
        "{outcome:?}"
    );
    // And the worker has ended itself: it would go on missing things.
    let content = SealedContent::from_bytes(&dirty).unwrap();
    let options = ScanOptions::default();
    assert!(worker.scan(&content, options, LONG, &mut drop).is_err());
}
