//! A source that others update while it is looked at, as freshclam does.

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use palisade_protocol::verdict::VerdictKind;

use crate::client::Client;
use crate::site::{Site, marker, ndb, rule};

/// Makes `folder/name`, a database of this version that packs these files, with
/// ClamAV's own tool. What is not the vendor's can be packed as `.cud` only.
pub fn container(folder: &str, name: &str, version: u32, files: &[(&str, &str)]) {
    let build = tempfile::tempdir().unwrap();
    fs::write(build.path().join("COPYING"), "none").unwrap();
    for (file, text) in files {
        fs::write(build.path().join(file), text).unwrap();
    }
    let mut sigtool = Command::new("sigtool")
        .args(["--unsigned", &format!("--build={name}")])
        .arg(format!("--cvd-version={version}"))
        .current_dir(build.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .expect("sigtool is in Debian's package clamav");
    let mut answer = sigtool.stdin.take().unwrap();
    answer.write_all(b"builder\n").unwrap();
    drop(answer);
    assert!(sigtool.wait().unwrap().success());
    fs::copy(build.path().join(name), Path::new(folder).join(name)).unwrap();
}

fn source(site: &Site) -> String {
    site.source().to_str().unwrap().to_owned()
}

/// The files of the generation in force.
fn stored(site: &Site) -> Vec<String> {
    let active = site.definitions_json(&["status"])["active"]
        .as_u64()
        .unwrap();
    let folder = site.state().join(format!("definitions/{active}/clamav"));
    let mut names: Vec<String> = fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// What freshclam leaves and does around its databases, in its order: a temporary
/// folder, the parts of the old database unpacked there, the new one built there, and
/// renamed into place.
#[tokio::test(flavor = "multi_thread")]
async fn an_update_by_rename_is_picked_up_whole() {
    let [old, new] = [marker(), marker()];
    let mut site = Site::new(&[]);
    site.definitions = "poll_s = 1\nclean_corpus = []\nrequire_eicar = false\n".to_owned();
    container(
        &source(&site),
        "daily.cud",
        1,
        &[("daily.ndb", &ndb("Old", &old))],
    );
    for name in ["freshclam.dat", "mirrors.dat", ".dbLock"] {
        fs::write(site.source().join(name), "freshclam's own").unwrap();
    }
    let daemon = site.start();
    let client = Client::connect(&daemon, &site.ca.agent("default")).await;
    assert_eq!(client.kind(old.as_bytes()).await, VerdictKind::Malware);
    assert_eq!(stored(&site), ["daily.cud"]);

    let work = site.source().join("tmp.0123456789");
    let parts = work.join("clamav-0123456789abcdef.tmp");
    fs::create_dir_all(&parts).unwrap();
    // Half a database: malformed, were it looked at.
    fs::write(parts.join("daily.ndb"), "half a sign").unwrap();
    container(
        work.to_str().unwrap(),
        "daily.cud",
        2,
        &[("daily.ndb", &(ndb("Old", &old) + &ndb("New", &new)))],
    );
    site.definitions_json(&["refresh"]);
    assert_eq!(
        client.kind(format!("1 {new}").as_bytes()).await,
        VerdictKind::Clean
    );
    assert_eq!(site.definitions_json(&["status"])["active"], 1);

    fs::rename(work.join("daily.cud"), site.source().join("daily.cud")).unwrap();
    fs::remove_dir_all(&work).unwrap();
    daemon.log.wait_for("definitions are in force generation=2");
    assert_eq!(
        client.kind(format!("2 {new}").as_bytes()).await,
        VerdictKind::Malware
    );
    assert_eq!(
        client.kind(format!("2 {old}").as_bytes()).await,
        VerdictKind::Malware
    );
    assert!(!daemon.log.has("cannot be used"));
}

/// `daily.cld` comes before `daily.cvd` goes. Only the vendor can make either, so the
/// engine is a planted one that takes any file; which of them is copied is the point.
#[test]
fn a_cld_takes_the_place_of_its_cvd() {
    let mut site = Site::new(&[]);
    site.plant(&["palisade-engine-clamav"]);
    site.definitions = "poll_s = 3600\nclean_corpus = []\nrequire_eicar = false\n".to_owned();
    let source = source(&site);
    let main = "main.cud";
    container(&source, main, 62, &[("main.ndb", &ndb("Main", &marker()))]);
    container(
        &source,
        "daily.cud",
        27_000,
        &[("daily.ndb", &ndb("Old", &marker()))],
    );
    let place = |name: &str| site.source().join(name);
    fs::rename(place("daily.cud"), place("daily.cvd")).unwrap();
    let _daemon = site.start();
    assert_eq!(stored(&site), ["daily.cvd", main]);

    // Newer, and both are there for a moment.
    let work = site.directory("work", &[]);
    container(
        &work,
        "daily.cud",
        27_001,
        &[("daily.ndb", &ndb("New", &marker()))],
    );
    fs::rename(format!("{work}/daily.cud"), place("daily.cld")).unwrap();
    site.definitions_json(&["refresh"]);
    assert_eq!(stored(&site), ["daily.cld", main]);
    // The end of the update is no further generation.
    fs::remove_file(place("daily.cvd")).unwrap();
    site.definitions_json(&["refresh"]);
    assert_eq!(site.definitions_json(&["status"])["active"], 2);

    // A whole new .cvd supersedes an old .cld.
    container(
        &work,
        "daily.cud",
        27_002,
        &[("daily.ndb", &ndb("Newer", &marker()))],
    );
    fs::rename(format!("{work}/daily.cud"), place("daily.cvd")).unwrap();
    site.definitions_json(&["refresh"]);
    assert_eq!(stored(&site), ["daily.cvd", main]);
}

/// Somebody writes for a while: what is taken over in the end is what was meant, and
/// nothing half is ever in force.
#[tokio::test(flavor = "multi_thread")]
async fn files_that_are_still_written_are_waited_for() {
    let [first, last] = [marker(), marker()];
    let mut site = Site::new(&[("rules.yar", &rule("First", &first))]);
    site.definitions = "poll_s = 1\nclean_corpus = []\n".to_owned();
    let daemon = site.start();
    // Each state on the way is a valid set of rules, so that only time can tell.
    let path = site.source().join("rules.yar");
    let mut writing = fs::File::create(&path).unwrap();
    for n in 0..10 {
        let text = rule(&format!("Part{n}"), &marker());
        writing.write_all(text.as_bytes()).unwrap();
        tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    }
    writing.write_all(rule("Last", &last).as_bytes()).unwrap();
    drop(writing);
    daemon.log.wait_for("definitions are in force generation=");
    wait_for_changes(&daemon);
    let client = Client::connect(&daemon, &site.ca.agent("default")).await;
    assert_eq!(client.kind(last.as_bytes()).await, VerdictKind::Malware);
    assert_eq!(client.kind(first.as_bytes()).await, VerdictKind::Clean);
    let changes = daemon.log.lines().into_iter();
    let changes = changes.filter(|line| line.contains("definitions are in force"));
    assert_eq!(changes.count(), 2, "the first set, and the whole new one");
}

fn wait_for_changes(daemon: &crate::site::Daemon) {
    crate::site::wait_until("two sets were in force", || {
        let lines = daemon.log.lines().into_iter();
        lines
            .filter(|line| line.contains("definitions are in force"))
            .count()
            >= 2
    });
}
