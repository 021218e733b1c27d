//! What is done about malware besides denying its opens, as a process, as root, on a
//! private tmpfs: moved into the quarantine, out of it again, deleted, or left.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a panic in a test is a failed test with a place in it"
)]

mod support;

use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime};

use palisade_light_agent::quarantine::folders::HOLD;
use serde_json::json;
use support::quarantine::{Bad, QUARANTINE, json_of, list, quarantined, reported, wait_reported};
use support::world::{World, denied};
use support::{MARKER_NAME, is_root, wait_until};

#[test]
fn malware_is_moved_sealed_listed_and_restored_as_it_was() {
    if !is_root("malware_is_moved_sealed_listed_and_restored_as_it_was") {
        return;
    }
    let world = World::started(QUARANTINE);
    let bad = Bad::new();
    let path = world.file("bad", &bad.content);
    chown(&path, Some(1234), Some(2345)).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o4751)).unwrap();
    let with_xattr = rustix::fs::setxattr(
        &path,
        "user.colour",
        b"red",
        rustix::fs::XattrFlags::empty(),
    )
    .is_ok();
    let modified = SystemTime::UNIX_EPOCH + Duration::new(1_000_000_000, 123_456_789);
    {
        // Opened by path, the marker would be found.
        let time = nix::sys::time::TimeSpec::from_duration(
            modified.duration_since(SystemTime::UNIX_EPOCH).unwrap(),
        );
        nix::sys::stat::utimensat(
            nix::fcntl::AT_FDCWD,
            &path,
            &time,
            &time,
            nix::sys::stat::UtimensatFlags::NoFollowSymlink,
        )
        .unwrap();
    }
    // The control: where it is readable, it is found.
    assert!(!bad.is_readable_below(world.agent.dir.path()));
    fs::write(world.agent.dir.path().join("control"), &bad.content).unwrap();
    assert!(bad.is_readable_below(world.agent.dir.path()));
    fs::remove_file(world.agent.dir.path().join("control")).unwrap();

    let id = quarantined(&world, &path);
    assert!(!bad.is_readable_below(world.agent.dir.path()), "unsealed");
    assert!(!bad.is_readable_below(world.tmpfs.path()), "left behind");
    assert!(!world.tmpfs.path().join(HOLD).exists());
    let state = world.agent.dir.path().join("var/agent");
    for (file, mode) in [("quarantine.key", 0o600), ("quarantine", 0o700)] {
        let there = fs::metadata(state.join(file)).unwrap();
        assert_eq!(there.mode() & 0o777, mode, "{file}");
    }

    let shown = json_of(&world, &["quarantine", "show", &id]);
    assert_eq!(shown["name"], MARKER_NAME);
    assert_eq!(shown["size"], bad.content.len());
    assert_eq!((&shown["uid"], &shown["gid"]), (&json!(1234), &json!(2345)));
    assert_eq!(shown["mode"], "4751");
    assert_eq!(shown["blake3"], blake3::hash(&bad.content).to_string());
    assert_eq!(shown["pid"], std::process::id());
    let people = world.agent.output(&["quarantine", "list"]);
    let people = String::from_utf8(people.stdout).unwrap();
    assert!(
        people.contains(&id) && people.contains(MARKER_NAME),
        "{people}"
    );

    // Outside of what is protected, where it may be looked at.
    let to = world.tmpfs.path().join("restored");
    let done = json_of(
        &world,
        &[
            "quarantine",
            "restore",
            &id[..8],
            "--to",
            to.to_str().unwrap(),
        ],
    );
    assert_eq!(done["done"], "restored");
    assert_eq!(fs::read(&to).unwrap(), bad.content);
    let there = fs::metadata(&to).unwrap();
    assert_eq!((there.uid(), there.gid()), (1234, 2345));
    assert_eq!(there.mode() & 0o7777, 0o4751);
    assert_eq!(there.modified().unwrap(), modified);
    if with_xattr {
        let mut value = [0; 16];
        let length = rustix::fs::getxattr(&to, "user.colour", &mut value[..]).unwrap();
        assert_eq!(&value[..length], b"red");
    }
    assert_eq!(list(&world)["usage"]["files"], 0);
    world.agent.settled_events();
}

#[test]
fn by_default_and_in_monitor_mode_nothing_is_moved() {
    if !is_root("by_default_and_in_monitor_mode_nothing_is_moved") {
        return;
    }
    let world = World::started("");
    let path = world.file("bad", &Bad::new().content);
    assert!(denied(File::open(&path)));
    assert_eq!(wait_reported(&world, &path)["action"], "Blocked");
    assert!(path.exists());
    assert_eq!(list(&world)["usage"]["files"], 0);
    drop(world);

    let settings = format!("on_access: mode = 'monitor'\n{QUARANTINE}");
    let world = World::started_as(&settings, "monitoring");
    let path = world.file("bad", &Bad::new().content);
    File::open(&path).unwrap();
    assert_eq!(wait_reported(&world, &path)["action"], "Reported");
    assert!(path.exists());
    assert!(world.agent.log().contains("stays where it is"));
}

