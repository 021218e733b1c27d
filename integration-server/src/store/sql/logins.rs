//! Tables `sessions` and `login_sources`, and the failures that `accounts` counts.

use uuid::Uuid;

use super::accounts;
use super::change::done_if;
use super::opened::{Opened, SealingError};
use super::{Backend, Connection, Row, row};
use crate::accounts::lockout::{ADDRESS, Counter, Failures, MAX_ADDRESSES};
use crate::accounts::sessions::{MAX_SESSIONS, Times};
use crate::secret::Hash;
use crate::store::{AccountRecord, Alone, Attempt, Changed, Result, SessionRecord};

type Made = std::result::Result<Changed, SealingError>;

/// Attempts are counted one after the other, whichever server counts them.
pub async fn attempt(store: &Backend, counters: &[Counter], now_ms: u64) -> Result<Attempt> {
    let at = |error| store.failed("count an attempt to log in", error);
    let mut transaction = store.begin().await.map_err(at)?;
    store
        .alone(&mut transaction, Alone::Logins)
        .await
        .map_err(at)?;
    let mut counted = Vec::with_capacity(counters.len());
    let mut wait_ms = None;
    for counter in counters {
        let before = failures(store, &mut transaction, counter)
            .await
            .map_err(at)?;
        wait_ms = wait_ms.max(before.wait_ms(counter.rule(), now_ms));
        counted.push((counter, before.and_one(counter.rule(), now_ms)));
    }
    if let Some(wait_ms) = wait_ms {
        transaction.rollback().await.map_err(at)?;
        return Ok(Attempt::TooEarly(wait_ms));
    }
    for (counter, failures) in counted {
        let (sql, id) = match counter {
            Counter::Account(id) => (
                "UPDATE accounts SET failures = $2, failed_ms = $3 WHERE id = $1",
                id.to_string(),
            ),
            other => (
                "INSERT INTO login_sources (id, failures, failed_ms) VALUES ($1, $2, $3) \
                 ON CONFLICT (id) DO UPDATE SET failures = excluded.failures, \
                 failed_ms = excluded.failed_ms",
                source_id(store, other),
            ),
        };
        sqlx::query(sql)
            .bind(id)
            .bind(i64::from(failures.count))
            .bind(row::number(failures.last_ms))
            .execute(&mut *transaction)
            .await
            .map_err(at)?;
    }
    forget_sources(&mut transaction, now_ms).await.map_err(at)?;
    transaction.commit().await.map_err(at)?;
    Ok(Attempt::Counted)
}

async fn failures(
    store: &Backend,
    db: &mut Connection,
    counter: &Counter,
) -> sqlx::Result<Failures> {
    let (sql, id) = match counter {
        Counter::Account(id) => (
            "SELECT failures, failed_ms FROM accounts WHERE id = $1",
            id.to_string(),
        ),
        other => (
            "SELECT failures, failed_ms FROM login_sources WHERE id = $1",
            source_id(store, other),
        ),
    };
    let found: Option<(i64, i64)> = sqlx::query_as(sql).bind(id).fetch_optional(db).await?;
    Ok(
        found.map_or_else(Failures::default, |(count, last_ms)| Failures {
            count: u32::try_from(count).unwrap_or(u32::MAX),
            last_ms: last_ms.unsigned_abs(),
        }),
    )
}

/// Those that are old, and the oldest of too many.
async fn forget_sources(db: &mut Connection, now_ms: u64) -> sqlx::Result<()> {
    sqlx::query("DELETE FROM login_sources WHERE failed_ms < $1")
        .bind(row::number(now_ms.saturating_sub(ADDRESS.forgotten_ms)))
        .execute(&mut *db)
        .await?;
    sqlx::query(
        "DELETE FROM login_sources WHERE id IN \
         (SELECT id FROM login_sources ORDER BY failed_ms DESC, id LIMIT 1000 OFFSET $1)",
    )
    .bind(MAX_ADDRESSES)
    .execute(db)
    .await
    .map(drop)
}

pub async fn take_back(store: &Backend, counters: &[Counter], proven: bool) -> Result<()> {
    let at = |error| store.failed("take back an attempt to log in", error);
    let mut transaction = store.begin().await.map_err(at)?;
    store
        .alone(&mut transaction, Alone::Logins)
        .await
        .map_err(at)?;
    for counter in counters {
        let all = proven && !matches!(counter, Counter::Source(_));
        let (sql, id) = match (counter, all) {
            (Counter::Account(id), true) => (
                "UPDATE accounts SET failures = 0 WHERE id = $1",
                id.to_string(),
            ),
            (Counter::Account(id), false) => (
                "UPDATE accounts SET failures = failures - 1 WHERE id = $1 AND failures > 0",
                id.to_string(),
            ),
            (other, true) => (
                "DELETE FROM login_sources WHERE id = $1",
                source_id(store, other),
            ),
            (other, false) => (
                "UPDATE login_sources SET failures = failures - 1 WHERE id = $1 AND failures > 0",
                source_id(store, other),
            ),
        };
        sqlx::query(sql)
            .bind(id)
            .execute(&mut *transaction)
            .await
            .map_err(at)?;
    }
    transaction.commit().await.map_err(at)
}

