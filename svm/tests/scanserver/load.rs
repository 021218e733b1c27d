//! An honest agent that asks without a pause, and checks every verdict.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use palisade_protocol::verdict::VerdictKind;
use tokio::task::JoinHandle;

use crate::client::{Client, unique};

/// How long it rests between its rounds: the machine is the others' too.
const BETWEEN: Duration = Duration::from_millis(10);

/// Asks until it is told to stop. A verdict that is wrong, or lost, is a panic.
pub struct Honest {
    over: Arc<AtomicBool>,
    asking: JoinHandle<usize>,
}

impl Honest {
    /// `marker` is what the site's definitions find.
    pub fn start(client: Client, marker: &str) -> Self {
        let over = Arc::new(AtomicBool::new(false));
        let asking = tokio::spawn(ask(client, marker.to_owned(), Arc::clone(&over)));
        Self { over, asking }
    }

    /// How many true verdicts it had.
    pub async fn stop(self) -> usize {
        self.over.store(true, Ordering::Relaxed);
        self.asking.await.unwrap()
    }
}

/// Content that no other run has, with the marker in it or not.
pub fn sample(marker: &str, bad: bool) -> Vec<u8> {
    let mut bytes = unique(3000);
    if bad {
        bytes.extend_from_slice(marker.as_bytes());
    }
    bytes
}

async fn ask(client: Client, marker: String, over: Arc<AtomicBool>) -> usize {
    let (known_good, known_bad) = (sample(&marker, false), sample(&marker, true));
    let mut verdicts = 0;
    while !over.load(Ordering::Relaxed) {
        let (new_good, new_bad) = (sample(&marker, false), sample(&marker, true));
        for (bytes, kind) in [
            (&known_good, VerdictKind::Clean),
            (&known_bad, VerdictKind::Malware),
            (&new_good, VerdictKind::Clean),
            (&new_bad, VerdictKind::Malware),
        ] {
            assert_eq!(client.kind(bytes).await, kind, "after {verdicts}");
            verdicts += 1;
        }
        tokio::time::sleep(BETWEEN).await;
    }
    verdicts
}
