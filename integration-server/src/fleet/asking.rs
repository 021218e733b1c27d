//! What members are asked over their sessions, and who waits for answers.
//!
//! ```text
//!  API ── ask ──► session's queue ──► question n, pushed ──► agent | Protection Server
//!   ▲                                                                  │
//!   └── answer, or "it goes on" after a while ◄── answer n ◄───────────┘
//! ```
//!
//! Nothing of it is stored: a member does an order once, or not at all, and says what it
//! has whenever it is asked.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use dashmap::DashMap;
use palisade_protocol::control::FromServer;
use palisade_protocol::definitions::{DefinitionsCommand, DefinitionsOrder};
use tokio::sync::{mpsc, oneshot};

/// Questions to one member that may wait to be sent.
const MAX_QUEUED: usize = 4;
/// Questions to one member whose answers may be waited for: one that does not answer must
/// not take all the places.
const MAX_WAITING_FOR_ONE: usize = 2;
/// Questions to all of a kind whose answers may be waited for.
const MAX_WAITING: usize = 256;

/// Why a member was not asked, or has not answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AskError {
    /// It has no session.
    NotConnected,
    /// Too many questions are under way.
    TooMany,
    /// The session ended meanwhile.
    Gone,
}

/// What may be asked. Small: each session has a queue of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Question {
    /// A Protection Server, about its definitions.
    Definitions(DefinitionsOrder),
    /// An agent, about its choice.
    Explain,
}

/// A question with its number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Numbered {
    number: u64,
    question: Question,
}

impl From<Numbered> for FromServer {
    fn from(Numbered { number, question }: Numbered) -> Self {
        match question {
            Question::Definitions(order) => Self::Definitions(DefinitionsCommand { number, order }),
            Question::Explain => Self::Explain { number },
        }
    }
}

type Waiting<K, A> = HashMap<u64, (K, oneshot::Sender<A>)>;

/// Questions to members `K` that are under way, to be answered by an `A`.
#[derive(Debug)]
pub struct Asking<K: Eq + Hash, A> {
    last: AtomicU64,
    sessions: DashMap<K, mpsc::Sender<Numbered>>,
    waiting: Mutex<Waiting<K, A>>,
}

impl<K: Eq + Hash, A> Default for Asking<K, A> {
    fn default() -> Self {
        Self {
            last: AtomicU64::default(),
            sessions: DashMap::default(),
            waiting: Mutex::default(),
        }
    }
}

/// A session's end of its queue.
pub fn queue() -> (mpsc::Sender<Numbered>, mpsc::Receiver<Numbered>) {
    mpsc::channel(MAX_QUEUED)
}

impl<K: Copy + Eq + Hash, A> Asking<K, A> {
    /// A member's session takes questions from here on.
    pub fn began(&self, who: K, queue: &mpsc::Sender<Numbered>) {
        self.sessions.insert(who, queue.clone());
    }

    /// Its session ended; whoever waits for its answers is told.
    pub fn ended(&self, who: K, queue: &mpsc::Sender<Numbered>) {
        let same = |_: &K, open: &mpsc::Sender<_>| open.same_channel(queue);
        if self.sessions.remove_if(&who, same).is_some() {
            self.waiting().retain(|_, (whose, _)| *whose != who);
        }
    }

    /// Asks and waits for the answer, at most for `patience`; `None` when it takes longer.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn ask(
        &self,
        who: K,
        question: Question,
        patience: Duration,
    ) -> Result<Option<A>, AskError> {
        let number = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        let (reply, answer) = oneshot::channel();
        let _place = Place::take(self, number, who, reply)?;
        let queue = self.sessions.get(&who).map(|queue| queue.clone());
        queue
            .ok_or(AskError::NotConnected)?
            .try_send(Numbered { number, question })
            .map_err(|error| match error {
                mpsc::error::TrySendError::Full(_) => AskError::TooMany,
                mpsc::error::TrySendError::Closed(_) => AskError::NotConnected,
            })?;
        match tokio::time::timeout(patience, answer).await {
            Ok(Ok(answer)) => Ok(Some(answer)),
            Ok(Err(_)) => Err(AskError::Gone),
            Err(_) => Ok(None),
        }
    }

    /// A member answered; what nobody waits for any more is left.
    pub fn answered(&self, who: K, number: u64, answer: A) {
        let mut waiting = self.waiting();
        // An answer counts from the one that was asked alone.
        if waiting.get(&number).is_some_and(|(asked, _)| *asked == who)
            && let Some((_, reply)) = waiting.remove(&number)
        {
            let _ = reply.send(answer);
        }
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting<K, A>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place among those that wait, given back when dropped.
struct Place<'a, K: Copy + Eq + Hash, A> {
    asking: &'a Asking<K, A>,
    number: u64,
}

