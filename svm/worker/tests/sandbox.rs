//! What the sandbox is on this machine, and what becomes of workers on a machine
//! that cannot do all of it.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a panic here is a failed test"
)]

use palisade_worker::client::{
    EngineCommand, EngineProcess, Outcome, ScanOptions, SealedContent, SpawnError, WorkerHandle,
};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;
use tempfile::TempDir;

const PLANTED: &str = env!("CARGO_BIN_EXE_palisade-planted-engine");
const LONG: Duration = Duration::from_secs(60);
const NOBODY: &str = "65534";

/// The planted engine, started by a program and its arguments.
fn through(wrapper: &[&str], scratch: &Path) -> EngineCommand {
    let all = [wrapper, &[PLANTED]].concat();
    let command = all[1..]
        .iter()
        .fold(EngineCommand::new(all[0]), |command, arg| command.arg(*arg));
    command.arg("--scratch").arg(scratch)
}

fn cleans(worker: &mut WorkerHandle) -> bool {
    let content = SealedContent::from_bytes(b"clean").unwrap();
    let done = worker.scan(&content, ScanOptions::default(), LONG, &mut drop);
    done.unwrap().outcome == Outcome::Clean
}

/// A scratch directory that everybody may enter.
fn scratch() -> TempDir {
    let scratch = TempDir::new().unwrap();
    let everybody = std::fs::Permissions::from_mode(0o777);
    std::fs::set_permissions(scratch.path(), everybody).unwrap();
    scratch
}

/// Whether root can do this here; says so if not.
fn can(test: &str, program: &[&str]) -> bool {
    let done = Command::new(program[0]).args(&program[1..]).output();
    let can = done.is_ok_and(|output| output.status.success());
    if !can {
        println!(
            "skipped: {test}: `{}` does not work here",
            program.join(" ")
        );
    }
    can
}

fn status(pid: i32, key: &str) -> String {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(key)).unwrap();
    line[key.len() + 1..].trim().to_owned()
}

#[test]
fn the_kernel_says_so() {
    let scratch = scratch();
    let command = through(&[], scratch.path()).arg("--worker-memory=1000000000");
    let (engine, _) = EngineProcess::start(&command).unwrap();
    let worker = engine.spawn_worker().unwrap();
    assert!(worker.gaps().is_empty(), "{:?}", worker.gaps());
    let pid = worker.pid();
    assert_eq!(status(pid, "NoNewPrivs"), "1");
    assert_eq!(status(pid, "Seccomp"), "2");
    for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(status(pid, set), "0000000000000000", "{set}");
    }
    if nix::unistd::geteuid().is_root() {
        assert_eq!(status(pid, "CapBnd"), "0000000000000000");
        let all_four = [NOBODY; 4].join("\t");
        assert_eq!(status(pid, "Uid"), all_four);
        assert_eq!(status(pid, "Gid"), all_four);
        assert_eq!(status(pid, "Groups"), "");
        let namespace =
            |of: &str, kind: &str| std::fs::read_link(format!("/proc/{of}/ns/{kind}")).unwrap();
        for kind in ["net", "ipc", "uts", "mnt", "cgroup"] {
            let theirs = namespace(&pid.to_string(), kind);
            assert_ne!(theirs, namespace("self", kind), "{kind}");
        }
        let mounts = std::fs::read_to_string(format!("/proc/{pid}/mountinfo")).unwrap();
        let mounts: Vec<_> = mounts.lines().collect();
        assert_eq!(mounts.len(), 1, "{mounts:?}");
        assert!(
            mounts[0].contains(" / / rw,nosuid,nodev,noexec"),
            "{mounts:?}"
        );
        let interfaces = std::fs::read_to_string(format!("/proc/{pid}/net/dev")).unwrap();
        // Two lines of headings, and a loopback that is down.
        assert_eq!(interfaces.lines().count(), 3, "{interfaces}");
    }
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    let limit = |name: &str| {
        let line = limits.lines().find(|line| line.starts_with(name)).unwrap();
        let soft_and_hard: Vec<_> = line[name.len()..].split_whitespace().take(2).collect();
        assert_eq!(soft_and_hard[0], soft_and_hard[1], "{line}");
        soft_and_hard[0].parse::<u64>().unwrap()
    };
    assert_eq!(limit("Max core file size"), 0);
    assert_eq!(limit("Max processes"), 0);
    assert_eq!(limit("Max open files"), 256);
    assert!((1_000_000_000..1_200_000_000).contains(&limit("Max data size")));
}

