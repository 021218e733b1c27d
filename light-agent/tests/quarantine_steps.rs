//! A file's move into the quarantine is killed at each of its steps: nothing is lost.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a panic in a test is a failed test with a place in it"
)]

mod support;

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::{Signal, raise};
use palisade_light_agent::lease;
use palisade_light_agent::quarantine::folders::HOLD;
use palisade_light_agent::quarantine::policy::Movement;
use palisade_light_agent::quarantine::restore::restore;
use palisade_light_agent::quarantine::take::Step;
use support::home::{At, Home, found, take_file, vault};
use support::mount::Tmpfs;
use support::world::World;
use support::{is_root, wait_until};

const STEP: &str = "PALISADE_TEST_STEP";
const MOVEMENT: &str = "PALISADE_TEST_MOVEMENT";
const STATE: &str = "PALISADE_TEST_STATE";
const FILE: &str = "PALISADE_TEST_FILE";

/// The process that is killed; without its environment it is no test.
#[test]
fn child_that_is_killed() {
    let Ok(step) = std::env::var(STEP) else {
        return;
    };
    lease::block_signal().unwrap();
    let step = Step::ALL[step.parse::<usize>().unwrap()];
    let movement = match std::env::var(MOVEMENT).unwrap().as_str() {
        "delete" => Movement::Delete,
        _ => Movement::Quarantine,
    };
    let path = PathBuf::from(std::env::var(FILE).unwrap());
    let content = fs::read(&path).unwrap();
    let kill = At {
        step,
        act: || raise(Signal::SIGKILL).unwrap(),
    };
    let state = PathBuf::from(std::env::var(STATE).unwrap());
    take_file(&vault(&state), movement, &path, found(&content), &kill).unwrap();
}

fn kill_at(step: Step, movement: Movement, state: &Path, file: &Path) {
    let number = Step::ALL.iter().position(|other| *other == step).unwrap();
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_that_is_killed", "--nocapture"])
        .env(STEP, number.to_string())
        .env(STATE, state)
        .env(FILE, file)
        .env(
            MOVEMENT,
            match movement {
                Movement::Delete => "delete",
                Movement::Quarantine => "quarantine",
            },
        )
        .status()
        .unwrap();
    assert_eq!(status.signal(), Some(Signal::SIGKILL as i32), "{step:?}");
}

#[test]
fn a_kill_at_any_step_loses_nothing() {
    for step in Step::ALL {
        let home = Home::new();
        let file = home.file("bad");
        let inode = fs::metadata(&file).unwrap().ino();
        kill_at(step, Movement::Quarantine, &home.state(), &file);
        // What the dead process left is not settled yet: the kill was where it should be.
        let moved = !matches!(step, Step::Looked | Step::Noted);
        assert_eq!(file.exists(), !moved, "{step:?}");

        let locked = home.vault().lock().unwrap();
        assert_eq!(home.unfinished(), 0, "{step:?}");
        if matches!(step, Step::Recorded | Step::Removed) {
            assert!(!file.exists(), "{step:?}");
            let [id] = locked.ids().unwrap()[..] else {
                panic!("{step:?}: it is in quarantine");
            };
            restore(&locked, id, None).unwrap();
            assert_eq!(fs::read(&file).unwrap(), home.content, "{step:?}");
        } else {
            assert!(locked.ids().unwrap().is_empty(), "{step:?}");
            assert_eq!(fs::metadata(&file).unwrap().ino(), inode, "{step:?}");
            assert_eq!(fs::read(&file).unwrap(), home.content, "{step:?}");
        }
        let items = home.state().join("quarantine/items");
        assert_eq!(fs::read_dir(items).unwrap().count(), 0, "{step:?}");
    }
}

#[test]
fn a_deletion_that_was_cut_short_is_finished_or_never_began() {
    for step in [Step::Looked, Step::Noted, Step::Moved, Step::Matched] {
        let home = Home::new();
        let file = home.file("bad");
        kill_at(step, Movement::Delete, &home.state(), &file);
        drop(home.vault().lock().unwrap());
        let began = matches!(step, Step::Moved | Step::Matched);
        assert_eq!(file.exists(), !began, "{step:?}");
        assert_eq!(home.unfinished(), 0, "{step:?}");
    }
}

/// The hold of another mount is found by the note.
#[test]
fn a_kill_loses_nothing_on_another_file_system() {
    if !is_root("a_kill_loses_nothing_on_another_file_system") {
        return;
    }
    for step in [Step::Noted, Step::Moved, Step::Sealed, Step::Recorded] {
        let home = Home::new();
        let tmpfs = Tmpfs::new();
        let root = tmpfs.path().canonicalize().unwrap();
        fs::create_dir(root.join("files")).unwrap();
        let file = root.join("files/bad");
        fs::write(&file, &home.content).unwrap();
        kill_at(step, Movement::Quarantine, &home.state(), &file);
        let held = fs::read_dir(root.join(HOLD)).unwrap().count();
        assert_eq!(held, usize::from(step != Step::Noted), "{step:?}");
        let locked = home.vault().lock().unwrap();
        assert!(!root.join(HOLD).exists(), "{step:?}: the empty hold goes");
        if step == Step::Recorded {
            assert_eq!(locked.ids().unwrap().len(), 1);
            assert!(!file.exists());
        } else {
            assert_eq!(fs::read(&file).unwrap(), home.content, "{step:?}");
        }
    }
}

/// The daemon settles what another process left, before anybody asks for anything.
#[test]
fn an_agent_that_starts_puts_back_what_was_cut_short() {
    if !is_root("an_agent_that_starts_puts_back_what_was_cut_short") {
        return;
    }
    let mut world = World::new("");
    let home = Home::new();
    let file = world.file("bad", &home.content);
    let state = world.agent.dir.path().join("var/agent");
    kill_at(Step::Sealed, Movement::Quarantine, &state, &file);
    assert!(!file.exists());
    world.agent.run();
    wait_until("it is back", || file.exists());
    assert!(world.agent.log().contains("the file is back at its place"));
}
