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
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use common::watch::Numbers;
use common::{SCAN, TestSite, names};
use palisade_tests::definitions::Marker;
use palisade_tests::{command, skip};
use serde_json::Value;

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
        let path = finding["path"].as_str().unwrap();
        let inside = match path.rsplit('/').next().unwrap() {
            "plain" => Value::Null,
            "nested.zip" => "packed.7z/plain".into(),
            _ => "plain".into(),
        };
        assert_eq!(finding["member"], inside, "{path}");
        let engines: Vec<&str> = finding["engines"]
            .as_array()
            .unwrap()
            .iter()
            .filter(|run| run["micros"].as_u64() > Some(0))
            .filter_map(|run| run["engine"].as_str())
            .collect();
        assert!(engines.contains(&engine), "{finding:#}");
    }
    // For people, and on its way to the console.
    let packed = folder.join("nested.zip");
    let said = test
        .site
        .run("palisade-agent", &["scan", packed.to_str().unwrap()], SCAN)
        .unwrap();
    let said = String::from_utf8_lossy(&said.stdout).into_owned();
    assert!(
        said.contains(&format!("nested.zip (inside: packed.7z/plain): {name}")),
        "{said}"
    );
    let member = command::wait_for("the finding in the console", SCAN, || {
        let shown = test.site.console(&["detection", "list"])?;
        let mut rows = shown.as_array().into_iter().flatten();
        let nested = |row: &&Value| {
            row["path"]
                .as_str()
                .is_some_and(|path| path.ends_with("/nested.zip"))
        };
        let row = rows.find(nested).context("it is not there")?;
        Ok(row["member"].clone())
    });
    assert_eq!(member.unwrap(), "packed.7z/plain");
}

/// A site's own lists decide before any engine: what is allowed is clean, however bad
/// it looks, and what is denied is malware, however clean.
#[test]
fn a_sites_lists_decide() {
    let marker = Marker::random();
    let harmless = Marker::random();
    let sha256 = |bytes: &[u8]| {
        let mut sum = Command::new("sha256sum");
        sum.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut sum = sum.spawn().unwrap();
        sum.stdin.take().unwrap().write_all(bytes).unwrap();
        let said = sum.wait_with_output().unwrap().stdout;
        String::from_utf8(said).unwrap()[..64].to_owned()
    };
    let ours = [marker.bytes.as_slice(), b" is our own tool"].concat();
    let test = TestSite::start(&[
        ("m.ndb", marker.ndb()),
        ("m.yar", marker.yara()),
        ("site.allow.sha256", format!("{}  tool\n", sha256(&ours))),
        (
            "site.deny.sha256",
            format!("{}:*:Site.Unwanted\n", sha256(&harmless.bytes)),
        ),
    ]);
    let tool = test.file("samples/tool", &ours);
    test.file("samples/infected", &marker.bytes);
    test.file("samples/denied", &harmless.bytes);
    test.file("samples/other", b"nothing of interest to anybody");
    let (code, result) = test.scan(&[tool.parent().unwrap()]);
    assert_eq!(code, 1, "{result:#}");
    let found: Vec<(&str, &str)> = result["findings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|finding| {
            let path = finding["path"].as_str().unwrap();
            (
                path.rsplit('/').next().unwrap(),
                finding["engine"].as_str().unwrap(),
            )
        })
        .collect();
    let found: BTreeMap<&str, &str> = found.into_iter().collect();
    let expected = BTreeMap::from([("denied", "hash-list"), ("infected", "libclamav")]);
    assert_eq!(found, expected, "{result:#}");
    assert_eq!(result["clean"], 2);
    let denied = result["findings"]
        .as_array()
        .unwrap()
        .iter()
        .find(|finding| finding["engine"] == "hash-list")
        .unwrap();
    assert_eq!(denied["name"], "Site.Unwanted");
    assert_eq!(denied["metadata"]["deny list"], "site.deny.sha256:1");
    let log = fs::read_to_string(test.site.log("scanserver")).unwrap();
    let audited = log
        .lines()
        .find(|line| line.contains("audit: allowed by a list"));
    assert!(
        audited.is_some_and(|line| line.contains("site.allow.sha256:1")),
        "{log}"
    );
}

