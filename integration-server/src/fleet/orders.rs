//! Orders to Protection Servers about their definitions, and who waits for answers.
//!
//! ```text
//!  API ── give ──► session's queue ──► Definitions(command n) ──► Protection Server
//!   ▲                                                                  │
//!   └── answer, or "it goes on" after a while ◄── Definitions(answer n)┘
//! ```
//!
//! Nothing of it is stored: a Protection Server does an order once, or not at all, and
//! says what it has whenever it is asked.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dashmap::DashMap;
use palisade_protocol::definitions::{DefinitionsAnswer, DefinitionsCommand, DefinitionsOrder};
use palisade_protocol::ids::SvmId;
use tokio::sync::{mpsc, oneshot};

/// Orders to one Protection Server that may wait to be sent.
const MAX_QUEUED: usize = 4;
/// Orders to all whose answers may be waited for.
const MAX_WAITING: usize = 256;

/// Why an order was not given, or has no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum OrderError {
    /// It has no session.
    #[error(
        "the Protection Server is not connected; look at its log, or use `palisade-scanserver definitions` on it"
    )]
    NotConnected,
    /// Too many orders are under way.
    #[error("too many orders are under way; wait for their answers")]
    TooMany,
    /// The session ended meanwhile.
    #[error(
        "the session with the Protection Server ended before it answered; ask what it has when it is back"
    )]
    Gone,
}

type Waiting = HashMap<u64, (SvmId, oneshot::Sender<DefinitionsAnswer>)>;

/// Orders that are under way.
#[derive(Debug, Default)]
pub struct Orders {
    last: AtomicU64,
    sessions: DashMap<SvmId, mpsc::Sender<DefinitionsCommand>>,
    waiting: Mutex<Waiting>,
}

/// A session's end of its queue; none for a session that takes no orders.
pub fn queue() -> (
    mpsc::Sender<DefinitionsCommand>,
    mpsc::Receiver<DefinitionsCommand>,
) {
    mpsc::channel(MAX_QUEUED)
}

impl Orders {
    /// A Protection Server's session takes orders from here on.
    pub fn began(&self, svm: SvmId, queue: &mpsc::Sender<DefinitionsCommand>) {
        self.sessions.insert(svm, queue.clone());
    }

    /// Its session ended; whoever waits for its answers is told.
    pub fn ended(&self, svm: SvmId, queue: &mpsc::Sender<DefinitionsCommand>) {
        let same = |_: &SvmId, open: &mpsc::Sender<_>| open.same_channel(queue);
        if self.sessions.remove_if(&svm, same).is_some() {
            self.waiting().retain(|_, (whose, _)| *whose != svm);
        }
    }

    /// Gives an order and waits for its answer, at most for `patience`; `None` when the
    /// order goes on beyond that.
    ///
    /// # Errors
    /// [`OrderError`].
    pub async fn give(
        &self,
        svm: SvmId,
        order: DefinitionsOrder,
        patience: Duration,
    ) -> Result<Option<DefinitionsAnswer>, OrderError> {
        let number = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        let (reply, answer) = oneshot::channel();
        let _place = Place::take(self, number, svm, reply)?;
        let queue = self.sessions.get(&svm).map(|queue| queue.clone());
        queue
            .ok_or(OrderError::NotConnected)?
            .try_send(DefinitionsCommand { number, order })
            .map_err(|error| match error {
                mpsc::error::TrySendError::Full(_) => OrderError::TooMany,
                mpsc::error::TrySendError::Closed(_) => OrderError::NotConnected,
            })?;
        match tokio::time::timeout(patience, answer).await {
            Ok(Ok(answer)) => Ok(Some(answer)),
            Ok(Err(_)) => Err(OrderError::Gone),
            Err(_) => Ok(None),
        }
    }

    /// A Protection Server answered; one that nobody waits for any more is left.
    pub fn answered(&self, svm: SvmId, answer: DefinitionsAnswer) {
        let mut waiting = self.waiting();
        // An answer counts from the one that was asked alone.
        if waiting
            .get(&answer.number)
            .is_some_and(|(asked, _)| *asked == svm)
            && let Some((_, reply)) = waiting.remove(&answer.number)
        {
            let _ = reply.send(answer);
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place among those that wait, given back when dropped.
struct Place<'a> {
    orders: &'a Orders,
    number: u64,
}

impl<'a> Place<'a> {
    fn take(
        orders: &'a Orders,
        number: u64,
        svm: SvmId,
        reply: oneshot::Sender<DefinitionsAnswer>,
    ) -> Result<Self, OrderError> {
        let mut waiting = orders.waiting();
        if waiting.len() >= MAX_WAITING {
            return Err(OrderError::TooMany);
        }
        waiting.insert(number, (svm, reply));
        Ok(Self { orders, number })
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.orders.waiting().remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn answer(number: u64) -> DefinitionsAnswer {
        DefinitionsAnswer {
            number,
            failure: None,
            status: Default::default(),
        }
    }

    #[tokio::test]
    async fn an_order_is_answered_by_whom_it_was_given_to() {
        let (orders, svm, other) = (Orders::default(), SvmId::random(), SvmId::random());
        let refused = orders.give(svm, DefinitionsOrder::Show, LONG).await;
        assert_eq!(refused, Err(OrderError::NotConnected));
        let (queue, mut queued) = queue();
        orders.began(svm, &queue);
        let give = orders.give(svm, DefinitionsOrder::Rollback, LONG);
        let serve = async {
            let command = queued.recv().await.unwrap();
            assert_eq!(command.order, DefinitionsOrder::Rollback);
            orders.answered(other, answer(command.number));
            orders.answered(svm, answer(command.number + 1));
            assert_eq!(orders.waiting().len(), 1, "neither is the answer");
            orders.answered(svm, answer(command.number));
            command.number
        };
        let (given, number) = tokio::join!(give, serve);
        assert_eq!(given, Ok(Some(answer(number))));
        assert!(orders.waiting().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn what_takes_long_goes_on_and_what_is_too_much_is_refused() {
        let (orders, svm) = (Orders::default(), SvmId::random());
        let (queue, _queued) = queue();
        orders.began(svm, &queue);
        for _ in 0..MAX_QUEUED {
            let given = orders.give(svm, DefinitionsOrder::Show, Duration::ZERO);
            assert_eq!(given.await, Ok(None));
        }
        let given = orders.give(svm, DefinitionsOrder::Show, LONG).await;
        assert_eq!(given, Err(OrderError::TooMany));
        assert!(orders.waiting().is_empty());
    }

    #[tokio::test]
    async fn the_end_of_a_session_is_an_answer() {
        let (orders, svm) = (Orders::default(), SvmId::random());
        let (first, _queued) = queue();
        let (second, mut queued) = queue();
        orders.began(svm, &first);
        orders.began(svm, &second);
        orders.ended(svm, &first);
        let give = orders.give(svm, DefinitionsOrder::Show, LONG);
        let end = async {
            queued.recv().await.unwrap();
            orders.ended(svm, &second);
        };
        assert_eq!(tokio::join!(give, end).0, Err(OrderError::Gone));
    }
}
