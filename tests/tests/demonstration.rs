//! `scripts/up` as a newcomer types it, and what stays when it is cut off.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a panic fails the test"
)]

mod common;

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use common::TestSite;
use palisade_tests::command::{self, Finished};
use palisade_tests::definitions::{Marker, eicar};
use palisade_tests::skip;
use serde_json::Value;

const UP: Duration = Duration::from_secs(600);

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

fn script(name: &str, arguments: &[&str]) -> Finished {
    let mut command = Command::new(repository().join("scripts").join(name));
    command.args(arguments);
    // What cargo tells a test of its own package: a build below would take it for a
    // change, and build again all that looks at it.
    for (variable, _) in std::env::vars_os() {
        let name = variable.to_string_lossy();
        let of_cargo =
            name.starts_with("CARGO_") && name != "CARGO_HOME" && name != "CARGO_TARGET_DIR";
        if of_cargo || name.starts_with("NEXTEST") || name == "LD_LIBRARY_PATH" {
            command.env_remove(&variable);
        }
    }
    command::finish(command, UP).unwrap()
}

/// What the scripts run once they have built.
fn site(arguments: &[&str]) -> Finished {
    command::run(&command::program("palisade-site").unwrap(), arguments, UP).unwrap()
}

fn steps(finished: &Finished) -> Vec<Value> {
    let text = String::from_utf8_lossy(&finished.stdout);
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

fn count(steps: &[Value], step: &str) -> usize {
    steps.iter().filter(|line| line["step"] == step).count()
}

/// Processes whose command line names this folder.
fn processes_of(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains("palisade-") && line.contains(folder.to_str().unwrap()) {
            found.push(line);
        }
    }
    found
}

