//! On-access protection as a process, as root, on a private tmpfs: what is blocked,
//! what is not, and what happens when everything else fails.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a panic in a test is a failed test with a place in it"
)]

mod support;

use std::fs::{self, File};
use std::io::{ErrorKind, Read as _};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use serde_json::{Value, json};
use support::agent::Agent;
use support::mount::Ext4;
use support::site::Site;
use support::svm::{Mode, Svm};
use support::world::{World, denied, open_aside, program};
use support::{MARKER, MARKER_NAME, is_root, wait_until};

#[test]
fn malware_is_blocked_and_clean_files_stay_usable() {
    if !is_root("malware_is_blocked_and_clean_files_stay_usable") {
        return;
    }
    let world = World::started("");
    let bad = world.file("bad", &[b"x", MARKER].concat());
    let clean = world.file("clean", b"hello");
    let outside = world.tmpfs.file("outside", MARKER);
    let good_program = world.file("good", &program(b""));
    let bad_program = world.file("evil", &program(MARKER));

    assert!(denied(File::open(&bad)));
    let mut text = String::new();
    File::open(&clean)
        .unwrap()
        .read_to_string(&mut text)
        .unwrap();
    assert_eq!(text, "hello");
    assert!(File::open(&outside).is_ok(), "not below a protected path");
    assert!(Command::new(&good_program).status().unwrap().success());
    assert!(denied(Command::new(&bad_program).status()));

    let events = world.agent.settled_events();
    assert!(
        events["denied"].as_u64().unwrap() >= 3,
        "the self-test and two: {events}"
    );
    assert_eq!(events["failed_open"], 0, "{events}");
    wait_until("both detections are spooled", || {
        world.agent.spooled().len() >= 2
    });
    let spooled = world.agent.spooled();
    let of = |path: &Path| {
        let bytes: Vec<u8> = path.to_str().unwrap().into();
        spooled
            .iter()
            .find(|found| found["path"] == json!(bytes))
            .unwrap()
    };
    assert_eq!(of(&bad)["name"], MARKER_NAME);
    assert_eq!(of(&bad)["action"], "Blocked");
    assert_eq!(of(&bad)["pid"], std::process::id());
    assert_eq!(of(&bad)["size"], 1 + MARKER.len());
    let log = world.agent.log();
    assert!(
        log.contains("blocked") && log.contains(bad.to_str().unwrap()),
        "{log}"
    );
    // The self-test's file is no detection, and is gone.
    assert_eq!(
        fs::read_dir(world.tmpfs.path().join("protected"))
            .unwrap()
            .count(),
        4
    );
    assert!(
        spooled.iter().all(|found| found["name"] == MARKER_NAME),
        "{spooled:?}"
    );
}

#[test]
fn a_verdict_is_remembered_until_the_file_changes() {
    if !is_root("a_verdict_is_remembered_until_the_file_changes") {
        return;
    }
    let world = World::started("on_access: ignore_marks = 'off'");
    let file = world.file("f", b"hello");
    // A file that changed just now could change again unseen.
    std::thread::sleep(palisade_light_agent::stamp::RACY + Duration::from_millis(100));
    File::open(&file).unwrap();
    wait_until("the verdict is remembered", || {
        world.agent.status()["cached_files"] == 1
    });
    let asked = world.svm.requests();
    for _ in 0..10 {
        File::open(&file).unwrap();
    }
    assert_eq!(world.svm.requests(), asked);
    assert!(world.agent.settled_events()["cached"].as_u64().unwrap() >= 10);

    // With a writer it is asked again, whatever is remembered.
    let writer = fs::OpenOptions::new().append(true).open(&file).unwrap();
    File::open(&file).unwrap();
    assert!(
        world.svm.requests() >= asked + 2,
        "the writer's open and the reader's"
    );
    std::io::Write::write_all(&mut &writer, MARKER).unwrap();
    drop(writer);
    assert!(denied(File::open(&file)));
    world.agent.settled_events();
}

