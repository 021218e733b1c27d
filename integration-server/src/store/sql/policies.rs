//! Tables `policies`, `policy_groups` and `policy_reports`. The counter `policies` grows
//! with each change of the first two.

use std::collections::BTreeMap;

use palisade_protocol::ids::AgentId;
use palisade_protocol::policy::PolicyReport;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::change::done_if;
use super::opened::{Opened, SealingError};
use super::{Backend, Connection, Row, row};
use crate::policy::{MAX_GROUPS, Settings, Subject};
use crate::store::{Changed, GroupRecord, PolicyRecord, PolicyReportRecord, Result};

type Made = std::result::Result<Changed, SealingError>;

const POLICIES: &str = "policies";
const GROUPS: &str = "policy_groups";
const REPORTS: &str = "policy_reports";

/// What is sealed of a revision.
#[derive(Serialize, Deserialize)]
struct Body {
    settings: Settings,
    by: String,
    note: String,
}

/// The latest revision of each policy, but for those of groups that are gone.
pub async fn all(store: &Backend) -> Result<Vec<PolicyRecord>> {
    let rows = sqlx::query(
        "SELECT one.* FROM policies AS one JOIN \
         (SELECT subject, MAX(revision) AS latest FROM policies GROUP BY subject) AS newest \
         ON newest.subject = one.subject AND newest.latest = one.revision \
         WHERE one.subject NOT LIKE 'group:%' \
         OR EXISTS (SELECT 1 FROM policy_groups WHERE 'group:' || policy_groups.id = one.subject)",
    )
    .fetch_all(&store.readers)
    .await
    .map_err(|error| store.failed("list policies", error))?;
    rows.iter().map(|row| policy(store, row)).collect()
}

pub async fn revisions(
    store: &Backend,
    subject: &Subject,
    before: Option<u64>,
    limit: u32,
) -> Result<Vec<PolicyRecord>> {
    let rows = sqlx::query(
        "SELECT * FROM policies WHERE subject = $1 AND revision < $2 \
         ORDER BY revision DESC LIMIT $3",
    )
    .bind(subject.to_string())
    .bind(before.map_or(i64::MAX, row::number))
    .bind(i64::from(limit))
    .fetch_all(&store.readers)
    .await
    .map_err(|error| store.failed("list a policy's revisions", error))?;
    rows.iter().map(|row| policy(store, row)).collect()
}

pub async fn revision(
    store: &Backend,
    subject: &Subject,
    revision: u64,
) -> Result<Option<PolicyRecord>> {
    let found = sqlx::query("SELECT * FROM policies WHERE subject = $1 AND revision = $2")
        .bind(subject.to_string())
        .bind(row::number(revision))
        .fetch_optional(&store.readers)
        .await
        .map_err(|error| store.failed("find a policy's revision", error))?;
    found.map(|found| policy(store, &found)).transpose()
}

/// Adds a revision, if it is the one that follows the latest.
pub async fn put(store: &Backend, db: &mut Connection, new: &PolicyRecord) -> Made {
    let latest: Option<i64> =
        sqlx::query_scalar("SELECT MAX(revision) FROM policies WHERE subject = $1")
            .bind(new.subject.to_string())
            .fetch_one(&mut *db)
            .await?;
    if latest.unwrap_or_default().unsigned_abs().checked_add(1) != Some(new.revision) {
        return Ok(Changed::Nothing);
    }
    let body = Body {
        settings: new.settings.clone(),
        by: new.by.clone(),
        note: new.note.clone(),
    };
    let body = serde_json::to_vec(&body).map_err(|error| sqlx::Error::Encode(error.into()))?;
    let id = Uuid::new_v4();
    let done = sqlx::query(
        "INSERT INTO policies (id, subject, revision, made_ms, body) \
         VALUES ($1, $2, $3, $4, $5) ON CONFLICT (subject, revision) DO NOTHING",
    )
    .bind(id.to_string())
    .bind(new.subject.to_string())
    .bind(row::number(new.revision))
    .bind(row::number(new.made_ms))
    .bind(sealed(store, POLICIES, id, "body", &body)?)
    .execute(&mut *db)
    .await?;
    counted(db, done.rows_affected()).await
}

pub async fn groups(store: &Backend) -> Result<Vec<GroupRecord>> {
    let rows = sqlx::query("SELECT * FROM policy_groups")
        .fetch_all(&store.readers)
        .await
        .map_err(|error| store.failed("list groups", error))?;
    rows.iter().map(|row| group(store, row)).collect()
}

/// The caller is alone with names.
pub async fn add_group(store: &Backend, db: &mut Connection, new: &GroupRecord) -> Made {
    let count: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM policy_groups WHERE tenant = $1")
        .bind(new.tenant.as_str())
        .fetch_one(&mut *db)
        .await?;
    if count.unsigned_abs() >= MAX_GROUPS as u64 {
        return Ok(Changed::Full);
    }
    let done = sqlx::query(
        "INSERT INTO policy_groups \
         (id, tenant, name, name_index, query, priority, revision, made_ms) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8) ON CONFLICT (tenant, name_index) DO NOTHING",
    )
    .bind(new.id.to_string())
    .bind(new.tenant.as_str())
    .bind(sealed(store, GROUPS, new.id, "name", new.name.as_bytes())?)
    .bind(store.seals.index(GROUPS, "name", new.name.as_bytes()))
    .bind(sealed(
        store,
        GROUPS,
        new.id,
        "query",
        new.query.as_bytes(),
    )?)
    .bind(i64::from(new.priority))
    .bind(row::number(new.revision))
    .bind(row::number(new.made_ms))
    .execute(&mut *db)
    .await?;
    match done.rows_affected() {
        1 => counted(db, 1).await,
        _ => Ok(Changed::Taken),
    }
}

