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

/// A file system in an image, below the protected folder.
struct Image(PathBuf);

impl Image {
    /// Says why not, where it cannot be mounted.
    fn mount(image: &Path, kind: &str, at: PathBuf) -> Option<Self> {
        fs::create_dir(&at).unwrap();
        let mut command = Command::new("mount");
        command.args(["-t", kind, "-o", "loop"]).args([image, &at]);
        ran(&mut command).then_some(Self(at))
    }
}

impl Drop for Image {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

/// Whether a program could do it; says what it said.
fn ran(command: &mut Command) -> bool {
    match command.output() {
        Ok(output) if output.status.success() => true,
        Ok(output) => {
            println!("{command:?}: {}", String::from_utf8_lossy(&output.stderr));
            false
        }
        Err(error) => {
            println!("{command:?}: {error}");
            false
        }
    }
}

/// What cannot be tried is said, and is an error where tests must not be left out.
fn untested(what: &str) {
    println!("untested: {what}");
    assert!(std::env::var_os("CI").is_none(), "it must be there");
}

/// Lets a file be changed again when a test ends, however it does.
struct Immutable<'a>(&'a Path);

impl<'a> Immutable<'a> {
    fn set(file: &'a Path) -> Option<Self> {
        ran(Command::new("chattr").arg("+i").arg(file)).then_some(Self(file))
    }
}

impl Drop for Immutable<'_> {
    fn drop(&mut self) {
        ran(Command::new("chattr").arg("-i").arg(self.0));
    }
}

const STRICT: &str = "on_access: ignore_marks = 'strict'";

#[test]
fn strict_marks_an_immutable_file_until_it_is_written() {
    if !is_root("strict_marks_an_immutable_file_until_it_is_written") {
        return;
    }
    for kind in ["tmpfs", "ext4"] {
        let mut world = World::new(STRICT);
        let at = world.tmpfs.path().join("protected/ext4");
        let image = world.tmpfs.path().join("image");
        let mut mounted = None;
        if kind == "ext4" {
            File::create(&image).unwrap().set_len(16 << 20).unwrap();
            assert!(ran(Command::new("mkfs.ext4").arg("-q").arg(&image)));
            mounted = Image::mount(&image, kind, at);
            if mounted.is_none() {
                untested("an immutable file on ext4");
                continue;
            }
        }
        let folder = mounted.as_ref().map_or("", |_| "ext4/");
        // Somebody else's, so that nothing else lets it be marked.
        let [file, other] = ["file", "other"].map(|name| {
            let file = world.file(&format!("{folder}{name}"), name.as_bytes());
            chown(&file, Some(1000), None).unwrap();
            file
        });
        let Some(immutable) = Immutable::set(&file) else {
            untested(&format!("an immutable file on {kind}"));
            continue;
        };
        world.agent.run();
        world.agent.wait_protection("blocking");
        settle();
        for file in [&file, &other] {
            File::open(file).unwrap();
        }
        wait_until("it is marked", || placed(&world) == 1);
        wait_until("the other is remembered", || {
            world.agent.status()["cached_files"] == 2
        });
        assert_eq!(seen_of_opens(&world, &file), 0, "{kind}");
        // The control: the same without the flag.
        assert_eq!(seen_of_opens(&world, &other), OPENS, "{kind}");

        drop(immutable);
        assert_eq!(seen_of_opens(&world, &file), 0, "{kind}: nobody wrote");
        let mut writer = fs::OpenOptions::new().append(true).open(&file).unwrap();
        writer.write_all(MARKER).unwrap();
        drop(writer);
        assert!(denied(File::open(&file)), "{kind}");
    }
}

#[test]
fn strict_marks_files_of_a_file_system_that_cannot_be_written() {
    if !is_root("strict_marks_files_of_a_file_system_that_cannot_be_written") {
        return;
    }
    for (kind, program) in [("squashfs", "mksquashfs"), ("erofs", "mkfs.erofs")] {
        let mut world = World::new(STRICT);
        let of = world.tmpfs.path().join("of");
        fs::create_dir(&of).unwrap();
        for (name, content) in [("clean", &b"hello"[..]), ("bad", MARKER)] {
            fs::write(of.join(name), content).unwrap();
            chown(of.join(name), Some(1000), None).unwrap();
        }
        let image = world.tmpfs.path().join("image");
        let mut make = Command::new(program);
        match kind {
            "squashfs" => make.args([&of, &image]).arg("-quiet"),
            _ => make.args([&image, &of]),
        };
        let at = world.tmpfs.path().join("protected").join(kind);
        let made = ran(&mut make);
        let Some(mounted) = made.then(|| Image::mount(&image, kind, at)).flatten() else {
            untested(&format!("files on {kind}"));
            continue;
        };
        world.agent.run();
        world.agent.wait_protection("blocking");
        settle();
        let file = mounted.0.join("clean");
        File::open(&file).unwrap();
        wait_until("it is marked", || placed(&world) == 1);
        assert_eq!(seen_of_opens(&world, &file), 0, "{kind}");
        assert!(denied(File::open(mounted.0.join("bad"))), "{kind}");
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
