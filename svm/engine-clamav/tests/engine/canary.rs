//! libclamav finds nothing when it cannot write its temporary files, and does not
//! say so. These tests take away the room in earnest.

use crate::site::{MARKER_NAME, Site, found, marker, run_in, scan_bytes};
use palisade_worker::client::{EngineProcess, NotScanned, Outcome, SpawnError};

#[test]
fn a_worker_that_cannot_write_its_scratch_does_not_serve() {
    let (_, line) = marker();
    let site = Site::new(&[("marker.ndb", &line)]);
    // Room for the directory itself; then, for one directory of libclamav's more.
    for entries in [1, 2] {
        let command = site
            .command()
            .arg(format!("--worker-scratch-files={entries}"));
        let (engine, _) = EngineProcess::start(&command).unwrap();
        match engine.spawn_worker() {
            Err(SpawnError::CanaryMissed { detail }) => println!("as it should: {detail}"),
            other => panic!("{other:?}"),
        }
    }
    // The same with room for a few files: it serves, so it was the room.
    let command = site.command().arg("--worker-scratch-files=100");
    let (engine, _) = EngineProcess::start(&command).unwrap();
    assert!(engine.spawn_worker().is_ok());
}

#[test]
fn a_scratch_that_is_full_later_is_an_error_and_never_clean() {
    let (marker, line) = marker();
    let site = Site::new(&[("marker.ndb", &line)]);
    // Room for the canary and small members.
    let command = site.command().arg("--worker-scratch=65536");
    let (engine, _) = EngineProcess::start(&command).unwrap();
    let mut worker = engine.spawn_worker().unwrap();
    site.put("inner.txt", format!("{marker} ").repeat(100).as_bytes());
    site.put("clean.txt", "clean ".repeat(100).as_bytes());
    site.put("large.txt", "clean ".repeat(100_000).as_bytes());
    let zipped = |name: &str| {
        let archive = format!("{name}.zip");
        run_in(&site.files(), "zip", &["-q", &archive, name])
            .then(|| std::fs::read(site.files().join(archive)).unwrap())
    };
    let (Some(dirty), Some(clean), Some(large)) = (
        zipped("inner.txt"),
        zipped("clean.txt"),
        zipped("large.txt"),
    ) else {
        return;
    };
    let inside = found(MARKER_NAME).inside("inner.txt".into());
    assert_eq!(scan_bytes(&mut worker, &dirty), inside);
    assert_eq!(scan_bytes(&mut worker, &clean), Outcome::Clean);

    let outcome = scan_bytes(&mut worker, &large);
    assert!(
        matches!(
            &outcome,
            Outcome::NotScanned {
                reason: NotScanned::EngineError { .. }
            }
        ),
        "{outcome:?}"
    );
    // What was in the way is gone: the worker finds its canary, and goes on.
    assert_eq!(scan_bytes(&mut worker, &dirty), inside);
    assert_eq!(scan_bytes(&mut worker, &clean), Outcome::Clean);
}
