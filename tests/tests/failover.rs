//! Protection Servers that die, stop or stay silent while guests open files: another
//! one answers, in time, and no verdict is wrong.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a panic fails the test"
)]

mod common;

use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use common::TestSite;
use common::servers::{Another, both_up, explain, with_role};
use nix::errno::Errno;
use nix::sys::signal::Signal;
use palisade_tests::command::{self, wait_for};
use palisade_tests::definitions::Marker;
use palisade_tests::process::Process;
use palisade_tests::skip;
use rand::Rng as _;

/// 99 of 100 opens that a failover meets are answered within this time.
const FAILOVER_P99: Duration = Duration::from_secs(2);
/// An idle agent notices a dead Protection Server within this time, and a timer's slack.
const IDLE_LOSS: Duration = Duration::from_millis(15_500);
/// Every file whose number ends in this holds the marker.
const BAD: usize = 3;
/// Openers at a time.
const OPENERS: usize = 8;
/// How long each pauses between opens.
const PAUSE: Duration = Duration::from_millis(10);
/// Opens count as met by a failover until this long after it began.
const AFTER: Duration = Duration::from_millis(2500);
/// Files of one round.
const FILES: usize = 2400;

/// Failovers; `PALISADE_FAILOVERS` sets another count.
fn rounds() -> usize {
    let set = std::env::var("PALISADE_FAILOVERS");
    let rounds = set.map_or(6, |count| count.parse().unwrap());
    println!("{rounds} failovers (scripts/soak: 200)");
    rounds
}

/// What one open came to.
struct Opened {
    took: Duration,
    /// Whether it began or went on while the failover was under way.
    met: bool,
}

/// New files with contents that nobody has seen, some with the marker.
fn files(folder: &Path, marker: &Marker) -> Vec<(PathBuf, bool)> {
    let _ = fs::remove_dir_all(folder);
    fs::create_dir(folder).unwrap();
    let mut rng = rand::rng();
    let file = |index: usize| {
        let path = folder.join(format!("{index:05}"));
        let mut content = vec![0; rng.random_range(64..3000)];
        rng.fill(&mut content[..]);
        let bad = index % 10 == BAD;
        if bad {
            content.extend_from_slice(&marker.bytes);
        }
        fs::write(&path, &content).unwrap();
        (path, bad)
    };
    (0..FILES).map(file).collect()
}

/// Opens files while `end` ends a Protection Server in their midst; gives the opens and
/// how many were answered wrongly.
fn open_while(files: &[(PathBuf, bool)], end: impl FnOnce()) -> (Vec<Opened>, usize) {
    let next = AtomicUsize::new(0);
    let wrong = AtomicUsize::new(0);
    let opened = Mutex::new(Vec::new());
    let ended: Mutex<Option<Instant>> = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..OPENERS {
            scope.spawn(|| {
                loop {
                    let began = Instant::now();
                    let over = ended.lock().unwrap().map(|ended| ended + AFTER);
                    let Some((path, bad)) = files.get(next.fetch_add(1, Ordering::Relaxed)) else {
                        return;
                    };
                    if over.is_some_and(|over| began > over) {
                        return;
                    }
                    let outcome = File::open(path).map(drop);
                    let took = began.elapsed();
                    let expected = match bad {
                        true => outcome
                            .as_ref()
                            .is_err_and(|error| error.raw_os_error() == Some(Errno::EPERM as i32)),
                        false => outcome.is_ok(),
                    };
                    if !expected {
                        eprintln!("{}, bad {bad}: {outcome:?} after {took:?}", path.display());
                        wrong.fetch_add(1, Ordering::Relaxed);
                    }
                    let ended = *ended.lock().unwrap();
                    let met = ended.is_some_and(|ended| began + took >= ended);
                    opened.lock().unwrap().push(Opened { took, met });
                    std::thread::sleep(PAUSE);
                }
            });
        }
        std::thread::sleep(Duration::from_millis(500));
        *ended.lock().unwrap() = Some(Instant::now());
        end();
    });
    let opened = opened.into_inner().unwrap();
    (opened, wrong.into_inner())
}

