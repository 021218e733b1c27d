//! Table `audit`: the chain. Its length is the counter `audit`, whose row is held from
//! an entry's number to its commit: entries of all servers have one order, without gaps.

use super::opened::{Opened, SealingError};
use super::{Backend, Connection, Row, row};
use crate::audit::{Entry, Head, Record, Verification, Verifier, hashed};
use crate::secret::Hash;
use crate::store::Result;

/// Rows that are read at a time.
const BATCH: i64 = 500;

/// Puts an entry at the end. Nothing else is waited for after this, until the commit.
pub async fn append(
    store: &Backend,
    db: &mut Connection,
    entry: &Entry,
) -> std::result::Result<Head, SealingError> {
    let number: i64 = sqlx::query_scalar(
        "UPDATE counters SET value = value + 1 WHERE name = 'audit' RETURNING value",
    )
    .fetch_one(&mut *db)
    .await?;
    let number = number.unsigned_abs();
    let last: Option<Vec<u8>> = sqlx::query_scalar("SELECT hash FROM audit WHERE id = $1")
        .bind(id(number - 1))
        .fetch_optional(&mut *db)
        .await?;
    // One that is not there any more is found by whoever verifies; the log goes on.
    let before = Head {
        number: number - 1,
        hash: last
            .and_then(|hash| hash.try_into().ok())
            .unwrap_or(Head::NONE.hash),
    };
    let body =
        serde_json::to_vec(&entry.body).map_err(|error| sqlx::Error::Encode(error.into()))?;
    let hash = chained(store, &before, entry.time_ms, &body);
    let seat = store.seals.seat("audit", id(number));
    let sealed = seat.seal("body", &body);
    sqlx::query("INSERT INTO audit (id, time_ms, body, hash) VALUES ($1, $2, $3, $4)")
        .bind(id(number))
        .bind(row::number(entry.time_ms))
        .bind(sealed.map_err(|error| SealingError::Seal("audit", "body", error))?)
        .bind(hash.to_vec())
        .execute(db)
        .await?;
    Ok(Head { number, hash })
}

/// As text, so that its order is the numbers' and rows are named as everywhere.
fn id(number: u64) -> String {
    format!("{number:020}")
}

/// Under the store's index key: whoever lacks it makes no chain that holds.
fn chained(store: &Backend, before: &Head, time_ms: u64, body: &[u8]) -> Hash {
    let keyed = store
        .seals
        .index("audit", "hash", &hashed(before, time_ms, body));
    keyed.try_into().unwrap_or_default()
}

pub async fn page(store: &Backend, before: Option<u64>, limit: u32) -> Result<Vec<Record>> {
    let rows = sqlx::query("SELECT * FROM audit WHERE id < $1 ORDER BY id DESC LIMIT $2")
        .bind(before.map_or_else(|| "9".repeat(20), id))
        .bind(i64::from(limit))
        .fetch_all(&store.readers)
        .await
        .map_err(|error| store.failed("read the audit log", error))?;
    rows.iter().map(|row| of(store, row)).collect()
}

fn of(store: &Backend, found: &Row) -> Result<Record> {
    let sealed = Opened::new(store, found, "audit", &row::text(found, "id")?);
    let body = serde_json::from_slice(&sealed.bytes("body")?);
    Ok(Record {
        number: row::parsed(found, "id")?,
        time_ms: row::unsigned(found, "time_ms")?,
        body: body.map_err(|error| row::bad("body", error))?,
        hash: row::hash(found, "hash")?,
    })
}

pub async fn verify_all(store: &Backend, noted: Option<Head>) -> Result<Verification> {
    let at = |error| store.failed("verify the audit log", error);
    let mut snapshot = store.snapshot().await.map_err(at)?;
    let verification = verify(store, &mut snapshot, noted).await?;
    snapshot.rollback().await.map_err(at)?;
    Ok(verification)
}

/// Goes through all of it, in somebody's snapshot.
pub async fn verify(
    store: &Backend,
    snapshot: &mut Connection,
    noted: Option<Head>,
) -> Result<Verification> {
    let at = |error| store.failed("verify the audit log", error);
    let counted: Option<i64> =
        sqlx::query_scalar("SELECT value FROM counters WHERE name = 'audit'")
            .fetch_optional(&mut *snapshot)
            .await
            .map_err(at)?;
    let mut verifier = Verifier::new(noted);
    let mut after = String::new();
    loop {
        let rows = sqlx::query("SELECT * FROM audit WHERE id > $1 ORDER BY id LIMIT $2")
            .bind(after.clone())
            .bind(BATCH)
            .fetch_all(&mut *snapshot)
            .await
            .map_err(at)?;
        for found in &rows {
            let name = row::text(found, "id")?;
            let number = name.parse().ok().filter(|number| id(*number) == name);
            match (number, row::hash(found, "hash")) {
                (Some(number), Ok(hash)) => {
                    verifier.row(number, hash, |head| right(store, found, &name, head));
                }
                _ => verifier.foreign(),
            }
            after = name;
        }
        if (rows.len() as i64) < BATCH {
            return Ok(verifier.end(counted.unwrap_or_default().unsigned_abs()));
        }
    }
}

/// The hash that a row should have.
fn right(
    store: &Backend,
    found: &Row,
    name: &str,
    head: &Head,
) -> std::result::Result<Hash, String> {
    let body = Opened::new(store, found, "audit", name).bytes("body");
    let body = body.map_err(|error| error.to_string())?;
    let time_ms = row::unsigned(found, "time_ms").map_err(|error| error.to_string())?;
    Ok(chained(store, head, time_ms, &body))
}
