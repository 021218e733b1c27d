//! Table `data_keys`, and what goes through all sealed rows: the first sealing of a
//! database that was plain, and another data key.
//!
//! ```text
//!   open: keys there? ─yes─► they open with the master key, or nothing is written
//!            │ no                                   │
//!            ▼                                      ▼
//!         schema 6 ─► keys made ─► plain rows sealed, one transaction ─► newest schema ─► swept
//! ```
//!
//! Each step ends in a commit and is found done at the next start, so a start that was
//! killed goes on where it was.

use std::collections::BTreeMap;

use sqlx::migrate::Migrator;
use sqlx::{AssertSqlSafe, Connection as _, Row as _};

use super::opened::SealingError;
use super::{Backend, Connection, Row, inventory, row};
use crate::inventory::{DomainFacts, HostRecord};
use crate::store::seal::catalog::{INVENTORY, LATER, TABLES, Table};
use crate::store::seal::master::{self, BadMaster, Source};
use crate::store::seal::{Key, Seals};
use crate::store::{Result, StoreError};

/// The version with places for sealed values beside the plain ones.
const BESIDE: i64 = 6;
/// Rows that are read at a time when all of a table's are.
const BATCH: i64 = 500;
/// Marks, in `meta`, that what was plain may still be in free pages.
const UNSWEPT: &str = "unswept";

/// Gives the keys of a database that is as this version has it, and changes nothing.
pub async fn look(
    connection: &mut Connection,
    migrations: &Migrator,
    source: &Source,
    database: &str,
    at: impl Fn(sqlx::Error) -> StoreError,
) -> Result<Seals> {
    let other = |detail: &str| StoreError::Schema {
        database: database.to_owned(),
        detail: detail.to_owned(),
    };
    if !is_there(connection, super::HAS_KEYS).await.map_err(&at)? {
        return Err(other(
            "no server of this version has started with it yet; start palisade-server first",
        ));
    }
    let has: Option<i64> = sqlx::query_scalar("SELECT MAX(version) FROM _sqlx_migrations")
        .fetch_one(&mut *connection)
        .await
        .map_err(&at)?;
    let wants = migrations.iter().map(|migration| migration.version).max();
    if has != wants {
        return Err(other("it is of another version than this command"));
    }
    known(connection, source, false, &at)
        .await?
        .ok_or_else(|| other("it has no keys yet; start palisade-server first"))
}

/// Whether a master key opens all data keys that are there.
pub async fn are_opened_by(connection: &mut Connection, master: &Key) -> sqlx::Result<bool> {
    let rows = sqlx::query("SELECT id, purpose, wrapped FROM data_keys")
        .fetch_all(connection)
        .await?;
    let mut wrapped = Vec::new();
    for found in &rows {
        let number = u32::try_from(found.try_get::<i64, _>("id")?);
        let number = number.map_err(|error| sqlx::Error::Decode(error.into()))?;
        wrapped.push((
            number,
            found.try_get::<String, _>("purpose")?,
            found.try_get::<Vec<u8>, _>("wrapped")?,
        ));
    }
    Ok(opened(master, &wrapped).is_some())
}

/// Brings a database up to the newest schema, sealed, and gives its keys.
pub async fn prepare(
    connection: &mut Connection,
    migrations: &Migrator,
    source: &Source,
    database: &str,
    at: impl Fn(sqlx::Error) -> StoreError,
) -> Result<Seals> {
    let unmigrated = |error| crate::store::unmigrated(database, error, &at);
    let mut seals = None;
    if is_there(connection, super::HAS_KEYS).await.map_err(&at)? {
        seals = known(connection, source, true, &at).await?;
    } else {
        migrations
            .run_direct(Some(BESIDE), &mut *connection, false)
            .await
            .map_err(unmigrated)?;
    }
    let seals = match seals {
        Some(seals) => seals,
        None => make(connection, source, &at).await?,
    };
    if is_there(connection, super::HAS_PLAIN).await.map_err(&at)? {
        seal_plain(connection, &seals)
            .await
            .map_err(|error| error.named(&at))?;
    }
    migrations
        .run_direct(None, &mut *connection, false)
        .await
        .map_err(unmigrated)?;
    sweep(connection).await.map_err(&at)?;
    Ok(seals)
}

async fn is_there(connection: &mut Connection, sql: &'static str) -> sqlx::Result<bool> {
    let count: i64 = sqlx::query_scalar(sql).fetch_one(connection).await?;
    Ok(count > 0)
}

