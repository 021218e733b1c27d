//! Which content is scanned next, which is turned away, and which scan gives way: pure
//! policy.
//!
//! ```text
//!          push ─► on-access [tenant T: [agent A: …] [agent B: …]] [tenant U: …] ─┐ who used least
//! (or Busy) push ─► on-demand [tenant T: [agent A: …]] [tenant V: [agent C: …]]  ─┤ lane time goes next
//!                                                                                 ▼ on-access first
//!                   long [tenant …] ◄──────────── stopped ────────────────────── lanes ──► end
//!                     │                                                            │ moved
//!                     └────────────────────────────────────────────────────► side lanes ─► end
//! ```
//!
//! Owns the order, the bounds and the meters; does not own threads, locks or a clock: the
//! time is an argument, in microseconds from any fixed moment. [`crate::scan`] drives it;
//! [`shares`] is who is next, [`class`] what waits, [`running`] what runs, [`terms`] what it
//! is asked and answers.
//!
//! - **By time.** Within a class whoever used least lane time goes next: tenants among
//!   each other, and within a tenant its agents. A scan is charged an average one when it
//!   starts, what it has taken so far whenever somebody is chosen, and what it took when
//!   it ends. Of two that both have something waiting all the while, neither gets more
//!   than the other by more than what the lanes had begun for it. A tenant of a hundred
//!   guests gets no more than a tenant of one, and slow contents no more than quick ones.
//! - On-access goes before on-demand, but one part in [`ON_DEMAND_TURN`] of the lanes'
//!   time is on-demand's, so that a busy day does not stop a task for ever.
//! - **No scan keeps an on-access content waiting for long.** A scan that has had its time
//!   on a lane ([`Layout::give_way_us`]) gives way when no lane is free for an on-access
//!   content of another agent (one that is on-demand: of any): it goes on on a side lane,
//!   if one is free, and nothing is lost. If none is, it is stopped and waits for a side
//!   lane, where it is not stopped again: it costs its own time twice at the most.
//! - An agent is given no lane while it has as many scans as there are lanes (and at least
//!   two), those on side lanes included: while one of its long ones is aside, a lane is left
//!   to others. What is on-demand does not count against its own on-access contents, to
//!   which it gives way.
//! - An entry past its deadline has nobody waiting in `open` any more: it is
//!   still scanned (a late verdict still acts), as on-demand.
//! - On-demand may fill [`ON_DEMAND_PERMILLE`] of the queue; the rest is kept for
//!   on-access.
//! - What cannot be served before its deadline is turned away at once; what waits for
//!   its own turn only is not turned away for another's flood. Lanes are expected to be
//!   free when the scan on them is an average one; no scan moves that average by more
//!   than it may keep its lane from others.

mod class;
mod running;
mod shares;
mod terms;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::hash::Hash;

use palisade_protocol::scan::ScanClass;

use class::{Class, Entry};
use running::{Kind, Run, Running};

pub use running::Ticket;
pub use terms::{Ask, Bounds, Busy, GiveWay, Layout, Start};

/// One part in so many of the lanes' time goes to on-demand, if on-access is waiting too.
pub const ON_DEMAND_TURN: u32 = 16;
/// Thousandths of the queue that on-demand may fill.
pub const ON_DEMAND_PERMILLE: usize = 750;
/// A scan's length before any was measured, in microseconds.
const FIRST_GUESS_US: u32 = 20_000;
/// How much a new measurement moves the average: one part in so many.
const AVERAGE_OVER: u64 = 16;

/// The queue, and what of it runs.
#[derive(Debug)]
pub struct Queue<T, A, I> {
    bounds: Bounds,
    layout: Layout,
    on_access: Class<T, A, I>,
    on_demand: Class<T, A, I>,
    long: Class<T, A, I>,
    running: Running<T, A>,
    per_tenant: HashMap<T, usize>,
    per_agent: HashMap<A, usize>,
    /// Lane time that on-access has until it is on-demand's turn, in microseconds; less
    /// than none if that was overrun.
    until_on_demand_us: i64,
    /// Average time that a scan keeps its lane from others, in microseconds.
    average_us: u64,
}

