//! Which content is scanned next, and which is turned away: pure policy.
//!
//! ```text
//!            push ──► on-access  [tenant T: [agent A: …] [agent B: …]] [tenant U: …]  ─┐ round robin over
//!  (or Busy) push ──► on-demand  [tenant T: [agent A: …]] [tenant V: [agent C: …]]    ─┤ tenants, then agents
//!                                                                                      ▼
//!                                                                    pop: on-access first
//! ```
//!
//! Owns the order and the bounds; does not own threads, locks or a clock: the
//! time is an argument, in milliseconds from any fixed moment. [`crate::scan`]
//! drives it; [`ring`] is the taking of turns.
//!
//! - Within a class tenants take turns, and within a tenant its agents: a flood of one
//!   agent costs each other at most one place in each of its turns, and a tenant of a
//!   hundred guests no more than a tenant of one.
//! - On-access goes before on-demand, but every [`ON_DEMAND_TURN`]th place is
//!   on-demand's, so that a busy day does not stop a task for ever.
//! - An entry past its deadline has nobody waiting in `open` any more: it is
//!   still scanned (a late verdict still acts), as on-demand.
//! - On-demand may fill [`ON_DEMAND_PERMILLE`] of the queue; the rest is kept for
//!   on-access.
//! - What cannot be served before its deadline is turned away at once; what waits for
//!   its own turn only is not turned away for another's flood.

mod ring;

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;

use palisade_protocol::scan::ScanClass;

use ring::{Holds as _, Ring};

/// Every so many places one goes to on-demand, if on-access is waiting too.
pub const ON_DEMAND_TURN: u32 = 16;
/// Thousandths of the queue that on-demand may fill.
pub const ON_DEMAND_PERMILLE: usize = 750;

/// How much may wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Entries in all.
    pub total: usize,
    /// Entries of one tenant.
    pub per_tenant: usize,
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

/// What an entry asks for. `T` names tenants, `A` agents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask<T, A> {
    /// Whose guest it is.
    pub tenant: T,
    /// Which agent's it is.
    pub agent: A,
    /// How urgent.
    pub class: ScanClass,
    /// When the answer is of no more use, in milliseconds; `None` for never.
    pub deadline_ms: Option<u64>,
}

/// The queue.
#[derive(Debug)]
pub struct Queue<T, A, I> {
    bounds: Bounds,
    on_access: Class<T, A, I>,
    on_demand: Class<T, A, I>,
    per_tenant: HashMap<T, usize>,
    per_agent: HashMap<A, usize>,
    /// On-access places since the last on-demand one.
    since_on_demand: u32,
}

type Class<T, A, I> = Ring<T, Ring<A, VecDeque<Entry<I>>>>;

#[derive(Debug)]
struct Entry<I> {
    deadline_ms: Option<u64>,
    item: I,
}

/// Puts an entry to its tenant's agent.
fn enqueue<T: Clone + Eq + Hash, A: Copy + Eq + Hash, I>(
    class: &mut Class<T, A, I>,
    tenant: &T,
    agent: A,
    entry: Entry<I>,
) {
    class.put(tenant, |agents| {
        agents.put(&agent, |entries| entries.push_back(entry));
    });
}

/// Entries of the class that are served before a new one of this asker.
fn ahead<T: Clone + Eq + Hash, A: Copy + Eq + Hash, I>(
    class: &Class<T, A, I>,
    tenant: &T,
    agent: A,
) -> usize {
    let of_tenant = match class.of(tenant) {
        Some(agents) => {
            let own = agents.of(&agent).map_or(0, VecDeque::len);
            agents.ahead_of(&agent, own + 1)
        }
        None => 0,
    };
    class.ahead_of(tenant, of_tenant + 1)
}

impl<T: Clone + Eq + Hash, A: Copy + Eq + Hash, I> Queue<T, A, I> {
    /// An empty queue.
    pub fn new(bounds: Bounds) -> Self {
        Self {
            bounds,
            on_access: Ring::default(),
            on_demand: Ring::default(),
            per_tenant: HashMap::new(),
            per_agent: HashMap::new(),
            since_on_demand: 0,
        }
    }

    /// Entries that wait.
    pub fn len(&self) -> usize {
        self.on_access.count() + self.on_demand.count()
    }