#[test]
fn other_names_of_a_file_are_told() {
    if !is_root("other_names_of_a_file_are_told") {
        return;
    }
    let world = World::started(QUARANTINE);
    let path = world.file("bad", &Bad::new().content);
    let other = world.tmpfs.path().join("protected/other");
    fs::hard_link(&path, &other).unwrap();
    let id = quarantined(&world, &path);
    let shown = json_of(&world, &["quarantine", "show", &id]);
    assert_eq!(shown["other_links"], 1);
    assert!(other.exists());
    let log = world.agent.log();
    assert!(log.contains("hard links"), "{log}");
    assert!(denied(File::open(&other)), "and is blocked");
}

#[test]
fn a_file_that_is_open_for_writing_stays() {
    if !is_root("a_file_that_is_open_for_writing_stays") {
        return;
    }
    let world = World::started(QUARANTINE);
    let path = world.file("grows", b"clean so far");
    let mut writer = fs::OpenOptions::new().append(true).open(&path).unwrap();
    writer.write_all(&Bad::new().content).unwrap();
    assert!(denied(File::open(&path)));
    assert_eq!(wait_reported(&world, &path)["action"], "Blocked");
    assert!(path.exists());
    let log = world.agent.log();
    assert!(log.contains("may be open for writing"), "{log}");
    // The control: without the writer it is moved.
    drop(writer);
    assert!(denied(File::open(&path)));
    wait_until("it is moved", || !path.exists());
}

#[test]
fn a_packages_file_stays() {
    let dpkg = Path::new("/var/lib/dpkg/info");
    if !is_root("a_packages_file_stays") || !dpkg.is_dir() {
        return;
    }
    let mut world = World::new(QUARANTINE);
    let owned = world.file("owned", &Bad::new().content);
    let free = world.file("free", &Bad::new().content);
    let lists = tempfile::tempdir().unwrap();
    let list = format!("/.\n{}\n", owned.display());
    fs::write(lists.path().join("thing.list"), list).unwrap();
    let script = format!("mount --bind {} {}", lists.path().display(), dpkg.display());
    world.agent.run_with_mounts(&script);
    world.agent.wait_protection("blocking");
    for (path, action, stays) in [(&owned, "Blocked", true), (&free, "Quarantined", false)] {
        assert!(denied(File::open(path)));
        assert_eq!(wait_reported(&world, path)["action"], action);
        assert_eq!(path.exists(), stays, "{action}");
    }
    let log = world.agent.log();
    assert!(log.contains("belongs to the package thing"), "{log}");
}

/// A file stays where it is, or does not.
fn stays(world: &World, name: &str) -> bool {
    let path = world.file(name, &Bad::new().content);
    stays_at(world, &path)
}

fn stays_at(world: &World, path: &Path) -> bool {
    assert!(denied(File::open(path)));
    let action = wait_reported(world, path)["action"].clone();
    let there = path.exists();
    assert_eq!(action == "Blocked", there, "{action}");
    there
}

/// With a database and a program of the test's in the agent's mounts.
#[test]
fn a_file_of_rpms_stays() {
    let (database, program) = (Path::new("/var/lib/rpm"), Path::new("/usr/bin/rpm"));
    if !is_root("a_file_of_rpms_stays") {
        return;
    }
    if !database.is_dir() || !program.exists() {
        println!("skipped: rpm is not installed");
        assert!(std::env::var_os("CI").is_none(), "it must be there");
        return;
    }
    // Below the usual place for such folders no package has anything, whoever lists it.
    tempfile::env::override_temp_dir(Path::new("/srv")).unwrap();
    for answers in [true, false] {
        let mut world = World::new(QUARANTINE);
        let owned = world.file("owned", &Bad::new().content);
        let own = tempfile::tempdir().unwrap();
        let (db, rpm) = (own.path().join("db"), own.path().join("rpm"));
        fs::create_dir(&db).unwrap();
        fs::write(db.join("rpmdb.sqlite"), "one").unwrap();
        let sum = "0".repeat(64);
        let end = match answers {
            true => format!("echo '{sum} {}'", owned.display()),
            false => "exit 1".to_owned(),
        };
        fs::write(&rpm, format!("#!/bin/sh\n{end}\n")).unwrap();
        fs::set_permissions(&rpm, fs::Permissions::from_mode(0o755)).unwrap();
        let script = [(&db, database), (&rpm, program)]
            .map(|(from, at)| format!("mount --bind {} {}", from.display(), at.display()))
            .join("\n");
        world.agent.run_with_mounts(&script);
        world.agent.wait_protection("blocking");
        if answers {
            let list = world.agent.state().join("rpm.sums");
            wait_until("rpm has answered", || list.exists());
        }
        assert!(stays_at(&world, &owned));
        // The control: what no package lists is moved, if it can be told.
        assert_eq!(stays(&world, "free"), !answers);
        if answers {
            fs::write(db.join("rpmdb.sqlite"), "with another package").unwrap();
            assert!(stays(&world, "perhaps of the other"));
        }
        let log = world.agent.log();
        for (words, said) in [
            ("belongs to the package that rpm lists", answers),
            ("the database of rpm has changed", answers),
            ("the database of rpm was not read", !answers),
        ] {
            assert_eq!(log.contains(words), said, "{words}: {log}");
        }
    }
}

