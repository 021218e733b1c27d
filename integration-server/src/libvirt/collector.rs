//! One thread that follows one host. It only collects; what it could not collect
//! is part of what it reports.

use std::collections::BTreeMap;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use uuid::Uuid;
use virt::error::Error;

use super::connection::Connection;
use super::events::{self, Event, Subscription};
use crate::inventory::{HostFacts, Reading};
use crate::time;

/// How often a quiet connection is asked whether it is alive (a local question).
const ALIVE_EVERY: Duration = Duration::from_secs(1);
/// Events that come together are one reading.
const SETTLE: Duration = Duration::from_millis(100);
/// First wait before a host is tried again; doubled up to the poll interval.
const FIRST_RETRY: Duration = Duration::from_secs(1);

/// What a thread needs to follow a host.
#[derive(Debug)]
pub struct Collector {
    uri: String,
    poll: Duration,
    readings: mpsc::Sender<Reading>,
}

/// When domains began to run, in steady milliseconds. No more than there are domains:
/// each reading forgets those that are gone.
type Began = BTreeMap<Uuid, u64>;

/// Nobody wants readings any more.
struct Stopped;

impl Collector {
    /// A collector for one URI.
    pub fn new(uri: String, poll: Duration, readings: mpsc::Sender<Reading>) -> Self {
        Self {
            uri,
            poll,
            readings,
        }
    }

    /// Follows the host until nobody wants its readings.
    pub fn run(self) {
        let mut retry = FIRST_RETRY;
        loop {
            let followed = self.connect_and_follow(&mut retry);
            if followed.is_err() || self.wait(retry).is_err() {
                return;
            }
            retry = (retry * 2).min(self.poll.max(FIRST_RETRY));
        }
    }

    /// One connection's life. `Ok` when it ended and should be tried again.
    fn connect_and_follow(&self, retry: &mut Duration) -> Result<(), Stopped> {
        let connection = match Connection::open(&self.uri) {
            Ok(connection) => connection,
            Err(error) => return self.report(Err(error)),
        };
        let (sender, events) = events::queue();
        // Before the first reading, so that nothing falls between the two.
        let subscription = Subscription::to_domains(&connection, &sender);
        // What is left are the callbacks' own: without them nobody sends.
        drop(sender);
        let mut began = Began::new();
        if let Err(error) = &subscription {
            tracing::warn!(uri = %self.uri, %error, "no events from this host; it is polled");
        }
        loop {
            let mut reading = connection.read();
            let failed = reading.is_err();
            if let Ok(facts) = &mut reading {
                began.retain(|uuid, _| facts.domains.contains_key(uuid));
                for (uuid, domain) in &mut facts.domains {
                    domain.began_ms = began.get(uuid).copied();
                }
            }
            self.report(reading)?;
            if failed {
                return Ok(());
            }
            *retry = FIRST_RETRY;
            if !self.wait_for_change(&connection, &events, &mut began)? {
                tracing::info!(uri = %self.uri, "the connection to this host ended");
                return Ok(());
            }
        }
    }

    /// Waits for an event or the poll interval; false when the connection is dead.
    fn wait_for_change(
        &self,
        connection: &Connection,
        events: &Receiver<Event>,
        began: &mut Began,
    ) -> Result<bool, Stopped> {
        let due = Instant::now() + self.poll;
        loop {
            let left = due.saturating_duration_since(Instant::now());
            match events.recv_timeout(left.min(ALIVE_EVERY)) {
                Ok(event) => {
                    take(event, began);
                    std::thread::sleep(SETTLE);
                    events.try_iter().for_each(|event| take(event, began));
                    return Ok(true);
                }
                // Disconnected: this host has no events.
                Err(RecvTimeoutError::Disconnected) => {
                    std::thread::sleep(left.min(ALIVE_EVERY));
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
            if self.readings.is_closed() {
                return Err(Stopped);
            }
            if !connection.is_alive() {
                return Ok(false);
            }
            if Instant::now() >= due {
                return Ok(true);
            }
        }
    }

    fn report(&self, outcome: Result<HostFacts, Error>) -> Result<(), Stopped> {
        let reading = Reading {
            uri: self.uri.clone(),
            at_ms: time::steady_ms(),
            outcome: outcome.map_err(|error| error.message().to_owned()),
        };
        self.readings.blocking_send(reading).map_err(|_| Stopped)
    }

    fn wait(&self, time: Duration) -> Result<(), Stopped> {
        let until = Instant::now() + time;
        loop {
            if self.readings.is_closed() {
                return Err(Stopped);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(());
            }
            std::thread::sleep(left.min(ALIVE_EVERY));
        }
    }
}

fn take(event: Event, began: &mut Began) {
    if let Event::Began(uuid) = event {
        began.insert(uuid, time::steady_ms());
    }
}
