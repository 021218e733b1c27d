//! Zygote and workers as processes, driven through the client; the engine is the
//! planted one.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a panic here is a failed test"
)]

use palisade_worker::client::{
    EngineCommand, EngineProcess, MemFile, NotScanned, Outcome, ScanDone, ScanOptions,
    SealedContent, SpawnError, StartError, WorkerError, WorkerExit, WorkerHandle,
};
use palisade_worker::message::{MAX_MEMBER_BYTES, MAX_MEMBERS};
use std::path::Path;
use std::time::{Duration, Instant};
use tempfile::TempDir;

const LONG: Duration = Duration::from_secs(60);

fn command(scratch: &Path) -> EngineCommand {
    EngineCommand::new(env!("CARGO_BIN_EXE_palisade-planted-engine"))
        .arg("--scratch")
        .arg(scratch)
}

fn start(scratch: &TempDir) -> EngineProcess {
    EngineProcess::start(&command(scratch.path())).unwrap().0
}

fn scan(worker: &mut WorkerHandle, words: &str) -> Result<ScanDone, WorkerError> {
    let content = SealedContent::from_bytes(words.as_bytes()).unwrap();
    worker.scan(&content, ScanOptions::default(), LONG, &mut drop)
}

fn found(worker: &mut WorkerHandle, words: &str) -> String {
    match scan(worker, words).unwrap().outcome {
        Outcome::Found { names, .. } => names[0].as_str().to_owned(),
        other => panic!("{other:?}"),
    }
}

fn process_is_gone(pid: impl std::fmt::Display) -> bool {
    let path = format!("/proc/{pid}");
    let deadline = Instant::now() + LONG;
    while Path::new(&path).exists() {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    true
}

#[test]
fn loads_spawns_scans_and_leaves_nothing_behind() {
    let scratch = TempDir::new().unwrap();
    let (engine, loaded) = EngineProcess::start(&command(scratch.path())).unwrap();
    assert_eq!((loaded.engine.as_str(), loaded.signatures), ("planted", 1));
    let mut one = engine.spawn_worker().unwrap();
    let mut two = engine.spawn_worker().unwrap();
    assert_eq!(scan(&mut one, "clean").unwrap().outcome, Outcome::Clean);
    assert_eq!(found(&mut two, "find Some.Name"), "Some.Name");
    assert_eq!(
        scan(&mut one, "limit").unwrap().outcome,
        Outcome::NotScanned {
            reason: NotScanned::Limit {
                which: "AsTold".into()
            }
        }
    );
    let pids = [found(&mut one, "pid"), found(&mut two, "pid")];
    assert_ne!(pids[0], pids[1]);
    assert_eq!(one.pid().to_string(), pids[0]);
    // Their files are in file systems of their own.
    assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0);
    let zygote = engine.pid();
    drop(engine);
    assert!(
        !Path::new(&format!("/proc/{zygote}")).exists(),
        "the zygote was not reaped"
    );
    assert!(pids.iter().all(process_is_gone));
    assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0);
    assert!(matches!(
        scan(&mut one, "clean"),
        Err(WorkerError::Died { .. })
    ));
}

#[test]
fn a_worker_holds_its_channel_and_nothing_of_others() {
    let scratch = TempDir::new().unwrap();
    let engine = start(&scratch);
    let _other = engine.spawn_worker().unwrap();
    let mut worker = engine.spawn_worker().unwrap();
    // Standard three, which lead nowhere, channel and content.
    assert_eq!(found(&mut worker, "fds").split(',').count(), 5);
    let status = std::fs::read_to_string(format!("/proc/{}/status", worker.pid())).unwrap();
    assert!(status.contains("NoNewPrivs:\t1"), "{status}");
    assert!(status.contains("Umask:\t0077"), "{status}");
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", worker.pid())).unwrap();
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"))
        .unwrap();
    assert_eq!(core.split_whitespace().nth(4), Some("0"), "{core}");
}

