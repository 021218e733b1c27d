//! Many contents asked about in one message: which are known to be clean.
//!
//! ```text
//!  files, as they are hashed ──► waiting ──one batch in flight──► known to be clean: done
//!                                   ▲                             else: a request of its own
//!                                   └ what comes meanwhile is the next batch
//! ```
//!
//! A batch leaves as soon as the one before it was answered, so the first file waits
//! for nobody and a fast walk fills its batches. Owns the gathering of batches; does
//! not own what follows from "not known". Whatever fails here is "not known".

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use palisade_protocol::bounded::List;
use palisade_protocol::scan::{Lookup, MAX_LOOKUP, Named, ScanOptions};
use palisade_protocol::verdict::Generations;
use tokio::sync::oneshot;

use crate::link::Link;

/// Asks in batches. Clones share them.
#[derive(Clone, Default)]
pub struct Lookups {
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    /// At most one for each file in flight.
    waiting: Vec<Waiting>,
    running: bool,
}

struct Waiting {
    named: Named,
    max_age_s: u32,
    answer: oneshot::Sender<Option<Generations>>,
}

impl Lookups {
    /// The definitions in force, if the Protection Server knows this content to be
    /// clean by a verdict that is at most `max_age_s` older than they are.
    pub async fn clean(
        &self,
        link: &Arc<Link>,
        named: Named,
        options: ScanOptions,
        max_age_s: u32,
    ) -> Option<Generations> {
        let (answer, answered) = oneshot::channel();
        let run = {
            let mut state = self.lock();
            state.waiting.push(Waiting {
                named,
                max_age_s,
                answer,
            });
            !std::mem::replace(&mut state.running, true)
        };
        if run {
            let (own, link) = (self.clone(), Arc::clone(link));
            tokio::spawn(async move { own.run(&link, options).await });
        }
        answered.await.ok().flatten()
    }

    async fn run(&self, link: &Link, options: ScanOptions) {
        loop {
            // Files that are hashed at this moment come along.
            tokio::task::yield_now().await;
            let batch: Vec<Waiting> = {
                let mut state = self.lock();
                let count = state.waiting.len().min(MAX_LOOKUP);
                if count == 0 {
                    state.running = false;
                    return;
                }
                state.waiting.drain(..count).collect()
            };
            let known = match link.look_up(lookup(&batch, options)).await {
                Ok(known) if known.clean.len() == batch.len() => Some(known),
                Ok(_) => None,
                Err(error) => {
                    tracing::debug!(%error, svm = %link.id, "a lookup was lost");
                    None
                }
            };
            for (index, waiting) in batch.into_iter().enumerate() {
                let clean = known
                    .as_ref()
                    .filter(|known| known.clean.get(index) == Some(&true));
                // Whoever asked may be gone.
                let _ = waiting
                    .answer
                    .send(clean.map(|known| known.generations.clone()));
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A batch has one age: the least that any of its files takes.
fn lookup(batch: &[Waiting], options: ScanOptions) -> Lookup {
    let ages = batch.iter().map(|waiting| waiting.max_age_s);
    Lookup {
        options,
        max_age_s: ages.min().unwrap_or_default(),
        contents: List::cut(batch.iter().map(|waiting| waiting.named)),
    }
}

#[cfg(test)]
mod tests {
    use palisade_protocol::content::ContentId;

    use super::*;

    /// Whoever takes no old verdict gets none for coming along with somebody who does.
    #[test]
    fn a_batch_asks_for_the_least_age_that_any_takes() {
        let waiting = |max_age_s| Waiting {
            named: Named {
                content: ContentId([7; 32]),
                size: 1,
            },
            max_age_s,
            answer: oneshot::channel().0,
        };
        let of = |ages: &[u32]| {
            let batch: Vec<Waiting> = ages.iter().copied().map(waiting).collect();
            let lookup = lookup(&batch, ScanOptions::default());
            (lookup.max_age_s, lookup.contents.len())
        };
        assert_eq!(of(&[86_400, 0, 60]), (0, 3));
        assert_eq!(of(&[86_400, 60]), (60, 2));
    }
}
