//! Killed parts and bad input: nothing hangs, nothing is lost, nothing unscanned is
//! called clean, and each message names the object and the remedy.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a panic fails the test"
)]

mod common;

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use common::machine::run;
use common::{SCAN, TestSite};
use nix::sys::stat::Mode;
use palisade_tests::command;
use palisade_tests::definitions::Marker;
use palisade_tests::skip;
use serde_json::Value;

#[test]
fn a_scan_survives_the_death_of_its_scanserver() {
    let marker = Marker::random();
    let test = TestSite::start(&[("m.ndb", marker.ndb())]);
    let folder = test.folder().join("many");
    fs::create_dir(&folder).unwrap();
    let total = 3000;
    let mut bad = 0;
    for index in 0..total {
        // Distinct contents, and a marker in every hundredth.
        let mut bytes = format!("file {index} ").repeat(2000).into_bytes();
        if index % 100 == 7 {
            bytes.extend_from_slice(&marker.bytes);
            bad += 1;
        }
        fs::write(folder.join(format!("{index:05}")), bytes).unwrap();
    }
    let mut scan = Command::new(command::program("palisade-agent").unwrap());
    scan.arg("--site")
        .arg(test.site.dir())
        .args(["scan", "-o", "json"])
        .arg(&folder);
    let scan = scan
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    for _ in 0..2 {
        std::thread::sleep(Duration::from_millis(700));
        test.kill_svm();
        std::thread::sleep(Duration::from_millis(700));
        test.site.start_part("scanserver").unwrap();
    }
    let finished = scan.wait_with_output().unwrap();
    let stderr = String::from_utf8_lossy(&finished.stderr);
    let result: Value = serde_json::from_slice(&finished.stdout)
        .unwrap_or_else(|error| panic!("{error}: {stderr}"));
    assert_eq!(finished.status.code(), Some(1), "{result:#}\n{stderr}");
    assert_eq!(result["malware"], bad, "{result:#}");
    assert_eq!(result["clean"], total - bad, "{result:#}");
    assert_eq!(result["not_scanned"], 0);
    assert_eq!(result["errors"], 0);
}

#[test]
fn odd_files_are_each_told_apart() {
    let marker = Marker::random();
    let test = TestSite::start(&[("m.ndb", marker.ndb())]);
    let folder = test.folder().join("odd");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("empty"), b"").unwrap();
    fs::write(
        folder.join(OsStr::from_bytes(b"not-utf8-\xff\xfe")),
        &marker.bytes,
    )
    .unwrap();
    let _socket = UnixListener::bind(folder.join("socket")).unwrap();
    nix::unistd::mkfifo(&folder.join("fifo"), Mode::S_IRWXU).unwrap();
    std::os::unix::fs::symlink(&folder, folder.join("loop")).unwrap();
    std::os::unix::fs::symlink("/dev/zero", folder.join("device")).unwrap();
    std::os::unix::fs::symlink("nowhere", folder.join("dangling")).unwrap();
    let sparse = File::create(folder.join("sparse")).unwrap();
    sparse.set_len(5 << 30).unwrap();
    let (code, result) = test.scan(&[&folder]);
    assert_eq!(code, 1, "{result:#}");
    assert_eq!(result["malware"], 1);
    assert_eq!(result["clean"], 1, "the empty file");
    assert_eq!(result["not_scanned"], 1, "the sparse file: {result:#}");
    assert_eq!(result["errors"], 0, "{result:#}");
    let findings = result["findings"].as_array().unwrap();
    let path = |verdict: &str| {
        let finding = findings
            .iter()
            .find(|finding| finding["verdict"] == verdict);
        finding
            .unwrap_or_else(|| panic!("no {verdict}: {result:#}"))
            .clone()
    };
    assert!(
        path("malware")["path"]
            .as_str()
            .unwrap()
            .ends_with(r"not-utf8-\xff\xfe")
    );
    assert_eq!(path("not_scanned")["reason"], "too_large");

    let (code, result) = test.scan(&[&folder.join("sparse")]);
    assert_eq!(code, 4, "{result:#}");
}

