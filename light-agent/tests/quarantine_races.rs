//! Somebody changes what is at the path between each two steps of a move: nobody else's
//! file is moved, and what was moved by mistake is put back.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a panic in a test is a failed test with a place in it"
)]

mod support;

use std::cell::{Cell, RefCell};
use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::PathBuf;

use palisade_light_agent::quarantine::key::Key;
use palisade_light_agent::quarantine::policy::{Kept, Movement};
use palisade_light_agent::quarantine::restore::restore;
use palisade_light_agent::quarantine::take::{Step, Subject, Witness, take};
use support::home::{At, Home, found, take_file};

/// What is in the hold by this step.
fn held(home: &Home) -> Vec<PathBuf> {
    fs::read_dir(home.state().join("quarantine/hold"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect()
}

/// Looks into the hold at [`Step::Moved`], after something was done at [`Step::Looked`].
struct Race<'a, F: Fn()> {
    home: &'a Home,
    swap: F,
    moved: RefCell<Vec<PathBuf>>,
    held_inode: Cell<u64>,
    after: Option<PathBuf>,
}

impl<F: Fn()> Witness for Race<'_, F> {
    fn reached(&self, step: Step) {
        match step {
            Step::Looked => (self.swap)(),
            Step::Moved => {
                *self.moved.borrow_mut() = held(self.home);
                let inode = fs::symlink_metadata(&self.moved.borrow()[0]).unwrap().ino();
                self.held_inode.set(inode);
                if let Some(path) = &self.after {
                    fs::write(path, "newcomer").unwrap();
                }
            }
            Step::Matched => panic!("another file was taken for the one that was found"),
            _ => {}
        }
    }
}

fn race<'a, F: Fn()>(home: &'a Home, swap: F) -> Race<'a, F> {
    Race {
        home,
        swap,
        moved: RefCell::default(),
        held_inode: Cell::new(0),
        after: None,
    }
}

#[test]
fn a_file_that_is_swapped_in_after_the_last_look_is_put_back() {
    let home = Home::new();
    let file = home.file("bad");
    let bystander = home.root().join("files/bystander");
    fs::write(&bystander, "of somebody else").unwrap();
    let inode = fs::metadata(&bystander).unwrap().ino();
    let race = race(&home, || {
        fs::rename(&file, home.root().join("files/away")).unwrap();
        fs::rename(&bystander, &file).unwrap();
    });
    let done = take_file(
        &home.vault(),
        Movement::Quarantine,
        &file,
        found(&home.content),
        &race,
    );
    assert_eq!(done, Err(Kept::Swapped));
    // The control: it was in the hold, and only the comparison brought it back.
    assert_eq!(race.held_inode.get(), inode);
    assert_eq!(fs::metadata(&file).unwrap().ino(), inode);
    assert_eq!(fs::read(&file).unwrap(), b"of somebody else");
    assert_eq!(home.names(), ["away", "bad"]);
    assert_eq!(home.unfinished(), 0);
    assert!(home.vault().lock().unwrap().ids().unwrap().is_empty());
}

#[test]
fn a_deletion_deletes_nothing_that_was_swapped_in() {
    let home = Home::new();
    let file = home.file("bad");
    let bystander = home.root().join("files/bystander");
    fs::write(&bystander, "of somebody else").unwrap();
    let race = race(&home, || fs::rename(&bystander, &file).unwrap());
    let done = take_file(
        &home.vault(),
        Movement::Delete,
        &file,
        found(&home.content),
        &race,
    );
    assert_eq!(done, Err(Kept::Swapped));
    assert_eq!(fs::read(&file).unwrap(), b"of somebody else");
}

