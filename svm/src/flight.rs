//! Single flight: requests for one content are one piece of work.
//!
//! ```text
//!  enter ──► Seat ──turn──► Lead(work) ──land(result)──► everybody has it
//!                    │          │
//!                    │          └─ dropped without landing: the next in line leads,
//!                    │             and finds the work as it was left
//!                    └────► Landed(result)
//! ```
//!
//! Whoever leads holds the work's lock; the lock's queue is the line of followers.
//! A leader that fails, stalls or disconnects only lets go of it; who has to let others go
//! first is [`mod@line`]'s. Owns nothing of what the work is.
//!
//! **Invariant:** a flight is in the table only while somebody has a seat in it,
//! and never after it landed.

pub mod line;

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use line::Line;
use palisade_protocol::ids::AgentId;
use tokio::sync::{OwnedMutexGuard, watch};

/// The table of flights. Clones share it.
#[derive(Debug)]
pub struct Flights<K, W, R> {
    open: Arc<Mutex<HashMap<K, Place<W, R>>>>,
}

impl<K, W, R> Clone for Flights<K, W, R> {
    fn clone(&self) -> Self {
        Self {
            open: Arc::clone(&self.open),
        }
    }
}

impl<K, W, R> Default for Flights<K, W, R> {
    fn default() -> Self {
        Self {
            open: Arc::default(),
        }
    }
}

#[derive(Debug)]
struct Place<W, R> {
    flight: Arc<Flight<W, R>>,
    seats: usize,
}

#[derive(Debug)]
struct Flight<W, R> {
    work: Arc<tokio::sync::Mutex<W>>,
    line: Arc<Mutex<Line>>,
    landed: watch::Sender<Option<R>>,
}

/// One in a flight's line.
struct InLine<'a> {
    line: &'a Mutex<Line>,
    agent: AgentId,
}

impl<'a> InLine<'a> {
    fn new(line: &'a Mutex<Line>, agent: AgentId) -> Self {
        lock(line).joined(agent);
        Self { line, agent }
    }
}

impl Drop for InLine<'_> {
    fn drop(&mut self) {
        lock(self.line).left(self.agent);
    }
}

fn lock(line: &Mutex<Line>) -> MutexGuard<'_, Line> {
    line.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Those who wait while an agent leads.
#[derive(Debug, Clone)]
pub struct Rivals {
    line: Arc<Mutex<Line>>,
    agent: AgentId,
}

impl Rivals {
    /// Whether there is one whom the leader has to give way to when it holds it up.
    pub fn any(&self) -> bool {
        lock(&self.line).has_rival(self.agent)
    }
}

#[cfg(test)]
impl Rivals {
    /// So many agents that never gave way.
    pub fn waiting(count: usize) -> Self {
        let line = Arc::<Mutex<Line>>::default();
        (0..count).for_each(|_| lock(&line).joined(AgentId::random()));
        let agent = AgentId::random();
        Self { line, agent }
    }
}

/// A request's part in a flight.
#[derive(Debug)]
pub struct Seat<K: Eq + Hash, W, R> {
    flights: Flights<K, W, R>,
    key: K,
    flight: Arc<Flight<W, R>>,
}

/// Whose turn it is.
#[derive(Debug)]
pub enum Turn<W, R> {
    /// This one's: the work, as it was left.
    Lead(OwnedMutexGuard<W>),
    /// Nobody's any more.
    Landed(R),
}

impl<K: Eq + Hash + Clone, W: Default, R: Clone> Flights<K, W, R> {
    fn open(&self) -> MutexGuard<'_, HashMap<K, Place<W, R>>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a seat in the key's flight, which begins if there is none.
    pub fn enter(&self, key: K) -> Seat<K, W, R> {
        let mut open = self.open();
        let place = open.entry(key.clone()).or_insert_with(|| Place {
            flight: Arc::new(Flight {
                work: Arc::default(),
                line: Arc::default(),
                landed: watch::Sender::new(None),
            }),
            seats: 0,
        });
        place.seats += 1;
        Seat {
            flights: self.clone(),
            key,
            flight: Arc::clone(&place.flight),
        }
    }

    /// Begins the key's flight and leads it; none when there is one already.
    pub fn lead_new(&self, key: K) -> Option<(Seat<K, W, R>, OwnedMutexGuard<W>)> {
        let mut open = self.open();
        if open.contains_key(&key) {
            return None;
        }
        let flight = Arc::new(Flight {
            work: Arc::default(),
            line: Arc::default(),
            landed: watch::Sender::new(None),
        });
        // Nobody else has it yet.
        let work = Arc::clone(&flight.work).try_lock_owned().ok()?;
        let place = Place {
            flight: Arc::clone(&flight),
            seats: 1,
        };
        open.insert(key.clone(), place);
        let seat = Seat {
            flights: self.clone(),
            key,
            flight,
        };
        Some((seat, work))
    }

