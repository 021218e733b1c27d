//! Table `detections`.

use palisade_protocol::bounded::PathBytes;
use palisade_protocol::control::Detection;
use palisade_protocol::ids::AgentId;
use palisade_protocol::scan::ScanClass;

use sqlx::AssertSqlSafe;

use super::opened::{Opened, unsealed};
use super::{Backend, Row, row};
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
        let seat = store
            .seals
            .seat("detections", format!("{agent}/{}", detection.id));
        let seal = |column, value: &[u8]| {
            let sealed = seat.seal(column, value);
            sealed.map_err(|error| unsealed("detections", column, error))
        };
        let some =
            |column, value: Option<&[u8]>| value.map(|value| seal(column, value)).transpose();
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
        .bind(seal("path", detection.path.as_bytes())?)
        .bind(detection.verdict.as_str())
        .bind(seal("name", detection.name.as_bytes())?)
        .bind(seal("engine", detection.engine.as_bytes())?)
        .bind(detection.action.as_str())
        .bind(class_name(detection.class))
        .bind(seal("blake3", &detection.blake3)?)
        .bind(some(
            "sha256",
            detection.sha256.as_ref().map(|hash| &hash[..]),
        )?)
        .bind(row::number(detection.size))
        .bind(row::number(detection.pid))
        .bind(some(
            "member",
            detection.member.as_deref().map(str::as_bytes),
        )?)
        .bind(some(
            "container",
            detection.container.as_deref().map(str::as_bytes),
        )?)
        .execute(&mut *transaction)
        .await
        .map_err(at)?;
        new += done.rows_affected();
    }
    transaction.commit().await.map_err(at)?;
    Ok(new)
}

/// Of these tenants alone, unless none are named.
pub async fn page(
    store: &Backend,
    tenants: Option<&[String]>,
    before: Option<u64>,
    limit: u32,
) -> Result<DetectionPage> {
    let only = tenants.map_or_else(String::new, |tenants| {
        let places: Vec<String> = (0..tenants.len()).map(|n| format!("${}", n + 3)).collect();
        format!("AND detections.tenant IN ({})", places.join(", "))
    });
    let sql = format!(
        "SELECT detections.*, agents.name AS agent_name FROM detections \
         JOIN agents ON agents.id = detections.agent_id \
         WHERE seq < $1 {only} ORDER BY seq DESC LIMIT $2"
    );
    // One more than asked for: its absence is the end.
    let mut query = sqlx::query(AssertSqlSafe(sql))
        .bind(before.map_or(i64::MAX, row::number))
        .bind(i64::from(limit) + 1);
    for tenant in tenants.unwrap_or_default() {
        query = query.bind(tenant.clone());
    }
    let rows = query
        .fetch_all(&store.readers)
        .await
        .map_err(|error| store.failed("list detections", error))?;
    let items: Result<Vec<_>> = rows.iter().map(|row| detection_of(store, row)).collect();
    let mut items = items?;
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

fn detection_of(store: &Backend, found: &Row) -> Result<DetectionRecord> {
    use std::os::unix::ffi::OsStrExt as _;
    let (agent, id) = (row::text(found, "agent_id")?, row::text(found, "id")?);
    let of_agent = Opened::new(store, found, "agents", &agent);
    let sealed = Opened::new(store, found, "detections", &format!("{agent}/{id}"));
    let path = sealed.bytes("path")?;
    Ok(DetectionRecord {
        seq: row::unsigned(found, "seq")?,
        id: row::parsed(found, "id")?,
        agent: row::parsed(found, "agent_id")?,
        agent_name: of_agent.aliased_text("name", "agent_name")?,
        tenant: row::parsed(found, "tenant")?,
        time_ms: row::unsigned(found, "time_ms")?,
        received_ms: row::unsigned(found, "received_ms")?,
        path: PathBytes::from_path(std::path::Path::new(std::ffi::OsStr::from_bytes(&path))),
        verdict: row::text(found, "verdict")?,
        name: sealed.text("name")?,
        engine: sealed.text("engine")?,
        member: sealed.text_or_none("member")?,
        action: row::text(found, "action")?,
        class: row::text(found, "class")?,
        blake3: sealed.hash("blake3")?,
        sha256: sealed.hash_or_none("sha256")?,
        size: row::unsigned(found, "size")?,
        pid: row::unsigned32(found, "pid")?,
        container: sealed.text_or_none("container")?,
    })
}
