//! `/api/v1/accounts`: who may use the server.
//!
//! Whoever changes an account must have all that it has, before and after; his own he
//! changes in `/api/v1/session`.

use axum::Json;
use axum::extract::Path;
use axum::extract::rejection::{JsonRejection, PathRejection};
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::State;
use super::auth::{Caller, done};
use super::page::Page;
use super::problem::{ApiError, Problem};
use super::session::new_account;
use crate::access::{Grant, Scope, grants};
use crate::accounts::password;
use crate::store::change::MAX_TENANT_ACCOUNTS;
use crate::store::{AccountRecord, Change};
use crate::time::{now_ms, rfc3339};

/// An account.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Account {
    /// Its id.
    pub id: Uuid,
    /// Its name.
    pub name: String,
    /// `enabled` or `disabled`.
    pub state: String,
    /// What it may do.
    pub grants: Vec<Grant>,
    /// Whether a second factor is asked for.
    pub totp: bool,
    /// When it was made (RFC 3339, UTC).
    pub created: String,
    /// When its password was set (RFC 3339, UTC).
    pub password_set: String,
    /// When it last logged in (RFC 3339, UTC).
    pub last_login: Option<String>,
}

/// An account to make.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewAccount {
    /// What it is called: lower-case letters, digits, and `.`, `-`, `_`, `@` within.
    #[schema(min_length = 1, max_length = 64)]
    pub name: String,
    /// Its first password: 12 characters at least.
    #[schema(min_length = 12, max_length = 1024)]
    pub password: String,
    /// What it may do.
    #[serde(default)]
    #[schema(max_items = 32)]
    pub grants: Vec<Grant>,
}

/// What to change of an account; one of both.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct AccountChange {
    /// Whether it is disabled. Its sessions and API tokens end with that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub disabled: Option<bool>,
    /// What it may do from now on, in place of what it might before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_items = 32)]
    pub grants: Option<Vec<Grant>>,
}

/// A password for somebody who lost his.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewPassword {
    /// 12 characters at least.
    #[schema(min_length = 12, max_length = 1024)]
    pub password: String,
}

/// Accounts, by name
#[utoipa::path(
    get,
    path = "/api/v1/accounts",
    operation_id = "listAccounts",
    tag = "accounts",
    responses(
        (status = 200, body = Page<Account>),
        (status = 401, body = Problem, content_type = "application/problem+json"),
        (status = 503, body = Problem, content_type = "application/problem+json"),
    ),
)]
pub async fn list(state: State, caller: Caller) -> Result<Json<Page<Account>>, ApiError> {
    let accounts = state.fleet.store.accounts().await?;
    let seen = accounts
        .into_iter()
        .filter(|account| caller.access.may_see(&account.grants));
    Ok(Json(Page::whole(seen.map(of).collect())))
}

/// Make an account
#[utoipa::path(
    post,
    path = "/api/v1/accounts",
    operation_id = "createAccount",
    tag = "accounts",
    request_body = NewAccount,
    responses(
        (status = 201, body = Account),
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
    new: Result<Json<NewAccount>, JsonRejection>,
) -> Result<(StatusCode, Json<Account>), ApiError> {
    let Json(new) = new?;
    let now_ms = now_ms();
    let given = checked(new.grants)?;
    may_manage(&caller, &given)?;
    let account = new_account(&new.name, new.password, given, now_ms).await?;
    let place_of_it = place(&account.grants);
    if place_of_it.of_tenant().is_some() {
        let accounts = state.fleet.store.accounts().await?;
        let there = accounts
            .iter()
            .filter(|other| place(&other.grants) == place_of_it);
        if there.count() >= MAX_TENANT_ACCOUNTS {
            return Err(ApiError::Conflict(format!(
                "there are {MAX_TENANT_ACCOUNTS} accounts at {place_of_it}; remove those that are not used any more (`palisade account remove NAME`)"
            )));
        }
    }
    let entry = caller
        .entry("account.create", &account.name, now_ms)
        .at(place(&account.grants))
        .after(text(&account.grants));
    let change = Change::AddAccount(&account);
    let changed = state
        .fleet
        .store
        .change(change, Some(&entry), now_ms)
        .await?;
    done(changed, || ApiError::Conflict("it was not made".to_owned()))?;
    Ok((StatusCode::CREATED, Json(of(account))))
}

