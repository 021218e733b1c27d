//! `/api/v1/api-tokens`: tokens by which programs use an account, within a limit.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::Path;
use axum::extract::rejection::{JsonRejection, PathRejection};
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::State;
use super::accounts::place;
use super::auth::{Caller, done};
use super::page::Page;
use super::problem::{ApiError, Problem, revoked};
use crate::access::{Access, Grant, Permission, grants};
use crate::audit::Via;
use crate::interval::Interval;
use crate::secret;
use crate::store::{AccountRecord, AccountToken, Change};
use crate::time::{millis, now_ms, rfc3339};

/// Longest name, in bytes.
const MAX_NAME_BYTES: usize = 64;
/// How long one may last: a year, and what a leap day is.
const MAX_LIFE: Interval = Interval::from_secs(366 * 24 * 3600);

/// An API token, without its text.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct ApiToken {
    /// Its id.
    pub id: Uuid,
    /// What it is for.
    pub name: String,
    /// Whose.
    pub account: Uuid,
    /// That account's name.
    pub account_name: String,
    /// What it is limited to, of what its account may do.
    pub scope: Grant,
    /// `valid` or `expired`.
    pub state: String,
    /// When it was made (RFC 3339, UTC).
    pub created: String,
    /// When it ends (RFC 3339, UTC).
    pub expires: String,
    /// When it was last used, to the ten seconds (RFC 3339, UTC).
    pub last_used: Option<String>,
}

/// An API token to make.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewApiToken {
    /// What it is for, on one line.
    #[schema(min_length = 1, max_length = 64)]
    pub name: String,
    /// What it is limited to, of what the account may do.
    pub scope: Grant,
    /// How long it lasts, a year at most: `30s`, `5m`, `1h`, `7d`.
    #[serde(default = "a_month")]
    pub expires_in: String,
}

fn a_month() -> String {
    "30d".to_owned()
}

/// An API token that was just made: the only time that its text is shown.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct CreatedApiToken {
    /// The text, for `Authorization: Bearer` or `PALISADE_TOKEN`.
    pub token: String,
    /// The token.
    #[serde(flatten)]
    pub about: ApiToken,
}

/// API tokens of the caller, and of accounts that he may see, newest first
#[utoipa::path(
    get,
    path = "/api/v1/api-tokens",
    operation_id = "listApiTokens",
    tag = "api-tokens",
    responses(
        (status = 200, body = Page<ApiToken>),
        (status = 401, body = Problem, content_type = "application/problem+json"),
        (status = 503, body = Problem, content_type = "application/problem+json"),
    ),
)]
pub async fn list(state: State, caller: Caller) -> Result<Json<Page<ApiToken>>, ApiError> {
    let store = &state.fleet.store;
    let now_ms = now_ms();
    // Who sees no other account is asked about his own alone.
    let (accounts, tokens) = match &caller.account {
        Some(own) if !caller.access.may_somewhere(Permission::SeeAccounts) => {
            let tokens = store.account_tokens(Some(own.id)).await?;
            (vec![AccountRecord::clone(own)], tokens)
        }
        _ => (store.accounts().await?, store.account_tokens(None).await?),
    };
    let accounts: BTreeMap<Uuid, AccountRecord> = accounts
        .into_iter()
        .map(|account| (account.id, account))
        .collect();
    let seen = tokens.into_iter().filter_map(|token| {
        let account = accounts.get(&token.account)?;
        let own = match caller.actor.via {
            Via::ApiToken => caller.actor.credential == Some(token.id),
            _ => caller.actor.account == Some(account.id),
        };
        (own || caller.access.may_see(&account.grants)).then(|| of(token, account, now_ms))
    });
    Ok(Json(Page::whole(seen.collect())))
}

