//! How a scan is stopped so that its lane is free, from another thread.
//!
//! ```text
//!   lane:     Stop ──enter(worker)──► scanning ──leave──► … ──► the end, if nobody stopped it
//!   warden:     └──────stop: kills the workers that scan, and refuses all that come later
//! ```
//!
//! **Invariant:** once it was stopped, no worker is entered any more, and every worker
//! that is in is killed: so whatever an engine said after that is the end of a worker
//! and nothing that the content did.

use std::sync::{Mutex, MutexGuard, PoisonError};

use palisade_worker::client::{KillSwitch, WorkerHandle};

/// One scan's.
#[derive(Debug, Default)]
pub(super) struct Stop(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    stopped: bool,
    /// Of the workers that scan: the one that unpacks, and the one that has its member.
    inside: Vec<KillSwitch>,
}

impl Stop {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether the scan is to end without a verdict.
    pub(super) fn is_stopped(&self) -> bool {
        self.state().stopped
    }

    /// A worker is about to scan; false if it is not to.
    pub(super) fn enter(&self, worker: &WorkerHandle) -> bool {
        let mut state = self.state();
        if !state.stopped {
            state.inside.push(worker.kill_switch());
        }
        !state.stopped
    }

    /// The worker that entered last has scanned; false if it was, or may have been, killed.
    pub(super) fn leave(&self) -> bool {
        let mut state = self.state();
        state.inside.pop();
        !state.stopped
    }

    /// Ends the scan.
    pub(super) fn stop(&self) {
        let mut state = self.state();
        state.stopped = true;
        for worker in &state.inside {
            worker.kill();
        }
    }
}
