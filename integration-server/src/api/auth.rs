//! Who asks, and whether he may: before any handler runs.
//!
//! ```text
//!   route ─► access::routes (none: refused) ─┬─ Nobody ─────────────────────► handler
//!                                            └─ Bearer token, or cookie + csrf ─► Caller
//!                                                 ─► permission ─► confirmed lately? ─► handler
//! ```
//!
//! The machine's own token, `admin.token` in the state folder, may do everything: for
//! who is locked out, and for what runs on that machine. Its use is in the audit log.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::extract::{ConnectInfo, FromRequestParts, MatchedPath, Request, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Method, header};
use axum::middleware::Next;
use axum::response::Response;
use palisade_protocol::identity::{self, IdentityError};
use subtle::ConstantTimeEq as _;
use uuid::Uuid;

use super::Api;
use super::problem::ApiError;
use crate::access::routes::{self, Need};
use crate::access::{Access, Permission, Scope};
use crate::accounts::{login, sessions};
use crate::audit::{ADMIN_TOKEN, Actor, Entry, Via};
use crate::secret::{self, NoRandomness};
use crate::store::{AccountRecord, ApiToken, Change, Changed, SessionRecord, Store, StoreError};
use crate::time::now_ms;

/// The first token's name in the store, and in the audit log.
const ADMIN: &str = "admin";
/// Longest token that is looked up, in bytes.
const MAX_TOKEN_BYTES: usize = 256;
/// How often it is noted that the machine's own token is in use, in milliseconds.
const ADMIN_NOTED_MS: u64 = 3_600_000;

/// The first token cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum AdminTokenError {
    /// It cannot be written.
    #[error(transparent)]
    File(#[from] IdentityError),
    /// It cannot be stored.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It cannot be made.
    #[error(transparent)]
    Randomness(#[from] NoRandomness),
}

/// Who asks.
#[derive(Debug, Clone)]
pub struct Caller {
    /// For the audit log.
    pub actor: Actor,
    /// What he may do.
    pub access: Access,
    /// His account; none for the machine's own token.
    pub account: Option<Arc<AccountRecord>>,
    /// The session, and the token that goes with its changes.
    pub session: Option<(SessionRecord, String)>,
}

/// From where somebody asks.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub IpAddr);

impl Caller {
    /// Whether he may do something at a place.
    pub fn may(&self, permission: Permission, place: &Scope) -> bool {
        self.access.may(permission, place)
    }

    /// Refuses what he may not do.
    ///
    /// # Errors
    /// [`ApiError::Forbidden`], which says what is missing and where.
    pub fn require(&self, permission: Permission, place: &Scope) -> Result<(), ApiError> {
        if self.may(permission, place) {
            return Ok(());
        }
        Err(ApiError::Forbidden(format!(
            "{} may not {} at {place}; whoever is admin there can grant it",
            self.actor.name,
            permission.explain()
        )))
    }

    /// An entry about something that he does.
    pub fn entry(&self, action: &'static str, object: impl ToString, now_ms: u64) -> Entry {
        Entry::done(self.actor.clone(), action, object, now_ms)
    }

    /// His account and session.
    ///
    /// # Errors
    /// [`ApiError::Forbidden`]: he has none. The route's need is a session, so this is for
    /// who forgot it there.
    pub fn in_session(&self) -> Result<(&Arc<AccountRecord>, &SessionRecord, &str), ApiError> {
        match (&self.account, &self.session) {
            (Some(account), Some((session, csrf))) => Ok((account, session, csrf)),
            _ => Err(no_session()),
        }
    }
}

fn no_session() -> ApiError {
    ApiError::Forbidden(
        "this is about an account's own session, and a token has none; log in with `palisade login NAME`"
            .to_owned(),
    )
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let caller = parts.extensions.get::<Self>().cloned();
        caller.ok_or(ApiError::Unauthorized)
    }
}

impl<S: Sync> FromRequestParts<S> for Peer {
    type Rejection = ApiError;
    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let connection = parts.extensions.get::<ConnectInfo<SocketAddr>>();
        let address = connection.map(|ConnectInfo(peer)| peer.ip().to_canonical());
        address
            .map(Self)
            .ok_or_else(|| ApiError::Internal("a request without a peer".into()))
    }
}

