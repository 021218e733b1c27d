//! Tables `svms` and `agents`, and joining, which writes them with `join_tokens`.

use palisade_protocol::control::{AgentReport, Component, Hello, SvmReport};
use palisade_protocol::ids::{AgentId, SvmId};
use sqlx::Transaction;
use uuid::Uuid;

use super::opened::{Opened, unsealed};
use super::{Backend, Db, Row, row};
use crate::secret::Hash;
use crate::store::{AgentRecord, Alone, Joined, NewComponent, Result, Spent, SvmRecord};

pub async fn joined(store: &Backend, token: Uuid, key_sha256: &Hash) -> Result<Option<Joined>> {
    let found = sqlx::query(
        "SELECT 'agents' AS of_table, id, name, revoked_ms FROM agents WHERE token_id = $1 AND key_sha256 = $2 \
         UNION ALL \
         SELECT 'svms' AS of_table, id, name, revoked_ms FROM svms WHERE token_id = $1 AND key_sha256 = $2",
    )
    .bind(token.to_string())
    .bind(key_sha256.to_vec())
    .fetch_optional(&store.readers)
    .await
    .map_err(|error| store.failed("find who joined", error))?;
    let Some(found) = found else { return Ok(None) };
    let id = row::text(&found, "id")?;
    let table = match row::text(&found, "of_table")?.as_str() {
        "agents" => "agents",
        _ => "svms",
    };
    Ok(Some(Joined {
        id: row::parsed(&found, "id")?,
        name: Opened::new(store, &found, table, &id).text("name")?,
        revoked: row::unsigned_or_none(&found, "revoked_ms")?.is_some(),
    }))
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
    let name = free_name(store, &mut transaction, component)
        .await
        .map_err(at)?;
    let (statement, table) = match component.token.component {
        Component::Agent => (INSERT_AGENT, "agents"),
        Component::Svm => (INSERT_SVM, "svms"),
    };
    let (id, host) = (component.id.to_string(), &component.host);
    let seat = store.seals.seat(table, id.as_str());
    let at_seal = |error| unsealed(table, "name", error);
    let product = host.product_uuid.map(|uuid| uuid.to_string());
    let mut insert = sqlx::query(statement)
        .bind(id)
        .bind(seat.seal("name", name.as_bytes()).map_err(at_seal)?)
        .bind(store.seals.index(table, "name", name.as_bytes()))
        .bind(component.token.id.to_string())
        .bind(component.key_sha256.to_vec())
        .bind(row::number(now_ms))
        .bind(
            seat.seal("hostname", host.hostname.as_bytes())
                .map_err(at_seal)?,
        )
        .bind(
            seat.seal_some("product_uuid", product.as_ref())
                .map_err(at_seal)?,
        );
    if component.token.component == Component::Agent {
        let boot = host.boot_id.map(|uuid| uuid.to_string());
        insert = insert
            .bind(product.map(|uuid| product_index(store, &uuid)))
            .bind(component.token.tenant.as_str())
            .bind(seat.seal_some("boot_id", boot.as_ref()).map_err(at_seal)?);
    }
    insert.execute(&mut *transaction).await.map_err(at)?;
    transaction.commit().await.map_err(at)?;
    Ok(Spent::Joined(name))
}

const INSERT_AGENT: &str = "INSERT INTO agents (id, name, name_index, token_id, key_sha256, \
     enrolled_ms, hostname, product_uuid, product_index, tenant, boot_id) \
     VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)";
const INSERT_SVM: &str = "INSERT INTO svms (id, name, name_index, token_id, key_sha256, \
     enrolled_ms, hostname, product_uuid) VALUES ($1, $2, $3, $4, $5, $6, $7, $8)";

fn product_index(store: &Backend, uuid: &str) -> Vec<u8> {
    store.seals.index("agents", "product_uuid", uuid.as_bytes())
}

