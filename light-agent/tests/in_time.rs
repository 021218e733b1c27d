//! An opener is not kept waiting for what cannot come in time, as root, on a private
//! tmpfs.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a panic in a test is a failed test with a place in it"
)]

mod support;

use std::fs::File;
use std::time::{Duration, Instant};

use palisade_protocol::content::ContentId;
use rand::Rng as _;
use support::svm::Mode;
use support::world::World;
use support::{is_root, wait_until};

/// The deadline of an open.
const DEADLINE: Duration = Duration::from_secs(6);
/// What the Protection Server takes for each fragment of 256 KiB.
const SLOW: Duration = Duration::from_millis(140);

fn random(bytes: usize) -> Vec<u8> {
    let mut content = vec![0; bytes];
    rand::rng().fill(&mut content[..]);
    content
}

/// How long an open takes.
fn open(world: &World, name: &str, content: &[u8]) -> Duration {
    let path = world.file(name, content);
    let began = Instant::now();
    File::open(&path).unwrap();
    began.elapsed()
}

#[test]
fn what_cannot_be_scanned_in_time_is_let_go_at_once_and_scanned_on() {
    if !is_root("what_cannot_be_scanned_in_time_is_let_go_at_once_and_scanned_on") {
        return;
    }
    let settings = format!("on_access: deadline_ms = {}", DEADLINE.as_millis());
    let world = World::started(&settings);
    world.svm.set(Mode::Trickle(SLOW));
    // Five fragments take 0.7 s, and 64 would take nine.
    let took = open(&world, "small", &random(1_200_000));
    assert!(took >= 5 * SLOW, "it was waited for: {took:?}");
    let large = random(16 << 20);
    let took = open(&world, "large", &large);
    assert!(took < DEADLINE, "it was not waited for: {took:?}");
    let events = world.agent.settled_events();
    assert_eq!(events["failures"]["deadline"], 1, "{events}");
    let content = ContentId::of(&large);
    wait_until("the scan went on", || world.svm.knows(&content));

    // What is known there is answered by its hash, however large.
    world.svm.set(Mode::Serve);
    open(&world, "again", &large);
    let events = world.agent.settled_events();
    assert_eq!(events["failures"]["deadline"], 1, "{events}");
}

/// The control: without a measurement the same file is waited for.
#[test]
fn before_anything_was_measured_it_is_waited_for() {
    if !is_root("before_anything_was_measured_it_is_waited_for") {
        return;
    }
    let settings = format!("on_access: deadline_ms = {}", DEADLINE.as_millis());
    let world = World::started(&settings);
    world.svm.set(Mode::Trickle(SLOW));
    let took = open(&world, "large", &random(16 << 20));
    assert!(took >= DEADLINE, "{took:?}");
    let events = world.agent.settled_events();
    assert_eq!(events["failures"]["deadline"], 1, "{events}");
}
