//! What one guest had scanned costs the next one nothing: by the agent's own
//! count, and by the kernel's count of bytes on the wire.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a panic fails the test"
)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use common::TestSite;
use palisade_tests::command;
use palisade_tests::definitions::Marker;
use palisade_tests::skip;
use serde_json::Value;

/// Counts UDP bytes to one port, in the kernel; removed at the end.
struct WireCounter {
    table: String,
}

impl WireCounter {
    fn start(port: u16) -> Self {
        let table = format!("palisade_test_{}", std::process::id());
        let rules = format!(
            "table inet {table} {{\n  counter to_svm {{ }}\n  chain output {{\n    type filter hook output priority 0; policy accept;\n    udp dport {port} counter name to_svm\n  }}\n}}\n"
        );
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("rules");
        fs::write(&file, rules).unwrap();
        nft(&["-f", file.to_str().unwrap()]);
        Self { table }
    }

    fn bytes(&self) -> u64 {
        let listed = nft(&["-j", "list", "counter", "inet", &self.table, "to_svm"]);
        let listed: Value = serde_json::from_str(&listed).unwrap();
        listed["nftables"]
            .as_array()
            .unwrap()
            .iter()
            .find_map(|object| object["counter"]["bytes"].as_u64())
            .unwrap()
    }
}

impl Drop for WireCounter {
    fn drop(&mut self) {
        let _ = Command::new("nft")
            .args(["delete", "table", "inet", &self.table])
            .status();
    }
}

fn nft(arguments: &[&str]) -> String {
    let finished = command::run(
        Path::new("/usr/sbin/nft"),
        arguments,
        Duration::from_secs(20),
    )
    .unwrap();
    String::from_utf8(finished.expect(&[0]).unwrap().stdout).unwrap()
}

/// A part of the machine's own files; the whole of `/usr/bin` and `/usr/lib` runs
/// in `scripts/soak` (set `PALISADE_CORPUS` to folders separated by colons).
fn corpus() -> Vec<PathBuf> {
    std::env::var("PALISADE_CORPUS")
        .unwrap_or_else(|_| "/usr/sbin:/usr/lib/apt:/usr/lib/git-core".to_owned())
        .split(':')
        .map(PathBuf::from)
        .filter(|path| path.is_dir())
        .collect()
}

fn field(result: &Value, name: &str) -> u64 {
    result[name]
        .as_u64()
        .unwrap_or_else(|| panic!("{name} is missing: {result}"))
}

#[test]
fn a_second_pass_and_a_second_guest_send_no_content() {
    if !skip::is_root("a_second_pass_and_a_second_guest_send_no_content") {
        return;
    }
    let test = TestSite::start(&[("m.ndb", Marker::random().ndb())]);
    let corpus = corpus();
    let paths: Vec<&Path> = corpus.iter().map(PathBuf::as_path).collect();
    println!("corpus: {corpus:?}");
    let wire = WireCounter::start(test.site.scan_address().unwrap().port());
    let limit = Duration::from_secs(3600);

    let (code, first) = test.site.scan(&paths, limit).unwrap();
    assert!(code == 0 || code == 4, "{code}: {first}");
    let after_first = wire.bytes();
    assert!(field(&first, "sent_bytes") > 0);
    assert!(
        after_first >= field(&first, "sent_bytes"),
        "content went another way"
    );

    let (_, second) = test.site.scan(&paths, limit).unwrap();
    let after_second = wire.bytes();
    assert_eq!(field(&second, "sent_bytes"), 0, "{second}");
    assert_eq!(field(&second, "scanned"), field(&first, "scanned"));
    assert_eq!(field(&second, "clean"), field(&first, "clean"));

    // A guest of a new identity that sees the same contents under other paths.
    let elsewhere = test.folder().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    let mut other_paths = Vec::new();
    for (index, folder) in corpus.iter().enumerate() {
        let mount_point = elsewhere.join(index.to_string());
        fs::create_dir(&mount_point).unwrap();
        let flags = nix::mount::MsFlags::MS_BIND;
        nix::mount::mount(
            Some(folder),
            &mount_point,
            None::<&str>,
            flags,
            None::<&str>,
        )
        .unwrap();
        other_paths.push(mount_point);
    }
    let settings = test.other_agent("second");
    let mut arguments = vec!["--site", test.site.dir().to_str().unwrap()];
    arguments.extend(["--config", settings.to_str().unwrap(), "scan", "-o", "json"]);
    arguments.extend(other_paths.iter().map(|path| path.to_str().unwrap()));
    let third = command::run(
        &command::program("palisade-agent").unwrap(),
        arguments,
        limit,
    );
    for mount_point in &other_paths {
        let flags = nix::mount::MntFlags::MNT_DETACH;
        nix::mount::umount2(mount_point, flags).unwrap();
    }
    let third = third.unwrap().json().unwrap();
    let after_third = wire.bytes();
    println!("first  {first}\nsecond {second}\nthird  {third}");
    println!(
        "wire: {after_first} then {} then {}",
        after_second - after_first,
        after_third - after_second
    );

    assert_eq!(field(&third, "scanned"), field(&first, "scanned"));
    assert_eq!(field(&third, "sent_bytes"), 0);
    assert_eq!(field(&third, "local_hits"), 0);
    let answered = field(&third, "scanned") + field(&third, "not_scanned");
    assert_eq!(
        field(&third, "shared_hits"),
        answered,
        "every verdict was shared"
    );
    assert_eq!(field(&third, "cache_hits"), field(&third, "shared_hits"));

    // What travelled is requests: about a kilobyte a file, whatever its size, and
    // 32 bytes a fragment; far below the contents.
    for spent in [after_second - after_first, after_third - after_second] {
        let requests = field(&first, "scanned") * 1024 + field(&first, "bytes") / 4096;
        assert!(
            spent < requests,
            "{spent} bytes on the wire for {} files",
            field(&first, "scanned")
        );
        assert!(spent < after_first / 5, "{spent} of {after_first}");
    }
}

#[test]
fn tenants_share_nothing() {
    let test = TestSite::start(&[("m.ndb", Marker::random().ndb())]);
    let file = test.file("a-file", &vec![7; 300_000]);
    let (_, first) = test.scan(&[&file]);
    assert_eq!(field(&first, "sent_bytes"), 300_000);
    let token = test
        .site
        .run(
            "palisade",
            &[
                "token",
                "create",
                "--component",
                "agent",
                "--tenant",
                "other",
            ],
            Duration::from_secs(30),
        )
        .unwrap()
        .expect(&[0])
        .unwrap();
    let settings = test.file(
        "other/agent.toml",
        format!(
            "state_dir = '{0}/other/var'\nrun_dir = '{0}/other/run'\n",
            test.folder().display()
        )
        .as_bytes(),
    );
    let token = String::from_utf8(token.stdout).unwrap();
    test.agent(&settings, &["enrol", token.trim()])
        .expect(&[0])
        .unwrap();
    let scan = |expected_bytes: u64| {
        let finished = test.agent(&settings, &["scan", "-o", "json", file.to_str().unwrap()]);
        let result = finished.json().unwrap();
        assert_eq!(field(&result, "sent_bytes"), expected_bytes, "{result}");
    };
    scan(300_000);
    // The control: within the tenant it is shared.
    scan(0);
}