#[test]
fn a_hanging_protection_server_meets_the_deadline() {
    if !is_root("a_hanging_protection_server_meets_the_deadline") {
        return;
    }
    let world =
        World::started("on_access: deadline_ms = 1000\n[failure]\ndeadline = { exec = 'deny' }");
    world.svm.set(Mode::Hang);
    let files: Vec<PathBuf> = (0..40)
        .map(|i| world.file(&format!("{i}"), format!("c{i}").as_bytes()))
        .collect();
    let waiting: Vec<_> = files.iter().map(|file| open_aside(file)).collect();
    for open in waiting {
        let (opened, took) = open.recv_timeout(Duration::from_secs(10)).unwrap();
        assert!(opened.is_ok(), "the table says allow");
        assert!(
            took <= Duration::from_millis(2000),
            "deadline + 1 s is promised: {took:?}"
        );
    }
    let program = world.file("program", &program(b""));
    let started = Instant::now();
    assert!(
        denied(Command::new(&program).status()),
        "the table says deny for exec"
    );
    assert!(started.elapsed() <= Duration::from_millis(2000));
    let events = world.agent.settled_events();
    assert!(
        events["failures"]["deadline"].as_u64().unwrap() >= 40,
        "{events}"
    );
    assert!(events["failed_closed"].as_u64().unwrap() >= 1, "{events}");
}

#[test]
fn a_late_verdict_still_acts() {
    if !is_root("a_late_verdict_still_acts") {
        return;
    }
    let world = World::started("on_access: deadline_ms = 300");
    let bad = world.file("bad", MARKER);
    std::thread::sleep(palisade_light_agent::stamp::RACY + Duration::from_millis(100));
    world.svm.set(Mode::Slow(Duration::from_millis(1500)));
    assert!(File::open(&bad).is_ok(), "let through at the deadline");
    wait_until("the late detection", || !world.agent.spooled().is_empty());
    assert_eq!(world.agent.spooled()[0]["action"], "Late");
    assert!(denied(File::open(&bad)), "remembered by now");
    world.agent.settled_events();
}

#[test]
fn an_older_verdict_lets_an_open_go_on_and_is_renewed_behind_it() {
    if !is_root("an_older_verdict_lets_an_open_go_on_and_is_renewed_behind_it") {
        return;
    }
    let world = World::started("");
    let bad = world.file("bad", MARKER);
    std::thread::sleep(palisade_light_agent::stamp::RACY + Duration::from_millis(100));
    world.svm.set(Mode::Older);
    assert!(
        File::open(&bad).is_ok(),
        "earlier definitions knew nothing of it"
    );
    wait_until("the late detection", || !world.agent.spooled().is_empty());
    assert_eq!(world.agent.spooled()[0]["action"], "Late");
    assert!(
        denied(File::open(&bad)),
        "the new verdict is remembered, the older one is not"
    );
    world.agent.settled_events();
}

#[test]
fn no_age_is_allowed_where_settings_say_so() {
    if !is_root("no_age_is_allowed_where_settings_say_so") {
        return;
    }
    let world = World::started("on_access: max_verdict_age_s = 0");
    let bad = world.file("bad", MARKER);
    world.svm.set(Mode::Older);
    assert!(denied(File::open(&bad)));
}

#[test]
fn without_a_protection_server_the_table_decides_at_once() {
    if !is_root("without_a_protection_server_the_table_decides_at_once") {
        return;
    }
    let mut world = World::new("[failure]\nno_svm = { open = 'deny', exec = 'allow' }");
    let file = world.file("f", MARKER);
    let program = world.file("program", &program(b""));
    world.svm.kill();
    world.agent.run();
    let started = Instant::now();
    assert!(denied(File::open(&file)));
    // An exec is two events, and the second of them is an open.
    assert!(denied(Command::new(&program).status()));
    assert!(
        started.elapsed() < Duration::from_secs(2),
        "at once, not at the deadline"
    );
    let status = world.agent.status();
    assert_eq!(status["protection"]["state"], "off");
    assert!(
        status["protection"]["reason"]
            .as_str()
            .unwrap()
            .contains("no Protection Server")
    );
    let events = world.agent.settled_events();
    assert!(
        events["failures"]["no_svm"].as_u64().unwrap() >= 2,
        "{events}"
    );
    assert!(
        events["failed_open"].as_u64().unwrap() >= 1,
        "the exec's own event: {events}"
    );
    let shown = world.agent.output(&["status", "--failures", "-o", "json"]);
    let shown: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!(shown["running"], true);
    let row = &shown["failures"][0];
    assert_eq!(
        (&row["reason"], &row["open"], &row["exec"]),
        (&"no_svm".into(), &"deny".into(), &"allow".into())
    );
    assert_eq!(row["answered"], events["failures"]["no_svm"]);

    // It comes back, and everything is as it should be.
    world.svm.resume();
    world.agent.wait_protection("blocking");
    assert!(Command::new(&program).status().unwrap().success());
    assert!(denied(File::open(&file)));
}

