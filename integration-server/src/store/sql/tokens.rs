//! Tables `meta`, `counters`, `join_tokens`, `api_tokens`.

use palisade_protocol::control::Component;
use palisade_protocol::ids::DeploymentId;
use uuid::Uuid;

use super::opened::{Opened, SealingError};
use super::{Backend, Connection, Row, row};
use crate::secret::Hash;
use crate::store::change::MAX_JOIN_TOKENS;
use crate::store::{ApiToken, Changed, JoinTokenRecord, Result, StoreError};

pub async fn fix_deployment(store: &Backend, wanted: &DeploymentId) -> Result<String> {
    let at = |error| store.failed("fix the deployment's name", error);
    sqlx::query(
        "INSERT INTO meta (name, value) VALUES ('deployment', $1) ON CONFLICT (name) DO NOTHING",
    )
    .bind(wanted.as_str())
    .execute(&store.writer)
    .await
    .map_err(at)?;
    sqlx::query_scalar("SELECT value FROM meta WHERE name = 'deployment'")
        .fetch_one(&store.writer)
        .await
        .map_err(at)
}

pub async fn next_epoch(store: &Backend, now_ms: u64) -> Result<u64> {
    let epoch: i64 = sqlx::query_scalar(
        "UPDATE counters SET value = CASE WHEN value >= $1 THEN value + 1 ELSE $1 END \
         WHERE name = 'epoch' RETURNING value",
    )
    .bind(row::number(now_ms))
    .fetch_one(&store.writer)
    .await
    .map_err(|error| store.failed("begin an epoch", error))?;
    u64::try_from(epoch).map_err(|error| StoreError::BadRow {
        column: "value",
        detail: error.to_string(),
    })
}

pub async fn add_join_token(
    connection: &mut Connection,
    token: &JoinTokenRecord,
) -> sqlx::Result<Changed> {
    let valid: i64 = sqlx::query_scalar(
        "SELECT COUNT(*) FROM join_tokens WHERE tenant = $1 AND component = $2 \
         AND revoked_ms IS NULL AND used < uses AND expires_ms > $3",
    )
    .bind(token.tenant.as_str())
    .bind(component_name(token.component))
    .bind(row::number(token.created_ms))
    .fetch_one(&mut *connection)
    .await?;
    if valid >= MAX_JOIN_TOKENS {
        return Ok(Changed::Full);
    }
    sqlx::query(
        "INSERT INTO join_tokens \
         (id, component, tenant, secret_sha256, uses, used, created_ms, expires_ms) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8)",
    )
    .bind(token.id.to_string())
    .bind(component_name(token.component))
    .bind(token.tenant.as_str())
    .bind(token.secret_sha256.to_vec())
    .bind(row::number(token.uses))
    .bind(row::number(token.used))
    .bind(row::number(token.created_ms))
    .bind(row::number(token.expires_ms))
    .execute(connection)
    .await
    .map(|_| Changed::Done)
}

pub async fn join_token(store: &Backend, id: Uuid) -> Result<Option<JoinTokenRecord>> {
    let found = sqlx::query("SELECT * FROM join_tokens WHERE id = $1")
        .bind(id.to_string())
        .fetch_optional(&store.readers)
        .await
        .map_err(|error| store.failed("find a join token", error))?;
    found.as_ref().map(join_token_of).transpose()
}

pub async fn join_tokens(store: &Backend) -> Result<Vec<JoinTokenRecord>> {
    let rows = sqlx::query("SELECT * FROM join_tokens ORDER BY created_ms DESC, id")
        .fetch_all(&store.readers)
        .await
        .map_err(|error| store.failed("list join tokens", error))?;
    rows.iter().map(join_token_of).collect()
}

/// Those of the same name are void from then on.
pub async fn new_api_token(
    store: &Backend,
    db: &mut Connection,
    token: &ApiToken,
) -> std::result::Result<Changed, SealingError> {
    let index = store
        .seals
        .index("api_tokens", "name", token.name.as_bytes());
    sqlx::query(
        "UPDATE api_tokens SET revoked_ms = $2 WHERE name_index = $1 AND revoked_ms IS NULL",
    )
    .bind(&index)
    .bind(row::number(token.created_ms))
    .execute(&mut *db)
    .await?;
    let seat = store.seals.seat("api_tokens", token.id.to_string());
    let name = seat.seal("name", token.name.as_bytes());
    let name = name.map_err(|error| SealingError::Seal("api_tokens", "name", error))?;
    sqlx::query(
        "INSERT INTO api_tokens (id, name, name_index, token_sha256, created_ms) \
         VALUES ($1, $2, $3, $4, $5)",
    )
    .bind(token.id.to_string())
    .bind(name)
    .bind(index)
    .bind(token.token_sha256.to_vec())
    .bind(row::number(token.created_ms))
    .execute(db)
    .await?;
    Ok(Changed::Done)
}

pub async fn api_token(store: &Backend, hash: &Hash) -> Result<Option<ApiToken>> {
    let found =
        sqlx::query("SELECT * FROM api_tokens WHERE token_sha256 = $1 AND revoked_ms IS NULL")
            .bind(hash.to_vec())
            .fetch_optional(&store.readers)
            .await
            .map_err(|error| store.failed("find an API token", error))?;
    found
        .map(|found| {
            let id = row::text(&found, "id")?;
            let sealed = Opened::new(store, &found, "api_tokens", &id);
            Ok(ApiToken {
                id: row::parsed(&found, "id")?,
                name: sealed.text("name")?,
                token_sha256: row::hash(&found, "token_sha256")?,
                created_ms: row::unsigned(&found, "created_ms")?,
            })
        })
        .transpose()
}

pub async fn has_api_token(store: &Backend, name: &str) -> Result<bool> {
    let count: i64 = sqlx::query_scalar(
        "SELECT COUNT(*) FROM api_tokens WHERE name_index = $1 AND revoked_ms IS NULL",
    )
    .bind(store.seals.index("api_tokens", "name", name.as_bytes()))
    .fetch_one(&store.readers)
    .await
    .map_err(|error| store.failed("find an API token", error))?;
    Ok(count > 0)
}

/// A component's kind, as tables and the API name it.
fn component_name(component: Component) -> &'static str {
    match component {
        Component::Agent => "agent",
        Component::Svm => "svm",
    }
}

fn join_token_of(found: &Row) -> Result<JoinTokenRecord> {
    Ok(JoinTokenRecord {
        id: row::parsed(found, "id")?,
        component: match row::text(found, "component")?.as_str() {
            "agent" => Component::Agent,
            "svm" => Component::Svm,
            other => {
                return Err(StoreError::BadRow {
                    column: "component",
                    detail: other.to_owned(),
                });
            }
        },
        tenant: row::parsed(found, "tenant")?,
        secret_sha256: row::hash(found, "secret_sha256")?,
        uses: row::unsigned32(found, "uses")?,
        used: row::unsigned32(found, "used")?,
        created_ms: row::unsigned(found, "created_ms")?,
        expires_ms: row::unsigned(found, "expires_ms")?,
        revoked_ms: row::unsigned_or_none(found, "revoked_ms")?,
    })
}
