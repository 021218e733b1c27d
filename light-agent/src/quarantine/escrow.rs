//! The quarantine's key at the Integration Server, from which a guest that lost its own
//! gets it back.
//!
//! ```text
//!  connected ─┬─ has a key ─► kept there, once for each key and start
//!             └─ has none ──► asked for ─► taken, if there is still none
//! ```
//!
//! The server keeps a key for the agent, and gives it to an agent of the same tenant on
//! the same machine that enrolled anew; never to another tenant.

use std::io;
use std::sync::{Mutex, PoisonError};

use palisade_daemon::control::{ControlError, Session};
use palisade_protocol::control::{FromServer, QuarantineKey, ToServer};

use super::key::Key;
use super::vault::Vault;

/// What is kept there as far as this process knows.
#[derive(Debug)]
pub struct Escrow {
    vault: Vault,
    kept: Mutex<Option<Key>>,
}

impl Escrow {
    /// For this quarantine.
    pub fn new(vault: &Vault) -> Self {
        Self {
            vault: vault.clone(),
            kept: Mutex::default(),
        }
    }

    /// Has the server keep the key, or gets it from there.
    ///
    /// # Errors
    /// The session's. What the server refuses, and what the disk refuses, is logged.
    pub async fn settle(&self, session: &Session) -> Result<(), ControlError> {
        let vault = self.vault.clone();
        let done = match blocking(move || vault.key()).await {
            Ok(Some(key)) => self.keep(session, key).await,
            Ok(None) => self.fetch(session).await,
            Err(error) => {
                tracing::error!(%error, "the quarantine's key cannot be read");
                Ok(())
            }
        };
        match done {
            Err(ControlError::Denied(denied)) => {
                tracing::warn!(reason = %denied.message, "the Integration Server does not take or give the quarantine's key now");
                Ok(())
            }
            other => other,
        }
    }

    async fn keep(&self, session: &Session, key: Key) -> Result<(), ControlError> {
        if self.kept().as_ref() == Some(&key) {
            return Ok(());
        }
        let message = ToServer::KeepQuarantineKey(QuarantineKey(key.0));
        session.request(&message).await?;
        tracing::info!("the Integration Server keeps the quarantine's key");
        *self.kept() = Some(key);
        Ok(())
    }

    async fn fetch(&self, session: &Session) -> Result<(), ControlError> {
        let answer = session.request(&ToServer::GetQuarantineKey).await?;
        let FromServer::QuarantineKey(Some(key)) = answer else {
            return Ok(());
        };
        let vault = self.vault.clone();
        match blocking(move || vault.adopt(&Key(key.0))).await {
            Ok(true) => tracing::warn!("got the quarantine's key back from the Integration Server"),
            // A new one was made meanwhile; it is kept the next time.
            Ok(false) => {}
            Err(error) => {
                tracing::error!(%error, "the quarantine's key is back, and cannot be kept");
            }
        }
        Ok(())
    }

    fn kept(&self) -> std::sync::MutexGuard<'_, Option<Key>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => Err(io::Error::other(error)),
    }
}