fn percentile(times: &mut [Duration], permille: usize) -> Duration {
    times.sort();
    times[(times.len() * permille / 1000).min(times.len() - 1)]
}

struct Two {
    test: TestSite,
    second: Another,
    marker: Marker,
}

impl Two {
    fn start() -> Self {
        let marker = Marker::random();
        let test = TestSite::start(&[("m.ndb", marker.ndb())]);
        let second = Another::start(&test, "second", 2);
        both_up(&test);
        Self {
            test,
            second,
            marker,
        }
    }

    fn process(&self, address: SocketAddr) -> Process {
        match address == self.second.address {
            true => self.second.process().clone(),
            false => self.test.site.process("scanserver").unwrap().unwrap(),
        }
    }

    fn resume(&mut self, address: SocketAddr) {
        match address == self.second.address {
            true => self.second.resume(),
            false => drop(self.test.site.start_part("scanserver").unwrap()),
        }
    }
}

fn status(test: &TestSite) -> serde_json::Value {
    let said = test
        .site
        .run("palisade-agent", &["status", "-o", "json"], common::SCAN)
        .unwrap();
    said.json().unwrap()
}

/// Protection Servers are killed one after the other, each time the one in use.
#[test]
fn a_killed_server_is_failed_over_and_no_verdict_is_wrong() {
    if !skip::is_root("a_killed_server_is_failed_over_and_no_verdict_is_wrong") {
        return;
    }
    let mut two = Two::start();
    let folder = two.test.protected.join("files");
    let mut met = Vec::new();
    for round in 0..rounds() {
        let files = files(&folder, &two.marker);
        let (used, _) = both_up(&two.test);
        let process = two.process(used);
        let (opened, wrong) = open_while(&files, || process.kill().unwrap());
        assert_eq!(wrong, 0, "in round {round}, when {used} was killed");
        let times = opened.iter().filter(|open| open.met).map(|open| open.took);
        let before = met.len();
        met.extend(times);
        assert!(met.len() > before, "no open met the failover");
        two.resume(used);
    }
    let (count, longest) = (met.len(), met.iter().max().copied().unwrap());
    let p99 = percentile(&mut met, 990);
    println!("{count} opens met failovers: p99 {p99:?}, longest {longest:?}, 0 wrong");
    assert!(p99 <= FAILOVER_P99, "p99 {p99:?}, longest {longest:?}");
    let events = &status(&two.test)["events"];
    assert_eq!(events["failed_open"], 0, "{events}");
}

/// The control: with one Protection Server alone, the same kill lets markers through, and
/// the same opens see it.
#[test]
fn without_a_second_server_the_failure_table_answers() {
    if !skip::is_root("without_a_second_server_the_failure_table_answers") {
        return;
    }
    let marker = Marker::random();
    let test = TestSite::start(&[("m.ndb", marker.ndb())]);
    let files = files(&test.protected.join("files"), &marker);
    let process = test.site.process("scanserver").unwrap().unwrap();
    let (_, wrong) = open_while(&files, || process.kill().unwrap());
    assert!(wrong > 0, "opens were answered without a Protection Server");
    let events = &status(&test)["events"];
    assert!(events["failed_open"].as_u64() > Some(0), "{events}");
}

/// One that is stopped, and comes back, is no worse than one that is dead.
#[test]
fn a_server_that_hangs_is_failed_over() {
    if !skip::is_root("a_server_that_hangs_is_failed_over") {
        return;
    }
    let two = Two::start();
    let files = files(&two.test.protected.join("files"), &two.marker);
    let (used, spare) = both_up(&two.test);
    let process = two.process(used);
    let (opened, wrong) = open_while(&files, || process.signal(Signal::SIGSTOP).unwrap());
    process.signal(Signal::SIGCONT).unwrap();
    assert_eq!(wrong, 0);
    let mut met: Vec<Duration> = opened
        .iter()
        .filter(|open| open.met)
        .map(|open| open.took)
        .collect();
    let p99 = percentile(&mut met, 990);
    assert!(p99 <= FAILOVER_P99, "p99 {p99:?} of {} opens", met.len());
    let now = with_role(&explain(&two.test), "in-use");
    assert_eq!(now, Some(spare), "the one that stood by is used");
}

