//! Tables `hosts` and `domains`.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::Backend;
use super::row;
use crate::inventory::{DomainFacts, HostRecord};
use crate::store::Result;

pub async fn hosts(store: &Backend) -> Result<Vec<HostRecord>> {
    let at = |error| store.failed("read the inventory", error);
    let mut snapshot = store.snapshot().await.map_err(at)?;
    let rows = sqlx::query("SELECT * FROM hosts")
        .fetch_all(&mut *snapshot)
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
        .fetch_all(&mut *snapshot)
        .await
        .map_err(at)?;
    snapshot.rollback().await.map_err(at)?;
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

pub async fn put_host(store: &Backend, host: &HostRecord) -> Result<()> {
    let at = |error| store.failed("keep the inventory", error);
    let mut transaction = store.begin().await.map_err(at)?;
    sqlx::query(
        "INSERT INTO hosts (uri, host, datacenter, cluster, error, read_ms, tried_ms) \
         VALUES ($1, $2, $3, $4, $5, $6, $7) \
         ON CONFLICT (uri) DO UPDATE SET host = excluded.host, \
         datacenter = excluded.datacenter, cluster = excluded.cluster, error = excluded.error, \
         read_ms = excluded.read_ms, tried_ms = excluded.tried_ms",
    )
    .bind(row::plain(&host.uri))
    .bind(row::plain(&host.host))
    .bind(row::plain(&host.datacenter))
    .bind(row::plain(&host.cluster))
    .bind(host.error.as_deref().map(row::plain))
    .bind(host.read_ms.map(row::number))
    .bind(host.tried_ms.map(row::number))
    .execute(&mut *transaction)
    .await
    .map_err(at)?;
    sqlx::query("DELETE FROM domains WHERE uri = $1")
        .bind(row::plain(&host.uri))
        .execute(&mut *transaction)
        .await
        .map_err(at)?;
    for (uuid, facts) in &host.domains {
        sqlx::query("INSERT INTO domains (uri, uuid, name, state) VALUES ($1, $2, $3, $4)")
            .bind(row::plain(&host.uri))
            .bind(uuid.to_string())
            .bind(row::plain(&facts.name))
            .bind(facts.state.as_str())
            .execute(&mut *transaction)
            .await
            .map_err(at)?;
    }
    transaction.commit().await.map_err(at)
}

pub async fn keep_hosts(store: &Backend, uris: &[String]) -> Result<()> {
    let at = |error| store.failed("forget hosts", error);
    let mut transaction = store.begin().await.map_err(at)?;
    // In one order, so that two servers that forget never wait for each other.
    let known: Vec<String> = sqlx::query_scalar("SELECT uri FROM hosts ORDER BY uri")
        .fetch_all(&mut *transaction)
        .await
        .map_err(at)?;
    let kept: Vec<_> = uris.iter().map(|uri| row::plain(uri)).collect();
    for uri in known
        .iter()
        .filter(|uri| !kept.iter().any(|kept| kept == *uri))
    {
        sqlx::query("DELETE FROM hosts WHERE uri = $1")
            .bind(uri)
            .execute(&mut *transaction)
            .await
            .map_err(at)?;
    }
    transaction.commit().await.map_err(at)
}