/// The wanted name; where another has it, with the id's beginning, or the whole id.
async fn free_name(
    store: &Backend,
    transaction: &mut Transaction<'_, Db>,
    component: &NewComponent,
) -> std::result::Result<String, sqlx::Error> {
    let (statement, table) = match component.token.component {
        Component::Agent => (
            "SELECT COUNT(*) FROM agents WHERE name_index = $1",
            "agents",
        ),
        Component::Svm => ("SELECT COUNT(*) FROM svms WHERE name_index = $1", "svms"),
    };
    let wanted = &component.name;
    let id = component.id.simple().to_string();
    for name in [wanted.clone(), format!("{wanted}-{}", &id[..8])] {
        let taken: i64 = sqlx::query_scalar(statement)
            .bind(store.seals.index(table, "name", name.as_bytes()))
            .fetch_one(&mut **transaction)
            .await?;
        if taken == 0 {
            return Ok(name);
        }
    }
    Ok(format!("{wanted}-{id}"))
}

pub async fn svms(store: &Backend) -> Result<Vec<SvmRecord>> {
    let rows = sqlx::query("SELECT * FROM svms WHERE revoked_ms IS NULL")
        .fetch_all(&store.readers)
        .await
        .map_err(|error| store.failed("list Protection Servers", error))?;
    let found: Result<Vec<_>> = rows.iter().map(|row| svm_of(store, row)).collect();
    let mut found = found?;
    found.sort_by(|a, b| (&a.name, a.id.0).cmp(&(&b.name, b.id.0)));
    Ok(found)
}

pub async fn revoked_svms(store: &Backend, limit: usize) -> Result<Vec<SvmRecord>> {
    let rows = sqlx::query(
        "SELECT * FROM svms WHERE revoked_ms IS NOT NULL ORDER BY revoked_ms DESC, id LIMIT $1",
    )
    .bind(i64::try_from(limit).unwrap_or(i64::MAX))
    .fetch_all(&store.readers)
    .await
    .map_err(|error| store.failed("list revoked Protection Servers", error))?;
    rows.iter().map(|row| svm_of(store, row)).collect()
}

pub async fn svm(store: &Backend, id: SvmId) -> Result<Option<SvmRecord>> {
    let found = sqlx::query("SELECT * FROM svms WHERE id = $1")
        .bind(id.to_string())
        .fetch_optional(&store.readers)
        .await
        .map_err(|error| store.failed("find a Protection Server", error))?;
    found.as_ref().map(|row| svm_of(store, row)).transpose()
}

pub async fn greet_svm(store: &Backend, id: SvmId, hello: &Hello, now_ms: u64) -> Result<()> {
    let seat = store.seals.seat("svms", id.to_string());
    let at_seal = |error| unsealed("svms", "hostname", error);
    let product = hello.host.product_uuid.map(|uuid| uuid.to_string());
    sqlx::query(
        "UPDATE svms SET last_seen_ms = $2, version = $3, hostname = $4, product_uuid = $5 \
         WHERE id = $1",
    )
    .bind(id.to_string())
    .bind(row::number(now_ms))
    .bind(
        seat.seal("version", hello.version.as_bytes())
            .map_err(at_seal)?,
    )
    .bind(
        seat.seal("hostname", hello.host.hostname.as_bytes())
            .map_err(at_seal)?,
    )
    .bind(
        seat.seal_some("product_uuid", product.as_ref())
            .map_err(at_seal)?,
    )
    .execute(&store.writer)
    .await
    .map(drop)
    .map_err(|error| store.failed("greet a Protection Server", error))
}

pub async fn report_svm(store: &Backend, id: SvmId, report: &SvmReport, now_ms: u64) -> Result<()> {
    const SQL: &str = "UPDATE svms SET last_seen_ms = $2, report = $3 WHERE id = $1";
    let id = id.to_string();
    let report = row::json("report", report)?;
    let seat = store.seals.seat("svms", id.as_str());
    let sealed = seat.seal("report", report.as_bytes());
    let sealed = sealed.map_err(|error| unsealed("svms", "report", error))?;
    keep_report(store, SQL, id, sealed, now_ms)
        .await
        .map_err(|error| store.failed("keep a Protection Server's report", error))
}

