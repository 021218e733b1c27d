//! The policies in force: all of them in memory, as the store has them, and what comes of
//! them for an agent.
//!
//! ```text
//!   API changes one ──► store ──► Policies (read anew) ──► announced ──► sessions look ──► push
//!   another server ──────┘   ▲ every tick, by the store's counter
//!   inventory changes ───────┴──────────────────────────► announced
//! ```
//!
//! A session computes its own agent's document whenever something may have changed, and
//! sends it if its fingerprint is another one: nothing is kept for agents that are away.
//! Which domain an agent is in is what it says: by claiming another one it gets into its
//! own tenant's groups, at most.

use std::sync::{Arc, PoisonError, RwLock};

use palisade_protocol::control::FromServer;
use palisade_protocol::policy::{Fingerprint, Policy};

use super::Fleet;
use crate::policy::{Book, Facts, Group, Query, book};
use crate::store::{AgentRecord, GroupRecord, Result, Store};

/// The book, and the store's count when it was read.
#[derive(Debug, Default)]
pub struct Policies(RwLock<(u64, Arc<Book>)>);

impl Policies {
    /// Reads all of it.
    ///
    /// # Errors
    /// The store's.
    pub async fn load(store: &dyn Store) -> Result<Self> {
        let policies = Self::default();
        policies.read_anew(store).await?;
        Ok(policies)
    }

    /// The book as it is now.
    pub fn book(&self) -> Arc<Book> {
        let kept = self.0.read().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(&kept.1)
    }

    fn version(&self) -> u64 {
        self.0.read().unwrap_or_else(PoisonError::into_inner).0
    }

    async fn read_anew(&self, store: &dyn Store) -> Result<()> {
        // First: what changes meanwhile is read once more.
        let version = store.policy_version().await?;
        let policies = store.policies().await?.into_iter().map(|policy| {
            let current = book::Current {
                revision: policy.revision,
                settings: Arc::new(policy.settings),
            };
            (policy.subject, current)
        });
        let groups = store.groups().await?.into_iter().map(group);
        let book = Arc::new(Book::new(policies, groups));
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = (version, book);
        Ok(())
    }
}

fn group(record: GroupRecord) -> Group {
    let query = record.query.parse().unwrap_or_else(|error| {
        // Another version wrote it.
        tracing::error!(group = %record.id, %error, "a group's query cannot be read, and nobody is in it");
        Query::nobody()
    });
    Group {
        id: record.id,
        tenant: record.tenant,
        name: record.name,
        query,
        priority: record.priority,
        revision: record.revision,
    }
}

impl Fleet {
    /// The policies as they are now.
    pub fn book(&self) -> Arc<Book> {
        self.policies.book()
    }

    /// Somebody changed a policy or a group here: agents are told.
    pub async fn policies_changed(&self) {
        if let Err(error) = self.policies.read_anew(self.store.as_ref()).await {
            // It is looked again with the next tick.
            tracing::error!(%error, "policies cannot be read anew");
        }
        self.announce();
    }

    /// Looks whether another server changed something.
    pub(super) async fn follow_policies(&self) {
        match self.store.policy_version().await {
            Ok(version) if version != self.policies.version() => self.policies_changed().await,
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "it cannot be told whether policies changed"),
        }
    }

    /// What is known of an agent, for groups.
    pub fn facts(&self, agent: &AgentRecord) -> Facts {
        let domain = agent.product_uuid;
        let known = domain.and_then(|uuid| self.inventory.domain(uuid));
        let place = domain.and_then(|uuid| self.inventory.place_of(uuid));
        let named = |name: &str| (!name.is_empty()).then(|| name.to_owned());
        Facts {
            id: agent.id,
            tenant: agent.tenant.clone(),
            name: agent.name.clone(),
            version: agent.version.clone(),
            tags: known
                .iter()
                .flat_map(|domain| domain.tags.iter())
                .map(|tag| tag.as_str().to_owned())
                .collect(),
            domain: known.map(|domain| domain.name),
            host: place.as_ref().and_then(|place| named(&place.hypervisor)),
            cluster: place.as_ref().and_then(|place| named(&place.cluster)),
            datacenter: place.as_ref().and_then(|place| named(&place.datacenter)),
        }
    }

    /// An agent's policy now, with its fingerprint; none where it cannot be made, which the
    /// log says.
    pub fn policy_of(&self, agent: &AgentRecord) -> Option<(Policy, Fingerprint)> {
        let effective = self.book().effective(&self.facts(agent));
        let made = effective
            .document()
            .map_err(|error| error.to_string())
            .and_then(|policy| {
                let fingerprint = policy.fingerprint().map_err(|error| error.to_string())?;
                Ok((policy, fingerprint))
            });
        made.inspect_err(|error| {
            tracing::error!(agent = %agent.id, %error, "an agent's policy cannot be sent; it keeps the one that it has");
        })
        .ok()
    }
}

/// What one session's agent has of its policy.
#[derive(Debug, Default)]
pub struct Told {
    /// Whether it asked: one of an earlier version does not.
    asked: bool,
    held: Option<Fingerprint>,
}

impl Told {
    /// The answer to an agent that asks.
    pub fn answer(
        &mut self,
        fleet: &Fleet,
        agent: &AgentRecord,
        held: Option<Fingerprint>,
    ) -> FromServer {
        self.asked = true;
        self.held = held;
        self.changed(fleet, agent)
            .unwrap_or(FromServer::NotModified)
    }

    /// Its policy, if it is not the one that it has.
    pub fn changed(&mut self, fleet: &Fleet, agent: &AgentRecord) -> Option<FromServer> {
        if !self.asked {
            return None;
        }
        let (policy, fingerprint) = fleet.policy_of(agent)?;
        (self.held.replace(fingerprint) != Some(fingerprint)).then_some(FromServer::Policy(policy))
    }
}
