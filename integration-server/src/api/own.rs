//! `/api/v1/session/password` and `/api/v1/session/totp`: an account's own secrets.

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::State;
use super::accounts::place;
use super::auth::{Caller, Peer, done};
use super::problem::{ApiError, Problem};
use crate::accounts::login::{self, Occasion, Proof};
use crate::accounts::{password, totp};
use crate::secret::Hash;
use crate::store::Change;
use crate::time::now_ms;

/// Another password.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PasswordChange {
    /// The one before.
    #[schema(max_length = 1024)]
    pub old: String,
    /// The new one: 12 characters at least.
    #[schema(min_length = 12, max_length = 1024)]
    pub new: String,
}

/// A second factor's secret: the only time that it is shown.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub struct TotpSecret {
    /// To type into an authenticator (base32).
    pub secret: String,
    /// The same as an authenticator reads it from a picture.
    pub uri: String,
}

/// A code that proves that the authenticator has the secret.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct TotpCode {
    /// What it shows now.
    #[schema(max_length = 6)]
    pub code: String,
}

/// Recovery codes: the only time that they are shown. Each counts once.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub struct RecoveryCodes {
    /// The codes.
    pub recovery_codes: Vec<String>,
}

fn meanwhile() -> ApiError {
    ApiError::Conflict(
        "the account was changed meanwhile, or is not in a state for that; look at it and try again"
            .to_owned(),
    )
}

/// Change the own password
///
/// All other sessions of the account end.
#[utoipa::path(
    put,
    path = "/api/v1/session/password",
    operation_id = "changePassword",
    tag = "session",
    request_body = PasswordChange,
    responses(
        (status = 204, description = "Changed"),
        (status = 400, body = Problem, content_type = "application/problem+json"),
        (status = 401, body = Problem, content_type = "application/problem+json"),
        (status = 409, body = Problem, content_type = "application/problem+json"),
        (status = 413, body = Problem, content_type = "application/problem+json"),
        (status = 415, body = Problem, content_type = "application/problem+json"),
        (status = 422, body = Problem, content_type = "application/problem+json"),
        (status = 429, body = Problem, content_type = "application/problem+json"),
        (status = 503, body = Problem, content_type = "application/problem+json"),
    ),
)]
pub async fn change_password(
    state: State,
    Peer(peer): Peer,
    caller: Caller,
    new: Result<Json<PasswordChange>, JsonRejection>,
) -> Result<StatusCode, ApiError> {
    let Json(PasswordChange { old, new }) = new?;
    let (account, session, _) = caller.in_session()?;
    let now_ms = now_ms();
    let store = &state.fleet.store;
    password::checked(&account.name, &new)?;
    let entry = caller
        .entry("account.password", &account.name, now_ms)
        .at(place(&account.grants));
    let proof = Proof {
        name: account.name.clone(),
        password: old,
        code: None,
        recovery_code: None,
    };
    let occasion = Occasion::Password(session.id);
    let proven = login::prove(store.as_ref(), proof, occasion, peer, now_ms).await;
    let account = match proven {
        Ok((account, _)) => account,
        Err(error) => {
            if let login::NotProven::Wrong(_) = error {
                let entry = entry.refused("the password before is wrong");
                store.change(Change::Nothing, Some(&entry), now_ms).await?;
            }
            return Err(error.into());
        }
    };
    let hash = password::hash(new).await?;
    let change = Change::SetPassword(account.id, account.revision, &hash, Some(session.id));
    done(store.change(change, Some(&entry), now_ms).await?, meanwhile)?;
    Ok(StatusCode::NO_CONTENT)
}

