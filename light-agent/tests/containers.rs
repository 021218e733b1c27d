//! Detections that say in which container the opener ran: as a process, as root, with
//! openers in a cgroup of the test's that is named as a container's.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a panic in a test is a failed test with a place in it"
)]

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use support::world::World;
use support::{MARKER, is_root, wait_until};

/// Openers of each kind.
const OPENERS: usize = 10;

/// A cgroup (version 2), removed with it.
struct Cgroup(PathBuf);

impl Cgroup {
    fn new(name: &str) -> Option<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
        let mut fields = mounts.lines().map(|line| line.split(' '));
        let root = fields.find_map(|mut fields| {
            let place = fields.nth(1)?;
            (fields.next()? == "cgroup2").then_some(place)
        });
        let folder = Path::new(root?).join(name);
        match fs::create_dir(&folder) {
            Ok(()) => Some(Self(folder)),
            Err(error) => {
                println!("{}: {error}", folder.display());
                None
            }
        }
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // Busy for as long as its last process is not gone.
        for _ in 0..100 {
            if fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
        eprintln!("{} is left behind", self.0.display());
    }
}

/// A process that opens a file, is refused, and stays until it is dropped: of one that is
/// gone nobody knows where it ran.
struct Opener(Child);

impl Opener {
    fn new(file: &Path, procs: &Path) -> Self {
        let script = "echo $$ > \"$0\" && read line < \"$1\" || read line";
        let opener = Command::new("sh")
            .args(["-c", script])
            .args([procs, file])
            .stdin(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        Self(opener.unwrap())
    }
}

impl Drop for Opener {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}

#[test]
fn a_detection_names_the_container_of_the_opener() {
    let test = "a_detection_names_the_container_of_the_opener";
    if !is_root(test) {
        return;
    }
    let id = hex::encode(rand::random::<[u8; 32]>());
    let Some(cgroup) = Cgroup::new(&format!("docker-{id}.scope")) else {
        println!("skipped: {test} needs a cgroup of version 2 that it may make");
        assert!(std::env::var_os("CI").is_none(), "it must be there");
        return;
    };
    let world = World::started("");
    let file = |kind: &str, n: usize| {
        let name = format!("{kind}-{n}");
        world.file(&name, &[name.as_bytes(), MARKER].concat())
    };
    let inside: Vec<PathBuf> = (0..OPENERS).map(|n| file("in", n)).collect();
    let outside: Vec<PathBuf> = (0..OPENERS).map(|n| file("out", n)).collect();
    let open = |files: &[PathBuf], procs: &Path| -> Vec<Opener> {
        files.iter().map(|file| Opener::new(file, procs)).collect()
    };
    let openers = [
        open(&inside, &cgroup.0.join("cgroup.procs")),
        // The control: the same openers outside.
        open(&outside, Path::new("/dev/null")),
    ];
    let named = |files: &[PathBuf]| {
        let spooled = world.agent.spooled();
        let of = |file: &PathBuf| {
            let path: Vec<u8> = file.to_str().unwrap().into();
            let found = spooled.iter().find(|found| found["path"] == json!(path))?;
            assert!(found.as_object().unwrap().contains_key("container"));
            Some(found["container"].clone())
        };
        files.iter().filter_map(of).collect::<Vec<Value>>()
    };
    wait_until("all are spooled", || {
        named(&inside).len() + named(&outside).len() == 2 * OPENERS
    });
    drop(openers);
    let name = format!("docker:{id}");
    assert_eq!(named(&inside), vec![json!(name); OPENERS]);
    assert_eq!(named(&outside), vec![Value::Null; OPENERS]);
    let log = world.agent.log();
    assert_eq!(log.matches(&name).count(), OPENERS, "{log}");
}
