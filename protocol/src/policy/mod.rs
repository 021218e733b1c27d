//! A guest's policy as it travels: which settings its agent has from the site, each with
//! where it comes from, and what the agent made of it.
//!
//! ```text
//!  Integration Server                              agent
//!    ◄─ ToServer::GetPolicy{held} ───────────────── │   when a session opens, and each turn
//!    ── FromServer::Policy | NotModified ─────────► │
//!    ── FromServer::Policy, on each change ───────► │   takes it in, keeps it
//!    ◄─ ToServer::PolicyReport{in force, …} ─────── │
//! ```
//!
//! Owns the document, its fingerprint, and the one table of what a policy may set
//! ([`settings`]), by which the server refuses what an agent would refuse. Does not own
//! how values are inherited (the server's) or applied (the agent's).
//!
//! A value travels as JSON text, so that an agent can take in a document of a newer
//! server: what it does not know it names, and applies the rest.
//!
//! **Invariant:** equal documents have equal fingerprints, and only they.

mod schedule;
pub mod settings;

use std::fmt;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use crate::bounded::{List, Text};
use crate::codec::{self, CodecError, Message};

/// Settings of one policy, at the most: more than there are, for newer servers.
pub const MAX_SETTINGS: usize = 128;
/// Bytes of a setting's name, at the most.
pub const MAX_KEY_BYTES: usize = 64;
/// Bytes of a value as JSON text, at the most.
pub const MAX_VALUE_BYTES: usize = 16 * 1024;
/// Bytes of where a value comes from, at the most.
pub const MAX_ORIGIN_BYTES: usize = 192;
/// Places that a policy is made of, at the most: site, tenant, groups, VM; a VM may be in
/// every group of its tenant.
pub const MAX_LAYERS: usize = 256;

/// A setting's name, as `agent.toml` has it, sections joined by dots.
pub type Key = Text<MAX_KEY_BYTES>;
/// Where a value comes from, for people.
pub type Origin = Text<MAX_ORIGIN_BYTES>;
/// Why something is not in force, for people.
pub type Why = Text<512>;

/// A policy.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policy {
    /// What it is made of, the most general first.
    pub layers: List<Layer, MAX_LAYERS>,
    /// What it sets, by name, each once.
    pub settings: List<Setting, MAX_SETTINGS>,
}

/// One place whose policy has a part in another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    /// Which place.
    pub origin: Origin,
    /// Its policy's revision.
    pub revision: u64,
}

/// One setting.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Setting {
    /// Which.
    pub key: Key,
    /// Its value, as JSON.
    pub value: Text<MAX_VALUE_BYTES>,
    /// Which place's policy says so.
    pub origin: Origin,
}

impl Message for Policy {
    const MAX_BYTES: usize = 768 * 1024;
}

/// What tells policies apart: a hash of one's canonical encoding.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fingerprint([u8; 32]);

/// A text is no fingerprint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a fingerprint is 64 hexadecimal digits")]
pub struct BadFingerprint;

/// What BLAKE3's key is derived for.
const CONTEXT: &str = "palisade 2026 policy fingerprint";

impl Policy {
    /// Its fingerprint.
    ///
    /// # Errors
    /// [`CodecError::TooLarge`] above the bound of what can be sent.
    pub fn fingerprint(&self) -> Result<Fingerprint, CodecError> {
        let mut hasher = blake3::Hasher::new_derive_key(CONTEXT);
        hasher.update(&codec::encode(self)?);
        Ok(Fingerprint(*hasher.finalize().as_bytes()))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Fingerprint {
    type Err = BadFingerprint;
    fn from_str(text: &str) -> Result<Self, BadFingerprint> {
        let mut bytes = [0; 32];
        hex::decode_to_slice(text, &mut bytes).map_err(|_| BadFingerprint)?;
        Ok(Self(bytes))
    }
}

/// Bytes on the wire, text in JSON.
impl Serialize for Fingerprint {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match serializer.is_human_readable() {
            true => serializer.collect_str(self),
            false => self.0.serialize(serializer),
        }
    }
}

impl<'de> Deserialize<'de> for Fingerprint {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match deserializer.is_human_readable() {
            true => String::deserialize(deserializer)?
                .parse()
                .map_err(D::Error::custom),
            false => <[u8; 32]>::deserialize(deserializer).map(Self),
        }
    }
}

/// What an agent made of its policy.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyReport {
    /// The policy in force; none while `agent.toml` alone is.
    pub in_force: Option<Fingerprint>,
    /// The last one that was refused whole, if it was not followed by another.
    pub refused: Option<Refused>,
    /// Settings of the one in force that are not applied.
    pub not_applied: List<NotApplied, MAX_SETTINGS>,
    /// How it came to what is in force, where that is not as it should be: what was kept is
    /// damaged, or an agent did not come up with it.
    pub note: Option<Why>,
}

/// A policy that was refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// Which.
    pub fingerprint: Fingerprint,
    /// Why.
    pub why: Why,
}

/// A setting that is not applied.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NotApplied {
    /// Which.
    pub key: Key,
    /// Why, and what helps.
    pub why: Why,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(key: &str, value: &str) -> Policy {
        Policy {
            layers: List::cut([Layer {
                origin: Text::cut("site"),
                revision: 1,
            }]),
            settings: List::cut([Setting {
                key: Text::cut(key),
                value: Text::cut(value),
                origin: Text::cut("site"),
            }]),
        }
    }

    #[test]
    fn another_document_has_another_fingerprint() {
        let one = policy("on_access.mode", "\"block\"");
        let fingerprint = one.fingerprint().unwrap();
        assert_eq!(one.clone().fingerprint().unwrap(), fingerprint);
        let mut later = one.clone();
        later.layers = List::cut([Layer {
            origin: Text::cut("site"),
            revision: 2,
        }]);
        for other in [
            Policy::default(),
            policy("on_access.mode", "\"monitor\""),
            policy("on_access.mod", "e\"block\""),
            later,
        ] {
            assert_ne!(other.fingerprint().unwrap(), fingerprint);
        }
        assert_eq!(fingerprint.to_string().parse(), Ok(fingerprint));
        assert_eq!("00".parse::<Fingerprint>(), Err(BadFingerprint));
    }
}