/// Lets requests through whose caller may make them.
pub async fn require(
    State(api): State<Arc<Api>>,
    mut request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let path = request.extensions().get::<MatchedPath>();
    let path = path.map(MatchedPath::as_str).unwrap_or_default().to_owned();
    let Some(route) = routes::find(request.method().as_str(), &path) else {
        let known = routes::ROUTES.iter().any(|route| route.path == path);
        return Err(match known {
            true => ApiError::NoMethod(path),
            false => ApiError::Forbidden(format!("nobody may use {path}")),
        });
    };
    if route.need == Need::Nobody {
        return Ok(next.run(request).await);
    }
    let now_ms = now_ms();
    let connection = request.extensions().get::<ConnectInfo<SocketAddr>>();
    let peer = connection.map(|ConnectInfo(peer)| peer.ip().to_canonical());
    let caller = caller(&api, request.headers(), request.method(), peer, now_ms).await?;
    if route.need == Need::Session && caller.session.is_none() {
        return Err(no_session());
    }
    if !route.lets(&caller.access) {
        let (Need::Site(permission) | Need::Within(permission)) = route.need else {
            return Err(ApiError::Unauthorized);
        };
        let place = match route.need {
            Need::Site(_) => "at /",
            _ => "anywhere",
        };
        return Err(ApiError::Forbidden(format!(
            "{} may not {} {place}; whoever is admin there can grant it",
            caller.actor.name,
            permission.explain()
        )));
    }
    if route.personal && caller.actor.via == Via::ApiToken {
        return Err(ApiError::Forbidden(
            "an API token may not change accounts, whatever its account may do; log in with `palisade login NAME`"
                .to_owned(),
        ));
    }
    if let Some((session, _)) = &caller.session
        && route.dangerous
        && !session.times.is_fresh(now_ms)
    {
        return Err(ApiError::Unconfirmed);
    }
    if let Some(account) = caller.actor.account
        && *request.method() != Method::GET
        && *request.method() != Method::HEAD
    {
        let paced = api.paces.take(account, now_ms);
        paced.map_err(|wait_ms| ApiError::TooMany(login::seconds(wait_ms)))?;
    }
    request.extensions_mut().insert(caller);
    Ok(next.run(request).await)
}

async fn caller(
    api: &Api,
    headers: &HeaderMap,
    method: &Method,
    peer: Option<IpAddr>,
    now_ms: u64,
) -> Result<Caller, ApiError> {
    let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
    if headers.contains_key(header::AUTHORIZATION) {
        let token = text(header::AUTHORIZATION)
            .and_then(bearer)
            .filter(|token| token.len() <= MAX_TOKEN_BYTES)
            .ok_or(ApiError::Unauthorized)?;
        return by_token(api, token, peer, now_ms).await;
    }
    // With HTTP/2 a browser sends each cookie by itself; they are one list (RFC 9113).
    let cookies = headers.get_all(header::COOKIE).iter();
    let cookies: Result<Vec<&str>, _> = cookies.map(HeaderValue::to_str).collect();
    let cookies = cookies.map_err(|_| ApiError::Unauthorized)?.join("; ");
    let token = sessions::cookie(&cookies)
        .filter(|token| token.len() <= MAX_TOKEN_BYTES)
        .ok_or(ApiError::Unauthorized)?;
    let caller = by_session(api, token, peer, now_ms).await?;
    if !matches!(*method, Method::GET | Method::HEAD) {
        let right = caller.session.as_ref().map(|(_, csrf)| csrf.as_bytes());
        let given = headers.get(sessions::CSRF_HEADER);
        let given = given.map(|value| value.as_bytes()).unwrap_or_default();
        if !right.is_some_and(|right| right.ct_eq(given).into()) {
            return Err(ApiError::Csrf);
        }
    }
    Ok(caller)
}

async fn by_token(
    api: &Api,
    token: &str,
    peer: Option<IpAddr>,
    now_ms: u64,
) -> Result<Caller, ApiError> {
    let store = &api.fleet.store;
    let hash = secret::api_token_hash(token);
    let address = peer.map(|address| address.to_string());
    if let Some(own) = store.api_token(&hash).await? {
        let caller = Caller {
            actor: Actor {
                name: ADMIN_TOKEN.to_owned(),
                account: None,
                via: Via::AdminToken,
                credential: Some(own.id),
                address,
            },
            access: Access::everything(),
            account: None,
            session: None,
        };
        if let Err(error) = note_admin(api, &caller, now_ms).await {
            unnoted("the machine's own token", &error);
        }
        return Ok(caller);
    }
    let found = store.account_token(&hash).await?;
    let (token, account) = found.ok_or(ApiError::Unauthorized)?;
    let void = token.revoked_ms.is_some() || token.expires_ms <= now_ms;
    if void || account.disabled_ms.is_some() {
        return Err(ApiError::Unauthorized);
    }
    let noted_ms = token.used_ms.unwrap_or_default();
    if now_ms.saturating_sub(noted_ms) >= sessions::NOTED_MS
        && let Err(error) = store.saw_account_token(token.id, now_ms).await
    {
        unnoted("an API token", &error);
    }
    Ok(Caller {
        actor: Actor {
            name: account.name.clone(),
            account: Some(account.id),
            via: Via::ApiToken,
            credential: Some(token.id),
            address,
        },
        access: Access::of(account.grants.clone()).limited(token.scope),
        account: Some(Arc::new(account)),
        session: None,
    })
}

