//! Re-scans: what is kept of scanned contents is tried on new definitions, unasked.
//!
//! Without it, a content that was called clean would be found malware only when some
//! agent asks for it again.
//!
//! ```text
//!  definitions come into force ─┐
//!  a scan by earlier ones ends ─┴─► due ─► pass: what FragmentStore keeps and was clean,
//!                                   ▲       │    last used first, one at a time
//!                              due again:   │ is_due? no ──► next
//!                              begins anew  │ step: Wait ──► looks again in PAUSE
//!                                           ▼
//!                       Service::scan_again ─► SharedCache, Retro::turned_bad ─► notices
//! ```
//!
//! | module | owns |
//! | --- | --- |
//! | [`policy`] | what is due, in which order, and whether now (pure) |
//! | this | the pass, and what wakes it |
//! | [`crate::request`] | one content's scan, as a request's from the flight to its end |
//! | [`crate::fragments`] | what is kept, and lending it |
//!
//! It is the lowest of all work. One content at a time, as on-demand work of its own
//! tenant, and only while nothing of the guests waits for a lane or for memory and a lane
//! stays free for what comes next (of a single lane it takes idle time; what is in a lane
//! is not interrupted). The price: where guests keep all lanes busy, a pass waits as long,
//! and what is asked for is scanned by newer definitions as before. What a guest sends just
//! now is left to its request, and looked at again after all others.
//!
//! The brake ([`crate::brake`]) counts no scan of this as a hit, but each agent that holds
//! what was found: see `Service::turned_bad`.
//!
//! While a content is on loan, its memory stays counted; a pass begins no scan that would
//! leave a guest's largest content without room (`scan.memory` at least as much above
//! `scan.max_scan_size` as the content has bytes), and the store stays free to give back
//! all else.
//!
//! What is not kept any more, or was never sent to this run of the daemon, is not
//! re-scanned: it is found on its next sight.

pub mod policy;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::time::timeout;

use crate::cache::Key;
use crate::metrics::Rescanned;
use crate::request::{Again, Service};
use policy::{Memory, Plan, Step, is_due, step};

/// How long a pass waits until it looks again whether guests' work has ended.
const PAUSE: Duration = Duration::from_millis(20);

/// What wakes a pass, and how far it is. Clones share it.
#[derive(Debug, Clone)]
pub struct Rescans(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    /// Counts up when kept contents are due.
    due: watch::Sender<u64>,
    /// Contents that the pass has still to look at.
    left: AtomicUsize,
}

impl Default for Rescans {
    fn default() -> Self {
        Self(Arc::new(Shared {
            due: watch::Sender::new(0),
            left: AtomicUsize::new(0),
        }))
    }
}

impl Rescans {
    /// What is kept may have verdicts of earlier definitions than those in force: a pass
    /// begins, or begins anew.
    pub fn due(&self) {
        if self.0.due.receiver_count() > 0 {
            // Seen from here on, though the pass begins a moment later.
            self.0.left.fetch_max(1, Ordering::Relaxed);
        }
        self.0.due.send_modify(|count| *count += 1);
    }

    /// Contents that a pass has still to look at; 0 when none is under way.
    pub fn left(&self) -> usize {
        self.0.left.load(Ordering::Relaxed)
    }

    fn set_left(&self, left: usize) {
        self.0.left.store(left, Ordering::Relaxed);
    }
}

/// What became of a content's turn.
enum Turn {
    Over,
    /// A guest sends it just now.
    Flying,
    /// Newer definitions are in force.
    Newer,
}

/// Runs passes until it is dropped, which leaves at most one scan in a lane.
pub async fn run(service: Arc<Service>) {
    let mut due = service.rescans.0.due.subscribe();
    // The sender lives as long as the service.
    while due.changed().await.is_ok() {
        while !pass(&service, &mut due).await {}
    }
}

/// One pass; false if it was cut short by newer definitions.
async fn pass(service: &Arc<Service>, due: &mut watch::Receiver<u64>) -> bool {
    due.mark_unchanged();
    let mut plan = Plan::new(service.fragments.called_clean());
    let (contents, began) = (plan.len(), Instant::now());
    tracing::info!(contents, "kept contents are looked at by new definitions");
    let mut scanned = 0_usize;
    while let Some(key) = plan.take() {
        service.rescans.set_left(plan.len() + 1);
        match turn(service, due, &key, &mut scanned).await {
            Turn::Over => tokio::task::yield_now().await,
            Turn::Flying => {
                plan.put_back(key);
                tokio::time::sleep(PAUSE).await;
            }
            Turn::Newer => {
                tracing::info!(scanned, left = plan.len(), "there are newer definitions");
                return false;
            }
        }
    }
    service.rescans.set_left(0);
    let took_ms = began.elapsed().as_millis();
    tracing::info!(contents, scanned, took_ms, "kept contents were looked at");
    true
}

/// One content's turn: waits until guests leave time for it.
async fn turn(
    service: &Arc<Service>,
    due: &mut watch::Receiver<u64>,
    key: &Key,
    scanned: &mut usize,
) -> Turn {
    loop {
        if due.has_changed().unwrap_or(true) {
            return Turn::Newer;
        }
        let in_force = service.scanner.generations();
        if !is_due(service.cache.last(key).as_ref(), &in_force) {
            return Turn::Over;
        }
        let memory = Memory {
            total: service.budget.total_bytes(),
            largest: service.bounds.max_scan_bytes,
            room: service.budget.free_bytes() + service.fragments.bytes(),
            is_wanted: service.budget.is_wanted(),
        };
        let engines_are_up = !in_force.is_empty() && service.scanner.down().is_empty();
        let again = match step(
            &service.scanner.occupancy(),
            engines_are_up,
            &memory,
            key.size,
        ) {
            Step::Begin => service.scan_again(key).await,
            Step::Wait => Again::NotNow,
            Step::Never => Again::Came(Rescanned::no_room),
        };
        match again {
            Again::Came(to) => {
                service.metrics.rescanned(to);
                *scanned += usize::from(to.is_scan());
                return Turn::Over;
            }
            Again::NotDue => return Turn::Over,
            Again::Flying => return Turn::Flying,
            Again::NotNow => {}
        }
        if timeout(PAUSE, due.changed()).await.is_ok() {
            return Turn::Newer;
        }
    }
}
