//! Names of files are chosen by whoever attacks: they neither forge a log line, nor
//! drive a terminal, nor reach a shell, from the scan to the console.
//!
//! The controls: [`tame`] refuses the names as they are; and with `PathBytes` shown
//! unescaped both tests are red.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a panic fails the test"
)]

mod common;

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use common::{SCAN, TestSite};
use palisade_tests::command::wait_for;
use palisade_tests::definitions::Marker;
use palisade_tests::site::PARTS;
use palisade_tests::skip;
use serde_json::Value;

/// What a shell that was reached would make.
fn trap() -> String {
    format!("palisade-reached-a-shell-{:016x}", rand::random::<u64>())
}

fn hostile_names(trap: &str) -> Vec<Vec<u8>> {
    let mut names: Vec<Vec<u8>> = [
        "two\nlines",
        "\n2026-01-01T00:00:00.000000Z  INFO forged agent=none",
        "return\rover",
        "clear\x1b[2J\x1b[1;1H and title\x1b]0;owned\x07",
        "\u{9b}31m by one character",
        "back\x08\x08\x08space and \x7f",
        "gnp.\u{202e}exe",
        "\u{2066}isolated\u{2069}",
        "quotes ' \" and \\ and \\x41",
        "-rf",
        "--help",
        "%s%n%x {} {0}",
        "<img src=x onerror=alert(1)>",
        "=1+1 @formula",
    ]
    .map(|name| name.as_bytes().to_vec())
    .to_vec();
    for shell in [
        format!("$(touch {trap})"),
        format!("`touch {trap}`"),
        format!("; touch {trap} #"),
        format!("| touch {trap}"),
        format!("' && touch {trap} '"),
        format!("x\ntouch {trap}\n"),
    ] {
        names.push(shell.into_bytes());
    }
    names.push(b"not utf-8: \xff\xfe\x80 \xc3".to_vec());
    names.push([b"long ".as_slice(), &[b'\n'; 240]].concat());
    names
}

/// Nothing in it but whole lines that any terminal shows as they are.
fn tame(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_ok_and(|text| {
        text.chars().all(|c| {
            let reorders = matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
            c == '\n' || !(c.is_control() || reorders)
        })
    })
}

/// The bytes that `\xNN` stands for.
fn unescaped(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("\\x") {
        bytes.extend_from_slice(before.as_bytes());
        bytes.extend(hex::decode(&after[..2]).unwrap());
        rest = &after[2..];
    }
    bytes.extend_from_slice(rest.as_bytes());
    bytes
}

/// File names in what a program lists.
fn listed(list: &Value) -> BTreeSet<Vec<u8>> {
    let path = |entry: &Value| unescaped(entry["path"].as_str().unwrap());
    let name = |path: Vec<u8>| {
        let at = path.iter().rposition(|byte| *byte == b'/').unwrap();
        path[at + 1..].to_vec()
    };
    let list = list.as_array().unwrap().iter();
    list.map(|entry| name(path(entry))).collect()
}

struct Named {
    test: TestSite,
    names: BTreeSet<Vec<u8>>,
    folder: PathBuf,
    trap: String,
}

/// A site, and its folder of malware with such names.
fn named(protected: bool) -> Named {
    let marker = Marker::random();
    let trap = trap();
    let names = hostile_names(&trap);
    assert!(names.iter().filter(|name| !tame(name)).count() >= 6);
    let test = TestSite::start(&[("m.ndb", marker.ndb())]);
    let folder = if protected {
        test.protected.clone()
    } else {
        test.folder().join("named")
    };
    fs::create_dir_all(&folder).unwrap();
    for (number, name) in names.iter().enumerate() {
        // Contents of their own: not even a finding is shared.
        let bytes = [&marker.bytes, number.to_string().as_bytes()].concat();
        fs::write(folder.join(OsStr::from_bytes(name)), bytes).unwrap();
    }
    Named {
        test,
        names: names.into_iter().collect(),
        folder,
        trap,
    }
}

impl Named {
    /// The console lists all of them, by its API and as a table, and nobody's log or
    /// shell was reached.
    fn reported(&self) {
        let all = wait_for("all detections", Duration::from_secs(60), || {
            let list = self.test.site.console(&["detection", "list"])?;
            let found = listed(&list);
            anyhow::ensure!(found == self.names, "{} of them", found.len());
            Ok(list)
        })
        .unwrap();
        assert!(all.as_array().unwrap().len() >= self.names.len());
        let table = self
            .test
            .site
            .run("palisade", &["detection", "list"], SCAN)
            .unwrap();
        let lines = table.stdout.split(|byte| *byte == b'\n').count();
        assert!(
            tame(&table.stdout),
            "{:?}",
            String::from_utf8_lossy(&table.stdout)
        );
        // A heading, and what follows the last line.
        assert_eq!(lines, all.as_array().unwrap().len() + 2);
        for part in PARTS {
            let log = fs::read(self.test.site.log(part)).unwrap();
            assert!(tame(&log), "the {part}'s log");
            for line in String::from_utf8(log).unwrap().lines() {
                let forged = line.starts_with("2026-01-01T00:00:00.000000Z  INFO forged");
                assert!(!forged && !line.starts_with("touch "), "{part}: {line}");
            }
        }
        let own = std::env::current_dir().unwrap();
        for folder in [&own, &self.folder, self.test.site.dir(), Path::new("/")] {
            assert!(!folder.join(&self.trap).exists(), "{}", folder.display());
        }
    }
}

#[test]
fn hostile_names_are_scanned_and_shown_harmlessly() {
    let named = named(false);
    let (code, result) = named.test.scan(&[&named.folder]);
    assert_eq!(code, 1, "{result:#}");
    assert_eq!(result["malware"], named.names.len());
    assert_eq!(listed(&result["findings"]), named.names);

    let folder = named.folder.to_str().unwrap();
    let shown = named
        .test
        .site
        .run("palisade-agent", &["scan", folder], SCAN);
    let shown = shown.unwrap();
    assert!(
        tame(&shown.stdout),
        "{:?}",
        String::from_utf8_lossy(&shown.stdout)
    );
    assert!(tame(shown.stderr.as_bytes()), "{:?}", shown.stderr);
    let text = String::from_utf8(shown.stdout).unwrap();
    let findings = text.lines().filter(|line| line.starts_with("MALWARE"));
    assert_eq!(findings.count(), named.names.len(), "{text}");

    // Each as an argument, too, as a shell's `*` would give them.
    let within = |name: &Vec<u8>| named.folder.join(OsStr::from_bytes(name));
    let mut scan =
        std::process::Command::new(palisade_tests::command::program("palisade-agent").unwrap());
    scan.arg("--site").arg(named.test.site.dir());
    scan.args(["scan", "-o", "json"])
        .args(named.names.iter().map(within));
    let scan = palisade_tests::command::finish(scan, SCAN).unwrap();
    assert_eq!(scan.json().unwrap()["malware"], named.names.len());
    named.reported();
}

#[test]
fn hostile_names_are_blocked_and_reported_harmlessly() {
    if !skip::is_root("hostile_names_are_blocked_and_reported_harmlessly") {
        return;
    }
    let named = named(true);
    for name in &named.names {
        let opened = File::open(named.folder.join(OsStr::from_bytes(name)));
        let refused = opened.expect_err("it is malware").raw_os_error();
        assert_eq!(
            refused,
            Some(nix::libc::EPERM),
            "{:?}",
            String::from_utf8_lossy(name)
        );
    }
    named.reported();
}