#[test]
fn what_cannot_be_read_is_an_error_and_never_clean() {
    if !skip::is_root("what_cannot_be_read_is_an_error_and_never_clean") {
        return;
    }
    let test = TestSite::start(&[("m.ndb", Marker::random().ndb())]);
    let missing = test.folder().join("is-not-there");
    let scan = test
        .site
        .run("palisade-agent", &["scan", missing.to_str().unwrap()], SCAN)
        .unwrap();
    assert_eq!(scan.code, Some(3), "{}", scan.stderr);
    assert!(scan.stderr.contains("is-not-there"), "{}", scan.stderr);

    // Root reads everything, so an unreadable file needs another user.
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let secret = folder.path().join("secret");
    fs::write(&secret, b"private").unwrap();
    fs::set_permissions(&secret, fs::Permissions::from_mode(0o600)).unwrap();
    let agent = folder.path().join("palisade-agent");
    fs::copy(command::program("palisade-agent").unwrap(), &agent).unwrap();
    let settings = test.other_agent("unprivileged");
    let state = settings.parent().unwrap();
    for path in [test.folder(), test.site.dir()] {
        fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let chown = Command::new("chown")
        .args(["-R", "65534:65534"])
        .arg(state)
        .status()
        .unwrap();
    assert!(chown.success());
    let mut scan = Command::new("setpriv");
    scan.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]);
    scan.arg(&agent)
        .arg("--config")
        .arg(&settings)
        .args(["scan", "-o", "json"])
        .arg(&secret);
    scan.current_dir(folder.path());
    let scan = command::finish(scan, SCAN).unwrap();
    let result = scan.json().unwrap();
    assert_eq!(scan.code, Some(3), "{result:#}\n{}", scan.stderr);
    assert_eq!(
        (&result["errors"], &result["clean"]),
        (&1.into(), &0.into()),
        "{result:#}"
    );
    assert!(
        result["findings"][0]["path"]
            .as_str()
            .unwrap()
            .ends_with("secret"),
        "{result:#}"
    );
}

#[test]
fn a_file_that_changes_while_it_is_read_is_never_clean() {
    let test = TestSite::start(&[("m.ndb", Marker::random().ndb())]);
    let path = test.file("growing", &vec![1; 32 << 20]);
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let writer = std::thread::spawn({
        let (stop, path) = (stop.clone(), path.clone());
        move || {
            let mut length = 32 << 20;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                length = if length == 32 << 20 {
                    1 << 20
                } else {
                    32 << 20
                };
                File::options()
                    .write(true)
                    .open(&path)
                    .unwrap()
                    .set_len(length)
                    .unwrap();
            }
        }
    });
    let (code, result) = test.scan(&[&path]);
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    writer.join().unwrap();
    // A reader may be lucky and see one whole state; what it may not do is call a
    // mixture clean. Either it was one state, or it says that it changed.
    match code {
        0 => assert_eq!(result["clean"], 1),
        4 => assert_eq!(result["findings"][0]["reason"], "changed", "{result:#}"),
        other => panic!("{other}: {result:#}"),
    }
}

#[test]
fn bad_tokens_say_what_helps() {
    let test = TestSite::start(&[("m.ndb", Marker::random().ndb())]);
    let settings = test.file(
        "new/agent.toml",
        format!(
            "state_dir = '{0}/new/var'\nrun_dir = '{0}/new/run'\n",
            test.folder().display()
        )
        .as_bytes(),
    );
    let refused = |token: &str, says: &[&str]| {
        let finished = test.agent(&settings, &["enrol", token]);
        assert_eq!(finished.code, Some(3), "{}", finished.stderr);
        for text in says {
            assert!(
                finished.stderr.contains(text),
                "{text:?} is not in: {}",
                finished.stderr
            );
        }
    };
    refused("nonsense", &["not a join token", "palisade token create"]);
    let svm_token = test.site.join_token("svm").unwrap();
    refused(&svm_token, &["Protection Server", "--component agent"]);

    let good = test.site.join_token("agent").unwrap();
    let mut token: palisade_protocol::token::JoinToken = good.parse().unwrap();
    token.secret[0] ^= 1;
    refused(&token.to_text().unwrap(), &["palisade token create"]);
    token = good.parse().unwrap();
    token.root_sha256[0] ^= 1;
    refused(&token.to_text().unwrap(), &["join token"]);
    token = good.parse().unwrap();
    token.expires_ms = 1;
    refused(
        &token.to_text().unwrap(),
        &["expired", "palisade token create"],
    );

    test.agent(&settings, &["enrol", &good])
        .expect(&[0])
        .unwrap();
    let again = test.file(
        "again/agent.toml",
        format!(
            "state_dir = '{0}/again/var'\nrun_dir = '{0}/again/run'\n",
            test.folder().display()
        )
        .as_bytes(),
    );
    let spent = test.agent(&again, &["enrol", &good]);
    assert_eq!(spent.code, Some(3), "{}", spent.stderr);
    assert!(spent.stderr.contains("used"), "{}", spent.stderr);
}

