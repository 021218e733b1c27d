//! Scans with a set that is not in force, to check what it says before it is.
//!
//! The same lane as for requests, so that a check goes through what a request would:
//! every engine, archive members included. Nothing of it is cached or counted.

use std::sync::Arc;
use std::time::Duration;

use palisade_protocol::content::ContentId;
use palisade_protocol::ids::TenantId;
use palisade_protocol::scan::ScanOptions;
use palisade_worker::client::SealedContent;

use super::engines::{EngineSet, NoWorker, PoisonKey};
use super::lane::{Bounds, Lane, Scanned};
use super::stop::Stop;
use super::tally::End;

/// A lane of its own for one set.
pub struct Trial(Lane);

impl std::fmt::Debug for Trial {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Trial")
    }
}

impl Trial {
    /// A trial of `set`, each of whose engines gets `timeout` for one content.
    pub fn new(set: Arc<EngineSet>, timeout: Duration) -> Self {
        let mut lane = Lane::new(Bounds {
            timeout,
            recycle_after: u64::MAX,
            poisoned: Arc::default(),
        });
        lane.adopt(Some(set));
        Self(lane)
    }

    /// What the set says of a content.
    ///
    /// # Errors
    /// [`NoWorker`] when an engine could not be asked.
    pub fn scan(&mut self, bytes: &[u8]) -> Result<End, NoWorker> {
        let subject = PoisonKey {
            tenant: TenantId::default_tenant(),
            content: ContentId::of(bytes),
            options: ScanOptions::default(),
        };
        let sealed = SealedContent::from_bytes(bytes).map_err(|error| NoWorker {
            engine: "engines",
            detail: format!("no memory for a content: {error}"),
        })?;
        match self.0.scan(&subject, sealed, None, &Stop::default()) {
            Scanned::Done(done) => done.end,
            Scanned::GaveWay(_) => Err(NoWorker {
                engine: "engines",
                detail: "a check was stopped".to_owned(),
            }),
        }
    }
}
