//! Secrets that are handed out once and kept as a hash.
//!
//! They are random and 256 bits long, so a plain SHA-256 cannot be guessed back:
//! no slow hash is needed, and a stolen database invites nobody.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use palisade_protocol::trust::sha256;
use rand::TryRngCore as _;
use subtle::ConstantTimeEq as _;

/// What an API token's text begins with.
pub const API_TOKEN_PREFIX: &str = "pa1.";

/// A hash as it is stored.
pub type Hash = [u8; 32];

/// The system gave no random numbers.
#[derive(Debug, thiserror::Error)]
#[error("the system gives no random numbers: {0}")]
pub struct NoRandomness(String);

/// 256 random bits from the kernel.
///
/// # Errors
/// [`NoRandomness`].
pub fn random() -> Result<[u8; 32], NoRandomness> {
    let mut bytes = [0; 32];
    rand::rngs::OsRng
        .try_fill_bytes(&mut bytes)
        .map_err(|error| NoRandomness(error.to_string()))?;
    Ok(bytes)
}

/// Whether a secret is the one with this hash, in time that tells nothing.
pub fn matches(secret: &[u8], hash: &[u8]) -> bool {
    sha256(secret).ct_eq(hash).into()
}

/// A new API token: its text, to show once, and its hash, to store.
///
/// # Errors
/// [`NoRandomness`].
pub fn api_token() -> Result<(String, Hash), NoRandomness> {
    let text = format!("{API_TOKEN_PREFIX}{}", URL_SAFE_NO_PAD.encode(random()?));
    let hash = api_token_hash(&text);
    Ok((text, hash))
}

/// The hash under which an API token is stored.
pub fn api_token_hash(text: &str) -> Hash {
    sha256(text.as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_secret_itself_matches() {
        let secret = random().unwrap();
        assert!(matches(&secret, &sha256(&secret)));
        assert!(!matches(&random().unwrap(), &sha256(&secret)));
        assert!(!matches(&secret, &[]));
    }
}
