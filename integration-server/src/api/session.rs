//! `/api/v1/setup` and `/api/v1/session`: becoming somebody, and being it.

use std::sync::Arc;

use axum::Json;
use axum::extract::rejection::JsonRejection;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::State;
use super::accounts::place;
use super::auth::{Caller, Peer, done};
use super::problem::{ApiError, Problem};
use crate::access::{Grant, Role, Scope};
use crate::accounts::gate::Gate;
use crate::accounts::login::{self, NotProven, Occasion, Proof};
use crate::accounts::name::AccountName;
use crate::accounts::sessions::{self, Times};
use crate::accounts::{password, setup};
use crate::audit::{Actor, Entry, Via};
use crate::store::{AccountRecord, Change, Changed, SessionRecord};
use crate::time::{now_ms, rfc3339};

/// Entries of refused logins that wait to be written.
const MAX_REFUSED_WAITING: usize = 256;

/// The first account.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Setup {
    /// The text in `setup.token`, in the server's state folder.
    #[schema(max_length = 64)]
    pub token: String,
    /// What the account is called.
    #[schema(max_length = 64)]
    pub name: String,
    /// Its password: 12 characters at least.
    #[schema(min_length = 12, max_length = 1024)]
    pub password: String,
}

/// The password, shown again.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Confirmation {
    /// The password.
    #[schema(max_length = 1024)]
    pub password: String,
    /// What the authenticator shows now, where one is asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 6)]
    pub code: Option<String>,
    /// A recovery code instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 64)]
    pub recovery_code: Option<String>,
}

/// Who somebody is.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Session {
    /// The account's name, or `admin.token`.
    pub name: String,
    /// The account; absent for the machine's own token.
    pub account: Option<Uuid>,
    /// How this was proven.
    pub via: Via,
    /// What the account may do.
    pub grants: Vec<Grant>,
    /// Whether a second factor is asked for.
    pub totp: bool,
    /// What goes with every change that a session makes, in the header `x-palisade-csrf`.
    pub csrf: Option<String>,
    /// When the session ends if it is not used (RFC 3339, UTC).
    pub ends: Option<String>,
    /// Until when dangerous things may be done without another confirmation (RFC 3339, UTC).
    pub confirmed_until: Option<String>,
}

/// Make the first account
///
/// With the one-time token that the server wrote to `setup.token` in its state folder; it
/// is void afterwards. The account is admin of the site.
#[utoipa::path(
    post,
    path = "/api/v1/setup",
    operation_id = "setUp",
    tag = "session",
    request_body = Setup,
    responses(
        (status = 204, description = "The account is there"),
        (status = 400, body = Problem, content_type = "application/problem+json"),
        (status = 401, body = Problem, content_type = "application/problem+json"),
        (status = 409, body = Problem, content_type = "application/problem+json"),
        (status = 413, body = Problem, content_type = "application/problem+json"),
        (status = 415, body = Problem, content_type = "application/problem+json"),
        (status = 422, body = Problem, content_type = "application/problem+json"),
        (status = 503, body = Problem, content_type = "application/problem+json"),
    ),
)]
pub async fn set_up(
    state: State,
    Peer(peer): Peer,
    new: Result<Json<Setup>, JsonRejection>,
) -> Result<StatusCode, ApiError> {
    let Json(new) = new?;
    let now_ms = now_ms();
    let store = &state.fleet.store;
    let account = new_account(&new.name, new.password, vec![], now_ms);
    // A token that is none costs no hash.
    let refused = || {
        ApiError::LoginRefused("the setup token is not right, or was used; palisade-server new-setup-token makes another one".to_owned())
    };
    let hash = setup::hash(&new.token);
    if !store.has_setup_token(Some(&hash)).await? {
        return Err(refused());
    }
    let mut account = account.await?;
    account.grants.push(Grant {
        role: Role::Admin,
        path: Scope::site(),
    });
    let actor = Actor {
        name: account.name.clone(),
        account: Some(account.id),
        via: Via::SetupToken,
        credential: None,
        address: Some(peer.to_string()),
    };
    let entry = Entry::done(actor, "account.create", &account.name, now_ms).after("admin at /");
    let change = Change::Setup(&hash, &account);
    done(store.change(change, Some(&entry), now_ms).await?, refused)?;
    // It is void; gone already is as good as removed.
    let _ = std::fs::remove_file(setup::file(&state.state));
    Ok(StatusCode::NO_CONTENT)
}

