//! `palisade-agent scan` as a process against a Protection Server that speaks the
//! protocol: what is scanned, what is said of it, and the exit codes.

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
use std::os::unix::fs::{FileExt as _, PermissionsExt as _, symlink};
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use palisade_protocol::content::MAX_CONTENT_BYTES;
use serde_json::{Value, json};
use support::agent::Agent;
use support::site::Site;
use support::svm::{Mode, Svm};
use support::{MARKER, MARKER_NAME, wait_until};

fn settings(svm: &Svm) -> String {
    format!("[[svm]]\nid = '{}'\naddress = '{}'\n", svm.id, svm.address)
}

fn world() -> (Site, Svm, Agent) {
    let site = Site::new();
    let svm = Svm::start(&site);
    let agent = Agent::new(&site, &settings(&svm));
    (site, svm, agent)
}

fn counts(report: &Value) -> [u64; 6] {
    [
        "scanned",
        "clean",
        "malware",
        "suspicious",
        "not_scanned",
        "errors",
    ]
    .map(|key| report[key].as_u64().unwrap())
}

#[test]
fn a_folder_with_everything_in_it() {
    let (_site, svm, agent) = world();
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    fs::write(at("clean"), "nothing").unwrap();
    fs::write(at("bad"), [b"x", MARKER].concat()).unwrap();
    fs::write(at("empty"), "").unwrap();
    fs::write(at("large"), vec![7; 700_000]).unwrap();
    let odd = dir.path().join(OsStr::from_bytes(b"n\xff\n"));
    fs::write(&odd, MARKER).unwrap();
    fs::create_dir(at("d")).unwrap();
    symlink(dir.path(), at("d/loop")).unwrap();
    let _socket = UnixListener::bind(at("d/socket")).unwrap();
    nix::unistd::mkfifo(&at("d/fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let sparse = fs::File::create(at("sparse")).unwrap();
    sparse.set_len(5 << 30).unwrap();

    let (code, report) = agent.scan(&[dir.path()]);
    assert_eq!(code, 1, "{report}");
    assert_eq!(counts(&report), [5, 3, 2, 0, 1, 0], "{report}");
    let sent = 7 + 1 + 2 * MARKER.len() as u64 + 700_000;
    assert_eq!(report["sent_bytes"], sent);
    assert_eq!(svm.content_bytes(), sent);
    let finding = |path: &Path| {
        let path = palisade_protocol::bounded::PathBytes::from_path(path).to_string();
        let all = report["findings"].as_array().unwrap();
        all.iter()
            .find(|finding| finding["path"] == path.as_str())
            .unwrap()
            .clone()
    };
    assert_eq!(finding(&odd)["verdict"], "malware");
    assert!(
        finding(&odd)["path"]
            .as_str()
            .unwrap()
            .ends_with("/n\\xff\\x0a")
    );
    assert_eq!(
        finding(&at("bad")),
        json!({
            "path": at("bad"), "verdict": "malware", "name": MARKER_NAME, "engine": "test",
            "member": null, "metadata": {}, "reason": null, "sha256": "5a".repeat(32),
            "blake3": blake3::hash(&[b"x", MARKER].concat()).to_hex().to_string(),
            "engines": [],
        })
    );
    assert_eq!(finding(&at("sparse"))["reason"], "too_large");

    // Again: all by the shared cache, nothing is sent.
    let (code, again) = agent.scan(&[dir.path()]);
    assert_eq!(code, 1);
    assert_eq!(counts(&again), counts(&report));
    assert_eq!(
        (&again["sent_bytes"], &again["local_hits"]),
        (&json!(0), &json!(0))
    );
    assert_eq!(again["shared_hits"], again["scanned"]);
    // The findings wait for an Integration Server.
    assert_eq!(agent.spooled().len(), 4);
}

#[test]
fn exit_codes_and_messages() {
    let (_site, svm, agent) = world();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("f");
    fs::write(&file, "x").unwrap();
    assert_eq!(agent.scan(&[&file]).0, 0);

    let missing = dir.path().join("missing");
    let (code, report) = agent.scan(&[&file, &missing]);
    assert_eq!((code, counts(&report)), (3, [1, 1, 0, 0, 0, 1]), "{report}");
    let said = agent.output(&["scan", missing.to_str().unwrap()]);
    assert_eq!(said.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&said.stderr).contains("missing does not exist"));

    assert_eq!(agent.output(&["scan"]).status.code(), Some(2), "usage");

    svm.set(Mode::Encrypted);
    fs::write(&file, "y").unwrap();
    let (code, report) = agent.scan(&[&file]);
    assert_eq!((code, counts(&report)), (4, [0, 0, 0, 0, 1, 0]), "{report}");
    assert_eq!(report["findings"][0]["reason"], "encrypted");
}

#[test]
fn an_unreadable_file_is_an_error_and_never_clean() {
    let (_site, _svm, agent) = world();
    if !nix::unistd::Uid::effective().is_root() {
        println!(
            "skipped: an_unreadable_file_is_an_error_and_never_clean needs root to become another user"
        );
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(dir.path().join("open"), "x").unwrap();
    fs::write(dir.path().join("closed"), "x").unwrap();
    fs::set_permissions(dir.path().join("closed"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::create_dir(dir.path().join("folder")).unwrap();
    fs::set_permissions(dir.path().join("folder"), fs::Permissions::from_mode(0o700)).unwrap();
    // The other user needs to read the agent's folder and run the program.
    let own = agent.dir.path();
    chown_all(own);
    fs::set_permissions(own, fs::Permissions::from_mode(0o755)).unwrap();
    let program = own.join("palisade-agent");
    fs::copy(support::agent::BINARY, &program).unwrap();
    let output = std::process::Command::new(&program)
        .arg("--site")
        .arg(own)
        .args(["scan", "-o", "json"])
        .arg(dir.path())
        .uid(65534)
        .gid(65534)
        .output()
        .unwrap();
    let report: Value = serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
    assert_eq!(output.status.code(), Some(4), "{report}");
    assert_eq!(counts(&report), [1, 1, 0, 0, 0, 2], "{report}");
    for finding in report["findings"].as_array().unwrap() {
        assert_eq!(finding["verdict"], "error");
        assert!(
            finding["reason"]
                .as_str()
                .unwrap()
                .contains("Permission denied"),
            "{finding}"
        );
    }
}

fn chown_all(dir: &Path) {
    let nobody = (Some(65534.into()), Some(65534.into()));
    nix::unistd::chown(dir, nobody.0, nobody.1).unwrap();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            chown_all(&path);
        }
        nix::unistd::chown(&path, nobody.0, nobody.1).unwrap();
    }
}

#[test]
fn busy_and_a_mismatch_are_retried() {
    let (_site, svm, agent) = world();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("f");
    fs::write(&file, "x").unwrap();
    svm.set(Mode::Busy(3));
    assert_eq!(agent.scan(&[&file]).0, 0);
    assert_eq!(svm.requests(), 4);
    fs::write(&file, "y").unwrap();
    svm.set(Mode::Mismatch(1));
    assert_eq!(agent.scan(&[&file]).0, 0);
    fs::write(&file, "z").unwrap();
    svm.set(Mode::Mismatch(2));
    let (code, report) = agent.scan(&[&file]);
    assert_eq!(
        (code, &report["findings"][0]["reason"]),
        (4, &json!("changed")),
        "{report}"
    );
}

#[test]
fn a_scan_waits_for_a_killed_protection_server_and_finishes() {
    let (_site, mut svm, agent) = world();
    let dir = tempfile::tempdir().unwrap();
    for i in 0..60 {
        fs::write(dir.path().join(format!("{i}")), format!("content {i}")).unwrap();
    }
    fs::write(dir.path().join("bad"), MARKER).unwrap();
    svm.set(Mode::Slow(Duration::from_millis(150)));
    let mut scan = agent.command(&["scan", "-o", "json"]);
    let scan = scan
        .arg(dir.path())
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    wait_until("some files are asked for", || svm.requests() > 5);
    svm.kill();
    std::thread::sleep(Duration::from_secs(3));
    svm.set(Mode::Serve);
    svm.resume();
    let output = scan.wait_with_output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{report}");
    assert_eq!(counts(&report), [61, 60, 1, 0, 0, 0], "{report}");
}

/// However large a file is, the agent's memory is that of a few fragments; what no
/// Protection Server would take is named without being read.
#[test]
fn large_files_take_no_memory() {
    const MOST: u64 = 16 << 20;
    let mib = std::env::var("PALISADE_LARGE_MIB").map_or(600, |mib| mib.parse().unwrap());
    println!("a file of {mib} MiB (PALISADE_LARGE_MIB; 2047 in scripts/soak)");
    let site = Site::new();
    let svm = Svm::with_max(&site, MAX_CONTENT_BYTES);
    let agent = Agent::new(&site, &settings(&svm));
    let dir = tempfile::tempdir().unwrap();
    let large = fs::File::create(dir.path().join("large")).unwrap();
    large.set_len(mib << 20).unwrap();
    large.write_at(b"it begins", 0).unwrap();
    let enormous = fs::File::create(dir.path().join("enormous")).unwrap();
    enormous.set_len(10 << 30).unwrap();

    let mut scan = agent.command(&["scan", "-o", "json"]);
    scan.arg(dir.path()).stdout(Stdio::piped());
    let mut scan = scan.spawn().unwrap();
    let rollup = format!("/proc/{}/smaps_rollup", scan.id());
    let mut peak = 0;
    while scan.try_wait().unwrap().is_none() {
        // It may have ended between the two.
        let text = fs::read_to_string(&rollup).unwrap_or_default();
        let pss = text.lines().find_map(|line| line.strip_prefix("Pss:"));
        let kib = pss.and_then(|pss| pss.trim().strip_suffix(" kB")?.parse().ok());
        peak = peak.max(kib.unwrap_or(0_u64) << 10);
        std::thread::sleep(Duration::from_millis(10));
    }
    let output = scan.wait_with_output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    println!("at most {} KiB", peak >> 10);
    assert_eq!(counts(&report), [1, 1, 0, 0, 1, 0], "{report}");
    let finding = &report["findings"][0];
    let path = dir.path().join("enormous");
    assert_eq!(
        (&finding["path"], &finding["reason"]),
        (&json!(path), &json!("too_large"))
    );
    assert_eq!(svm.content_bytes(), mib << 20);
    assert!(peak > 1 << 20 && peak <= MOST, "{} KiB", peak >> 10);
}

#[test]
fn content_that_ends_every_session_is_given_up() {
    let (_site, svm, agent) = world();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("f");
    fs::write(&file, "x").unwrap();
    svm.set(Mode::Cut);
    let (code, report) = agent.scan(&[&file]);
    assert_eq!(
        (code, &report["findings"][0]["reason"]),
        (4, &json!("engine_failed")),
        "{report}"
    );
}

#[test]
fn without_any_protection_server_the_scan_ends_with_a_reason() {
    let site = Site::new();
    let gone = "127.0.0.1:9".to_owned();
    let agent = Agent::new(
        &site,
        &format!("[scan]\nsvm_wait_s = 4\n[[svm]]\naddress = '{gone}'"),
    );
    let dir = tempfile::tempdir().unwrap();
    for i in 0..40 {
        fs::write(dir.path().join(format!("{i}")), "x").unwrap();
    }
    let output = agent.output(&["scan", "-o", "json", dir.path().to_str().unwrap()]);
    assert_eq!(output.status.code(), Some(3));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        said.contains("no Protection Server for 4 s") && said.contains(&gone),
        "{said}"
    );
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["clean"], 0, "{report}");
}

