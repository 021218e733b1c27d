//! Which agents hold a content that was called clean: pure.
//!
//! ```text
//!  saw(agent, tenant, content) ──► content: [agent, agent, …]      at most so many of each
//!  turned_bad(tenant, content) ──► those agents, and how many were forgotten
//! ```
//!
//! With too much, the content is forgotten that was least recently seen of the tenant that
//! has most: what one tenant scans costs no other a notice. Of a content with many holders
//! it is the one that was seen first. A hypervisor has some fifty guests, all of which
//! may hold the same; most contents are held by few, so that all holders together are
//! bounded by an average. **Invariant:** no agent is named for a tenant
//! that is not its own: a tenant learns nothing of what another has.

use std::collections::{BTreeMap, HashMap};

use palisade_protocol::content::ContentId;
use palisade_protocol::ids::{AgentId, TenantId};

/// Most agents that are remembered for one content.
pub const MAX_HOLDERS: usize = 256;
/// Most agents that are remembered for all contents, for each of those: 512 bytes.
pub const MEAN_HOLDERS: usize = 32;

/// A tenant and a content, hashed together: equal for equal ones alone, and short.
type Key = [u8; 16];

#[derive(Debug)]
struct Held {
    /// When it was seen last, by the table's own count.
    seen: u64,
    /// The first is forgotten first.
    agents: Vec<AgentId>,
    forgotten: u64,
}

/// Who is to be told about a content.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Told {
    /// Agents that hold it.
    pub holders: Vec<AgentId>,
    /// Times that another holder was forgotten since this content is remembered.
    pub forgotten: u64,
}

/// What one tenant's agents hold.
#[derive(Debug, Default)]
struct Own {
    /// Contents by when they were seen last.
    order: BTreeMap<u64, Key>,
    /// Agents of all of them.
    holders: usize,
}

/// The table.
#[derive(Debug)]
pub struct Holders {
    max_contents: usize,
    held: HashMap<Key, Held>,
    tenants: HashMap<TenantId, Own>,
    count: u64,
    /// Agents of all contents.
    holders: usize,
    forgotten: u64,
}

impl Holders {
    /// An empty table for at most `max_contents` contents.
    pub fn new(max_contents: usize) -> Self {
        Self {
            max_contents,
            held: HashMap::new(),
            tenants: HashMap::new(),
            count: 0,
            holders: 0,
            forgotten: 0,
        }
    }

    /// An agent was told that a content is clean.
    pub fn saw(&mut self, agent: AgentId, tenant: &TenantId, content: ContentId) {
        if self.max_contents == 0 {
            return;
        }
        let key = key(tenant, content);
        self.count += 1;
        let seen = self.count;
        if !self.held.contains_key(&key) && self.held.len() >= self.max_contents {
            self.forget_one(|own| own.order.len());
        }
        let own = self.tenants.entry(tenant.clone()).or_default();
        let held = self.held.entry(key).or_insert_with(|| Held {
            seen,
            agents: Vec::with_capacity(1),
            forgotten: 0,
        });
        own.order.remove(&held.seen);
        held.seen = seen;
        own.order.insert(seen, key);
        if held.agents.contains(&agent) {
            return;
        }
        if held.agents.len() >= MAX_HOLDERS {
            held.agents.remove(0);
            held.forgotten += 1;
            self.forgotten += 1;
            self.holders -= 1;
            own.holders -= 1;
        }
        held.agents.push(agent);
        self.holders += 1;
        own.holders += 1;
        while self.holders > self.max_contents.saturating_mul(MEAN_HOLDERS) && self.held.len() > 1 {
            self.forget_one(|own| own.holders);
        }
    }

    /// A content is malware: who is to be told, once.
    pub fn turned_bad(&mut self, tenant: &TenantId, content: ContentId) -> Told {
        let Some(held) = self.held.remove(&key(tenant, content)) else {
            return Told::default();
        };
        self.holders -= held.agents.len();
        self.took(tenant, &held);
        Told {
            holders: held.agents,
            forgotten: held.forgotten,
        }
    }

    /// Contents with a holder.
    pub fn contents(&self) -> usize {
        self.held.len()
    }

    /// Holders that were forgotten since the start.
    pub fn forgotten(&self) -> u64 {
        self.forgotten
    }

    /// Forgets the oldest content of the tenant that has most.
    fn forget_one(&mut self, has: impl Fn(&Own) -> usize) {
        let most = self.tenants.iter().max_by_key(|(_, own)| has(own));
        let oldest = most.and_then(|(tenant, own)| {
            let (_, key) = own.order.first_key_value()?;
            Some((tenant.clone(), *key))
        });
        if let Some((tenant, key)) = oldest
            && let Some(held) = self.held.remove(&key)
        {
            self.forgotten += held.agents.len() as u64;
            self.holders -= held.agents.len();
            self.took(&tenant, &held);
        }
    }

    /// A tenant has this no more.
    fn took(&mut self, tenant: &TenantId, held: &Held) {
        if let Some(own) = self.tenants.get_mut(tenant) {
            own.order.remove(&held.seen);
            own.holders -= held.agents.len();
            if own.order.is_empty() {
                self.tenants.remove(tenant);
            }
        }
    }
}

