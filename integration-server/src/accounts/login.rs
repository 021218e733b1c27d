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
use uuid::Uuid;

use super::gate::Gate;
use super::lockout::{self, Counter};
use super::name::AccountName;
use super::password::{self, PasswordError};
use super::totp;
use crate::store::{AccountRecord, Attempt, Store, StoreError};

/// Logins that ask the store at a time.
const AT_ONCE: usize = 4;
/// Logins that wait for that.
const MAX_WAITING: usize = 64;

static LOGINS: Gate = Gate::new(AT_ONCE, MAX_WAITING);

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

/// By what somebody proved who he is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// The password.
    Password,
    /// And a code of the authenticator.
    Code,
    /// And a recovery code.
    RecoveryCode,
}

impl By {
    /// For the audit log.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Password => "by password",
            Self::Code => "by password and code",
            Self::RecoveryCode => "by password and recovery code",
        }
    }
}

/// Why nobody was proven.
#[derive(Debug, thiserror::Error)]
pub enum NotProven {
    /// Something is wrong.
    #[error("the name, the password or the code is not right, or the account is disabled")]
    Wrong(Option<Box<AccountRecord>>),
    /// The password is right, and a code is asked for.
    #[error("this account asks for the code of its authenticator, or a recovery code")]
    CodeNeeded(Box<AccountRecord>),
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

/// What is looked at for a proof, and what its failures are counted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Occasion {
    /// To log in.
    Login,
    /// In a session, by everything that a login shows.
    Confirm(Uuid),
    /// In a session that was confirmed lately: the password alone.
    Password(Uuid),
}

/// Proves who somebody is. Gives the account, and by what it was proven.
///
/// # Errors
/// [`NotProven`].
pub async fn prove(
    store: &dyn Store,
    proof: Proof,
    occasion: Occasion,
    source: std::net::IpAddr,
    now_ms: u64,
) -> Result<(AccountRecord, By), NotProven> {
    // Before the store is asked for anything: a flood of logins does not take it from
    // everybody else.
    let _place = LOGINS.enter().await.ok_or(PasswordError::Busy)?;
    let account = match proof.name.parse::<AccountName>() {
        Ok(name) => store.account_named(name.as_str()).await?,
        Err(_) => None,
    };
    let counters = counters(&proof.name, account.as_ref(), occasion, source);
    if let Attempt::TooEarly(wait_ms) = store.attempt(&counters, now_ms).await? {
        return Err(NotProven::TooEarly(wait_ms));
    }
    let hash = account.as_ref().map(|account| account.password.clone());
    let matches = match password::matches(proof.password, hash).await {
        Ok(matches) => matches,
        Err(error) => {
            // It was not looked at.
            store.take_back(&counters, false).await?;
            return Err(error.into());
        }
    };
    let id = account.as_ref().map(|account| account.id);
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
    let mut by = By::Password;
    if account.totp_on_ms.is_some() && !matches!(occasion, Occasion::Password(_)) {
        let good = match (&account.totp, proof.code, proof.recovery_code) {
            (Some(secret), Some(code), _) => {
                by = By::Code;
                match totp::step_of(secret, code.trim(), now_ms) {
                    Some(step) => store.use_totp(account.id, step).await?,
                    None => false,
                }
            }
            (_, None, Some(code)) => {
                by = By::RecoveryCode;
                let hash = totp::recovery_hash(&code);
                store.use_recovery_code(account.id, &hash, now_ms).await?
            }
            _ => {
                store.take_back(&counters, false).await?;
                return Err(NotProven::CodeNeeded(Box::new(account)));
            }
        };
        if !good {
            return Err(wrong(account));
        }
    }
    store.take_back(&counters, true).await?;
    Ok((account, by))
}

fn counters(
    name: &str,
    account: Option<&AccountRecord>,
    occasion: Occasion,
    source: std::net::IpAddr,
) -> Vec<Counter> {
    match (occasion, account) {
        (Occasion::Confirm(session) | Occasion::Password(session), _) => {
            vec![Counter::Session(session)]
        }
        (Occasion::Login, Some(account)) => vec![
            Counter::Account(account.id),
            Counter::Source(lockout::source(source)),
        ],
        // A text that is no name at all is nobody's account, as everybody knows.
        (Occasion::Login, None) => {
            let mut counters = vec![Counter::Source(lockout::source(source))];
            if name.parse::<AccountName>().is_ok() {
                counters.push(Counter::Name(name.to_owned()));
            }
            counters
        }
    }
}