/// The keys that the store has, opened; none when it has none yet. `finishes` what a
/// rotation has begun.
async fn known(
    connection: &mut Connection,
    source: &Source,
    finishes: bool,
    at: impl Fn(sqlx::Error) -> StoreError,
) -> Result<Option<Seals>> {
    let rows = sqlx::query("SELECT id, purpose, wrapped FROM data_keys ORDER BY id")
        .fetch_all(connection)
        .await
        .map_err(at)?;
    if rows.is_empty() {
        return Ok(None);
    }
    let mut wrapped = Vec::new();
    for found in &rows {
        let purpose = row::text(found, "purpose")?;
        wrapped.push((
            row::unsigned32(found, "id")?,
            purpose,
            row::bytes(found, "wrapped")?,
        ));
    }
    let (key, next) = source.read()?;
    if let Some(seals) = key.as_ref().and_then(|key| opened(key, &wrapped)) {
        return Ok(Some(seals));
    }
    // A rotation was ended between its last two steps.
    if let Some(seals) = next.as_ref().and_then(|key| opened(key, &wrapped)) {
        if !finishes {
            return Err(BadMaster::Rotating(source.path()).into());
        }
        source.finish()?;
        tracing::warn!(
            file = %source.path().display(),
            "a rotation of the master key had not ended, and has now: copy the new key, and \
             keep the one before as long as there are backups of it"
        );
        return Ok(Some(seals));
    }
    Err(match key {
        Some(_) => BadMaster::Wrong(source.path().display().to_string()),
        None => BadMaster::Missing(source.path()),
    }
    .into())
}

fn opened(master: &Key, wrapped: &[(u32, String, Vec<u8>)]) -> Option<Seals> {
    let (mut values, mut index) = (BTreeMap::new(), None);
    for (number, purpose, bytes) in wrapped {
        let key = master::unwrap(master, *number, purpose, bytes)?;
        match purpose.as_str() {
            "index" => index = Some(key),
            _ => drop(values.insert(*number, key)),
        }
    }
    Some(Seals::new(values, index?))
}

/// The first keys of a store.
async fn make(
    connection: &mut Connection,
    source: &Source,
    at: impl Fn(sqlx::Error) -> StoreError,
) -> Result<Seals> {
    let master = source.read_or_make()?;
    let (values, index) = (
        Key::random().map_err(BadMaster::from)?,
        Key::random().map_err(BadMaster::from)?,
    );
    let mut transaction = connection.begin().await.map_err(&at)?;
    for (number, purpose, key) in [(1, "values", &values), (2, "index", &index)] {
        insert(&mut transaction, &master, number, purpose, key)
            .await
            .map_err(|error| error.named(&at))?;
    }
    transaction.commit().await.map_err(&at)?;
    Ok(Seals::new([(1, values)].into(), index))
}

async fn insert(
    connection: &mut Connection,
    master: &Key,
    number: u32,
    purpose: &'static str,
    key: &Key,
) -> std::result::Result<(), SealingError> {
    sqlx::query("INSERT INTO data_keys (id, purpose, wrapped, made_ms) VALUES ($1, $2, $3, $4)")
        .bind(i64::from(number))
        .bind(purpose)
        .bind(master::wrap(master, number, purpose, key)?)
        .bind(row::number(crate::time::now_ms()))
        .execute(connection)
        .await?;
    Ok(())
}

/// Wraps all data keys with another master key: all, or none.
pub async fn rewrap(store: &Backend, master: &Key) -> Result<()> {
    let at = |error| store.failed("wrap the data keys", error);
    let mut transaction = store.begin().await.map_err(at)?;
    let rows = sqlx::query("SELECT id, purpose FROM data_keys")
        .fetch_all(&mut *transaction)
        .await
        .map_err(at)?;
    for found in &rows {
        let (number, purpose) = (row::unsigned32(found, "id")?, row::text(found, "purpose")?);
        let key = match purpose.as_str() {
            "index" => Some(store.seals.index_key()),
            _ => store.seals.key(number),
        };
        let key = key.ok_or_else(|| row::bad("id", format!("data key {number} is new")))?;
        let wrapped = master::wrap(master, number, &purpose, key).map_err(BadMaster::from)?;
        sqlx::query("UPDATE data_keys SET wrapped = $2 WHERE id = $1")
            .bind(i64::from(number))
            .bind(wrapped)
            .execute(&mut *transaction)
            .await
            .map_err(at)?;
    }
    transaction.commit().await.map_err(at)
}