/// What a guest's settings leave out is left out for this guest, and for no other.
#[test]
fn a_guest_says_what_is_looked_into() {
    let (packed, suspected) = (Marker::random(), Marker::random());
    let weak = suspected.yara().replacen(" {", " : suspicious {", 1);
    let test = TestSite::start(&[("m.ndb", packed.ndb()), ("weak.yar", weak)]);
    let text = "nothing to see here, as so often before\n".repeat(50);
    let inner = [text.as_bytes(), &packed.bytes].concat();
    let folder = test.file("samples/inner", &inner).with_file_name("");
    pack(&folder, "packed.zip", "zip", &["-q", "packed.zip", "inner"]);
    fs::remove_file(folder.join("inner")).unwrap();
    test.file("samples/suspected", &suspected.bytes);
    let other = test.other_agent("other");
    let usual = fs::read_to_string(&other).unwrap();
    for (set, [malware, suspicious]) in [
        ("", [1, 1]),
        ("[scan]\narchives = false\n", [0, 1]),
        ("[scan]\nheuristics = false\n", [1, 0]),
        ("[scan]\narchives = false\nheuristics = false\n", [0, 0]),
        ("[scan]\npua = true\n", [1, 1]),
    ] {
        fs::write(&other, format!("{usual}{set}")).unwrap();
        let said = test.agent(&other, &["scan", "-o", "json", folder.to_str().unwrap()]);
        let result: Value = serde_json::from_slice(&said.stdout).unwrap();
        let found = [&result["malware"], &result["suspicious"]];
        assert_eq!(
            found,
            [&Value::from(malware), &Value::from(suspicious)],
            "{set}{result:#}"
        );
        assert_eq!(result["not_scanned"], 0, "{set}{result:#}");
    }
    let (_, result) = test.scan(&[&folder]);
    assert_eq!(
        (&result["malware"], &result["suspicious"]),
        (&1.into(), &1.into())
    );
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

/// A Protection Server has no login: the console goes back to the definitions before,
/// and the bad ones do not come again.
#[test]
fn the_console_takes_definitions_back() {
    let [old, new] = [Marker::random(), Marker::random()];
    let test = TestSite::start(&[("rules.yar", old.yara())]);
    let svms = test.site.console(&["svm", "list"]).unwrap();
    let svm = svms[0]["name"].as_str().unwrap();
    let order = |words: &[&str]| {
        let all = [&["svm", "definitions", svm], words].concat();
        test.site.console(&all).unwrap()
    };
    let found = |step: &str, marker: &Marker| {
        let bytes = [step.as_bytes(), &marker.bytes].concat();
        let sample = test.file(&format!("{step}-{}", marker.name), &bytes);
        test.scan(&[&sample]).0 == 1
    };
    assert_eq!(order(&[])["active"], 1);
    fs::write(
        test.definitions().join("rules.yar"),
        new.yara() + &old.yara(),
    )
    .unwrap();
    assert_eq!(order(&["refresh"])["active"], 2);
    assert!(found("new", &new) && found("new", &old));
    let back = order(&["rollback"]);
    assert_eq!(back["active"], 1);
    assert_eq!(back["generations"][1]["state"], "refused");
    assert_eq!(order(&["refresh"])["active"], 1);
    assert!(found("back", &old) && !found("back", &new));
    assert_eq!(order(&["activate", "2"])["active"], 2);
    assert!(found("again", &new));
}

/// A guest that holds a file, which was clean, is told when another guest's scan finds
/// it malware by newer definitions: it hashes the file again and asks, and reports what
/// it hears, although nobody opens the file; the next open is answered anew. A file that
/// is another by then is none of that.
#[test]
fn a_guest_is_told_that_what_it_holds_is_malware_now() {
    if skip::is_root("a_guest_is_told_that_what_it_holds_is_malware_now") {
        a_guest_is_told(|_, _| ());
    }
}

/// The same by a Protection Server that was killed meanwhile: the guest says anew what it
/// holds.
#[test]
fn a_guest_is_told_by_a_protection_server_that_was_started_anew() {
    if !skip::is_root("a_guest_is_told_by_a_protection_server_that_was_started_anew") {
        return;
    }
    a_guest_is_told(|test, numbers| {
        let held = |numbers| Numbers::read(numbers).sum("held_contents");
        let before = held(numbers);
        assert!(before >= 2.0, "{before}");
        test.kill_svm();
        test.site.start_part("scanserver").unwrap();
        command::wait_for(
            "the guest to say what it holds",
            Duration::from_secs(60),
            || {
                let now = test.numbers();
                anyhow::ensure!(now != numbers, "it does not run yet");
                std::net::TcpStream::connect(now)?;
                anyhow::ensure!(held(now) >= before, "{} of {before}", held(now));
                Ok(())
            },
        )
        .unwrap();
    });
}

fn a_guest_is_told(meanwhile: impl FnOnce(&TestSite, SocketAddr)) {
    let [old, new] = [Marker::random(), Marker::random()];
    let test = TestSite::prepare(&[("rules.yar", old.yara())]);
    let numbers = test.start_with_numbers();
    let [held, replaced] = ["held", "replaced"].map(|name| test.protected.join(name));
    for path in [&held, &replaced] {
        fs::write(path, &new.bytes).unwrap();
        assert_eq!(fs::read(path).unwrap(), new.bytes);
    }
    fs::write(test.protected.join("new"), "nothing of interest").unwrap();
    fs::rename(test.protected.join("new"), &replaced).unwrap();
    let log = || fs::read_to_string(test.site.log("agent")).unwrap();
    assert!(!log().contains("are malware now"));
    meanwhile(&test, numbers);

    fs::write(
        test.definitions().join("rules.yar"),
        new.yara() + &old.yara(),
    )
    .unwrap();
    let svms = test.site.console(&["svm", "list"]).unwrap();
    let svm = svms[0]["name"].as_str().unwrap();
    test.site
        .console(&["svm", "definitions", svm, "refresh"])
        .unwrap();
    let other = test.other_agent("other");
    let sample = test.file("elsewhere", &new.bytes);
    let scan = test.agent(&other, &["scan", sample.to_str().unwrap()]);
    assert_eq!(scan.code, Some(1));

    command::wait_for("the notice", Duration::from_secs(60), || {
        anyhow::ensure!(log().contains("are malware now"));
        Ok(())
    })
    .unwrap();
    let detections = || -> Vec<Value> {
        let list = test.site.console(&["detection", "list"]).unwrap();
        let ours = |row: &&Value| {
            row["path"]
                .as_str()
                .is_some_and(|path| path.contains("/protected/"))
        };
        list.as_array()
            .unwrap()
            .iter()
            .filter(ours)
            .cloned()
            .collect()
    };
    let reported = command::wait_for("the report", Duration::from_secs(60), || {
        detections().pop().context("nothing is reported")
    })
    .unwrap();
    assert_eq!(reported["path"], held.to_str().unwrap());
    assert_eq!(reported["name"], new.name);
    assert_eq!(reported["action"], "reported");
    assert_eq!(detections().len(), 1, "the file that was replaced is not");
    assert!(held.exists(), "the file stays");
    command::wait_for("blocking", Duration::from_secs(60), || {
        match fs::read(&held) {
            Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => Ok(()),
            other => anyhow::bail!("{other:?}"),
        }
    })
    .unwrap();
}

/// The same of files that nobody opened, and a scan saw: they are found, and treated as the
/// site has it.
#[test]
fn what_a_scan_called_clean_is_found_and_treated_when_it_turns_bad() {
    if !skip::is_root("what_a_scan_called_clean_is_found_and_treated_when_it_turns_bad") {
        return;
    }
    let [old, new] = [Marker::random(), Marker::random()];
    let test = TestSite::prepare(&[("rules.yar", old.yara())]);
    let settings = test.site.dir().join("etc/agent.toml");
    let text = fs::read_to_string(&settings).unwrap();
    let moves = "[remediation]\nmalware = 'quarantine'\n";
    fs::write(&settings, format!("{text}\n{moves}")).unwrap();
    test.site.start().unwrap();
    // Outside of what opens are watched in.
    let scanned = test.file("scanned", &new.bytes);
    let (code, result) = test.scan(&[&scanned]);
    assert_eq!((code, result["clean"].as_u64()), (0, Some(1)), "{result:#}");

    fs::write(
        test.definitions().join("rules.yar"),
        new.yara() + &old.yara(),
    )
    .unwrap();
    let svms = test.site.console(&["svm", "list"]).unwrap();
    let svm = svms[0]["name"].as_str().unwrap();
    // It is kept, and scanned again when definitions change.
    test.site
        .console(&["svm", "definitions", svm, "refresh"])
        .unwrap();
    command::wait_for("the file to be moved away", Duration::from_secs(60), || {
        anyhow::ensure!(!scanned.exists());
        Ok(())
    })
    .unwrap();
    let reported = command::wait_for("the report", Duration::from_secs(60), || {
        let list = test.site.console(&["detection", "list"]).unwrap();
        let ours = |row: &&Value| row["path"] == scanned.to_str().unwrap();
        let found = list.as_array().unwrap().iter().find(ours).cloned();
        found.context("nothing is reported")
    })
    .unwrap();
    assert_eq!(reported["name"], new.name);
    assert_eq!(reported["action"], "quarantined");
}
