//! The bench itself, at its smallest: both sides run, agree, and are reported.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a panic fails the test"
)]

use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use palisade_tests::command::{self, Finished};
use palisade_tests::skip::skip;
use serde_json::Value;

/// How long a run may take before it is given up.
const LIMIT: Duration = Duration::from_secs(300);
const CLAMD: &str = "/usr/sbin/clamd";

/// Runs measures with programs of `first` before all others; gives how it ended and
/// what it wrote.
fn bench(measures: &[&str], first: &Path) -> (Finished, Value) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("result.json");
    let mut path = OsString::from(first);
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    let mut run = Command::new(env!("CARGO_BIN_EXE_palisade-bench"));
    run.arg("--smoke")
        .arg("--json")
        .arg(&file)
        .args(measures)
        .env("PATH", path);
    let finished = command::finish(run, LIMIT).unwrap();
    let text = fs::read_to_string(&file)
        .unwrap_or_else(|error| panic!("{error}; it said {}", finished.stderr));
    (finished, serde_json::from_str(&text).unwrap())
}

#[test]
fn both_sides_run_agree_and_are_reported() {
    if !Path::new(CLAMD).exists() {
        return skip(
            "both_sides_run_agree_and_are_reported",
            "clamd is not installed",
        );
    }
    let (finished, report) = bench(&["first-scan", "second-guest"], Path::new("/nowhere"));
    let finished = finished.expect(&[0]).unwrap();
    for field in [
        "command", "date", "scale", "setup", "machine", "load", "measures",
    ] {
        assert!(!report[field].is_null(), "{field} is missing: {report}");
    }
    for field in [
        "cores",
        "cpu",
        "memory_bytes",
        "kernel",
        "system",
        "versions",
    ] {
        assert!(
            !report["machine"][field].is_null(),
            "{field} is missing: {report}"
        );
    }
    assert!(report["load"]["before"].is_number() && report["load"]["after"].is_number());
    let measures = report["measures"].as_array().unwrap();
    assert_eq!(measures.len(), 2);
    let table = String::from_utf8(finished.stdout).unwrap();
    for measured in measures {
        assert!(measured["error"].is_null(), "{measured}");
        assert!(measured["took_s"].as_f64().unwrap() > 0.0);
        assert!(measured["load"].is_number(), "{measured}");
        let rows = measured["rows"].as_array().unwrap();
        assert!(!rows.is_empty());
        for row in rows {
            let (ours, peer) = (&row["ours"]["median"], &row["peer"]["value"]["median"]);
            assert!(ours.as_f64().unwrap() > 0.0, "{row}");
            let ratio = ours.as_f64().unwrap() / peer.as_f64().unwrap();
            assert!(
                (row["ratio"].as_f64().unwrap() - ratio).abs() < 1e-9,
                "{row}"
            );
            assert!(table.contains(row["name"].as_str().unwrap()), "{table}");
        }
    }
    let first = &measures[0]["rows"][0];
    assert_eq!(first["targets"][0]["target"], "≤ 1.00× the peer");
    assert!(first["targets"][0]["met"].is_boolean());
    assert!(
        first["notes"][0]
            .as_str()
            .unwrap()
            .contains("5 findings on both sides"),
        "{first}"
    );
}

/// The control: a peer that finds nothing makes the measure fail.
#[test]
fn sides_that_disagree_are_no_result() {
    if !Path::new(CLAMD).exists() {
        return skip(
            "sides_that_disagree_are_no_result",
            "clamd is not installed",
        );
    }
    let folder = tempfile::tempdir().unwrap();
    let blind = folder.path().join("clamdscan");
    fs::write(&blind, "#!/bin/sh\nexit 0\n").unwrap();
    fs::set_permissions(&blind, fs::Permissions::from_mode(0o755)).unwrap();
    let (finished, report) = bench(&["first-scan"], folder.path());
    assert_eq!(finished.code, Some(3), "{}", finished.stderr);
    let measured = &report["measures"][0];
    let error = measured["error"].as_str().unwrap();
    assert!(
        error.contains("the sides looked at") && error.contains("clean there"),
        "{error}"
    );
    assert_eq!(measured["rows"].as_array().unwrap().len(), 0);
}