/// Disable or enable an account, or change what it may do
#[utoipa::path(
    patch,
    path = "/api/v1/accounts/{id}",
    operation_id = "changeAccount",
    tag = "accounts",
    params(("id" = Uuid, Path, description = "The account's id")),
    request_body = AccountChange,
    responses(
        (status = 200, body = Account),
        (status = 400, body = Problem, content_type = "application/problem+json"),
        (status = 401, body = Problem, content_type = "application/problem+json"),
        (status = 404, body = Problem, content_type = "application/problem+json"),
        (status = 409, body = Problem, content_type = "application/problem+json"),
        (status = 413, body = Problem, content_type = "application/problem+json"),
        (status = 415, body = Problem, content_type = "application/problem+json"),
        (status = 422, body = Problem, content_type = "application/problem+json"),
        (status = 503, body = Problem, content_type = "application/problem+json"),
    ),
)]
pub async fn change(
    state: State,
    caller: Caller,
    id: Result<Path<Uuid>, PathRejection>,
    wanted: Result<Json<AccountChange>, JsonRejection>,
) -> Result<Json<Account>, ApiError> {
    let Path(id) = id?;
    let Json(wanted) = wanted?;
    let now_ms = now_ms();
    let account = managed(&state, &caller, id).await?;
    let entry = |action| {
        let entry = caller.entry(action, &account.name, now_ms);
        entry.at(place(&account.grants))
    };
    let store = &state.fleet.store;
    let changed = match (wanted.disabled, wanted.grants) {
        (Some(disabled), None) => {
            let action = match disabled {
                true => "account.disable",
                false => "account.enable",
            };
            let change = Change::SetDisabled(id, account.revision, disabled);
            store.change(change, Some(&entry(action)), now_ms).await?
        }
        (None, Some(given)) => {
            let given = checked(given)?;
            may_manage(&caller, &given)?;
            // Of somebody who comes from elsewhere, or goes there, the site's people read.
            let place = match place(&account.grants) == place(&given) {
                true => place(&given),
                false => Scope::site(),
            };
            let entry = entry("account.grants")
                .at(place)
                .before(text(&account.grants))
                .after(text(&given));
            let change = Change::SetGrants(id, account.revision, &given);
            store.change(change, Some(&entry), now_ms).await?
        }
        _ => {
            return Err(ApiError::Unprocessable(
                "give one of disabled and grants".to_owned(),
            ));
        }
    };
    done(changed, meanwhile)?;
    let now = store.account(id).await?;
    now.map(of).map(Json).ok_or_else(|| missing(id))
}

/// Remove an account that is disabled
///
/// Its name is free then; what it did stays in the audit log.
#[utoipa::path(
    delete,
    path = "/api/v1/accounts/{id}",
    operation_id = "removeAccount",
    tag = "accounts",
    params(("id" = Uuid, Path, description = "The account's id")),
    responses(
        (status = 204, description = "Removed"),
        (status = 400, body = Problem, content_type = "application/problem+json"),
        (status = 401, body = Problem, content_type = "application/problem+json"),
        (status = 404, body = Problem, content_type = "application/problem+json"),
        (status = 409, body = Problem, content_type = "application/problem+json"),
        (status = 503, body = Problem, content_type = "application/problem+json"),
    ),
)]
pub async fn remove(
    state: State,
    caller: Caller,
    id: Result<Path<Uuid>, PathRejection>,
) -> Result<StatusCode, ApiError> {
    let Path(id) = id?;
    let now_ms = now_ms();
    let account = managed(&state, &caller, id).await?;
    if account.disabled_ms.is_none() {
        return Err(ApiError::Conflict(format!(
            "{} is enabled; disable it first (`palisade account disable {}`)",
            account.name, account.name
        )));
    }
    let entry = caller
        .entry("account.remove", &account.name, now_ms)
        .at(place(&account.grants))
        .before(text(&account.grants));
    let change = Change::RemoveAccount(id, account.revision);
    let changed = state
        .fleet
        .store
        .change(change, Some(&entry), now_ms)
        .await?;
    done(changed, meanwhile)?;
    Ok(StatusCode::NO_CONTENT)
}

/// Set another account's password
///
/// Its sessions end. Its second factor stays.
#[utoipa::path(
    put,
    path = "/api/v1/accounts/{id}/password",
    operation_id = "setAccountPassword",
    tag = "accounts",
    params(("id" = Uuid, Path, description = "The account's id")),
    request_body = NewPassword,
    responses(
        (status = 204, description = "Set"),
        (status = 400, body = Problem, content_type = "application/problem+json"),
        (status = 401, body = Problem, content_type = "application/problem+json"),
        (status = 404, body = Problem, content_type = "application/problem+json"),
        (status = 409, body = Problem, content_type = "application/problem+json"),
        (status = 413, body = Problem, content_type = "application/problem+json"),
        (status = 415, body = Problem, content_type = "application/problem+json"),
        (status = 422, body = Problem, content_type = "application/problem+json"),
        (status = 503, body = Problem, content_type = "application/problem+json"),
    ),
)]
pub async fn set_password(
    state: State,
    caller: Caller,
    id: Result<Path<Uuid>, PathRejection>,
    new: Result<Json<NewPassword>, JsonRejection>,
) -> Result<StatusCode, ApiError> {
    let Path(id) = id?;
    let Json(new) = new?;
    let now_ms = now_ms();
    let account = managed(&state, &caller, id).await?;
    password::checked(&account.name, &new.password)?;
    let hash = password::hash(new.password).await?;
    let entry = caller
        .entry("account.password", &account.name, now_ms)
        .at(place(&account.grants));
    let change = Change::SetPassword(id, account.revision, &hash, None);
    let changed = state
        .fleet
        .store
        .change(change, Some(&entry), now_ms)
        .await?;
    done(changed, meanwhile)?;
    Ok(StatusCode::NO_CONTENT)
}