pub async fn agents(store: &Backend) -> Result<Vec<AgentRecord>> {
    let rows = sqlx::query("SELECT * FROM agents WHERE revoked_ms IS NULL")
        .fetch_all(&store.readers)
        .await
        .map_err(|error| store.failed("list agents", error))?;
    let found: Result<Vec<_>> = rows.iter().map(|row| agent_of(store, row)).collect();
    let mut found = found?;
    found.sort_by(|a, b| (&a.name, a.id.0).cmp(&(&b.name, b.id.0)));
    Ok(found)
}

pub async fn agent(store: &Backend, id: AgentId) -> Result<Option<AgentRecord>> {
    let found = sqlx::query("SELECT * FROM agents WHERE id = $1")
        .bind(id.to_string())
        .fetch_optional(&store.readers)
        .await
        .map_err(|error| store.failed("find an agent", error))?;
    found.as_ref().map(|row| agent_of(store, row)).transpose()
}

pub async fn greet_agent(store: &Backend, id: AgentId, hello: &Hello, now_ms: u64) -> Result<()> {
    let seat = store.seals.seat("agents", id.to_string());
    let at_seal = |error| unsealed("agents", "hostname", error);
    let product = hello.host.product_uuid.map(|uuid| uuid.to_string());
    let boot = hello.host.boot_id.map(|uuid| uuid.to_string());
    sqlx::query(
        "UPDATE agents SET last_seen_ms = $2, version = $3, hostname = $4, product_uuid = $5, \
         boot_id = $6, product_index = $7 WHERE id = $1",
    )
    .bind(id.to_string())
    .bind(row::number(now_ms))
    .bind(
        seat.seal("version", hello.version.as_bytes())
            .map_err(at_seal)?,
    )
    .bind(
        seat.seal("hostname", hello.host.hostname.as_bytes())
            .map_err(at_seal)?,
    )
    .bind(
        seat.seal_some("product_uuid", product.as_ref())
            .map_err(at_seal)?,
    )
    .bind(seat.seal_some("boot_id", boot.as_ref()).map_err(at_seal)?)
    .bind(product.map(|uuid| product_index(store, &uuid)))
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
    let id = id.to_string();
    let report = row::json("report", report)?;
    let seat = store.seals.seat("agents", id.as_str());
    let sealed = seat.seal("report", report.as_bytes());
    let sealed = sealed.map_err(|error| unsealed("agents", "report", error))?;
    keep_report(store, SQL, id, sealed, now_ms)
        .await
        .map_err(|error| store.failed("keep an agent's report", error))
}

async fn keep_report(
    store: &Backend,
    sql: &'static str,
    id: String,
    report: Vec<u8>,
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

fn svm_of(store: &Backend, found: &Row) -> Result<SvmRecord> {
    let sealed = Opened::new(store, found, "svms", &row::text(found, "id")?);
    Ok(SvmRecord {
        id: row::parsed(found, "id")?,
        name: sealed.text("name")?,
        revoked: row::unsigned_or_none(found, "revoked_ms")?.is_some(),
        last_seen_ms: row::unsigned_or_none(found, "last_seen_ms")?,
        version: sealed.text_or_none("version")?.unwrap_or_default(),
        product_uuid: sealed.parsed_or_none("product_uuid")?,
        report: sealed.json_or_none("report")?,
    })
}

fn agent_of(store: &Backend, found: &Row) -> Result<AgentRecord> {
    let sealed = Opened::new(store, found, "agents", &row::text(found, "id")?);
    Ok(AgentRecord {
        id: row::parsed(found, "id")?,
        tenant: row::parsed(found, "tenant")?,
        name: sealed.text("name")?,
        revoked: row::unsigned_or_none(found, "revoked_ms")?.is_some(),
        last_seen_ms: row::unsigned_or_none(found, "last_seen_ms")?,
        version: sealed.text_or_none("version")?.unwrap_or_default(),
        product_uuid: sealed.parsed_or_none("product_uuid")?,
        report: sealed.json_or_none("report")?,
    })
}
