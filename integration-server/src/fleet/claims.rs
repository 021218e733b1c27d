//! Which agents say that they are in which domain. Pure; time is an argument, in steady
//! milliseconds.
//!
//! What a guest says of its domain is a claim, and not proven. A domain that agents of
//! several tenants claim is *disputed*: none of them is told where it is or what its tags
//! are, so that nobody learns about, or gets what is reserved for, another tenant's guest
//! by saying its UUID.

use std::collections::{BTreeMap, HashMap};

use palisade_protocol::ids::{AgentId, TenantId};
use uuid::Uuid;

/// The claims of all agents that are not revoked.
#[derive(Debug, Default)]
pub struct Claims {
    agents: HashMap<AgentId, (TenantId, Uuid)>,
    /// How many agents of each tenant.
    domains: HashMap<Uuid, BTreeMap<TenantId, usize>>,
    /// Disputed ones, and since when.
    disputed: BTreeMap<Uuid, u64>,
}

/// A domain that agents of several tenants claim.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dispute {
    /// Which.
    pub domain: Uuid,
    /// Since when.
    pub since_ms: u64,
    /// By whom.
    pub agents: Vec<AgentId>,
}

impl Claims {
    /// An agent says that it is in this domain, or in none that it knows. True when that
    /// begins or ends a dispute.
    pub fn claim(
        &mut self,
        id: AgentId,
        tenant: &TenantId,
        domain: Option<Uuid>,
        now_ms: u64,
    ) -> bool {
        let same = |(of, was): &(TenantId, Uuid)| of == tenant && Some(*was) == domain;
        if self.agents.get(&id).is_some_and(same) {
            return false;
        }
        let mut changed = self.forget(id, now_ms);
        if let Some(domain) = domain {
            let tenants = self.domains.entry(domain).or_default();
            *tenants.entry(tenant.clone()).or_default() += 1;
            self.agents.insert(id, (tenant.clone(), domain));
            changed |= self.note(domain, now_ms);
        }
        changed
    }

    /// An agent was revoked. True when that ends a dispute.
    pub fn forget(&mut self, id: AgentId, now_ms: u64) -> bool {
        let Some((tenant, domain)) = self.agents.remove(&id) else {
            return false;
        };
        if let Some(tenants) = self.domains.get_mut(&domain) {
            if let Some(agents) = tenants.get_mut(&tenant) {
                *agents -= 1;
            }
            tenants.retain(|_, agents| *agents > 0);
            if tenants.is_empty() {
                self.domains.remove(&domain);
            }
        }
        self.note(domain, now_ms)
    }

    /// Whether agents of several tenants claim it.
    pub fn is_disputed(&self, domain: Uuid) -> bool {
        self.disputed.contains_key(&domain)
    }

    /// All that are disputed.
    pub fn disputed(&self) -> Vec<Dispute> {
        let dispute = |(domain, since_ms): (&Uuid, &u64)| Dispute {
            domain: *domain,
            since_ms: *since_ms,
            agents: Vec::new(),
        };
        let mut disputes: BTreeMap<Uuid, Dispute> = self
            .disputed
            .iter()
            .map(|one| (*one.0, dispute(one)))
            .collect();
        for (id, (_, domain)) in &self.agents {
            if let Some(dispute) = disputes.get_mut(domain) {
                dispute.agents.push(*id);
            }
        }
        disputes.into_values().collect()
    }

    /// Takes down whether a domain is disputed now. True when that is new.
    fn note(&mut self, domain: Uuid, now_ms: u64) -> bool {
        let was = self.is_disputed(domain);
        let tenants = self.domains.get(&domain);
        let is = tenants.is_some_and(|tenants| tenants.len() > 1);
        match (was, is) {
            (false, true) => drop(self.disputed.insert(domain, now_ms)),
            (true, false) => drop(self.disputed.remove(&domain)),
            _ => {}
        }
        was != is
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// After whatever was said, a domain is disputed exactly when agents of two tenants
        /// claim it, and each change of that is told.
        #[test]
        fn a_dispute_is_between_tenants(
            said in prop::collection::vec((0..4_u128, 0..3_usize, prop::option::of(0..3_u128), prop::bool::weighted(0.2)), 0..60),
        ) {
            let mut claims = Claims::default();
            let mut model: HashMap<u128, (usize, Option<u128>)> = HashMap::new();
            let disputed = |model: &HashMap<u128, (usize, Option<u128>)>| -> Vec<Uuid> {
                let of = |domain| {
                    let mut tenants: Vec<_> = model.values().filter(|one| one.1 == Some(domain)).map(|one| one.0).collect();
                    tenants.sort_unstable();
                    tenants.dedup();
                    tenants.len() > 1
                };
                (0..3).filter(|domain| of(*domain)).map(Uuid::from_u128).collect()
            };
            for (agent, tenant, domain, revoked) in said {
                let before = disputed(&model);
                let id = AgentId(Uuid::from_u128(agent));
                let changed = if revoked {
                    model.remove(&agent);
                    claims.forget(id, 7)
                } else {
                    model.insert(agent, (tenant, domain));
                    let tenant: TenantId = ["one", "two", "three"][tenant].parse().unwrap();
                    claims.claim(id, &tenant, domain.map(Uuid::from_u128), 7)
                };
                let after = disputed(&model);
                prop_assert!(changed || before == after);
                let told: Vec<Uuid> = claims.disputed().into_iter().map(|one| one.domain).collect();
                prop_assert_eq!(&told, &after);
                for domain in (0..3).map(Uuid::from_u128) {
                    prop_assert_eq!(claims.is_disputed(domain), after.contains(&domain));
                }
            }
        }
    }
}
