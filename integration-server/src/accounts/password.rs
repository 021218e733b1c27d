//! Passwords: argon2id, its parameters by name, and how many run at once.
//!
//! A hash takes memory and time on purpose, so whoever asks for many must not take the
//! server's: at most [`AT_ONCE`] run, [`MAX_WAITING`] wait, and the next one is told so.

use std::sync::LazyLock;

use super::gate::Gate;
use crate::secret::{self, NoRandomness};
use argon2::password_hash::{PasswordHash, PasswordHasher as _, PasswordVerifier as _, SaltString};
use argon2::{Algorithm, Argon2, Params, Version};

/// Shortest password, in characters.
pub const MIN_CHARS: usize = 12;
/// Longest password, in bytes.
pub const MAX_BYTES: usize = 1024;
/// Memory of one hash, in KiB (OWASP's first choice for argon2id: 19 MiB, 2 passes).
const MEMORY_KIB: u32 = 19 * 1024;
/// Passes over it.
const PASSES: u32 = 2;
/// Lanes.
const LANES: u32 = 1;
/// Hashes at once: 38 MiB, and two cores' work.
const AT_ONCE: usize = 2;
/// Hashes that wait; each takes about 30 ms of a core.
const MAX_WAITING: usize = 64;

static HASHES: Gate = Gate::new(AT_ONCE, MAX_WAITING);

/// A password cannot be taken, or looked at.
#[derive(Debug, thiserror::Error)]
pub enum PasswordError {
    /// It is too short.
    #[error("a password has {MIN_CHARS} characters at least; a few words are easy to keep in mind")]
    Short,
    /// It is too long.
    #[error("a password has {MAX_BYTES} bytes at most")]
    Long,
    /// It is what everybody tries first.
    #[error("the password must not contain the account's name")]
    Name,
    /// Too many are looked at already.
    #[error("too many logins at once; try again in a few seconds")]
    Busy,
    /// No salt.
    #[error(transparent)]
    Randomness(#[from] NoRandomness),
    /// argon2 failed.
    #[error("argon2: {0}")]
    Argon2(String),
}

/// Looks at a new password.
///
/// # Errors
/// [`PasswordError`]: what is wrong with it.
pub fn checked(name: &str, password: &str) -> Result<(), PasswordError> {
    if password.len() > MAX_BYTES {
        return Err(PasswordError::Long);
    }
    if password.chars().count() < MIN_CHARS {
        return Err(PasswordError::Short);
    }
    if password.to_lowercase().contains(name) && name.len() > 2 {
        return Err(PasswordError::Name);
    }
    Ok(())
}

fn argon2() -> Result<Argon2<'static>, PasswordError> {
    let params = Params::new(MEMORY_KIB, PASSES, LANES, None);
    let params = params.map_err(|error| PasswordError::Argon2(error.to_string()))?;
    Ok(Argon2::new(Algorithm::Argon2id, Version::V0x13, params))
}

fn hash_now(password: &str) -> Result<String, PasswordError> {
    let failed = |error: argon2::password_hash::Error| PasswordError::Argon2(error.to_string());
    let random = secret::random()?;
    let salt = random.first_chunk::<16>().copied().unwrap_or_default();
    let salt = SaltString::encode_b64(&salt).map_err(failed)?;
    let hash = argon2()?.hash_password(password.as_bytes(), &salt);
    Ok(hash.map_err(failed)?.to_string())
}

fn matches_now(password: &str, hash: &str) -> bool {
    // The parameters are the hash's own: older ones are still read.
    let Ok(parsed) = PasswordHash::new(hash) else {
        return false;
    };
    argon2().is_ok_and(|argon2| argon2.verify_password(password.as_bytes(), &parsed).is_ok())
}

/// Runs something heavy on a thread for that, a few at a time.
async fn bounded<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, PasswordError> {
    let place = HASHES.enter().await.ok_or(PasswordError::Busy)?;
    let done = tokio::task::spawn_blocking(move || {
        // Given back when the work is done, even where the request is gone by then.
        let _place = place;
        work()
    });
    done.await
        .map_err(|error| PasswordError::Argon2(error.to_string()))
}

/// The hash of a password, with its salt and parameters (PHC string).
///
/// # Errors
/// [`PasswordError`].
pub async fn hash(password: String) -> Result<String, PasswordError> {
    bounded(move || hash_now(&password)).await?
}

/// Whether a password is the one with this hash. Where there is none, as much work is
/// done: how long it takes does not say whether an account exists.
///
/// # Errors
/// [`PasswordError::Busy`].
pub async fn matches(password: String, hash: Option<String>) -> Result<bool, PasswordError> {
    if password.len() > MAX_BYTES {
        return Ok(false);
    }
    bounded(move || match hash {
        Some(hash) => matches_now(&password, &hash),
        None => {
            // A hash of something that nobody knows.
            static NOBODY: LazyLock<String> =
                LazyLock::new(|| hash_now("nobody's password").unwrap_or_default());
            let _ = matches_now(&password, &NOBODY);
            false
        }
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn only_the_password_itself_matches() {
        let hash = hash("correct horse battery".to_owned()).await.unwrap();
        assert!(
            hash.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"),
            "{hash}"
        );
        let tried = async |password: &str, hash: Option<&str>| {
            matches(password.to_owned(), hash.map(str::to_owned))
                .await
                .unwrap()
        };
        assert!(tried("correct horse battery", Some(&hash)).await);
        assert!(!tried("correct horse batterx", Some(&hash)).await);
        assert!(!tried("", Some(&hash)).await);
        assert!(!tried("correct horse battery", None).await);
        assert!(!tried("nobody's password", None).await);
        assert!(!tried("x", Some("nonsense")).await);
        let again = super::hash("correct horse battery".to_owned())
            .await
            .unwrap();
        assert_ne!(hash, again, "each has a salt of its own");
    }

    #[test]
    fn weak_ones_are_refused_with_the_reason() {
        assert!(matches!(checked("jo", "short"), Err(PasswordError::Short)));
        assert!(matches!(
            checked("jane", "JaneJaneJane1"),
            Err(PasswordError::Name)
        ));
        assert!(matches!(
            checked("jo", &"x".repeat(MAX_BYTES + 1)),
            Err(PasswordError::Long)
        ));
        assert!(checked("jo", "twelve chars").is_ok());
    }
}
