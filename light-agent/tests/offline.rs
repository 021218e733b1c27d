//! What an agent does without a Protection Server, and what it remembers over a kill, as
//! a process, as root: asked of the Protection Server's own count, never of the agent.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a panic in a test is a failed test with a place in it"
)]

mod support;

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use palisade_light_agent::cache::database;
use palisade_light_agent::stamp::RACY;
use serde_json::{Value, json};
use support::quarantine::{QUARANTINE, reported};
use support::svm::Mode;
use support::world::{World, denied, program};
use support::{MARKER, is_root, wait_until};

/// Clean files and one of malware, opened and remembered on the disk.
struct Known {
    world: World,
    clean: Vec<(PathBuf, Vec<u8>)>,
    bad: (PathBuf, Vec<u8>),
}

const FILES: usize = 20;
const NO_MARKS: &str = "on_access: ignore_marks = 'off'";

impl Known {
    fn new(settings: &str) -> Self {
        let world = World::started(&format!("{NO_MARKS}\n{settings}"));
        let random = uuid::Uuid::new_v4();
        let clean = (0..FILES)
            .map(|n| {
                let content = format!("{n} {random}").into_bytes();
                (world.file(&format!("clean {n}"), &content), content)
            })
            .collect();
        let content = [MARKER, random.as_bytes()].concat();
        let bad = (world.file("bad", &content), content);
        let known = Self { world, clean, bad };
        // A file that changed just now could change again unseen.
        std::thread::sleep(RACY + Duration::from_millis(100));
        known.open_all();
        wait_until("all is remembered on the disk", || {
            let kept = &known.world.agent.status()["kept_verdicts"];
            kept["contents"].as_u64().unwrap() > FILES as u64 && kept["saved"] == true
        });
        known
    }

    fn open_all(&self) {
        for (path, _) in &self.clean {
            File::open(path).unwrap();
        }
        assert!(denied(File::open(&self.bad.0)));
    }

    /// How often the clean ones were asked about. Malware is asked about whenever
    /// somebody can be: the Protection Server may have taken it back.
    fn asked(&self) -> u32 {
        let contents = self.clean.iter();
        contents
            .map(|(_, content)| self.world.svm.asked(content))
            .sum()
    }

    fn restart(&mut self) {
        self.world.agent.kill();
        self.world.agent.run();
        self.world.agent.wait_protection("blocking");
    }

    fn database(&self) -> PathBuf {
        database::file(&self.world.agent.state())
    }
}

#[test]
fn after_a_kill_the_same_files_are_answered_without_asking() {
    if !is_root("after_a_kill_the_same_files_are_answered_without_asking") {
        return;
    }
    let mut known = Known::new("");
    let asked = known.asked();
    assert!(asked >= FILES as u32);
    let before = known.world.svm.asked(&known.bad.1);
    known.restart();
    known.open_all();
    assert_eq!(known.asked(), asked);
    assert!(known.world.svm.asked(&known.bad.1) > before);
    let events = known.world.agent.settled_events();
    assert!(
        events["cached"].as_u64().unwrap() >= FILES as u64,
        "{events}"
    );
    // By stamp from now on: nothing is hashed again.
    let answered = known.world.agent.status()["kept_verdicts"]["answered"].clone();
    known.open_all();
    assert_eq!(
        known.world.agent.status()["kept_verdicts"]["answered"],
        answered
    );
    // The control: without the database each is asked about.
    known.world.agent.kill();
    fs::remove_file(known.database()).unwrap();
    known.world.agent.run();
    known.world.agent.wait_protection("blocking");
    known.open_all();
    assert!(known.asked() >= asked + FILES as u32);
}

#[test]
fn other_definitions_and_other_contents_are_not_believed() {
    if !is_root("other_definitions_and_other_contents_are_not_believed") {
        return;
    }
    let mut known = Known::new("");
    // Changed while no agent runs, to malware of the same length, with its old time.
    known.world.agent.kill();
    let (path, content) = &known.clean[0];
    let modified = fs::metadata(path).unwrap().modified().unwrap();
    let mut changed = MARKER.to_vec();
    changed.resize(content.len(), b' ');
    fs::write(path, &changed).unwrap();
    let file = File::options().write(true).open(path).unwrap();
    file.set_modified(modified).unwrap();
    drop(file);
    known.world.agent.run();
    known.world.agent.wait_protection("blocking");
    assert!(denied(File::open(path)));
    known.clean.remove(0);
    let asked = known.asked();
    known.open_all();
    assert_eq!(known.asked(), asked, "the others are believed");

    known.world.agent.kill();
    known.world.svm.definitions(2, true);
    known.world.agent.run();
    known.world.agent.wait_protection("blocking");
    known.open_all();
    assert!(known.asked() >= asked + known.clean.len() as u32);
}

