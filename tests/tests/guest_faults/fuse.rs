//! A file system in user space whose server never answers: whoever opens something there
//! waits, and nobody else.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::Signal;
use palisade_tests::skip;
use serde_json::Value;

use super::guest::{Guest, PATIENCE, SOON, denied, open_aside, open_soon, signal, wait_until};

/// Longer than the supervisor waits for an agent that is stuck.
const STALLED: Duration = Duration::from_secs(12);

/// Where the kernel shows connections of FUSE servers.
const CONNECTIONS: &str = "/sys/fs/fuse/connections";

/// The server: greets the kernel, and says nothing more.
pub struct DeadFuse {
    at: PathBuf,
    device: Option<File>,
    takes: Option<JoinHandle<()>>,
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
            takes: None,
        }
    }

    /// One that takes what it is asked, and never answers: whoever asked cannot be killed.
    pub fn mount_taking(at: &Path) -> Self {
        let mut dead = Self::mount(at);
        let mut device = dead.device.as_ref().unwrap().try_clone().unwrap();
        // Ends with the connection.
        dead.takes = Some(std::thread::spawn(move || {
            let mut asked = vec![0; 1 << 20];
            while device.read(&mut asked).is_ok() {}
        }));
        dead
    }

    /// Its connection, by the number of its file system: nobody asks the server for it.
    fn connection(&self) -> PathBuf {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let mut lines = mounts.lines().map(|line| line.split(' '));
        let number = lines.find_map(|mut fields| {
            let device = fields.nth(2)?;
            (fields.nth(1)? == self.at.to_str().unwrap()).then_some(device)
        });
        Path::new(CONNECTIONS).join(number.unwrap().strip_prefix("0:").unwrap())
    }

    /// Whether the kernel still has its connection.
    fn is_connected(&self) -> bool {
        use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
        use std::os::fd::AsFd as _;
        let mut ready = [PollFd::new(
            self.device.as_ref().unwrap().as_fd(),
            PollFlags::POLLIN,
        )];
        poll(&mut ready, PollTimeout::ZERO).unwrap();
        !ready[0].revents().unwrap().contains(PollFlags::POLLERR)
    }
}

/// The kernel's account of connections, mounted for the test where nobody has.
struct Connections(bool);

impl Connections {
    fn new() -> Self {
        let is_mounted = fs::read_to_string("/proc/self/mounts")
            .unwrap()
            .contains(" fusectl ");
        if !is_mounted {
            let no: Option<&str> = None;
            let kind = Some("fusectl");
            mount(kind, CONNECTIONS, kind, MsFlags::empty(), no).unwrap();
        }
        Self(!is_mounted)
    }
}

impl Drop for Connections {
    fn drop(&mut self) {
        if self.0 {
            let _ = umount2(CONNECTIONS, MntFlags::MNT_DETACH);
        }
    }
}

impl Drop for DeadFuse {
    fn drop(&mut self) {
        if self.takes.is_some() {
            let _ = umount2(&self.at, MntFlags::MNT_FORCE);
        }
        // Closed, the connection ends, and whoever waits is let go.
        drop(self.device.take());
        let _ = umount2(&self.at, MntFlags::MNT_DETACH);
        if let Some(takes) = self.takes.take() {
            let _ = takes.join();
        }
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

/// Whether a process is there, and is more than what its parent has to hear of.
fn is_there(pid: i32) -> bool {
    let tasks = fs::read_dir(format!("/proc/{pid}/task"));
    tasks.into_iter().flatten().flatten().any(|task| {
        let stat = fs::read_to_string(task.path().join("stat")).unwrap_or_default();
        let state = stat.rsplit_once(") ").map(|(_, rest)| &rest[..1]);
        state.is_some_and(|state| state != "Z")
    })
}

#[test]
fn an_agent_that_no_signal_ends_is_freed_and_no_other_connection_is_touched() {
    let test = "an_agent_that_no_signal_ends_is_freed_and_no_other_connection_is_touched";
    if !skip::is_root(test) {
        return;
    }
    let _connections = Connections::new();
    let guest = Guest::start("");
    let folder = guest.test.folder();
    // Its number is the smaller one: it would go first if nobody knew better.
    let other = DeadFuse::mount_taking(&folder.join("other"));
    let dead = DeadFuse::mount_taking(&folder.join("dead"));
    let mut victim = Command::new("cat")
        .arg(other.at.join("file"))
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let waiting = |fuse: &DeadFuse| {
        let waiting = fs::read_to_string(fuse.connection().join("waiting")).unwrap();
        waiting.trim() != "0"
    };
    wait_until("the victim waits", || waiting(&other));
    let agent = guest.agent_pid();
    let arguments = ["task", "start", dead.at.to_str().unwrap()];
    guest
        .test
        .site
        .run("palisade-agent", &arguments, PATIENCE)
        .unwrap();
    wait_until("the agent waits", || waiting(&dead));
    let connection = dead.connection();
    let connection = connection.file_name().unwrap().to_str().unwrap().to_owned();

    let file = guest.clean("held");
    let killed = Instant::now();
    signal(agent, Signal::SIGKILL);
    let held = open_aside(&file);
    std::thread::sleep(Duration::from_millis(1500));
    // The control: a signal alone ends neither the agent nor the wait for it.
    assert!(is_there(agent), "a signal was enough");
    assert!(held.try_recv().is_err(), "nobody held it");
    held.recv_timeout(PATIENCE).unwrap().0.unwrap();
    println!("let go after {:?}", killed.elapsed());
    wait_until("it is gone", || !is_there(agent));
    wait_until("another one is there", || {
        let status = guest.try_status().unwrap_or_default();
        status["protection"]["state"] == "blocking" && status["agent"]["pid"] != agent
    });
    assert!(denied(open_soon(&guest.bad("after"))));
    assert!(!dead.is_connected());
    // Nobody else lost anything.
    assert!(other.is_connected() && waiting(&other));
    assert!(victim.try_wait().unwrap().is_none());
    let log = fs::read_to_string(guest.test.site.log("agent")).unwrap();
    let said: Vec<&str> = log
        .lines()
        .filter(|line| line.contains("its connection was aborted"))
        .collect();
    assert_eq!(said.len(), 1, "{log}");
    assert!(
        said[0].contains(&format!("connection={connection}")),
        "{said:?}"
    );
    drop(other);
    victim.wait().unwrap();
}
