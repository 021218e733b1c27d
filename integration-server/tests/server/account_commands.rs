//! `palisade` and accounts: what the commands print, and how they end.

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use insta::assert_snapshot;

use crate::accounts::{Api, PASSWORD};
use crate::command::{palisade, server};

/// Runs the command with a session file and lines of stdin.
fn run(api: &Api, session: &str, typed: &[&str], arguments: &[&str]) -> Output {
    let dir = api.running.dir.path();
    let mut child = Command::new(env!("CARGO_BIN_EXE_palisade"))
        .env_clear()
        .env("PALISADE_SITE", dir)
        .env("PALISADE_SESSION", dir.join(session))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    for line in typed {
        // Who fails before it reads has closed it.
        let _ = writeln!(stdin, "{line}");
    }
    drop(stdin);
    child.wait_with_output().unwrap()
}

fn fine(api: &Api, session: &str, typed: &[&str], arguments: &[&str]) -> String {
    let done = run(api, session, typed, arguments);
    assert!(done.status.success(), "{arguments:?}: {done:?}");
    String::from_utf8(done.stdout).unwrap()
}

/// Times are of different lengths, and columns with them.
fn squeezed(text: &str) -> String {
    let lines = text.lines().map(|line| {
        let indent = line.len() - line.trim_start().len();
        let words: Vec<&str> = line
            .split("  ")
            .map(str::trim)
            .filter(|word| !word.is_empty())
            .collect();
        format!("{}{}\n", " ".repeat(indent), words.join("  "))
    });
    lines.collect()
}

