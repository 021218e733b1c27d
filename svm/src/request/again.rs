//! A kept content, scanned once more without a peer: the same way as a request's, from
//! the flight to the end, and nothing in between.
//!
//! ```text
//!  scan_again ─► flight, if nobody is in one ─► loan ─► lane, if one is free ─► settle ─► land
//! ```
//!
//! Whoever asks for the content meanwhile takes a seat in the flight, and has its end.
//! Does not own when: [`crate::retro::rescan`].

use std::sync::Arc;

use palisade_protocol::ids::AgentId;
use palisade_protocol::scan::ScanClass;
use tokio::sync::oneshot;
use tracing::Instrument as _;

use super::{FlightKey, Landed, Service};
use crate::cache::Key;
use crate::failure::Failure;
use crate::metrics::Rescanned;
use crate::retro::rescan::policy::{is_due, lanes_are_free};
use crate::scan::{Asker, Job};

/// What becomes of a content that is to be scanned again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Again {
    /// It came to this.
    Came(Rescanned),
    /// Meanwhile it was scanned by the definitions in force.
    NotDue,
    /// Somebody's request for it is under way, and scans it.
    Flying,
    /// Lanes or memory are not free any more.
    NotNow,
}

impl Service {
    /// Scans a kept content by the definitions in force. What it comes to is stored and
    /// told as a request's is. A scan that has begun ends even if the future is dropped.
    pub async fn scan_again(self: &Arc<Self>, key: &Key) -> Again {
        let in_force = self.scanner.generations();
        let flight = FlightKey {
            key: key.clone(),
            generations: in_force.clone(),
        };
        let Some((seat, work)) = self.flights.lead_new(flight) else {
            return Again::Flying;
        };
        // A flight may have landed between the look and the seat.
        if !is_due(self.cache.last(key).as_ref(), &in_force) {
            return Again::NotDue;
        }
        let Some(loan) = self.fragments.lend(key) else {
            return Again::Came(Rescanned::gone);
        };
        let copy = match loan.copies_bytes() {
            0 => None,
            bytes => {
                self.fragments.make_room(self.budget.lacking(bytes));
                let Some(share) = self.budget.spare(bytes) else {
                    return Again::NotNow;
                };
                Some(share)
            }
        };
        let bytes = match loan.sealed() {
            Ok(bytes) => bytes,
            Err(error) => {
                tracing::error!(content = %key.content, %error, "a kept content cannot be scanned");
                return Again::Came(Rescanned::failed);
            }
        };
        let span = tracing::debug_span!("rescan", content = %key.content, size = key.size);
        let (reply, done) = oneshot::channel();
        let job = Job {
            tenant: key.tenant.clone(),
            content: key.content,
            bytes,
            options: key.options,
            clean_by: self.cache.clean_by(key),
            span: span.clone(),
            reply,
        };
        match self.scanner.submit_if(&nobody(key), job, lanes_are_free) {
            Ok(true) => {}
            Ok(false) | Err(Failure::Queue { .. }) => return Again::NotNow,
            Err(_) => return Again::Came(Rescanned::failed),
        }
        let (service, key, landing) = (Arc::clone(self), key.clone(), seat.another());
        let ending = async move {
            let landed = match done.await {
                Ok(done) => service.settle(done, &key).await.map(|settled| settled.0),
                Err(_) => Err(Failure::Stopping),
            };
            // Not before the engines are done with the bytes.
            drop((loan, copy));
            landing.land(landed);
            drop(work);
        };
        tokio::spawn(ending.instrument(span));
        Again::Came(came_to(&seat.landed().await))
    }
}

fn came_to(landed: &Result<Landed, Failure>) -> Rescanned {
    match landed {
        Ok(landed) => Rescanned::from(landed.verdict.kind()),
        Err(_) => Rescanned::failed,
    }
}

/// Whose work it is in the queue: the tenant's, and none of its agents'.
fn nobody(key: &Key) -> Asker {
    Asker {
        tenant: key.tenant.clone(),
        agent: AgentId::random(),
        class: ScanClass::OnDemand,
        deadline: None,
    }
}
