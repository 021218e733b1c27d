//! Memory for contents in flight: one budget of bytes over all agents.
//!
//! A content's whole size is taken before a byte of it is asked for, so that
//! contents in the making cannot wait for each other; it is given back with the
//! memory file. One agent may hold half of it and one tenant three quarters, so that
//! neither can leave the others without. Contents that are kept when they were scanned ([`crate::fragments`]) hold
//! shares of the same budget, which are nobody's. Owns the counting; who waits for how
//! long is named here too.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use palisade_protocol::ids::{AgentId, TenantId};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::failure::Failure;
use crate::waiting::Waiting;

/// How long a request waits for memory.
pub const WAIT: Duration = Duration::from_secs(2);
/// What an agent is told to wait when there was none, in milliseconds.
const RETRY_AFTER_MS: u32 = 1_000;
/// Bytes that are counted as one: tmpfs takes whole pages.
pub const UNIT_BYTES: u64 = 4096;

/// The budget. Clones share it.
#[derive(Debug, Clone)]
pub struct Budget {
    units: Arc<Semaphore>,
    total: u32,
    /// Units that one agent may hold: half of all, so that two agents at the
    /// least can work, and always one content of the largest size.
    per_agent: u32,
    /// Units that one tenant's agents may hold together: three quarters, and always one
    /// content of the largest size.
    per_tenant: u32,
    held: Arc<Mutex<Held>>,
    waiting: Arc<AtomicUsize>,
}

/// Units that are held.
#[derive(Debug, Default)]
struct Held {
    agents: HashMap<AgentId, u32>,
    tenants: HashMap<TenantId, u32>,
}

/// A part of the budget, given back when dropped.
#[derive(Debug)]
pub struct Share {
    units: OwnedSemaphorePermit,
    agent: Option<AgentShare>,
}

impl Share {
    /// How much of the budget it is, in bytes.
    pub fn bytes(&self) -> u64 {
        self.units.num_permits() as u64 * UNIT_BYTES
    }

    /// The same memory, held on no agent's account any more.
    pub fn of_nobody(mut self) -> Self {
        self.agent = None;
        self
    }
}

#[derive(Debug)]
struct AgentShare {
    tenant: TenantId,
    agent: AgentId,
    units: u32,
    held: Arc<Mutex<Held>>,
}

impl Drop for AgentShare {
    fn drop(&mut self) {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        give_back(&mut held.agents, &self.agent, self.units);
        give_back(&mut held.tenants, &self.tenant, self.units);
    }
}

fn give_back<K: Hash + Eq>(held: &mut HashMap<K, u32>, whose: &K, units: u32) {
    if let Some(own) = held.get_mut(whose) {
        *own = own.saturating_sub(units);
        if *own == 0 {
            held.remove(whose);
        }
    }
}

fn units(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(UNIT_BYTES)).unwrap_or(u32::MAX)
}

impl Budget {
    /// A budget of `bytes`, for contents of at most `largest` bytes.
    pub fn new(bytes: u64, largest: u64) -> Self {
        let total = units(bytes.max(largest));
        Self {
            units: Arc::new(Semaphore::new(total as usize)),
            total,
            per_agent: (total / 2).max(units(largest)),
            per_tenant: (total / 4 * 3).max(units(largest)),
            held: Arc::default(),
            waiting: Arc::default(),
        }
    }

    /// Takes `bytes` for an agent; waits for them at most [`WAIT`]. `make_room` is called
    /// before that, unless the agent or its tenant has too much already.
    ///
    /// # Errors
    /// [`Failure::Memory`].
    pub async fn take(
        &self,
        tenant: &TenantId,
        agent: AgentId,
        bytes: u64,
        make_room: impl FnOnce(),
    ) -> Result<Share, Failure> {
        let busy = Failure::Memory {
            retry_after_ms: RETRY_AFTER_MS,
        };
        let wanted = units(bytes);
        let own = self.count(tenant, agent, wanted);
        let own = own.ok_or_else(|| busy.clone())?;
        make_room();
        let _waiting = Waiting::new(&self.waiting);
        let units = Arc::clone(&self.units).acquire_many_owned(wanted);
        match tokio::time::timeout(WAIT, units).await {
            Ok(Ok(units)) => Ok(Share {
                units,
                agent: Some(own),
            }),
            // The semaphore is never closed; either way there is no memory.
            Ok(Err(_)) | Err(_) => Err(busy),
        }
    }

    /// Takes `bytes` for nobody, if they are free at this moment: whoever waits for memory
    /// goes first.
    pub fn spare(&self, bytes: u64) -> Option<Share> {
        if self.is_wanted() {
            return None;
        }
        let units = Arc::clone(&self.units).try_acquire_many_owned(units(bytes));
        Some(Share {
            units: units.ok()?,
            agent: None,
        })
    }

