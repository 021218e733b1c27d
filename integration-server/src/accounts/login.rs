//! A login, from its first word to the account that is proven.
//!
//! ```text
//!   attempt counted, or too early ─► password (as long for nobody's) ─► second factor
//!     ─► proven: failures forgotten          └─► wrong: it stays counted
//! ```
//!
//! What is told does not say which of the name, the password, the code or the account was
//! not right, but for the one thing that a person needs: that a code is asked for, and
//! that is told to who knows the password.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::lockout;
use super::name::AccountName;
use super::password::{self, PasswordError};
use super::totp;
use crate::store::{AccountRecord, Attempt, Store, StoreError};

/// What somebody shows.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Proof {
    /// The account's name.
    #[schema(max_length = 64)]
    pub name: String,
    /// Its password.
    #[schema(max_length = 1024)]
    pub password: String,
    /// What its authenticator shows now, where one is asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 6)]
    pub code: Option<String>,
    /// One of its recovery codes, instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(max_length = 64)]
    pub recovery_code: Option<String>,
}

/// Why nobody was proven.
#[derive(Debug, thiserror::Error)]
pub enum NotProven {
    /// Something is wrong.
    #[error("the name, the password or the code is not right, or the account is disabled")]
    Wrong(Option<Box<AccountRecord>>),
    /// The password is right, and a code is asked for.
    #[error("this account asks for the code of its authenticator, or a recovery code")]
    CodeNeeded,
    /// Too many failures.
    #[error("too many logins have failed; try again in {} s", seconds(*.0))]
    TooEarly(u64),
    /// The password cannot be looked at.
    #[error(transparent)]
    Password(#[from] PasswordError),
    /// The store failed.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Milliseconds in whole seconds, rounded up.
pub fn seconds(ms: u64) -> u64 {
    ms.div_ceil(1000)
}

/// Proves who somebody is.
///
/// # Errors
/// [`NotProven`].
pub async fn prove(
    store: &dyn Store,
    proof: Proof,
    source: std::net::IpAddr,
    now_ms: u64,
) -> Result<AccountRecord, NotProven> {
    prove_with(store, proof, source, true, now_ms).await
}

/// Looks at the password alone, of somebody who has a session already.
///
/// # Errors
/// [`NotProven`].
pub async fn prove_password(
    store: &dyn Store,
    name: &str,
    password: String,
    source: std::net::IpAddr,
    now_ms: u64,
) -> Result<AccountRecord, NotProven> {
    let proof = Proof {
        name: name.to_owned(),
        password,
        code: None,
        recovery_code: None,
    };
    prove_with(store, proof, source, false, now_ms).await
}

async fn prove_with(
    store: &dyn Store,
    proof: Proof,
    source: std::net::IpAddr,
    second_factor: bool,
    now_ms: u64,
) -> Result<AccountRecord, NotProven> {
    let source = lockout::source(source);
    let account = match proof.name.parse::<AccountName>() {
        Ok(name) => store.account_named(name.as_str()).await?,
        Err(_) => None,
    };
    let id = account.as_ref().map(|account| account.id);
    if let Attempt::TooEarly(wait_ms) = store.attempt(id, &source, now_ms).await? {
        return Err(NotProven::TooEarly(wait_ms));
    }
    let hash = account.as_ref().map(|account| account.password.clone());
    let matches = match password::matches(proof.password, hash).await {
        Ok(matches) => matches,
        Err(error) => {
            // It was not looked at.
            if let Some(id) = id {
                store.take_back(id, &source, false).await?;
            }
            return Err(error.into());
        }
    };
    let Some(account) = account.filter(|_| matches) else {
        return Err(match id {
            Some(id) => NotProven::Wrong(store.account(id).await?.map(Box::new)),
            None => NotProven::Wrong(None),
        });
    };
    let wrong = |account: AccountRecord| NotProven::Wrong(Some(Box::new(account)));
    if account.disabled_ms.is_some() {
        return Err(wrong(account));
    }
    if second_factor && account.totp_on_ms.is_some() {
        let good = match (&account.totp, proof.code, proof.recovery_code) {
            (Some(secret), Some(code), _) => match totp::step_of(secret, code.trim(), now_ms) {
                Some(step) => store.use_totp(account.id, step).await?,
                None => false,
            },
            (_, None, Some(code)) => {
                let hash = totp::recovery_hash(&code);
                store.use_recovery_code(account.id, &hash, now_ms).await?
            }
            _ => {
                store.take_back(account.id, &source, false).await?;
                return Err(NotProven::CodeNeeded);
            }
        };
        if !good {
            return Err(wrong(account));
        }
    }
    store.take_back(account.id, &source, true).await?;
    Ok(account)
}
