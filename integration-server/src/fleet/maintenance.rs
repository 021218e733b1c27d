//! Who may stop or remove an agent: signed tokens, and what of them is kept.
//!
//! The token's text goes to whoever asked and nowhere else; the store and the log have
//! the grant. Does not own the token's form: that is `palisade_protocol::maintenance`.

use std::ops::RangeInclusive;

use palisade_protocol::bounded::Text;
use palisade_protocol::ids::AgentId;
use palisade_protocol::maintenance::{self, Allowed, BadMaintenance, Grant, MAX_ALLOWED_MS};
use palisade_protocol::spiffe::SpiffeId;
use uuid::Uuid;

use super::Fleet;
use crate::audit::Entry;
use crate::store::{Change, MaintenanceRecord, StoreError};
use crate::time::rfc3339;

/// For how long one token may allow it, in seconds.
pub const FOR_S: RangeInclusive<u64> = 1..=MAX_ALLOWED_MS / 1000;
/// Longest reason, in bytes.
pub const MAX_REASON_BYTES: usize = 200;

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// What is to be allowed.
    pub allowed: Allowed,
    /// For how long, in seconds.
    pub for_s: u64,
    /// Why.
    pub reason: String,
}

/// Why there is no token.
#[derive(Debug, thiserror::Error)]
pub enum NotGranted {
    /// What is asked for is out of bounds.
    #[error("{0}")]
    Bounds(String),
    /// There is no such agent.
    #[error("there is no agent {0} that is not revoked")]
    NoAgent(AgentId),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The server's key does not sign.
    #[error(transparent)]
    Sign(#[from] BadMaintenance),
}

impl Wanted {
    /// The reason, if all of it is in bounds.
    fn checked(&self) -> Result<Text<MAX_REASON_BYTES>, NotGranted> {
        let bad = |why: String| Err(NotGranted::Bounds(why));
        if !FOR_S.contains(&self.for_s) {
            let (least, most) = (FOR_S.start(), FOR_S.end());
            return bad(format!(
                "for_s must be {least} to {most} seconds, which is 7 days at most; it is {}",
                self.for_s
            ));
        }
        let reason = self.reason.trim();
        if reason.is_empty() {
            return bad(format!(
                "reason must say why, in 1 to {MAX_REASON_BYTES} bytes"
            ));
        }
        if reason.chars().any(char::is_control) {
            return bad("reason must be one line, without control characters".to_owned());
        }
        Text::new(reason).or_else(|_| {
            bad(format!(
                "reason must be at most {MAX_REASON_BYTES} bytes; it is {}",
                reason.len()
            ))
        })
    }
}

impl Fleet {
    /// A guest gave leave back before its time.
    pub(super) async fn given_back(
        &self,
        grant: &MaintenanceRecord,
        now_ms: u64,
    ) -> Result<(), StoreError> {
        tracing::warn!(agent = %grant.agent, grant = %grant.id, "an agent's leave was given back");
        self.store.end_maintenance(grant.id, now_ms).await?;
        self.alarms.on_record(grant);
        Ok(())
    }

    /// Allows that an agent is stopped or removed; gives what is on record, and the
    /// token's text.
    ///
    /// # Errors
    /// [`NotGranted`]; nothing is on record then.
    pub async fn allow(
        &self,
        id: AgentId,
        wanted: &Wanted,
        entry: Entry,
        now_ms: u64,
    ) -> Result<(MaintenanceRecord, String), NotGranted> {
        let reason = wanted.checked()?;
        let agent = self.store.agent(id).await?;
        let Some(agent) = agent.filter(|agent| !agent.revoked) else {
            return Err(NotGranted::NoAgent(id));
        };
        let record = MaintenanceRecord {
            id: Uuid::new_v4(),
            agent: id,
            allowed: wanted.allowed,
            from_ms: now_ms,
            until_ms: now_ms.saturating_add(wanted.for_s.saturating_mul(1000)),
            reason: reason.to_string(),
        };
        let spiffe = SpiffeId::agent(self.authority.deployment(), &agent.tenant, id);
        let grant = Grant {
            id: record.id,
            agent: Text::cut(&spiffe.to_string()),
            allowed: record.allowed,
            from_ms: record.from_ms,
            until_ms: record.until_ms,
            reason,
        };
        let text = maintenance::sign(&self.own.identity(), &grant)?;
        let entry = entry.after(format!(
            "{} until {}: {}",
            record.allowed.as_str(),
            rfc3339(record.until_ms),
            record.reason
        ));
        let change = Change::AddMaintenance(&record);
        self.store.change(change, Some(&entry), now_ms).await?;
        tracing::warn!(
            agent = %id,
            name = %agent.name,
            grant = %record.id,
            allowed = record.allowed.as_str(),
            until = %rfc3339(record.until_ms),
            reason = %record.reason,
            "an agent may be stopped: a maintenance token was made"
        );
        self.alarms.grant(record.clone(), now_ms);
        Ok((record, text))
    }
}
