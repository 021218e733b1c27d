//! Table `quarantine_keys`: one key for each agent, none ever overwritten by another's.

use palisade_protocol::control::QuarantineKey;
use palisade_protocol::ids::AgentId;

use super::opened::{Opened, unsealed};
use super::{Backend, row};
use crate::store::Result;

pub async fn keep(store: &Backend, agent: AgentId, key: &QuarantineKey, now_ms: u64) -> Result<()> {
    let seat = store.seals.seat("quarantine_keys", agent.to_string());
    let sealed = seat.seal("key", &key.0);
    let sealed = sealed.map_err(|error| unsealed("quarantine_keys", "key", error))?;
    sqlx::query(
        "INSERT INTO quarantine_keys (agent_id, key, kept_ms) VALUES ($1, $2, $3) \
         ON CONFLICT (agent_id) DO UPDATE SET key = excluded.key, kept_ms = excluded.kept_ms",
    )
    .bind(agent.to_string())
    .bind(sealed)
    .bind(row::number(now_ms))
    .execute(&store.writer)
    .await
    .map(drop)
    .map_err(|error| store.failed("keep a quarantine key", error))
}

/// The agent's own, or else the newest of an agent of the same tenant on the same
/// machine.
pub async fn find(store: &Backend, agent: AgentId) -> Result<Option<QuarantineKey>> {
    let at = |error| store.failed("find a quarantine key", error);
    let found = sqlx::query(
        "SELECT kept.agent_id AS agent_id, kept.key AS key FROM quarantine_keys AS kept \
         JOIN agents AS owner ON owner.id = kept.agent_id \
         JOIN agents AS asking ON asking.id = $1 \
         WHERE owner.id = asking.id \
         OR (owner.tenant = asking.tenant AND owner.product_index = asking.product_index) \
         ORDER BY owner.id = asking.id DESC, kept.kept_ms DESC LIMIT 1",
    )
    .bind(agent.to_string())
    .fetch_optional(&store.readers)
    .await
    .map_err(at)?;
    let Some(found) = found else { return Ok(None) };
    let owner = row::text(&found, "agent_id")?;
    let bytes = Opened::new(store, &found, "quarantine_keys", &owner).bytes("key")?;
    Ok(bytes.try_into().ok().map(QuarantineKey))
}
