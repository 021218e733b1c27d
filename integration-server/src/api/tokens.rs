//! `/api/v1/tokens`: join tokens.

use axum::Json;
use axum::extract::Path;
use axum::extract::rejection::{JsonRejection, PathRejection};
use axum::http::StatusCode;
use palisade_protocol::bounded::List;
use palisade_protocol::control;
use palisade_protocol::ids::TenantId;
use palisade_protocol::token::JoinToken;
use palisade_protocol::trust::sha256;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::auth::{Caller, done};
use super::page::Page;
use super::problem::{ApiError, Problem, revoked};
use super::{Api, State};
use crate::access::{Permission, Scope};
use crate::interval::Interval;
use crate::secret;
use crate::store::{Change, JoinTokenRecord};
use crate::time::{millis, now_ms, rfc3339};

/// Most uses of one token.
pub const MAX_USES: u32 = 100_000;

/// What may join.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Component {
    /// A Light Agent.
    Agent,
    /// A Protection Server.
    Svm,
}

/// A token to make.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewToken {
    /// What may join with it.
    #[serde(default = "agent")]
    pub component: Component,
    /// The tenant that agents join, by default `default`.
    #[schema(min_length = 1, max_length = 63)]
    pub tenant: Option<String>,
    /// How often it may be used.
    #[serde(default = "once")]
    #[schema(minimum = 1, maximum = 100000)]
    pub uses: u32,
    /// How long it may be used: `30s`, `5m`, `1h`, `7d`.
    #[serde(default = "an_hour")]
    pub expires_in: String,
}

fn agent() -> Component {
    Component::Agent
}

fn once() -> u32 {
    1
}

fn an_hour() -> String {
    "1h".to_owned()
}

/// A join token, without its secret.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Token {
    /// Its id.
    pub id: Uuid,
    /// What may join with it.
    pub component: Component,
    /// The tenant that agents join.
    pub tenant: String,
    /// How often it may be used.
    pub uses: u32,
    /// How often it was used.
    pub used: u32,
    /// `valid`, `spent`, `expired` or `revoked`.
    pub state: String,
    /// When it was made (RFC 3339, UTC).
    pub created: String,
    /// When it ends (RFC 3339, UTC).
    pub expires: String,
}

/// A token that was just made: the only time that its text is shown.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct CreatedToken {
    /// The text to hand out.
    pub token: String,
    /// The token.
    #[serde(flatten)]
    pub about: Token,
}

/// Join tokens, newest first, without their secrets
#[utoipa::path(
    get,
    path = "/api/v1/tokens",
    operation_id = "listTokens",
    tag = "tokens",
    responses(
        (status = 200, body = Page<Token>),
        (status = 401, body = Problem, content_type = "application/problem+json"),
        (status = 503, body = Problem, content_type = "application/problem+json"),
    ),
)]
pub async fn list(state: State, caller: Caller) -> Result<Json<Page<Token>>, ApiError> {
    let now_ms = now_ms();
    let tokens = state.fleet.store.join_tokens().await?;
    Ok(Json(Page::whole(
        tokens
            .iter()
            .filter(|token| caller.may(Permission::SeeJoinTokens, &place(token)))
            .map(|token| of(token, now_ms))
            .collect(),
    )))
}

/// Make a join token
#[utoipa::path(
    post,
    path = "/api/v1/tokens",
    operation_id = "createToken",
    tag = "tokens",
    request_body = NewToken,
    responses(
        (status = 201, body = CreatedToken),
        (status = 400, body = Problem, content_type = "application/problem+json"),
        (status = 401, body = Problem, content_type = "application/problem+json"),
        (status = 409, body = Problem, content_type = "application/problem+json"),
        (status = 413, body = Problem, content_type = "application/problem+json"),
        (status = 415, body = Problem, content_type = "application/problem+json"),
        (status = 422, body = Problem, content_type = "application/problem+json"),
        (status = 503, body = Problem, content_type = "application/problem+json"),
    ),
)]
pub async fn create(
    state: State,
    caller: Caller,
    new: Result<Json<NewToken>, JsonRejection>,
) -> Result<(StatusCode, Json<CreatedToken>), ApiError> {
    let Json(new) = new?;
    let now_ms = now_ms();
    let (text, record) = make(&state, &new, now_ms)?;
    let place = place(&record);
    caller.require(Permission::ManageJoinTokens, &place)?;
    let entry = caller
        .entry("join_token.create", record.id, now_ms)
        .at(place)
        .after(format!(
            "{} uses for {:?} until {}",
            record.uses,
            record.component,
            rfc3339(record.expires_ms)
        ));
    let change = Change::AddJoinToken(&record);
    let changed = state
        .fleet
        .store
        .change(change, Some(&entry), now_ms)
        .await?;
    done(changed, || ApiError::Conflict("it was not made".to_owned()))?;
    let created = CreatedToken {
        token: text,
        about: of(&record, now_ms),
    };
    Ok((StatusCode::CREATED, Json(created)))
}

