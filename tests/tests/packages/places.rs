//! The program in other places: where there is no library at all, and on an older Debian.
//! What ran where is a table in `docs/packages.md`.

use std::fs;
use std::process::Command;

use palisade_tests::command::{self, Finished};
use palisade_tests::definitions::Marker;
use palisade_tests::skip;

use crate::built::Packages;
use crate::common::SCAN;
use crate::life::servers;
use crate::root::Root;

/// Runs the agent in a root.
fn agent(root: &Root, arguments: &[&str]) -> Finished {
    let all = [&["/usr/bin/palisade-agent"], arguments].concat();
    command::finish(root.chroot(&all), SCAN).unwrap()
}

/// Puts the program and its settings there, and uses them against a site.
fn works_in(root: &Root, packages: &Packages) {
    for folder in ["usr/bin", "etc/palisade", "var/lib", "srv"] {
        fs::create_dir_all(root.at(folder)).unwrap();
    }
    root.mount_proc();
    fs::copy(packages.agent(), root.at("/usr/bin/palisade-agent")).unwrap();
    let settings = packages.files.join("etc/palisade/agent.toml");
    fs::copy(settings, root.at("/etc/palisade/agent.toml")).unwrap();

    let version = agent(root, &["--version"]).expect(&[0]).unwrap();
    let version = String::from_utf8(version.stdout).unwrap();
    assert_eq!(
        version,
        format!("palisade-agent {}\n", env!("CARGO_PKG_VERSION"))
    );
    agent(root, &["check-config"]).expect(&[0]).unwrap();

    let marker = Marker::random();
    let site = servers(&marker);
    let token = site.site.join_token("agent").unwrap();
    fs::write(root.at("/etc/palisade/join-token"), token).unwrap();
    // Keys are made of the kernel's randomness.
    fs::create_dir_all(root.at("/dev")).unwrap();
    for (name, minor) in [("random", "8"), ("urandom", "9")] {
        let device = root.at("/dev").join(name);
        if !device.exists() {
            let mut mknod = Command::new("mknod");
            mknod.arg(&device).args(["c", "1", minor]);
            assert!(mknod.status().unwrap().success());
        }
    }
    agent(root, &["enrol"]).expect(&[0]).unwrap();
    fs::write(root.at("/srv/clean"), b"nothing").unwrap();
    agent(root, &["scan", "/srv/clean"]).expect(&[0]).unwrap();
    fs::write(root.at("/srv/marked"), &marker.bytes).unwrap();
    let found = agent(root, &["scan", "/srv", "-o", "json"])
        .expect(&[1])
        .unwrap();
    let found = found.json().unwrap();
    assert!(
        found["findings"][0]["name"]
            .as_str()
            .is_some_and(|name| name.starts_with(&marker.name)),
        "{found}"
    );
}

#[test]
fn the_agent_works_where_nothing_else_is() {
    if !skip::is_root("the_agent_works_where_nothing_else_is") {
        return;
    }
    let packages = Packages::build();
    let root = Root::empty();
    works_in(&root, &packages);
    // The control: a common program finds no library there.
    let common = command::program("palisade-agent").unwrap();
    fs::copy(common, root.at("/usr/bin/palisade-agent")).unwrap();
    assert_ne!(agent(&root, &["--version"]).code, Some(0));
}

#[test]
fn the_agent_works_on_an_older_debian() {
    if !skip::is_root("the_agent_works_on_an_older_debian") {
        return;
    }
    let packages = Packages::build();
    let root = Root::debian("bullseye");
    let release = fs::read_to_string(root.at("/etc/debian_version")).unwrap();
    assert!(release.starts_with("11"), "{release}");
    works_in(&root, &packages);
    // The control: what is linked here in the common way is too new for it.
    let common = command::program("palisade-agent").unwrap();
    fs::copy(common, root.at("/usr/bin/palisade-agent")).unwrap();
    let refused = agent(&root, &["--version"]);
    assert_ne!(refused.code, Some(0));
    assert!(refused.stderr.contains("GLIBC"), "{}", refused.stderr);
}
