//! Tables `accounts`, `recovery_codes`, `setup_tokens`.

use uuid::Uuid;

use super::change::done_if;
use super::opened::{Opened, SealingError};
use super::{Backend, Connection, Row, row};
use crate::access::Grant;
use crate::secret::Hash;
use crate::store::change::MAX_ACCOUNTS;
use crate::store::{AccountRecord, Changed, Result};

type Made = std::result::Result<Changed, SealingError>;

const TABLE: &str = "accounts";

pub async fn all(store: &Backend) -> Result<Vec<AccountRecord>> {
    let rows = sqlx::query("SELECT * FROM accounts")
        .fetch_all(&store.readers)
        .await
        .map_err(|error| store.failed("list accounts", error))?;
    let accounts: Result<Vec<_>> = rows.iter().map(|row| of(store, row)).collect();
    let mut accounts = accounts?;
    accounts.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(accounts)
}

pub async fn any(store: &Backend) -> Result<bool> {
    let found: Option<i64> = sqlx::query_scalar("SELECT 1 FROM accounts LIMIT 1")
        .fetch_optional(&store.readers)
        .await
        .map_err(|error| store.failed("look whether there are accounts", error))?;
    Ok(found.is_some())
}

pub async fn one(store: &Backend, id: Uuid) -> Result<Option<AccountRecord>> {
    let found = sqlx::query("SELECT * FROM accounts WHERE id = $1")
        .bind(id.to_string())
        .fetch_optional(&store.readers)
        .await
        .map_err(|error| store.failed("find an account", error))?;
    found.map(|found| of(store, &found)).transpose()
}

pub async fn named(store: &Backend, name: &str) -> Result<Option<AccountRecord>> {
    let found = sqlx::query("SELECT * FROM accounts WHERE name_index = $1")
        .bind(store.seals.index(TABLE, "name", name.as_bytes()))
        .fetch_optional(&store.readers)
        .await
        .map_err(|error| store.failed("find an account", error))?;
    found.map(|found| of(store, &found)).transpose()
}

/// Whether there is room for one more. The caller is alone with names.
pub async fn is_full(db: &mut Connection) -> sqlx::Result<bool> {
    let count: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM accounts")
        .fetch_one(db)
        .await?;
    Ok(count >= MAX_ACCOUNTS)
}

/// The caller is alone with names.
pub async fn add(store: &Backend, db: &mut Connection, account: &AccountRecord) -> Made {
    let done = sqlx::query(
        "INSERT INTO accounts \
         (id, name, name_index, password, grants, created_ms, password_ms) \
         VALUES ($1, $2, $3, $4, $5, $6, $7) ON CONFLICT (name_index) DO NOTHING",
    )
    .bind(account.id.to_string())
    .bind(sealed(store, account.id, "name", account.name.as_bytes())?)
    .bind(store.seals.index(TABLE, "name", account.name.as_bytes()))
    .bind(sealed(
        store,
        account.id,
        "password",
        account.password.as_bytes(),
    )?)
    .bind(sealed_grants(store, account.id, &account.grants)?)
    .bind(row::number(account.created_ms))
    .bind(row::number(account.password_ms))
    .execute(db)
    .await?;
    Ok(match done.rows_affected() {
        1 => Changed::Done,
        _ => Changed::Taken,
    })
}

pub async fn set_grants(
    store: &Backend,
    db: &mut Connection,
    id: Uuid,
    revision: u64,
    grants: &[Grant],
) -> Made {
    let done = sqlx::query(
        "UPDATE accounts SET grants = $3, revision = revision + 1 \
         WHERE id = $1 AND revision = $2",
    )
    .bind(id.to_string())
    .bind(row::number(revision))
    .bind(sealed_grants(store, id, grants)?)
    .execute(db)
    .await?;
    Ok(done_if(done.rows_affected()))
}

pub async fn set_disabled(
    db: &mut Connection,
    id: Uuid,
    revision: u64,
    disabled: bool,
    now_ms: u64,
) -> Made {
    let sql = match disabled {
        true => {
            "UPDATE accounts SET disabled_ms = $3, revision = revision + 1 \
             WHERE id = $1 AND revision = $2 AND disabled_ms IS NULL"
        }
        false => {
            "UPDATE accounts SET disabled_ms = NULL, revision = revision + 1, failures = 0 \
             WHERE id = $1 AND revision = $2 AND disabled_ms IS NOT NULL AND $3 >= 0"
        }
    };
    let done = sqlx::query(sql)
        .bind(id.to_string())
        .bind(row::number(revision))
        .bind(row::number(now_ms))
        .execute(&mut *db)
        .await?;
    if disabled && done.rows_affected() == 1 {
        end_sessions(db, id, None).await?;
        sqlx::query(
            "UPDATE account_tokens SET revoked_ms = $2 WHERE account_id = $1 AND revoked_ms IS NULL",
        )
        .bind(id.to_string())
        .bind(row::number(now_ms))
        .execute(db)
        .await?;
    }
    Ok(done_if(done.rows_affected()))
}

