//! Table `account_tokens`: API tokens of accounts. The machine's own is `tokens.rs`'s.

use uuid::Uuid;

use super::accounts;
use super::opened::{Opened, SealingError};
use super::{Backend, Connection, Row, row};
use crate::secret::Hash;
use crate::store::change::MAX_ACCOUNT_TOKENS;
use crate::store::{AccountRecord, AccountToken, Changed, Result};

const TABLE: &str = "account_tokens";

pub async fn add(
    store: &Backend,
    db: &mut Connection,
    token: &AccountToken,
) -> std::result::Result<Changed, SealingError> {
    // Holds the account's row: tokens of one account are made one after the other, and
    // none once it is disabled.
    let done = sqlx::query(
        "UPDATE accounts SET revision = revision WHERE id = $1 AND disabled_ms IS NULL",
    )
    .bind(token.account.to_string())
    .execute(&mut *db)
    .await?;
    if done.rows_affected() != 1 {
        return Ok(Changed::Nothing);
    }
    // What is void is in the audit log, and nowhere else.
    sqlx::query(
        "DELETE FROM account_tokens \
         WHERE account_id = $1 AND (revoked_ms IS NOT NULL OR expires_ms <= $2)",
    )
    .bind(token.account.to_string())
    .bind(row::number(token.created_ms))
    .execute(&mut *db)
    .await?;
    let count: i64 =
        sqlx::query_scalar("SELECT COUNT(*) FROM account_tokens WHERE account_id = $1")
            .bind(token.account.to_string())
            .fetch_one(&mut *db)
            .await?;
    if count >= MAX_ACCOUNT_TOKENS {
        return Ok(Changed::Full);
    }
    let seat = store.seals.seat(TABLE, token.id.to_string());
    let seal = |column, value: &[u8]| {
        seat.seal(column, value)
            .map_err(|error| SealingError::Seal(TABLE, column, error))
    };
    let scope =
        serde_json::to_vec(&token.scope).map_err(|error| sqlx::Error::Encode(error.into()))?;
    sqlx::query(
        "INSERT INTO account_tokens \
         (id, account_id, name, scope, token_sha256, created_ms, expires_ms) \
         VALUES ($1, $2, $3, $4, $5, $6, $7)",
    )
    .bind(token.id.to_string())
    .bind(token.account.to_string())
    .bind(seal("name", token.name.as_bytes())?)
    .bind(seal("scope", &scope)?)
    .bind(token.token_sha256.to_vec())
    .bind(row::number(token.created_ms))
    .bind(row::number(token.expires_ms))
    .execute(db)
    .await?;
    Ok(Changed::Done)
}

pub async fn one(store: &Backend, hash: &Hash) -> Result<Option<(AccountToken, AccountRecord)>> {
    let found = sqlx::query("SELECT * FROM account_tokens WHERE token_sha256 = $1")
        .bind(hash.to_vec())
        .fetch_optional(&store.readers)
        .await
        .map_err(|error| store.failed("find an API token", error))?;
    let Some(found) = found else { return Ok(None) };
    let token = of(store, &found)?;
    let account = accounts::one(store, token.account).await?;
    Ok(account.map(|account| (token, account)))
}

pub async fn all(store: &Backend, account: Option<Uuid>) -> Result<Vec<AccountToken>> {
    let query = match account {
        None => sqlx::query(
            "SELECT * FROM account_tokens WHERE revoked_ms IS NULL ORDER BY created_ms DESC, id",
        ),
        Some(account) => sqlx::query(
            "SELECT * FROM account_tokens WHERE account_id = $1 AND revoked_ms IS NULL \
             ORDER BY created_ms DESC, id",
        )
        .bind(account.to_string()),
    };
    let rows = query
        .fetch_all(&store.readers)
        .await
        .map_err(|error| store.failed("list API tokens", error))?;
    rows.iter().map(|row| of(store, row)).collect()
}

pub async fn by_id(store: &Backend, id: Uuid) -> Result<Option<AccountToken>> {
    let found = sqlx::query("SELECT * FROM account_tokens WHERE id = $1 AND revoked_ms IS NULL")
        .bind(id.to_string())
        .fetch_optional(&store.readers)
        .await
        .map_err(|error| store.failed("find an API token", error))?;
    found.map(|found| of(store, &found)).transpose()
}

pub async fn saw(store: &Backend, id: Uuid, now_ms: u64) -> Result<()> {
    sqlx::query("UPDATE account_tokens SET used_ms = $2 WHERE id = $1")
        .bind(id.to_string())
        .bind(row::number(now_ms))
        .execute(&store.writer)
        .await
        .map(drop)
        .map_err(|error| store.failed("note that an API token was used", error))
}

fn of(store: &Backend, found: &Row) -> Result<AccountToken> {
    let sealed = Opened::new(store, found, TABLE, &row::text(found, "id")?);
    let scope = serde_json::from_slice(&sealed.bytes("scope")?);
    Ok(AccountToken {
        id: row::parsed(found, "id")?,
        account: row::parsed(found, "account_id")?,
        name: sealed.text("name")?,
        scope: scope.map_err(|error| row::bad("scope", error))?,
        token_sha256: row::hash(found, "token_sha256")?,
        created_ms: row::unsigned(found, "created_ms")?,
        expires_ms: row::unsigned(found, "expires_ms")?,
        used_ms: row::unsigned_or_none(found, "used_ms")?,
        revoked_ms: row::unsigned_or_none(found, "revoked_ms")?,
    })
}