/// Without root the worker is who its zygote is, in namespaces of its own.
#[test]
fn an_unprivileged_zygote_has_the_whole_sandbox() {
    let test = "an_unprivileged_zygote_has_the_whole_sandbox";
    let drop_rights = [
        "setpriv",
        "--reuid",
        NOBODY,
        "--regid",
        NOBODY,
        "--clear-groups",
        "--bounding-set=-all",
        "--inh-caps=-all",
    ];
    let makes_namespaces = [&drop_rights[..], &["unshare", "-Urmn", "true"]].concat();
    let reads_program = [&drop_rights[..], &["test", "-x", PLANTED]].concat();
    if !can(test, &makes_namespaces) || !can(test, &reads_program) {
        return;
    }
    let scratch = scratch();
    let (engine, _) = EngineProcess::start(&through(&drop_rights, scratch.path())).unwrap();
    let mut worker = engine.spawn_worker().unwrap();
    assert!(worker.gaps().is_empty(), "{:?}", worker.gaps());
    assert!(cleans(&mut worker));
    assert_eq!(status(worker.pid(), "Uid"), [NOBODY; 4].join("\t"));
    assert_eq!(status(worker.pid(), "CapEff"), "0000000000000000");
    let mounts = std::fs::read_to_string(format!("/proc/{}/mountinfo", worker.pid())).unwrap();
    assert_eq!(mounts.lines().count(), 1, "{mounts}");
    assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0);
}

/// What is missing is named with a remedy, and refused unless that is allowed.
#[test]
fn what_the_machine_lacks_is_refused_or_named() {
    let test = "what_the_machine_lacks_is_refused_or_named";
    // A user namespace in which no further namespace can be made.
    let none_left = "echo 0 > /proc/sys/user/max_mnt_namespaces && exec \"$@\"";
    let wrapper = [
        "unshare",
        "--user",
        "--map-root-user",
        "sh",
        "-c",
        none_left,
        "sh",
    ];
    if !can(test, &[&wrapper[..], &["true"]].concat()) {
        return;
    }
    let scratch = scratch();
    let command = through(&wrapper, scratch.path());
    let (engine, _) = EngineProcess::start(&command).unwrap();
    match engine.spawn_worker() {
        Err(SpawnError::SandboxFailed { detail }) => {
            assert!(
                detail.starts_with("namespaces: no namespaces can be made"),
                "{detail}"
            );
            for part in [
                "run palisade-scanserver as root",
                "sandbox = \"best-effort\"",
            ] {
                assert!(detail.contains(part), "{detail}");
            }
        }
        other => panic!("{other:?}"),
    }
    drop(engine);

    let (engine, _) = EngineProcess::start(&command.arg("--sandbox=best-effort")).unwrap();
    let mut worker = engine.spawn_worker().unwrap();
    let gaps: Vec<_> = worker.gaps().iter().map(|gap| gap.as_str()).collect();
    // The namespaces; and root there is one that has nobody to become.
    assert_eq!(gaps.len(), 2, "{gaps:?}");
    assert!(gaps[0].starts_with("namespaces: no namespaces"), "{gaps:?}");
    assert!(
        gaps[1].starts_with("identity: workers run as root"),
        "{gaps:?}"
    );
    assert!(cleans(&mut worker));
    // All else is there; its scratch is a directory among others.
    assert_eq!(status(worker.pid(), "Seccomp"), "2");
    assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 1);
    let pid = worker.pid();
    drop(engine);
    assert!(!Path::new(&format!("/proc/{pid}")).exists());
    assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0);
}