/// Take another account's second factor away, for who lost it
#[utoipa::path(
    delete,
    path = "/api/v1/accounts/{id}/totp",
    operation_id = "removeAccountTotp",
    tag = "accounts",
    params(("id" = Uuid, Path, description = "The account's id")),
    responses(
        (status = 204, description = "Removed"),
        (status = 400, body = Problem, content_type = "application/problem+json"),
        (status = 401, body = Problem, content_type = "application/problem+json"),
        (status = 404, body = Problem, content_type = "application/problem+json"),
        (status = 409, body = Problem, content_type = "application/problem+json"),
        (status = 503, body = Problem, content_type = "application/problem+json"),
    ),
)]
pub async fn remove_totp(
    state: State,
    caller: Caller,
    id: Result<Path<Uuid>, PathRejection>,
) -> Result<StatusCode, ApiError> {
    let Path(id) = id?;
    let now_ms = now_ms();
    let account = managed(&state, &caller, id).await?;
    let entry = caller
        .entry("account.totp.off", &account.name, now_ms)
        .at(place(&account.grants));
    let change = Change::RemoveTotp(id, account.revision);
    let changed = state
        .fleet
        .store
        .change(change, Some(&entry), now_ms)
        .await?;
    done(changed, meanwhile)?;
    Ok(StatusCode::NO_CONTENT)
}

/// An account that the caller may change; one that he may not even see does not exist.
async fn managed(state: &State, caller: &Caller, id: Uuid) -> Result<AccountRecord, ApiError> {
    let found = state.fleet.store.account(id).await?;
    let account = found
        .filter(|account| caller.access.may_see(&account.grants))
        .ok_or_else(|| missing(id))?;
    if caller.actor.account == Some(id) {
        return Err(ApiError::Conflict(
            "this is your own account; have another administrator change it, or change its password and second factor by your session"
                .to_owned(),
        ));
    }
    may_manage(caller, &account.grants)?;
    Ok(account)
}

fn may_manage(caller: &Caller, grants: &[Grant]) -> Result<(), ApiError> {
    if caller.access.may_manage(grants) {
        return Ok(());
    }
    Err(ApiError::Forbidden(format!(
        "{} may not change accounts with {}: nobody gives or takes what he does not have himself",
        caller.actor.name,
        text(grants)
    )))
}

fn checked(given: Vec<Grant>) -> Result<Vec<Grant>, ApiError> {
    grants::checked(given).map_err(|error| ApiError::Unprocessable(error.to_string()))
}

fn missing(id: Uuid) -> ApiError {
    ApiError::NotFound {
        kind: "account",
        id: id.to_string(),
    }
}

fn meanwhile() -> ApiError {
    ApiError::Conflict(
        "it is so already, or the account was changed meanwhile; look again".to_owned(),
    )
}

/// Where an account belongs: to the tenant that all of its grants are in.
pub fn place(grants: &[Grant]) -> Scope {
    let mut tenants = grants.iter().map(|grant| grant.path.of_tenant());
    match tenants.next() {
        Some(Some(first)) if tenants.all(|other| other == Some(first)) => {
            Scope::tenant(first.clone())
        }
        _ => Scope::site(),
    }
}

/// Grants on one line.
fn text(grants: &[Grant]) -> String {
    if grants.is_empty() {
        return "no grants".to_owned();
    }
    let one = |grant: &Grant| format!("{} at {}", grant.role.as_str(), grant.path);
    grants.iter().map(one).collect::<Vec<_>>().join(", ")
}

fn of(account: AccountRecord) -> Account {
    Account {
        id: account.id,
        name: account.name,
        state: match account.disabled_ms {
            None => "enabled",
            Some(_) => "disabled",
        }
        .to_owned(),
        grants: account.grants,
        totp: account.totp_on_ms.is_some(),
        created: rfc3339(account.created_ms),
        password_set: rfc3339(account.password_ms),
        last_login: account.login_ms.map(rfc3339),
    }
}
