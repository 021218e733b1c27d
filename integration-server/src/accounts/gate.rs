//! So many at a time, so many waiting, and the next one is told so.

use tokio::sync::{Semaphore, SemaphorePermit};

/// A bound for work that takes something on purpose, and that anybody may ask for.
#[derive(Debug)]
pub struct Gate {
    running: Semaphore,
    /// Those that run and those that wait.
    there: Semaphore,
}

/// A place at work; whoever drops it makes room.
#[derive(Debug)]
pub struct Place<'a> {
    _running: SemaphorePermit<'a>,
    _there: SemaphorePermit<'a>,
}

impl Gate {
    /// For so many at once, and so many that wait.
    pub const fn new(at_once: usize, waiting: usize) -> Self {
        Self {
            running: Semaphore::const_new(at_once),
            there: Semaphore::const_new(at_once + waiting),
        }
    }

    /// A place, when it is one's turn; none when too many wait.
    pub async fn enter(&self) -> Option<Place<'_>> {
        let there = self.there.try_acquire().ok()?;
        let running = self.running.acquire().await.ok()?;
        Some(Place {
            _running: running,
            _there: there,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future as _;
    use std::task::Poll;

    #[tokio::test]
    async fn who_finds_no_room_is_told_and_who_waits_has_his_turn() {
        let gate = Gate::new(1, 1);
        let first = gate.enter().await.unwrap();
        let mut second = std::pin::pin!(gate.enter());
        let waits = std::future::poll_fn(|cx| Poll::Ready(second.as_mut().poll(cx).is_pending()));
        assert!(waits.await);
        assert!(gate.enter().await.is_none());
        drop(first);
        let second = second.await.unwrap();
        drop(second);
        assert!(gate.enter().await.is_some());
    }
}
