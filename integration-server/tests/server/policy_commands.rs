//! `palisade policy` and `palisade group`: what they print, and their exit codes.

use insta::assert_snapshot;
use palisade_daemon::control::Session;
use palisade_daemon::enrol::enrol;
use palisade_protocol::bounded::{List, Text};
use palisade_protocol::control::{Component, FromServer, ToServer};
use palisade_protocol::policy::{NotApplied, PolicyReport};

use crate::command::{Running, palisade, token};
use crate::site::host;
use crate::talk::hello;

/// Commands and what they print.
fn shown(site: &Running, commands: &[&str]) -> String {
    let mut all = String::new();
    for command in commands {
        let arguments: Vec<&str> = command.split('|').collect();
        let said = site.show(&palisade(site.dir.path(), &arguments, &[]));
        all.push_str(&format!("$ palisade {}\n{said}\n", arguments.join(" ")));
    }
    all
}

#[test]
fn policies_are_set_compared_and_taken_back() {
    let site = Running::start("");
    let all = shown(
        &site,
        &[
            "policy|show",
            "policy|set|on_access.mode=monitor|exclude=/srv/db,/tmp|--note|look first",
            "policy|set|failure.no_svm={\"exec\":\"deny\"}|-o|json",
            "policy|unset|exclude",
            "policy|history",
            "policy|diff",
            "policy|diff|0|2|-o|json",
            "policy|revert|1|--note|too early",
            "policy|show|-o|json",
            "policy|set|on_access.mode=watch",
            "policy|set|on_access.mod=block",
            "policy|set|state_dir=/x",
            "policy|set|exclude=srv",
            "policy|set|on_access.mode",
            "policy|unset|exlude",
            "policy|revert|9",
            "policy|show|--tenant|acme",
            "policy|show|--group|nobody",
            "policy|show|--vm|nobody",
            "policy|show|--vm|a|--tenant|b",
        ],
    );
    assert_snapshot!(all);
}

#[test]
fn groups_and_what_an_agent_has_are_shown() {
    let site = Running::start("");
    let joining = token(&site, &[]);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let joined = runtime.block_on(enrol(&joining, Component::Agent, host("web-1", None)));
    let member = joined.unwrap();
    let agent = crate::talk::agent_id(&member).to_string();
    let before = shown(
        &site,
        &[
            "group|list",
            "group|members|--query|name:web-* !tag:test",
            "group|members|--query|web",
            "group|create|first|--query|name:web-*|--priority|10",
            "group|create|first|--query|name:*",
            "group|create|First|--query|name:*",
            "group|create|all|--query|name:*|-o|json",
            "group|members|first",
            "group|change|all|--query|share:100%",
            "group|list",
            "group|members|nobody",
            "policy|set|on_access.mode=monitor",
            "policy|set|--group|first|on_access.mode=block",
            "policy|set|--vm|web-1|on_access.deadline_ms=900",
            "policy|effective|web-1",
        ],
    );
    // What the agent says of it; the server computes the same document each time.
    let report = |not_applied| async {
        let (session, _, _pushes) = Session::connect(&member, hello(None)).await.unwrap();
        let asked = ToServer::GetPolicy { held: None };
        let FromServer::Policy(policy) = session.request(&asked).await.unwrap() else {
            panic!("no policy");
        };
        let report = PolicyReport {
            in_force: Some(policy.fingerprint().unwrap()),
            not_applied,
            ..PolicyReport::default()
        };
        let report = ToServer::PolicyReport(report);
        session.request(&report).await.unwrap();
    };
    let one = NotApplied {
        key: Text::cut("on_access.deadline_ms"),
        why: Text::cut("this agent does not know it"),
    };
    runtime.block_on(report(List::cut([one])));
    let partial = shown(&site, &["policy|effective|web-1"]);
    runtime.block_on(report(List::default()));
    let groups = palisade(site.dir.path(), &["group", "list", "-o", "json"], &[]);
    let groups: serde_json::Value = serde_json::from_slice(&groups.stdout).unwrap();
    let first = groups.as_array().unwrap().iter();
    let first = first.filter(|group| group["name"] == "first");
    let first = first.map(|group| group["id"].as_str().unwrap()).next();
    let after = shown(
        &site,
        &[
            "policy|effective|web-1",
            "policy|effective|web-1|-o|json",
            "group|delete|first",
            "policy|effective|web-1",
        ],
    );
    // Ids that stand within words.
    let mut all = before + &partial + &after;
    for (id, name) in [(first.unwrap(), "FIRST"), (agent.as_str(), "AGENT")] {
        all = all.replace(id, name);
    }
    assert_snapshot!(all);
}
