//! No event waits longer than its deadline, whatever else is stuck.
//!
//! One thread of its own, which does nothing but sleep and answer: it takes no
//! lock that is held across I/O, writes no log and opens nothing. An event that
//! is answered earlier leaves the list by itself when it is dropped. What it does
//! between two answers is to say that it lives ([`pulse`](crate::pulse)).

use std::collections::BTreeMap;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use crate::threads;

/// What can run out of time.
pub trait Expires: Send + Sync {
    /// Answers if nothing else has; must not block.
    fn expire(&self);

    /// Answers because nobody will any more; must not block.
    fn give_up(&self) {
        self.expire();
    }
}

/// A place in the list; given back with [`Deadlines::forget`].
pub type Ticket = (Instant, u64);

#[derive(Default)]
struct Waiting {
    by_time: BTreeMap<Ticket, Weak<dyn Expires>>,
    next: u64,
    stopped: bool,
}

struct Shared {
    waiting: Mutex<Waiting>,
    changed: Condvar,
}

/// Done between two answers; must not block. Gives the time until it is done again.
pub type Chore = Box<dyn FnMut(Instant) -> Duration + Send>;

/// The list of what waits. Clones share it.
#[derive(Clone)]
pub struct Deadlines(Arc<Shared>);

impl Deadlines {
    /// Starts the thread, with a chore of its own, if it has one.
    ///
    /// # Errors
    /// When the system gives no thread.
    pub fn start(chore: Option<Chore>) -> std::io::Result<Self> {
        let shared = Arc::new(Shared {
            waiting: Mutex::default(),
            changed: Condvar::new(),
        });
        let thread = Arc::clone(&shared);
        threads::vital("deadlines", move || thread.run(chore))?;
        Ok(Self(shared))
    }

    /// Lets something expire at `when`.
    pub fn watch(&self, when: Instant, what: Weak<dyn Expires>) -> Ticket {
        let mut waiting = self.0.lock();
        let ticket = (when, waiting.next);
        waiting.next += 1;
        waiting.by_time.insert(ticket, what);
        if waiting
            .by_time
            .first_key_value()
            .is_some_and(|(first, _)| *first == ticket)
        {
            self.0.changed.notify_one();
        }
        ticket
    }

    /// Takes something from the list.
    pub fn forget(&self, ticket: Ticket) {
        self.0.lock().by_time.remove(&ticket);
    }

    /// Ends the thread; what waits still is given up.
    pub fn stop(&self) {
        self.0.lock().stopped = true;
        self.0.changed.notify_one();
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, mut chore: Option<Chore>) {
        self.serve(&mut chore);
        let left = std::mem::take(&mut self.lock().by_time);
        for waits in left.into_values().filter_map(|waits| waits.upgrade()) {
            waits.give_up();
        }
    }

    fn serve(&self, chore: &mut Option<Chore>) {
        let mut chore_at = chore.as_ref().map(|_| Instant::now());
        let mut waiting = self.lock();
        while !waiting.stopped {
            let now = Instant::now();
            if let (Some(chore), Some(at)) = (&mut *chore, &mut chore_at)
                && *at <= now
            {
                drop(waiting);
                *at = now + chore(now);
                waiting = self.lock();
                continue;
            }
            let next = waiting.by_time.first_key_value().map(|(ticket, _)| *ticket);
            match next {
                Some(ticket) if ticket.0 <= now => {
                    let due = waiting.by_time.remove(&ticket);
                    // Expiring may drop the last holder, which calls `forget`.
                    drop(waiting);
                    if let Some(due) = due.and_then(|due| due.upgrade()) {
                        due.expire();
                    }
                    waiting = self.lock();
                }
                next => {
                    let when = next.map(|(when, _)| when);
                    let until =
                        chore_at.map_or(when, |at| Some(when.map_or(at, |when| when.min(at))));
                    waiting = self.wait(waiting, until.map(|until| until - now));
                }
            }
        }
    }

    fn wait<'a>(
        &self,
        waiting: MutexGuard<'a, Waiting>,
        timeout: Option<Duration>,
    ) -> MutexGuard<'a, Waiting> {
        match timeout {
            Some(timeout) => {
                self.changed
                    .wait_timeout(waiting, timeout)
                    .unwrap_or_else(PoisonError::into_inner)
                    .0
            }
            None => self
                .changed
                .wait(waiting)
                .unwrap_or_else(PoisonError::into_inner),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    struct Reports(mpsc::Sender<&'static str>, &'static str);

    impl Expires for Reports {
        fn expire(&self) {
            self.0.send(self.1).unwrap();
        }
    }

    #[test]
    fn what_waits_expires_in_order_and_what_is_forgotten_does_not() {
        let deadlines = Deadlines::start(None).unwrap();
        let (sender, expired) = mpsc::channel();
        let soon: Arc<dyn Expires> = Arc::new(Reports(sender.clone(), "soon"));
        let later: Arc<dyn Expires> = Arc::new(Reports(sender.clone(), "later"));
        let never: Arc<dyn Expires> = Arc::new(Reports(sender, "never"));
        let now = Instant::now();
        deadlines.watch(now + Duration::from_millis(60), Arc::downgrade(&later));
        let ticket = deadlines.watch(now + Duration::from_millis(30), Arc::downgrade(&never));
        deadlines.watch(now + Duration::from_millis(10), Arc::downgrade(&soon));
        deadlines.forget(ticket);
        let wait = Duration::from_secs(5);
        assert_eq!(expired.recv_timeout(wait), Ok("soon"));
        assert_eq!(expired.recv_timeout(wait), Ok("later"));
        deadlines.watch(now + 60 * wait, Arc::downgrade(&soon));
        deadlines.stop();
        assert_eq!(
            expired.recv_timeout(wait),
            Ok("soon"),
            "nobody waits for nothing"
        );
    }
}