pub async fn set_group(
    store: &Backend,
    db: &mut Connection,
    (id, revision): (Uuid, u64),
    query: &str,
    priority: u32,
) -> Made {
    let done = sqlx::query(
        "UPDATE policy_groups SET query = $3, priority = $4, revision = revision + 1 \
         WHERE id = $1 AND revision = $2",
    )
    .bind(id.to_string())
    .bind(row::number(revision))
    .bind(sealed(store, GROUPS, id, "query", query.as_bytes())?)
    .bind(i64::from(priority))
    .execute(&mut *db)
    .await?;
    counted(db, done.rows_affected()).await
}

/// Its policy's revisions stay.
pub async fn remove_group(db: &mut Connection, id: Uuid, revision: u64) -> Made {
    let done = sqlx::query("DELETE FROM policy_groups WHERE id = $1 AND revision = $2")
        .bind(id.to_string())
        .bind(row::number(revision))
        .execute(&mut *db)
        .await?;
    counted(db, done.rows_affected()).await
}

async fn counted(db: &mut Connection, rows: u64) -> Made {
    if rows == 1 {
        sqlx::query("UPDATE counters SET value = value + 1 WHERE name = 'policies'")
            .execute(db)
            .await?;
    }
    Ok(done_if(rows))
}

pub async fn version(store: &Backend) -> Result<u64> {
    let found = sqlx::query("SELECT value FROM counters WHERE name = 'policies'")
        .fetch_one(&store.readers)
        .await
        .map_err(|error| store.failed("look whether policies changed", error))?;
    row::unsigned(&found, "value")
}

pub async fn keep_report(
    store: &Backend,
    agent: AgentId,
    report: &PolicyReport,
    now_ms: u64,
) -> Result<()> {
    let body = row::json("body", report)?;
    let body = sealed(store, REPORTS, agent.0, "body", body.as_bytes());
    let at = |error| store.failed("keep what an agent made of its policy", error);
    let body = body.map_err(|error| error.named(at))?;
    sqlx::query(
        "INSERT INTO policy_reports (agent_id, body, refused, reported_ms) \
         VALUES ($1, $2, $3, $4) \
         ON CONFLICT (agent_id) DO UPDATE SET body = excluded.body, \
         refused = excluded.refused, reported_ms = excluded.reported_ms",
    )
    .bind(agent.to_string())
    .bind(body)
    .bind(i64::from(report.refused.is_some()))
    .bind(row::number(now_ms))
    .execute(&store.writer)
    .await
    .map(drop)
    .map_err(at)
}

pub async fn report(store: &Backend, agent: AgentId) -> Result<Option<PolicyReportRecord>> {
    let found = sqlx::query("SELECT * FROM policy_reports WHERE agent_id = $1")
        .bind(agent.to_string())
        .fetch_optional(&store.readers)
        .await
        .map_err(|error| store.failed("find what an agent made of its policy", error))?;
    found.map(|found| reported(store, &found)).transpose()
}

/// Those that refused one: few, of many.
pub async fn refused(store: &Backend) -> Result<BTreeMap<AgentId, PolicyReportRecord>> {
    let rows = sqlx::query("SELECT * FROM policy_reports WHERE refused > 0")
        .fetch_all(&store.readers)
        .await
        .map_err(|error| store.failed("list refused policies", error))?;
    rows.iter()
        .map(|found| Ok((row::parsed(found, "agent_id")?, reported(store, found)?)))
        .collect()
}

fn reported(store: &Backend, found: &Row) -> Result<PolicyReportRecord> {
    let id = row::text(found, "agent_id")?;
    let report = Opened::new(store, found, REPORTS, &id).json_or_none("body")?;
    Ok(PolicyReportRecord {
        report: report.unwrap_or_default(),
        reported_ms: row::unsigned(found, "reported_ms")?,
    })
}

fn policy(store: &Backend, found: &Row) -> Result<PolicyRecord> {
    let id = row::text(found, "id")?;
    let body = Opened::new(store, found, POLICIES, &id).bytes("body")?;
    let body: Body = serde_json::from_slice(&body).map_err(|error| row::bad("body", error))?;
    Ok(PolicyRecord {
        subject: row::parsed(found, "subject")?,
        revision: row::unsigned(found, "revision")?,
        made_ms: row::unsigned(found, "made_ms")?,
        settings: body.settings,
        by: body.by,
        note: body.note,
    })
}

fn group(store: &Backend, found: &Row) -> Result<GroupRecord> {
    let id = row::text(found, "id")?;
    let opened = Opened::new(store, found, GROUPS, &id);
    Ok(GroupRecord {
        id: row::parsed(found, "id")?,
        tenant: row::parsed(found, "tenant")?,
        name: opened.text("name")?,
        query: opened.text("query")?,
        priority: row::unsigned32(found, "priority")?,
        revision: row::unsigned(found, "revision")?,
        made_ms: row::unsigned(found, "made_ms")?,
    })
}

fn sealed(
    store: &Backend,
    table: &'static str,
    id: Uuid,
    column: &'static str,
    value: &[u8],
) -> std::result::Result<Vec<u8>, SealingError> {
    let seat = store.seals.seat(table, id.to_string());
    let sealed = seat.seal(column, value);
    sealed.map_err(|error| SealingError::Seal(table, column, error))
}
