//! A file system in user space whose server never answers: whoever opens something there
//! waits, and nobody else.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use palisade_tests::skip;
use serde_json::Value;

use super::guest::{Guest, PATIENCE, SOON, denied, open_soon, wait_until};

/// Longer than the supervisor waits for an agent that is stuck.
const STALLED: Duration = Duration::from_secs(12);

/// The server: greets the kernel, and says nothing more.
pub struct DeadFuse {
    at: PathBuf,
    device: Option<File>,
}

impl DeadFuse {
    pub fn mount(at: &Path) -> Self {
        fs::create_dir_all(at).unwrap();
        let mut device = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/fuse")
            .unwrap();
        let options = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0",
            device.as_raw_fd()
        );
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        mount(Some("dead"), at, Some("fuse"), flags, Some(&*options)).unwrap();
        let mut asked = vec![0; 1 << 20];
        let n = device.read(&mut asked).unwrap();
        assert!(n >= 40 && asked[4..8] == 26_u32.to_ne_bytes(), "FUSE_INIT");
        // The header: length, no error, the request's number; then protocol 7.31, and
        // 56 bytes of which none matters but the largest write.
        let mut answer = Vec::new();
        answer.extend_from_slice(&80_u32.to_ne_bytes());
        answer.extend_from_slice(&0_u32.to_ne_bytes());
        answer.extend_from_slice(&asked[8..16]);
        for word in [7_u32, 31, 0, 0, 0, 4096, 1] {
            answer.extend_from_slice(&word.to_ne_bytes());
        }
        answer.resize(80, 0);
        device.write_all(&answer).unwrap();
        Self {
            at: at.to_owned(),
            device: Some(device),
        }
    }
}

impl Drop for DeadFuse {
    fn drop(&mut self) {
        // Closed, the connection ends, and whoever waits is let go.
        drop(self.device.take());
        let _ = umount2(&self.at, MntFlags::MNT_DETACH);
    }
}

#[test]
fn a_dead_fuse_server_keeps_nobody_but_its_own_openers() {
    if !skip::is_root("a_dead_fuse_server_keeps_nobody_but_its_own_openers") {
        return;
    }
    let guest = Guest::start("");
    let at = guest.test.protected.join("dead");
    let dead = DeadFuse::mount(&at);
    let mut victim = Command::new("cat")
        .arg(at.join("file"))
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let before = guest.agent_pid();
    let started = Instant::now();
    let mut round = 0;
    while started.elapsed() < STALLED {
        round += 1;
        assert!(denied(open_soon(&guest.bad(&format!("bad-{round}")))));
        open_soon(&guest.clean(&format!("clean-{round}"))).unwrap();
        std::thread::sleep(Duration::from_millis(200));
    }
    assert_eq!(guest.agent_pid(), before, "nobody took it for stalled");
    assert!(
        victim.try_wait().unwrap().is_none(),
        "it waits all the while"
    );
    let gap = |status: &Value| {
        let gaps = status["protection"]["gaps"].to_string();
        gaps.contains("/dead") && gaps.contains("fuse")
    };
    wait_until("the gap is said", || gap(&guest.status()));

    // An agent that finds it there starts all the same, even if it is to protect it.
    let paths = format!("['{}', '{}']", guest.test.protected.display(), at.display());
    guest.set(&format!("[on_access]\npaths = {paths}"));
    guest.restart_agent(&[]);
    guest.wait_state("blocking");
    assert!(gap(&guest.status()));
    assert!(denied(open_soon(&guest.bad("after"))));
    guest.settled();

    // The control: the opener waited for the server, and for nothing else.
    assert!(victim.try_wait().unwrap().is_none());
    drop(dead);
    let started = Instant::now();
    while victim.try_wait().unwrap().is_none() {
        assert!(started.elapsed() < SOON, "it still waits");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_scan_that_comes_to_a_dead_fuse_server_ends() {
    if !skip::is_root("a_scan_that_comes_to_a_dead_fuse_server_ends") {
        return;
    }
    let guest = Guest::start("");
    let folder = guest.test.folder().join("scanned");
    let at = folder.join("dead");
    let dead = DeadFuse::mount(&at);
    guest.test.file("scanned/bad", &guest.malware("bad"));
    guest.test.file("scanned/good", b"good");
    let scan = |path: &Path| {
        let started = Instant::now();
        let scanned = guest.test.scan(&[path]);
        assert!(started.elapsed() < PATIENCE, "{:?}", started.elapsed());
        scanned
    };
    // What is beside it is scanned, and it is said.
    let (code, result) = scan(&folder);
    assert_eq!(code, 1, "{result:#}");
    let counts = ["malware", "clean", "errors"].map(|key| result[key].as_u64().unwrap());
    assert_eq!(counts, [1, 1, 1], "{result:#}");
    let findings = result["findings"].as_array().unwrap();
    let named = |finding: &&Value| finding["path"] == at.to_str().unwrap();
    let said = findings.iter().find(named).unwrap().to_string();
    assert!(said.contains("did not answer within"), "{said}");
    // Named itself, too.
    let (code, result) = scan(&at);
    assert_eq!((code, &result["errors"]), (3, &1.into()), "{result:#}");

    // The control: without it nothing is amiss.
    drop(dead);
    let (code, result) = scan(&folder);
    assert_eq!((code, &result["errors"]), (1, &0.into()), "{result:#}");
}