#[test]
fn a_killed_worker_is_reported_and_replaced() {
    let scratch = TempDir::new().unwrap();
    let engine = start(&scratch);
    let mut worker = engine.spawn_worker().unwrap();
    let error = scan(&mut worker, "crash").unwrap_err();
    assert!(
        matches!(
            error,
            WorkerError::Died {
                exit: Some(WorkerExit::Signal(6))
            }
        ),
        "{error:?}"
    );
    assert!(!worker.is_usable());

    let mut worker = engine.spawn_worker().unwrap();
    let error = scan(&mut worker, "exit 42").unwrap_err();
    assert!(
        matches!(
            error,
            WorkerError::Died {
                exit: Some(WorkerExit::Code(42))
            }
        ),
        "{error:?}"
    );

    let mut worker = engine.spawn_worker().unwrap();
    let pid = nix::unistd::Pid::from_raw(worker.pid());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).unwrap();
    let error = scan(&mut worker, "clean").unwrap_err();
    assert!(
        matches!(
            error,
            WorkerError::Died {
                exit: Some(WorkerExit::Signal(9))
            }
        ),
        "{error:?}"
    );

    let mut worker = engine.spawn_worker().unwrap();
    assert_eq!(scan(&mut worker, "clean").unwrap().outcome, Outcome::Clean);
}

#[test]
fn a_deadline_kills() {
    let scratch = TempDir::new().unwrap();
    let engine = start(&scratch);
    let mut worker = engine.spawn_worker().unwrap();
    let pid = worker.pid();
    let content = SealedContent::from_bytes(b"hang").unwrap();
    let started = Instant::now();
    let deadline = Duration::from_millis(300);
    let error = worker
        .scan(&content, ScanOptions::default(), deadline, &mut drop)
        .unwrap_err();
    assert!(matches!(error, WorkerError::TimedOut), "{error:?}");
    assert!(started.elapsed() >= deadline);
    assert!(started.elapsed() < LONG);
    assert!(process_is_gone(pid));
    assert!(engine.spawn_worker().is_ok());
}

#[test]
fn processor_time_has_a_limit_of_its_own() {
    let scratch = TempDir::new().unwrap();
    let mut command = command(scratch.path());
    command.scan_cpu = Some(Duration::from_millis(400));
    let (engine, _) = EngineProcess::start(&command).unwrap();
    let mut worker = engine.spawn_worker().unwrap();
    // Sleeping takes none: this one runs into the deadline of the clock.
    let content = SealedContent::from_bytes(b"hang").unwrap();
    let deadline = Duration::from_secs(1);
    let error = worker
        .scan(&content, ScanOptions::default(), deadline, &mut drop)
        .unwrap_err();
    assert!(matches!(error, WorkerError::TimedOut), "{error:?}");

    let mut worker = engine.spawn_worker().unwrap();
    let pid = worker.pid();
    // What earlier scans took is not counted.
    for _ in 0..3 {
        assert_eq!(scan(&mut worker, "clean").unwrap().outcome, Outcome::Clean);
    }
    let error = scan(&mut worker, "spin").unwrap_err();
    assert!(matches!(error, WorkerError::OutOfCpuTime), "{error:?}");
    assert!(process_is_gone(pid));
}

#[test]
fn a_dropped_handle_kills_its_worker_even_in_a_scan() {
    let scratch = TempDir::new().unwrap();
    let engine = start(&scratch);
    let worker = engine.spawn_worker().unwrap();
    let pid = worker.pid();
    drop(worker);
    assert!(process_is_gone(pid));
    assert!(engine.is_alive());
}

#[test]
fn a_dead_zygote_takes_its_workers_along() {
    let scratch = TempDir::new().unwrap();
    let engine = start(&scratch);
    let mut worker = engine.spawn_worker().unwrap();
    let pid = worker.pid();
    // Files that it would leave behind, if they were anybody's but its own.
    assert!(scan(&mut worker, "members 3 100000").is_ok());
    let mounts = || std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let before = mounts();
    let zygote = nix::unistd::Pid::from_raw(engine.pid().try_into().unwrap());
    nix::sys::signal::kill(zygote, nix::sys::signal::Signal::SIGKILL).unwrap();
    assert!(process_is_gone(pid));
    assert!(matches!(
        scan(&mut worker, "clean"),
        Err(WorkerError::Died { .. })
    ));
    assert!(matches!(engine.spawn_worker(), Err(SpawnError::EngineGone)));
    assert!(!engine.is_alive());
    assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 0);
    assert_eq!(mounts(), before);
    assert!(!before.contains(scratch.path().to_str().unwrap()));
}