#[test]
fn what_is_private_is_not_sent_and_has_its_row() {
    if !is_root("what_is_private_is_not_sent_and_has_its_row") {
        return;
    }
    let world = World::started(
        "private = ['{protected}/secret']\n[failure]\nprivate = { open = 'deny', exec = 'allow' }",
    );
    fs::create_dir(world.tmpfs.path().join("protected/secret")).unwrap();
    let secret = world.file("secret/f", b"not for others");
    let sent = world.svm.content_bytes();
    assert!(denied(File::open(&secret)));
    assert_eq!(world.agent.settled_events()["failures"]["private"], 1);
    assert_eq!(world.svm.content_bytes(), sent);
    // The control: outside of it the content is sent, and clean.
    File::open(world.file("f", b"for anyone")).unwrap();
    assert_eq!(world.svm.content_bytes(), sent + 10);
}

#[test]
fn a_file_above_the_bound_is_let_through_as_policy() {
    if !is_root("a_file_above_the_bound_is_let_through_as_policy") {
        return;
    }
    let world = World::started("on_access: max_bytes = 5000");
    let of = |size: usize| [MARKER, &vec![b' '; size - MARKER.len()]].concat();
    let before = world.agent.settled_events()["allowed_by_policy"].as_u64();
    File::open(world.file("above", &of(5001))).unwrap();
    // The control: one byte less.
    assert!(denied(File::open(world.file("at", &of(5000)))));
    let after = world.agent.settled_events()["allowed_by_policy"].as_u64();
    assert!(after > before);
}

#[test]
fn the_default_table_lets_opens_through() {
    if !is_root("the_default_table_lets_opens_through") {
        return;
    }
    let mut world = World::new("");
    let file = world.file("f", MARKER);
    world.svm.kill();
    world.agent.run();
    assert!(File::open(&file).is_ok());
    let events = world.agent.settled_events();
    assert_eq!(
        events["failures"]["no_svm"], events["failed_open"],
        "{events}"
    );
}

#[test]
fn a_killed_agent_releases_whoever_waits() {
    if !is_root("a_killed_agent_releases_whoever_waits") {
        return;
    }
    let mut world = World::started("on_access: deadline_ms = 60000");
    world.svm.set(Mode::Hang);
    let waiting: Vec<_> = (0..5)
        .map(|i| open_aside(&world.file(&format!("{i}"), format!("{i}").as_bytes())))
        .collect();
    wait_until("they wait", || {
        world.agent.status()["events"]["pending"] == 5
    });
    let killed = Instant::now();
    world.agent.signal(Signal::SIGKILL);
    for open in waiting {
        assert!(open.recv_timeout(Duration::from_secs(5)).unwrap().0.is_ok());
    }
    assert!(killed.elapsed() < Duration::from_secs(2));
    world.agent.wait();
}

#[test]
fn a_stopped_agent_answers_whoever_waits_and_ends_well() {
    if !is_root("a_stopped_agent_answers_whoever_waits_and_ends_well") {
        return;
    }
    let mut world = World::started("on_access: deadline_ms = 60000\n[failure]\nstopping = 'deny'");
    world.svm.set(Mode::Hang);
    let waiting = open_aside(&world.file("f", b"f"));
    wait_until("it waits", || {
        world.agent.status()["events"]["pending"] == 1
    });
    world.agent.signal(Signal::SIGTERM);
    assert!(denied(
        waiting.recv_timeout(Duration::from_secs(5)).unwrap().0
    ));
    assert_eq!(world.agent.wait(), Some(0));
    assert!(
        File::open(world.file("g", MARKER)).is_ok(),
        "nothing protects any more"
    );
}

