//! Sessions: how long one lasts, when it must be confirmed, and its secrets. Pure.
//!
//! ```text
//!   login ─► [token in a cookie] ─► every request: seen ─► idle or too old ─► ended
//!                 └─ derived ─► the other token, which a page of another site cannot know
//! ```

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;

use crate::interval::Interval;
use crate::secret::{self, Hash, NoRandomness};
use crate::time::millis;

/// For how long a password that was shown lets dangerous things be done, in milliseconds.
pub const FRESH_MS: u64 = 5 * 60_000;
/// How often it is noted that a session or token was used, in milliseconds at the least.
pub const NOTED_MS: u64 = 10_000;
/// The cookie: `__Host-` has browsers refuse it for a domain, a path, or without TLS.
pub const COOKIE: &str = "__Host-palisade";
/// The header that goes with every change.
pub const CSRF_HEADER: &str = "x-palisade-csrf";
/// Most sessions of one account; with more, the oldest end.
pub const MAX_SESSIONS: i64 = 32;

/// How long sessions last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Without a request.
    pub session_idle: Interval,
    /// At the most.
    pub session_max: Interval,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            session_idle: Interval::from_secs(30 * 60),
            session_max: Interval::from_secs(12 * 3600),
        }
    }
}

/// The times of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Times {
    /// When it began.
    pub created_ms: u64,
    /// When it was last used.
    pub seen_ms: u64,
    /// When the password was last shown.
    pub confirmed_ms: u64,
}

impl Times {
    /// Whether it has ended by itself.
    pub fn is_over(self, limits: Limits, now_ms: u64) -> bool {
        now_ms >= self.ends_ms(limits)
    }

    /// When it ends if it is not used again.
    pub fn ends_ms(self, limits: Limits) -> u64 {
        // Noted a little late: nobody is put out before his time.
        let idle = millis(limits.session_idle.get()).saturating_add(self.slack_ms(limits));
        let idle = self.seen_ms.saturating_add(idle);
        let most = self
            .created_ms
            .saturating_add(millis(limits.session_max.get()));
        idle.min(most)
    }

    /// Whether its use should be noted now.
    pub fn is_due(self, limits: Limits, now_ms: u64) -> bool {
        now_ms.saturating_sub(self.seen_ms) >= self.slack_ms(limits)
    }

    /// Whether its password was shown lately.
    pub fn is_fresh(self, now_ms: u64) -> bool {
        now_ms.saturating_sub(self.confirmed_ms) < FRESH_MS
    }

    /// A tenth of the limit, and no more than [`NOTED_MS`].
    fn slack_ms(self, limits: Limits) -> u64 {
        NOTED_MS.min(millis(limits.session_idle.get()) / 10)
    }
}

/// A new session's token: its text, for the cookie alone, and its hash, to keep.
///
/// # Errors
/// [`NoRandomness`].
pub fn token() -> Result<(String, Hash), NoRandomness> {
    let text = URL_SAFE_NO_PAD.encode(secret::random()?);
    let hash = token_hash(&text);
    Ok((text, hash))
}

/// What a session is found by.
pub fn token_hash(text: &str) -> Hash {
    palisade_protocol::trust::sha256(format!("palisade session {text}").as_bytes())
}

/// The token that goes with changes: made of the session's, so that it need not be kept,
/// and nothing that leads back to it.
pub fn csrf(token: &str) -> String {
    let key = blake3::derive_key("palisade 2026 csrf token of a session", token.as_bytes());
    URL_SAFE_NO_PAD.encode(key)
}

/// The session's token among a request's cookies. Two are none: somebody planted one.
pub fn cookie(header: &str) -> Option<&str> {
    let mut found = header
        .split(';')
        .filter_map(|pair| pair.trim().split_once('='))
        .filter(|(name, _)| *name == COOKIE)
        .map(|(_, value)| value);
    let only = found.next()?;
    found.next().is_none().then_some(only)
}

/// The header that has a browser keep the token, or forget it.
pub fn set_cookie(token: Option<&str>) -> String {
    match token {
        Some(token) => format!("{COOKIE}={token}; Path=/; Secure; HttpOnly; SameSite=Strict"),
        None => format!("{COOKIE}=; Path=/; Secure; HttpOnly; SameSite=Strict; Max-Age=0"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn one_cookie_is_read_and_two_are_none() {
        assert_eq!(cookie("a=b; __Host-palisade=x; c=d"), Some("x"));
        assert_eq!(cookie("__Host-palisade=x; __Host-palisade=y"), None);
        assert_eq!(cookie("x__Host-palisade=x"), None);
        assert_eq!(cookie(""), None);
        let set = set_cookie(Some("x"));
        for attribute in ["SameSite=Strict", "HttpOnly", "Secure", "Path=/"] {
            assert!(set.contains(attribute));
        }
    }

    #[test]
    fn the_second_token_is_the_sessions_own() {
        let (one, other) = (token().unwrap(), token().unwrap());
        assert_ne!(one.0, other.0);
        assert_eq!(token_hash(&one.0), one.1);
        assert_ne!(csrf(&one.0), csrf(&other.0));
        assert_ne!(csrf(&one.0), one.0);
    }

    proptest! {
        #[test]
        fn a_session_ends_by_both_limits(created in 0_u64..1_000_000, seen in 0_u64..100_000_000, now in 0_u64..200_000_000) {
            let limits = Limits::default();
            let times = Times { created_ms: created, seen_ms: created + seen, confirmed_ms: created };
            let now = created + now;
            if now >= created + 12 * 3_600_000 || now >= times.seen_ms + 30 * 60_000 + NOTED_MS {
                prop_assert!(times.is_over(limits, now));
            }
            if now < created + 12 * 3_600_000 && now < times.seen_ms + 30 * 60_000 {
                prop_assert!(!times.is_over(limits, now));
            }
            prop_assert_eq!(times.is_fresh(now), now < created + FRESH_MS);
        }
    }
}