/// An account with a name and a password that may be used.
///
/// # Errors
/// [`ApiError`]: what is wrong with either.
pub async fn new_account(
    name: &str,
    password: String,
    grants: Vec<Grant>,
    now_ms: u64,
) -> Result<AccountRecord, ApiError> {
    let bad = |error: &dyn std::fmt::Display| ApiError::Unprocessable(error.to_string());
    let name: AccountName = name.parse().map_err(|error| bad(&error))?;
    password::checked(name.as_str(), &password)?;
    Ok(AccountRecord {
        id: Uuid::new_v4(),
        name: name.as_str().to_owned(),
        password: password::hash(password).await?,
        grants,
        totp: None,
        totp_on_ms: None,
        revision: 0,
        created_ms: now_ms,
        password_ms: now_ms,
        login_ms: None,
        disabled_ms: None,
    })
}

/// Log in
///
/// The session is in a cookie. Its changes carry `csrf` in the header `x-palisade-csrf`.
#[utoipa::path(
    post,
    path = "/api/v1/session",
    operation_id = "logIn",
    tag = "session",
    request_body = Proof,
    responses(
        (status = 201, body = Session),
        (status = 400, body = Problem, content_type = "application/problem+json"),
        (status = 401, body = Problem, content_type = "application/problem+json"),
        (status = 413, body = Problem, content_type = "application/problem+json"),
        (status = 415, body = Problem, content_type = "application/problem+json"),
        (status = 422, body = Problem, content_type = "application/problem+json"),
        (status = 429, body = Problem, content_type = "application/problem+json"),
        (status = 503, body = Problem, content_type = "application/problem+json"),
    ),
)]
pub async fn log_in(
    state: State,
    Peer(peer): Peer,
    proof: Result<Json<Proof>, JsonRejection>,
) -> Result<(StatusCode, HeaderMap, Json<Session>), ApiError> {
    let Json(proof) = proof?;
    let now_ms = now_ms();
    let store = &state.fleet.store;
    let actor = |account: &AccountRecord, credential| Actor {
        name: account.name.clone(),
        account: Some(account.id),
        via: Via::Login,
        credential,
        address: Some(peer.to_string()),
    };
    let proven = login::prove(store.as_ref(), proof, Occasion::Login, peer, now_ms).await;
    let (account, by) = match proven {
        Ok(proven) => proven,
        Err(error) => {
            // How many there can be is the lock-out's matter; of names that are nobody's,
            // the log says nothing but here.
            let refused = |account: &AccountRecord, why: &str| {
                let actor = actor(account, None);
                let entry = Entry::done(actor, "session.create", &account.name, now_ms);
                note_refused(
                    &state,
                    entry.at(place(&account.grants)).refused(why),
                    now_ms,
                );
            };
            match &error {
                NotProven::Wrong(Some(account)) => refused(
                    account,
                    "the password or the code is wrong, or the account is disabled",
                ),
                NotProven::CodeNeeded(account) => {
                    refused(account, "the password is right, and no code was shown");
                }
                NotProven::Wrong(None) => {
                    tracing::warn!(from = %peer, "a login of an unknown name was refused");
                }
                _ => {}
            }
            return Err(error.into());
        }
    };
    let (token, token_sha256) =
        sessions::token().map_err(|error| ApiError::Internal(error.into()))?;
    let session = SessionRecord {
        id: Uuid::new_v4(),
        account: account.id,
        token_sha256,
        address: peer.to_string(),
        times: Times {
            created_ms: now_ms,
            seen_ms: now_ms,
            confirmed_ms: now_ms,
        },
    };
    let entry = Entry::done(
        actor(&account, Some(session.id)),
        "session.create",
        &account.name,
        now_ms,
    )
    .at(place(&account.grants))
    .after(by.as_str());
    let change = Change::AddSession(&session, account.revision);
    done(store.change(change, Some(&entry), now_ms).await?, || {
        ApiError::Conflict("the account was changed just now; log in again".to_owned())
    })?;
    let shown = shown(&state, &account, &session, &sessions::csrf(&token));
    Ok((StatusCode::CREATED, cookie(Some(&token))?, Json(shown)))
}

/// Writes the entry beside the answer: how long that takes would say that there is such an
/// account. Whatever cannot wait for its turn is in the server's own log alone.
fn note_refused(state: &State, entry: Entry, now_ms: u64) {
    static TURNS: Gate = Gate::new(1, MAX_REFUSED_WAITING);
    let store = Arc::clone(&state.fleet.store);
    tokio::spawn(async move {
        let turn = TURNS.enter().await;
        let done = match &turn {
            Some(_) => store.change(Change::Nothing, Some(&entry), now_ms).await,
            None => Ok(Changed::Full),
        };
        if !matches!(done, Ok(Changed::Done)) {
            tracing::error!(
                object = %entry.body.object.escape_debug(),
                from = entry.body.actor.address.as_deref().unwrap_or_default(),
                error = ?done.err(),
                "a refused login is not in the audit log"
            );
        }
    });
}

