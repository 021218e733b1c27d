//! Which content is scanned next, and which is turned away: pure policy.
//!
//! ```text
//!            push ──► on-access  [agent A: …] [agent B: …]  ─┐ round robin
//!  (or Busy) push ──► on-demand  [agent A: …] [agent C: …]  ─┤ over agents
//!                                                            ▼
//!                                                 pop: on-access first
//! ```
//!
//! Owns the order and the bounds; does not own threads, locks or a clock: the
//! time is an argument, in milliseconds from any fixed moment. [`crate::scan`]
//! drives it.
//!
//! - Within a class, agents take turns, so that a flood of one costs the others
//!   at most one place each.
//! - On-access goes before on-demand, but every [`ON_DEMAND_TURN`]th place is
//!   on-demand's, so that a busy day does not stop a task for ever.
//! - An entry past its deadline has nobody waiting in `open` any more: it is
//!   still scanned (a late verdict still acts), as on-demand.
//! - On-demand may fill [`ON_DEMAND_PERMILLE`] of the queue; the rest is kept for
//!   on-access.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

use palisade_protocol::scan::ScanClass;

/// Every so many places one goes to on-demand, if on-access is waiting too.
pub const ON_DEMAND_TURN: u32 = 16;
/// Thousandths of the queue that on-demand may fill.
pub const ON_DEMAND_PERMILLE: usize = 750;

/// How much may wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Entries in all.
    pub total: usize,
    /// Entries of one agent.
    pub per_agent: usize,
}

/// How fast the queue empties, as measured by its driver.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// Scans at a time.
    pub lanes: usize,
    /// Milliseconds that a scan takes on average.
    pub scan_ms: u32,
}

impl Pace {
    /// Milliseconds that `waiting` entries take to be served.
    pub fn wait_ms(self, waiting: usize) -> u32 {
        let rounds = waiting as u64 / self.lanes.max(1) as u64;
        u32::try_from(rounds.saturating_mul(self.scan_ms.into())).unwrap_or(u32::MAX)
    }
}

/// Turned away; worth trying again after this many milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Busy {
    /// Milliseconds.
    pub retry_after_ms: u32,
}

/// What an entry asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ask<A> {
    /// Whose it is.
    pub agent: A,
    /// How urgent.
    pub class: ScanClass,
    /// When the answer is of no more use, in milliseconds; `None` for never.
    pub deadline_ms: Option<u64>,
}

/// The queue.
#[derive(Debug)]
pub struct Queue<A, T> {
    bounds: Bounds,
    on_access: Turns<A, T>,
    on_demand: Turns<A, T>,
    per_agent: HashMap<A, usize>,
    /// On-access places since the last on-demand one.
    since_on_demand: u32,
}

/// One class: agents in turn, each with its entries in order.
#[derive(Debug)]
struct Turns<A, T> {
    entries: HashMap<A, VecDeque<Entry<T>>>,
    turn: VecDeque<A>,
    count: usize,
}

#[derive(Debug)]
struct Entry<T> {
    deadline_ms: Option<u64>,
    item: T,
}

impl<A: Copy + Eq + Hash, T> Turns<A, T> {
    fn new() -> Self {
        Self {
            entries: HashMap::new(),
            turn: VecDeque::new(),
            count: 0,
        }
    }

    fn push(&mut self, agent: A, entry: Entry<T>) {
        let own = self.entries.entry(agent).or_default();
        if own.is_empty() {
            self.turn.push_back(agent);
        }
        own.push_back(entry);
        self.count += 1;
    }

    fn pop(&mut self) -> Option<(A, Entry<T>)> {
        let agent = self.turn.pop_front()?;
        let own = self.entries.get_mut(&agent)?;
        let entry = own.pop_front()?;
        self.count -= 1;
        if own.is_empty() {
            self.entries.remove(&agent);
        } else {
            self.turn.push_back(agent);
        }
        Some((agent, entry))
    }
}

