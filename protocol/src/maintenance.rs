//! Maintenance tokens: one string by which the Integration Server allows that one agent
//! is stopped, or removed, for a time.
//!
//! `pm1.<base64url>` of the encoded [`Signed`]: a [`Grant`], signed with the key of the
//! server's own certificate, and the chain that leads to the root that agents pin. It is
//! verified without any server: it must work in a guest whose network is down.
//!
//! What is signed begins with [`CONTEXT`], so that no envelope is a token and no token
//! an envelope. Does not own what a token is asked for; that is the agent's.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use rustls::pki_types::{CertificateDer, UnixTime};
use serde::{Deserialize, Serialize};
use uuid::Uuid;
use webpki::EndEntityCert;

use crate::bounded::{List, Text};
use crate::codec::{self, CodecError, Message};
use crate::control::{Der, MAX_CHAIN};
use crate::identity::Identity;
use crate::spiffe::{Role, SpiffeId};
use crate::trust::{Trust, TrustError, Usage};

/// Longest token text, in bytes.
pub const MAX_TEXT_BYTES: usize = 16 * 1024;
/// The longest time that one token allows, in milliseconds: a week.
pub const MAX_ALLOWED_MS: u64 = 7 * 24 * 3600 * 1000;
/// How far the guest's clock may be behind the server's, in milliseconds.
pub const MAX_CLOCK_MS: u64 = 5 * 60 * 1000;
const PREFIX: &str = "pm1.";
/// What every signature begins with.
const CONTEXT: &[u8] = b"palisade-maintenance-1\0";

/// What is allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Allowed {
    /// To stop the agent's service.
    Stop,
    /// To stop it and to remove its package.
    Remove,
}

impl Allowed {
    /// Whether it is enough for `wanted`.
    pub fn covers(self, wanted: Self) -> bool {
        self == Self::Remove || wanted == Self::Stop
    }

    /// As people read it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Remove => "remove",
        }
    }
}

/// What a server allows, to whom, and for how long.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    /// Names it in logs of both sides.
    pub id: Uuid,
    /// SPIFFE id of the agent that it is for.
    pub agent: Text<{ SpiffeId::MAX_BYTES }>,
    /// What is allowed.
    pub allowed: Allowed,
    /// Milliseconds since 1970 from which on.
    pub from_ms: u64,
    /// Milliseconds since 1970 until when.
    pub until_ms: u64,
    /// Why, for people.
    pub reason: Text<200>,
}

impl Message for Grant {
    const MAX_BYTES: usize = 1024;
}

/// A grant and whose it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Signed {
    /// An encoded [`Grant`].
    #[serde(with = "serde_bytes")]
    pub grant: Vec<u8>,
    /// ECDSA P-256 over SHA-256 of the context and `grant`, ASN.1.
    pub signature: List<u8, 128>,
    /// The server's certificate and those that lead to the root, without it.
    pub chain: List<Der, MAX_CHAIN>,
}

impl Message for Signed {
    const MAX_BYTES: usize = 12 * 1024;
}

