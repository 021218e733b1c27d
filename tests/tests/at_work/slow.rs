//! A Protection Server that is slow because its process is stopped most of the time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sys::signal::Signal;
use palisade_tests::process::Process;

use super::guest::Guest;

/// How long it is stopped and runs, in turn: sessions live through it.
const STOPPED: Duration = Duration::from_millis(300);
const RUNS: Duration = Duration::from_millis(15);

/// Slow until it is dropped.
pub struct Slow {
    over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Slow {
    /// The site's own.
    pub fn server(guest: &Guest) -> Self {
        let process = guest.test.site.process("scanserver").unwrap().unwrap();
        let over = Arc::new(AtomicBool::new(false));
        let seen = Arc::clone(&over);
        let thread = std::thread::spawn(move || {
            while !seen.load(Ordering::Relaxed) {
                turn(&process);
            }
        });
        Self {
            over,
            thread: Some(thread),
        }
    }
}

fn turn(process: &Process) {
    let _ = process.signal(Signal::SIGSTOP);
    std::thread::sleep(STOPPED);
    let _ = process.signal(Signal::SIGCONT);
    std::thread::sleep(RUNS);
}

impl Drop for Slow {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        let _ = self.thread.take().map(JoinHandle::join);
    }
}
