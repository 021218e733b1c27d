//! Table `detections`.

use palisade_protocol::bounded::PathBytes;
use palisade_protocol::control::Detection;
use palisade_protocol::ids::AgentId;
use palisade_protocol::scan::ScanClass;

use super::row;
use super::{Backend, Row};
use crate::store::{Alone, DetectionPage, DetectionRecord, Result};

pub async fn add(
    store: &Backend,
    agent: AgentId,
    detections: &[Detection],
    now_ms: u64,
) -> Result<u64> {
    let at = |error| store.failed("keep detections", error);
    let mut transaction = store.begin().await.map_err(at)?;
    // The same ones twice at once, in another order, would wait for each other for ever.
    store
        .alone(&mut transaction, Alone::Agent(agent))
        .await
        .map_err(at)?;
    let mut new = 0;
    for detection in detections {
        // The tenant is the agent's own, whatever the message says.
        let done = sqlx::query(
            "INSERT INTO detections (agent_id, id, tenant, time_ms, received_ms, path, verdict, \
             name, engine, action, class, blake3, sha256, size, pid, member, container) \
             VALUES ($1, $2, (SELECT tenant FROM agents WHERE agents.id = $1), $3, $4, $5, $6, \
             $7, $8, $9, $10, $11, $12, $13, $14, $15, $16) \
             ON CONFLICT (agent_id, id) DO NOTHING",
        )
        .bind(agent.to_string())
        .bind(detection.id.to_string())
        .bind(row::number(detection.time_ms))
        .bind(row::number(now_ms))
        .bind(detection.path.as_bytes())
        .bind(detection.verdict.as_str())
        .bind(row::plain(&detection.name))
        .bind(row::plain(&detection.engine))
        .bind(detection.action.as_str())
        .bind(class_name(detection.class))
        .bind(detection.blake3.to_vec())
        .bind(detection.sha256.map(|hash| hash.to_vec()))
        .bind(row::number(detection.size))
        .bind(row::number(detection.pid))
        .bind(detection.member.as_deref().map(row::plain))
        .bind(detection.container.as_deref().map(row::plain))
        .execute(&mut *transaction)
        .await
        .map_err(at)?;
        new += done.rows_affected();
    }
    transaction.commit().await.map_err(at)?;
    Ok(new)
}

pub async fn page(store: &Backend, before: Option<u64>, limit: u32) -> Result<DetectionPage> {
    // One more than asked for: its absence is the end.
    let rows = sqlx::query(
        "SELECT detections.*, agents.name AS agent_name FROM detections \
         JOIN agents ON agents.id = detections.agent_id \
         WHERE seq < $1 ORDER BY seq DESC LIMIT $2",
    )
    .bind(before.map_or(i64::MAX, row::number))
    .bind(i64::from(limit) + 1)
    .fetch_all(&store.readers)
    .await
    .map_err(|error| store.failed("list detections", error))?;
    let mut items = rows.iter().map(detection_of).collect::<Result<Vec<_>>>()?;
    let more = items.len() > limit as usize;
    items.truncate(limit as usize);
    let next = if more {
        items.last().map(|last| last.seq)
    } else {
        None
    };
    Ok(DetectionPage { items, next })
}

pub async fn count(store: &Backend) -> Result<u64> {
    let count: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM detections")
        .fetch_one(&store.readers)
        .await
        .map_err(|error| store.failed("count detections", error))?;
    Ok(count.unsigned_abs())
}

fn class_name(class: ScanClass) -> &'static str {
    match class {
        ScanClass::OnAccess => "on_access",
        ScanClass::OnDemand => "on_demand",
    }
}

fn detection_of(found: &Row) -> Result<DetectionRecord> {
    use std::os::unix::ffi::OsStrExt as _;
    let path = row::bytes(found, "path")?;
    Ok(DetectionRecord {
        seq: row::unsigned(found, "seq")?,
        id: row::parsed(found, "id")?,
        agent: row::parsed(found, "agent_id")?,
        agent_name: row::text(found, "agent_name")?,
        tenant: row::parsed(found, "tenant")?,
        time_ms: row::unsigned(found, "time_ms")?,
        received_ms: row::unsigned(found, "received_ms")?,
        path: PathBytes::from_path(std::path::Path::new(std::ffi::OsStr::from_bytes(&path))),
        verdict: row::text(found, "verdict")?,
        name: row::text(found, "name")?,
        engine: row::text(found, "engine")?,
        member: row::text_or_none(found, "member")?,
        action: row::text(found, "action")?,
        class: row::text(found, "class")?,
        blake3: row::hash(found, "blake3")?,
        sha256: row::hash_or_none(found, "sha256")?,
        size: row::unsigned(found, "size")?,
        pid: row::unsigned32(found, "pid")?,
        container: row::text_or_none(found, "container")?,
    })
}
