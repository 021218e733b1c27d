//! What lies in the quarantine, as root, on a private tmpfs: its bounds, the commands on
//! it, and what other definitions say of it.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a panic in a test is a failed test with a place in it"
)]

mod support;

use std::fs::{self, File};
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::PathBuf;

use serde_json::Value;
use support::quarantine::{Bad, QUARANTINE, failing, json_of, list, quarantined, wait_reported};
use support::world::{World, denied};
use support::{is_root, wait_until};

#[test]
fn a_full_quarantine_blocks_only() {
    if !is_root("a_full_quarantine_blocks_only") {
        return;
    }
    let limits = "[quarantine]\nmax_files = 2\nmax_bytes = 100000";
    let world = World::started(&format!("{QUARANTINE}\n{limits}"));
    let stays = |path: &PathBuf| {
        assert!(denied(File::open(path)));
        assert_eq!(wait_reported(&world, path)["action"], "Blocked");
        assert!(path.exists());
    };
    quarantined(&world, &world.file("1", &Bad::new().content));
    let large = world.file("large", &[Bad::new().content, vec![0; 100_000]].concat());
    stays(&large);
    assert!(world.agent.log().contains("are above 100000"));
    let id = quarantined(&world, &world.file("2", &Bad::new().content));
    let third = world.file("3", &Bad::new().content);
    stays(&third);
    assert!(world.agent.log().contains("2 files of at most 2"));
    // There is room again.
    json_of(&world, &["quarantine", "delete", &id]);
    quarantined(&world, &world.file("4", &Bad::new().content));
}

#[test]
fn other_definitions_scan_it_again_and_what_is_clean_goes_back_if_settings_say_so() {
    if !is_root("other_definitions_scan_it_again") {
        return;
    }
    for restore in [false, true] {
        let world = World::started(&format!(
            "{QUARANTINE}\n[quarantine]\nrestore_clean = {restore}"
        ));
        let bad = Bad::new();
        let path = world.file("bad", &bad.content);
        let id = quarantined(&world, &path);
        world.svm.definitions(2, false);
        // Any answer tells of the other definitions.
        File::open(world.file("other", id.as_bytes())).unwrap();
        if restore {
            wait_until("it is back", || path.exists());
            assert_eq!(fs::read(&path).unwrap(), bad.content);
            assert_eq!(list(&world)["usage"]["files"], 0);
        } else {
            wait_until("it was scanned again", || {
                let shown = json_of(&world, &["quarantine", "show", &id]);
                shown["rescan"]["verdict"] == "clean"
            });
            assert!(!path.exists());
            assert!(world.agent.log().contains("stays in quarantine"));
        }
    }
}

#[test]
fn the_commands_work_without_a_daemon() {
    if !is_root("the_commands_work_without_a_daemon") {
        return;
    }
    let mut world = World::started(QUARANTINE);
    let bad = Bad::new();
    let path = world.file("bad", &bad.content);
    let id = quarantined(&world, &path);
    world.agent.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(world.agent.wait(), Some(0));

    let said = json_of(&world, &["quarantine", "rescan"]);
    assert_eq!(said[0]["verdict"], "malware", "{said}");
    world.svm.definitions(2, false);
    let said = json_of(&world, &["quarantine", "rescan"]);
    assert_eq!(said[0]["verdict"], "clean", "{said}");
    assert_eq!(said[0]["restored"], false, "nobody said that it may");

    // Nothing is overwritten, and no link is followed.
    fs::write(&path, "in the way").unwrap();
    let (code, text) = failing(&world, &["quarantine", "restore", &id]);
    assert_eq!(code, 3);
    assert!(text.contains("nothing is overwritten"), "{text}");
    assert_eq!(fs::read(&path).unwrap(), b"in the way");
    let outside = world.tmpfs.path().join("outside");
    symlink(&outside, world.tmpfs.path().join("dangling")).unwrap();
    symlink("protected", world.tmpfs.path().join("way")).unwrap();
    for link in ["dangling", "way/new"] {
        let to = world.tmpfs.path().join(link);
        let to = to.to_str().unwrap();
        let (code, text) = failing(&world, &["quarantine", "restore", &id, "--to", to]);
        assert_eq!(code, 3, "{text}");
    }
    assert!(!outside.exists() && !world.tmpfs.path().join("protected/new").exists());

    let export = world.tmpfs.path().join("export");
    let export_args = ["quarantine", "export", &id, export.to_str().unwrap()];
    let (code, text) = failing(&world, &export_args);
    assert_eq!(code, 2);
    assert!(text.contains("--i-know-this-is-malware"), "{text}");
    assert!(!export.exists());
    json_of(
        &world,
        &[&export_args[..], &["--i-know-this-is-malware"]].concat(),
    );
    assert_eq!(fs::read(&export).unwrap(), bad.content);
    assert_eq!(fs::metadata(&export).unwrap().mode() & 0o777, 0o600);
    assert_eq!(list(&world)["usage"]["files"], 1, "an export takes nothing");

    fs::remove_file(&path).unwrap();
    json_of(&world, &["quarantine", "restore", &id]);
    assert_eq!(fs::read(&path).unwrap(), bad.content);
    let (code, text) = failing(&world, &["quarantine", "show", &id]);
    assert_eq!(code, 3);
    assert!(text.contains("quarantine list"), "{text}");
}

#[test]
fn what_was_private_at_its_place_is_asked_about_by_its_hash_alone() {
    if !is_root("what_was_private_at_its_place_is_asked_about_by_its_hash_alone") {
        return;
    }
    let world = World::started(&format!("private = ['{{protected}}/secret']\n{QUARANTINE}"));
    let bad = Bad::new();
    // Somebody else had the same content scanned: its hash is known.
    let sample = world.tmpfs.file("sample", &bad.content);
    assert_eq!(world.agent.scan(&[&sample]).0, 1);
    let id = list(&world)["items"][0]["id"].as_str().unwrap().to_owned();
    json_of(&world, &["quarantine", "delete", &id]);
    fs::create_dir(world.tmpfs.path().join("protected/secret")).unwrap();
    let path = world.file("secret/bad", &bad.content);
    let secret = quarantined(&world, &path);
    let other = [Bad::new().content, b"and more".to_vec()].concat();
    let open = quarantined(&world, &world.file("open", &other));

    world.svm.definitions(2, true);
    let sent = world.svm.content_bytes();
    let output = world.agent.output(&["quarantine", "rescan", "-o", "json"]);
    assert_eq!(output.status.code(), Some(4));
    let said: Value = serde_json::from_slice(&output.stdout).unwrap();
    let verdict = |id: &str| {
        let all = said.as_array().unwrap();
        let one = all.iter().find(|one| one["id"] == id).unwrap();
        one["verdict"].as_str().unwrap().to_owned()
    };
    assert_eq!(verdict(&secret), "not_scanned", "{said}");
    // The control: what was not private is sent, and nothing but that.
    assert_eq!(verdict(&open), "malware", "{said}");
    assert_eq!(world.svm.content_bytes() - sent, other.len() as u64);
}