impl<T: Clone + Eq + Hash, A: Copy + Eq + Hash, I> Queue<T, A, I> {
    /// An empty queue.
    pub fn new(bounds: Bounds, layout: Layout) -> Self {
        Self {
            bounds,
            layout,
            on_access: Class::default(),
            on_demand: Class::default(),
            long: Class::default(),
            running: Running::default(),
            per_tenant: HashMap::new(),
            per_agent: HashMap::new(),
            until_on_demand_us: i64::from(FIRST_GUESS_US) * i64::from(ON_DEMAND_TURN - 1),
            average_us: FIRST_GUESS_US.into(),
        }
    }

    /// Entries that wait.
    pub fn len(&self) -> usize {
        self.on_access.count() + self.on_demand.count() + self.long.count()
    }

    /// Entries of a class that wait for a lane.
    pub fn waiting(&self, class: ScanClass) -> usize {
        match class {
            ScanClass::OnAccess => self.on_access.count(),
            ScanClass::OnDemand => self.on_demand.count(),
        }
    }

    /// Entries that gave way and wait for a side lane.
    pub fn waiting_long(&self) -> usize {
        self.long.count()
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Scans on lanes.
    pub fn on_lanes(&self) -> usize {
        self.running.on_lanes()
    }

    /// Scans on side lanes.
    pub fn aside(&self) -> usize {
        self.running.aside()
    }

    /// How much may run.
    pub fn layout(&self) -> Layout {
        self.layout
    }

    /// Milliseconds that a new on-access entry waits, at the most.
    pub fn wait_ms(&self) -> u32 {
        self.served_in_ms(self.on_access.count())
    }

    /// Milliseconds that so many entries take to be served.
    fn served_in_ms(&self, waiting: usize) -> u32 {
        let rounds = waiting as u64 / self.layout.lanes.max(1) as u64;
        u32::try_from(rounds.saturating_mul(self.average_us).div_ceil(1000)).unwrap_or(u32::MAX)
    }

    /// Whether an entry would be taken now.
    ///
    /// # Errors
    /// [`Busy`] when the queue is over a bound, or longer than the deadline.
    pub fn check(&self, ask: &Ask<T, A>, now_us: u64) -> Result<(), Busy> {
        let total = match ask.class {
            ScanClass::OnAccess => self.bounds.total,
            ScanClass::OnDemand => self.bounds.total * ON_DEMAND_PERMILLE / 1000,
        };
        let of_tenant = self.per_tenant.get(&ask.tenant).copied().unwrap_or(0);
        let of_agent = self.per_agent.get(&ask.agent).copied().unwrap_or(0);
        let busy = |waiting| {
            Err(Busy {
                retry_after_ms: self.served_in_ms(waiting),
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
        let Some(deadline) = ask.deadline_us else {
            return Ok(());
        };
        let (tenant, agent, scan_us) = (&ask.tenant, &ask.agent, self.average_us);
        let ahead = match ask.class {
            ScanClass::OnAccess => self.on_access.ahead(tenant, agent, scan_us),
            ScanClass::OnDemand => {
                self.on_access.count() + self.on_demand.ahead(tenant, agent, scan_us)
            }
        };
        let wait_us = u64::from(self.served_in_ms(ahead)) * 1000;
        if now_us.saturating_add(wait_us) > deadline {
            return busy(ahead);
        }
        Ok(())
    }

    /// Takes an entry.
    ///
    /// # Errors
    /// The item comes back with [`Busy`], as [`Self::check`] says.
    pub fn push(&mut self, ask: Ask<T, A>, item: I, now_us: u64) -> Result<(), (Busy, I)> {
        if let Err(busy) = self.check(&ask, now_us) {
            return Err((busy, item));
        }
        let kind = match ask.class {
            ScanClass::OnAccess => Kind::OnAccess,
            ScanClass::OnDemand => Kind::OnDemand,
        };
        self.enqueue(kind, &ask.tenant, ask.agent, ask.deadline_us, item);
        Ok(())
    }

    fn enqueue(&mut self, kind: Kind, tenant: &T, agent: A, deadline_us: Option<u64>, item: I) {
        *self.per_tenant.entry(tenant.clone()).or_insert(0) += 1;
        *self.per_agent.entry(agent).or_insert(0) += 1;
        let entry = Entry { deadline_us, item };
        self.class(kind).put(tenant, agent, entry);
    }

    fn class(&mut self, kind: Kind) -> &mut Class<T, A, I> {
        match kind {
            Kind::OnAccess => &mut self.on_access,
            Kind::OnDemand => &mut self.on_demand,
            Kind::Long => &mut self.long,
        }
    }

    /// Starts the scan that is next, if there is a lane for it.
    pub fn next(&mut self, now_us: u64) -> Option<Start<I>> {
        self.charge_running(now_us);
        if self.running.on_lanes() < self.layout.lanes
            && let Some(start) = self.next_on_lane(now_us)
        {
            return Some(start);
        }
        if self.running.aside() < self.layout.side_lanes {
            let (tenant, agent) = self.long.next(|_| true)?;
            return self.start(Kind::Long, false, tenant, agent, now_us);
        }
        None
    }

    fn next_on_lane(&mut self, now_us: u64) -> Option<Start<I>> {
        let urgent = self.urgent(now_us);
        let patient = match urgent {
            Some(_) if self.until_on_demand_us > 0 => None,
            _ => {
                let (running, layout) = (&self.running, self.layout);
                self.on_demand
                    .next(|agent| running.has_room(agent, Kind::OnDemand, layout))
            }
        };
        if patient.is_none() {
            // Turns that nobody wants are not saved up.
            self.until_on_demand_us = self.until_on_demand_us.max(0);
        }
        let by_turn = urgent.is_some();
        match (patient, urgent) {
            (Some((tenant, agent)), _) => {
                self.start(Kind::OnDemand, by_turn, tenant, agent, now_us)
            }
            (None, Some((tenant, agent))) => {
                self.start(Kind::OnAccess, false, tenant, agent, now_us)
            }
            (None, None) => None,
        }
    }

    /// Whose on-access entry in time is next; those past their deadline move over.
    fn urgent(&mut self, now_us: u64) -> Option<(T, A)> {
        loop {
            let (running, layout) = (&self.running, self.layout);
            let (tenant, agent) = self
                .on_access
                .next(|agent| running.has_room(agent, Kind::OnAccess, layout))?;
            match self.on_access.deadline_us(&tenant, &agent) {
                Some(deadline) if deadline < now_us => {
                    let late = self.on_access.withdraw(&tenant, &agent)?;
                    self.on_demand.put(&tenant, agent, late);
                }
                _ => return Some((tenant, agent)),
            }
        }
    }

    fn start(
        &mut self,
        kind: Kind,
        by_turn: bool,
        tenant: T,
        agent: A,
        now_us: u64,
    ) -> Option<Start<I>> {
        let Entry { item, .. } = self.class(kind).begin(&tenant, &agent)?;
        leave(&mut self.per_tenant, &tenant);
        leave(&mut self.per_agent, &agent);
        let mut run = Run {
            tenant,
            agent,
            kind,
            by_turn,
            started_us: now_us,
            charged_us: 0,
            aside: kind == Kind::Long,
            leaving: false,
        };
        let estimate = self.average_us;
        self.charge(&mut run, estimate);
        let ticket = self.running.begin(run);
        Some(Start { ticket, item })
    }

    /// A scan ended, with or without a verdict.
    pub fn end(&mut self, ticket: Ticket, now_us: u64) {
        self.finish(ticket, now_us);
    }

    /// A scan was stopped to give way: its content waits for a side lane.
    pub fn put_back(&mut self, ticket: Ticket, item: I, now_us: u64) {
        if let Some(run) = self.finish(ticket, now_us) {
            self.enqueue(Kind::Long, &run.tenant, run.agent, None, item);
        }
    }

    fn finish(&mut self, ticket: Ticket, now_us: u64) -> Option<Run<T, A>> {
        let mut run = self.running.end(ticket)?;
        let took = now_us.saturating_sub(run.started_us);
        if !run.aside {
            self.measured(took);
        }
        self.charge(&mut run, took);
        self.class(run.kind).end(&run.tenant, &run.agent);
        Some(run)
    }

    /// Which scan gives way now. To be asked whenever something changed, and at the time
    /// that the last answer named, until nobody does.
    pub fn give_way(&mut self, now_us: u64) -> GiveWay {
        self.charge_running(now_us);
        if self.running.on_lanes() < self.layout.lanes {
            return GiveWay::Nobody;
        }
        let Some((_, agent)) = self.urgent(now_us) else {
            return GiveWay::Nobody;
        };
        if self.running.leaving() >= self.on_access.count() {
            return GiveWay::Nobody;
        }
        // Those that wait for a side lane come first, or they would wait for ever.
        let moves = self.running.aside() < self.layout.side_lanes && self.long.count() == 0;
        match self.running.victim(&agent, self.layout, now_us, moves) {
            Some(ticket) if moves => {
                self.running.move_aside(ticket);
                self.measured(self.layout.give_way_us);
                GiveWay::Moved(ticket)
            }
            Some(ticket) => {
                self.running.tell(ticket);
                GiveWay::Stop(ticket)
            }
            None => match self.running.next_victim_us(&agent, self.layout) {
                Some(at) => GiveWay::NotBefore(at),
                None => GiveWay::Nobody,
            },
        }
    }

    /// Whether on-access waits and no lane is free: somebody may have to give way.
    pub fn is_crowded(&self) -> bool {
        self.on_access.count() > 0 && self.running.on_lanes() >= self.layout.lanes
    }

    /// Drops what waits.
    pub fn clear(&mut self) {
        self.on_access = Class::default();
        self.on_demand = Class::default();
        self.long = Class::default();
        self.per_tenant.clear();
        self.per_agent.clear();
    }

    /// Charges what runs for the time that it has run.
    fn charge_running(&mut self, now_us: u64) {
        let mut running = std::mem::take(&mut self.running);
        for run in running.iter_mut() {
            let so_far = now_us.saturating_sub(run.started_us).max(run.charged_us);
            self.charge(run, so_far);
        }
        self.running = running;
    }

    /// Charges a scan `micros` in all.
    fn charge(&mut self, run: &mut Run<T, A>, micros: u64) {
        let more =
            i64::try_from(i128::from(micros) - i128::from(run.charged_us)).unwrap_or(i64::MAX);
        if more == 0 {
            return;
        }
        run.charged_us = micros;
        self.class(run.kind).charge(&run.tenant, &run.agent, more);
        if run.aside {
            return;
        }
        let turn = i64::from(ON_DEMAND_TURN - 1);
        let until = &mut self.until_on_demand_us;
        match run.kind {
            Kind::OnAccess => *until = until.saturating_sub(more),
            Kind::OnDemand if run.by_turn => {
                *until = until.saturating_add(more.saturating_mul(turn));
            }
            Kind::OnDemand | Kind::Long => {}
        }
    }

    /// A scan kept its lane for so long, and from others no longer than it may.
    fn measured(&mut self, micros: u64) {
        let kept = micros.min(self.layout.give_way_us);
        self.average_us = self.average_us - self.average_us / AVERAGE_OVER + kept / AVERAGE_OVER;
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
