//! What runs now: where, whose, since when, and how much of that was charged.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;

use super::Layout;

/// Scans that one agent may have at a time, whatever the lanes are.
const LEAST_OF_AGENT: usize = 2;

/// Names a scan, from its start to its end.
pub type Ticket = u64;

/// What an entry waited as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    OnAccess,
    OnDemand,
    /// It gave way once.
    Long,
}

/// One scan.
#[derive(Debug)]
pub(super) struct Run<T, A> {
    pub(super) tenant: T,
    pub(super) agent: A,
    pub(super) kind: Kind,
    /// On-demand, started although on-access waited.
    pub(super) by_turn: bool,
    pub(super) started_us: u64,
    pub(super) charged_us: u64,
    pub(super) aside: bool,
    /// It was told to give way.
    pub(super) leaving: bool,
}

/// All scans.
#[derive(Debug)]
pub(super) struct Running<T, A> {
    runs: BTreeMap<Ticket, Run<T, A>>,
    of_agent: HashMap<A, Held>,
    next: Ticket,
    aside: usize,
    leaving: usize,
}

/// What an agent has running.
#[derive(Debug, Clone, Copy, Default)]
struct Held {
    all: usize,
    /// Of these, what gives way to any on-access: on-demand, on lanes.
    patient: usize,
}

impl<T, A> Run<T, A> {
    fn is_patient(&self) -> bool {
        self.kind == Kind::OnDemand && !self.aside
    }
}

impl<T, A> Default for Running<T, A> {
    fn default() -> Self {
        Self {
            runs: BTreeMap::new(),
            of_agent: HashMap::new(),
            next: 0,
            aside: 0,
            leaving: 0,
        }
    }
}

impl<T, A: Copy + Eq + Hash> Running<T, A> {
    /// Scans on lanes.
    pub(super) fn on_lanes(&self) -> usize {
        self.runs.len() - self.aside
    }

    /// Scans on side lanes.
    pub(super) fn aside(&self) -> usize {
        self.aside
    }

    /// Scans that were told to give way and have not ended yet.
    pub(super) fn leaving(&self) -> usize {
        self.leaving
    }

    /// Scans of an agent.
    fn of(&self, agent: &A) -> usize {
        self.of_agent.get(agent).map_or(0, |held| held.all)
    }

    /// Whether an agent may have one more scan on a lane. On-demand must have room beside
    /// all that it has; on-access beside what would not give way to it.
    pub(super) fn has_room(&self, agent: &A, kind: Kind, layout: Layout) -> bool {
        let held = self.of_agent.get(agent).copied().unwrap_or_default();
        let counts = match kind {
            Kind::OnAccess => held.all - held.patient,
            Kind::OnDemand | Kind::Long => held.all,
        };
        counts < layout.lanes.max(LEAST_OF_AGENT)
    }

    /// All of them, to be charged.
    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = &mut Run<T, A>> {
        self.runs.values_mut()
    }

    pub(super) fn begin(&mut self, run: Run<T, A>) -> Ticket {
        self.next += 1;
        let held = self.of_agent.entry(run.agent).or_default();
        held.all += 1;
        held.patient += usize::from(run.is_patient());
        self.aside += usize::from(run.aside);
        self.runs.insert(self.next, run);
        self.next
    }

    pub(super) fn end(&mut self, ticket: Ticket) -> Option<Run<T, A>> {
        let run = self.runs.remove(&ticket)?;
        if let Some(held) = self.of_agent.get_mut(&run.agent) {
            held.all -= 1;
            held.patient -= usize::from(run.is_patient());
            if held.all == 0 {
                self.of_agent.remove(&run.agent);
            }
        }
        self.aside -= usize::from(run.aside);
        self.leaving -= usize::from(run.leaving);
        Some(run)
    }

    /// A scan goes on on a side lane.
    pub(super) fn move_aside(&mut self, ticket: Ticket) {
        if let Some(run) = self.runs.get_mut(&ticket) {
            if run.is_patient()
                && let Some(held) = self.of_agent.get_mut(&run.agent)
            {
                held.patient -= 1;
            }
            run.aside = true;
            self.aside += 1;
        }
    }

    /// A scan is told to give way.
    pub(super) fn tell(&mut self, ticket: Ticket) {
        if let Some(run) = self.runs.get_mut(&ticket) {
            run.leaving = true;
            self.leaving += 1;
        }
    }

    /// Scans on lanes that may have to give way to an on-access content of `agent`.
    fn before<'a>(&'a self, agent: &'a A) -> impl Iterator<Item = (&'a Ticket, &'a Run<T, A>)> {
        self.runs.iter().filter(move |(_, run)| {
            let others = run.agent != *agent || run.kind != Kind::OnAccess;
            others && !run.aside && !run.leaving
        })
    }

    /// Which scan gives way to an on-access content of `agent`, of those that have had
    /// their time: one of the agent that has most; of these the oldest if it is to be
    /// moved, the youngest if it is to be stopped, whose work is lost.
    pub(super) fn victim(
        &self,
        agent: &A,
        layout: Layout,
        now_us: u64,
        moves: bool,
    ) -> Option<Ticket> {
        let over = self
            .before(agent)
            .filter(|(_, run)| run.started_us.saturating_add(layout.give_way_us) <= now_us);
        let age = |run: &Run<T, A>| {
            if moves {
                now_us - run.started_us
            } else {
                run.started_us
            }
        };
        over.max_by_key(|(ticket, run)| (self.of(&run.agent), age(run), Reverse(**ticket)))
            .map(|(ticket, _)| *ticket)
    }

    /// When the next one of them has had its time.
    pub(super) fn next_victim_us(&self, agent: &A, layout: Layout) -> Option<u64> {
        let ends = self.before(agent).map(|(_, run)| run.started_us);
        ends.min()
            .map(|started| started.saturating_add(layout.give_way_us))
    }
}
