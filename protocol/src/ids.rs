//! Who is who: ids as newtypes, so that an agent's id is never taken for an SVM's.

use std::fmt;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use uuid::Uuid;

/// A text is not an id of the wanted kind.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a valid {kind}: {rule}")]
pub struct BadId {
    kind: &'static str,
    text: String,
    rule: &'static str,
}

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl $name {
            /// A new random id.
            pub fn random() -> Self {
                Self(Uuid::new_v4())
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }

        impl FromStr for $name {
            type Err = BadId;
            fn from_str(text: &str) -> Result<Self, BadId> {
                let uuid = Uuid::try_parse(text).map_err(|_| BadId {
                    kind: $kind,
                    text: text.chars().take(64).collect(),
                    rule: "a UUID is expected",
                })?;
                // One spelling each, so that ids compare as text too.
                if uuid.to_string() != text {
                    return Err(BadId {
                        kind: $kind,
                        text: text.chars().take(64).collect(),
                        rule: "a lower-case UUID with hyphens is expected",
                    });
                }
                Ok(Self(uuid))
            }
        }
    };
}

uuid_id!(
    /// A Light Agent's identity: made at enrolment, kept for the life of the guest.
    AgentId,
    "agent id"
);
uuid_id!(
    /// A Protection Server's identity.
    SvmId,
    "SVM id"
);
uuid_id!(
    /// One detection, made by the agent that saw it: repeated reports are one row.
    DetectionId,
    "detection id"
);

macro_rules! name_id {
    ($(#[$doc:meta])* $name:ident, $kind:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
        #[serde(transparent)]
        pub struct $name(String);

        impl $name {
            /// Longest name, in bytes (a DNS label's).
            pub const MAX_BYTES: usize = 63;

            /// The name itself.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl FromStr for $name {
            type Err = BadId;
            fn from_str(text: &str) -> Result<Self, BadId> {
                if is_label(text) {
                    return Ok(Self(text.to_owned()));
                }
                Err(BadId {
                    kind: $kind,
                    text: text.chars().take(64).collect(),
                    rule: "1 to 63 of a-z, 0-9 and '-' are expected, with a letter or digit at both ends",
                })
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
            }
        }
    };
}

name_id!(
    /// A tenant: the border over which no verdict, file or name may pass.
    TenantId,
    "tenant"
);
name_id!(
    /// The deployment: the trust domain of a site's SPIFFE ids.
    DeploymentId,
    "deployment name"
);
name_id!(
    /// One Integration Server among equals.
    ServerName,
    "server name"
);

impl TenantId {
    /// The tenant of a site that has no other.
    pub const DEFAULT: &'static str = "default";

    /// The default tenant.
    pub fn default_tenant() -> Self {
        Self(Self::DEFAULT.to_owned())
    }
}

/// A DNS label in lower case (RFC 1123).
fn is_label(text: &str) -> bool {
    let bytes = text.as_bytes();
    (1..=63).contains(&bytes.len())
        && bytes
            .iter()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || *b == b'-')
        && bytes.first() != Some(&b'-')
        && bytes.last() != Some(&b'-')
}