fn cookie(token: Option<&str>) -> Result<HeaderMap, ApiError> {
    let value = HeaderValue::try_from(sessions::set_cookie(token))
        .map_err(|error| ApiError::Internal(error.into()))?;
    Ok([(header::SET_COOKIE, value)].into_iter().collect())
}

fn shown(state: &State, account: &AccountRecord, session: &SessionRecord, csrf: &str) -> Session {
    let fresh_until = session
        .times
        .confirmed_ms
        .saturating_add(sessions::FRESH_MS);
    Session {
        name: account.name.clone(),
        account: Some(account.id),
        via: Via::Session,
        grants: account.grants.clone(),
        totp: account.totp_on_ms.is_some(),
        csrf: Some(csrf.to_owned()),
        ends: Some(rfc3339(session.times.ends_ms(state.sessions))),
        confirmed_until: Some(rfc3339(fresh_until)),
    }
}

/// Who the caller is
#[utoipa::path(
    get,
    path = "/api/v1/session",
    operation_id = "getSession",
    tag = "session",
    responses(
        (status = 200, body = Session),
        (status = 401, body = Problem, content_type = "application/problem+json"),
        (status = 503, body = Problem, content_type = "application/problem+json"),
    ),
)]
pub async fn get(state: State, caller: Caller) -> Result<Json<Session>, ApiError> {
    if let (Some(account), Some((session, csrf))) = (&caller.account, &caller.session) {
        return Ok(Json(shown(&state, account, session, csrf)));
    }
    let account = caller.account.as_deref();
    Ok(Json(Session {
        name: caller.actor.name.clone(),
        account: account.map(|account| account.id),
        via: caller.actor.via,
        grants: account
            .map(|account| account.grants.clone())
            .unwrap_or_default(),
        totp: account.is_some_and(|account| account.totp_on_ms.is_some()),
        csrf: None,
        ends: None,
        confirmed_until: None,
    }))
}

/// Log out
#[utoipa::path(
    delete,
    path = "/api/v1/session",
    operation_id = "logOut",
    tag = "session",
    responses(
        (status = 204, description = "The session has ended"),
        (status = 401, body = Problem, content_type = "application/problem+json"),
        (status = 503, body = Problem, content_type = "application/problem+json"),
    ),
)]
pub async fn log_out(state: State, caller: Caller) -> Result<(StatusCode, HeaderMap), ApiError> {
    let (account, session, _) = caller.in_session()?;
    let now_ms = now_ms();
    let entry = caller
        .entry("session.end", &account.name, now_ms)
        .at(place(&account.grants));
    let change = Change::EndSession(session.id);
    state
        .fleet
        .store
        .change(change, Some(&entry), now_ms)
        .await?;
    Ok((StatusCode::NO_CONTENT, cookie(None)?))
}

/// Show the password again
///
/// For five minutes, dangerous things may be done then.
#[utoipa::path(
    post,
    path = "/api/v1/session/confirmation",
    operation_id = "confirmSession",
    tag = "session",
    request_body = Confirmation,
    responses(
        (status = 204, description = "Confirmed"),
        (status = 400, body = Problem, content_type = "application/problem+json"),
        (status = 401, body = Problem, content_type = "application/problem+json"),
        (status = 413, body = Problem, content_type = "application/problem+json"),
        (status = 415, body = Problem, content_type = "application/problem+json"),
        (status = 422, body = Problem, content_type = "application/problem+json"),
        (status = 429, body = Problem, content_type = "application/problem+json"),
        (status = 503, body = Problem, content_type = "application/problem+json"),
    ),
)]
pub async fn confirm(
    state: State,
    Peer(peer): Peer,
    caller: Caller,
    shown: Result<Json<Confirmation>, JsonRejection>,
) -> Result<StatusCode, ApiError> {
    let Json(shown) = shown?;
    let (account, session, _) = caller.in_session()?;
    let now_ms = now_ms();
    let store = &state.fleet.store;
    let proof = Proof {
        name: account.name.clone(),
        password: shown.password,
        code: shown.code,
        recovery_code: shown.recovery_code,
    };
    let entry = caller
        .entry("session.confirm", &account.name, now_ms)
        .at(place(&account.grants));
    let occasion = Occasion::Confirm(session.id);
    if let Err(error) = login::prove(store.as_ref(), proof, occasion, peer, now_ms).await {
        if let NotProven::Wrong(_) = error {
            let entry = entry.refused("the password or the code is wrong");
            store.change(Change::Nothing, Some(&entry), now_ms).await?;
        }
        return Err(error.into());
    }
    let change = Change::ConfirmSession(session.id);
    let changed = store.change(change, Some(&entry), now_ms).await?;
    done(changed, || ApiError::Unauthorized)?;
    Ok(StatusCode::NO_CONTENT)
}