#[test]
fn deletion_leaves_nothing() {
    if !is_root("deletion_leaves_nothing") {
        return;
    }
    let world = World::started("[remediation]\nmalware = 'delete'");
    let bad = Bad::new();
    let path = world.file("bad", &bad.content);
    let clean = world.file("clean", b"hello");
    assert!(denied(File::open(&path)));
    assert_eq!(wait_reported(&world, &path)["action"], "Deleted");
    assert!(!path.exists());
    assert!(clean.exists());
    assert!(!bad.is_readable_below(world.tmpfs.path()));
    assert!(!bad.is_readable_below(world.agent.dir.path()));
    assert_eq!(list(&world)["usage"]["files"], 0);
}

#[test]
fn what_a_scan_finds_is_moved_too() {
    if !is_root("what_a_scan_finds_is_moved_too") {
        return;
    }
    let world = World::new(QUARANTINE);
    let bad = Bad::new();
    let path = world.tmpfs.file("bad", &bad.content);
    let clean = world.tmpfs.file("clean", b"hello");
    let (code, report) = world.agent.scan(&[world.tmpfs.path()]);
    assert_eq!((code, &report["malware"]), (1, &json!(1)));
    assert!(!path.exists() && clean.exists());
    assert_eq!(list(&world)["usage"]["files"], 1);
    assert_eq!(reported(&world, &path)[0]["action"], "Quarantined");
}

#[test]
fn what_is_written_is_moved_when_it_is_closed() {
    if !is_root("what_is_written_is_moved_when_it_is_closed") {
        return;
    }
    let world = World::started(&format!("on_access: after_writes = true\n{QUARANTINE}"));
    let path = world.file("bad", &Bad::new().content);
    wait_until("it is moved", || !path.exists());
    assert_eq!(wait_reported(&world, &path)["action"], "Quarantined");
}

/// Another file changes places with malware all the time while the daemon moves it: only
/// malware is ever in quarantine, and the other file is never lost.
#[test]
fn a_file_that_changes_places_with_malware_all_the_time_stays() {
    const ROUNDS: usize = 20;
    if !is_root("a_file_that_changes_places_with_malware_all_the_time_stays") {
        return;
    }
    let world = World::started(QUARANTINE);
    let folder = world.tmpfs.path().join("protected");
    let innocent = |round: usize| format!("innocent {round}").into_bytes();
    for round in 0..ROUNDS {
        let bad = world.file(&format!("bad-{round}"), &Bad::new().content);
        let other = world.file(&format!("other-{round}"), &innocent(round));
        assert!(denied(File::open(&bad)));
        let tried = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !tried.load(Ordering::Relaxed) {
                    // One of them is away while it is looked at.
                    let _ = rustix::fs::renameat_with(
                        rustix::fs::CWD,
                        &bad,
                        rustix::fs::CWD,
                        &other,
                        rustix::fs::RenameFlags::EXCHANGE,
                    );
                }
            });
            wait_until("it was tried", || !reported(&world, &bad).is_empty());
            tried.store(true, Ordering::Relaxed);
        });
    }
    let there: Vec<Vec<u8>> = fs::read_dir(&folder)
        .unwrap()
        .filter_map(|entry| fs::read(entry.unwrap().path()).ok())
        .collect();
    for round in 0..ROUNDS {
        assert!(there.contains(&innocent(round)), "{round} is gone");
    }
    let list = list(&world);
    let items = list["items"].as_array().unwrap();
    let size = Bad::new().content.len();
    assert!(items.iter().all(|item| item["size"] == size), "{list}");
    println!("{} of {ROUNDS} were moved", items.len());
}