impl<A: Copy + Eq + Hash, T> Queue<A, T> {
    /// An empty queue.
    pub fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            on_access: Turns::new(),
            on_demand: Turns::new(),
            per_agent: HashMap::new(),
            since_on_demand: 0,
        }
    }

    /// Entries that wait.
    pub fn len(&self) -> usize {
        self.on_access.count + self.on_demand.count
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Milliseconds that a new on-access entry waits.
    pub fn wait_ms(&self, pace: Pace) -> u32 {
        pace.wait_ms(self.on_access.count)
    }

    /// Whether an entry would be taken now.
    ///
    /// # Errors
    /// [`Busy`] when the queue is over a bound, or longer than the deadline.
    pub fn check(&self, ask: &Ask<A>, now_ms: u64, pace: Pace) -> Result<(), Busy> {
        let (ahead, total) = match ask.class {
            ScanClass::OnAccess => (self.on_access.count, self.bounds.total),
            ScanClass::OnDemand => (self.len(), self.bounds.total * ON_DEMAND_PERMILLE / 1000),
        };
        let own = self.per_agent.get(&ask.agent).copied().unwrap_or(0);
        if self.len() >= total.max(1) {
            return Err(Busy {
                retry_after_ms: pace.wait_ms(self.len().div_ceil(2)),
            });
        }
        if own >= self.bounds.per_agent {
            return Err(Busy {
                retry_after_ms: pace.wait_ms(own),
            });
        }
        let wait = pace.wait_ms(ahead);
        match ask.deadline_ms {
            Some(deadline) if now_ms.saturating_add(wait.into()) > deadline => Err(Busy {
                retry_after_ms: wait,
            }),
            _ => Ok(()),
        }
    }

    /// Takes an entry.
    ///
    /// # Errors
    /// The item comes back with [`Busy`], as [`Self::check`] says.
    pub fn push(&mut self, ask: Ask<A>, item: T, now_ms: u64, pace: Pace) -> Result<(), (Busy, T)> {
        if let Err(busy) = self.check(&ask, now_ms, pace) {
            return Err((busy, item));
        }
        *self.per_agent.entry(ask.agent).or_insert(0) += 1;
        let entry = Entry {
            deadline_ms: ask.deadline_ms,
            item,
        };
        match ask.class {
            ScanClass::OnAccess => self.on_access.push(ask.agent, entry),
            ScanClass::OnDemand => self.on_demand.push(ask.agent, entry),
        }
        Ok(())
    }

    /// Gives the entry that is scanned next.
    pub fn pop(&mut self, now_ms: u64) -> Option<(A, T)> {
        let turn_of_on_demand =
            self.since_on_demand + 1 >= ON_DEMAND_TURN && self.on_demand.count > 0;
        let urgent = if turn_of_on_demand {
            None
        } else {
            self.pop_urgent(now_ms)
        };
        let (agent, entry) = match urgent {
            Some(popped) => {
                self.since_on_demand += 1;
                popped
            }
            None => {
                self.since_on_demand = 0;
                self.on_demand.pop()?
            }
        };
        self.leave(agent);
        Some((agent, entry.item))
    }

    /// The next on-access entry in time; those past their deadline move over.
    fn pop_urgent(&mut self, now_ms: u64) -> Option<(A, Entry<T>)> {
        while let Some((agent, entry)) = self.on_access.pop() {
            match entry.deadline_ms {
                Some(deadline) if deadline < now_ms => self.on_demand.push(agent, entry),
                _ => return Some((agent, entry)),
            }
        }
        None
    }

    fn leave(&mut self, agent: A) {
        if let Some(count) = self.per_agent.get_mut(&agent) {
            *count -= 1;
            if *count == 0 {
                self.per_agent.remove(&agent);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BOUNDS: Bounds = Bounds {
        total: 16,
        per_agent: 6,
    };
    const PACE: Pace = Pace {
        lanes: 2,
        scan_ms: 10,
    };

    fn ask(agent: u8, class: ScanClass) -> Ask<u8> {
        Ask {
            agent,
            class,
            deadline_ms: None,
        }
    }

    fn drain<T>(queue: &mut Queue<u8, T>, now_ms: u64) -> Vec<(u8, T)> {
        std::iter::from_fn(|| queue.pop(now_ms)).collect()
    }

    #[test]
    fn a_flood_of_one_does_not_delay_another() {
        let mut queue = Queue::new(BOUNDS);
        for n in 0..6 {
            queue.push(ask(1, ScanClass::OnAccess), n, 0, PACE).unwrap();
        }
        assert!(queue.push(ask(1, ScanClass::OnAccess), 6, 0, PACE).is_err());
        queue
            .push(ask(2, ScanClass::OnAccess), 100, 0, PACE)
            .unwrap();
        let order: Vec<u8> = drain(&mut queue, 0)
            .into_iter()
            .map(|(agent, _)| agent)
            .collect();
        assert_eq!(order, [1, 2, 1, 1, 1, 1, 1]);
    }

    #[test]
    fn on_access_first_yet_on_demand_never_starves() {
        let bounds = Bounds {
            total: 1000,
            per_agent: 1000,
        };
        let mut queue = Queue::new(bounds);
        for n in 0..100 {
            queue.push(ask(1, ScanClass::OnDemand), n, 0, PACE).unwrap();
            queue.push(ask(2, ScanClass::OnAccess), n, 0, PACE).unwrap();
        }
        let order: Vec<u8> = drain(&mut queue, 0)
            .into_iter()
            .map(|(agent, _)| agent)
            .collect();
        assert!(order[..15].iter().all(|agent| *agent == 2));
        assert_eq!(order[15], 1);
        assert_eq!(order[..32].iter().filter(|agent| **agent == 1).count(), 2);
    }

    #[test]
    fn on_demand_leaves_room_for_on_access() {
        let mut queue = Queue::new(BOUNDS);
        let taken = (0..16)
            .filter(|n| {
                queue
                    .push(ask(*n, ScanClass::OnDemand), (), 0, PACE)
                    .is_ok()
            })
            .count();
        assert_eq!(taken, 12);
        queue
            .push(ask(20, ScanClass::OnAccess), (), 0, PACE)
            .unwrap();
    }

    #[test]
    fn past_its_deadline_an_entry_waits_behind_those_in_time() {
        let mut queue = Queue::new(BOUNDS);
        let late = Ask {
            agent: 1,
            class: ScanClass::OnAccess,
            deadline_ms: Some(5),
        };
        queue.push(late, "late", 0, PACE).unwrap();
        queue
            .push(ask(2, ScanClass::OnAccess), "in time", 0, PACE)
            .unwrap();
        assert_eq!(queue.pop(10), Some((2, "in time")));
        assert_eq!(queue.pop(10), Some((1, "late")));
    }

    #[test]
    fn what_cannot_be_served_in_time_is_turned_away() {
        let mut queue = Queue::new(BOUNDS);
        for agent in 0..8 {
            queue
                .push(ask(agent, ScanClass::OnAccess), (), 0, PACE)
                .unwrap();
        }
        let tight = Ask {
            agent: 9,
            class: ScanClass::OnAccess,
            deadline_ms: Some(30),
        };
        assert_eq!(
            queue.check(&tight, 0, PACE),
            Err(Busy { retry_after_ms: 40 })
        );
        let loose = Ask {
            deadline_ms: Some(41),
            ..tight
        };
        assert_eq!(queue.check(&loose, 0, PACE), Ok(()));
    }

    #[derive(Debug, Clone)]
    enum Step {
        Push {
            agent: u8,
            on_access: bool,
            deadline: Option<u64>,
        },
        Pop,
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let push = (0u8..5, any::<bool>(), proptest::option::of(0u64..300)).prop_map(
            |(agent, on_access, deadline)| Step::Push {
                agent,
                on_access,
                deadline,
            },
        );
        proptest::collection::vec(prop_oneof![3 => push, 2 => Just(Step::Pop)], 0..200)
    }

    proptest! {
        /// Nothing is lost, doubled or over a bound; one agent's entries of one
        /// class that did not expire keep their order.
        #[test]
        fn what_goes_in_comes_out_once_and_within_bounds(steps in steps()) {
            let mut queue = Queue::new(BOUNDS);
            let (mut pushed, mut popped) = (Vec::new(), Vec::new());
            for (now, step) in steps.into_iter().enumerate() {
                let now = now as u64;
                match step {
                    Step::Push { agent, on_access, deadline } => {
                        let class =
                            if on_access { ScanClass::OnAccess } else { ScanClass::OnDemand };
                        let ask = Ask { agent, class, deadline_ms: deadline };
                        let item = (now, on_access, deadline);
                        if queue.push(ask, item, now, PACE).is_ok() {
                            pushed.push((agent, item));
                        }
                    }
                    Step::Pop => popped.extend(queue.pop(now)),
                }
                prop_assert!(queue.len() <= BOUNDS.total);
                for agent in 0..5 {
                    let own = queue.per_agent.get(&agent).copied().unwrap_or(0);
                    prop_assert!(own <= BOUNDS.per_agent);
                }
            }
            popped.extend(drain(&mut queue, 1000));
            prop_assert!(queue.is_empty() && queue.per_agent.is_empty());
            for agent in 0..5 {
                for on_access in [true, false] {
                    let lasting = |entry: &&(u8, (u64, bool, Option<u64>))| {
                        entry.0 == agent && entry.1.1 == on_access && entry.1.2.is_none()
                    };
                    let went: Vec<_> = pushed.iter().filter(lasting).collect();
                    let came: Vec<_> = popped.iter().filter(lasting).collect();
                    prop_assert_eq!(went, came);
                }
            }
            let (mut went, mut came) = (pushed, popped);
            went.sort();
            came.sort();
            prop_assert_eq!(went, came);
        }

        /// Between two places of a waiting agent, no other of its class has two.
        #[test]
        fn agents_take_turns(counts in proptest::collection::vec(1usize..6, 2..5)) {
            let mut queue = Queue::new(Bounds { total: 100, per_agent: 100 });
            for (agent, count) in counts.iter().enumerate() {
                for _ in 0..*count {
                    queue.push(ask(agent as u8, ScanClass::OnAccess), (), 0, PACE).unwrap();
                }
            }
            let mut served = vec![0usize; counts.len()];
            while let Some((agent, ())) = queue.pop(0) {
                served[agent as usize] += 1;
                for (a, served_a) in served.iter().enumerate() {
                    let waits = *served_a < counts[a];
                    prop_assert!(!waits || served.iter().all(|other| *other <= served_a + 1));
                }
            }
            prop_assert_eq!(served, counts);
        }
    }
}