/// Why a text is no maintenance token, or none that counts here and now.
#[derive(Debug, thiserror::Error)]
pub enum BadMaintenance {
    /// Something else was pasted, or only a part of it.
    #[error(
        "this is not a maintenance token ({0}); copy the whole text that `palisade agent maintenance` printed"
    )]
    Malformed(String),
    /// It cannot be encoded.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// Its chain is not believed.
    #[error("the maintenance token is not of this site")]
    Trust(#[from] TrustError),
    /// Who signed is no server.
    #[error("the maintenance token is signed by {0}, and must be by an Integration Server")]
    Signer(SpiffeId),
    /// The signature does not fit.
    #[error("the maintenance token was changed: its signature does not fit")]
    Signature,
    /// It is for another agent.
    #[error("the maintenance token is for {got}, and this agent is {own}")]
    OtherAgent {
        /// For whom.
        got: String,
        /// Who this is.
        own: SpiffeId,
    },
    /// Its time is not now.
    #[error("{0}")]
    Time(&'static str),
    /// The own key does not sign.
    #[error("the server's key cannot sign: {0}")]
    Key(&'static str),
}

/// Signs a grant; gives the text to hand out.
///
/// # Errors
/// [`BadMaintenance::Key`], or [`BadMaintenance::Codec`] above the bound.
pub fn sign(server: &Identity, grant: &Grant) -> Result<String, BadMaintenance> {
    let random = SystemRandom::new();
    let key =
        EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, server.key_pkcs8(), &random)
            .map_err(|_| BadMaintenance::Key("it is not an ECDSA P-256 key in PKCS#8"))?;
    let grant = codec::encode(grant)?;
    let signature = key
        .sign(&random, &[CONTEXT, &grant].concat())
        .map_err(|_| BadMaintenance::Key("the signature failed"))?;
    let below_root = server
        .chain()
        .split_last()
        .map_or(&[][..], |(_, rest)| rest);
    let signed = Signed {
        grant,
        signature: List::cut(signature.as_ref().iter().copied()),
        chain: List::cut(below_root.iter().map(|der| List::cut(der.iter().copied()))),
    };
    Ok(format!(
        "{PREFIX}{}",
        URL_SAFE_NO_PAD.encode(codec::encode(&signed)?)
    ))
}

/// Reads a text as a token, which is not verified by that.
///
/// # Errors
/// [`BadMaintenance::Malformed`].
pub fn read(text: &str) -> Result<Signed, BadMaintenance> {
    let malformed = |why: &dyn std::fmt::Display| BadMaintenance::Malformed(why.to_string());
    let text = text.trim();
    if text.len() > MAX_TEXT_BYTES {
        return Err(malformed(&format_args!(
            "it is longer than {MAX_TEXT_BYTES} bytes"
        )));
    }
    let body = text
        .strip_prefix(PREFIX)
        .ok_or_else(|| malformed(&format_args!("it does not begin with {PREFIX}")))?;
    let bytes = URL_SAFE_NO_PAD
        .decode(body)
        .map_err(|error| malformed(&error))?;
    codec::decode(&bytes).map_err(|error| malformed(&error))
}

/// Verifies a token for `own` at `now_ms` of the guest's clock; gives what it allows.
///
/// The chain must be good when the token was made, not when it is used: a server's
/// certificate may run out, or be renewed, in between.
///
/// # Errors
/// A [`BadMaintenance`] that says what is wrong.
pub fn verify(
    text: &str,
    trust: &Trust,
    own: &SpiffeId,
    now_ms: u64,
) -> Result<Grant, BadMaintenance> {
    let signed = read(text)?;
    let certificates: Vec<CertificateDer<'_>> = signed
        .chain
        .iter()
        .map(|der| CertificateDer::from(&**der))
        .collect();
    let [leaf, intermediates @ ..] = certificates.as_slice() else {
        return Err(BadMaintenance::Malformed(
            "it holds no certificate".to_owned(),
        ));
    };
    let grant: Grant = codec::decode(&signed.grant)
        .map_err(|error| BadMaintenance::Malformed(error.to_string()))?;
    let at = UnixTime::since_unix_epoch(Duration::from_millis(grant.from_ms));
    let signer = trust.verify(leaf, intermediates, Usage::Envelope, at)?;
    if !matches!(signer.role, Role::Server(_)) {
        return Err(BadMaintenance::Signer(signer));
    }
    EndEntityCert::try_from(leaf)
        .and_then(|certificate| {
            certificate.verify_signature(
                webpki::ring::ECDSA_P256_SHA256,
                &[CONTEXT, &signed.grant].concat(),
                &signed.signature,
            )
        })
        .map_err(|_| BadMaintenance::Signature)?;
    if grant.agent.as_str() != own.to_string() {
        return Err(BadMaintenance::OtherAgent {
            got: grant.agent.to_string(),
            own: own.clone(),
        });
    }
    let wrong = match () {
        () if grant.until_ms.saturating_sub(grant.from_ms) > MAX_ALLOWED_MS => {
            Some("the maintenance token allows more than a week, which no server may")
        }
        () if now_ms > grant.until_ms => {
            Some("the maintenance token's time is over; ask for a new one")
        }
        () if now_ms.saturating_add(MAX_CLOCK_MS) < grant.from_ms => {
            Some("the maintenance token's time has not begun: is the clock of this guest behind?")
        }
        () => None,
    };
    match wrong {
        Some(why) => Err(BadMaintenance::Time(why)),
        None => Ok(grant),
    }
}