#[test]
fn up_once_blocks_malware_and_leaves_nothing_running() {
    if !skip::is_root("up_once_blocks_malware_and_leaves_nothing_running") {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("site");
    let up = script(
        "up",
        &["--once", "--json", "--state", state.to_str().unwrap()],
    );
    let steps = steps(&up);
    assert_eq!(up.code, Some(0), "{steps:#?}\n{}", up.stderr);
    assert_eq!(count(&steps, "blocked"), 3, "{steps:#?}");
    assert_eq!(count(&steps, "clean"), 1);
    assert_eq!(count(&steps, "done"), 1);
    let blocked: Vec<&Value> = steps
        .iter()
        .filter(|line| line["step"] == "blocked")
        .collect();
    let engines: Vec<&str> = blocked
        .iter()
        .map(|line| line["facts"]["engine"].as_str().unwrap())
        .collect();
    assert!(
        engines.contains(&"libclamav") && engines.contains(&"yara-x"),
        "{engines:?}"
    );
    assert_eq!(processes_of(&state), [""; 0]);
}

#[test]
fn up_resumes_and_down_stops_exactly_its_own_site() {
    let folder = tempfile::tempdir().unwrap();
    let other = TestSite::start(&[("e.ndb", Marker::random().ndb())]);
    let state = folder.path().join("site");
    let state = state.to_str().unwrap();
    let pids = |finished: &Finished| -> Vec<i64> {
        let started: Vec<Value> = steps(finished)
            .into_iter()
            .filter(|line| line["step"] == "started")
            .collect();
        started
            .iter()
            .map(|line| line["facts"]["pid"].as_i64().unwrap())
            .collect()
    };
    let first = site(&["up", "--json", "--state", state]);
    assert_eq!(
        first.code,
        Some(0),
        "{}\n{:#?}",
        first.stderr,
        steps(&first)
    );
    let second = site(&["up", "--json", "--state", state]);
    assert_eq!(
        second.code,
        Some(0),
        "{}\n{:#?}",
        second.stderr,
        steps(&second)
    );
    assert_eq!(pids(&first), pids(&second));
    let running = steps(&second).pop().unwrap();

    // Other definitions on the same folder: only the Protection Server starts anew.
    let marker = Marker::random();
    let given = folder.path().join("given");
    fs::create_dir(&given).unwrap();
    fs::write(given.join("m.ndb"), marker.ndb()).unwrap();
    let third = site(&[
        "up",
        "--json",
        "--state",
        state,
        "--definitions",
        given.to_str().unwrap(),
    ]);
    assert_eq!(
        third.code,
        Some(0),
        "{}\n{:#?}",
        third.stderr,
        steps(&third)
    );
    assert_eq!(
        count(&steps(&third), "definitions"),
        1,
        "EICAR had to be added"
    );
    let changed: Vec<bool> = pids(&second)
        .iter()
        .zip(pids(&third))
        .map(|(a, b)| *a != b)
        .collect();
    assert_eq!(changed, [false, true, false]);
    let sample = folder.path().join("sample");
    fs::write(&sample, &marker.bytes).unwrap();
    let site_of = palisade_tests::site::Site::existing(Path::new(state)).unwrap();
    assert_eq!(site_of.scan(&[&sample], UP).unwrap().0, 1);

    assert_eq!(running["step"], "running");
    let token = fs::metadata(running["facts"]["token_file"].as_str().unwrap()).unwrap();
    assert_eq!(token.permissions().mode() & 0o777, 0o600);
    let down = site(&["down", "--json", "--state", state]);
    assert_eq!(down.code, Some(0), "{}", down.stderr);
    assert_eq!(processes_of(Path::new(state)), [""; 0]);
    for part in palisade_tests::site::PARTS {
        assert!(
            other.site.process(part).unwrap().is_some(),
            "the other site's {part} was ended"
        );
    }
    let nothing = site(&["down", "--state", state]);
    assert!(String::from_utf8_lossy(&nothing.stdout).contains("Nothing of this site was running"));
}

#[test]
fn without_privilege_up_says_so_and_finds_on_demand() {
    if !skip::is_root("without_privilege_up_says_so_and_finds_on_demand") {
        return;
    }
    // The programs are copied, since nobody may not read a developer's folders.
    let folder = tempfile::tempdir().unwrap();
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let programs = folder.path().join("bin");
    fs::create_dir(&programs).unwrap();
    fs::set_permissions(&programs, fs::Permissions::from_mode(0o755)).unwrap();
    let names = [
        "palisade",
        "palisade-site",
        "palisade-server",
        "palisade-scanserver",
    ];
    for name in names.into_iter().chain([
        "palisade-agent",
        "palisade-engine-clamav",
        "palisade-engine-yara",
    ]) {
        fs::copy(command::program(name).unwrap(), programs.join(name)).unwrap();
    }
    let mut up = Command::new("setpriv");
    up.args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"]);
    up.arg(programs.join("palisade-site"))
        .args(["up", "--once", "--json", "--state"]);
    up.arg(folder.path().join("site"))
        .env("HOME", folder.path())
        .current_dir(folder.path());
    let up = command::finish(up, UP).unwrap();
    let steps = steps(&up);
    assert_eq!(up.code, Some(0), "{steps:#?}\n{}", up.stderr);
    assert_eq!(count(&steps, "found"), 3, "{steps:#?}");
    assert_eq!(count(&steps, "blocked"), 0);
    let off = steps
        .iter()
        .find(|line| line["step"] == "on_access")
        .unwrap();
    let reason = off["facts"]["reason"].as_str().unwrap();
    assert!(
        reason.contains("root") || reason.contains("CAP_SYS_ADMIN"),
        "{reason}"
    );
}

#[test]
fn with_the_svm_cut_off_no_malware_verdict_is_possible() {
    if !skip::is_root("with_the_svm_cut_off_no_malware_verdict_is_possible") {
        return;
    }
    let marker = Marker::random();
    let test = TestSite::start(&[("m.ndb", marker.ndb())]);
    let sample = |name: &str| {
        let path = test.protected.join(name);
        fs::write(&path, [marker.bytes.as_slice(), name.as_bytes()].concat()).unwrap();
        path
    };
    command::wait_for("blocking", Duration::from_secs(30), || {
        match fs::read(sample("control")) {
            Err(error) if error.kind() == ErrorKind::PermissionDenied => Ok(()),
            other => anyhow::bail!("{other:?}"),
        }
    })
    .unwrap();

    test.site
        .process("scanserver")
        .unwrap()
        .unwrap()
        .stop()
        .unwrap();
    // The default table lets opens through; the point is that nothing calls it malware.
    let path = sample("cut-off");
    fs::read(&path).expect("the failure table's default is allow");
    let settings = test.site.dir().join("etc/agent.toml");
    let text = fs::read_to_string(&settings).unwrap();
    let brief = test.file(
        "brief.toml",
        format!("{text}\n[scan]\nsvm_wait_s = 2\n").as_bytes(),
    );
    let scan = test.agent(&brief, &["scan", "-o", "json", path.to_str().unwrap()]);
    assert_eq!(scan.code, Some(3), "{}", scan.stderr);
    let result = scan.json().unwrap();
    assert_eq!(
        (&result["malware"], &result["clean"]),
        (&0.into(), &0.into()),
        "{result}"
    );
    let named = |list: &Value| {
        let all = list.as_array().unwrap();
        all.iter()
            .any(|detection| detection["path"] == path.to_str().unwrap())
    };
    assert!(!named(&test.site.console(&["detection", "list"]).unwrap()));

    // And with it back, the same file is blocked.
    test.site.start_part("scanserver").unwrap();
    command::wait_for("blocking", Duration::from_secs(60), || {
        match fs::read(&path) {
            Err(error) if error.kind() == ErrorKind::PermissionDenied => Ok(()),
            other => anyhow::bail!("{other:?}"),
        }
    })
    .unwrap();
}

#[test]
fn a_script_and_a_program_with_a_marker_are_not_executed() {
    if !skip::is_root("a_script_and_a_program_with_a_marker_are_not_executed") {
        return;
    }
    let marker = Marker::random();
    let test = TestSite::start(&[("m.yar", marker.yara()), ("e.ndb", Marker::random().ndb())]);
    let program = test.protected.join("program");
    let make = |tail: &[u8]| {
        // Anew each time: opening malware is refused for writing, too.
        let _ = fs::remove_file(&program);
        let mut bytes = fs::read("/bin/true").unwrap();
        bytes.extend_from_slice(tail);
        fs::write(&program, bytes).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    };
    make(b"harmless");
    assert!(Command::new(&program).status().unwrap().success());
    make(&marker.bytes);
    command::wait_for(
        "blocking",
        Duration::from_secs(30),
        || match Command::new(&program).status() {
            Err(error) if error.kind() == ErrorKind::PermissionDenied => Ok(()),
            other => anyhow::bail!("{other:?}"),
        },
    )
    .unwrap();
    make(b"harmless again");
    assert!(
        Command::new(&program).status().unwrap().success(),
        "a new file is asked anew"
    );
}

#[test]
fn the_console_speaks_the_promised_json() {
    let marker = Marker::random();
    let test = TestSite::start(&[("m.ndb", marker.ndb())]);
    let bad = test.file("bad\x1b name", &marker.bytes);
    let (code, result) = test.scan(&[&bad]);
    assert_eq!(code, 1);
    let keys = |value: &Value| -> Vec<String> {
        let mut keys: Vec<String> = value.as_object().unwrap().keys().cloned().collect();
        keys.sort();
        keys
    };
    let mut wanted = [
        "scanned",
        "clean",
        "malware",
        "suspicious",
        "not_scanned",
        "errors",
        "packaged",
        "bytes",
        "sent_bytes",
        "cache_hits",
        "local_hits",
        "shared_hits",
        "elapsed_ms",
        "findings",
    ];
    wanted.sort_unstable();
    assert_eq!(keys(&result), wanted);
    let finding = &result["findings"][0];
    assert_eq!(
        keys(finding),
        [
            "blake3", "engine", "engines", "member", "metadata", "name", "path", "reason",
            "sha256", "verdict"
        ]
    );
    assert_eq!(finding["name"], format!("{}.UNOFFICIAL", marker.name));
    assert_eq!(finding["blake3"], blake3::hash(&marker.bytes).to_string());
    let sha256 = <sha2::Sha256 as sha2::Digest>::digest(&marker.bytes);
    assert_eq!(finding["sha256"], hex::encode(sha256));

    let svms = test.site.console(&["svm", "list"]).unwrap();
    assert_eq!(
        keys(&svms[0]),
        [
            "addresses",
            "agents",
            "definitions",
            "id",
            "load",
            "name",
            "path",
            "state"
        ]
    );
    let agents = test.site.console(&["agent", "list"]).unwrap();
    assert_eq!(
        keys(&agents[0]),
        ["domain", "id", "last_seen", "name", "state", "svm"]
    );
    let detections = command::wait_for("the detection", Duration::from_secs(60), || {
        let list = test.site.console(&["detection", "list"])?;
        anyhow::ensure!(list[0].is_object(), "nothing yet");
        Ok(list)
    })
    .unwrap();
    assert_eq!(
        keys(&detections[0]),
        [
            "action",
            "agent",
            "container",
            "engine",
            "id",
            "member",
            "name",
            "path",
            "sha256",
            "time"
        ]
    );
    assert!(
        detections[0]["path"]
            .as_str()
            .unwrap()
            .ends_with(r"bad\x1b name"),
        "{detections}"
    );
    test.site.console(&["inventory", "list"]).unwrap();
}

#[test]
fn eicar_is_not_in_our_own_programs() {
    let whole = eicar();
    for program in ["palisade-agent", "palisade-site", "palisade-scanserver"] {
        let bytes = fs::read(command::program(program).unwrap()).unwrap();
        let found = bytes.windows(whole.len()).any(|window| window == whole);
        assert!(!found, "{program} would be blocked by itself");
    }
}