/// Holds a write lease on its argument. The agent may still have the file open that was
/// just written; a lease is given once nobody has.
const HOLD_A_LEASE: &str = "
import fcntl, signal, sys, time
signal.signal(signal.SIGIO, signal.SIG_IGN)
f = open(sys.argv[1], 'r+')
for _ in range(1000):
    try:
        fcntl.fcntl(f, fcntl.F_SETLEASE, fcntl.F_WRLCK)
        break
    except BlockingIOError:
        time.sleep(0.01)
else:
    sys.exit('no lease')
print('held', flush=True)
time.sleep(60)
";

#[test]
fn a_lease_holder_freezes_nobody_else() {
    if !is_root("a_lease_holder_freezes_nobody_else") {
        return;
    }
    let world = World::started("");
    let leased = world.file("leased", b"leased");
    let other = world.file("other", b"other");
    // A file of somebody's who may do nothing else.
    const NOBODY: u32 = 65534;
    std::os::unix::fs::chown(&leased, Some(NOBODY), Some(NOBODY)).unwrap();
    let holder = Command::new("python3")
        .args(["-c", HOLD_A_LEASE])
        .arg(&leased)
        .uid(NOBODY)
        .gid(NOBODY)
        .current_dir("/")
        .stdout(std::process::Stdio::piped())
        .spawn();
    let mut holder = match holder {
        Ok(holder) => holder,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            println!("skipped: a_lease_holder_freezes_nobody_else needs python3 to hold a lease");
            return;
        }
        Err(error) => panic!("{error}"),
    };
    let mut held = [0; 4];
    holder
        .stdout
        .as_mut()
        .unwrap()
        .read_exact(&mut held)
        .unwrap();
    assert_eq!(&held, b"held", "the lease is there");
    // The kernel cannot open it for the agent without waiting for the holder, and refuses
    // whoever opens it.
    let (opened, took) = open_aside(&leased)
        .recv_timeout(Duration::from_secs(10))
        .unwrap();
    assert!(denied(opened));
    assert!(took < Duration::from_secs(5), "{took:?}");
    assert!(world.agent.settled_events()["kernel_refused"].as_u64() > Some(0));
    let (opened, took) = open_aside(&other)
        .recv_timeout(Duration::from_secs(10))
        .unwrap();
    holder.kill().unwrap();
    holder.wait().unwrap();
    assert!(opened.is_ok());
    assert!(took < Duration::from_secs(5), "{took:?}");
    // The control: without the lease it is a file as any other.
    File::open(&leased).unwrap();
    world.agent.settled_events();
}

/// Has an ext4 go down as it does when its disk fails: files that are known by name are
/// there, and their opens fail (`EXT4_IOC_SHUTDOWN`, without its log).
const SHUT_DOWN: &str = "
import fcntl, os, struct, sys
fcntl.ioctl(os.open(sys.argv[1], os.O_RDONLY), 0x8004587d, struct.pack('I', 2))
";

#[test]
fn a_file_that_the_agent_cannot_open_ends_nothing() {
    let test = "a_file_that_the_agent_cannot_open_ends_nothing";
    if !is_root(test) {
        return;
    }
    let world = World::started("");
    let pid = world.agent.serving_pid();
    let images = tempfile::tempdir().unwrap();
    let Some(disk) = Ext4::mount(
        test,
        images.path(),
        &world.tmpfs.path().join("protected/disk"),
    ) else {
        return;
    };
    wait_until("it is marked", || {
        world.agent.status()["protection"]["file_systems"] == 2
    });
    let file = world.file("disk/f", b"f");
    File::open(&file).unwrap();
    let down = Command::new("python3")
        .args(["-c", SHUT_DOWN])
        .arg(disk.path())
        .status();
    if !down.is_ok_and(|down| down.success()) {
        println!("skipped: {test} needs python3, and an ext4 that can be shut down");
        return;
    }
    // The agent's own open fails (EIO) before the opener's does.
    for _ in 0..20 {
        assert!(denied(File::open(&file)));
    }
    let bad = world.file("bad", MARKER);
    assert!(denied(File::open(&bad)));
    File::open(world.file("good", b"good")).unwrap();
    let events = world.agent.settled_events();
    assert!(events["kernel_refused"].as_u64().unwrap() >= 20, "{events}");
    let state = world.agent.status()["protection"]["state"].clone();
    assert_eq!((state, world.agent.serving_pid()), ("blocking".into(), pid));
}

