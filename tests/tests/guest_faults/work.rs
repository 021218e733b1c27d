//! What guests do all day, on a protected file system under `block`: it ends well, and how
//! much slower it is is printed. Full counts with `PALISADE_FILES` (scripts/soak).

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use palisade_tests::{command, skip};
use sha2::Digest as _;

use super::guest::{Guest, denied, number, open_soon};

/// Longer than any of it takes.
const LONG: Duration = Duration::from_secs(600);

fn files(default: usize) -> usize {
    let set = std::env::var("PALISADE_FILES");
    set.ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(default)
}

/// Runs it to its good end; gives how long it took.
fn timed(mut command: Command) -> Duration {
    command.env("LC_ALL", "C");
    let started = Instant::now();
    let done = command::finish(command, LONG).unwrap();
    let took = started.elapsed();
    let stdout = String::from_utf8_lossy(&done.stdout).into_owned();
    assert_eq!(done.code, Some(0), "{}: {stdout}{}", done.line, done.stderr);
    took
}

/// Does the same work on an unprotected tmpfs and on the protected one.
fn compare(guest: &Guest, what: &str, work: impl Fn(&Path) -> Duration) {
    let plain = guest.test.folder().join("plain");
    let _plain = super::guest::Mount::tmpfs(&plain, "size=256m");
    let without = work(&plain);
    let before = guest.settled();
    let with = work(&guest.test.protected);
    let after = guest.settled();
    let more = |key: &str| number(&after, key) - number(&before, key);
    println!(
        "{what}: {without:?} without, {with:?} with ({:.1} times); {} opens, {} scanned, {} remembered",
        with.as_secs_f64() / without.as_secs_f64().max(0.001),
        more("seen"),
        more("scanned"),
        more("cached")
    );
    assert_eq!(more("failed_open") + more("failed_closed"), 0, "{after}");
    assert_eq!(more("denied") + more("kernel_refused"), 0, "{after}");
    assert!(more("scanned") > 0, "{after}");
    // The control: it was under `block`.
    assert!(denied(open_soon(&guest.bad("bad"))));
    fs::remove_file(guest.test.protected.join("bad")).unwrap();
}

#[test]
fn archives_are_unpacked_and_read() {
    if !skip::is_root("archives_are_unpacked_and_read") {
        return;
    }
    let files = files(2000);
    let guest = Guest::start("");
    let from = guest.test.folder().join("from");
    fs::create_dir(&from).unwrap();
    for n in 0..files {
        let folder = from.join((n / 100).to_string());
        fs::create_dir_all(&folder).unwrap();
        fs::write(
            folder.join(n.to_string()),
            format!("file {n} ").repeat(1 + n % 300),
        )
        .unwrap();
    }
    let archive = guest.test.folder().join("a.tar");
    let mut pack = Command::new("tar");
    pack.arg("-cf").arg(&archive).arg("-C").arg(&from).arg(".");
    timed(pack);
    compare(
        &guest,
        &format!("tar x of {files} files, read by tar d"),
        |at| {
            let to = at.join("to");
            fs::create_dir(&to).unwrap();
            let mut took = Duration::ZERO;
            for how in ["-xf", "-df"] {
                let mut tar = Command::new("tar");
                tar.arg(how).arg(&archive).arg("-C").arg(&to);
                took += timed(tar);
            }
            fs::remove_dir_all(to).unwrap();
            took
        },
    );
}