    /// Flights in the table.
    pub fn len(&self) -> usize {
        self.open().len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<K: Eq + Hash + Clone, W: Default, R: Clone> Seat<K, W, R> {
    /// Waits until the flight landed, or it is the turn of this agent's request to lead.
    pub async fn turn(&self, agent: AgentId) -> Turn<W, R> {
        let _waiting = InLine::new(&self.flight.line, agent);
        let work = Arc::clone(&self.flight.work);
        tokio::select! {
            biased;
            result = self.landed() => Turn::Landed(result),
            work = work.lock_owned() => match self.result() {
                // It landed while this one was given the work.
                Some(result) => Turn::Landed(result),
                None => Turn::Lead(work),
            },
        }
    }

    /// Who waits while the agent leads.
    pub fn rivals(&self, agent: AgentId) -> Rivals {
        Rivals {
            line: Arc::clone(&self.flight.line),
            agent,
        }
    }

    /// Whether the agent, whose turn it is, lets another one go first.
    pub fn lets_pass(&self, agent: AgentId) -> bool {
        lock(&self.flight.line).lets_pass(agent)
    }

    /// The agent led, and gave way to others.
    pub fn gave_way(&self, agent: AgentId) {
        lock(&self.flight.line).gave_way(agent);
    }

    /// Waits until the flight landed.
    pub async fn landed(&self) -> R {
        let mut landed = self.flight.landed.subscribe();
        loop {
            if let Some(result) = landed.borrow_and_update().clone() {
                return result;
            }
            if landed.changed().await.is_err() {
                // The sender is part of the flight, which this seat holds.
                std::future::pending::<()>().await;
            }
        }
    }

    /// Ends the flight with a result for everybody in it; whoever comes later
    /// begins another.
    pub fn land(&self, result: R) {
        self.flight.landed.send_replace(Some(result));
        let mut open = self.flights.open();
        if open
            .get(&self.key)
            .is_some_and(|place| Arc::ptr_eq(&place.flight, &self.flight))
        {
            open.remove(&self.key);
        }
    }

    /// Another seat in the same flight.
    pub fn another(&self) -> Self {
        let mut open = self.flights.open();
        if let Some(place) = open.get_mut(&self.key)
            && Arc::ptr_eq(&place.flight, &self.flight)
        {
            place.seats += 1;
        }
        Self {
            flights: self.flights.clone(),
            key: self.key.clone(),
            flight: Arc::clone(&self.flight),
        }
    }

    fn result(&self) -> Option<R> {
        self.flight.landed.borrow().clone()
    }
}

impl<K: Eq + Hash, W, R> Drop for Seat<K, W, R> {
    fn drop(&mut self) {
        let mut open = self
            .flights
            .open
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = open.get_mut(&self.key)
            && Arc::ptr_eq(&place.flight, &self.flight)
        {
            place.seats -= 1;
            if place.seats == 0 {
                open.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    type Table = Flights<u32, Vec<u32>, &'static str>;

    #[tokio::test]
    async fn one_leads_and_all_have_the_result() {
        let flights = Table::default();
        let leader = flights.enter(1);
        let Turn::Lead(mut work) = leader.turn(AgentId::random()).await else {
            panic!("nobody leads")
        };
        let followers: Vec<_> = (0..50)
            .map(|_| {
                let seat = flights.enter(1);
                tokio::spawn(async move {
                    match seat.turn(AgentId::random()).await {
                        Turn::Landed(result) => result,
                        Turn::Lead(_) => "lead",
                    }
                })
            })
            .collect();
        tokio::task::yield_now().await;
        work.push(1);
        leader.land("done");
        drop(work);
        for follower in followers {
            assert_eq!(follower.await.unwrap(), "done");
        }
        assert!(flights.is_empty());
        drop(leader);
        let Turn::Lead(work) = flights.enter(1).turn(AgentId::random()).await else {
            panic!("it landed before")
        };
        assert!(work.is_empty());
    }

    #[tokio::test]
    async fn a_leader_that_leaves_is_followed_by_the_next_in_line() {
        let flights = Table::default();
        let first = flights.enter(1);
        let Turn::Lead(mut work) = first.turn(AgentId::random()).await else {
            panic!("nobody leads")
        };
        let second = flights.enter(1);
        let waiting = tokio::spawn(async move {
            match second.turn(AgentId::random()).await {
                Turn::Lead(work) => work.clone(),
                Turn::Landed(_) => Vec::new(),
            }
        });
        tokio::time::sleep(Duration::from_millis(1)).await;
        assert!(first.rivals(AgentId::random()).any());
        work.push(7);
        drop(work);
        drop(first);
        assert_eq!(waiting.await.unwrap(), [7], "the work is kept");
        assert!(flights.is_empty());
    }

    #[tokio::test]
    async fn a_new_flight_has_one_leader_and_takes_followers() {
        let flights = Table::default();
        let (leader, work) = flights.lead_new(1).unwrap();
        assert!(flights.lead_new(1).is_none(), "one is under way");
        let follower = flights.enter(1);
        leader.land("done");
        drop(work);
        assert!(matches!(
            follower.turn(AgentId::random()).await,
            Turn::Landed("done")
        ));
        drop((leader, follower));
        // Given up, it is whose turn is next.
        let (leader, work) = flights.lead_new(1).unwrap();
        let follower = flights.enter(1);
        drop((leader, work));
        assert!(matches!(
            follower.turn(AgentId::random()).await,
            Turn::Lead(_)
        ));
        drop(follower);
        assert!(flights.is_empty());
    }

    #[tokio::test]
    async fn keys_do_not_meet() {
        let flights = Table::default();
        let (one, two) = (flights.enter(1), flights.enter(2));
        let Turn::Lead(_work) = one.turn(AgentId::random()).await else {
            panic!("nobody leads")
        };
        assert!(matches!(two.turn(AgentId::random()).await, Turn::Lead(_)));
        one.land("one");
        assert!(two.result().is_none());
        assert_eq!(flights.len(), 1);
    }
}
