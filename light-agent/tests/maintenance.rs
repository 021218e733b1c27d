//! Leave to stop and to remove the agent, as processes: who gives it, and what is said
//! without it. What systemd and dpkg do about it is tested with the packages.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a panic in a test is a failed test with a place in it"
)]

mod support;

use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::process::{Output, Stdio};
use std::time::SystemTime;

use palisade_daemon::membership::Membership;
use palisade_protocol::bounded::Text;
use palisade_protocol::identity::Identity;
use palisade_protocol::maintenance::{Allowed, Grant, sign};
use support::agent::Agent;
use support::site::Site;

const REQUIRED: &str = "[maintenance]\ntoken_required = true\n";

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.unwrap().as_millis().try_into().unwrap()
}

/// A token that begins an hour ago.
fn token(server: &Identity, agent: &Membership, allowed: Allowed, until_ms: u64) -> String {
    let grant = Grant {
        id: uuid::Uuid::new_v4(),
        agent: Text::cut(&agent.identity.id().to_string()),
        allowed,
        from_ms: now_ms() - 3_600_000,
        until_ms,
        reason: Text::cut("a new kernel"),
    };
    sign(server, &grant).unwrap()
}

fn check(agent: &Agent, remove: bool) -> Option<i32> {
    let arguments: &[&str] = match remove {
        false => &["maintenance", "check"],
        true => &["maintenance", "check", "--remove"],
    };
    agent.output(arguments).status.code()
}

fn begin(agent: &Agent, token: &str) -> Output {
    let mut begin = agent.command(&["maintenance", "begin", "-"]);
    let mut begin = begin
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = begin.stdin.take().unwrap();
    // Of what is far too long it reads a part, and then no more.
    let _ = writeln!(input, "{token}");
    drop(input);
    begin.wait_with_output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned()
}

#[test]
fn leave_is_a_servers_for_this_agent_and_for_a_time() {
    let site = Site::new();
    let (own, other) = (site.agent(), site.agent());
    let (server, svm) = (
        site.server(),
        site.svm(palisade_protocol::ids::SvmId::random()),
    );
    let agent = Agent::of(&own, REQUIRED);
    assert_eq!(
        (check(&agent, false), check(&agent, true)),
        (Some(3), Some(3))
    );
    for command in [&["stop"][..], &["uninstall", "--yes"]] {
        let refused = agent.output(command);
        assert_eq!(refused.status.code(), Some(3));
        let text = said(&refused);
        assert!(
            text.contains("palisade agent maintenance test-agent"),
            "{text}"
        );
    }

    let later = now_ms() + 600_000;
    let foreign = Site::new();
    let refused = [
        (
            "over",
            token(&server, &own, Allowed::Remove, now_ms() - 1000),
        ),
        (
            "and this agent is",
            token(&server, &other, Allowed::Remove, later),
        ),
        (
            "must be by an Integration Server",
            token(&svm, &own, Allowed::Remove, later),
        ),
        (
            "not of this site",
            token(&foreign.server(), &own, Allowed::Remove, later),
        ),
        ("is not a maintenance token", "pm1.AAAA".to_owned()),
        ("is not a maintenance token", "x".repeat(100_000)),
    ];
    for (why, token) in refused {
        let output = begin(&agent, &token);
        assert_eq!(output.status.code(), Some(3), "{why}");
        assert!(said(&output).contains(why), "{why}: {}", said(&output));
        assert_eq!(check(&agent, false), Some(3), "{why}");
    }

    let output = begin(&agent, &token(&server, &own, Allowed::Stop, later));
    assert_eq!(output.status.code(), Some(0), "{}", said(&output));
    assert!(
        said(&output).contains("allows to stop it until 2"),
        "{}",
        said(&output)
    );
    assert_eq!(
        (check(&agent, false), check(&agent, true)),
        (Some(0), Some(3))
    );
    let kept = agent.state().join("maintenance.token");
    assert_eq!(kept.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let output = begin(&agent, &token(&server, &own, Allowed::Remove, later));
    assert!(output.status.success());
    assert_eq!(
        (check(&agent, false), check(&agent, true)),
        (Some(0), Some(0))
    );
    let shown = agent.output(&["maintenance", "-o", "json"]);
    let shown: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap();
    assert_eq!(shown["grant"]["allowed"], "remove", "{shown}");
    assert_eq!(shown["grant"]["reason"], "a new kernel", "{shown}");

    // Whoever edits what is kept has nothing.
    let text = std::fs::read_to_string(&kept).unwrap();
    std::fs::write(&kept, text.replacen("pm1.", "pm1.B", 1)).unwrap();
    assert_eq!(check(&agent, false), Some(3));
    std::fs::write(&kept, text).unwrap();
    assert_eq!(check(&agent, true), Some(0));
    assert!(agent.output(&["maintenance", "end"]).status.success());
    assert_eq!(check(&agent, false), Some(3));
}

/// The control: where none is required, and where nobody could give it.
#[test]
fn without_the_setting_or_a_site_no_leave_is_needed() {
    let site = Site::new();
    let agent = Agent::new(&site, "");
    assert_eq!(
        (check(&agent, false), check(&agent, true)),
        (Some(0), Some(0))
    );
    let stray = Agent::new(&site, REQUIRED);
    assert_eq!(check(&stray, true), Some(3));
    std::fs::remove_dir_all(stray.state().join("identity")).unwrap();
    assert_eq!(check(&stray, true), Some(0));
}
