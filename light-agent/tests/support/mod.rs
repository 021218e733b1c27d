//! A site for tests: a CA, a small Protection Server that speaks the protocol, and
//! agents as real processes. The Protection Server's only rule is a marker: it is
//! a peer, not an engine.

#![allow(dead_code, reason = "each test program uses a part of it")]

pub mod agent;
pub mod container;
pub mod home;
pub mod mount;
pub mod quarantine;
pub mod site;
pub mod svm;
pub mod world;

use std::time::{Duration, Instant};

/// Content that the test's Protection Server calls malware.
pub const MARKER: &[u8] = b"palisade-test-marker-5d1f";
/// What it calls it.
pub const MARKER_NAME: &str = "Test.Marker";

/// Waits until something holds; panics with its name after a time that only a
/// defect takes.
pub fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let started = Instant::now();
    while !holds() {
        assert!(
            started.elapsed() < Duration::from_secs(20),
            "waited in vain: {what}"
        );
        std::thread::sleep(Duration::from_millis(25));
    }
}

/// Whether the test may mark file systems; prints why not.
pub fn is_root(test: &str) -> bool {
    let root = palisade_light_agent::fanotify::group::has_capability();
    if !root {
        println!("skipped: {test} needs root (CAP_SYS_ADMIN)");
    }
    root
}
