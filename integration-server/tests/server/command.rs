//! The `palisade` and `palisade-server` programs themselves: what they print, and
//! their exit codes.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex};

use insta::assert_snapshot;
use palisade_daemon::control::Session;
use palisade_daemon::enrol::enrol;
use palisade_protocol::bounded::{List, Text};
use palisade_protocol::control::Component;
use palisade_protocol::token::JoinToken;
use tempfile::TempDir;

use crate::site::host;

/// A server process and its site's folder.
pub struct Running {
    pub dir: TempDir,
    pub child: Child,
    pub url: String,
    pub log: Arc<Mutex<Vec<serde_json::Value>>>,
}

pub fn site(settings: &str) -> TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("etc")).unwrap();
    let text = format!("listen_control = '127.0.0.1:0'\nlisten_api = '127.0.0.1:0'\n{settings}");
    std::fs::write(dir.path().join("etc/server.toml"), text).unwrap();
    dir
}

pub fn server(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_palisade-server"));
    command.env_clear().arg("--site").arg(dir);
    command
}

impl Running {
    pub fn start(settings: &str) -> Self {
        Self::start_in(site(settings))
    }

    pub fn start_in(dir: TempDir) -> Self {
        let mut child = server(dir.path())
            .args(["--log-format", "json", "run"])
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let mut log = Vec::new();
        let url = loop {
            let line = lines
                .next()
                .expect("the server ends before it is ready")
                .unwrap();
            let line: serde_json::Value = serde_json::from_str(&line).unwrap();
            if line["fields"]["message"] == "ready" {
                break line["fields"]["url"].as_str().unwrap().to_owned();
            }
            log.push(line);
        };
        // Read on, so that the server never waits for its log to be taken.
        let log = Arc::new(Mutex::new(log));
        let kept = Arc::clone(&log);
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                kept.lock()
                    .unwrap()
                    .push(serde_json::from_str(&line).unwrap());
            }
        });
        Self {
            dir,
            child,
            url,
            log,
        }
    }

    /// What was logged of an agent, with its level, with what differs replaced. So many lines
    /// are waited for: another thread reads them.
    fn log_of(&self, agent: &str, lines: usize) -> String {
        let of_agent = |line: &&serde_json::Value| line["fields"]["agent"] == agent;
        let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
        while self.log.lock().unwrap().iter().filter(of_agent).count() < lines
            && std::time::Instant::now() < deadline
        {
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
        let log = self.log.lock().unwrap();
        log.iter()
            .filter(of_agent)
            .map(|line| masked(&format!("{} {}\n", line["level"], line["fields"])))
            .collect()
    }

    pub fn root(&self) -> PathBuf {
        self.dir.path().join("var/server/ca/root.pem")
    }

    /// What the command prints, with what differs from run to run replaced.
    fn palisade(&self, arguments: &[&str]) -> String {
        self.show(&palisade(self.dir.path(), arguments, &[]))
    }

    pub fn show(&self, output: &Output) -> String {
        let text = format!(
            "{}{}exit {}\n",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
            output.status.code().unwrap()
        );
        let text = text
            .replace(&self.url, "URL")
            .replace(&self.dir.path().display().to_string(), "SITE");
        masked(&text)
    }

    fn stop(&mut self) -> i32 {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").arg(&pid).status().unwrap().success());
        self.child.wait().unwrap().code().unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn palisade(dir: &Path, arguments: &[&str], environment: &[(&str, &str)]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_palisade"))
        .env_clear()
        .env("PALISADE_SITE", dir)
        .envs(environment.iter().copied())
        .args(arguments)
        .output()
        .unwrap()
}

/// Times, ids and ports are others in each run.
fn masked(text: &str) -> String {
    let mut out = String::new();
    let ends = [' ', '\n', '"', ',', ';', ')', '`'];
    for word in text.split_inclusive(ends) {
        let bare = word.trim_end_matches(ends);
        let end = &word[bare.len()..];
        let is_time = bare.len() >= 20 && bare.ends_with('Z') && bare.contains('T');
        let is_id = uuid::Uuid::try_parse(bare).is_ok_and(|uuid| uuid.get_version_num() == 4);
        let is_port = bare.starts_with("127.0.0.1:");
        // A head of the audit log is a number and a hash.
        let hash = bare.split_once(':').map_or(bare, |(_, hash)| hash);
        let is_hash = hash.len() == 64 && hash.bytes().all(|b| b.is_ascii_hexdigit());
        let is_token = ["pj1.", "pm1.", "pa1."]
            .iter()
            .any(|kind| bare.starts_with(kind));
        out.push_str(match (is_time, is_id, is_port, is_hash || is_token) {
            (true, ..) => "TIME",
            (_, true, ..) => "ID",
            (_, _, true, _) => "ADDRESS",
            (.., true) => "SECRET",
            _ => bare,
        });
        out.push_str(end);
    }
    out
}

pub fn token(site: &Running, arguments: &[&str]) -> JoinToken {
    let all: Vec<&str> = ["token", "create"]
        .into_iter()
        .chain(arguments.iter().copied())
        .collect();
    let output = palisade(site.dir.path(), &all, &[]);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap().parse().unwrap()
}

#[test]
fn an_empty_site_says_what_to_do_next() {
    let site = Running::start("");
    let all: String = [
        &["status"][..],
        &["svm", "list"],
        &["agent", "list"],
        &["inventory", "list"],
        &["detection", "list"],
        &["alert", "list"],
        &["token", "list"],
    ]
    .iter()
    .map(|arguments| {
        format!(
            "$ palisade {}\n{}\n",
            arguments.join(" "),
            site.palisade(arguments)
        )
    })
    .collect();
    assert_snapshot!(all);
}

#[test]
fn json_is_what_programs_rely_on() {
    let site = Running::start("[[libvirt]]\nuri = 'test:///default'\nhost = 'hv1'");
    for (component, name) in [("agent", "web-1"), ("svm", "svm-1")] {
        let token = token(&site, &["--component", component]);
        let kind = if component == "agent" {
            Component::Agent
        } else {
            Component::Svm
        };
        tokio::runtime::Runtime::new()
            .unwrap()
            .block_on(enrol(&token, kind, host(name, None)))
            .unwrap();
    }
    // The first reading may still be on its way.
    while !site.palisade(&["inventory", "list"]).contains("running") {}
    let all: String = [
        &["svm", "list", "-o", "json"][..],
        &["agent", "list", "-o", "json"],
        &["inventory", "list", "-o", "json"],
        &["detection", "list", "-o", "json"],
        &[
            "token",
            "create",
            "--uses",
            "2",
            "--expires",
            "7d",
            "--tenant",
            "acme",
            "-o",
            "json",
        ],
        &["token", "create"],
        &["agent", "list"],
        &["svm", "list"],
        &["inventory", "list"],
    ]
    .iter()
    .map(|arguments| {
        format!(
            "$ palisade {}\n{}\n",
            arguments.join(" "),
            site.palisade(arguments)
        )
    })
    .collect();
    assert_snapshot!(all);
}

/// libvirt's own test driver has one domain, which always runs.
const TEST_DOMAIN: uuid::Uuid = uuid::uuid!("6695eb01-f6a4-8304-79aa-97f2502e193f");

#[test]
fn an_alert_says_what_to_do_and_a_token_ends_it() {
    let site =
        Running::start("[[libvirt]]\nuri = 'test:///default'\n[fleet]\nagent_boot_grace = '1s'");
    let token = token(&site, &[]);
    let member = tokio::runtime::Runtime::new()
        .unwrap()
        .block_on(enrol(
            &token,
            Component::Agent,
            host("web-1", Some(TEST_DOMAIN)),
        ))
        .unwrap();
    while site.palisade(&["alert", "list"]).contains("no alert") {}
    let reason = ["--reason", "a new kernel"];
    let maintenance = |more: &[&'static str]| {
        let mut arguments = vec!["agent", "maintenance"];
        arguments.extend(more);
        arguments.extend(reason);
        arguments
    };
    let all: String = [
        vec!["alert", "list"],
        vec!["alert", "list", "-o", "json"],
        vec!["status"],
        maintenance(&["web-2"]),
        maintenance(&["00000000-0000-4000-8000-000000000000"]),
        maintenance(&["web-1", "--for", "8d"]),
        vec!["agent", "maintenance", "web-1", "--reason", " "],
        maintenance(&["web-1"]),
        maintenance(&["web-1", "--remove", "--for", "7d", "-o", "json"]),
        vec!["agent", "list"],
        vec!["alert", "list"],
        vec!["alert", "list", "-o", "json"],
    ]
    .iter()
    .map(|arguments| {
        format!(
            "$ palisade {}\n{}\n",
            arguments.join(" "),
            site.palisade(arguments)
        )
    })
    .collect();
    let made = palisade(site.dir.path(), &maintenance(&["web-1"]), &[]);
    assert!(made.stdout.starts_with(b"pm1.") && made.stdout.ends_with(b"\n"));
    let palisade_protocol::spiffe::Role::Agent { id, .. } = &member.identity.id().role else {
        panic!()
    };
    let all = all + "# the log\n" + &site.log_of(&id.to_string(), 5);
    assert_snapshot!(all);
}

#[test]
fn wrong_usage_is_told_from_what_could_not_be_done() {
    let site = Running::start("");
    let code = |arguments: &[&str]| palisade(site.dir.path(), arguments, &[]).status.code();
    for wrong in [
        &[][..],
        &["nonsense"],
        &["svm"],
        &["token", "create", "--uses", "0"],
        &["token", "create", "--expires", "soon"],
        &["token", "create", "--component", "server"],
        &["token", "create", "--tenant", "../x"],
        &["token", "revoke", "nonsense"],
        &["agent", "maintenance", "web-1"],
        &[
            "agent",
            "maintenance",
            "web-1",
            "--reason",
            "x",
            "--for",
            "soon",
        ],
        &["svm", "list", "-o", "yaml"],
    ] {
        assert_eq!(code(wrong), Some(2), "{wrong:?}");
    }
    assert_eq!(
        code(&["token", "revoke", "00000000-0000-4000-8000-000000000000"]),
        Some(3)
    );
    assert_eq!(code(&["--help"]), Some(0));
    assert_eq!(code(&["--version"]), Some(0));
}

#[test]
fn errors_name_the_object_and_the_remedy() {
    let mut site = Running::start("");
    let other = Running::start("");
    let root = site.root().display().to_string();
    let other_root = other.root().display().to_string();
    let try_with = |environment: &[(&str, &str)]| {
        site.show(&palisade(site.dir.path(), &["status"], environment))
            .replace(&other.dir.path().display().to_string(), "OTHER")
    };
    let by_name = site.url.replace("127.0.0.1", "127.0.0.2");
    let mut all = String::new();
    for (what, environment) in [
        (
            "another site's CA",
            vec![("PALISADE_CA", other_root.as_str())],
        ),
        (
            "a CA that is no certificate",
            vec![("PALISADE_CA", "/etc/hostname")],
        ),
        (
            "a CA that is absent",
            vec![("PALISADE_CA", "/no/such/file")],
        ),
        ("a wrong token", vec![("PALISADE_TOKEN", "pa1.nonsense")]),
        ("plain HTTP", vec![("PALISADE_URL", "http://127.0.0.1:1")]),
        (
            "nothing there",
            vec![("PALISADE_URL", "https://127.0.0.1:1")],
        ),
        (
            "all of it given",
            vec![
                ("PALISADE_URL", site.url.as_str()),
                ("PALISADE_CA", root.as_str()),
                ("PALISADE_TOKEN", "pa1.x"),
            ],
        ),
    ] {
        all.push_str(&format!("# {what}\n{}\n", try_with(&environment)));
    }
    // The server listens on 127.0.0.1 alone: this name leads nowhere.
    let nowhere = try_with(&[("PALISADE_URL", &by_name)]);
    assert!(nowhere.contains("exit 3"), "{nowhere}");
    assert_eq!(site.stop(), 0);
    all.push_str(&format!(
        "# a stopped server\n{}\n",
        site.palisade(&["status"])
    ));
    let empty = tempfile::tempdir().unwrap();
    let nobody = palisade(empty.path(), &["status"], &[]);
    let text = String::from_utf8_lossy(&nobody.stderr)
        .replace(&empty.path().display().to_string(), "SITE");
    all.push_str(&format!(
        "# no site\n{text}exit {}\n",
        nobody.status.code().unwrap()
    ));
    assert_snapshot!(all);
}

#[test]
fn the_server_checks_its_settings() {
    let shown = |settings: &str, arguments: &[&str]| {
        let dir = site(settings);
        let output = server(dir.path()).args(arguments).output().unwrap();
        let text = format!(
            "{}{}exit {}\n",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
            output.status.code().unwrap()
        );
        text.replace(&dir.path().display().to_string(), "SITE")
    };
    let all = [
        shown("", &["check-config"]),
        shown("listen = 'x'", &["check-config"]),
        shown("deployment = 'Not A Label'", &["check-config"]),
        shown("advertise_control = ['0.0.0.0:1']", &["run"]),
        shown("[fleet]\nreport_every = 'often'", &["check-config"]),
        shown("= 1", &["check-config"]),
    ]
    .join("\n");
    assert_snapshot!(all);
}

#[test]
fn a_killed_server_starts_again_and_knows_what_it_acknowledged() {
    let mut site = Running::start("");
    let token = token(&site, &["--uses", "5"]);
    site.child.kill().unwrap();
    site.child.wait().unwrap();
    let dir = std::mem::replace(&mut site.dir, tempfile::tempdir().unwrap());
    let again = Running::start_in(dir);
    let listed = palisade(again.dir.path(), &["token", "list", "-o", "json"], &[]);
    let listed = String::from_utf8(listed.stdout).unwrap();
    assert!(listed.contains(&token.id.to_string()), "{listed}");
}

#[test]
fn help_fits_one_screen() {
    let help = palisade(Path::new("/nowhere"), &["--help"], &[]);
    let text = String::from_utf8(help.stdout).unwrap();
    assert!(text.lines().count() <= 40, "{text}");
    assert_snapshot!(text);
}

/// An agent's session, which answers what it is asked, until its sender is dropped; it
/// lives on a runtime of its own.
fn explaining_agent(site: &Running) -> (tokio::runtime::Runtime, tokio::sync::oneshot::Sender<()>) {
    use palisade_protocol::choice::{Choice, ChoiceRole, Chosen};
    use palisade_protocol::control::{FromServer, ToServer};
    use palisade_protocol::selection::Reach;

    let runtime = tokio::runtime::Runtime::new().unwrap();
    let joined = token(site, &[]);
    let member = runtime
        .block_on(enrol(&joined, Component::Agent, host("web-1", None)))
        .unwrap();
    let (ends, mut end) = tokio::sync::oneshot::channel();
    runtime.spawn(async move {
        let greeting = crate::talk::hello(None);
        let (session, _, mut pushed) = Session::connect(&member, greeting).await.unwrap();
        loop {
            let number = tokio::select! {
                _ = &mut end => return session.close(),
                message = pushed.recv() => match message {
                    Some(FromServer::Explain { number }) => number,
                    _ => continue,
                },
            };
            let svm = |name: &str, role, why: &str| Chosen {
                id: Some(palisade_protocol::ids::SvmId(uuid::Uuid::from_u128(1))),
                name: Text::cut(name),
                addresses: List::cut([Text::cut("127.0.0.1:7443")]),
                role,
                why: Text::cut(why),
                score: None,
                connected_s: None,
                round_trip_us: None,
                failure: None,
            };
            let choice = Choice {
                number,
                source: Text::cut("the Integration Server's list, version 9"),
                reach: Reach::Datacenter,
                place: Text::cut("dc1 / hv1"),
                tags: List::cut([Text::cut("dmz"), Text::cut("web")]),
                svms: List::cut([
                    Chosen {
                        score: Some(12),
                        connected_s: Some(60),
                        round_trip_us: Some(1234),
                        ..svm(
                            "svm-a",
                            ChoiceRole::InUse,
                            "the best that answers: it is on the same hypervisor",
                        )
                    },
                    Chosen {
                        score: Some(40),
                        failure: Some((Text::cut("no answer within 3 s"), 5)),
                        ..svm(
                            "svm-b",
                            ChoiceRole::Candidate,
                            "further away: it is elsewhere, not on the same hypervisor",
                        )
                    },
                    // What an agent says is no command to a terminal.
                    svm("svm-c\u{1b}[2J", ChoiceRole::Excluded, "it is draining"),
                ]),
                more: 2,
            };
            session.request(&ToServer::Choice(choice)).await.unwrap();
        }
    });
    (runtime, ends)
}

#[test]
fn an_agent_explains_its_choice() {
    let site = Running::start("");
    let svm = token(&site, &["--component", "svm"]);
    tokio::runtime::Runtime::new()
        .unwrap()
        .block_on(enrol(&svm, Component::Svm, host("svm-new", None)))
        .unwrap();
    let (_runtime, agent) = explaining_agent(&site);
    while !site.palisade(&["agent", "list"]).contains("connected") {}
    let shown = |all: &[&[&str]]| -> String {
        let one = |arguments: &&[&str]| {
            let said = site.palisade(arguments);
            format!("$ palisade {}\n{said}\n", arguments.join(" "))
        };
        all.iter().map(one).collect()
    };
    let mut all = shown(&[
        &["agent", "explain", "web-1"],
        &["agent", "explain", "web-1", "-o", "json"],
        &["agent", "explain", "web-2"],
        &["agent", "explain", "00000000-0000-4000-8000-000000000000"],
    ]);
    drop(agent);
    while site.palisade(&["agent", "list"]).contains("connected") {}
    all.push_str("# the agent is gone\n");
    all.push_str(&shown(&[&["agent", "explain", "web-1"]]));
    assert_snapshot!(all);
}