#[test]
fn a_damaged_database_begins_anew_and_says_so() {
    if !is_root("a_damaged_database_begins_anew_and_says_so") {
        return;
    }
    let mut known = Known::new("");
    for damage in [0, 1, 2] {
        known.world.agent.kill();
        let path = known.database();
        let mut bytes = fs::read(&path).unwrap();
        match damage {
            0 => bytes.truncate(bytes.len() / 3),
            1 => bytes
                .iter_mut()
                .skip(4096)
                .step_by(97)
                .for_each(|b| *b ^= 0x55),
            _ => bytes = b"something else".to_vec(),
        }
        fs::write(&path, bytes).unwrap();
        let asked = known.asked();
        known.world.agent.run();
        known.world.agent.wait_protection("blocking");
        known.open_all();
        assert!(known.asked() >= asked + FILES as u32);
        wait_until("it is kept anew", || {
            let kept = &known.world.agent.status()["kept_verdicts"];
            kept["contents"].as_u64().unwrap() > FILES as u64 && kept["saved"] == true
        });
    }
    let said = known.world.agent.log().matches("and begin anew").count();
    assert_eq!(said, 3, "{}", known.world.agent.log());
}

#[test]
fn without_a_server_what_is_known_is_answered_after_a_restart() {
    if !is_root("without_a_server_what_is_known_is_answered_after_a_restart") {
        return;
    }
    let mut known = Known::new("[failure]\nno_svm = 'deny'");
    known.world.svm.kill();
    known.world.agent.kill();
    known.world.agent.run();
    // Nobody can be asked: the table denies, and what is known is opened, or is malware.
    let unknown = known.world.file("unknown", b"unknown");
    assert!(denied(File::open(&unknown)));
    known.open_all();
    let events = known.world.agent.settled_events();
    assert!(
        events["cached"].as_u64().unwrap() >= FILES as u64,
        "{events}"
    );

    // The control: settings that allow no age have every open wait for the server.
    let mut known = Known::new("on_access: max_verdict_age_s = 0");
    known.world.svm.kill();
    known.world.agent.kill();
    known.world.agent.run();
    assert!(File::open(&known.bad.0).is_ok(), "the default table");
}

fn exposure(world: &World) -> Value {
    world.agent.status()["exposure"].clone()
}

fn wait_window(world: &World) -> Value {
    wait_until("the window has ended and nothing waits", || {
        let exposure = exposure(world);
        exposure["now"].is_null() && exposure["waiting"] == 0
    });
    exposure(world)["last"][0].clone()
}

#[test]
fn what_was_let_through_is_scanned_when_a_server_is_back() {
    if !is_root("what_was_let_through_is_scanned_when_a_server_is_back") {
        return;
    }
    let mut world = World::new("");
    let [clean, bad, gone, changed] =
        ["clean", "bad", "gone", "changed"].map(|name| world.file(name, name.as_bytes()));
    let good = world.file("program", &program(b""));
    fs::write(&bad, MARKER).unwrap();
    world.svm.kill();
    world.agent.run();
    for path in [&clean, &bad, &gone, &changed, &bad] {
        File::open(path).unwrap();
    }
    assert!(Command::new(&good).status().unwrap().success());
    wait_until("all wait", || exposure(&world)["waiting"] == 5);
    let now = exposure(&world)["now"].clone();
    assert_eq!(now["causes"], json!(["no_svm"]), "{now}");
    assert!(now["until_ms"].is_null());
    assert!(now["opens"].as_u64().unwrap() >= 6 && now["execs"].as_u64().unwrap() >= 1);

    // They outlive a kill, once they were written.
    wait_until("they are on the disk", || waiting_on_disk(&world) == 5);
    world.agent.kill();
    world.agent.run();
    assert_eq!(exposure(&world)["waiting"], 5);
    fs::remove_file(&gone).unwrap();
    fs::write(&changed, "changed since").unwrap();
    assert!(world.agent.spooled().is_empty());

    world.svm.resume();
    let window = wait_window(&world);
    assert_eq!(
        window["causes"],
        json!(["not_running", "no_svm"]),
        "{window}"
    );
    let results = &window["results"];
    assert_eq!(results["malware"], 1, "{window}");
    assert_eq!(results["gone"], 1, "{window}");
    assert_eq!(results["clean"], 3, "{window}");
    assert_eq!(results["changed"], 1, "{window}");
    assert_eq!(reported(&world, &bad)[0]["action"], "Reported");
    assert_eq!(world.agent.spooled().len(), 1);
    assert_eq!(waiting_on_disk_soon(&world), 0);
    let text = world.agent.output(&["status"]);
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    assert!(
        text.contains("the agent did not run, no Protection Server")
            && text.contains("3 clean, 1 malware, 1 gone"),
        "{text}"
    );
}

fn waiting_on_disk(world: &World) -> usize {
    let file = world.agent.state().join("deferred.jsonl");
    let text = fs::read_to_string(file).unwrap_or_default();
    text.lines().count().saturating_sub(1)
}

