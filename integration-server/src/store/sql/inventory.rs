//! Tables `hosts` and `domains`.

use std::collections::BTreeMap;

use sqlx::AssertSqlSafe;
use uuid::Uuid;

use super::opened::{Opened, SealingError};
use super::{Backend, Connection, row};
use crate::inventory::{DomainFacts, HostRecord};
use crate::store::Result;
use crate::store::seal::Seals;

pub async fn hosts(store: &Backend) -> Result<Vec<HostRecord>> {
    let at = |error| store.failed("read the inventory", error);
    let mut snapshot = store.snapshot().await.map_err(at)?;
    let rows = sqlx::query("SELECT * FROM hosts")
        .fetch_all(&mut *snapshot)
        .await
        .map_err(at)?;
    let mut hosts = BTreeMap::new();
    for found in &rows {
        let id = row::text(found, "id")?;
        let sealed = Opened::new(store, found, "hosts", &id);
        let host = HostRecord {
            uri: sealed.text("uri")?,
            host: sealed.text("host")?,
            datacenter: sealed.text("datacenter")?,
            cluster: sealed.text("cluster")?,
            error: sealed.text_or_none("error")?,
            read_ms: row::unsigned_or_none(found, "read_ms")?,
            tried_ms: row::unsigned_or_none(found, "tried_ms")?,
            domains: BTreeMap::new(),
        };
        hosts.insert(id, host);
    }
    let rows = sqlx::query("SELECT * FROM domains")
        .fetch_all(&mut *snapshot)
        .await
        .map_err(at)?;
    snapshot.rollback().await.map_err(at)?;
    for found in &rows {
        let (host, id) = (row::text(found, "host_id")?, row::text(found, "id")?);
        let sealed = Opened::new(store, found, "domains", &format!("{host}/{id}"));
        let uuid: Uuid = sealed.parsed("uuid")?;
        let facts = DomainFacts {
            name: sealed.text("name")?,
            state: row::parsed(found, "state")?,
            tags: sealed.json_or_none("tags")?.unwrap_or_default(),
            began_ms: None,
        };
        if let Some(host) = hosts.get_mut(&host) {
            host.domains.insert(uuid, facts);
        }
    }
    let mut hosts: Vec<HostRecord> = hosts.into_values().collect();
    hosts.sort_by(|a, b| a.uri.cmp(&b.uri));
    Ok(hosts)
}

pub async fn put_host(store: &Backend, host: &HostRecord) -> Result<()> {
    let at = |error| store.failed("keep the inventory", error);
    let mut transaction = store.begin().await.map_err(at)?;
    put(&store.seals, &mut transaction, "hosts", "domains", host)
        .await
        .map_err(|error| error.named(at))?;
    transaction.commit().await.map_err(at)
}

/// Writes a host into these tables, sealed as for those of the inventory: the first
/// sealing has others.
pub async fn put(
    seals: &Seals,
    connection: &mut Connection,
    hosts: &'static str,
    domains: &'static str,
    host: &HostRecord,
) -> std::result::Result<(), SealingError> {
    let host_id = host_id(seals, &host.uri);
    let seat = seals.seat("hosts", host_id.as_str());
    sqlx::query(AssertSqlSafe(format!(
        "INSERT INTO {hosts} (id, uri, host, datacenter, cluster, error, read_ms, tried_ms) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8) \
         ON CONFLICT (id) DO UPDATE SET uri = excluded.uri, host = excluded.host, \
         datacenter = excluded.datacenter, cluster = excluded.cluster, error = excluded.error, \
         read_ms = excluded.read_ms, tried_ms = excluded.tried_ms"
    )))
    .bind(host_id.clone())
    .bind(seat.seal("uri", host.uri.as_bytes())?)
    .bind(seat.seal("host", host.host.as_bytes())?)
    .bind(seat.seal("datacenter", host.datacenter.as_bytes())?)
    .bind(seat.seal("cluster", host.cluster.as_bytes())?)
    .bind(seat.seal_some("error", host.error.as_ref())?)
    .bind(host.read_ms.map(row::number))
    .bind(host.tried_ms.map(row::number))
    .execute(&mut *connection)
    .await?;
    let forget = format!("DELETE FROM {domains} WHERE host_id = $1");
    sqlx::query(AssertSqlSafe(forget))
        .bind(host_id.clone())
        .execute(&mut *connection)
        .await?;
    let insert = format!(
        "INSERT INTO {domains} (host_id, id, uuid, name, state) VALUES ($1, $2, $3, $4, $5)"
    );
    for (uuid, facts) in &host.domains {
        let uuid = uuid.to_string();
        let id = hex::encode(seals.index("domains", "uuid", uuid.as_bytes()));
        let seat = seals.seat("domains", format!("{host_id}/{id}"));
        sqlx::query(AssertSqlSafe(insert.clone()))
            .bind(host_id.clone())
            .bind(id.clone())
            .bind(seat.seal("uuid", uuid.as_bytes())?)
            .bind(seat.seal("name", facts.name.as_bytes())?)
            .bind(facts.state.as_str())
            .execute(&mut *connection)
            .await?;
        // The first sealing's tables have no such column, and their rows no tags.
        if !facts.tags.is_empty() {
            let tag = format!("UPDATE {domains} SET tags = $3 WHERE host_id = $1 AND id = $2");
            let tags = serde_json::to_vec(&facts.tags).unwrap_or_default();
            sqlx::query(AssertSqlSafe(tag))
                .bind(host_id.clone())
                .bind(id)
                .bind(seat.seal("tags", &tags)?)
                .execute(&mut *connection)
                .await?;
        }
    }
    Ok(())
}

/// The name of a host's row.
fn host_id(seals: &Seals, uri: &str) -> String {
    hex::encode(seals.index("hosts", "uri", uri.as_bytes()))
}

pub async fn keep_hosts(store: &Backend, uris: &[String]) -> Result<()> {
    let at = |error| store.failed("forget hosts", error);
    let mut transaction = store.begin().await.map_err(at)?;
    // In one order, so that two servers that forget never wait for each other.
    let known: Vec<String> = sqlx::query_scalar("SELECT id FROM hosts ORDER BY id")
        .fetch_all(&mut *transaction)
        .await
        .map_err(at)?;
    let kept: Vec<String> = uris.iter().map(|uri| host_id(&store.seals, uri)).collect();
    for id in known.iter().filter(|id| !kept.contains(id)) {
        sqlx::query("DELETE FROM hosts WHERE id = $1")
            .bind(id)
            .execute(&mut *transaction)
            .await
            .map_err(at)?;
    }
    transaction.commit().await.map_err(at)
}
