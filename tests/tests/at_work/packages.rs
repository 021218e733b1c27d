//! Files that are as their package has them: left out of scans where settings say so, and
//! whatever differs from its package is scanned, and found.

use std::fs;
use std::path::{Path, PathBuf};

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use palisade_tests::skip;
use serde_json::Value;

use super::common::watch::Numbers;
use super::guest::{Guest, PATIENCE};

/// dpkg's lists of what its packages installed.
const DPKG: &str = "/var/lib/dpkg/info";

/// dpkg lists these, with the digests that they have now.
fn list(dpkg: &Path, paths: &[PathBuf]) {
    let lines: String = paths
        .iter()
        .map(|path| {
            let sum = std::process::Command::new("md5sum")
                .arg(path)
                .output()
                .unwrap();
            let sum = String::from_utf8(sum.stdout).unwrap();
            let path = path.strip_prefix("/").unwrap().display();
            format!("{}  {path}\n", sum.split(' ').next().unwrap())
        })
        .collect();
    fs::write(dpkg.join("palisade-test.md5sums"), lines).unwrap();
}

/// Gives this thread mounts of its own, in which dpkg's lists are those of this folder.
fn replace_lists(by: &Path) {
    unshare(CloneFlags::CLONE_NEWNS).unwrap();
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
    mount(Some(by), DPKG, none, MsFlags::MS_BIND, none).unwrap();
}

fn scan(guest: &Guest, packaged: &str) -> (Option<i32>, Value) {
    guest.set(&format!("[scan]\npackaged = '{packaged}'"));
    let folder = guest.test.folder().join("files");
    let arguments = ["scan", "-o", "json", folder.to_str().unwrap()];
    let said = guest
        .test
        .site
        .run("palisade-agent", &arguments, PATIENCE)
        .unwrap();
    (said.code, said.json().unwrap())
}

#[test]
fn what_is_as_its_package_has_it_is_not_sent_and_what_differs_is_found() {
    const NAME: &str = "what_is_as_its_package_has_it_is_not_sent_and_what_differs_is_found";
    if !skip::is_root(NAME) {
        return;
    }
    if !fs::exists(DPKG).unwrap() {
        return skip::skip(NAME, "dpkg has no lists here");
    }
    let dpkg = tempfile::tempdir().unwrap();
    replace_lists(dpkg.path());
    let guest = Guest::prepare("[on_access]\nenabled = false");
    let svm = guest.test.start_with_numbers();
    let file = |name: &str| {
        let content = format!("{name} {}", uuid::Uuid::new_v4());
        guest
            .test
            .file(&format!("files/{name}"), content.as_bytes())
    };
    let (same, changed) = (file("same"), file("changed"));
    file("free");
    list(dpkg.path(), &[same.clone(), changed.clone()]);
    // As somebody does who replaces a tool.
    fs::write(&changed, guest.malware("changed")).unwrap();
    let scans = || Numbers::read(svm).sum("scans_total");
    let (before, (code, report)) = (scans(), scan(&guest, "skip"));
    assert_eq!(
        (code, &report["malware"]),
        (Some(1), &1.into()),
        "{report:#}"
    );
    assert_eq!(report["findings"][0]["path"], changed.to_str().unwrap());
    let counted = (&report["scanned"], &report["packaged"]);
    assert_eq!(counted, (&2.into(), &1.into()), "{report:#}");
    assert_eq!(
        scans() - before,
        2.0,
        "the engine saw what is no package's alone"
    );
    // The control: by default all are scanned, and the one that was left out is new to the
    // engine.
    let (before, (code, report)) = (scans(), scan(&guest, "scan"));
    let counted = (&report["scanned"], &report["packaged"]);
    assert_eq!(
        (code, counted),
        (Some(1), (&3.into(), &0.into())),
        "{report:#}"
    );
    assert_eq!(scans() - before, 1.0);
}
