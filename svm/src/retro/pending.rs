//! Notices that wait until their agent can be told: pure, and bounded.
//!
//! Agents may never come back, and their notices would wait for ever: with too many, the
//! oldest are dropped, of the tenant that has most. So what one tenant's agents leave
//! behind costs no other tenant a notice.

use std::collections::{BTreeMap, HashMap, VecDeque};

use palisade_protocol::bounded::List;
use palisade_protocol::content::ContentId;
use palisade_protocol::ids::{AgentId, TenantId};
use palisade_protocol::notice::{MAX_CONTENTS, Notice};

/// Most contents that wait for one agent; the first are dropped then.
pub const MAX_PER_AGENT: usize = 1024;
/// Most contents that wait for all agents of a tenant.
pub const MAX_PER_TENANT: usize = 50_000;
/// Most contents that wait for all.
pub const MAX_WAITING: usize = 100_000;

/// What waits for one agent, the oldest first, by when it was added.
type Own = VecDeque<(u64, ContentId)>;

/// Contents that agents are to be told of.
#[derive(Debug, Default)]
pub struct Pending {
    agents: HashMap<AgentId, Own>,
    /// Whom each content waits for, by when it was added.
    tenants: HashMap<TenantId, BTreeMap<u64, AgentId>>,
    added: u64,
    waiting: usize,
    dropped: u64,
}

impl Pending {
    /// An agent is to be told of a content.
    pub fn add(&mut self, agent: AgentId, tenant: &TenantId, content: ContentId) {
        let own = self.agents.get(&agent);
        if own.is_some_and(|own| own.iter().any(|(_, known)| *known == content)) {
            return;
        }
        if let Some((oldest, _)) = own
            .filter(|own| own.len() >= MAX_PER_AGENT)
            .and_then(|own| own.front())
        {
            let oldest = *oldest;
            self.drop_of(tenant, oldest);
        }
        if self
            .tenants
            .get(tenant)
            .is_some_and(|all| all.len() >= MAX_PER_TENANT)
        {
            self.drop_oldest(&tenant.clone());
        }
        if self.waiting >= MAX_WAITING {
            let most = self.tenants.iter().max_by_key(|(_, all)| all.len());
            if let Some(most) = most.map(|(tenant, _)| tenant.clone()) {
                self.drop_oldest(&most);
            }
        }
        self.added += 1;
        self.waiting += 1;
        self.agents
            .entry(agent)
            .or_default()
            .push_back((self.added, content));
        self.tenants
            .entry(tenant.clone())
            .or_default()
            .insert(self.added, agent);
    }

    fn drop_oldest(&mut self, tenant: &TenantId) {
        let all = self.tenants.get(tenant);
        if let Some(oldest) = all.and_then(|all| all.keys().next().copied()) {
            self.drop_of(tenant, oldest);
        }
    }

    fn drop_of(&mut self, tenant: &TenantId, added: u64) {
        let Some(agent) = self.forget(tenant, added) else {
            return;
        };
        self.dropped += 1;
        if let Some(own) = self.agents.get_mut(&agent) {
            own.retain(|(known, _)| *known != added);
            if own.is_empty() {
                self.agents.remove(&agent);
            }
        }
    }

    /// It waits no more; gives for whom it did.
    fn forget(&mut self, tenant: &TenantId, added: u64) -> Option<AgentId> {
        let all = self.tenants.get_mut(tenant)?;
        let agent = all.remove(&added)?;
        if all.is_empty() {
            self.tenants.remove(tenant);
        }
        self.waiting -= 1;
        Some(agent)
    }

    /// The next notice for an agent.
    pub fn take(&mut self, agent: AgentId, tenant: &TenantId) -> Option<Notice> {
        let own = self.agents.get_mut(&agent)?;
        let count = own.len().min(MAX_CONTENTS);
        let taken: Vec<(u64, ContentId)> = own.drain(..count).collect();
        if own.is_empty() {
            self.agents.remove(&agent);
        }
        for (added, _) in &taken {
            self.forget(tenant, *added);
        }
        Some(Notice {
            contents: List::cut(taken.into_iter().map(|(_, content)| content)),
        })
    }

    /// Contents that wait.
    pub fn waiting(&self) -> usize {
        self.waiting
    }

    /// Contents that agents were not told of, for want of room.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(n: usize) -> ContentId {
        ContentId::of(&n.to_le_bytes())
    }

    fn tenant(n: usize) -> TenantId {
        format!("tenant-{n}").parse().unwrap()
    }

    #[test]
    fn each_content_is_told_once_in_notices_of_bounded_size() {
        let mut pending = Pending::default();
        let (a, b, own) = (AgentId::random(), AgentId::random(), tenant(0));
        for n in 0..MAX_CONTENTS + 10 {
            pending.add(a, &own, content(n));
            pending.add(a, &own, content(n));
        }
        pending.add(b, &own, content(0));
        let sizes: Vec<usize> = std::iter::from_fn(|| pending.take(a, &own))
            .map(|notice| notice.contents.len())
            .collect();
        assert_eq!(sizes, [MAX_CONTENTS, 10]);
        assert_eq!((pending.waiting(), pending.dropped()), (1, 0));
        assert!(pending.take(b, &own).is_some() && pending.tenants.is_empty());
    }

    #[test]
    fn of_too_many_the_oldest_are_dropped() {
        let mut pending = Pending::default();
        let (agent, own) = (AgentId::random(), tenant(0));
        for n in 0..MAX_PER_AGENT + 5 {
            pending.add(agent, &own, content(n));
        }
        assert_eq!((pending.waiting(), pending.dropped()), (MAX_PER_AGENT, 5));
        assert_eq!(pending.take(agent, &own).unwrap().contents[0], content(5));
        // Guests that never come back.
        let mut pending = Pending::default();
        let agents: Vec<AgentId> = (0..MAX_PER_TENANT / 1000 + 1)
            .map(|_| AgentId::random())
            .collect();
        for agent in &agents {
            (0..1000).for_each(|n| pending.add(*agent, &own, content(n)));
        }
        assert_eq!(
            (pending.waiting(), pending.dropped()),
            (MAX_PER_TENANT, 1000)
        );
        assert!(pending.take(agents[0], &own).is_none(), "the oldest");
        assert!(pending.take(agents[1], &own).is_some());
    }

    #[test]
    fn what_one_tenant_leaves_costs_no_other_a_notice() {
        let mut pending = Pending::default();
        let (other, small) = (AgentId::random(), tenant(9));
        pending.add(other, &small, content(7));
        for own in 0..3 {
            for _ in 0..MAX_PER_TENANT / 1000 {
                let agent = AgentId::random();
                (0..1000).for_each(|n| pending.add(agent, &tenant(own), content(n)));
            }
        }
        assert_eq!(pending.waiting(), MAX_WAITING);
        let kept = pending.tenants.values().map(BTreeMap::len).sum::<usize>();
        assert_eq!(kept, MAX_WAITING);
        let notice = pending.take(other, &small).unwrap();
        assert_eq!(*notice.contents, [content(7)]);
    }
}