pub async fn set_password(
    store: &Backend,
    db: &mut Connection,
    (id, revision): (Uuid, u64),
    hash: &str,
    keep: Option<Uuid>,
    now_ms: u64,
) -> Made {
    let done = sqlx::query(
        "UPDATE accounts SET password = $3, password_ms = $4, revision = revision + 1, \
         failures = CASE WHEN $5 = 0 THEN failures ELSE 0 END WHERE id = $1 AND revision = $2",
    )
    .bind(id.to_string())
    .bind(row::number(revision))
    .bind(sealed(store, id, "password", hash.as_bytes())?)
    .bind(row::number(now_ms))
    // Somebody else answers for a password that is set anew. Who changes his own has not
    // shown his second factor with it.
    .bind(i64::from(keep.is_none()))
    .execute(&mut *db)
    .await?;
    if done.rows_affected() == 1 {
        end_sessions(db, id, keep).await?;
    }
    Ok(done_if(done.rows_affected()))
}

pub async fn remove(db: &mut Connection, id: Uuid, revision: u64) -> Made {
    // Holds the row: nothing of it is made meanwhile.
    let done = sqlx::query(
        "UPDATE accounts SET revision = revision + 1 \
         WHERE id = $1 AND revision = $2 AND disabled_ms IS NOT NULL",
    )
    .bind(id.to_string())
    .bind(row::number(revision))
    .execute(&mut *db)
    .await?;
    if done.rows_affected() != 1 {
        return Ok(Changed::Nothing);
    }
    end_sessions(db, id, None).await?;
    forget_codes(db, id).await?;
    for sql in [
        "DELETE FROM account_tokens WHERE account_id = $1",
        "DELETE FROM accounts WHERE id = $1",
    ] {
        sqlx::query(sql)
            .bind(id.to_string())
            .execute(&mut *db)
            .await?;
    }
    Ok(Changed::Done)
}

async fn end_sessions(db: &mut Connection, account: Uuid, keep: Option<Uuid>) -> sqlx::Result<()> {
    sqlx::query("DELETE FROM sessions WHERE account_id = $1 AND id <> $2")
        .bind(account.to_string())
        .bind(keep.map(|id| id.to_string()).unwrap_or_default())
        .execute(db)
        .await
        .map(drop)
}

pub async fn begin_totp(
    store: &Backend,
    db: &mut Connection,
    id: Uuid,
    revision: u64,
    secret: &[u8],
) -> Made {
    let done = sqlx::query(
        "UPDATE accounts SET totp = $3, totp_step = NULL, revision = revision + 1 \
         WHERE id = $1 AND revision = $2 AND totp_on_ms IS NULL",
    )
    .bind(id.to_string())
    .bind(row::number(revision))
    .bind(sealed(store, id, "totp", secret)?)
    .execute(db)
    .await?;
    Ok(done_if(done.rows_affected()))
}

pub async fn confirm_totp(
    db: &mut Connection,
    (id, revision): (Uuid, u64),
    step: u64,
    codes: &[Hash],
    now_ms: u64,
) -> Made {
    let done = sqlx::query(
        "UPDATE accounts SET totp_on_ms = $3, totp_step = $4, revision = revision + 1 \
         WHERE id = $1 AND revision = $2 AND totp IS NOT NULL AND totp_on_ms IS NULL",
    )
    .bind(id.to_string())
    .bind(row::number(revision))
    .bind(row::number(now_ms))
    .bind(row::number(step))
    .execute(&mut *db)
    .await?;
    if done.rows_affected() != 1 {
        return Ok(Changed::Nothing);
    }
    forget_codes(db, id).await?;
    for code in codes {
        sqlx::query("INSERT INTO recovery_codes (id, account_id, code_sha256) VALUES ($1, $2, $3)")
            .bind(Uuid::new_v4().to_string())
            .bind(id.to_string())
            .bind(code.to_vec())
            .execute(&mut *db)
            .await?;
    }
    Ok(Changed::Done)
}

pub async fn remove_totp(db: &mut Connection, id: Uuid, revision: u64) -> Made {
    let done = sqlx::query(
        "UPDATE accounts SET totp = NULL, totp_on_ms = NULL, totp_step = NULL, \
         revision = revision + 1 WHERE id = $1 AND revision = $2 AND totp IS NOT NULL",
    )
    .bind(id.to_string())
    .bind(row::number(revision))
    .execute(&mut *db)
    .await?;
    if done.rows_affected() == 1 {
        forget_codes(db, id).await?;
    }
    Ok(done_if(done.rows_affected()))
}