/// Seals every value anew with a new data key, and forgets the ones before: in one
/// transaction. Says how many rows there were.
pub async fn reseal(store: &Backend, master: &Key) -> Result<u64> {
    let at = |error| store.failed("seal with another data key", error);
    let mut transaction = store.begin().await.map_err(at)?;
    let highest: i64 = sqlx::query_scalar("SELECT MAX(id) FROM data_keys")
        .fetch_one(&mut *transaction)
        .await
        .map_err(at)?;
    let number = u32::try_from(highest + 1).map_err(|error| row::bad("id", error))?;
    let key = Key::random().map_err(BadMaster::from)?;
    let new = store.seals.as_ref().clone().with(number, key.clone());
    let named = |error: SealingError| error.named(at);
    insert(&mut transaction, master, number, "values", &key)
        .await
        .map_err(named)?;
    let mut rows = 0;
    for table in TABLES.iter().chain(&INVENTORY).chain(&LATER) {
        let done = every_row(
            &mut transaction,
            table,
            "",
            |seat, column, found| {
                let sealed: Option<Vec<u8>> = found.try_get(column.name)?;
                sealed
                    .map(|sealed| {
                        seat.open(column.name, &sealed)
                            .map_err(|error| SealingError::Seal(table.name, column.name, error))
                    })
                    .transpose()
            },
            &new,
            false,
        );
        rows += done.await.map_err(named)?;
    }
    sqlx::query("DELETE FROM data_keys WHERE purpose = 'values' AND id < $1")
        .bind(i64::from(number))
        .execute(&mut *transaction)
        .await
        .map_err(at)?;
    // What was sealed with the key before may be in free pages: the next start sweeps them.
    sqlx::query("INSERT INTO meta (name, value) VALUES ($1, 'yes') ON CONFLICT (name) DO NOTHING")
        .bind(UNSWEPT)
        .execute(&mut *transaction)
        .await
        .map_err(at)?;
    transaction.commit().await.map_err(at)?;
    Ok(rows)
}

/// Seals what is plain, into the places beside it: in one transaction.
async fn seal_plain(
    connection: &mut Connection,
    seals: &Seals,
) -> std::result::Result<(), SealingError> {
    let mut transaction = connection.begin().await?;
    let mut rows = 0;
    for table in &TABLES {
        rows += every_row(
            &mut transaction,
            table,
            "sealed_",
            |_, column, found| {
                Ok(if column.text {
                    found
                        .try_get::<Option<String>, _>(column.name)?
                        .map(String::into_bytes)
                } else {
                    found.try_get(column.name)?
                })
            },
            seals,
            true,
        )
        .await?;
    }
    for host in plain_hosts(&mut transaction).await? {
        rows += 1;
        inventory::put(
            seals,
            &mut transaction,
            "sealed_hosts",
            "sealed_domains",
            &host,
        )
        .await?;
    }
    if rows > 0 {
        sqlx::query(
            "INSERT INTO meta (name, value) VALUES ($1, 'yes') ON CONFLICT (name) DO NOTHING",
        )
        .bind(UNSWEPT)
        .execute(&mut *transaction)
        .await?;
    }
    transaction.commit().await?;
    Ok(())
}

/// Takes each value of a table's rows by `take`, and writes it sealed into the column
/// of that name with `prefix`. Says how many rows there were.
async fn every_row(
    connection: &mut Connection,
    table: &'static Table,
    prefix: &str,
    take: impl Fn(
        &crate::store::seal::Seat<'_>,
        &'static crate::store::seal::catalog::Column,
        &Row,
    ) -> std::result::Result<Option<Vec<u8>>, SealingError>,
    seals: &Seals,
    indexes: bool,
) -> std::result::Result<u64, SealingError> {
    let update = update_of(table, prefix, indexes);
    let mut rows = 0;
    let mut after: Option<Vec<String>> = None;
    loop {
        let found = page(connection, table, after.as_deref()).await?;
        for one in &found {
            let mut key = Vec::new();
            for name in table.key {
                key.push(one.try_get::<String, _>(name)?);
            }
            let seat = seals.seat(table.name, key.join("/"));
            let mut query = sqlx::query(AssertSqlSafe(update.clone()));
            for column in table.columns {
                let value = take(&seat, column, one)?;
                query = query.bind(seat.seal_some(column.name, value.as_ref())?);
                if indexes && column.index.is_some() {
                    query =
                        query.bind(value.map(|value| seals.index(table.name, column.name, &value)));
                }
            }
            for part in &key {
                query = query.bind(part.clone());
            }
            query.execute(&mut *connection).await?;
            after = Some(key);
            rows += 1;
        }
        if (found.len() as i64) < BATCH {
            return Ok(rows);
        }
    }
}

