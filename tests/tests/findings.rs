//! What is found is what the engines alone would find: parity with clamscan, and
//! markers that are random per run in archives.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a panic fails the test"
)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{TestSite, names};
use palisade_tests::command;
use palisade_tests::definitions::Marker;

const TEST_FILES: &str = "/usr/share/clamav-testfiles";

#[test]
fn the_44_test_files_have_clamscans_names() {
    let sample = fs::read(format!("{TEST_FILES}/clam.exe")).expect("clamav-testfiles is installed");
    let md5 = Command::new("md5sum")
        .arg(format!("{TEST_FILES}/clam.exe"))
        .output()
        .unwrap();
    let md5 = String::from_utf8(md5.stdout).unwrap()[..32].to_owned();
    let line = format!("{md5}:{}:ClamAV-Test-File\n", sample.len());
    let test = TestSite::start(&[("one.hdb", line)]);

    let clamscan = command::run(
        Path::new("/usr/bin/clamscan"),
        [
            "--infected",
            "--no-summary",
            "--database",
            test.definitions().to_str().unwrap(),
            "--recursive",
            TEST_FILES,
        ],
        Duration::from_secs(120),
    )
    .unwrap();
    let theirs: BTreeMap<String, String> = String::from_utf8(clamscan.stdout)
        .unwrap()
        .lines()
        .filter_map(|line| line.strip_suffix(" FOUND")?.rsplit_once(": "))
        .map(|(path, name)| {
            (
                Path::new(path)
                    .file_name()
                    .unwrap()
                    .to_str()
                    .unwrap()
                    .to_owned(),
                name.to_owned(),
            )
        })
        .collect();
    assert_eq!(theirs.len(), 44, "{theirs:#?}");

    let (code, result) = test.scan(&[Path::new(TEST_FILES)]);
    let ours: BTreeMap<String, String> = names(&result).into_iter().collect();
    assert_eq!(code, 1);
    assert_eq!(ours, theirs);
    assert_eq!(result["malware"], 44);
}

/// Packs `file` with a program that the test installs.
fn pack(folder: &Path, archive: &str, program: &str, arguments: &[&str]) {
    let mut command = Command::new(program);
    command.args(arguments).current_dir(folder);
    command::finish(command, Duration::from_secs(60))
        .unwrap()
        .expect(&[0])
        .unwrap();
    assert!(folder.join(archive).exists());
}

fn found_everywhere(marker: &Marker, definitions: (&str, String), name: &str, engine: &str) {
    let test = TestSite::start(&[definitions]);
    let folder = test.folder().join("samples");
    fs::create_dir(&folder).unwrap();
    // Compressible text around the marker, so that packed bytes do not hold it plain.
    let text = "nothing to see here, as so often before\n".repeat(50);
    fs::write(
        folder.join("plain"),
        [text.as_bytes(), &marker.bytes, text.as_bytes()].concat(),
    )
    .unwrap();
    pack(&folder, "packed.zip", "zip", &["-q", "packed.zip", "plain"]);
    pack(&folder, "packed.tar", "tar", &["cf", "packed.tar", "plain"]);
    pack(
        &folder,
        "packed.tar.gz",
        "tar",
        &["czf", "packed.tar.gz", "plain"],
    );
    pack(
        &folder,
        "packed.7z",
        "7z",
        &["a", "-bd", "packed.7z", "plain"],
    );
    pack(
        &folder,
        "nested.zip",
        "zip",
        &["-q", "nested.zip", "packed.7z"],
    );
    fs::write(folder.join("clean"), &text).unwrap();
    let (code, result) = test.scan(&[&folder]);
    let wanted: Vec<(String, String)> = [
        "nested.zip",
        "packed.7z",
        "packed.tar",
        "packed.tar.gz",
        "packed.zip",
        "plain",
    ]
    .map(|file| (file.to_owned(), name.to_owned()))
    .to_vec();
    assert_eq!(names(&result), wanted, "{result:#}");
    assert_eq!((code, &result["clean"]), (1, &1.into()));
    for finding in result["findings"].as_array().unwrap() {
        assert_eq!(finding["engine"], engine);
    }
}

#[test]
fn a_random_clamav_signature_is_found_plain_and_packed() {
    let marker = Marker::random();
    let name = format!("{}.UNOFFICIAL", marker.name);
    found_everywhere(&marker, ("m.ndb", marker.ndb()), &name, "libclamav");
}

#[test]
fn a_random_yara_rule_is_found_plain_and_packed() {
    let marker = Marker::random();
    found_everywhere(&marker, ("m.yar", marker.yara()), &marker.name, "yara-x");
}

/// Databases also come packed, as `.cvd`, `.cld` and `.cud`: the same container, of which
/// only the last can be made without the vendor's signature.
#[test]
fn a_packed_database_is_loaded() {
    let marker = Marker::random();
    let test = TestSite::prepare(&[]);
    let folder = test.folder().join("build");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("palisade.ndb"), marker.ndb()).unwrap();
    fs::write(folder.join("COPYING"), "none").unwrap();
    let mut sigtool = Command::new("sigtool")
        .args(["--unsigned", "--build=palisade.cud", "--cvd-version=1"])
        .current_dir(&folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    sigtool
        .stdin
        .take()
        .unwrap()
        .write_all(b"builder\n")
        .unwrap();
    assert!(sigtool.wait().unwrap().success());
    fs::copy(
        folder.join("palisade.cud"),
        test.definitions().join("palisade.cud"),
    )
    .unwrap();
    test.site.start().unwrap();
    let sample = test.file("sample", &marker.bytes);
    let (code, result) = test.scan(&[&sample]);
    assert_eq!(code, 1, "{result:#}");
    let wanted = ("sample".to_owned(), format!("{}.UNOFFICIAL", marker.name));
    assert_eq!(names(&result), [wanted]);
}