async fn forget_codes(db: &mut Connection, account: Uuid) -> sqlx::Result<()> {
    sqlx::query("DELETE FROM recovery_codes WHERE account_id = $1")
        .bind(account.to_string())
        .execute(db)
        .await
        .map(drop)
}

/// One statement, so that of two with the same code one alone succeeds.
pub async fn use_totp(store: &Backend, id: Uuid, step: u64) -> Result<bool> {
    let done = sqlx::query(
        "UPDATE accounts SET totp_step = $2 \
         WHERE id = $1 AND totp_on_ms IS NOT NULL AND (totp_step IS NULL OR totp_step < $2)",
    )
    .bind(id.to_string())
    .bind(row::number(step))
    .execute(&store.writer)
    .await
    .map_err(|error| store.failed("use a code", error))?;
    Ok(done.rows_affected() == 1)
}

/// The same.
pub async fn use_recovery_code(
    store: &Backend,
    account: Uuid,
    code: &Hash,
    now_ms: u64,
) -> Result<bool> {
    let done = sqlx::query(
        "UPDATE recovery_codes SET used_ms = $3 \
         WHERE account_id = $1 AND code_sha256 = $2 AND used_ms IS NULL",
    )
    .bind(account.to_string())
    .bind(code.to_vec())
    .bind(row::number(now_ms))
    .execute(&store.writer)
    .await
    .map_err(|error| store.failed("use a recovery code", error))?;
    Ok(done.rows_affected() == 1)
}

pub async fn new_setup_token(db: &mut Connection, id: Uuid, hash: &Hash, now_ms: u64) -> Made {
    sqlx::query("UPDATE setup_tokens SET used_ms = $1 WHERE used_ms IS NULL")
        .bind(row::number(now_ms))
        .execute(&mut *db)
        .await?;
    sqlx::query("INSERT INTO setup_tokens (id, token_sha256, created_ms) VALUES ($1, $2, $3)")
        .bind(id.to_string())
        .bind(hash.to_vec())
        .bind(row::number(now_ms))
        .execute(db)
        .await?;
    Ok(Changed::Done)
}

/// Whether it was one that was not used before.
pub async fn use_setup_token(db: &mut Connection, hash: &Hash, now_ms: u64) -> sqlx::Result<bool> {
    let done = sqlx::query(
        "UPDATE setup_tokens SET used_ms = $2 WHERE token_sha256 = $1 AND used_ms IS NULL",
    )
    .bind(hash.to_vec())
    .bind(row::number(now_ms))
    .execute(db)
    .await?;
    Ok(done.rows_affected() == 1)
}

pub async fn has_setup_token(store: &Backend, hash: Option<&Hash>) -> Result<bool> {
    let query = match hash {
        None => sqlx::query_scalar("SELECT COUNT(*) FROM setup_tokens WHERE used_ms IS NULL"),
        Some(hash) => sqlx::query_scalar(
            "SELECT COUNT(*) FROM setup_tokens WHERE used_ms IS NULL AND token_sha256 = $1",
        )
        .bind(hash.to_vec()),
    };
    let count: i64 = query
        .fetch_one(&store.readers)
        .await
        .map_err(|error| store.failed("find a setup token", error))?;
    Ok(count > 0)
}

fn sealed(
    store: &Backend,
    id: Uuid,
    column: &'static str,
    value: &[u8],
) -> std::result::Result<Vec<u8>, SealingError> {
    let seat = store.seals.seat(TABLE, id.to_string());
    seat.seal(column, value)
        .map_err(|error| SealingError::Seal(TABLE, column, error))
}

fn sealed_grants(
    store: &Backend,
    id: Uuid,
    grants: &[Grant],
) -> std::result::Result<Vec<u8>, SealingError> {
    let text = serde_json::to_vec(grants).map_err(|error| sqlx::Error::Encode(error.into()))?;
    sealed(store, id, "grants", &text)
}

fn of(store: &Backend, found: &Row) -> Result<AccountRecord> {
    let sealed = Opened::new(store, found, TABLE, &row::text(found, "id")?);
    // What cannot be read allows nothing, and is an error all the same.
    let grants = serde_json::from_slice(&sealed.bytes("grants")?);
    Ok(AccountRecord {
        id: row::parsed(found, "id")?,
        name: sealed.text("name")?,
        password: sealed.text("password")?,
        grants: grants.map_err(|error| row::bad("grants", error))?,
        totp: sealed.bytes_or_none("totp")?,
        totp_on_ms: row::unsigned_or_none(found, "totp_on_ms")?,
        revision: row::unsigned(found, "revision")?,
        created_ms: row::unsigned(found, "created_ms")?,
        password_ms: row::unsigned(found, "password_ms")?,
        login_ms: row::unsigned_or_none(found, "login_ms")?,
        disabled_ms: row::unsigned_or_none(found, "disabled_ms")?,
    })
}