fn update_of(table: &Table, prefix: &str, indexes: bool) -> String {
    let mut number = 0;
    let mut next = |name: String| {
        number += 1;
        format!("{name} = ${number}")
    };
    let mut set = Vec::new();
    for column in table.columns {
        set.push(next(format!("{prefix}{}", column.name)));
        if let Some(index) = column.index.filter(|_| indexes) {
            set.push(next(index.to_owned()));
        }
    }
    let key: Vec<String> = table
        .key
        .iter()
        .map(|name| next((*name).to_owned()))
        .collect();
    format!(
        "UPDATE {} SET {} WHERE {}",
        table.name,
        set.join(", "),
        key.join(" AND ")
    )
}

/// The next rows after this one, in the order of their keys.
pub async fn page(
    connection: &mut Connection,
    table: &Table,
    after: Option<&[String]>,
) -> sqlx::Result<Vec<Row>> {
    let key = table.key.join(", ");
    let from = match after {
        None => String::new(),
        Some(_) => {
            let places: Vec<String> = (1..=table.key.len()).map(|n| format!("${n}")).collect();
            format!("WHERE ({key}) > ({})", places.join(", "))
        }
    };
    let sql = format!(
        "SELECT * FROM {} {from} ORDER BY {key} LIMIT {BATCH}",
        table.name
    );
    let mut query = sqlx::query(AssertSqlSafe(sql));
    for part in after.unwrap_or_default() {
        query = query.bind(part.clone());
    }
    query.fetch_all(connection).await
}

async fn plain_hosts(connection: &mut Connection) -> sqlx::Result<Vec<HostRecord>> {
    let mut hosts: BTreeMap<String, HostRecord> = BTreeMap::new();
    let time = |found: &Row, name: &str| -> sqlx::Result<Option<u64>> {
        let value: Option<i64> = found.try_get(name)?;
        Ok(value.and_then(|value| u64::try_from(value).ok()))
    };
    for found in &sqlx::query("SELECT * FROM hosts")
        .fetch_all(&mut *connection)
        .await?
    {
        let uri: String = found.try_get("uri")?;
        let host = HostRecord {
            uri: uri.clone(),
            host: found.try_get("host")?,
            datacenter: found.try_get("datacenter")?,
            cluster: found.try_get("cluster")?,
            error: found.try_get("error")?,
            read_ms: time(found, "read_ms")?,
            tried_ms: time(found, "tried_ms")?,
            domains: BTreeMap::new(),
        };
        hosts.insert(uri, host);
    }
    for found in &sqlx::query("SELECT * FROM domains")
        .fetch_all(&mut *connection)
        .await?
    {
        let (uri, uuid, state): (String, String, String) = (
            found.try_get("uri")?,
            found.try_get("uuid")?,
            found.try_get("state")?,
        );
        // What cannot be read is read anew from its host.
        if let (Some(host), Ok(uuid), Ok(state)) =
            (hosts.get_mut(&uri), uuid.parse(), state.parse())
        {
            let name = found.try_get("name")?;
            let facts = DomainFacts {
                name,
                state,
                ..DomainFacts::default()
            };
            host.domains.insert(uuid, facts);
        }
    }
    Ok(hosts.into_values().collect())
}

/// Writes anew what has free pages with plain values in them, once.
async fn sweep(connection: &mut Connection) -> sqlx::Result<()> {
    let marks: Vec<String> = sqlx::query_scalar("SELECT name FROM meta WHERE name = $1")
        .bind(UNSWEPT)
        .fetch_all(&mut *connection)
        .await?;
    if marks.is_empty() {
        return Ok(());
    }
    for statement in super::SWEEP {
        sqlx::raw_sql(*statement).execute(&mut *connection).await?;
    }
    sqlx::query("DELETE FROM meta WHERE name = $1")
        .bind(UNSWEPT)
        .execute(connection)
        .await
        .map(drop)
}
