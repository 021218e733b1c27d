//! Table `maintenance_grants`: what maintenance tokens allow, never their text.

use palisade_protocol::maintenance::Allowed;
use uuid::Uuid;

use super::opened::{Opened, SealingError};
use super::{Backend, Connection, Row, row};
use crate::store::{MaintenanceRecord, Result, StoreError};

pub async fn add(
    store: &Backend,
    connection: &mut Connection,
    grant: &MaintenanceRecord,
) -> std::result::Result<(), SealingError> {
    let seat = store.seals.seat("maintenance_grants", grant.id.to_string());
    let reason = seat.seal("reason", grant.reason.as_bytes());
    let reason =
        reason.map_err(|error| SealingError::Seal("maintenance_grants", "reason", error))?;
    sqlx::query(
        "INSERT INTO maintenance_grants (id, agent_id, allowed, from_ms, until_ms, reason) \
         VALUES ($1, $2, $3, $4, $5, $6)",
    )
    .bind(grant.id.to_string())
    .bind(grant.agent.to_string())
    .bind(grant.allowed.as_str())
    .bind(row::number(grant.from_ms))
    .bind(row::number(grant.until_ms))
    .bind(reason)
    .execute(connection)
    .await?;
    Ok(())
}

pub async fn end(store: &Backend, id: Uuid, now_ms: u64) -> Result<()> {
    sqlx::query("UPDATE maintenance_grants SET until_ms = $2 WHERE id = $1 AND until_ms > $2")
        .bind(id.to_string())
        .bind(row::number(now_ms))
        .execute(&store.writer)
        .await
        .map(drop)
        .map_err(|error| store.failed("end a maintenance grant", error))
}

pub async fn in_force(store: &Backend, now_ms: u64) -> Result<Vec<MaintenanceRecord>> {
    let rows =
        sqlx::query("SELECT * FROM maintenance_grants WHERE until_ms > $1 ORDER BY until_ms")
            .bind(row::number(now_ms))
            .fetch_all(&store.readers)
            .await
            .map_err(|error| store.failed("list maintenance grants", error))?;
    rows.iter().map(|row| of(store, row)).collect()
}

fn of(store: &Backend, found: &Row) -> Result<MaintenanceRecord> {
    let allowed = match row::text(found, "allowed")?.as_str() {
        "stop" => Allowed::Stop,
        "remove" => Allowed::Remove,
        other => {
            return Err(StoreError::BadRow {
                column: "allowed",
                detail: format!("{other:?} is neither stop nor remove"),
            });
        }
    };
    let id = row::text(found, "id")?;
    let sealed = Opened::new(store, found, "maintenance_grants", &id);
    Ok(MaintenanceRecord {
        id: row::parsed(found, "id")?,
        agent: row::parsed(found, "agent_id")?,
        allowed,
        from_ms: row::unsigned(found, "from_ms")?,
        until_ms: row::unsigned(found, "until_ms")?,
        reason: sealed.text("reason")?,
    })
}
