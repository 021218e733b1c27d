//! Tells a Protection Server which contents this guest holds that it did not call clean
//! itself: who it was before, or another one, did. Only so is the guest told when one of
//! them turns out to be malware there ([`crate::again`]).
//!
//! ```text
//!  a session is in force that was not told ─► all that the index has ─┐ in batches,
//!  a while later ─► what was answered from memory since ──────────────┴─► Holds
//! ```
//!
//! Owns when what is said; does not own the index ([`crate::index`]), whose bound is the
//! bound of this, nor the session. What scans saw is not said: it is on disk, and too much.

use std::sync::{Arc, Weak};
use std::time::Duration;

use palisade_protocol::bounded::List;
use palisade_protocol::scan::{Holds, MAX_LOOKUP, Named, ScanOptions};
use tokio::sync::watch;

use crate::index::Index;
use crate::link::{Link, LinkError};
use crate::pace::jittered;
use crate::selection::LinkState;

/// How long a session is in force before it is told: by all guests of a Protection Server
/// that was started, at different times.
const AFTER: Duration = Duration::from_secs(2);
/// Between two batches.
const BETWEEN: Duration = Duration::from_millis(100);
/// How often is looked whether there is more to tell.
const LOOK: Duration = Duration::from_secs(60);

/// Tells whichever Protection Server is in use, for as long as there can be one.
pub async fn run(
    mut sessions: watch::Receiver<LinkState>,
    index: Arc<Index>,
    options: ScanOptions,
) {
    let mut told: Vec<Weak<Link>> = Vec::new();
    loop {
        let link = sessions.borrow_and_update().link().map(Arc::clone);
        if let Some(link) = link {
            tokio::time::sleep(jittered(AFTER, 0.5, 2.0)).await;
            let known = |known: &Weak<Link>| std::ptr::eq(known.as_ptr(), Arc::as_ptr(&link));
            let is_new = !told.iter().any(known);
            match tell(&link, &index, options, is_new).await {
                Ok(()) if is_new => {
                    told.retain(|link| link.strong_count() > 0);
                    told.push(Arc::downgrade(&link));
                }
                Ok(()) => {}
                Err(error) => {
                    tracing::debug!(svm = %link.id, %error, "it was not told what the guest holds");
                }
            }
        }
        tokio::select! {
            changed = sessions.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(LOOK) => {}
        }
    }
}

async fn tell(
    link: &Link,
    index: &Index,
    options: ScanOptions,
    all: bool,
) -> Result<(), LinkError> {
    let contents = index.contents(all);
    for batch in contents.chunks(MAX_LOOKUP) {
        let contents: List<Named, MAX_LOOKUP> = List::cut(batch.iter().copied());
        link.holds(Holds { options, contents }).await?;
        index.told(batch);
        tokio::time::sleep(BETWEEN).await;
    }
    Ok(())
}
