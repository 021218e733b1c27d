//! The site's definitions: imported at the Integration Server, signed, pulled by
//! Protection Servers, and found by an agent; and what its disk may not do to them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a panic fails the test"
)]

mod common;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use common::TestSite;
use common::servers::Another;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use palisade_tests::command::{Finished, wait_for};
use palisade_tests::definitions::Marker;
use palisade_tests::skip;
use serde_json::Value;

/// A wait that only a defect exhausts.
const PATIENCE: Duration = Duration::from_secs(90);

/// A site whose Protection Server has no source of its own, and whose server runs.
fn site() -> TestSite {
    let test = TestSite::prepare(&[]);
    let file = test.site.dir().join("etc/scanserver.toml");
    let mut settings: toml::Table = fs::read_to_string(&file).unwrap().parse().unwrap();
    let own = "poll_s = 2\nclean_corpus = []\n"
        .parse::<toml::Table>()
        .unwrap();
    settings.insert("definitions".into(), own.into());
    fs::write(file, settings.to_string()).unwrap();
    test.site.start_part("server").unwrap();
    test
}

fn palisade(test: &TestSite, arguments: &[&str]) -> Finished {
    test.site.run("palisade", arguments, PATIENCE).unwrap()
}

fn done(test: &TestSite, arguments: &[&str]) -> String {
    let finished = palisade(test, arguments).expect(&[0]).unwrap();
    String::from_utf8(finished.stdout).unwrap()
}

/// A directory with the marker's signature.
fn directory(test: &TestSite, name: &str, marker: &Marker) -> PathBuf {
    let folder = test.folder().join(name);
    fs::create_dir_all(&folder).unwrap();
    fs::write(folder.join("marker.ndb"), marker.ndb()).unwrap();
    folder
}

fn import(test: &TestSite, from: &Path) -> String {
    done(test, &["definitions", "import", from.to_str().unwrap()])
}

/// Waits until so many Protection Servers have this generation in force.
fn follow(test: &TestSite, generation: u64, svms: usize) {
    wait_for("the wanted generation everywhere", PATIENCE, || {
        let site = test.site.console(&["definitions", "list"])?;
        let all = site["svms"].as_array().context("no list")?;
        let have = all.iter().filter(|svm| svm["generation"] == generation);
        ensure!(have.count() == svms, "not {generation} on all: {site:#}");
        Ok(())
    })
    .unwrap();
}

/// Waits until an alert says that the repository is refused; gives its text.
fn refused(test: &TestSite) -> String {
    wait_for("an alert about the repository", PATIENCE, || {
        let listed = palisade(test, &["alert", "list", "-o", "json"]).json()?;
        let all = listed.as_array().context("no list")?;
        let alert = all
            .iter()
            .find(|alert| alert["kind"] == "svm_definitions_repository");
        let text = alert.and_then(|alert| alert["text"].as_str());
        text.map(str::to_owned)
            .with_context(|| format!("none: {listed:#}"))
    })
    .unwrap()
}

fn finds(test: &TestSite, marker: &Marker) -> bool {
    let file = test.file("content", &[b"before ", marker.bytes.as_slice()].concat());
    let (code, result) = test.scan(&[&file]);
    assert!(matches!(code, 0 | 1), "{result:#}");
    code == 1
}

fn restart(test: &TestSite, part: &str, meanwhile: impl FnOnce()) {
    let process = test.site.process(part).unwrap().expect("it runs");
    process.stop().unwrap();
    meanwhile();
    test.site.start_part(part).unwrap();
}

#[test]
fn what_is_imported_is_found_everywhere_and_a_rollback_takes_it_back() {
    let test = site();
    let [first, second] = [Marker::random(), Marker::random()];
    test.site.start_part("scanserver").unwrap();
    // It waits for definitions, and says so.
    assert!(refused(&test).contains("palisade definitions import"));
    let _other = Another::start(&test, "second", 2);
    assert_eq!(
        import(&test, &directory(&test, "one", &first)),
        "generation 1\n"
    );
    follow(&test, 1, 2);
    test.site.start_part("agent").unwrap();
    assert!(finds(&test, &first) && !finds(&test, &second));

    // An offline bundle: a plain tar file.
    let folder = directory(&test, "two", &second);
    fs::write(folder.join("first.ndb"), first.ndb()).unwrap();
    let bundle = test.folder().join("bundle.tar");
    let mut tar = std::process::Command::new("tar");
    tar.arg("-cf").arg(&bundle).arg("-C").arg(&folder).arg(".");
    assert!(tar.status().unwrap().success());
    assert_eq!(import(&test, &bundle), "generation 2\n");
    follow(&test, 2, 2);
    assert!(finds(&test, &first) && finds(&test, &second));

    assert_eq!(done(&test, &["definitions", "rollback"]), "generation 1\n");
    follow(&test, 1, 2);
    assert!(finds(&test, &first) && !finds(&test, &second));

    // The server dies and comes back; what was published is there.
    let server = test.site.process("server").unwrap().unwrap();
    server.kill().unwrap();
    test.site.start_part("server").unwrap();
    done(&test, &["definitions", "activate", "2"]);
    follow(&test, 2, 2);
    assert!(finds(&test, &second));

    let wrong = palisade(&test, &["definitions", "activate", "9"]);
    assert_eq!(wrong.code, Some(3));
    assert!(
        wrong.stderr.contains("there is no generation 9"),
        "{}",
        wrong.stderr
    );
    let audit = done(&test, &["audit", "list", "-o", "json"]);
    for action in ["import", "rollback", "activate", "keys"] {
        assert!(
            audit.contains(&format!("definitions.{action}")),
            "{action}: {audit}"
        );
    }
}

