//! Programs whose opens are let through: the very file of root's, and what it executes not.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use palisade_tests::skip;

use super::guest::Guest;

fn reads(program: &Path, file: &Path) -> bool {
    let mut cat = Command::new(program);
    cat.arg(file).output().unwrap().status.success()
}

#[test]
fn only_an_excluded_program_reads_malware() {
    if !skip::is_root("only_an_excluded_program_reads_malware") {
        return;
    }
    let guest = Guest::prepare("");
    let [excluded, other, shell] = ["excluded", "other", "shell"].map(|name| {
        let from = if name == "shell" {
            "/bin/sh"
        } else {
            "/bin/cat"
        };
        let path = guest.test.folder().join(name);
        fs::copy(from, &path).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o755)).unwrap();
        path.canonicalize().unwrap()
    });
    guest.set(&format!(
        "[on_access]\nexclude_processes = ['{}', '{}']",
        excluded.display(),
        shell.display()
    ));
    guest.test.site.start().unwrap();
    guest.wait_state("blocking");
    let bad = guest.bad("bad");
    assert!(reads(&excluded, &bad));
    // The control: the same program as another file.
    assert!(!reads(&other, &bad));
    // A name is nothing, and neither is a program that others may change.
    let mut named = Command::new("bash");
    let script = format!(
        "exec -a '{}' '{}' '{}'",
        excluded.display(),
        other.display(),
        bad.display()
    );
    assert!(
        !named
            .args(["-c", &script])
            .output()
            .unwrap()
            .status
            .success()
    );
    fs::set_permissions(&excluded, Permissions::from_mode(0o757)).unwrap();
    assert!(!reads(&excluded, &bad));
    fs::set_permissions(&excluded, Permissions::from_mode(0o755)).unwrap();
    assert!(reads(&excluded, &bad));
    // What it executes is another program.
    let program = [
        &fs::read("/bin/true").unwrap()[..],
        &guest.malware("program"),
    ]
    .concat();
    let program = guest.file("program", &program);
    fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
    let mut run = Command::new(&shell);
    let run = run.arg("-c").arg(format!("exec '{}'", program.display()));
    assert!(!run.output().unwrap().status.success());
    guest.settled();
}
