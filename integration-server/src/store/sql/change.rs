//! What somebody answers for: the change and its entry in one transaction.

use palisade_protocol::ids::AgentId;
use sqlx::Transaction;
use uuid::Uuid;

use super::opened::SealingError;
use super::{
    Backend, Connection, Db, account_tokens, accounts, audit, definitions_keys, logins,
    maintenance, policies, row, tokens,
};
use crate::audit::{Entry, Head};
use crate::store::{Alone, Change, Changed, DefinitionsKey, Result};

type Made = std::result::Result<Changed, SealingError>;

pub async fn change(
    store: &Backend,
    change: Change<'_>,
    entry: Option<&Entry>,
    now_ms: u64,
) -> Result<Changed> {
    let at = |error| store.failed("make a change", error);
    let mut transaction = store.begin().await.map_err(at)?;
    let changed = make(store, &mut transaction, change, now_ms)
        .await
        .map_err(|error| error.named(at))?;
    if !changed.is_done() {
        transaction.rollback().await.map_err(at)?;
        return Ok(changed);
    }
    // Last: whoever has the chain's end waits for nobody.
    let head = match entry {
        None => None,
        Some(entry) => Some(
            audit::append(store, &mut transaction, entry)
                .await
                .map_err(|error| error.named(at))?,
        ),
    };
    transaction.commit().await.map_err(at)?;
    if let (Some(entry), Some(head)) = (entry, head) {
        log(entry, &head);
    }
    Ok(changed)
}

/// A second place, which the database's administrator does not have.
fn log(entry: &Entry, head: &Head) {
    let body = &entry.body;
    tracing::info!(
        by = %body.actor.name.escape_debug(),
        via = body.actor.via.as_str(),
        from = body.actor.address.as_deref().unwrap_or("local"),
        action = %body.action,
        object = %body.object.escape_debug(),
        place = %body.place,
        done = body.done,
        head = %head,
        "audit"
    );
}

async fn make(
    store: &Backend,
    transaction: &mut Transaction<'_, Db>,
    change: Change<'_>,
    now_ms: u64,
) -> Made {
    if let Change::AddAccount(_) | Change::Setup(..) | Change::AddGroup(_) = change {
        store.alone(transaction, Alone::Names).await?;
    }
    let db: &mut Connection = &mut *transaction;
    match change {
        Change::Nothing => Ok(Changed::Done),
        Change::NewSetupToken(id, hash) => accounts::new_setup_token(db, id, hash, now_ms).await,
        Change::Setup(hash, account) => match accounts::use_setup_token(db, hash, now_ms).await? {
            true => accounts::add(store, db, account).await,
            false => Ok(Changed::Nothing),
        },
        Change::AddAccount(account) => match accounts::is_full(db).await? {
            true => Ok(Changed::Full),
            false => accounts::add(store, db, account).await,
        },
        Change::RemoveAccount(id, revision) => accounts::remove(db, id, revision).await,
        Change::NewApiToken(token) => tokens::new_api_token(store, db, token).await,
        Change::SetGrants(id, revision, grants) => {
            accounts::set_grants(store, db, id, revision, grants).await
        }
        Change::SetDisabled(id, revision, disabled) => {
            accounts::set_disabled(db, id, revision, disabled, now_ms).await
        }
        Change::SetPassword(id, revision, hash, keep) => {
            accounts::set_password(store, db, (id, revision), hash, keep, now_ms).await
        }
        Change::BeginTotp(id, revision, secret) => {
            accounts::begin_totp(store, db, id, revision, secret).await
        }
        Change::ConfirmTotp(id, revision, step, codes) => {
            accounts::confirm_totp(db, (id, revision), step, codes, now_ms).await
        }
        Change::RemoveTotp(id, revision) => accounts::remove_totp(db, id, revision).await,
        Change::AddSession(session, revision) => {
            logins::add_session(store, db, session, revision).await
        }
        Change::ConfirmSession(id) => logins::confirm_session(db, id, now_ms).await,
        Change::EndSession(id) => logins::end_session(db, id).await,
        Change::AddAccountToken(token) => account_tokens::add(store, db, token).await,
        Change::RevokeAccountToken(id) => revoke(db, REVOKE_ACCOUNT_TOKEN, id, now_ms).await,
        Change::AddJoinToken(token) => Ok(tokens::add_join_token(db, token).await?),
        Change::RevokeJoinToken(id) => revoke(db, REVOKE_JOIN_TOKEN, id, now_ms).await,
        Change::RevokeAgent(AgentId(id)) => revoke(db, REVOKE_AGENT, id, now_ms).await,
        Change::RevokeSvm(id) => revoke(db, REVOKE_SVM, id.0, now_ms).await,
        Change::AddMaintenance(grant) => {
            maintenance::add(store, db, grant).await?;
            Ok(Changed::Done)
        }
        Change::PutPolicy(policy) => policies::put(store, db, policy).await,
        Change::AddGroup(group) => policies::add_group(store, db, group).await,
        Change::SetGroup(id, revision, query, priority) => {
            policies::set_group(store, db, (id, revision), query, priority).await
        }
        Change::RemoveGroup(id, revision) => policies::remove_group(db, id, revision).await,
        Change::MakeDefinitionsKeys { publisher, online } => {
            for (key, secret) in [
                (DefinitionsKey::Publisher, publisher),
                (DefinitionsKey::Online, online),
            ] {
                definitions_keys::keep(store, db, key, secret, now_ms).await?;
            }
            Ok(Changed::Done)
        }
        Change::ForgetDefinitionsKey(key) => Ok(done_if(definitions_keys::forget(db, key).await?)),
    }
}

const REVOKE_ACCOUNT_TOKEN: &str =
    "UPDATE account_tokens SET revoked_ms = $2 WHERE id = $1 AND revoked_ms IS NULL";
const REVOKE_JOIN_TOKEN: &str =
    "UPDATE join_tokens SET revoked_ms = $2 WHERE id = $1 AND revoked_ms IS NULL";
const REVOKE_AGENT: &str = "UPDATE agents SET revoked_ms = $2 WHERE id = $1 AND revoked_ms IS NULL";
const REVOKE_SVM: &str = "UPDATE svms SET revoked_ms = $2 WHERE id = $1 AND revoked_ms IS NULL";

/// Whether there was one that was not revoked before.
async fn revoke(db: &mut Connection, sql: &'static str, id: Uuid, now_ms: u64) -> Made {
    let done = sqlx::query(sql)
        .bind(id.to_string())
        .bind(row::number(now_ms))
        .execute(db)
        .await?;
    Ok(done_if(done.rows_affected()))
}

/// Whether a statement found its one row.
pub fn done_if(rows: u64) -> Changed {
    if rows == 1 {
        Changed::Done
    } else {
        Changed::Nothing
    }
}
