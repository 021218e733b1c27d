//! Has long scans give way to on-access contents that wait: one thread, which sleeps
//! unless all lanes are taken and somebody waits for one.
//!
//! Which scan gives way, and when, is [`crate::admission`]'s to say.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use super::Shared;
use crate::admission::GiveWay;
use crate::metrics::GaveWay;

/// The thread's whole life.
pub(super) fn run(shared: &Shared) {
    let mut state = shared.state();
    while !state.stopping {
        let now_us = shared.now_us();
        match state.jobs.give_way(now_us) {
            GiveWay::Moved(ticket) => {
                shared.metrics.gave_way(GaveWay::moved);
                tracing::debug!(ticket, "a long scan goes on on a side lane");
                shared.ready.notify_one();
            }
            GiveWay::Stop(ticket) => {
                let stop = state.stops.get(&ticket).map(Arc::clone);
                drop(state);
                if let Some(stop) = stop {
                    stop.stop();
                }
                state = shared.state();
            }
            GiveWay::NotBefore(at_us) => {
                let wait = Duration::from_micros(at_us.saturating_sub(now_us));
                state = shared
                    .crowded
                    .wait_timeout(state, wait)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0;
            }
            GiveWay::Nobody => {
                state = shared
                    .crowded
                    .wait(state)
                    .unwrap_or_else(PoisonError::into_inner);
            }
        }
    }
}
