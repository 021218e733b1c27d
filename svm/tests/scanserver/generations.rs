//! Orders about definitions: import, activate, rollback, status.

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use palisade_protocol::verdict::VerdictKind;
use rand::Rng;
use serde_json::{Value, json};

use crate::client::Client;
use crate::site::{Daemon, Site, is_gone, marker, ndb, rule, wait_until};

/// A content with a marker, that no cache knows.
fn with(marker: &str) -> Vec<u8> {
    format!("{} {marker}", crate::site::marker()).into_bytes()
}

/// Number and state of each generation.
fn list(site: &Site) -> Vec<(u64, String)> {
    let rows = site.definitions_json(&["list"]);
    let row = |row: &Value| {
        (
            row["generation"].as_u64().unwrap(),
            row["state"].as_str().unwrap().to_owned(),
        )
    };
    rows.as_array().unwrap().iter().map(row).collect()
}

fn states(expected: &[(u64, &str)]) -> Vec<(u64, String)> {
    let state = |(number, state): &(u64, &str)| (*number, (*state).to_owned());
    expected.iter().map(state).collect()
}

async fn finds(daemon: &Daemon, site: &Site, marker: &str) -> bool {
    let client = Client::connect(daemon, &site.ca.agent("default")).await;
    client.kind(&with(marker)).await == VerdictKind::Malware
}