    /// Entries of a class that wait.
    pub fn waiting(&self, class: ScanClass) -> usize {
        match class {
            ScanClass::OnAccess => self.on_access.count(),
            ScanClass::OnDemand => self.on_demand.count(),
        }
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Milliseconds that a new on-access entry waits, at the most.
    pub fn wait_ms(&self, pace: Pace) -> u32 {
        pace.wait_ms(self.on_access.count())
    }

    /// Whether an entry would be taken now.
    ///
    /// # Errors
    /// [`Busy`] when the queue is over a bound, or longer than the deadline.
    pub fn check(&self, ask: &Ask<T, A>, now_ms: u64, pace: Pace) -> Result<(), Busy> {
        let total = match ask.class {
            ScanClass::OnAccess => self.bounds.total,
            ScanClass::OnDemand => self.bounds.total * ON_DEMAND_PERMILLE / 1000,
        };
        let of_tenant = self.per_tenant.get(&ask.tenant).copied().unwrap_or(0);
        let of_agent = self.per_agent.get(&ask.agent).copied().unwrap_or(0);
        let busy = |waiting| {
            Err(Busy {
                retry_after_ms: pace.wait_ms(waiting),
            })
        };
        if self.len() >= total.max(1) {
            return busy(self.len().div_ceil(2));
        }
        if of_tenant >= self.bounds.per_tenant {
            return busy(of_tenant.div_ceil(2));
        }
        if of_agent >= self.bounds.per_agent {
            return busy(of_agent);
        }
        let Some(deadline) = ask.deadline_ms else {
            return Ok(());
        };
        let ahead = match ask.class {
            ScanClass::OnAccess => ahead(&self.on_access, &ask.tenant, ask.agent),
            ScanClass::OnDemand => {
                self.on_access.count() + ahead(&self.on_demand, &ask.tenant, ask.agent)
            }
        };
        if now_ms.saturating_add(pace.wait_ms(ahead).into()) > deadline {
            return busy(ahead);
        }
        Ok(())
    }

    /// Takes an entry.
    ///
    /// # Errors
    /// The item comes back with [`Busy`], as [`Self::check`] says.
    pub fn push(
        &mut self,
        ask: Ask<T, A>,
        item: I,
        now_ms: u64,
        pace: Pace,
    ) -> Result<(), (Busy, I)> {
        if let Err(busy) = self.check(&ask, now_ms, pace) {
            return Err((busy, item));
        }
        *self.per_tenant.entry(ask.tenant.clone()).or_insert(0) += 1;
        *self.per_agent.entry(ask.agent).or_insert(0) += 1;
        let entry = Entry {
            deadline_ms: ask.deadline_ms,
            item,
        };
        let class = match ask.class {
            ScanClass::OnAccess => &mut self.on_access,
            ScanClass::OnDemand => &mut self.on_demand,
        };
        enqueue(class, &ask.tenant, ask.agent, entry);
        Ok(())
    }

    /// Gives the entry that is scanned next.
    pub fn pop(&mut self, now_ms: u64) -> Option<(A, I)> {
        let turn_of_on_demand =
            self.since_on_demand + 1 >= ON_DEMAND_TURN && !self.on_demand.is_empty();
        let urgent = if turn_of_on_demand {
            None
        } else {
            self.pop_urgent(now_ms)
        };
        let (tenant, (agent, entry)) = match urgent {
            Some(popped) => {
                self.since_on_demand += 1;
                popped
            }
            None => {
                self.since_on_demand = 0;
                self.on_demand.take()?
            }
        };
        leave(&mut self.per_tenant, &tenant);
        leave(&mut self.per_agent, &agent);
        Some((agent, entry.item))
    }

    /// The next on-access entry in time; those past their deadline move over.
    fn pop_urgent(&mut self, now_ms: u64) -> Option<(T, (A, Entry<I>))> {
        while let Some((tenant, (agent, entry))) = self.on_access.take() {
            match entry.deadline_ms {
                Some(deadline) if deadline < now_ms => {
                    enqueue(&mut self.on_demand, &tenant, agent, entry);
                }
                _ => return Some((tenant, (agent, entry))),
            }
        }
        None
    }
}

fn leave<K: Eq + Hash>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BOUNDS: Bounds = Bounds {
        total: 16,
        per_tenant: 14,
        per_agent: 6,
    };
    const PACE: Pace = Pace {
        lanes: 2,
        scan_ms: 10,
    };

    fn ask(agent: u8, class: ScanClass) -> Ask<u8, u8> {
        Ask {
            tenant: 0,
            agent,
            class,
            deadline_ms: None,
        }
    }