#[test]
fn packages_are_installed() {
    const FILES: usize = 300;
    if !skip::is_root("packages_are_installed") {
        return;
    }
    let guest = Guest::start("");
    let tree = guest.test.folder().join("tree");
    fs::create_dir_all(tree.join("DEBIAN")).unwrap();
    let control = "Package: palisade-sample\nVersion: 1\nArchitecture: all\n\
                   Maintainer: nobody <nobody@localhost>\nDescription: a sample\n";
    fs::write(tree.join("DEBIAN/control"), control).unwrap();
    fs::create_dir_all(tree.join("usr/share/sample")).unwrap();
    for n in 0..FILES {
        fs::write(
            tree.join(format!("usr/share/sample/{n}")),
            format!("file {n}"),
        )
        .unwrap();
    }
    // A repository as a mirror is one, that `apt-get` copies its packages from.
    let mirror = guest.test.folder().join("mirror");
    fs::create_dir(&mirror).unwrap();
    let package = mirror.join("sample.deb");
    let mut build = Command::new("dpkg-deb");
    build
        .args(["--root-owner-group", "--build"])
        .arg(&tree)
        .arg(&package);
    timed(build);
    let bytes = fs::read(&package).unwrap();
    let index = format!(
        "{control}Filename: ./sample.deb\nSize: {}\nSHA256: {}\n",
        bytes.len(),
        hex::encode(sha2::Sha256::digest(&bytes))
    );
    fs::write(mirror.join("Packages"), index).unwrap();
    let source = format!("deb [trusted=yes] copy:{} ./\n", mirror.display());
    compare(
        &guest,
        &format!("apt-get update, install and remove of {FILES} files, and dpkg -V"),
        |at| {
            let root = at.join("root");
            for folder in [
                "etc/apt/apt.conf.d",
                "etc/apt/preferences.d",
                "etc/apt/trusted.gpg.d",
                "var/cache/apt/archives/partial",
                "var/lib/apt/lists/partial",
                "var/lib/dpkg/info",
                "var/lib/dpkg/updates",
                "var/log/apt",
            ] {
                fs::create_dir_all(root.join(folder)).unwrap();
            }
            let status = root.join("var/lib/dpkg/status");
            fs::write(&status, "").unwrap();
            fs::write(root.join("etc/apt/sources.list"), &source).unwrap();
            // Not the system's own databases, locks and logs.
            let options = [
                format!("Dir={}", root.display()),
                format!("Dir::State::status={}", status.display()),
                format!("DPkg::Options::=--root={}", root.display()),
                "DPkg::Options::=--log=/dev/null".to_owned(),
                "APT::Sandbox::User=root".to_owned(),
            ];
            let apt = |arguments: &[&str]| {
                let mut apt = Command::new("apt-get");
                apt.env("DEBIAN_FRONTEND", "noninteractive").arg("-y");
                for option in &options {
                    apt.args(["-o", option]);
                }
                apt.args(arguments);
                timed(apt)
            };
            let mut took = apt(&["update"]) + apt(&["install", "palisade-sample"]);
            let last = root.join(format!("usr/share/sample/{}", FILES - 1));
            assert!(last.exists(), "it is installed");
            let mut check = Command::new("dpkg");
            check.arg(format!("--root={}", root.display()));
            check.args(["-V", "palisade-sample"]);
            took += timed(check) + apt(&["remove", "palisade-sample"]);
            assert!(!last.exists(), "it is removed");
            fs::remove_dir_all(root).unwrap();
            took
        },
    );
}

#[test]
fn programs_are_built_and_run() {
    const UNITS: usize = 60;
    if !skip::is_root("programs_are_built_and_run") {
        return;
    }
    let guest = Guest::start("");
    compare(&guest, &format!("make -j2 of {UNITS} C files"), |at| {
        let folder = at.join("build");
        fs::create_dir(&folder).unwrap();
        let mut main = String::new();
        let mut sum = String::from("0");
        for n in 0..UNITS {
            let unit = format!("#include \"common.h\"\nint f{n}(void) {{ return K + {n}; }}\n");
            fs::write(folder.join(format!("u{n}.c")), unit).unwrap();
            let _ = writeln!(main, "int f{n}(void);");
            let _ = write!(sum, " + f{n}()");
        }
        fs::write(folder.join("common.h"), "#define K 0\n").unwrap();
        let expected = UNITS * (UNITS - 1) / 2;
        let _ = writeln!(main, "int main(void) {{ return ({sum}) != {expected}; }}");
        fs::write(folder.join("main.c"), main).unwrap();
        let rules = "OBJECTS = $(patsubst %.c,%.o,$(wildcard *.c))\n\
                     program: $(OBJECTS)\n\tgcc -o $@ $^\n\
                     %.o: %.c common.h\n\tgcc -O1 -c -o $@ $<\n";
        fs::write(folder.join("Makefile"), rules).unwrap();
        let mut make = Command::new("make");
        make.arg("-j2").arg("-C").arg(&folder);
        let took = timed(make) + timed(Command::new(folder.join("program")));
        fs::remove_dir_all(folder).unwrap();
        took
    });
}
