//! A file's move into the quarantine, step by step: the process is killed at each, and
//! somebody changes what is at the path between each two. Nothing is lost, and nobody
//! else's file is moved.

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
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::{Signal, raise};
use palisade_light_agent::lease;
use palisade_light_agent::quarantine::folders::HOLD;
use palisade_light_agent::quarantine::key::Key;
use palisade_light_agent::quarantine::policy::{Kept, Movement};
use palisade_light_agent::quarantine::record::Found;
use palisade_light_agent::quarantine::restore::restore;
use palisade_light_agent::quarantine::take::{Step, Subject, Witness, take};
use palisade_light_agent::quarantine::vault::{Limits, Vault};
use palisade_protocol::content::ContentId;
use palisade_protocol::scan::ScanClass;
use support::is_root;
use support::mount::Tmpfs;

/// More than one chunk, and not a whole number of them.
const BYTES: usize = 600_001;

struct Home {
    dir: tempfile::TempDir,
    content: Vec<u8>,
}

impl Home {
    fn new() -> Self {
        lease::block_signal().unwrap();
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("files")).unwrap();
        let seed = uuid::Uuid::new_v4();
        let content = seed
            .as_bytes()
            .iter()
            .copied()
            .cycle()
            .take(BYTES)
            .collect();
        Self { dir, content }
    }

    fn root(&self) -> PathBuf {
        self.dir.path().canonicalize().unwrap()
    }

    fn state(&self) -> PathBuf {
        self.root().join("state")
    }

    fn vault(&self) -> Vault {
        vault(&self.state())
    }

    fn file(&self, name: &str) -> PathBuf {
        let path = self.root().join("files").join(name);
        fs::write(&path, &self.content).unwrap();
        path
    }

    /// Names in the folder of files.
    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.root().join("files"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// Names in the hold and among the notes.
    fn unfinished(&self) -> usize {
        let count = |name: &str| {
            fs::read_dir(self.state().join("quarantine").join(name))
                .unwrap()
                .count()
        };
        count("hold") + count("moves")
    }
}

fn vault(state: &Path) -> Vault {
    let limits = Limits {
        bytes: 1 << 30,
        files: 10,
    };
    Vault::new(state, limits)
}

fn found(content: &[u8]) -> Found {
    Found {
        time_ms: 1,
        name: "Test".into(),
        engine: "test".into(),
        member: None,
        content: ContentId::of(content),
        sha256: None,
        class: ScanClass::OnAccess,
        pid: 1,
    }
}

fn take_file(
    vault: &Vault,
    movement: Movement,
    path: &Path,
    found: Found,
    witness: &dyn Witness,
) -> Result<uuid::Uuid, Kept> {
    let file = File::open(path).unwrap();
    let subject = Subject {
        file: file.as_fd(),
        path,
        found,
    };
    take(vault, movement, &subject, witness)
}

/// Does something at one step.
struct At<F: Fn()> {
    step: Step,
    act: F,
}

impl<F: Fn()> Witness for At<F> {
    fn reached(&self, step: Step) {
        if step == self.step {
            (self.act)();
        }
    }
}

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
