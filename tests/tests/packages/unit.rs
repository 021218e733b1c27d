//! The service's file, by systemd's own checks.

use std::fs;

use serde_json::Value;

use crate::built::{Packages, said, tool};

/// How exposed the service may be at the most, in systemd's tenths of 0 to 10. Most of
/// what is left are mounts of its own, which it cannot have; its file says why.
const MOST_EXPOSED: u32 = 50;

fn unit(packages: &Packages) -> std::path::PathBuf {
    packages
        .files
        .join("usr/lib/systemd/system/palisade-agent.service")
}

/// The unit in a root of its own, whose program is there.
fn verify(packages: &Packages) -> (Option<i32>, String) {
    let unit = unit(packages);
    let verified = tool(
        "systemd-analyze",
        [
            "verify",
            "--man=no",
            "--recursive-errors=no",
            unit.to_str().unwrap(),
        ],
    );
    // The program is in the package and not on this machine.
    let own = |line: &&str| {
        line.contains("palisade-agent.service")
            && !line.contains("/usr/bin/palisade-agent is not executable")
    };
    let said = verified
        .stderr
        .lines()
        .filter(own)
        .collect::<Vec<_>>()
        .join("\n");
    (verified.code, said)
}

#[test]
fn systemd_has_nothing_to_say_against_the_unit() {
    let packages = Packages::build();
    let (_, said) = verify(&packages);
    assert_eq!(said, "");
    // The control: an option that is none.
    let path = unit(&packages);
    let text = fs::read_to_string(&path).unwrap();
    fs::write(
        &path,
        text.replace("KillMode=mixed", "KillMode=mixed\nKilMode=mixed"),
    )
    .unwrap();
    let (_, said) = verify(&packages);
    assert!(said.contains("KilMode"), "{said}");
}

/// The unit's exposure, and what is open, by systemd's names.
fn exposure(packages: &Packages) -> (u32, String) {
    let unit = unit(packages);
    let list = said(
        "systemd-analyze",
        [
            "security",
            "--offline=true",
            "--json=short",
            "--no-pager",
            unit.to_str().unwrap(),
        ],
    );
    let list: Value = serde_json::from_str(&list).unwrap();
    let mut open: Vec<String> = list
        .as_array()
        .unwrap()
        .iter()
        .filter(|item| {
            item["exposure"]
                .as_str()
                .is_some_and(|value| value != "0.0")
        })
        .map(|item| {
            format!(
                "{} {}",
                item["exposure"].as_str().unwrap(),
                item["name"].as_str().unwrap()
            )
        })
        .collect();
    open.sort();
    let shown = tool(
        "systemd-analyze",
        [
            "security",
            "--offline=true",
            "--no-pager",
            unit.to_str().unwrap(),
        ],
    );
    let shown = String::from_utf8(shown.stdout).unwrap();
    let (_, overall) = shown.split_once("Overall exposure level for").unwrap();
    let value = overall.split_whitespace().nth(1).unwrap();
    let tenths = value.replace('.', "").parse().unwrap();
    (tenths, open.join("\n"))
}

#[test]
fn no_more_is_open_than_the_unit_says() {
    let packages = Packages::build();
    let (exposed, open) = exposure(&packages);
    insta::assert_snapshot!("exposure", open);
    assert!(exposed <= MOST_EXPOSED, "{exposed}");
    // The control: without its filter of system calls it is more exposed than it may be.
    let path = unit(&packages);
    let text = fs::read_to_string(&path).unwrap();
    let without = text.lines().filter(|line| !line.starts_with("SystemCall"));
    fs::write(&path, without.collect::<Vec<_>>().join("\n")).unwrap();
    assert!(exposure(&packages).0 > MOST_EXPOSED);
}
