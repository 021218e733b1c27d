//! What waits of one class: tenants share its lane time, and a tenant's agents the
//! tenant's.

use std::collections::VecDeque;
use std::hash::Hash;

use super::shares::{Holds as _, Shares};

/// One content that waits.
#[derive(Debug)]
pub(super) struct Entry<I> {
    /// When its answer is of no more use, in microseconds; `None` for never.
    pub(super) deadline_us: Option<u64>,
    pub(super) item: I,
}

/// The class.
#[derive(Debug)]
pub(super) struct Class<T, A, I> {
    tenants: Shares<T, Shares<A, VecDeque<Entry<I>>>>,
}

impl<T, A, I> Default for Class<T, A, I> {
    fn default() -> Self {
        Self {
            tenants: Shares::default(),
        }
    }
}

impl<T: Clone + Eq + Hash, A: Copy + Eq + Hash, I> Class<T, A, I> {
    /// Entries that wait.
    pub(super) fn count(&self) -> usize {
        self.tenants.count()
    }

    /// Puts an entry behind its agent's others.
    pub(super) fn put(&mut self, tenant: &T, agent: A, entry: Entry<I>) {
        self.tenants.put(tenant, |agents| {
            agents.put(&agent, |entries| entries.push_back(entry));
        });
    }

    /// Whose entry is next, of agents that `may` have one started.
    pub(super) fn next(&self, may: impl Fn(&A) -> bool) -> Option<(T, A)> {
        let tenant = self
            .tenants
            .least(|_, agents| agents.any(|agent, _| may(agent)))?;
        let agent = self.tenants.of(tenant)?.least(|agent, _| may(agent))?;
        Some((tenant.clone(), *agent))
    }

    /// The deadline of an agent's next entry.
    pub(super) fn deadline_us(&self, tenant: &T, agent: &A) -> Option<u64> {
        self.tenants.of(tenant)?.of(agent)?.front()?.deadline_us
    }

    /// An agent's next entry begins.
    pub(super) fn begin(&mut self, tenant: &T, agent: &A) -> Option<Entry<I>> {
        self.tenants
            .begin(tenant, |agents| agents.begin(agent, VecDeque::pop_front))
    }

    /// Takes an agent's next entry out, not to begin.
    pub(super) fn withdraw(&mut self, tenant: &T, agent: &A) -> Option<Entry<I>> {
        self.tenants
            .withdraw(tenant, |agents| agents.withdraw(agent, VecDeque::pop_front))
    }

    /// Charges lane time to an agent and its tenant.
    pub(super) fn charge(&mut self, tenant: &T, agent: &A, micros: i64) {
        self.tenants.charge(tenant, micros, |agents| {
            agents.charge(agent, micros, |_| ());
        });
    }

    /// What began of an agent ended.
    pub(super) fn end(&mut self, tenant: &T, agent: &A) {
        self.tenants.end(tenant, |agents| agents.end(agent, |_| ()));
    }

    /// Entries that are served before a new one of this agent, if each takes `scan_us`.
    pub(super) fn ahead(&self, tenant: &T, agent: &A, scan_us: u64) -> usize {
        let of_tenant = match self.tenants.of(tenant) {
            Some(agents) => {
                let own = agents.of(agent).map_or(0, VecDeque::len);
                agents.ahead_of(agent, own + 1, scan_us)
            }
            None => 0,
        };
        self.tenants.ahead_of(tenant, of_tenant + 1, scan_us)
    }
}