    fn count(&self, tenant: &TenantId, agent: AgentId, units: u32) -> Option<AgentShare> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let of_agent = held.agents.get(&agent).copied().unwrap_or(0);
        let of_tenant = held.tenants.get(tenant).copied().unwrap_or(0);
        let after = |own: u32, most: u32| own.checked_add(units).filter(|after| *after <= most);
        let of_agent = after(of_agent, self.per_agent)?;
        let of_tenant = after(of_tenant, self.per_tenant)?;
        held.agents.insert(agent, of_agent);
        held.tenants.insert(tenant.clone(), of_tenant);
        Some(AgentShare {
            tenant: tenant.clone(),
            agent,
            units,
            held: Arc::clone(&self.held),
        })
    }

    /// Whether a request waits for memory.
    pub fn is_wanted(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) > 0
    }

    /// Bytes that lack for `bytes` more.
    pub fn lacking(&self, bytes: u64) -> u64 {
        let free = self.units.available_permits() as u64;
        u64::from(units(bytes)).saturating_sub(free) * UNIT_BYTES
    }

    /// Bytes that there are.
    pub fn total_bytes(&self) -> u64 {
        u64::from(self.total) * UNIT_BYTES
    }

    /// Bytes that are free.
    pub fn free_bytes(&self) -> u64 {
        self.units.available_permits() as u64 * UNIT_BYTES
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn tenant(name: &str) -> TenantId {
        name.parse().unwrap()
    }

    fn is_nobodys(budget: &Budget) -> bool {
        let held = budget.held.lock().unwrap();
        held.agents.is_empty() && held.tenants.is_empty()
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_taken_comes_back_and_waiting_is_bounded() {
        let budget = Budget::new(4 * MIB, MIB);
        let (a, b, c) = (AgentId::random(), AgentId::random(), AgentId::random());
        let (one, two) = (tenant("one"), tenant("two"));
        let first = budget.take(&one, a, 2 * MIB, || ()).await.unwrap();
        let second = budget.take(&two, b, 2 * MIB, || ()).await.unwrap();
        let busy = budget.take(&two, c, MIB, || ()).await.unwrap_err();
        assert!(matches!(busy, Failure::Memory { .. }));
        drop(first);
        budget.take(&two, c, MIB, || ()).await.unwrap();
        drop(second);
        assert_eq!(budget.free_bytes(), 4 * MIB);
        assert!(is_nobodys(&budget));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_spare_is_nobodys_and_leaves_the_first_place_to_who_waits() {
        let budget = Budget::new(4 * MIB, MIB);
        let own = budget.spare(3 * MIB).unwrap();
        assert_eq!((own.bytes(), budget.free_bytes()), (3 * MIB, MIB));
        assert!(is_nobodys(&budget));
        assert!(budget.spare(2 * MIB).is_none());
        let (other, agent) = (budget.clone(), AgentId::random());
        let one = tenant("one");
        let waiting =
            tokio::spawn(async move { other.take(&one, agent, 2 * MIB, || ()).await.is_ok() });
        tokio::task::yield_now().await;
        assert!(budget.spare(1).is_none(), "a request waits");
        drop(own);
        assert!(waiting.await.unwrap());
        assert_eq!(budget.spare(1).unwrap().bytes(), UNIT_BYTES);
        assert_eq!(budget.free_bytes(), budget.total_bytes());
    }

    #[tokio::test(start_paused = true)]
    async fn one_agent_cannot_take_it_all() {
        let budget = Budget::new(4 * MIB, MIB);
        let (a, b) = (AgentId::random(), AgentId::random());
        let one = tenant("one");
        let _held = budget.take(&one, a, 2 * MIB, || ()).await.unwrap();
        assert!(budget.take(&one, a, 1, || ()).await.is_err());
        assert!(budget.take(&one, b, MIB, || ()).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn one_tenant_cannot_take_it_all() {
        let budget = Budget::new(8 * MIB, MIB);
        let (one, two) = (tenant("one"), tenant("two"));
        let mut held = Vec::new();
        for _ in 0..6 {
            let agent = AgentId::random();
            held.push(budget.take(&one, agent, MIB, || ()).await.unwrap());
        }
        let busy = budget
            .take(&one, AgentId::random(), 1, || ())
            .await
            .unwrap_err();
        assert!(matches!(busy, Failure::Memory { .. }));
        held.push(
            budget
                .take(&two, AgentId::random(), 2 * MIB, || ())
                .await
                .unwrap(),
        );
        drop(held);
        assert!(is_nobodys(&budget));
    }
}