async fn by_session(
    api: &Api,
    token: &str,
    peer: Option<IpAddr>,
    now_ms: u64,
) -> Result<Caller, ApiError> {
    let store = &api.fleet.store;
    let found = store.session(&sessions::token_hash(token)).await?;
    let (session, account) = found.ok_or(ApiError::Unauthorized)?;
    if session.times.is_over(api.sessions, now_ms) {
        // Nobody answers for what ends by itself.
        let change = Change::EndSession(session.id);
        if let Err(error) = store.change(change, None, now_ms).await {
            unnoted("a session that is over", &error);
        }
        return Err(ApiError::Unauthorized);
    }
    if account.disabled_ms.is_some() {
        return Err(ApiError::Unauthorized);
    }
    if session.times.is_due(api.sessions, now_ms)
        && let Err(error) = store.saw_session(session.id, now_ms).await
    {
        unnoted("a session", &error);
    }
    Ok(Caller {
        actor: Actor {
            name: account.name.clone(),
            account: Some(account.id),
            via: Via::Session,
            credential: Some(session.id),
            address: peer.map(|address| address.to_string()),
        },
        access: Access::of(account.grants.clone()),
        account: Some(Arc::new(account)),
        session: Some((session, sessions::csrf(token))),
    })
}

/// A store that cannot be written, on a full disk perhaps, still lets people look: each
/// change needs its own entry, and fails by itself.
fn unnoted(what: &str, error: &StoreError) {
    tracing::warn!(%error, "the use of {what} could not be noted");
}

/// The machine's own token is in use: an entry now and then, beside one for each change.
async fn note_admin(api: &Api, caller: &Caller, now_ms: u64) -> Result<(), StoreError> {
    let noted_ms = api.admin_noted_ms.load(Ordering::Relaxed);
    if noted_ms != 0 && now_ms.saturating_sub(noted_ms) < ADMIN_NOTED_MS {
        return Ok(());
    }
    let entry = caller.entry("admin_token.use", ADMIN_TOKEN, now_ms);
    let store = &api.fleet.store;
    store.change(Change::Nothing, Some(&entry), now_ms).await?;
    api.admin_noted_ms.store(now_ms, Ordering::Relaxed);
    Ok(())
}

/// When the machine's own token was last noted.
pub type Noted = AtomicU64;

/// What an answer is made of when a change was not done.
///
/// # Errors
/// [`ApiError`], unless it was.
pub fn done(changed: Changed, missing: impl FnOnce() -> ApiError) -> Result<(), ApiError> {
    match changed {
        Changed::Done => Ok(()),
        Changed::Nothing => Err(missing()),
        Changed::Taken => Err(ApiError::Conflict(
            "another account has that name".to_owned(),
        )),
        Changed::Full => Err(ApiError::Conflict(
            "there are too many already; remove what is not used any more".to_owned(),
        )),
    }
}

fn bearer(value: &str) -> Option<&str> {
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// The first token's file.
pub fn admin_token_file(state: &Path) -> PathBuf {
    state.join("admin.token")
}

/// Makes the first token at first start; its text is written to a file of mode
/// 0600 and kept nowhere else.
///
/// # Errors
/// [`AdminTokenError`].
pub async fn ensure_admin_token(
    store: &dyn Store,
    state: &Path,
    now_ms: u64,
) -> Result<(), AdminTokenError> {
    if store.has_api_token(ADMIN).await? {
        return Ok(());
    }
    new_admin_token(store, state, now_ms).await
}

/// Makes a new first token; the one before is void.
///
/// # Errors
/// [`AdminTokenError`].
pub async fn new_admin_token(
    store: &dyn Store,
    state: &Path,
    now_ms: u64,
) -> Result<(), AdminTokenError> {
    let (text, token_sha256) = secret::api_token()?;
    // The file first: a token that is stored but written nowhere helps nobody.
    identity::write_atomic(
        &admin_token_file(state),
        format!("{text}\n").as_bytes(),
        0o600,
    )?;
    let id = Uuid::new_v4();
    let entry = Entry::done(Actor::local(), "admin_token.create", id, now_ms);
    let token = ApiToken {
        id,
        name: ADMIN.to_owned(),
        token_sha256,
        created_ms: now_ms,
    };
    let change = Change::NewApiToken(&token);
    store.change(change, Some(&entry), now_ms).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_bearer_tokens_are_read() {
        assert_eq!(bearer("Bearer pa1.x"), Some("pa1.x"));
        assert_eq!(bearer("bearer  pa1.x "), Some("pa1.x"));
        assert_eq!(bearer("Basic eA=="), None);
        assert_eq!(bearer("Bearer"), None);
    }
}
