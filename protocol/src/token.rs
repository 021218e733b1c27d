//! Join tokens: one string that lets a component enrol.
//!
//! `pj1.<base64url>` of the encoded [`JoinToken`]. It holds all that a new
//! component needs: where the servers are, which root they must show, for which
//! tenant it joins, and the secret that proves it was invited. The server is
//! authenticated by the root's hash before the secret is sent.

use std::fmt;
use std::net::SocketAddr;
use std::str::FromStr;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::bounded::List;
use crate::codec::{self, CodecError, Message};
use crate::control::Component;
use crate::ids::{DeploymentId, TenantId};

/// Longest token text, in bytes.
pub const MAX_TEXT_BYTES: usize = 2048;
const PREFIX: &str = "pj1.";

/// What a join token holds.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JoinToken {
    /// The token's id: names it in lists and in the audit log.
    pub id: Uuid,
    /// What may join with it.
    pub component: Component,
    /// The site.
    pub deployment: DeploymentId,
    /// The tenant that an agent joins; ignored for Protection Servers.
    pub tenant: TenantId,
    /// Control addresses of the Integration Servers.
    pub servers: List<SocketAddr, 8>,
    /// SHA-256 of the root certificate in DER.
    pub root_sha256: [u8; 32],
    /// Proves the invitation. The server stores only its hash.
    pub secret: [u8; 32],
    /// Milliseconds since 1970 after which it is void.
    pub expires_ms: u64,
}

impl Message for JoinToken {
    const MAX_BYTES: usize = 1024;
}

impl fmt::Debug for JoinToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "JoinToken({})", self.id)
    }
}

/// Why a text is no join token.
#[derive(Debug, thiserror::Error)]
pub enum BadToken {
    /// Something else was pasted, or only a part of it.
    #[error(
        "this is not a join token ({0}); copy the whole text that `palisade token create` printed"
    )]
    Malformed(String),
    /// It cannot be encoded.
    #[error(transparent)]
    Codec(#[from] CodecError),
}

impl JoinToken {
    /// The text to hand out.
    ///
    /// # Errors
    /// [`BadToken::Codec`] above the bound.
    pub fn to_text(&self) -> Result<String, BadToken> {
        Ok(format!(
            "{PREFIX}{}",
            URL_SAFE_NO_PAD.encode(codec::encode(self)?)
        ))
    }
}

impl FromStr for JoinToken {
    type Err = BadToken;
    fn from_str(text: &str) -> Result<Self, BadToken> {
        let text = text.trim();
        if text.len() > MAX_TEXT_BYTES {
            return Err(BadToken::Malformed(format!(
                "it is longer than {MAX_TEXT_BYTES} bytes"
            )));
        }
        let body = text
            .strip_prefix(PREFIX)
            .ok_or_else(|| BadToken::Malformed(format!("it does not begin with {PREFIX}")))?;
        let bytes = URL_SAFE_NO_PAD
            .decode(body)
            .map_err(|error| BadToken::Malformed(error.to_string()))?;
        codec::decode(&bytes).map_err(|error| BadToken::Malformed(error.to_string()))
    }
}