#[test]
fn members_come_sealed_and_within_bounds() {
    let scratch = TempDir::new().unwrap();
    let engine = start(&scratch);
    let mut worker = engine.spawn_worker().unwrap();
    let mut scan = |words: &str, members: bool| {
        let content = SealedContent::from_bytes(words.as_bytes()).unwrap();
        let options = ScanOptions {
            members,
            ..ScanOptions::default()
        };
        let (mut count, mut last) = (0, None);
        let done = worker
            .scan(&content, options, LONG, &mut |member| {
                count += 1;
                last = Some((member.name, member.content.to_vec().unwrap()));
            })
            .unwrap();
        (count, last, done.members_truncated)
    };
    let last = Some(("member-2".to_owned(), b"mmmm".to_vec()));
    assert_eq!(scan("members 3 4", true), (3, last, false));
    assert_eq!(scan("members 3 4", false), (0, None, false));
    let (count, _, truncated) = scan(&format!("members {} 1", MAX_MEMBERS + 1), true);
    assert_eq!((count, truncated), (MAX_MEMBERS, true));
    let (count, _, truncated) = scan(&format!("members 1 {}", MAX_MEMBER_BYTES + 1), true);
    assert_eq!((count, truncated), (0, true));
}

/// A worker that was taken over loses its own request and its life, nothing else.
#[test]
fn a_lying_worker_affects_its_own_request_alone() {
    let scratch = TempDir::new().unwrap();
    let engine = start(&scratch);
    let mut honest = engine.spawn_worker().unwrap();
    let lies = [
        "for-another",
        "noise",
        "oversize",
        "nothing",
        "channel",
        "device",
        "many-descriptors",
        "size",
        "flood",
        "hang-up",
    ];
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = open();
    for kind in lies {
        let mut liar = engine.spawn_worker().unwrap();
        let pid = liar.pid();
        let content = SealedContent::from_bytes(format!("lie {kind} 1").as_bytes()).unwrap();
        let options = ScanOptions {
            members: true,
            ..ScanOptions::default()
        };
        let mut members = 0;
        let result = liar.scan(&content, options, LONG, &mut |_| members += 1);
        let expected = match (&result, kind) {
            (Err(WorkerError::Died { .. }), "hang-up") => true,
            (Err(WorkerError::Protocol { .. }), _) => kind != "hang-up",
            _ => false,
        };
        assert!(expected, "{kind}: {result:?}");
        assert!(members <= MAX_MEMBERS, "{kind}");
        assert!(!liar.is_usable(), "{kind}");
        drop(liar);
        assert!(process_is_gone(pid), "{kind}");
        assert_eq!(scan(&mut honest, "clean").unwrap().outcome, Outcome::Clean);
        assert!(honest.is_usable(), "{kind}");
    }
    // The control: without a lie the same request is answered.
    let mut worker = engine.spawn_worker().unwrap();
    assert_eq!(
        scan(&mut worker, "lie none 1").unwrap().outcome,
        Outcome::Clean
    );
    drop(worker);
    assert_eq!(open(), before, "descriptors were left open");
}

#[test]
fn memory_has_a_cap_of_its_own() {
    let scratch = TempDir::new().unwrap();
    let command = command(scratch.path()).arg("--worker-memory=67108864");
    let (engine, _) = EngineProcess::start(&command).unwrap();
    let mut worker = engine.spawn_worker().unwrap();
    assert_eq!(found(&mut worker, "grow 33554432"), "33554432");
    let error = scan(&mut worker, "grow 134217728").unwrap_err();
    assert!(matches!(error, WorkerError::Died { .. }), "{error:?}");
    // It was the cap.
    let engine = start(&scratch);
    let mut worker = engine.spawn_worker().unwrap();
    assert_eq!(found(&mut worker, "grow 134217728"), "134217728");
}