/// With nothing to ask, keep-alives alone tell.
#[test]
fn an_idle_agent_notices_a_dead_server() {
    if !skip::is_root("an_idle_agent_notices_a_dead_server") {
        return;
    }
    let two = Two::start();
    let (used, spare) = both_up(&two.test);
    // Stopped rather than killed: the Integration Server cannot tell either.
    let process = two.process(used);
    process.signal(Signal::SIGSTOP).unwrap();
    let began = Instant::now();
    let noticed = wait_for("the loss to be noticed", Duration::from_secs(60), || {
        let now = with_role(&explain(&two.test), "in-use");
        anyhow::ensure!(now == Some(spare), "in use: {now:?}");
        Ok(began.elapsed())
    });
    process.signal(Signal::SIGCONT).unwrap();
    let noticed = noticed.unwrap();
    assert!(noticed <= IDLE_LOSS, "after {noticed:?}");
}

/// One that was revoked gives no verdict any more, although it is there and there is no
/// other one.
#[test]
fn a_revoked_server_is_left_at_once() {
    let test = TestSite::start(&[("m.ndb", Marker::random().ndb())]);
    let patience = Duration::from_secs(60);
    let used = || with_role(&explain(&test), "in-use");
    wait_for("a session", patience, || {
        anyhow::ensure!(used().is_some());
        Ok(())
    })
    .unwrap();
    let svms = test.site.console(&["svm", "list"]).unwrap();
    let id = svms[0]["id"].as_str().unwrap();
    let revoked = test
        .site
        .run("palisade", &["svm", "revoke", id], common::SCAN);
    revoked.unwrap().expect(&[0]).unwrap();
    wait_for("the session to end", patience, || {
        anyhow::ensure!(used().is_none());
        Ok(())
    })
    .unwrap();
    let server = test.site.process("scanserver").unwrap();
    assert!(server.is_some(), "the control: it is there");
}

/// The order and the reasons, and a limit that leaves no candidate.
#[test]
fn the_choice_is_explained_and_its_limit_kept() {
    if !skip::is_root("the_choice_is_explained_and_its_limit_kept") {
        return;
    }
    let two = Two::start();
    let (used, spare) = both_up(&two.test);
    let said = two
        .test
        .site
        .run("palisade-agent", &["explain"], common::SCAN)
        .unwrap();
    assert_eq!(said.code, Some(0), "{}", said.stderr);
    let text = String::from_utf8(said.stdout).unwrap();
    let line = |of: SocketAddr| {
        let mut lines = text.lines();
        let line = lines.find(|line| line.contains(&of.to_string()));
        line.unwrap_or_else(|| panic!("no line of {of}: {text}"))
    };
    assert!(line(used).starts_with("in use"), "{text}");
    assert!(line(spare).starts_with("stands by"), "{text}");

    // Where nothing is known of the place, nothing is on the same hypervisor.
    let settings = two.test.other_agent("limited");
    let limited = fs::read_to_string(&settings).unwrap() + "[selection]\npath = 'hypervisor'\n";
    fs::write(&settings, limited).unwrap();
    let mut agent = Command::new(command::program("palisade-agent").unwrap());
    agent.arg("--site").arg(two.test.site.dir());
    agent.arg("--config").arg(&settings).arg("run");
    let folder = settings.parent().unwrap();
    let agent = Process::start("agent", &agent, &folder.join("pid"), &folder.join("log")).unwrap();
    let explained = wait_for("both to be excluded", Duration::from_secs(60), || {
        let said = two.test.agent(&settings, &["explain", "-o", "json"]);
        let explained = said.json()?;
        let svms = explained["svms"].as_array().cloned().unwrap_or_default();
        anyhow::ensure!(svms.len() == 2, "{explained}");
        Ok((said.code, svms))
    });
    agent.kill().unwrap();
    let (code, svms) = explained.unwrap();
    assert_eq!(code, Some(1), "none is in use: {svms:?}");
    for svm in svms {
        assert_eq!(svm["role"], "excluded", "{svm}");
        let why = svm["why"].as_str().unwrap();
        assert!(why.contains("selection.path"), "{why}");
    }
}