#[test]
fn many_opens_at_once_balance() {
    if !is_root("many_opens_at_once_balance") {
        return;
    }
    let world = World::started("");
    let files: Vec<PathBuf> = (0..200)
        .map(|i| {
            let content = format!("content {}", i % 50);
            let marker = if i % 10 == 0 { MARKER } else { b"" };
            world.file(&format!("{i}"), &[content.as_bytes(), marker].concat())
        })
        .collect();
    let before = world.agent.settled_events();
    std::thread::scope(|scope| {
        for part in files.chunks(25) {
            scope.spawn(move || {
                for _ in 0..3 {
                    for file in part {
                        let number: usize =
                            file.file_name().unwrap().to_str().unwrap().parse().unwrap();
                        assert_eq!(denied(File::open(file)), number.is_multiple_of(10));
                    }
                }
            });
        }
    });
    let events = world.agent.settled_events();
    let more = |key: &str| events[key].as_u64().unwrap() - before[key].as_u64().unwrap();
    assert_eq!(more("seen"), 600, "{events}");
    assert_eq!(more("denied"), 60, "{events}");
    assert_eq!(more("failed_open"), 0, "{events}");
}

#[test]
fn gaps_and_reasons_are_said() {
    let site = Site::new();
    let svm = Svm::start(&site);
    let settings = format!(
        "[on_access]\npaths = ['/proc', '/no/such/path']\n[[svm]]\naddress = '{}'",
        svm.address
    );
    let mut agent = Agent::new(&site, &settings);
    agent.run();
    let status = agent.status();
    assert_eq!(status["protection"]["state"], "off", "{status}");
    let gaps: &Vec<Value> = status["protection"]["gaps"].as_array().unwrap();
    assert_eq!(gaps.len(), 2, "{status}");
    let text = agent.output(&["status"]);
    assert!(
        String::from_utf8_lossy(&text.stdout).contains("gap       /proc"),
        "{text:?}"
    );
    // One agent a folder.
    let second = agent.output(&["run"]);
    assert_eq!(second.status.code(), Some(3));
    assert!(
        String::from_utf8_lossy(&second.stderr).contains("the agent runs"),
        "{second:?}"
    );
}

#[test]
fn without_root_on_access_is_off_with_the_remedy_and_on_demand_works() {
    use std::os::unix::process::CommandExt as _;
    if !is_root("without_root_on_access_is_off_with_the_remedy_and_on_demand_works") {
        return;
    }
    let world = World::new("");
    let own = world.agent.dir.path();
    for dir in ["", "etc", "var", "var/agent", "var/agent/identity"] {
        nix::unistd::chown(&own.join(dir), Some(65534.into()), None).unwrap();
    }
    nix::unistd::chown(
        &own.join("var/agent/identity/key.pem"),
        Some(65534.into()),
        None,
    )
    .unwrap();
    let program = own.join("palisade-agent");
    fs::copy(support::agent::BINARY, &program).unwrap();
    let run = |args: &[&str]| {
        let mut command = Command::new(&program);
        command
            .arg("--site")
            .arg(own)
            .args(args)
            .uid(65534)
            .gid(65534);
        command
    };
    let mut daemon = run(&["run"])
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let status = || run(&["status", "-o", "json"]).output().unwrap();
    wait_until("it answers", || status().status.success());
    let said: Value = serde_json::from_slice(&status().stdout).unwrap();
    daemon.kill().unwrap();
    daemon.wait().unwrap();
    assert_eq!(said["protection"]["state"], "off");
    let reason = said["protection"]["reason"].as_str().unwrap();
    assert!(reason.contains("needs root (CAP_SYS_ADMIN)"), "{reason}");
    let bad = world.file("bad", MARKER);
    let scan = run(&["scan", "-o", "json", bad.to_str().unwrap()])
        .output()
        .unwrap();
    assert_eq!(scan.status.code(), Some(1), "{scan:?}");
}