#[test]
fn content_that_can_still_change_is_not_scanned() {
    let scratch = TempDir::new().unwrap();
    let engine = start(&scratch);
    let mut worker = engine.spawn_worker().unwrap();
    let refused = |done: ScanDone| match done.outcome {
        Outcome::NotScanned {
            reason: NotScanned::EngineError { detail },
        } => detail.as_str().to_owned(),
        other => panic!("{other:?}"),
    };
    let disk = tempfile::tempfile().unwrap();
    let done = worker.scan_unverified(disk.into(), 0, LONG).unwrap();
    assert_eq!(refused(done), "the content is not sealed");

    let sealed = MemFile::create(5).unwrap().seal().unwrap();
    let fd = std::os::fd::AsFd::as_fd(&sealed)
        .try_clone_to_owned()
        .unwrap();
    let done = worker.scan_unverified(fd, 6, LONG).unwrap();
    assert_eq!(refused(done), "the content has 5 bytes, 6 were announced");
    // Neither was the worker's fault.
    assert_eq!(scan(&mut worker, "clean").unwrap().outcome, Outcome::Clean);
}

#[test]
fn an_engine_that_finds_nothing_never_serves() {
    let scratch = TempDir::new().unwrap();
    let blind = command(scratch.path()).arg("--canary").arg("miss");
    let (engine, _) = EngineProcess::start(&blind).unwrap();
    let error = engine.spawn_worker().unwrap_err();
    assert!(
        matches!(error, SpawnError::CanaryMissed { .. }),
        "{error:?}"
    );

    let later = command(scratch.path()).arg("--canary").arg("late");
    let (engine, _) = EngineProcess::start(&later).unwrap();
    let mut worker = engine.spawn_worker().unwrap();
    // A failed scan makes the worker look for its canary again.
    assert!(scan(&mut worker, "error").is_ok());
    let error = scan(&mut worker, "clean").unwrap_err();
    assert!(
        matches!(
            error,
            WorkerError::CanaryMissed { .. } | WorkerError::Died { .. }
        ),
        "{error:?}"
    );
}

#[test]
fn loading_fails_with_file_and_line() {
    let scratch = TempDir::new().unwrap();
    let start = |how: &str| {
        let mut command = command(scratch.path()).arg("--load").arg(how);
        if how == "hang" {
            command.load_timeout = Duration::from_millis(300);
        }
        EngineProcess::start(&command).unwrap_err()
    };
    match start("fail") {
        StartError::Definitions(problems) => {
            assert_eq!(problems.len(), 1);
            assert_eq!(
                problems[0].to_string(),
                "/planted/rules.yar:7: told to fail\u{fffd}"
            );
        }
        other => panic!("{other:?}"),
    }
    let ended = start("exit");
    assert!(ended.to_string().contains("exit status: 9"), "{ended}");
    assert!(matches!(start("hang"), StartError::TimedOut { .. }));
    let nowhere = EngineProcess::start(&command(Path::new("/no/such/scratch"))).unwrap_err();
    assert!(
        nowhere.to_string().contains("/no/such/scratch: unusable"),
        "{nowhere}"
    );
    let missing = EngineProcess::start(&EngineCommand::new("/no/such/engine")).unwrap_err();
    assert!(missing.to_string().contains("/no/such/engine"), "{missing}");
}

#[test]
fn workers_that_cannot_be_forked_are_reported() {
    // A scratch directory that is gone.
    let scratch = TempDir::new().unwrap();
    let engine = start(&scratch);
    std::fs::remove_dir_all(scratch.path()).unwrap();
    let error = engine.spawn_worker().unwrap_err();
    assert!(error.to_string().contains("scratch directory"), "{error}");
    assert!(engine.is_alive());

    // An engine that left a thread running: a fork could deadlock.
    let scratch = TempDir::new().unwrap();
    let threads = command(scratch.path()).arg("--load").arg("threads");
    let (engine, _) = EngineProcess::start(&threads).unwrap();
    let error = engine.spawn_worker().unwrap_err();
    assert!(error.to_string().contains("2 threads"), "{error}");
}

#[test]
fn a_program_that_is_not_asked_by_a_daemon_says_so() {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_palisade-planted-engine"))
        .args(["--scratch", "/tmp"])
        .stdin(std::process::Stdio::null())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("control socket"));
}