fn key(tenant: &TenantId, content: ContentId) -> Key {
    let mut hasher = blake3::Hasher::new();
    // The content's length is fixed, so that no two pairs are the same bytes.
    hasher.update(&content.0);
    hasher.update(tenant.as_str().as_bytes());
    let mut key = [0; 16];
    hasher.finalize_xof().fill(&mut key);
    key
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn agent(n: u16) -> AgentId {
        AgentId(uuid::Uuid::from_u128(n.into()))
    }

    fn tenant(n: u8) -> TenantId {
        format!("tenant-{n}").parse().unwrap()
    }

    fn content(n: u8) -> ContentId {
        ContentId([n; 32])
    }

    #[test]
    fn the_oldest_of_too_many_holders_is_forgotten_and_counted() {
        let mut holders = Holders::new(10);
        for n in 0..264 {
            holders.saw(agent(n), &tenant(0), content(1));
        }
        let told = holders.turned_bad(&tenant(0), content(1));
        assert_eq!(told.holders, (8..264).map(agent).collect::<Vec<_>>());
        assert_eq!((told.forgotten, holders.forgotten()), (8, 8));
        assert_eq!(holders.holders, 0);
        assert_eq!(holders.turned_bad(&tenant(0), content(1)), Told::default());
    }

    #[test]
    fn the_least_recently_seen_content_is_forgotten_first() {
        let mut holders = Holders::new(2);
        holders.saw(agent(1), &tenant(0), content(1));
        holders.saw(agent(2), &tenant(0), content(2));
        holders.saw(agent(3), &tenant(0), content(1));
        holders.saw(agent(4), &tenant(0), content(3));
        assert_eq!((holders.contents(), holders.forgotten()), (2, 1));
        assert_eq!(holders.turned_bad(&tenant(0), content(2)), Told::default());
        let told = holders.turned_bad(&tenant(0), content(1));
        assert_eq!(told.holders, [agent(1), agent(3)]);
        let mut none = Holders::new(0);
        none.saw(agent(1), &tenant(0), content(1));
        assert_eq!(none.contents(), 0);
    }

    /// Fifty guests of one image hold what it is made of, and all of them are told.
    #[test]
    fn every_guest_of_a_host_is_told_and_all_holders_are_bounded() {
        let mut holders = Holders::new(100);
        for n in 0..100 {
            for guest in 0..50 {
                holders.saw(agent(guest), &tenant(0), content(n));
            }
            assert!(holders.holders <= 100 * MEAN_HOLDERS);
        }
        assert_eq!(holders.contents(), 64);
        assert_eq!(holders.forgotten(), 36 * 50);
        let told = holders.turned_bad(&tenant(0), content(99));
        assert_eq!((told.holders.len(), told.forgotten), (50, 0));
    }

    #[test]
    fn what_one_tenant_scans_costs_no_other_a_notice() {
        let mut holders = Holders::new(20);
        holders.saw(agent(1), &tenant(1), content(1));
        for n in 0..200 {
            holders.saw(agent(2), &tenant(2), content(n));
        }
        for guest in 0..200 {
            for n in 0..5 {
                holders.saw(agent(guest), &tenant(3), content(n));
            }
        }
        assert!(holders.holders <= 20 * MEAN_HOLDERS && holders.contents() <= 20);
        let told = holders.turned_bad(&tenant(1), content(1));
        assert_eq!(told.holders, [agent(1)]);
    }

    #[derive(Debug, Clone, Copy)]
    enum Step {
        Saw(u16, u8, u8),
        Bad(u8, u8),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let saw = (0..40_u16, 0..2_u8, 0..6_u8).prop_map(|(a, t, c)| Step::Saw(a, t, c));
        let bad = (0..2_u8, 0..6_u8).prop_map(|(t, c)| Step::Bad(t, c));
        prop::collection::vec(prop_oneof![9 => saw, 1 => bad], 0..400)
    }

    proptest! {
        /// Against a table without bounds: whoever is told does hold the content, in the
        /// tenant that it is told of; whoever is not told was counted as forgotten; and
        /// the bounds hold.
        #[test]
        fn whoever_holds_a_content_is_told_or_counted(steps in steps(), max in 1..8_usize) {
            let mut holders = Holders::new(max);
            let mut all: HashMap<(u8, u8), BTreeSet<AgentId>> = HashMap::new();
            let (mut known, mut told) = (0_u64, 0_u64);
            for step in steps {
                match step {
                    Step::Saw(a, t, c) => {
                        holders.saw(agent(a), &tenant(t), content(c));
                        all.entry((t, c)).or_default().insert(agent(a));
                    }
                    Step::Bad(t, c) => {
                        let bad = holders.turned_bad(&tenant(t), content(c));
                        let really = all.remove(&(t, c)).unwrap_or_default();
                        let named: BTreeSet<AgentId> = bad.holders.iter().copied().collect();
                        prop_assert_eq!(named.len(), bad.holders.len(), "each once");
                        prop_assert!(named.is_subset(&really));
                        known += really.len() as u64;
                        told += named.len() as u64;
                    }
                }
                prop_assert!(holders.contents() <= max);
                let of_tenants = |what: fn(&Own) -> usize| holders.tenants.values().map(what).sum::<usize>();
                prop_assert_eq!(of_tenants(|own| own.order.len()), holders.held.len());
                prop_assert_eq!(of_tenants(|own| own.holders), holders.holders);
                prop_assert!(holders.held.values().all(|held| held.agents.len() <= MAX_HOLDERS));
                let sum = holders.held.values().map(|held| held.agents.len()).sum::<usize>();
                prop_assert_eq!(sum, holders.holders);
                prop_assert!(holders.holders <= max * MEAN_HOLDERS || holders.contents() == 1);
            }
            prop_assert!(known - told <= holders.forgotten());
        }
    }
}