/// Whoever writes to the server's disk changes nothing that a Protection Server loads.
#[test]
fn the_servers_disk_is_not_believed() {
    let test = site();
    let [first, second, third] = [Marker::random(), Marker::random(), Marker::random()];
    import(&test, &directory(&test, "one", &first));
    test.site.start_part("scanserver").unwrap();
    follow(&test, 1, 1);
    let definitions = test.site.dir().join("var/server/definitions");
    let metadata = definitions.join("metadata");
    let earlier = test.folder().join("earlier");
    copy(&metadata, &earlier);

    // Another file of the same length in the place of one.
    test.site
        .process("scanserver")
        .unwrap()
        .unwrap()
        .stop()
        .unwrap();
    import(&test, &directory(&test, "two", &second));
    let shown = test.site.console(&["definitions", "show", "2"]).unwrap();
    let sha256 = shown["contents"][0]["sha256"].as_str().unwrap();
    let file = definitions.join("files").join(sha256);
    let right = fs::read(&file).unwrap();
    let mut wrong = third.ndb().into_bytes();
    wrong.resize(right.len(), b'\n');
    fs::write(&file, &wrong).unwrap();
    test.site.start_part("scanserver").unwrap();
    let why = refused(&test);
    assert!(why.contains("other bytes of marker.ndb"), "{why}");
    test.site.start_part("agent").unwrap();
    assert!(finds(&test, &first) && !finds(&test, &second) && !finds(&test, &third));
    fs::write(&file, &right).unwrap();
    follow(&test, 2, 1);
    assert!(finds(&test, &second));

    // What was published before, as if nothing had been since.
    let later = test.folder().join("later");
    restart(&test, "server", || {
        copy(&metadata, &later);
        fs::remove_dir_all(&metadata).unwrap();
        copy(&earlier, &metadata);
    });
    let why = refused(&test);
    assert!(why.contains("rollback"), "{why}");
    assert!(finds(&test, &second) && !finds(&test, &first));
    restart(&test, "server", || {
        fs::remove_dir_all(&metadata).unwrap();
        copy(&later, &metadata);
    });
    done(&test, &["definitions", "rollback"]);
    follow(&test, 1, 1);
    assert!(finds(&test, &first));
}

/// With the publisher's key elsewhere, the server publishes nothing by itself.
#[test]
fn a_publisher_elsewhere_signs() {
    let test = site();
    let [first, second] = [Marker::random(), Marker::random()];
    import(&test, &directory(&test, "one", &first));
    test.site.start_part("scanserver").unwrap();
    follow(&test, 1, 1);
    let key = test.folder().join("publisher.key");
    let key = key.to_str().unwrap();
    let id = done(&test, &["definitions", "key", "create", key]);
    assert_eq!(done(&test, &["definitions", "key", "use", key]), id);
    let listed = test.site.console(&["definitions", "list"]).unwrap();
    assert_eq!(listed["signs_here"], false, "{listed:#}");
    assert_eq!(listed["publisher"], id.trim(), "{listed:#}");

    let two = directory(&test, "two", &second);
    let two = two.to_str().unwrap();
    let without = palisade(&test, &["definitions", "import", two]);
    assert_eq!(without.code, Some(3));
    assert!(without.stderr.contains("--key FILE"), "{}", without.stderr);
    let other = test.folder().join("other.key");
    let other = other.to_str().unwrap();
    done(&test, &["definitions", "key", "create", other]);
    let wrong = palisade(&test, &["definitions", "import", two, "--key", other]);
    assert_eq!(wrong.code, Some(3));
    assert!(wrong.stderr.contains("another one"), "{}", wrong.stderr);
    done(&test, &["definitions", "import", two, "--key", key]);
    follow(&test, 2, 1);
    done(&test, &["definitions", "rollback", "--key", key]);
    follow(&test, 1, 1);

    // From one publisher to the next, who needs the old key for that.
    let refused = palisade(&test, &["definitions", "key", "use", other]);
    assert_eq!(refused.code, Some(3), "{}", refused.stderr);
    done(
        &test,
        &["definitions", "key", "use", other, "--old-key", key],
    );
    done(&test, &["definitions", "activate", "2", "--key", other]);
    follow(&test, 2, 1);
    let audit = done(&test, &["audit", "list", "-o", "json"]);
    for action in ["definitions.key\"", "definitions.signed\""] {
        assert!(audit.contains(action), "{action}: {audit}");
    }
}