/// Make an API token of the own account
#[utoipa::path(
    post,
    path = "/api/v1/api-tokens",
    operation_id = "createApiToken",
    tag = "api-tokens",
    request_body = NewApiToken,
    responses(
        (status = 201, body = CreatedApiToken),
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
    new: Result<Json<NewApiToken>, JsonRejection>,
) -> Result<(StatusCode, Json<CreatedApiToken>), ApiError> {
    let Json(new) = new?;
    let (account, ..) = caller.in_session()?;
    let bad = |error: &dyn std::fmt::Display| ApiError::Unprocessable(error.to_string());
    let name = new.name.trim();
    if name.is_empty() || name.len() > MAX_NAME_BYTES || name.chars().any(char::is_control) {
        return Err(bad(&format!(
            "name must say what the token is for, on one line of 1 to {MAX_NAME_BYTES} bytes"
        )));
    }
    let lifetime: Interval = new
        .expires_in
        .parse()
        .map_err(|error| bad(&format!("expires_in: {error}")))?;
    if lifetime > MAX_LIFE {
        return Err(bad(&format!("expires_in must be {MAX_LIFE} at most")));
    }
    let scope = grants::checked(vec![new.scope]).map_err(|error| bad(&error))?;
    let scope = scope.into_iter().next().ok_or_else(|| bad(&"no scope"))?;
    // What it could never do is a mistake that is better told now.
    let access = Access::of(account.grants.clone()).limited(scope.clone());
    let useless = |permission| !access.may(permission, &scope.path);
    if scope.role.permissions().all(useless) {
        return Err(bad(&format!(
            "the account may do nothing of what {} may at {}",
            scope.role.as_str(),
            scope.path
        )));
    }
    let now_ms = now_ms();
    let (text, token_sha256) =
        secret::api_token().map_err(|error| ApiError::Internal(error.into()))?;
    let token = AccountToken {
        id: Uuid::new_v4(),
        account: account.id,
        name: name.to_owned(),
        scope,
        token_sha256,
        created_ms: now_ms,
        expires_ms: now_ms.saturating_add(millis(lifetime.get())),
        used_ms: None,
        revoked_ms: None,
    };
    let entry = caller
        .entry("api_token.create", token.id, now_ms)
        .at(place(&account.grants))
        .after(format!(
            "{name:?}: {} at {} until {}",
            token.scope.role.as_str(),
            token.scope.path,
            rfc3339(token.expires_ms)
        ));
    let change = Change::AddAccountToken(&token);
    let changed = state
        .fleet
        .store
        .change(change, Some(&entry), now_ms)
        .await?;
    done(changed, || ApiError::Unauthorized)?;
    let created = CreatedApiToken {
        token: text,
        about: of(token, account, now_ms),
    };
    Ok((StatusCode::CREATED, Json(created)))
}

/// Revoke an API token: an own one, or one of an account that the caller may change
#[utoipa::path(
    delete,
    path = "/api/v1/api-tokens/{id}",
    operation_id = "revokeApiToken",
    tag = "api-tokens",
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
    let Path(id) = id?;
    let now_ms = now_ms();
    let store = &state.fleet.store;
    let Some(token) = store.account_token_by_id(id).await? else {
        return revoked(false, "API token", id);
    };
    let account = store.account(token.account).await?;
    // A token ends itself; of its account's others, it may what its scope lets it.
    let own = match caller.actor.via {
        Via::ApiToken => caller.actor.credential == Some(id),
        _ => caller.actor.account == Some(token.account),
    };
    let may = |account: &&AccountRecord| own || caller.access.may_manage(&account.grants);
    let Some(account) = account.as_ref().filter(may) else {
        return revoked(false, "API token", id);
    };
    let entry = caller
        .entry("api_token.revoke", id, now_ms)
        .at(place(&account.grants))
        .before(format!("{:?} of {}", token.name, account.name));
    let change = Change::RevokeAccountToken(id);
    let changed = store.change(change, Some(&entry), now_ms).await?;
    revoked(changed.is_done(), "API token", id)
}

fn of(token: AccountToken, account: &AccountRecord, now_ms: u64) -> ApiToken {
    ApiToken {
        id: token.id,
        name: token.name,
        account: account.id,
        account_name: account.name.clone(),
        scope: token.scope,
        state: match token.expires_ms <= now_ms {
            true => "expired",
            false => "valid",
        }
        .to_owned(),
        created: rfc3339(token.created_ms),
        expires: rfc3339(token.expires_ms),
        last_used: token.used_ms.map(rfc3339),
    }
}