impl<'a, K: Copy + Eq + Hash, A> Place<'a, K, A> {
    fn take(
        asking: &'a Asking<K, A>,
        number: u64,
        who: K,
        reply: oneshot::Sender<A>,
    ) -> Result<Self, AskError> {
        let mut waiting = asking.waiting();
        let asked = |(of, _): &&(K, oneshot::Sender<A>)| *of == who;
        let already = waiting.values().filter(asked).count();
        if waiting.len() >= MAX_WAITING || already >= MAX_WAITING_FOR_ONE {
            return Err(AskError::TooMany);
        }
        waiting.insert(number, (who, reply));
        Ok(Self { asking, number })
    }
}

impl<K: Copy + Eq + Hash, A> Drop for Place<'_, K, A> {
    fn drop(&mut self) {
        self.asking.waiting().remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use palisade_protocol::ids::SvmId;

    use super::*;

    const LONG: Duration = Duration::from_secs(60);
    const SHOW: Question = Question::Definitions(DefinitionsOrder::Show);

    #[tokio::test]
    async fn a_question_is_answered_by_whom_it_was_put_to() {
        let (asking, svm, other) = (Asking::default(), SvmId::random(), SvmId::random());
        let refused = asking.ask(svm, SHOW, LONG).await;
        assert_eq!(refused, Err(AskError::NotConnected));
        let (queue, mut queued) = queue();
        asking.began(svm, &queue);
        let rollback = Question::Definitions(DefinitionsOrder::Rollback);
        let ask = asking.ask(svm, rollback.clone(), LONG);
        let serve = async {
            let asked = queued.recv().await.unwrap();
            assert_eq!(asked.question, rollback);
            asking.answered(other, asked.number, "another's");
            asking.answered(svm, asked.number + 1, "of another one");
            assert_eq!(asking.waiting().len(), 1, "neither is the answer");
            asking.answered(svm, asked.number, "done");
        };
        let (asked, ()) = tokio::join!(ask, serve);
        assert_eq!(asked, Ok(Some("done")));
        assert!(asking.waiting().is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn what_takes_long_goes_on_and_what_is_too_much_is_refused() {
        let (asking, svm) = (Asking::<_, ()>::default(), SvmId::random());
        let (queue, _queued) = queue();
        asking.began(svm, &queue);
        for _ in 0..MAX_QUEUED {
            let asked = asking.ask(svm, SHOW, Duration::ZERO);
            assert_eq!(asked.await, Ok(None));
        }
        let asked = asking.ask(svm, SHOW, LONG).await;
        assert_eq!(asked, Err(AskError::TooMany));
        assert!(asking.waiting().is_empty());
    }

    #[tokio::test]
    async fn one_that_does_not_answer_takes_two_places_and_no_other_one_s() {
        let (asking, silent, other) =
            (Asking::<_, ()>::default(), SvmId::random(), SvmId::random());
        let (queue, mut queued) = queue();
        asking.began(silent, &queue);
        asking.began(other, &queue);
        let ask = |who| asking.ask(who, SHOW, LONG);
        let test = async {
            for _ in 0..MAX_WAITING_FOR_ONE {
                queued.recv().await.unwrap();
            }
            assert_eq!(ask(silent).await, Err(AskError::TooMany));
            let answer = async {
                let asked = queued.recv().await.unwrap();
                asking.answered(other, asked.number, ());
            };
            assert_eq!(tokio::join!(ask(other), answer).0, Ok(Some(())));
        };
        tokio::select! {
            _ = ask(silent) => panic!("it does not answer"),
            _ = ask(silent) => panic!("it does not answer"),
            () = test => {}
        }
    }

    #[tokio::test]
    async fn the_end_of_a_session_is_an_answer() {
        let (asking, svm) = (Asking::<_, ()>::default(), SvmId::random());
        let (first, _queued) = queue();
        let (second, mut queued) = queue();
        asking.began(svm, &first);
        asking.began(svm, &second);
        asking.ended(svm, &first);
        let ask = asking.ask(svm, SHOW, LONG);
        let end = async {
            queued.recv().await.unwrap();
            asking.ended(svm, &second);
        };
        assert_eq!(tokio::join!(ask, end).0, Err(AskError::Gone));
    }
}
