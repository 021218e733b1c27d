//! Tables `svms` and `agents`, and joining, which writes them with `join_tokens`.

use palisade_protocol::control::{AgentReport, Component, Hello, SvmReport};
use palisade_protocol::ids::{AgentId, SvmId};
use sqlx::Transaction;
use uuid::Uuid;

use super::row;
use super::{Backend, Db, Row};
use crate::secret::Hash;
use crate::store::{AgentRecord, Alone, Joined, NewComponent, Result, Spent, SvmRecord};

pub async fn joined(store: &Backend, token: Uuid, key_sha256: &Hash) -> Result<Option<Joined>> {
    let found = sqlx::query(
        "SELECT id, name, revoked_ms FROM agents WHERE token_id = $1 AND key_sha256 = $2 \
         UNION ALL \
         SELECT id, name, revoked_ms FROM svms WHERE token_id = $1 AND key_sha256 = $2",
    )
    .bind(token.to_string())
    .bind(key_sha256.to_vec())
    .fetch_optional(&store.readers)
    .await
    .map_err(|error| store.failed("find who joined", error))?;
    found
        .map(|found| {
            Ok(Joined {
                id: row::parsed(&found, "id")?,
                name: row::text(&found, "name")?,
                revoked: row::unsigned_or_none(&found, "revoked_ms")?.is_some(),
            })
        })
        .transpose()
}

pub async fn join(store: &Backend, component: &NewComponent, now_ms: u64) -> Result<Spent> {
    let at = |error| store.failed("let a component join", error);
    let mut transaction = store.begin().await.map_err(at)?;
    let used = sqlx::query(
        "UPDATE join_tokens SET used = used + 1 \
         WHERE id = $1 AND used < uses AND expires_ms > $2 AND revoked_ms IS NULL",
    )
    .bind(component.token.id.to_string())
    .bind(row::number(now_ms))
    .execute(&mut *transaction)
    .await
    .map_err(at)?;
    if used.rows_affected() != 1 {
        transaction.rollback().await.map_err(at)?;
        return Ok(Spent::NotUsable);
    }
    store
        .alone(&mut transaction, Alone::Names)
        .await
        .map_err(at)?;
    let name = free_name(&mut transaction, component).await.map_err(at)?;
    match component.token.component {
        Component::Agent => insert_agent(&mut transaction, component, &name, now_ms).await,
        Component::Svm => insert_svm(&mut transaction, component, &name, now_ms).await,
    }
    .map_err(at)?;
    transaction.commit().await.map_err(at)?;
    Ok(Spent::Joined(name))
}

/// The wanted name; where another has it, with the id's beginning, or the whole id.
async fn free_name(
    transaction: &mut Transaction<'_, Db>,
    component: &NewComponent,
) -> std::result::Result<String, sqlx::Error> {
    let statement = match component.token.component {
        Component::Agent => "SELECT COUNT(*) FROM agents WHERE name = $1",
        Component::Svm => "SELECT COUNT(*) FROM svms WHERE name = $1",
    };
    let wanted = row::plain(&component.name);
    let id = component.id.simple().to_string();
    for name in [wanted.to_string(), format!("{wanted}-{}", &id[..8])] {
        let taken: i64 = sqlx::query_scalar(statement)
            .bind(&name)
            .fetch_one(&mut **transaction)
            .await?;
        if taken == 0 {
            return Ok(name);
        }
    }
    Ok(format!("{wanted}-{id}"))
}

async fn insert_agent(
    transaction: &mut Transaction<'_, Db>,
    component: &NewComponent,
    name: &str,
    now_ms: u64,
) -> std::result::Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO agents \
         (id, tenant, name, token_id, key_sha256, enrolled_ms, hostname, product_uuid, boot_id) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
    )
    .bind(component.id.to_string())
    .bind(component.token.tenant.as_str())
    .bind(name)
    .bind(component.token.id.to_string())
    .bind(component.key_sha256.to_vec())
    .bind(row::number(now_ms))
    .bind(row::plain(&component.host.hostname))
    .bind(component.host.product_uuid.map(|uuid| uuid.to_string()))
    .bind(component.host.boot_id.map(|uuid| uuid.to_string()))
    .execute(&mut **transaction)
    .await
    .map(drop)
}

async fn insert_svm(
    transaction: &mut Transaction<'_, Db>,
    component: &NewComponent,
    name: &str,
    now_ms: u64,
) -> std::result::Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO svms \
         (id, name, token_id, key_sha256, enrolled_ms, hostname, product_uuid) \
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
    )
    .bind(component.id.to_string())
    .bind(name)
    .bind(component.token.id.to_string())
    .bind(component.key_sha256.to_vec())
    .bind(row::number(now_ms))
    .bind(row::plain(&component.host.hostname))
    .bind(component.host.product_uuid.map(|uuid| uuid.to_string()))
    .execute(&mut **transaction)
    .await
    .map(drop)
}

pub async fn svms(store: &Backend) -> Result<Vec<SvmRecord>> {
    let rows = sqlx::query("SELECT * FROM svms WHERE revoked_ms IS NULL ORDER BY name, id")
        .fetch_all(&store.readers)
        .await
        .map_err(|error| store.failed("list Protection Servers", error))?;
    rows.iter().map(svm_of).collect()
}

pub async fn svm(store: &Backend, id: SvmId) -> Result<Option<SvmRecord>> {
    let found = sqlx::query("SELECT * FROM svms WHERE id = $1")
        .bind(id.to_string())
        .fetch_optional(&store.readers)
        .await
        .map_err(|error| store.failed("find a Protection Server", error))?;
    found.as_ref().map(svm_of).transpose()
}

