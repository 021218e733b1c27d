//! Who is connected, and how much each has open.
//!
//! Owns the bounds on sessions and requests; guards give back what they stand for
//! when dropped. Does not own the sessions' tasks.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use palisade_protocol::ids::{AgentId, TenantId};

use crate::failure::Failure;
use crate::settings::Limits;

/// Milliseconds to wait when all agents together have too much open.
const RETRY_AFTER_MS: u32 = 500;

/// What can be ended from outside.
pub trait Close: Send + 'static {
    /// Ends the session.
    fn close(&self);
}

/// The table. Clones share it.
#[derive(Debug)]
pub struct Agents<S> {
    limits: Limits,
    table: Arc<Mutex<Table<S>>>,
}

impl<S> Clone for Agents<S> {
    fn clone(&self) -> Self {
        Self {
            limits: self.limits.clone(),
            table: Arc::clone(&self.table),
        }
    }
}

#[derive(Debug)]
struct Table<S> {
    agents: HashMap<AgentId, Agent<S>>,
    /// Open requests of each tenant's agents; of those that have any.
    tenants: HashMap<TenantId, u32>,
    sessions: u32,
    requests: u32,
    next: u64,
}

#[derive(Debug)]
struct Agent<S> {
    sessions: VecDeque<(u64, S)>,
    requests: u32,
}

/// A session's place.
#[derive(Debug)]
pub struct SessionPlace<S> {
    table: Arc<Mutex<Table<S>>>,
    agent: AgentId,
    number: u64,
}

/// A request's place.
#[derive(Debug)]
pub struct RequestPlace<S> {
    table: Arc<Mutex<Table<S>>>,
    tenant: TenantId,
    agent: AgentId,
}

fn lock<S>(table: &Mutex<Table<S>>) -> MutexGuard<'_, Table<S>> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<S: Close> Agents<S> {
    /// An empty table.
    pub fn new(limits: Limits) -> Self {
        let table = Table {
            agents: HashMap::new(),
            tenants: HashMap::new(),
            sessions: 0,
            requests: 0,
            next: 0,
        };
        Self {
            limits,
            table: Arc::new(Mutex::new(table)),
        }
    }

    /// Agents with a session.
    pub fn count(&self) -> u32 {
        let table = lock(&self.table);
        let connected = table
            .agents
            .values()
            .filter(|agent| !agent.sessions.is_empty());
        u32::try_from(connected.count()).unwrap_or(u32::MAX)
    }

    /// Open requests.
    pub fn requests(&self) -> u32 {
        lock(&self.table).requests
    }

    /// A place for a new session. One too many of its agent ends the agent's oldest
    /// (a guest that was reset leaves dead ones behind); `None` when the table is
    /// full.
    pub fn session(&self, agent: AgentId, session: S) -> Option<SessionPlace<S>> {
        let mut table = lock(&self.table);
        let own = table
            .agents
            .get(&agent)
            .map_or(0, |agent| agent.sessions.len());
        let replaces = own >= self.limits.sessions_per_agent as usize;
        if !replaces && table.sessions >= self.limits.sessions {
            return None;
        }
        let number = table.next;
        table.next += 1;
        table.sessions += 1;
        let known = table.agent(agent);
        known.sessions.push_back((number, session));
        let oldest = if replaces {
            known.sessions.pop_front()
        } else {
            None
        };
        if let Some((_, oldest)) = oldest {
            table.sessions -= 1;
            oldest.close();
        }
        Some(SessionPlace {
            table: Arc::clone(&self.table),
            agent,
            number,
        })
    }

    /// A place for a new request.
    ///
    /// # Errors
    /// [`Failure::OverLimit`] for the agent's own bound, [`Failure::Queue`] for its
    /// tenant's and for all.
    pub fn request(&self, tenant: &TenantId, agent: AgentId) -> Result<RequestPlace<S>, Failure> {
        let mut table = lock(&self.table);
        let of_tenant = table.tenants.get(tenant).copied().unwrap_or(0);
        // Whatever settings say of all, one tenant leaves some to the others.
        let most = self.limits.requests_per_tenant;
        let most = most.min((self.limits.requests / 4 * 3).max(1));
        if table.requests >= self.limits.requests || of_tenant >= most {
            return Err(Failure::Queue {
                retry_after_ms: RETRY_AFTER_MS,
            });
        }
        let known = table.agent(agent);
        let max = self.limits.requests_per_agent;
        if known.requests >= max {
            return Err(Failure::OverLimit { max });
        }
        known.requests += 1;
        table.requests += 1;
        table.tenants.insert(tenant.clone(), of_tenant + 1);
        Ok(RequestPlace {
            table: Arc::clone(&self.table),
            tenant: tenant.clone(),
            agent,
        })
    }
}

