//! systemd's watch over the supervisor (`WatchdogSec`): whoever waits feeds it.
//!
//! Without it a supervisor that hangs would keep an agent that hangs, and every opener.

use std::cell::Cell;
use std::time::{Duration, Instant};

use palisade_daemon::lifecycle;

/// Feeds within the time that systemd gives: a late one or two do no harm.
const FEEDS: u32 = 4;

/// What systemd wants to hear, and how often, if it does.
#[derive(Debug)]
pub struct Watchdog {
    every: Option<Duration>,
    fed: Cell<Option<Instant>>,
}

impl Watchdog {
    /// As the service manager asks for it.
    pub fn asked_for() -> Self {
        Self {
            every: lifecycle::watchdog().map(|within| within / FEEDS),
            fed: Cell::new(None),
        }
    }

    /// Says that the supervisor lives, if it is time to.
    pub fn feed(&self) {
        let Some(every) = self.every else { return };
        if self.fed.get().is_none_or(|fed| fed.elapsed() >= every) {
            lifecycle::alive();
            self.fed.set(Some(Instant::now()));
        }
    }

    /// A wait that lets it be fed in time.
    pub fn shortened(&self, wait: Option<Duration>) -> Option<Duration> {
        match (wait, self.every) {
            (Some(wait), Some(every)) => Some(wait.min(every)),
            (wait, every) => wait.or(every),
        }
    }
}
