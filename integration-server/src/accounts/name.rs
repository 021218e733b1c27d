//! What an account may be called.

use std::fmt;
use std::str::FromStr;

use crate::audit::{ADMIN_TOKEN, LOCAL};

/// Longest name, in bytes.
pub const MAX_BYTES: usize = 64;

/// Who stands in the audit log without an account.
const RESERVED: [&str; 2] = [ADMIN_TOKEN, LOCAL];

/// A name: lower-case letters, digits, and `.`, `-`, `_`, `@` within.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct AccountName(String);

/// A text is no name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "an account's name is 1 to {MAX_BYTES} lower-case letters, digits, and . - _ @ within, like jo.doe@acme; {} are taken", RESERVED.join(" and ")
)]
pub struct BadName;

impl AccountName {
    /// The name itself.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for AccountName {
    type Err = BadName;
    fn from_str(text: &str) -> Result<Self, BadName> {
        let plain = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let within = |byte: &u8| plain(byte) || b".-_@".contains(byte);
        let bytes = text.as_bytes();
        let sound = bytes.len() <= MAX_BYTES
            && bytes.first().is_some_and(plain)
            && bytes.last().is_some_and(plain)
            && bytes.iter().all(within)
            && !RESERVED.contains(&text);
        if sound {
            Ok(Self(text.to_owned()))
        } else {
            Err(BadName)
        }
    }
}

impl fmt::Display for AccountName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_looks_like_another_name_is_none() {
        for good in ["a", "jo", "jo.doe@acme", "x-1_2"] {
            assert_eq!(good.parse::<AccountName>().unwrap().as_str(), good);
        }
        let long = "a".repeat(MAX_BYTES + 1);
        for bad in [
            "",
            "Jo",
            " jo",
            "jo ",
            ".jo",
            "jo.",
            "jo\u{202e}",
            "jö",
            "a b",
            "a/b",
            "admin.token",
            "palisade-server",
            &long,
        ] {
            assert!(bad.parse::<AccountName>().is_err(), "{bad:?}");
        }
    }
}