fn source_id(store: &Backend, counter: &Counter) -> String {
    let key = counter.key();
    hex::encode(store.seals.index("login_sources", "source", key.as_bytes()))
}

pub async fn add_session(
    store: &Backend,
    db: &mut Connection,
    session: &SessionRecord,
    revision: u64,
) -> Made {
    // The account's row is held from here on: a change of it is before or after all this.
    let done = sqlx::query(
        "UPDATE accounts SET login_ms = $3 \
         WHERE id = $1 AND revision = $2 AND disabled_ms IS NULL",
    )
    .bind(session.account.to_string())
    .bind(row::number(revision))
    .bind(row::number(session.times.created_ms))
    .execute(&mut *db)
    .await?;
    if done.rows_affected() != 1 {
        return Ok(Changed::Nothing);
    }
    let seat = store.seals.seat("sessions", session.id.to_string());
    let address = seat.seal("address", session.address.as_bytes());
    let address = address.map_err(|error| SealingError::Seal("sessions", "address", error))?;
    sqlx::query(
        "INSERT INTO sessions \
         (id, account_id, token_sha256, address, created_ms, seen_ms, confirmed_ms) \
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
    )
    .bind(session.id.to_string())
    .bind(session.account.to_string())
    .bind(session.token_sha256.to_vec())
    .bind(address)
    .bind(row::number(session.times.created_ms))
    .bind(row::number(session.times.seen_ms))
    .bind(row::number(session.times.confirmed_ms))
    .execute(&mut *db)
    .await?;
    sqlx::query(
        "DELETE FROM sessions WHERE id IN (SELECT id FROM sessions WHERE account_id = $1 \
         ORDER BY seen_ms DESC, id LIMIT 1000 OFFSET $2)",
    )
    .bind(session.account.to_string())
    .bind(MAX_SESSIONS)
    .execute(db)
    .await?;
    Ok(Changed::Done)
}

pub async fn session(
    store: &Backend,
    hash: &Hash,
) -> Result<Option<(SessionRecord, AccountRecord)>> {
    let found = sqlx::query("SELECT * FROM sessions WHERE token_sha256 = $1")
        .bind(hash.to_vec())
        .fetch_optional(&store.readers)
        .await
        .map_err(|error| store.failed("find a session", error))?;
    let Some(found) = found else { return Ok(None) };
    let session = of(store, &found)?;
    let account = accounts::one(store, session.account).await?;
    Ok(account.map(|account| (session, account)))
}

pub async fn saw_session(store: &Backend, id: Uuid, now_ms: u64) -> Result<()> {
    sqlx::query("UPDATE sessions SET seen_ms = $2 WHERE id = $1 AND seen_ms < $2")
        .bind(id.to_string())
        .bind(row::number(now_ms))
        .execute(&store.writer)
        .await
        .map(drop)
        .map_err(|error| store.failed("note that a session was used", error))
}

pub async fn confirm_session(db: &mut Connection, id: Uuid, now_ms: u64) -> Made {
    let done = sqlx::query("UPDATE sessions SET confirmed_ms = $2 WHERE id = $1")
        .bind(id.to_string())
        .bind(row::number(now_ms))
        .execute(db)
        .await?;
    Ok(done_if(done.rows_affected()))
}

pub async fn end_session(db: &mut Connection, id: Uuid) -> Made {
    let done = sqlx::query("DELETE FROM sessions WHERE id = $1")
        .bind(id.to_string())
        .execute(db)
        .await?;
    Ok(done_if(done.rows_affected()))
}

fn of(store: &Backend, found: &Row) -> Result<SessionRecord> {
    let sealed = Opened::new(store, found, "sessions", &row::text(found, "id")?);
    Ok(SessionRecord {
        id: row::parsed(found, "id")?,
        account: row::parsed(found, "account_id")?,
        token_sha256: row::hash(found, "token_sha256")?,
        address: sealed.text("address")?,
        times: Times {
            created_ms: row::unsigned(found, "created_ms")?,
            seen_ms: row::unsigned(found, "seen_ms")?,
            confirmed_ms: row::unsigned(found, "confirmed_ms")?,
        },
    })
}