#[test]
fn bad_definitions_name_file_and_line_and_leave_the_last_good_set() {
    let marker = Marker::random();
    let test = TestSite::start(&[("m.ndb", marker.ndb())]);
    let sample = test.file("sample", &marker.bytes);
    assert_eq!(test.scan(&[&sample]).0, 1);
    let bad = [
        (
            "bad.yar",
            "rule fine { condition: false }\nrule bad { condition: nonsense }\n",
            ["bad.yar", "2"],
        ),
        (
            "bad.ndb",
            "Good:0:*:41424344\nBad:0:*:zz-not-hex\n",
            ["bad.ndb", "2"],
        ),
    ];
    let log = || fs::read_to_string(test.site.log("scanserver")).unwrap();
    for (name, content, says) in bad {
        let file = test.definitions().join(name);
        fs::write(&file, content).unwrap();
        let before = log().len();
        test.site
            .process("scanserver")
            .unwrap()
            .unwrap()
            .signal(nix::sys::signal::Signal::SIGHUP)
            .unwrap();
        command::wait_for("the refusal", Duration::from_secs(60), || {
            let log = log();
            let news = &log[before..];
            let line = news
                .lines()
                .find(|line| says.iter().all(|text| line.contains(text)));
            anyhow::ensure!(line.is_some(), "nothing of {says:?} in {news}");
            Ok(())
        })
        .unwrap();
        let fresh = test.file(name, &[marker.bytes.as_slice(), name.as_bytes()].concat());
        assert_eq!(
            test.scan(&[&fresh]).0,
            1,
            "the last good set must stay in force"
        );
        // Also over a restart.
        test.kill_svm();
        test.site.start_part("scanserver").unwrap();
        let fresh = test.file(
            "again",
            &[marker.bytes.as_slice(), b"2", name.as_bytes()].concat(),
        );
        assert_eq!(test.scan(&[&fresh]).0, 1);
        fs::remove_file(&file).unwrap();
    }
}

/// A small disk, for one folder; gone with it.
struct Disk(PathBuf);

impl Disk {
    fn mount(at: &Path, size: &str) -> Self {
        fs::create_dir_all(at).unwrap();
        let options = format!("size={size}");
        let at_text = at.to_str().unwrap();
        run("mount", &["-t", "tmpfs", "-o", &options, "none", at_text]);
        Self(at.to_owned())
    }

    /// Takes all the room that is left.
    fn fill(&self) -> PathBuf {
        let filler = self.0.join("filler");
        let mut file = File::create(&filler).unwrap();
        while file.write_all(&[7; 4096]).is_ok() {}
        filler
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let _ = nix::mount::umount2(&self.0, nix::mount::MntFlags::MNT_DETACH);
    }
}