fn waiting_on_disk_soon(world: &World) -> usize {
    wait_until("the list is empty", || waiting_on_disk(world) == 0);
    waiting_on_disk(world)
}

#[test]
fn what_is_found_later_is_treated_as_settings_have_it() {
    if !is_root("what_is_found_later_is_treated_as_settings_have_it") {
        return;
    }
    let mut world = World::new(QUARANTINE);
    let bad = world.file("bad", MARKER);
    world.svm.kill();
    world.agent.run();
    File::open(&bad).unwrap();
    wait_until("it waits", || exposure(&world)["waiting"] == 1);
    world.svm.resume();
    wait_window(&world);
    assert!(!bad.exists());
    assert_eq!(reported(&world, &bad)[0]["action"], "Quarantined");
}

/// The control of both.
#[test]
fn without_the_queue_nothing_is_found_later_and_that_is_counted() {
    if !is_root("without_the_queue_nothing_is_found_later_and_that_is_counted") {
        return;
    }
    let mut world = World::new("on_access: deferred_files = 0");
    let bad = world.file("bad", MARKER);
    world.svm.kill();
    world.agent.run();
    File::open(&bad).unwrap();
    wait_until("it is counted", || exposure(&world)["not_kept"] == 1);
    world.svm.resume();
    world.agent.wait_protection("blocking");
    let window = wait_window(&world);
    assert_eq!(
        (&window["files"], &window["not_kept"]),
        (&json!(0), &json!(1))
    );
    std::thread::sleep(Duration::from_secs(3));
    assert!(reported(&world, &bad).is_empty());
    wait_until("it is said", || world.agent.log().contains("scan --full"));
}

#[test]
fn times_without_an_agent_and_without_blocking_are_windows() {
    if !is_root("times_without_an_agent_and_without_blocking_are_windows") {
        return;
    }
    let mut world = World::started("");
    wait_until("it is known to run", || exists(&world, "exposure.json"));
    let first = wait_window(&world);
    assert_eq!(first["causes"], json!(["no_svm"]), "until it was connected");
    world.agent.kill();
    std::thread::sleep(Duration::from_millis(300));
    let mut fallback = world.agent.command(&["run"]);
    fallback.args(["--fallback", "it failed"]);
    world.agent.run_by(fallback);
    world.agent.wait_protection("monitoring");
    wait_until("one cause is left", || {
        let now = exposure(&world)["now"].clone();
        now["causes"] == json!(["not_running", "no_svm", "fallback"])
    });
    world.agent.kill();
    world.agent.run();
    let last = wait_window(&world);
    assert!(last["until_ms"].as_u64().unwrap() >= last["from_ms"].as_u64().unwrap() + 300);
}

fn exists(world: &World, name: &str) -> bool {
    world.agent.state().join(name).exists()
}

/// A Protection Server that gives no verdict in time is a cause, too.
#[test]
fn late_verdicts_are_a_window_and_a_late_verdict_is_no_waiting_file() {
    if !is_root("late_verdicts_are_a_window_and_a_late_verdict_is_no_waiting_file") {
        return;
    }
    let world = World::started("on_access: deadline_ms = 300");
    wait_window(&world);
    world.svm.set(Mode::Busy(u32::MAX));
    let file = world.file("f", MARKER);
    assert!(File::open(&file).is_ok());
    world.svm.set(Mode::Serve);
    wait_until("the late detection", || !reported(&world, &file).is_empty());
    assert_eq!(exposure(&world)["waiting"], 0);
}

/// A disk without room, as small as it can be: the agent goes on, and says so.
#[test]
fn a_full_disk_costs_nothing_but_the_memory_of_it() {
    if !is_root("a_full_disk_costs_nothing_but_the_memory_of_it") {
        return;
    }
    let small = support::mount::Tmpfs::sized("256k");
    let state = small.path().join("state");
    let world = World::new(&format!("state_dir = '{}'\n{NO_MARKS}", state.display()));
    copy(&world.agent.state(), &state);
    let fill = |path: &Path| {
        let full = fs::write(path, vec![b'x'; 1 << 20]);
        assert!(full.is_err(), "it has room");
    };
    fill(&small.path().join("fill"));
    let mut world = world;
    world.agent.run();
    world.agent.wait_protection("blocking");
    let file = world.file("f", b"clean");
    std::thread::sleep(RACY + Duration::from_millis(100));
    File::open(&file).unwrap();
    wait_until("it says so", || {
        world.agent.status()["kept_verdicts"]["problem"].is_string()
    });
    let asked = world.svm.asked(b"clean");
    File::open(&file).unwrap();
    assert_eq!(world.svm.asked(b"clean"), asked, "remembered in memory");
    assert!(world.agent.log().contains("cannot be kept on the disk"));
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        let to = to.join(path.file_name().unwrap());
        match path.is_dir() {
            true => copy(&path, &to),
            false => {
                fs::copy(&path, &to).unwrap();
            }
        }
    }
}
