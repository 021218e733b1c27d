//! Table `definitions_keys`: the keys that sign the repository of definitions.

use super::opened::{Opened, SealingError};
use super::{Backend, Connection, row};
use crate::store::{DefinitionsKey, Result};

pub async fn keep(
    store: &Backend,
    db: &mut Connection,
    key: DefinitionsKey,
    secret: &[u8],
    now_ms: u64,
) -> std::result::Result<(), SealingError> {
    let seat = store.seals.seat("definitions_keys", key.as_str());
    let sealed = seat.seal("secret", secret);
    let sealed = sealed.map_err(|error| SealingError::Seal("definitions_keys", "secret", error))?;
    sqlx::query("INSERT INTO definitions_keys (id, secret, made_ms) VALUES ($1, $2, $3)")
        .bind(key.as_str())
        .bind(sealed)
        .bind(row::number(now_ms))
        .execute(db)
        .await?;
    Ok(())
}

/// Whether there was one.
pub async fn forget(
    db: &mut Connection,
    key: DefinitionsKey,
) -> std::result::Result<u64, SealingError> {
    let done = sqlx::query("DELETE FROM definitions_keys WHERE id = $1")
        .bind(key.as_str())
        .execute(db)
        .await?;
    Ok(done.rows_affected())
}

pub async fn find(store: &Backend, key: DefinitionsKey) -> Result<Option<Vec<u8>>> {
    let found = sqlx::query("SELECT secret FROM definitions_keys WHERE id = $1")
        .bind(key.as_str())
        .fetch_optional(&store.readers)
        .await
        .map_err(|error| store.failed("find a key of the definitions", error))?;
    found
        .map(|row| Opened::new(store, &row, "definitions_keys", key.as_str()).bytes("secret"))
        .transpose()
}