/// Begin with a second factor
///
/// It is asked for once a code of it was shown with `PUT`.
#[utoipa::path(
    post,
    path = "/api/v1/session/totp",
    operation_id = "beginTotp",
    tag = "session",
    responses(
        (status = 201, body = TotpSecret),
        (status = 401, body = Problem, content_type = "application/problem+json"),
        (status = 409, body = Problem, content_type = "application/problem+json"),
        (status = 503, body = Problem, content_type = "application/problem+json"),
    ),
)]
pub async fn begin_totp(
    state: State,
    caller: Caller,
) -> Result<(StatusCode, Json<TotpSecret>), ApiError> {
    let (account, ..) = caller.in_session()?;
    let now_ms = now_ms();
    let secret = totp::secret().map_err(|error| ApiError::Internal(error.into()))?;
    let entry = caller
        .entry("account.totp.begin", &account.name, now_ms)
        .at(place(&account.grants));
    let change = Change::BeginTotp(account.id, account.revision, &secret);
    let store = &state.fleet.store;
    done(store.change(change, Some(&entry), now_ms).await?, meanwhile)?;
    let deployment = state.fleet.authority.deployment().as_str();
    let made = TotpSecret {
        secret: totp::base32(&secret),
        uri: totp::uri(deployment, &account.name, &secret),
    };
    Ok((StatusCode::CREATED, Json(made)))
}

/// Have the second factor asked for from now on
#[utoipa::path(
    put,
    path = "/api/v1/session/totp",
    operation_id = "confirmTotp",
    tag = "session",
    request_body = TotpCode,
    responses(
        (status = 200, body = RecoveryCodes),
        (status = 400, body = Problem, content_type = "application/problem+json"),
        (status = 401, body = Problem, content_type = "application/problem+json"),
        (status = 409, body = Problem, content_type = "application/problem+json"),
        (status = 413, body = Problem, content_type = "application/problem+json"),
        (status = 415, body = Problem, content_type = "application/problem+json"),
        (status = 422, body = Problem, content_type = "application/problem+json"),
        (status = 503, body = Problem, content_type = "application/problem+json"),
    ),
)]
pub async fn confirm_totp(
    state: State,
    caller: Caller,
    shown: Result<Json<TotpCode>, JsonRejection>,
) -> Result<Json<RecoveryCodes>, ApiError> {
    let Json(shown) = shown?;
    let (account, ..) = caller.in_session()?;
    let now_ms = now_ms();
    let secret = account.totp.as_deref().ok_or_else(meanwhile)?;
    let step = totp::step_of(secret, shown.code.trim(), now_ms).ok_or_else(|| {
        ApiError::Conflict(
            "the code is not what the authenticator should show now; look at its clock and the server's"
                .to_owned(),
        )
    })?;
    let codes = totp::recovery_codes().map_err(|error| ApiError::Internal(error.into()))?;
    let hashes: Vec<Hash> = codes.iter().map(|(_, hash)| *hash).collect();
    let entry = caller
        .entry("account.totp.on", &account.name, now_ms)
        .at(place(&account.grants));
    let change = Change::ConfirmTotp(account.id, account.revision, step, &hashes);
    let store = &state.fleet.store;
    done(store.change(change, Some(&entry), now_ms).await?, meanwhile)?;
    Ok(Json(RecoveryCodes {
        recovery_codes: codes.into_iter().map(|(text, _)| text).collect(),
    }))
}

/// Ask for no second factor any more
#[utoipa::path(
    delete,
    path = "/api/v1/session/totp",
    operation_id = "removeTotp",
    tag = "session",
    responses(
        (status = 204, description = "Removed"),
        (status = 401, body = Problem, content_type = "application/problem+json"),
        (status = 409, body = Problem, content_type = "application/problem+json"),
        (status = 503, body = Problem, content_type = "application/problem+json"),
    ),
)]
pub async fn remove_totp(state: State, caller: Caller) -> Result<StatusCode, ApiError> {
    let (account, ..) = caller.in_session()?;
    let now_ms = now_ms();
    let entry = caller
        .entry("account.totp.off", &account.name, now_ms)
        .at(place(&account.grants));
    let change = Change::RemoveTotp(account.id, account.revision);
    let store = &state.fleet.store;
    done(store.change(change, Some(&entry), now_ms).await?, meanwhile)?;
    Ok(StatusCode::NO_CONTENT)
}