#[test]
fn people_use_the_site_by_their_accounts() {
    use std::os::unix::fs::PermissionsExt as _;
    let api = Api::start("");
    let short = ["short"];
    let password = [PASSWORD];
    let mut all = String::new();
    for (session, typed, arguments) in [
        ("ann", &[][..], &["account", "list"][..]),
        ("ann", &short, &["setup", "ann"]),
        ("ann", &password, &["setup", "ann"]),
        ("ann", &password, &["setup", "bob"]),
        ("ann", &["wrong"], &["login", "ann"]),
        ("ann", &password, &["login", "ann"]),
        (
            "ann",
            &password,
            &[
                "account",
                "create",
                "jo",
                "--grant",
                "tenant_admin:/tenants/acme",
            ],
        ),
        ("ann", &password, &["account", "create", "jo"]),
        (
            "ann",
            &password,
            &["account", "create", "eve", "-o", "json"],
        ),
        ("ann", &[], &["account", "list"]),
        ("ann", &[], &["account", "list", "-o", "json"]),
        ("jo", &password, &["login", "jo", "-o", "json"]),
        ("jo", &[], &["agent", "list"]),
        ("jo", &[], &["status"]),
        ("jo", &[], &["account", "grant", "jo", "--grant", "admin:/"]),
        ("jo", &[], &["account", "disable", "ann"]),
        (
            "jo",
            &password,
            &["account", "create", "low", "--grant", "admin:/"],
        ),
        (
            "jo",
            &[],
            &[
                "api-token",
                "create",
                "backup",
                "--role",
                "auditor",
                "--path",
                "/tenants/acme",
                "-o",
                "json",
            ],
        ),
        ("jo", &[], &["api-token", "list"]),
        (
            "ann",
            &[],
            &[
                "account",
                "grant",
                "eve",
                "--grant",
                "auditor:/",
                "--grant",
                "operator:/tenants/acme",
            ],
        ),
        ("ann", &[], &["account", "disable", "eve"]),
        ("ann", &[], &["account", "enable", "eve"]),
        ("ann", &[], &["account", "password", "nobody"]),
        (
            "ann",
            &["another horse battery"],
            &["account", "password", "jo"],
        ),
        ("jo", &[], &["agent", "list"]),
        (
            "ann",
            &[PASSWORD, "another horse battery"],
            &["account", "password"],
        ),
        ("ann", &[], &["audit", "list", "--limit", "6"]),
        ("ann", &[], &["audit", "list", "--limit", "1", "-o", "json"]),
        ("ann", &[], &["audit", "verify"]),
        ("ann", &[], &["logout"]),
        ("ann", &[], &["logout"]),
    ] {
        let done = run(&api, session, typed, arguments);
        let shown = squeezed(&api.running.show(&done));
        all.push_str(&format!(
            "{session} $ palisade {}\n{shown}\n",
            arguments.join(" ")
        ));
        if arguments.first() == Some(&"login") && done.status.success() {
            let file = api.running.dir.path().join(session);
            let mode = std::fs::metadata(file).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
    }
    assert_snapshot!(all);
}

#[test]
fn a_second_factor_is_used_from_the_command_line() {
    let api = Api::start("");
    fine(&api, "ann", &[PASSWORD], &["setup", "ann"]);
    fine(&api, "ann", &[PASSWORD], &["login", "ann"]);
    // The secret is shown before its code is asked for.
    let dir = api.running.dir.path();
    let mut child = Command::new(env!("CARGO_BIN_EXE_palisade"))
        .env_clear()
        .env("PALISADE_SITE", dir)
        .env("PALISADE_SESSION", dir.join("ann"))
        .args(["account", "totp", "on"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = std::io::BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    std::io::BufRead::read_line(&mut said, &mut line).unwrap();
    let secret = crate::accounts::unbase32(line.trim().rsplit(' ').next().unwrap());
    let now_ms = palisade_integration_server::time::now_ms();
    let code = palisade_integration_server::accounts::totp::text_at(&secret, now_ms);
    writeln!(child.stdin.take().unwrap(), "{code}").unwrap();
    let done = child.wait_with_output().unwrap();
    assert!(done.status.success(), "{done:?}");
    let codes = String::from_utf8(done.stdout).unwrap();
    let recovery = codes.lines().next().unwrap();

    let without = run(&api, "ann", &[PASSWORD], &["login", "ann"]);
    assert_eq!(
        without.status.code(),
        Some(3),
        "no code was typed: {without:?}"
    );
    let next = palisade_integration_server::accounts::totp::text_at(&secret, now_ms + 30_000);
    fine(&api, "ann", &[PASSWORD, &next], &["login", "ann"]);
    fine(
        &api,
        "ann",
        &[PASSWORD],
        &["login", "ann", "--recovery-code", recovery],
    );
    let again = run(
        &api,
        "ann",
        &[PASSWORD],
        &["login", "ann", "--recovery-code", recovery],
    );
    assert_eq!(again.status.code(), Some(3));
    fine(&api, "ann", &[], &["account", "totp", "off"]);
    fine(&api, "ann", &[PASSWORD], &["login", "ann"]);
}

#[test]
fn an_api_token_works_in_the_environment_and_ends() {
    let api = Api::start("");
    fine(&api, "ann", &[PASSWORD], &["setup", "ann"]);
    fine(&api, "ann", &[PASSWORD], &["login", "ann"]);
    let token = fine(
        &api,
        "ann",
        &[],
        &["api-token", "create", "x", "--role", "auditor"],
    );
    let dir = api.running.dir.path();
    let with = |arguments: &[&str]| palisade(dir, arguments, &[("PALISADE_TOKEN", token.trim())]);
    assert!(with(&["status"]).status.success());
    assert_eq!(with(&["token", "create"]).status.code(), Some(3));
    let listed = fine(&api, "ann", &[], &["api-token", "list", "-o", "json"]);
    let listed: serde_json::Value = serde_json::from_str(&listed).unwrap();
    let id = listed[0]["id"].as_str().unwrap();
    fine(&api, "ann", &[], &["api-token", "revoke", id]);
    assert_eq!(with(&["status"]).status.code(), Some(3));
}

/// A row of the audit log is changed as whoever has the database would change it.
#[test]
fn a_changed_audit_log_is_found_by_both_programs() {
    let api = Api::start("");
    fine(&api, "ann", &[PASSWORD], &["setup", "ann"]);
    fine(&api, "ann", &[PASSWORD], &["login", "ann"]);
    let verified = fine(&api, "ann", &[], &["audit", "verify"]);
    let head = verified
        .lines()
        .find_map(|line| line.strip_prefix("head "))
        .unwrap();
    fine(&api, "ann", &[], &["token", "create"]);
    fine(&api, "ann", &[], &["audit", "verify", "--head", head]);
    let check = |dir: &Path| server(dir).arg("check").output().unwrap();
    assert!(check(api.running.dir.path()).status.success());

    let last = "(SELECT MAX(id) FROM audit)";
    api.database(&format!(
        "UPDATE audit SET time_ms = time_ms - 1 WHERE id = {last}"
    ));
    let found = run(&api, "ann", &[], &["audit", "verify"]);
    assert_eq!(found.status.code(), Some(1), "{found:?}");
    let said = String::from_utf8(found.stdout).unwrap();
    assert!(said.contains("or its order was changed"), "{said}");
    assert_eq!(check(api.running.dir.path()).status.code(), Some(1));

    // Back as it was, and then its end is taken off, with the counter.
    api.database(&format!(
        "UPDATE audit SET time_ms = time_ms + 1 WHERE id = {last}"
    ));
    let verified = fine(&api, "ann", &[], &["audit", "verify"]);
    let head = verified
        .lines()
        .find_map(|line| line.strip_prefix("head "))
        .unwrap();
    api.database(&format!(
        "DELETE FROM audit WHERE id = {last}; UPDATE counters SET value = value - 1 WHERE name = 'audit'"
    ));
    fine(&api, "ann", &[], &["audit", "verify"]);
    let found = run(&api, "ann", &[], &["audit", "verify", "--head", head]);
    assert_eq!(found.status.code(), Some(1), "{found:?}");
}

#[test]
fn help_of_accounts_is_one_screen() {
    let mut all = String::new();
    for arguments in [
        &["account", "--help"][..],
        &["account", "create", "--help"],
        &["api-token", "--help"],
        &["audit", "verify", "--help"],
        &["login", "--help"],
        &["setup", "--help"],
    ] {
        let help = palisade(Path::new("/nowhere"), arguments, &[]);
        let text = String::from_utf8(help.stdout).unwrap();
        assert!(text.lines().count() <= 40, "{text}");
        all.push_str(&format!("$ palisade {}\n{text}\n", arguments.join(" ")));
    }
    assert_snapshot!(all);
}

#[test]
fn what_is_dangerous_asks_for_the_password_once_more() {
    let api = Api::start("");
    fine(&api, "ann", &[PASSWORD], &["setup", "ann"]);
    fine(&api, "ann", &[PASSWORD], &["login", "ann"]);
    fine(&api, "ann", &[PASSWORD], &["account", "create", "jo"]);
    let disable = ["account", "disable", "jo"];
    let long_ago = || api.database("UPDATE sessions SET confirmed_ms = 0");
    long_ago();
    let nothing = run(&api, "ann", &[], &disable);
    assert_eq!(nothing.status.code(), Some(3));
    let said = String::from_utf8(nothing.stderr).unwrap();
    assert!(said.contains("your password once more"), "{said}");
    let wrong = run(&api, "ann", &["wrong"], &disable);
    assert_eq!(wrong.status.code(), Some(3));
    let listed = fine(&api, "ann", &[], &["account", "list"]);
    assert!(!listed.contains("disabled"), "{listed}");
    fine(&api, "ann", &[PASSWORD], &disable);
    // For five minutes it is not asked for again.
    fine(&api, "ann", &[], &["account", "enable", "jo"]);
    long_ago();
    // What the command itself asks for comes first.
    let new = "another horse battery";
    fine(
        &api,
        "ann",
        &[new, PASSWORD],
        &["account", "password", "jo"],
    );
    fine(&api, "jo", &[new], &["login", "jo"]);
}