/// Revoke a join token
///
/// Who joined with it stays.
#[utoipa::path(
    delete,
    path = "/api/v1/tokens/{id}",
    operation_id = "revokeToken",
    tag = "tokens",
    params(("id" = Uuid, Path, description = "The token's id")),
    responses(
        (status = 204, description = "Revoked"),
        (status = 400, body = Problem, content_type = "application/problem+json"),
        (status = 401, body = Problem, content_type = "application/problem+json"),
        (status = 404, body = Problem, content_type = "application/problem+json"),
        (status = 503, body = Problem, content_type = "application/problem+json"),
    ),
)]
pub async fn revoke(
    state: State,
    caller: Caller,
    id: Result<Path<Uuid>, PathRejection>,
) -> Result<StatusCode, ApiError> {
    const KIND: &str = "join token that could be revoked:";
    let Path(id) = id?;
    let now_ms = now_ms();
    let store = &state.fleet.store;
    let may = |token: &JoinTokenRecord| caller.may(Permission::ManageJoinTokens, &place(token));
    let Some(token) = store.join_token(id).await?.filter(may) else {
        return revoked(false, KIND, id);
    };
    let entry = caller
        .entry("join_token.revoke", id, now_ms)
        .at(place(&token));
    let change = Change::RevokeJoinToken(id);
    let changed = store.change(change, Some(&entry), now_ms).await?;
    revoked(changed.is_done(), KIND, id)
}

/// Where a token belongs: to the tenant that agents join by it; SVMs are the site's.
fn place(token: &JoinTokenRecord) -> Scope {
    match token.component {
        control::Component::Agent => Scope::tenant(token.tenant.clone()),
        control::Component::Svm => Scope::site(),
    }
}

fn make(api: &Api, new: &NewToken, now_ms: u64) -> Result<(String, JoinTokenRecord), ApiError> {
    let bad = |error: &dyn std::fmt::Display| ApiError::Unprocessable(error.to_string());
    if !(1..=MAX_USES).contains(&new.uses) {
        return Err(bad(&format!("uses must be 1 to {MAX_USES}")));
    }
    let lifetime: Interval = new
        .expires_in
        .parse()
        .map_err(|error| bad(&format!("expires_in: {error}")))?;
    let tenant = match &new.tenant {
        Some(tenant) => tenant.parse().map_err(|error| bad(&error))?,
        None => TenantId::default_tenant(),
    };
    let internal = |error: Box<dyn std::error::Error + Send + Sync>| ApiError::Internal(error);
    let secret = secret::random().map_err(|error| internal(error.into()))?;
    let record = JoinTokenRecord {
        id: Uuid::new_v4(),
        component: match new.component {
            Component::Agent => control::Component::Agent,
            Component::Svm => control::Component::Svm,
        },
        tenant,
        secret_sha256: sha256(&secret),
        uses: new.uses,
        used: 0,
        created_ms: now_ms,
        expires_ms: now_ms.saturating_add(millis(lifetime.get())),
        revoked_ms: None,
    };
    let authority = &api.fleet.authority;
    let token = JoinToken {
        id: record.id,
        component: record.component,
        deployment: authority.deployment().clone(),
        tenant: record.tenant.clone(),
        servers: List::cut(api.advertised.iter().copied()),
        root_sha256: authority.root_sha256(),
        secret,
        expires_ms: record.expires_ms,
    };
    let text = token.to_text().map_err(|error| internal(error.into()))?;
    Ok((text, record))
}

fn of(token: &JoinTokenRecord, now_ms: u64) -> Token {
    let state = if token.revoked_ms.is_some() {
        "revoked"
    } else if token.expires_ms <= now_ms {
        "expired"
    } else if token.used >= token.uses {
        "spent"
    } else {
        "valid"
    };
    Token {
        id: token.id,
        component: match token.component {
            control::Component::Agent => Component::Agent,
            control::Component::Svm => Component::Svm,
        },
        tenant: token.tenant.to_string(),
        uses: token.uses,
        used: token.used,
        state: state.to_owned(),
        created: rfc3339(token.created_ms),
        expires: rfc3339(token.expires_ms),
    }
}
