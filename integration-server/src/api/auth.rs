//! Bearer tokens, and the first one: `admin.token` in the state folder.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header;
use axum::middleware::Next;
use axum::response::Response;
use palisade_protocol::identity::{self, IdentityError};
use uuid::Uuid;

use super::Api;
use super::problem::ApiError;
use crate::secret::{self, NoRandomness};
use crate::store::{ApiToken, Store, StoreError};

/// The first token's name in the store.
const ADMIN: &str = "admin";
/// Longest token that is looked up, in bytes.
const MAX_TOKEN_BYTES: usize = 256;

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

/// Lets requests with a valid token through.
pub async fn require(
    State(api): State<Arc<Api>>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let token = request
        .headers()
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .and_then(bearer)
        .filter(|token| token.len() <= MAX_TOKEN_BYTES)
        .ok_or(ApiError::Unauthorized)?;
    let hash = secret::api_token_hash(token);
    match api.fleet.store.api_token(&hash).await? {
        Some(_) => Ok(next.run(request).await),
        None => Err(ApiError::Unauthorized),
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
    store.revoke_api_tokens(ADMIN, now_ms).await?;
    let token = ApiToken {
        id: Uuid::new_v4(),
        name: ADMIN.to_owned(),
        token_sha256,
        created_ms: now_ms,
    };
    store.add_api_token(&token).await?;
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