pub async fn greet_svm(store: &Backend, id: SvmId, hello: &Hello, now_ms: u64) -> Result<()> {
    sqlx::query(
        "UPDATE svms SET last_seen_ms = $2, version = $3, hostname = $4, product_uuid = $5 \
         WHERE id = $1",
    )
    .bind(id.to_string())
    .bind(row::number(now_ms))
    .bind(row::plain(&hello.version))
    .bind(row::plain(&hello.host.hostname))
    .bind(hello.host.product_uuid.map(|uuid| uuid.to_string()))
    .execute(&store.writer)
    .await
    .map(drop)
    .map_err(|error| store.failed("greet a Protection Server", error))
}

pub async fn report_svm(store: &Backend, id: SvmId, report: &SvmReport, now_ms: u64) -> Result<()> {
    const SQL: &str = "UPDATE svms SET last_seen_ms = $2, report = $3 WHERE id = $1";
    keep_report(
        store,
        SQL,
        id.to_string(),
        row::json("report", report)?,
        now_ms,
    )
    .await
    .map_err(|error| store.failed("keep a Protection Server's report", error))
}

pub async fn revoke_svm(store: &Backend, id: SvmId, now_ms: u64) -> Result<bool> {
    const SQL: &str = "UPDATE svms SET revoked_ms = $2 WHERE id = $1 AND revoked_ms IS NULL";
    revoke(store, SQL, id.to_string(), now_ms)
        .await
        .map_err(|error| store.failed("revoke a Protection Server", error))
}

pub async fn agents(store: &Backend) -> Result<Vec<AgentRecord>> {
    let rows = sqlx::query("SELECT * FROM agents WHERE revoked_ms IS NULL ORDER BY name, id")
        .fetch_all(&store.readers)
        .await
        .map_err(|error| store.failed("list agents", error))?;
    rows.iter().map(agent_of).collect()
}

pub async fn agent(store: &Backend, id: AgentId) -> Result<Option<AgentRecord>> {
    let found = sqlx::query("SELECT * FROM agents WHERE id = $1")
        .bind(id.to_string())
        .fetch_optional(&store.readers)
        .await
        .map_err(|error| store.failed("find an agent", error))?;
    found.as_ref().map(agent_of).transpose()
}

pub async fn greet_agent(store: &Backend, id: AgentId, hello: &Hello, now_ms: u64) -> Result<()> {
    sqlx::query(
        "UPDATE agents SET last_seen_ms = $2, version = $3, hostname = $4, product_uuid = $5, \
         boot_id = $6 WHERE id = $1",
    )
    .bind(id.to_string())
    .bind(row::number(now_ms))
    .bind(row::plain(&hello.version))
    .bind(row::plain(&hello.host.hostname))
    .bind(hello.host.product_uuid.map(|uuid| uuid.to_string()))
    .bind(hello.host.boot_id.map(|uuid| uuid.to_string()))
    .execute(&store.writer)
    .await
    .map(drop)
    .map_err(|error| store.failed("greet an agent", error))
}

pub async fn report_agent(
    store: &Backend,
    id: AgentId,
    report: &AgentReport,
    now_ms: u64,
) -> Result<()> {
    const SQL: &str = "UPDATE agents SET last_seen_ms = $2, report = $3 WHERE id = $1";
    keep_report(
        store,
        SQL,
        id.to_string(),
        row::json("report", report)?,
        now_ms,
    )
    .await
    .map_err(|error| store.failed("keep an agent's report", error))
}

pub async fn revoke_agent(store: &Backend, id: AgentId, now_ms: u64) -> Result<bool> {
    const SQL: &str = "UPDATE agents SET revoked_ms = $2 WHERE id = $1 AND revoked_ms IS NULL";
    revoke(store, SQL, id.to_string(), now_ms)
        .await
        .map_err(|error| store.failed("revoke an agent", error))
}

async fn keep_report(
    store: &Backend,
    sql: &'static str,
    id: String,
    report: String,
    now_ms: u64,
) -> sqlx::Result<()> {
    sqlx::query(sql)
        .bind(id)
        .bind(row::number(now_ms))
        .bind(report)
        .execute(&store.writer)
        .await
        .map(drop)
}

/// Whether there was one that was not revoked before.
async fn revoke(store: &Backend, sql: &'static str, id: String, now_ms: u64) -> sqlx::Result<bool> {
    let done = sqlx::query(sql)
        .bind(id)
        .bind(row::number(now_ms))
        .execute(&store.writer)
        .await?;
    Ok(done.rows_affected() == 1)
}

fn svm_of(found: &Row) -> Result<SvmRecord> {
    Ok(SvmRecord {
        id: row::parsed(found, "id")?,
        name: row::text(found, "name")?,
        revoked: row::unsigned_or_none(found, "revoked_ms")?.is_some(),
        last_seen_ms: row::unsigned_or_none(found, "last_seen_ms")?,
        version: row::text(found, "version")?,
        product_uuid: row::parsed_or_none(found, "product_uuid")?,
        report: row::json_or_none(found, "report")?,
    })
}

fn agent_of(found: &Row) -> Result<AgentRecord> {
    Ok(AgentRecord {
        id: row::parsed(found, "id")?,
        tenant: row::parsed(found, "tenant")?,
        name: row::text(found, "name")?,
        revoked: row::unsigned_or_none(found, "revoked_ms")?.is_some(),
        last_seen_ms: row::unsigned_or_none(found, "last_seen_ms")?,
        version: row::text(found, "version")?,
        product_uuid: row::parsed_or_none(found, "product_uuid")?,
        report: row::json_or_none(found, "report")?,
    })
}