#[test]
fn a_link_that_is_swapped_in_is_not_followed() {
    let home = Home::new();
    let file = home.file("bad");
    let victim = home.root().join("victim");
    fs::write(&victim, "needed").unwrap();
    let race = race(&home, || {
        fs::remove_file(&file).unwrap();
        symlink(&victim, &file).unwrap();
    });
    let done = take_file(
        &home.vault(),
        Movement::Quarantine,
        &file,
        found(&home.content),
        &race,
    );
    assert_eq!(done, Err(Kept::Swapped));
    assert_eq!(fs::read_link(&file).unwrap(), victim, "the link is back");
    assert_eq!(fs::read(&victim).unwrap(), b"needed");
    // A link that is there before the move, too, and one on the way to the file.
    let original = File::open(&victim).unwrap();
    let subject = |path| Subject {
        file: original.as_fd(),
        path,
        found: found(b"needed"),
    };
    let vault = home.vault();
    let taken = take(&vault, Movement::Quarantine, &subject(&file), &());
    assert_eq!(taken, Err(Kept::Swapped));
    symlink(".", home.root().join("way")).unwrap();
    let by_way = home.root().join("way/victim");
    let taken = take(&vault, Movement::Quarantine, &subject(&by_way), &());
    assert!(matches!(taken, Err(Kept::Failed(_))), "{taken:?}");
    assert_eq!(fs::read(&victim).unwrap(), b"needed");
    // The control: without a link in the way it is taken.
    take(&vault, Movement::Quarantine, &subject(&victim), &()).unwrap();
    assert!(!victim.exists());
}

#[test]
fn what_is_put_back_replaces_nothing() {
    let home = Home::new();
    let file = home.file("bad");
    let bystander = home.root().join("files/bystander");
    fs::write(&bystander, "of somebody else").unwrap();
    let mut race = race(&home, || fs::rename(&bystander, &file).unwrap());
    race.after = Some(file.clone());
    let done = take_file(
        &home.vault(),
        Movement::Quarantine,
        &file,
        found(&home.content),
        &race,
    );
    assert_eq!(done, Err(Kept::Swapped));
    assert_eq!(fs::read(&file).unwrap(), b"newcomer");
    let names = home.names();
    let beside = names
        .iter()
        .find(|name| name.starts_with("palisade-") && name.ends_with("-bad"))
        .unwrap();
    let beside = home.root().join("files").join(beside);
    assert_eq!(fs::read(beside).unwrap(), b"of somebody else");
}

#[test]
fn what_gets_a_writer_or_another_content_is_put_back() {
    let home = Home::new();
    let file = home.file("bad");
    let other = home.root().join("other name");
    fs::hard_link(&file, &other).unwrap();
    let writer = RefCell::new(None);
    let open = At {
        step: Step::Moved,
        act: || {
            let opened = fs::OpenOptions::new().append(true).open(&other).unwrap();
            *writer.borrow_mut() = Some(opened);
        },
    };
    let vault = home.vault();
    let take_it = |found, witness: &dyn Witness| {
        take_file(&vault, Movement::Quarantine, &file, found, witness)
    };
    assert_eq!(take_it(found(&home.content), &open), Err(Kept::Writer));
    assert_eq!(fs::read(&file).unwrap(), home.content);
    writer.borrow_mut().take();
    assert_eq!(take_it(found(b"what was scanned"), &()), Err(Kept::Changed));
    assert_eq!(fs::read(&file).unwrap(), home.content);
    assert_eq!(home.unfinished(), 0);
    take_it(found(&home.content), &()).unwrap();
    assert!(!file.exists());
}

#[test]
fn without_its_key_nothing_is_lost_and_nothing_gets_a_second_one() {
    let home = Home::new();
    let first = home.file("first");
    let vault = home.vault();
    let id = take_file(
        &vault,
        Movement::Quarantine,
        &first,
        found(&home.content),
        &(),
    )
    .unwrap();
    let key = home.state().join("quarantine.key");
    let kept = home.root().join("kept");
    fs::rename(&key, &kept).unwrap();
    let second = home.file("second");
    let taken = take_file(
        &vault,
        Movement::Quarantine,
        &second,
        found(&home.content),
        &(),
    );
    assert_eq!(taken, Err(Kept::NoKey));
    assert!(second.exists());
    assert!(vault.lock().unwrap().record(id).is_err());
    // Another guest's key is not taken for it, and the right one is.
    assert!(vault.adopt(&Key::new().unwrap()).is_err());
    assert!(!key.exists());
    let right = Key(fs::read(&kept).unwrap().try_into().unwrap());
    assert!(vault.adopt(&right).unwrap());
    assert!(!vault.adopt(&Key::new().unwrap()).unwrap(), "it has one");
    restore(&vault.lock().unwrap(), id, None).unwrap();
    assert_eq!(fs::read(&first).unwrap(), home.content);
}
