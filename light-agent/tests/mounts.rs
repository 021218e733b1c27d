//! What is mounted where, as a process, as root: which of it is protected, which is said to
//! be a gap, and that nobody waits for either.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a panic in a test is a failed test with a place in it"
)]

mod support;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use serde_json::Value;
use support::container::Container;
use support::mount::Tmpfs;
use support::world::{World, denied, open_aside};
use support::{MARKER, is_root, wait_until};

/// A mount of a test's, gone with it.
struct Mount(PathBuf);

impl Mount {
    fn new(kind: &str, from: &Path, at: &Path, options: Option<&str>) -> Self {
        fs::create_dir_all(at).unwrap();
        let (flags, kind) = match kind {
            "bind" => (MsFlags::MS_BIND, None),
            kind => (MsFlags::empty(), Some(kind)),
        };
        mount(Some(from), at, kind, flags, options).unwrap();
        Self(at.to_owned())
    }

    fn tmpfs(at: &Path) -> Self {
        Self::new("tmpfs", Path::new("palisade-test"), at, None)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

fn file_systems(world: &World) -> u64 {
    let status = world.agent.status();
    status["protection"]["file_systems"].as_u64().unwrap()
}

/// The gaps, each as `path: reason`.
fn gaps(world: &World) -> Vec<String> {
    let status = world.agent.status();
    let text = |gap: &Value, key: &str| gap[key].as_str().unwrap().to_owned();
    let gaps = status["protection"]["gaps"].as_array().unwrap().iter();
    gaps.map(|gap| format!("{}: {}", text(gap, "path"), text(gap, "reason")))
        .collect()
}

/// Whether it is denied, and soon.
fn denied_soon(path: &Path) -> bool {
    let opened = open_aside(path).recv_timeout(Duration::from_secs(5));
    denied(opened.expect("nothing holds it for long").0)
}

/// As on a guest whose root is an overlay, with its layers mounted below it.
#[test]
fn an_overlay_that_is_marked_is_marked_alone() {
    if !is_root("an_overlay_that_is_marked_is_marked_alone") {
        return;
    }
    let mut world = World::new("");
    let protected = world.tmpfs.path().join("protected");
    let layers = Tmpfs::new();
    for folder in ["lower", "upper", "work"] {
        fs::create_dir(layers.path().join(folder)).unwrap();
    }
    let at = layers.path().display();
    let options = format!("lowerdir={at}/lower,upperdir={at}/upper,workdir={at}/work");
    let _overlay = Mount::new("overlay", Path::new("o"), &protected, Some(&options));
    let _layers = Mount::new("bind", layers.path(), &protected.join("layers"), None);
    world.agent.run();
    world.agent.wait_protection("blocking");
    wait_until("what is below it is a gap", || {
        let gaps = gaps(&world);
        gaps.len() == 1 && gaps[0].contains("1 mounts below protected paths")
    });
    assert_eq!(file_systems(&world), 1);
    let bad = world.file("bad", MARKER);
    let good = world.file("good", b"good");
    for _ in 0..3 {
        assert!(denied_soon(&bad));
        assert!(!denied_soon(&good));
    }
    // The control: without an overlay that is marked itself what is mounted later is, too.
    let world = World::started("");
    let _later = Mount::tmpfs(&world.tmpfs.path().join("protected/later"));
    wait_until("it is marked", || file_systems(&world) == 2);
    assert_eq!(gaps(&world), Vec::<String>::new());
}

/// As `fusermount` gives it to anyone: a name that is bytes.
#[test]
fn a_mount_point_that_is_no_text_is_one() {
    if !is_root("a_mount_point_that_is_no_text_is_one") {
        return;
    }
    let world = World::started("");
    let name = OsStr::from_bytes(b"protected/\xff\xfe");
    let at = world.tmpfs.path().join(name);
    let _mount = Mount::tmpfs(&at);
    wait_until("it is marked", || file_systems(&world) == 2);
    let bad = at.join("bad");
    fs::write(&bad, MARKER).unwrap();
    assert!(denied_soon(&bad));
    assert_eq!(gaps(&world), Vec::<String>::new());
    // A full scan begins there, too.
    let cover = palisade_light_agent::scan::places::full(&[]).unwrap();
    assert!(cover.roots.contains(&at), "{:?}", cover.roots);
}

/// Whoever mounts something chooses its name.
#[test]
fn no_mount_point_speaks_for_the_agent() {
    if !is_root("no_mount_point_speaks_for_the_agent") {
        return;
    }
    let world = World::started("");
    let at = world
        .tmpfs
        .path()
        .join("protected/a\nprotection  off: \x1b[2Jforged");
    // The second hides the first.
    let _hidden = Mount::tmpfs(&at);
    let _above = Mount::tmpfs(&at);
    wait_until("a mount that is hidden is a gap", || {
        let gaps = gaps(&world);
        gaps.iter()
            .any(|gap| gap.contains("\\x0aprotection  off: \\x1b[2Jforged"))
    });
    for said in [
        world.agent.output(&["status"]).stdout,
        world.agent.output(&["doctor"]).stdout,
        world.agent.log().into_bytes(),
    ] {
        let said = String::from_utf8(said).unwrap();
        assert!(said.contains("forged"), "{said}");
        assert!(!said.contains('\x1b'), "{said}");
        assert!(
            !said.lines().any(|line| line.starts_with("protection  off")),
            "{said}"
        );
    }
}

const ELSEWHERE: &str = "on_access: other_namespaces = true";

#[test]
fn a_private_dev_is_no_trap() {
    if !is_root("a_private_dev_is_no_trap") {
        return;
    }
    let mut world = World::new(ELSEWHERE);
    let mut container = Container::start(world.agent.run_apart());
    world.agent.wait_protection("blocking");
    container.run(
        "mkdir -p /mnt; mount -t tmpfs own /mnt; mkdir /mnt/dev; mount -t tmpfs dev /mnt/dev
         mknod /mnt/dev/null c 1 3; mknod /mnt/dev/tty c 5 0",
    );
    container.run(&format!("printf %s '{}' > /mnt/bad", text(MARKER)));
    container.run(&format!("printf %s '{}' > /mnt/dev/bad", text(MARKER)));
    let seen = palisade_light_agent::fanotify::devices::are_seen();
    wait_until("the other one is marked", || {
        file_systems(&world) == if seen { 2 } else { 3 }
    });
    assert!(!container.reads("/mnt/bad"));
    assert!(container.reads("/mnt/dev/null"));
    let nodes = gaps(&world)
        .iter()
        .any(|gap| gap.contains("1 file systems of device nodes"));
    assert_eq!((nodes, container.reads("/mnt/dev/bad")), (seen, seen));
    // Whoever has a terminal opens it.
    let opens =
        "script -qec 'exec 3</mnt/dev/tty' /dev/null >/dev/null 2>&1 && echo opened || echo denied";
    assert_eq!(container.say(opens), "opened");
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

/// What begins in a container need not open anything that is marked.
#[test]
fn a_container_is_noticed_by_its_processes() {
    if !is_root("a_container_is_noticed_by_its_processes") {
        return;
    }
    let mut world = World::new(ELSEWHERE);
    let inner = world.agent.run_apart();
    world.agent.wait_protection("blocking");
    // Nothing is opened below the protected path from now on.
    let seen = || world.agent.status()["events"]["seen"].clone();
    std::thread::sleep(Duration::from_secs(6));
    let before = seen();
    let mut container = Container::start(inner);
    container.run("mkdir -p /mnt; mount -t tmpfs own /mnt");
    wait_until("it is marked", || file_systems(&world) == 2);
    assert_eq!(seen(), before);
}

#[test]
fn a_file_system_that_is_hidden_at_one_place_is_marked_by_another() {
    if !is_root("a_file_system_that_is_hidden_at_one_place_is_marked_by_another") {
        return;
    }
    let mut world = World::new(ELSEWHERE);
    let mut container = Container::start(world.agent.run_apart());
    world.agent.wait_protection("blocking");
    container.run(
        "mkdir -p /mnt; mount -t tmpfs own /mnt; mkdir /mnt/a /mnt/b
         mount -t tmpfs t /mnt/a; mount --bind /mnt/a /mnt/b; mount -t tmpfs u /mnt/a",
    );
    container.run(&format!(
        "printf %s '{}' > /mnt/b/bad; echo good > /mnt/b/good",
        text(MARKER)
    ));
    wait_until("all are marked", || file_systems(&world) == 4);
    assert!(!container.reads("/mnt/b/bad") && container.reads("/mnt/b/good"));
    assert_eq!(gaps(&world), Vec::<String>::new());
    // What can be reached at no place is a gap.
    container.run("mount -t tmpfs v /mnt/b");
    wait_until("it is said", || {
        gaps(&world)
            .iter()
            .any(|gap| gap.contains("another mount hides it"))
    });
}

/// The layers of an overlay are known by the names that they had when it was mounted.
#[test]
fn an_overlay_whose_layers_are_elsewhere_by_now_is_a_gap() {
    if !is_root("an_overlay_whose_layers_are_elsewhere_by_now_is_a_gap") {
        return;
    }
    let mut world = World::new(ELSEWHERE);
    let mut container = Container::start(world.agent.run_apart());
    world.agent.wait_protection("blocking");
    container.run(
        "mkdir -p /mnt /media; mount -t tmpfs own /mnt; mkdir /mnt/l /mnt/u /mnt/w
         mount -t overlay o -o lowerdir=/mnt/l,upperdir=/mnt/u,workdir=/mnt/w /media",
    );
    let counted = |world: &World| {
        let gaps = gaps(world);
        gaps.iter()
            .any(|gap| gap.contains("1 mounts of type overlay"))
    };
    wait_until("its layers are marked", || file_systems(&world) == 2);
    // Before Linux 6.x it is one anyway.
    if !counted(&world) {
        container.run("umount -l /mnt");
        wait_until("it is a gap", || counted(&world));
    }
}

/// More than are open at a time.
#[test]
fn many_file_systems_of_one_container_are_marked() {
    if !is_root("many_file_systems_of_one_container_are_marked") {
        return;
    }
    let mut world = World::new(ELSEWHERE);
    let mut container = Container::start(world.agent.run_apart());
    world.agent.wait_protection("blocking");
    container.run(
        "mkdir -p /mnt; mount -t tmpfs own /mnt
         for i in $(seq 149); do mkdir /mnt/$i; mount -t tmpfs t /mnt/$i; done",
    );
    wait_until("all are marked", || file_systems(&world) == 151);
    assert_eq!(gaps(&world), Vec::<String>::new());
}