impl<S> Table<S> {
    fn agent(&mut self, agent: AgentId) -> &mut Agent<S> {
        self.agents.entry(agent).or_insert_with(|| Agent {
            sessions: VecDeque::new(),
            requests: 0,
        })
    }

    fn forget_if_gone(&mut self, agent: AgentId) {
        if self
            .agents
            .get(&agent)
            .is_some_and(|agent| agent.sessions.is_empty() && agent.requests == 0)
        {
            self.agents.remove(&agent);
        }
    }
}

impl<S> Drop for SessionPlace<S> {
    fn drop(&mut self) {
        let mut table = lock(&self.table);
        if let Some(agent) = table.agents.get_mut(&self.agent)
            && let Some(at) = agent
                .sessions
                .iter()
                .position(|(number, _)| *number == self.number)
        {
            agent.sessions.remove(at);
            table.sessions -= 1;
        }
        table.forget_if_gone(self.agent);
    }
}

impl<S> Drop for RequestPlace<S> {
    fn drop(&mut self) {
        let mut table = lock(&self.table);
        if let Some(agent) = table.agents.get_mut(&self.agent) {
            agent.requests = agent.requests.saturating_sub(1);
        }
        table.requests = table.requests.saturating_sub(1);
        if let Some(of_tenant) = table.tenants.get_mut(&self.tenant) {
            *of_tenant = of_tenant.saturating_sub(1);
            if *of_tenant == 0 {
                table.tenants.remove(&self.tenant);
            }
        }
        table.forget_if_gone(self.agent);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU32, Ordering};

    #[derive(Clone, Debug, Default)]
    struct Closed(Arc<AtomicU32>);

    impl Close for Closed {
        fn close(&self) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn agents() -> Agents<Closed> {
        Agents::new(Limits {
            sessions: 3,
            sessions_per_agent: 2,
            requests: 4,
            requests_per_tenant: 3,
            requests_per_agent: 2,
            ..Limits::default()
        })
    }

    #[test]
    fn a_third_session_ends_the_first() {
        let agents = agents();
        let agent = AgentId::random();
        let closed = [Closed::default(), Closed::default(), Closed::default()];
        let places: Vec<_> = closed
            .iter()
            .map(|closed| agents.session(agent, closed.clone()).unwrap())
            .collect();
        let count = |n: usize| closed[n].0.load(Ordering::Relaxed);
        assert_eq!([count(0), count(1), count(2)], [1, 0, 0]);
        assert_eq!(agents.count(), 1);
        assert!(
            agents
                .session(AgentId::random(), Closed::default())
                .is_some()
        );
        drop(places);
        assert_eq!(agents.count(), 0);
        let table = lock(&agents.table);
        assert_eq!((table.sessions, table.agents.len()), (0, 0));
    }

    #[test]
    fn a_full_table_takes_no_new_agent() {
        let agents = agents();
        let _places: Vec<_> = (0..3)
            .map(|_| {
                agents
                    .session(AgentId::random(), Closed::default())
                    .unwrap()
            })
            .collect();
        assert!(
            agents
                .session(AgentId::random(), Closed::default())
                .is_none()
        );
    }

    #[test]
    fn requests_are_bounded_for_an_agent_for_a_tenant_and_for_all() {
        let agents = agents();
        let [a, b, c, d] = [(); 4].map(|()| AgentId::random());
        let [one, two]: [TenantId; 2] = ["one", "two"].map(|name| name.parse().unwrap());
        let held = [
            agents.request(&one, a).unwrap(),
            agents.request(&one, a).unwrap(),
        ];
        assert_eq!(
            agents.request(&one, a).unwrap_err(),
            Failure::OverLimit { max: 2 }
        );
        let _other = agents.request(&one, b).unwrap();
        let is_full = |asked: Result<_, Failure>| matches!(asked, Err(Failure::Queue { .. }));
        assert!(is_full(agents.request(&one, c)), "as many as a tenant has");
        let theirs = agents.request(&two, d).unwrap();
        assert!(is_full(agents.request(&two, d)), "as many as there are");
        drop((held, theirs));
        assert!(agents.request(&one, c).is_ok());
        assert_eq!(agents.requests(), 1);
        assert_eq!(lock(&agents.table).tenants.len(), 1);
    }
}