/// A repository that is begun anew is another one: only who is set up anew follows it.
#[test]
fn a_repository_that_is_begun_anew_is_refused_until_one_begins_anew() {
    let test = site();
    let [first, second] = [Marker::random(), Marker::random()];
    import(&test, &directory(&test, "one", &first));
    test.site.start_part("scanserver").unwrap();
    follow(&test, 1, 1);
    restart(&test, "server", || {
        let forget = &["forget-definitions"];
        let forgotten = test.site.run("palisade-server", forget, PATIENCE).unwrap();
        forgotten.expect(&[0]).unwrap();
    });
    assert_eq!(
        import(&test, &directory(&test, "two", &second)),
        "generation 1\n"
    );
    let why = refused(&test);
    assert!(why.contains("threshold"), "{why}");
    restart(&test, "scanserver", || {
        let repository = test.site.dir().join("var/scanserver/repository");
        fs::remove_dir_all(repository).unwrap();
    });
    // Another number than that of the old repository's.
    let three = directory(&test, "three", &second);
    fs::write(three.join("other.ndb"), Marker::random().ndb()).unwrap();
    assert_eq!(import(&test, &three), "generation 2\n");
    follow(&test, 2, 1);
    test.site.start_part("agent").unwrap();
    assert!(finds(&test, &second) && !finds(&test, &first));
}

/// A disk that fills up while definitions come in has nothing half of them afterwards.
#[test]
fn a_full_disk_refuses_an_import_and_keeps_nothing_of_it() {
    if !skip::is_root("a_full_disk_refuses_an_import_and_keeps_nothing_of_it") {
        return;
    }
    let test = TestSite::prepare(&[]);
    let small = Small::mount(&test.folder().join("small"));
    let state = test.site.dir().join("var/server");
    fs::create_dir_all(&state).unwrap();
    std::os::unix::fs::symlink(&small.0, state.join("definitions")).unwrap();
    test.site.start_part("server").unwrap();
    let marker = Marker::random();
    let folder = directory(&test, "large", &marker);
    let comment = "// a comment that fills the disk\n".repeat(300_000);
    fs::write(folder.join("large.yar"), comment).unwrap();
    let full = palisade(&test, &["definitions", "import", folder.to_str().unwrap()]);
    assert_eq!(full.code, Some(3));
    assert!(full.stderr.contains("is full"), "{}", full.stderr);
    assert_eq!(fs::read_dir(small.0.join("incoming")).unwrap().count(), 0);
    let site = test.site.console(&["definitions", "list"]).unwrap();
    assert!(site["wanted"].is_null(), "{site:#}");
    fs::remove_file(folder.join("large.yar")).unwrap();
    assert_eq!(import(&test, &folder), "generation 1\n");
}

/// A disk of 4 MiB.
struct Small(PathBuf);

impl Small {
    fn mount(place: &Path) -> Self {
        fs::create_dir_all(place).unwrap();
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
        let size = Some("size=4m");
        mount(Some("tmpfs"), place, Some("tmpfs"), flags, size).unwrap();
        Self(place.to_owned())
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

/// A directory that somebody else fills, such as freshclam's mirror, needs nobody.
#[test]
fn a_watched_directory_is_imported_by_itself() {
    let test = TestSite::prepare(&[]);
    let [first, second] = [Marker::random(), Marker::random()];
    let mirror = directory(&test, "mirror", &first);
    let more = format!(
        "[definitions]\nsource = '{}'\npoll = '1s'\n",
        mirror.display()
    );
    test.set("server", &more);
    test.site.start_part("server").unwrap();
    let wanted = |number: u64| {
        wait_for("an import", PATIENCE, || {
            let site: Value = test.site.console(&["definitions", "list"])?;
            ensure!(site["wanted"] == number, "not {number}: {site:#}");
            Ok(())
        })
        .unwrap();
    };
    wanted(1);
    let new = mirror.join("marker.tmp");
    fs::write(&new, second.ndb()).unwrap();
    fs::rename(new, mirror.join("marker.ndb")).unwrap();
    wanted(2);
    // What was rolled back stays so until the directory has another.
    done(&test, &["definitions", "rollback"]);
    restart(&test, "server", || {});
    let site = test.site.console(&["definitions", "list"]).unwrap();
    assert_eq!(site["wanted"], 1, "{site:#}");
    assert!(site["problem"].is_null(), "{site:#}");
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
    }
}