    fn drain<I>(queue: &mut Queue<u8, u8, I>, now_ms: u64) -> Vec<(u8, I)> {
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
            per_tenant: 1000,
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
            deadline_ms: Some(5),
            ..ask(1, ScanClass::OnAccess)
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
            deadline_ms: Some(30),
            ..ask(9, ScanClass::OnAccess)
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

    #[test]
    fn a_tenant_of_many_costs_no_more_than_a_tenant_of_one() {
        let bounds = Bounds {
            total: 1000,
            per_tenant: 1000,
            per_agent: 1000,
        };
        let mut queue = Queue::new(bounds);
        for agent in 0..100 {
            queue
                .push(ask(agent, ScanClass::OnAccess), (), 0, PACE)
                .unwrap();
        }
        let small = |agent| Ask {
            tenant: 1,
            ..ask(agent, ScanClass::OnAccess)
        };
        for agent in [200, 201, 202] {
            queue.push(small(agent), (), 0, PACE).unwrap();
        }
        let order: Vec<u8> = drain(&mut queue, 0)
            .into_iter()
            .map(|(agent, ())| agent)
            .collect();
        assert_eq!(order[..6], [0, 200, 1, 201, 2, 202]);
    }

    #[test]
    fn a_tenant_cannot_fill_the_queue() {
        let mut queue = Queue::new(BOUNDS);
        let of = |tenant, agent| Ask {
            tenant,
            ..ask(agent, ScanClass::OnAccess)
        };
        let taken = (0..16).filter(|agent| queue.push(of(0, *agent), (), 0, PACE).is_ok());
        assert_eq!(taken.count(), BOUNDS.per_tenant);
        queue.push(of(1, 20), (), 0, PACE).unwrap();
    }

    #[test]
    fn nobody_is_turned_away_for_a_flood_that_does_not_delay_him() {
        let bounds = Bounds {
            total: 1000,
            per_tenant: 1000,
            per_agent: 1000,
        };
        let mut queue = Queue::new(bounds);
        for _ in 0..500 {
            queue
                .push(ask(1, ScanClass::OnAccess), (), 0, PACE)
                .unwrap();
        }
        let tight = |agent| Ask {
            deadline_ms: Some(30),
            ..ask(agent, ScanClass::OnAccess)
        };
        assert!(queue.check(&tight(1), 0, PACE).is_err(), "the flood itself");
        assert_eq!(queue.check(&tight(2), 0, PACE), Ok(()));
    }

    /// The proving test of fairness, in simulated time: one agent asks ten times as
    /// fast as the lanes can scan; seven others together use half of what there is.
    /// Served without turns (the control), the others wait for the flood.
    #[test]
    fn under_a_tenfold_flood_the_others_keep_their_share() {
        let worst = |turns: bool| {
            let bounds = Bounds {
                total: 1024,
                per_tenant: 1024,
                per_agent: if turns { 64 } else { 1024 },
            };
            let mut queue = Queue::new(bounds);
            let mut worst_ms = 0;
            let mut refused = 0;
            for now_ms in 0..20_000u64 {
                // Two lanes, 10 ms a scan: one place every 5 ms.
                for _ in 0..2 {
                    let flood = ask(0, ScanClass::OnAccess);
                    let _ = queue.push(flood, (0, now_ms), now_ms, PACE);
                }
                if now_ms % 10 == 0 {
                    let other = 1 + (now_ms / 10 % 7) as u8;
                    let asker = if turns { other } else { 0 };
                    let ask = ask(asker, ScanClass::OnAccess);
                    refused += u32::from(queue.push(ask, (other, now_ms), now_ms, PACE).is_err());
                }
                if now_ms % 5 == 0
                    && let Some((_, (who, since))) = queue.pop(now_ms)
                    && who != 0
                {
                    worst_ms = worst_ms.max(now_ms - since);
                }
            }
            (worst_ms, refused)
        };
        let (fair_ms, refused) = worst(true);
        assert!(
            fair_ms <= 8 * 5,
            "{fair_ms} ms: more than one turn of everybody"
        );
        assert_eq!(refused, 0);
        let (unfair_ms, refused) = worst(false);
        assert!(
            unfair_ms > 1000 || refused > 100,
            "the control is fair, too"
        );
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
                        let ask = Ask { tenant: agent % 2, agent, class, deadline_ms: deadline };
                        let item = (now, on_access, deadline);
                        if queue.push(ask, item, now, PACE).is_ok() {
                            pushed.push((agent, item));
                        }
                    }
                    Step::Pop => popped.extend(queue.pop(now)),
                }
                prop_assert!(queue.len() <= BOUNDS.total);
                prop_assert!(queue.per_agent.values().all(|own| *own <= BOUNDS.per_agent));
                prop_assert!(queue.per_tenant.values().all(|own| *own <= BOUNDS.per_tenant));
            }
            popped.extend(drain(&mut queue, 1000));
            prop_assert!(queue.is_empty() && queue.per_agent.is_empty() && queue.per_tenant.is_empty());
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
            let mut queue = Queue::new(Bounds { total: 100, per_tenant: 100, per_agent: 100 });
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
