//! Tables `hosts` and `domains`.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::SqliteStore;
use super::row;
use crate::inventory::{DomainFacts, HostRecord};
use crate::store::Result;

pub async fn hosts(store: &SqliteStore) -> Result<Vec<HostRecord>> {
    let at = |error| store.failed("read the inventory", error);
    let rows = sqlx::query("SELECT * FROM hosts ORDER BY uri")
        .fetch_all(&store.readers)
        .await
        .map_err(at)?;
    let mut hosts = BTreeMap::new();
    for found in &rows {
        let uri = row::text(found, "uri")?;
        let host = HostRecord {
            uri: uri.clone(),
            host: row::text(found, "host")?,
            datacenter: row::text(found, "datacenter")?,
            cluster: row::text(found, "cluster")?,
            error: row::text_or_none(found, "error")?,
            read_ms: row::unsigned_or_none(found, "read_ms")?,
            tried_ms: row::unsigned_or_none(found, "tried_ms")?,
            domains: BTreeMap::new(),
        };
        hosts.insert(uri, host);
    }
    let rows = sqlx::query("SELECT * FROM domains")
        .fetch_all(&store.readers)
        .await
        .map_err(at)?;
    for found in &rows {
        let uuid: Uuid = row::parsed(found, "uuid")?;
        let facts = DomainFacts {
            name: row::text(found, "name")?,
            state: row::parsed(found, "state")?,
        };
        if let Some(host) = hosts.get_mut(&row::text(found, "uri")?) {
            host.domains.insert(uuid, facts);
        }
    }
    Ok(hosts.into_values().collect())
}

pub async fn put_host(store: &SqliteStore, host: &HostRecord) -> Result<()> {
    let at = |error| store.failed("keep the inventory", error);
    let mut transaction = store.writer.begin().await.map_err(at)?;
    sqlx::query(
        "INSERT INTO hosts (uri, host, datacenter, cluster, error, read_ms, tried_ms) \
         VALUES ($1, $2, $3, $4, $5, $6, $7) \
         ON CONFLICT (uri) DO UPDATE SET host = excluded.host, \
         datacenter = excluded.datacenter, cluster = excluded.cluster, error = excluded.error, \
         read_ms = excluded.read_ms, tried_ms = excluded.tried_ms",
    )
    .bind(&host.uri)
    .bind(&host.host)
    .bind(&host.datacenter)
    .bind(&host.cluster)
    .bind(&host.error)
    .bind(host.read_ms.map(row::number))
    .bind(host.tried_ms.map(row::number))
    .execute(&mut *transaction)
    .await
    .map_err(at)?;
    sqlx::query("DELETE FROM domains WHERE uri = $1")
        .bind(&host.uri)
        .execute(&mut *transaction)
        .await
        .map_err(at)?;
    for (uuid, facts) in &host.domains {
        sqlx::query("INSERT INTO domains (uri, uuid, name, state) VALUES ($1, $2, $3, $4)")
            .bind(&host.uri)
            .bind(uuid.to_string())
            .bind(&facts.name)
            .bind(facts.state.as_str())
            .execute(&mut *transaction)
            .await
            .map_err(at)?;
    }
    transaction.commit().await.map_err(at)
}

pub async fn keep_hosts(store: &SqliteStore, uris: &[String]) -> Result<()> {
    let at = |error| store.failed("forget hosts", error);
    let known: Vec<String> = sqlx::query_scalar("SELECT uri FROM hosts")
        .fetch_all(&store.readers)
        .await
        .map_err(at)?;
    let mut transaction = store.writer.begin().await.map_err(at)?;
    for uri in known.iter().filter(|uri| !uris.contains(uri)) {
        sqlx::query("DELETE FROM hosts WHERE uri = $1")
            .bind(uri)
            .execute(&mut *transaction)
            .await
            .map_err(at)?;
    }
    transaction.commit().await.map_err(at)
}