#[tokio::test(flavor = "multi_thread")]
async fn generations_are_imported_activated_and_rolled_back_while_it_serves() {
    let [first, second, third] = [marker(), marker(), marker()];
    let site = Site::new(&[("rules.yar", &rule("First", &first))]);
    let daemon = site.start();
    assert_eq!(list(&site), states(&[(1, "active")]));

    let dir = site.directory("second", &[("rules.yar", &rule("Second", &second))]);
    let said = site.definitions_json(&["import", &dir]);
    assert_eq!(
        (&said["running"], &said["active"]),
        (&json!(true), &json!(2))
    );
    assert_eq!(said["generations"][1]["origin"], json!(dir));
    assert!(finds(&daemon, &site, &second).await);
    assert!(!finds(&daemon, &site, &first).await);

    // Kept only, and nothing of it is in force.
    let dir = site.directory("third", &[("rules.yar", &rule("Third", &third))]);
    site.definitions_json(&["import", "--stage-only", &dir]);
    assert_eq!(
        list(&site),
        states(&[(1, "previous"), (2, "active"), (3, "kept")])
    );
    assert!(!finds(&daemon, &site, &third).await);
    site.definitions_json(&["activate", "3"]);
    assert!(finds(&daemon, &site, &third).await);

    // The same bytes are no second generation.
    site.definitions_json(&["import", &dir]);
    assert_eq!(
        list(&site),
        states(&[(1, "kept"), (2, "previous"), (3, "active")])
    );

    site.definitions_json(&["rollback"]);
    assert_eq!(
        list(&site),
        states(&[(1, "previous"), (2, "active"), (3, "refused")])
    );
    assert!(finds(&daemon, &site, &second).await);
    let status = site.definitions_json(&["status"]);
    assert_eq!(
        (&status["last"]["what"], &status["last"]["failure"]),
        (
            &json!("rolling back: generation 2 is in force"),
            &Value::Null
        )
    );
    // The source holds what was in force before the imports: nothing new.
    site.definitions_json(&["refresh"]);
    assert_eq!(site.definitions_json(&["status"])["active"], json!(2));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_rolled_back_is_not_taken_from_the_source_again() {
    let [good, bad, better] = [marker(), marker(), marker()];
    let mut site = Site::new(&[("rules.yar", &rule("Good", &good))]);
    site.definitions = "poll_s = 1\nclean_corpus = []\n".to_owned();
    let mut daemon = site.start();
    site.define("rules.yar", &rule("Bad", &bad));
    daemon.log.wait_for("definitions are in force generation=2");
    site.definitions_json(&["rollback"]);
    assert!(finds(&daemon, &site, &good).await);

    // Whatever is tried short of other definitions: looks by time, by order, by a signal,
    // by another file with the same bytes, by a restart.
    site.definitions_json(&["refresh"]);
    site.define("rules.yar", &rule("Bad", &bad));
    let lines = daemon.log.lines().len();
    daemon.signal(Signal::SIGHUP);
    daemon.log.wait_for_after(lines, "SIGHUP");
    site.definitions_json(&["refresh"]);
    daemon.signal(Signal::SIGTERM);
    daemon.wait();
    let daemon = site.start();
    assert!(finds(&daemon, &site, &good).await);
    assert!(!finds(&daemon, &site, &bad).await);
    assert_eq!(list(&site)[1], (2, "refused".to_owned()));

    // By its number it is; and a source with others is taken over.
    site.definitions_json(&["activate", "2"]);
    assert!(finds(&daemon, &site, &bad).await);
    site.definitions_json(&["rollback"]);
    let lines = daemon.log.lines().len();
    site.define("rules.yar", &rule("Better", &better));
    daemon.log.wait_for_after(lines, "definitions are in force");
    assert!(finds(&daemon, &site, &better).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_outlives_a_restart() {
    let [source, imported] = [marker(), marker()];
    let site = Site::new(&[("rules.yar", &rule("Source", &source))]);
    let daemon = site.start();
    let dir = site.directory("other", &[("rules.yar", &rule("Other", &imported))]);
    site.definitions_json(&["import", &dir]);
    drop(daemon);
    let daemon = site.start();
    assert!(finds(&daemon, &site, &imported).await);
    assert!(!finds(&daemon, &site, &source).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_daemon_the_same_steps_work() {
    let [source, imported] = [marker(), marker()];
    let site = Site::new(&[("rules.yar", &rule("Source", &source))]);
    let status = site.definitions_json(&["status"]);
    assert_eq!(
        (&status["running"], &status["active"]),
        (&json!(false), &Value::Null)
    );
    let dir = site.directory("other", &[("a.ndb", &ndb("Other", &imported))]);
    assert!(site.definitions_fail(&["rollback"]).contains("import DIR"));
    site.definitions_json(&["refresh"]);
    site.definitions_json(&["import", &dir]);
    assert_eq!(list(&site), states(&[(1, "previous"), (2, "active")]));
    let daemon = site.start();
    assert!(finds(&daemon, &site, &imported).await);
    assert!(site.definitions(&["list"]).1.contains("libclamav 2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_name_what_is_wrong_and_leave_what_is_in_force() {
    let marker = marker();
    let site = Site::new(&[("rules.yar", &rule("Good", &marker))]);
    let daemon = site.start();
    let bad = site.directory(
        "bad",
        &[(
            "x.yar",
            "rule fine { condition: false }\nrule x {\n  condition: nonsense\n}\n",
        )],
    );
    let said = site.definitions_fail(&["import", &bad]);
    assert!(said.contains(&format!("{bad}/x.yar:3")), "{said}");
    let bad = site.directory(
        "worse",
        &[("x.ndb", &(ndb("Fine", "other text") + "nonsense\n"))],
    );
    let said = site.definitions_fail(&["import", "--stage-only", &bad]);
    assert!(said.contains(&format!("{bad}/x.ndb:2")), "{said}");
    let empty = site.directory("empty", &[("README", "nothing")]);
    assert!(site.definitions_fail(&["import", &empty]).contains(&empty));
    let said = site.definitions_fail(&["import", "/nowhere/at/all"]);
    assert!(said.contains("/nowhere/at/all"), "{said}");
    let said = site.definitions_fail(&["activate", "7"]);
    assert!(
        said.contains("generation 7 is not kept; there are 1"),
        "{said}"
    );
    assert!(site.definitions_fail(&["rollback"]).contains("import DIR"));

    // A source that was found to be bad is said so in the status, until it is good.
    site.define("more.yar", "rule more {");
    assert!(site.definitions_fail(&["refresh"]).contains("more.yar:1"));
    let status = site.definitions_json(&["status"]);
    let problem = status["problem"].as_str().unwrap();
    assert!(problem.contains("more.yar:1"), "{problem}");
    site.define("more.yar", &rule("More", "some other text entirely"));
    site.definitions_json(&["refresh"]);
    assert_eq!(site.definitions_json(&["status"])["problem"], Value::Null);

    assert_eq!(site.definitions_json(&["status"])["active"], json!(6));
    assert!(finds(&daemon, &site, &marker).await);
    let folder = site.state().join("definitions");
    let left = std::fs::read_dir(folder).unwrap().flatten();
    let left: Vec<String> = left
        .map(|entry| entry.file_name().into_string().unwrap())
        .filter(|name| name.starts_with("new-"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kept_generation_that_was_changed_is_not_activated() {
    let [first, second] = [marker(), marker()];
    let site = Site::new(&[("rules.yar", &rule("First", &first))]);
    let daemon = site.start();
    site.define("rules.yar", &rule("Second", &second));
    site.definitions_json(&["refresh"]);
    let kept = site.state().join("definitions/1/yara/rules.yar");
    std::fs::remove_file(&kept).unwrap();
    std::fs::write(&kept, rule("Planted", "something else")).unwrap();
    let said = site.definitions_fail(&["rollback"]);
    assert!(said.contains("definitions/1/yara is damaged"), "{said}");
    assert!(finds(&daemon, &site, &second).await);
    drop(daemon);
    let daemon = site.start();
    assert!(finds(&daemon, &site, &second).await);
}

#[test]
fn another_users_command_is_turned_away() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: another_users_command_is_turned_away: needs root to be another user");
        return;
    }
    use std::io::{Read, Write};
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::process::CommandExt;
    let site = Site::new(&[("rules.yar", &rule("Some", &marker()))]);
    let daemon = site.start();
    let socket = site.dir.path().join("run/scanserver/control.sock");
    let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    // With the modes out of the way, the peer's own identity still counts.
    for path in socket
        .ancestors()
        .take_while(|path| *path != std::path::Path::new("/tmp"))
    {
        let _ = std::fs::set_permissions(path, PermissionsExt::from_mode(0o777));
    }
    let request = palisade_protocol::frame::to_bytes(&palisade_svm::local::LocalRequest::Order(
        palisade_protocol::definitions::DefinitionsOrder::Show,
    ))
    .unwrap();
    let answered = |uid: u32| {
        let mut child = std::process::Command::new("python3")
            .args([
                "-c",
                "import socket, sys\ns = socket.socket(socket.AF_UNIX)\ns.connect(sys.argv[1])\n\
                 s.sendall(sys.stdin.buffer.read())\nsys.stdout.buffer.write(s.recv(64))",
            ])
            .arg(&socket)
            .uid(uid)
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::null())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(&request).unwrap();
        let mut answer = Vec::new();
        child
            .stdout
            .take()
            .unwrap()
            .read_to_end(&mut answer)
            .unwrap();
        child.wait().unwrap();
        !answer.is_empty()
    };
    assert!(answered(0));
    assert!(!answered(65534));
    daemon
        .log
        .wait_for("another user was turned away uid=65534");
}

/// Killed at any moment of an import, it starts again with a whole generation.
#[tokio::test(flavor = "multi_thread")]
async fn a_kill_at_any_moment_of_an_import_leaves_whole_generations() {
    const ROUNDS: usize = 20;
    let known = marker();
    let text = |n: usize| rule(&format!("Known{n}"), &known);
    let site = Site::new(&[
        ("rules.yar", &text(0)),
        ("base.ndb", &ndb("Base", &marker())),
    ]);
    let mut daemon = site.start();
    let started = std::time::Instant::now();
    let dir = site.directory("next", &[("rules.yar", &text(1))]);
    site.definitions_json(&["import", &dir]);
    let whole = started.elapsed();
    let mut cut = 0;
    for round in 0..ROUNDS {
        let text = rule(&format!("Round{round}"), &marker()) + &text(round + 2);
        let dir = site.directory("next", &[("rules.yar", &text)]);
        let mut import = site.program();
        import.args(["definitions", "import", &dir]);
        let mut import = import.stdout(std::process::Stdio::null()).spawn().unwrap();
        let moment = rand::rng().random_range(0..whole.as_micros() as u64);
        tokio::time::sleep(std::time::Duration::from_micros(moment)).await;
        let below = daemon.descendants();
        daemon.signal(Signal::SIGKILL);
        if !import.wait().unwrap().success() {
            cut += 1;
        }
        wait_until("the engines die with their daemon", || {
            below.iter().all(|pid| is_gone(*pid))
        });
        drop(daemon);

        daemon = site.start();
        assert!(finds(&daemon, &site, &known).await, "round {round}");
        let folder = site.state().join("definitions");
        for entry in std::fs::read_dir(folder).unwrap().flatten() {
            let name = entry.file_name().into_string().unwrap();
            if name == "state.json" {
                continue;
            }
            assert!(name.parse::<u64>().is_ok(), "{name} is left");
            let manifest = std::fs::read(entry.path().join("manifest.json")).unwrap();
            let manifest: Value = serde_json::from_slice(&manifest).unwrap();
            for engine in manifest["engines"].as_array().unwrap() {
                let folder = entry.path().join(engine["engine"].as_str().unwrap());
                assert!(folder.is_dir(), "{} is partial", entry.path().display());
            }
        }
        let active = list(&site)
            .into_iter()
            .filter(|(_, state)| state == "active");
        assert_eq!(active.count(), 1);
    }
    assert!(cut > 0, "no import was under way when it was killed");
}

/// An engine that two generations share is started again from the generation in force:
/// the one that it came from may be gone.
#[tokio::test(flavor = "multi_thread")]
async fn a_shared_engine_outlives_the_generation_that_it_came_from() {
    let [by_clamav, by_yara] = [marker(), marker()];
    let site = Site::new(&[
        ("base.ndb", &ndb("Base", &by_clamav)),
        ("rules.yar", &rule("Rule0", &by_yara)),
    ]);
    let daemon = site.start();
    let clamav = daemon.engine("palisade-engine-clamav");
    let mut rules = daemon.engine("palisade-engine-yara");
    for n in 1..=4 {
        site.define("rules.yar", &rule(&format!("Rule{n}"), &by_yara));
        site.definitions_json(&["refresh"]);
        assert!(finds(&daemon, &site, &by_clamav).await);
        assert!(finds(&daemon, &site, &by_yara).await);
        assert_eq!(
            daemon.engine("palisade-engine-clamav"),
            clamav,
            "nothing changed in it"
        );
        wait_until("the rules' old engine ends", || is_gone(rules));
        rules = daemon.engine("palisade-engine-yara");
    }
    assert!(!site.state().join("definitions/1").exists());
    kill(Pid::from_raw(clamav as i32), Signal::SIGKILL).unwrap();
    wait_until("it is gone", || is_gone(clamav));
    let client = Client::connect(&daemon, &site.ca.agent("default")).await;
    let deadline = std::time::Instant::now() + crate::site::PATIENCE;
    loop {
        let answer = client.scan(&with(&by_clamav)).await.answer;
        if let palisade_protocol::scan::ToAgent::Verdict(result) = answer {
            assert_eq!(result.verdict.kind(), VerdictKind::Malware);
            break;
        }
        assert!(
            std::time::Instant::now() < deadline,
            "the engine stays away"
        );
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
}
