//! Disks that are full or frozen: the agent answers openers first, and writes when it can.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use palisade_tests::{command, skip};

use super::guest::{Guest, Mount, SOON, denied, number, open_soon, wait_until};

/// Fills what is left of a file system.
fn fill(folder: &Path) -> std::path::PathBuf {
    let path = folder.join("filler");
    let mut file = File::create(&path).unwrap();
    for block in [4096, 1] {
        while file.write_all(&vec![0; block]).is_ok() {}
    }
    path
}

/// An agent whose state and log are on this file system.
fn start_there(guest: &Guest, folder: &Path) {
    guest.stop_agent();
    let state = folder.join("state");
    if !state.exists() {
        let mut copy = Command::new("cp");
        copy.arg("-a").arg(guest.test.site.dir().join("var/agent"));
        assert!(copy.arg(&state).status().unwrap().success());
        guest.set(&format!("state_dir = '{}'", state.display()));
    }
    let mut command = Command::new(command::program("palisade-agent").unwrap());
    command.arg("--site").arg(guest.test.site.dir());
    guest.start_agent(command.arg("supervise"), &folder.join("log"));
    guest.wait_state("blocking");
}

fn detections(guest: &Guest, name: &str) -> usize {
    let list = guest.test.site.console(&["detection", "list"]).unwrap();
    let rows = list.as_array().unwrap().iter();
    rows.filter(|row| {
        row["path"]
            .as_str()
            .is_some_and(|path| path.ends_with(name))
    })
    .count()
}

#[test]
fn a_full_disk_costs_reports_and_no_protection() {
    if !skip::is_root("a_full_disk_costs_reports_and_no_protection") {
        return;
    }
    let guest = Guest::start("");
    let disk = Mount::tmpfs(&guest.test.folder().join("disk"), "size=4m");
    start_there(&guest, &disk.0);
    // The control: as long as there is room it is reported.
    assert!(denied(open_soon(&guest.bad("before"))));
    wait_until("it is reported", || detections(&guest, "/before") == 1);
    assert_eq!(guest.status()["spool"]["dropped"], 0);

    let filler = fill(&disk.0);
    let many = 200;
    for n in 0..many {
        assert!(denied(open_soon(&guest.bad(&format!("bad-{n}")))));
        open_soon(&guest.clean(&format!("clean-{n}"))).unwrap();
    }
    wait_until("what is lost is counted", || {
        number(&guest.status()["spool"], "dropped") >= many
    });
    let status = guest
        .test
        .site
        .run("palisade-agent", &["status"], SOON)
        .unwrap();
    let said = String::from_utf8(status.stdout).unwrap();
    assert!(said.contains("detections were lost"), "{said}");
    assert_eq!(guest.status()["protection"]["state"], "blocking");
    assert!(number(&guest.status(), "log_lines_lost") > 0);

    // Also over a restart.
    start_there(&guest, &disk.0);
    assert!(denied(open_soon(&guest.bad("restarted"))));

    fs::remove_file(filler).unwrap();
    assert!(denied(open_soon(&guest.bad("after"))));
    wait_until("it is reported again", || detections(&guest, "/after") == 1);
    let log = fs::read_to_string(disk.0.join("log")).unwrap();
    assert!(log.contains("lines of the log were lost"), "{log}");
    guest.settled();
}

/// An ext4 in a file.
struct Ext4 {
    mount: Mount,
    frozen: bool,
}

impl Ext4 {
    /// Says why there is none, if this machine mounts none.
    fn mount(test: &str, image: &Path, at: &Path) -> Option<Self> {
        File::create(image).unwrap().set_len(64 << 20).unwrap();
        fs::create_dir_all(at).unwrap();
        let mut make = Command::new("mkfs.ext4");
        assert!(make.arg("-qF").arg(image).status().unwrap().success());
        let mut mount = Command::new("mount");
        let mounted = mount
            .args(["-o", "loop"])
            .args([image, at])
            .output()
            .unwrap();
        if !mounted.status.success() {
            let why = String::from_utf8_lossy(&mounted.stderr);
            skip::skip(test, &format!("no loop device: {}", why.trim()));
            return None;
        }
        Some(Self {
            mount: Mount(at.to_owned()),
            frozen: false,
        })
    }

    fn freeze(&mut self, freeze: bool) {
        let mut command = Command::new("fsfreeze");
        let how = if freeze { "-f" } else { "-u" };
        let done = command.arg(how).arg(&self.mount.0).status().unwrap();
        assert!(done.success(), "fsfreeze {how}");
        self.frozen = freeze;
    }
}

impl Drop for Ext4 {
    fn drop(&mut self) {
        if self.frozen {
            let mut command = Command::new("fsfreeze");
            let _ = command.arg("-u").arg(&self.mount.0).status();
        }
    }
}

#[test]
fn a_frozen_file_system_keeps_only_its_writers() {
    const TEST: &str = "a_frozen_file_system_keeps_only_its_writers";
    if !skip::is_root(TEST) {
        return;
    }
    let guest = Guest::start("");
    let folder = guest.test.folder();
    let Some(mut disk) = Ext4::mount(TEST, &folder.join("image"), &folder.join("disk")) else {
        return;
    };
    // What the agent itself writes to is frozen, too.
    let paths = format!(
        "['{}', '{}']",
        guest.test.protected.display(),
        disk.mount.0.display()
    );
    guest.set(&format!("[on_access]\npaths = {paths}"));
    let files = disk.mount.0.join("files");
    fs::create_dir(&files).unwrap();
    for n in 0..50 {
        fs::write(files.join(n.to_string()), format!("on disk {n}")).unwrap();
    }
    fs::write(files.join("bad"), guest.malware("disk")).unwrap();
    start_there(&guest, &disk.mount.0);
    let pid = guest.agent_pid();

    disk.freeze(true);
    let writer = {
        let path = files.join("written");
        std::thread::spawn(move || fs::write(path, "once it thaws").map(|()| Instant::now()))
    };
    let frozen = Instant::now();
    // Longer than the supervisor waits for an agent that is stuck.
    let mut round = 0;
    while frozen.elapsed() < Duration::from_secs(12) {
        assert!(denied(open_soon(&guest.bad(&format!("bad-{round}")))));
        open_soon(&guest.clean(&format!("clean-{round}"))).unwrap();
        // Reading goes on there, too.
        open_soon(&files.join((round % 50).to_string())).unwrap();
        assert!(denied(open_soon(&files.join("bad"))));
        round += 1;
        std::thread::sleep(Duration::from_millis(200));
    }
    assert_eq!(guest.agent_pid(), pid, "nobody took it for stalled");
    let thawed = Instant::now();
    disk.freeze(false);
    // The control: the freeze held whoever wrote.
    assert!(writer.join().unwrap().unwrap() >= thawed);
    wait_until("what was found meanwhile is reported", || {
        detections(&guest, "/bad-0") == 1
    });
    open_soon(&files.join("written")).unwrap();
    assert_eq!(number(&guest.settled(), "failed_open"), 0);
}
