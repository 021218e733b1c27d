//! `on_access.ignore_marks` as a process, as root: which clean files the kernel asks no
//! more about, and what makes it ask again. What the agent sees is counted by the opens
//! that it answered, and compared with the opens that were done.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a panic in a test is a failed test with a place in it"
)]

mod support;

use std::fs::{self, File, Permissions};
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use support::world::{World, denied};
use support::{MARKER, is_root, wait_until};

/// Opens that are counted.
const OPENS: u64 = 50;

fn seen(world: &World) -> u64 {
    world.agent.settled_events()["seen"].as_u64().unwrap()
}

fn placed(world: &World) -> u64 {
    let status = world.agent.status();
    status["ignore_marks"]["placed"].as_u64().unwrap()
}

/// How many of [`OPENS`] opens the agent saw.
fn seen_of_opens(world: &World, file: &Path) -> u64 {
    let before = seen(world);
    for _ in 0..OPENS {
        File::open(file).unwrap();
    }
    seen(world) - before
}

/// Files that were not changed of late: a younger change could hide another one.
fn settle() {
    std::thread::sleep(palisade_light_agent::stamp::RACY + Duration::from_millis(100));
}

/// A file of root's that nobody else may write, opened and marked.
fn marked(world: &World, name: &str, content: &[u8]) -> PathBuf {
    let file = world.file(name, content);
    settle();
    let before = placed(world);
    File::open(&file).unwrap();
    wait_until("the file is marked", || placed(world) > before);
    assert_eq!(seen_of_opens(world, &file), 0);
    file
}

#[test]
fn only_files_that_root_alone_may_write_are_marked() {
    if !is_root("only_files_that_root_alone_may_write_are_marked") {
        return;
    }
    let world = World::started("");
    let root = world.file("root", b"root's");
    let others = [
        ("owner", Some(1000), 0o755),
        ("group", None, 0o775),
        ("all", None, 0o757),
    ]
    .map(|(name, owner, mode)| {
        let file = world.file(name, name.as_bytes());
        chown(&file, owner, None).unwrap();
        fs::set_permissions(&file, Permissions::from_mode(mode)).unwrap();
        file
    });
    settle();
    for file in &others {
        File::open(file).unwrap();
    }
    wait_until("all are remembered", || {
        world.agent.status()["cached_files"] == 3
    });
    for file in &others {
        assert_eq!(seen_of_opens(&world, file), OPENS, "{}", file.display());
    }
    assert_eq!(placed(&world), 0);
    File::open(&root).unwrap();
    wait_until("it is marked", || placed(&world) == 1);
    assert_eq!(seen_of_opens(&world, &root), 0);
    // A program, too, and it runs.
    let program = marked(&world, "program", &fs::read("/bin/true").unwrap());
    assert!(Command::new(program).status().unwrap().success());
}

#[test]
fn strict_and_off_mark_no_file_that_may_change() {
    if !is_root("strict_and_off_mark_no_file_that_may_change") {
        return;
    }
    for level in ["strict", "off"] {
        let world = World::started(&format!("on_access: ignore_marks = '{level}'"));
        let file = world.file("root", b"root's");
        settle();
        File::open(&file).unwrap();
        wait_until("it is remembered", || {
            world.agent.status()["cached_files"] == 1
        });
        assert_eq!(seen_of_opens(&world, &file), OPENS, "{level}");
        assert_eq!(placed(&world), 0, "{level}");
    }
}

#[test]
fn a_write_is_noticed_although_its_open_is_not() {
    if !is_root("a_write_is_noticed_although_its_open_is_not") {
        return;
    }
    let world = World::started("");
    let file = marked(&world, "f", b"clean until somebody writes");
    let before = seen(&world);
    let mut writer = fs::OpenOptions::new().append(true).open(&file).unwrap();
    assert_eq!(seen(&world), before, "the mark hides this open, too");
    writer.write_all(MARKER).unwrap();
    drop(writer);
    assert!(denied(File::open(&file)));
    // The same by truncation and by a rename onto its name.
    let file = marked(&world, "g", b"another");
    fs::write(&file, MARKER).unwrap();
    assert!(denied(File::open(&file)));
    let file = marked(&world, "h", b"a third");
    fs::rename(world.tmpfs.file("new", MARKER), &file).unwrap();
    assert!(denied(File::open(&file)));
}

#[test]
fn newer_definitions_lift_all_marks() {
    if !is_root("newer_definitions_lift_all_marks") {
        return;
    }
    let mut world = World::new("");
    world.svm.definitions(1, false);
    world.agent.run();
    world.agent.wait_protection("blocking");
    let file = marked(&world, "f", MARKER);
    let other = world.file("other", b"something else");
    settle();
    world.svm.definitions(2, true);
    // The control: until the agent hears of it, the mark stands.
    File::open(&file).unwrap();
    File::open(&other).unwrap();
    wait_until("the marks are lifted", || {
        world.agent.status()["ignore_marks"]["lifted"]
            .as_u64()
            .unwrap()
            >= 1
    });
    assert!(denied(File::open(&file)));
}

#[test]
fn what_is_opened_through_foreign_mounts_is_not_marked() {
    if !is_root("what_is_opened_through_foreign_mounts_is_not_marked") {
        return;
    }
    let world = World::started("");
    let file = world.file("f", b"content");
    settle();
    let status = Command::new("unshare")
        .args([
            "--mount",
            "sh",
            "-c",
            "cat \"$0\" > /dev/null; sleep 1; cat \"$0\"",
        ])
        .arg(&file)
        .status()
        .unwrap();
    assert!(status.success());
    wait_until("it is remembered", || {
        world.agent.status()["cached_files"] == 1
    });
    assert_eq!(placed(&world), 0);
    // The control: the same file through the agent's own mount.
    File::open(&file).unwrap();
    wait_until("it is marked", || placed(&world) == 1);
}

#[test]
fn an_end_of_the_agent_leaves_no_mark() {
    if !is_root("an_end_of_the_agent_leaves_no_mark") {
        return;
    }
    let mut world = World::started("");
    let file = marked(&world, "f", b"content");
    world.agent.signal(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(world.agent.wait(), Some(0));
    fs::write(&file, MARKER).unwrap();
    world.agent.run();
    world.agent.wait_protection("blocking");
    assert!(denied(File::open(&file)));
}
