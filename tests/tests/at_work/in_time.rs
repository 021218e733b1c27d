//! An opener is not kept waiting for what the Protection Server cannot scan in time; the
//! scan goes on, and what it finds is told.

use std::fs::{self, File};
use std::time::{Duration, Instant};

use palisade_tests::definitions::Marker;
use palisade_tests::skip;
use rand::Rng as _;

use super::guest::{Guest, number, wait_until};

/// The deadline of an open.
const DEADLINE: Duration = Duration::from_secs(4);
/// What is measured.
const SMALL: usize = 1_200_000;
/// Ten times as much.
const LARGE: usize = 12 << 20;
/// How often the rule looks at each byte.
const LOOKS: u32 = 40;

/// A guest whose Protection Server has an engine that is slow, and what it finds after all.
struct World {
    guest: Guest,
    found_late: Marker,
}

/// Writes one that nobody has seen, ending in the slow rule's marker; opens it.
fn open(World { guest, found_late }: &World, name: &str, bytes: usize) -> Duration {
    let mut content = vec![0; bytes];
    rand::rng().fill(&mut content[..]);
    content.extend_from_slice(&found_late.bytes);
    let path = guest.file(name, &content);
    let began = Instant::now();
    let _ = File::open(&path);
    began.elapsed()
}

fn by_deadline(world: &World) -> u64 {
    world.guest.settled()["failures"]["deadline"]
        .as_u64()
        .unwrap_or(0)
}

fn start() -> World {
    let deadline = DEADLINE.as_millis();
    let guest = Guest::prepare(&format!("[on_access]\ndeadline_ms = {deadline}"));
    let found_late = Marker::random();
    let each = format!(
        "for all i in (0..filesize - 1) : (for all j in (0..{LOOKS}) : (uint8(i) + j >= 0)) and $m"
    );
    let rule = found_late
        .yara()
        .replace("    $m\n", &format!("    {each}\n"));
    assert!(rule.contains(&each), "{rule}");
    fs::write(guest.test.definitions().join("slow.yar"), rule).unwrap();
    guest.test.site.start().unwrap();
    guest.wait_state("blocking");
    World { guest, found_late }
}

#[test]
fn what_cannot_be_scanned_in_time_is_let_go_at_once_and_found_later() {
    if !skip::is_root("what_cannot_be_scanned_in_time_is_let_go_at_once_and_found_later") {
        return;
    }
    let world = start();
    let took = open(&world, "small", SMALL);
    println!("{SMALL} bytes took {took:?}");
    assert!(took < DEADLINE, "{took:?}");
    assert_eq!(by_deadline(&world), 0, "it was waited for");
    let took = open(&world, "large", LARGE);
    println!("{LARGE} bytes were let go after {took:?}");
    assert!(took < DEADLINE, "it was waited for: {took:?}");
    assert_eq!(by_deadline(&world), 1);
    wait_until("the scan went on, and found it", || {
        let found = world
            .guest
            .test
            .site
            .console(&["detection", "list"])
            .unwrap();
        let found = found.as_array().unwrap();
        found.iter().any(|found| {
            found["action"] == "late" && found["path"].as_str().unwrap().ends_with("/large")
        })
    });
}

/// The control: without a measurement the same file is waited for until the deadline.
#[test]
fn before_anything_was_measured_the_deadline_is_waited_for() {
    if !skip::is_root("before_anything_was_measured_the_deadline_is_waited_for") {
        return;
    }
    let world = start();
    let took = open(&world, "large", LARGE);
    println!("{LARGE} bytes were let go after {took:?}");
    assert!(took >= DEADLINE, "{took:?}");
    assert_eq!(by_deadline(&world), 1);
    assert!(number(&world.guest.settled(), "failed_open") >= 1);
}