#[test]
fn another_sites_protection_server_is_refused() {
    let svm = Svm::start(&Site::new());
    let agent = Agent::new(
        &Site::new(),
        &format!("[scan]\nsvm_wait_s = 2\n{}", settings(&svm)),
    );
    let output = agent.output(&["scan", "/etc/hostname"]);
    assert_eq!(output.status.code(), Some(3));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("certificate is not accepted"), "{said}");
    assert_eq!(svm.requests(), 0);
}

#[test]
fn an_agent_without_identity_says_what_helps() {
    let dir = tempfile::tempdir().unwrap();
    let run = |args: &[&str]| {
        std::process::Command::new(support::agent::BINARY)
            .arg("--site")
            .arg(dir.path())
            .args(args)
            .output()
            .unwrap()
    };
    for args in [&["scan", "/etc/hostname"][..], &["run"]] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(3));
        assert!(String::from_utf8_lossy(&output.stderr).contains("palisade-agent enrol TOKEN"));
    }
    let output = run(&["enrol", "nonsense"]);
    assert_eq!(output.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&output.stderr).contains("not a join token"));
    let output = run(&["status"]);
    assert_eq!(output.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&output.stderr).contains("the agent is not running"));
    assert_eq!(run(&["check-config"]).status.code(), Some(0));
}
