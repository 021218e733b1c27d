//! The one-time setup token: it makes the first account, in place of a password that
//! everybody knows. Its text is in one file of mode 0600, in the state folder; it is void
//! once it was used. Whoever is root on the server's machine can have a new one.

use std::path::{Path, PathBuf};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use palisade_protocol::identity::{self, IdentityError};
use uuid::Uuid;

use crate::audit::{Actor, Entry};
use crate::secret::{self, Hash, NoRandomness};
use crate::store::{Change, Store, StoreError};

/// What a setup token's text begins with.
pub const PREFIX: &str = "ps1.";

/// A setup token cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum SetupTokenError {
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

/// The setup token's file.
pub fn file(state: &Path) -> PathBuf {
    state.join("setup.token")
}

/// What a setup token is found by.
pub fn hash(text: &str) -> Hash {
    palisade_protocol::trust::sha256(text.trim().as_bytes())
}

/// Makes a setup token when there is no account yet, and none was made. Gives its file.
///
/// # Errors
/// [`SetupTokenError`].
pub async fn ensure(
    store: &dyn Store,
    state: &Path,
    now_ms: u64,
) -> Result<Option<PathBuf>, SetupTokenError> {
    let kept = file(state);
    let open = store.has_setup_token(None).await?;
    if store.has_accounts().await? {
        if !open {
            // Of a token that was used at another server; gone already is as good.
            let _ = std::fs::remove_file(kept);
        }
        return Ok(None);
    }
    if open {
        if !kept.exists() {
            tracing::warn!(
                file = %kept.display(),
                "there is no account yet, and the setup token was written by another server or before a restore; palisade-server new-setup-token makes another one"
            );
            return Ok(None);
        }
        return Ok(Some(kept));
    }
    renew(store, state, now_ms).await.map(Some)
}

/// Makes a new setup token; those before are void. Gives its file.
///
/// # Errors
/// [`SetupTokenError`].
pub async fn renew(
    store: &dyn Store,
    state: &Path,
    now_ms: u64,
) -> Result<PathBuf, SetupTokenError> {
    let text = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(secret::random()?));
    let file = file(state);
    // The file first: a token that is stored but written nowhere helps nobody.
    identity::write_atomic(&file, format!("{text}\n").as_bytes(), 0o600)?;
    let id = Uuid::new_v4();
    let entry = Entry::done(Actor::local(), "setup_token.create", id, now_ms);
    store
        .change(
            Change::NewSetupToken(id, &hash(&text)),
            Some(&entry),
            now_ms,
        )
        .await?;
    Ok(file)
}