/// The Protection Server's own disk is full: new definitions are refused with what helps,
/// those in force go on, what is scanned is right, also over a kill, and all is well once
/// there is room.
#[test]
fn a_full_disk_of_a_protection_server_makes_no_verdict_wrong() {
    if !skip::is_root("a_full_disk_of_a_protection_server_makes_no_verdict_wrong") {
        return;
    }
    let [old, new] = [Marker::random(), Marker::random()];
    let test = TestSite::prepare(&[("rules.yar", old.yara())]);
    let state = test.site.dir().join("var/scanserver");
    let disk = Disk::mount(&state, "64m");
    test.site.start().unwrap();
    let scan = |step: &str, marker: &Marker| {
        let bytes = [step.as_bytes(), b" ", &marker.bytes].concat();
        let sample = test.file(&format!("{step}-{}", marker.name), &bytes);
        let (code, result) = test.scan(&[&sample]);
        assert_eq!(result["not_scanned"], 0, "{result:#}");
        code == 1
    };
    // Clean now, and remembered so on that disk.
    assert!(scan("first", &old) && !scan("first", &new));
    let filler = disk.fill();
    fs::write(
        test.definitions().join("rules.yar"),
        new.yara() + &old.yara(),
    )
    .unwrap();
    let svms = test.site.console(&["svm", "list"]).unwrap();
    let svm = svms[0]["name"].as_str().unwrap();
    let refresh = || test.site.console(&["svm", "definitions", svm, "refresh"]);
    let refused = format!("{:#}", refresh().unwrap_err());
    for said in ["No space left", "make room", "definitions.keep"] {
        assert!(refused.contains(said), "{said}: {refused}");
    }
    assert!(scan("full", &old) && !scan("full", &new), "the old ones");
    test.kill_svm();
    test.site.start_part("scanserver").unwrap();
    assert!(scan("again", &old) && !scan("again", &new));
    assert!(scan("first", &old) && !scan("first", &new));

    // The control: with room, the same definitions are taken.
    fs::remove_file(filler).unwrap();
    let taken = command::wait_for("the new definitions", Duration::from_secs(60), || {
        let status = refresh()?;
        anyhow::ensure!(status["active"].as_u64() > Some(1), "{status}");
        Ok(status)
    });
    taken.unwrap();
    assert!(scan("room", &old) && scan("room", &new));
    assert!(
        scan("first", &old) && scan("first", &new),
        "not as remembered"
    );
    test.kill_svm();
    test.site.start_part("scanserver").unwrap();
    assert!(scan("first", &old) && scan("first", &new));
    test.site.stop().unwrap();
}

#[test]
fn missing_definitions_are_named() {
    let test = TestSite::prepare(&[]);
    test.site.start_part("server").unwrap();
    let settings = test.file(
        "scanserver.toml",
        format!(
            "listen = '127.0.0.1:0'\nstate_dir = '{0}/svm'\nrun_dir = '{0}/svm-run'\n[definitions]\nsource = '{0}/not-there'\n",
            test.folder().display()
        )
        .as_bytes(),
    );
    let token = test.site.join_token("svm").unwrap();
    let run = |arguments: &[&str]| {
        let mut all = vec!["--config", settings.to_str().unwrap()];
        all.extend(arguments);
        test.site
            .run("palisade-scanserver", &all, Duration::from_secs(60))
            .unwrap()
    };
    run(&["enrol", &token]).expect(&[0]).unwrap();
    let finished = run(&["run"]);
    assert_eq!(finished.code, Some(3), "{}", finished.stderr);
    assert!(finished.stderr.contains("not-there"), "{}", finished.stderr);
}

#[test]
fn an_unknown_svm_is_not_trusted() {
    let one = TestSite::start(&[("m.ndb", Marker::random().ndb())]);
    let other = TestSite::start(&[("m.ndb", Marker::random().ndb())]);
    // An agent of the one site that is told to use the other's Protection Server.
    let text = fs::read_to_string(one.other_agent("stray")).unwrap();
    let file = one.file("a-file", b"anything");
    let scan = |by: &TestSite| {
        let settings = one.file(
            "stray/static.toml",
            format!(
                "{text}[scan]\nsvm_wait_s = 3\n[[svm]]\naddress = '{}'\n",
                by.site.scan_address().unwrap()
            )
            .as_bytes(),
        );
        one.agent(&settings, &["scan", "-o", "json", file.to_str().unwrap()])
    };
    let strange = scan(&other);
    assert_eq!(strange.code, Some(3), "{}", strange.stderr);
    assert_eq!(strange.json().unwrap()["clean"], 0);
    // The control: by its own site's, the same settings have it scanned.
    let own = scan(&one);
    assert_eq!(own.code, Some(0), "{}", own.stderr);
    assert_eq!(own.json().unwrap()["clean"], 1);
}
