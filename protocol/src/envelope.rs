//! Signed envelopes around control messages, so that a relay can carry them
//! without being able to read a role into them, forge, replay or reorder them.
//!
//! Owns signing, verification and the order rule; does not own sockets or the
//! clock. [`Sealer`] is one direction's sender, [`Opener`] its receiver:
//!
//! ```text
//!   Sealer{identity, recipient, epoch} ── (epoch, 1), (epoch, 2), … ──► Opener{last}
//! ```
//!
//! An envelope is accepted when its chain leads to the pinned root, its sender
//! is who the chain names, its recipient is the receiver, it has not expired,
//! and its (epoch, sequence) is above all before. The epoch of a component's
//! envelopes is given by the server in `Welcome`, so a guest that is reverted to
//! a snapshot starts a new one; `Hello` itself has epoch 0 and is bound to its
//! TLS session. The key that signs for a server is that of its own certificate,
//! never the CA's.

use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use rustls::pki_types::{CertificateDer, UnixTime};
use serde::{Deserialize, Serialize};
use std::time::Duration;
use webpki::EndEntityCert;

use crate::bounded::{List, Text};
use crate::codec::{self, CodecError, Message};
use crate::control::{Der, MAX_CHAIN};
use crate::identity::Identity;
use crate::ids::TenantId;
use crate::spiffe::SpiffeId;
use crate::trust::{Trust, TrustError, Usage};

/// How long an envelope may be on its way, in milliseconds.
pub const LIFETIME_MS: u64 = 10 * 60 * 1000;
/// How far two clocks that were compared at `Welcome` may have drifted since.
pub const MAX_DRIFT_MS: u64 = 60 * 1000;
/// Largest payload, in bytes; the rest of a control frame is chain and signature.
pub const MAX_PAYLOAD_BYTES: usize = 960 * 1024;

/// What travels: signed bytes, their signature, and whose it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Envelope {
    /// An encoded [`Body`].
    #[serde(with = "serde_bytes")]
    pub body: Vec<u8>,
    /// ECDSA P-256 over SHA-256 of `body`, ASN.1.
    pub signature: List<u8, 128>,
    /// The signer's certificate and those that lead to the root.
    pub chain: List<Der, MAX_CHAIN>,
}

/// The signed part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Body {
    /// SPIFFE id of the sender.
    pub sender: Text<{ SpiffeId::MAX_BYTES }>,
    /// SPIFFE id of the recipient.
    pub recipient: Text<{ SpiffeId::MAX_BYTES }>,
    /// The tenant that the message is about; none for the site's own.
    pub tenant: Option<TenantId>,
    /// The sender's session.
    pub epoch: u64,
    /// Place in the session, from 1.
    pub sequence: u64,
    /// The sequence that this one answers.
    pub answers: Option<u64>,
    /// Milliseconds since 1970, by the server's clock, after which it is void.
    pub expires_ms: u64,
    /// An encoded message.
    #[serde(with = "serde_bytes")]
    pub payload: Vec<u8>,
}

impl Message for Body {
    const MAX_BYTES: usize = MAX_PAYLOAD_BYTES + 2048;
}

/// Why an envelope is not accepted, or cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum EnvelopeError {
    /// Its bytes are not a body or not a message.
    #[error(transparent)]
    Codec(#[from] CodecError),
    /// Its chain is not believed.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// The signature does not fit.
    #[error("the envelope's signature is not {0}'s")]
    Signature(SpiffeId),
    /// It names another sender or recipient than it should.
    #[error("the envelope's {field} is {got}, and must be {want}")]
    Address {
        /// Sender, recipient or tenant.
        field: &'static str,
        /// What it names.
        got: String,
        /// What it must name.
        want: String,
    },
    /// It is too old.
    #[error("the envelope expired {0} ms ago (is a clock off?)")]
    Expired(u64),
    /// It was seen before, or comes late.
    #[error("envelope {epoch}/{sequence} is not after {last_epoch}/{last_sequence}")]
    Order {
        /// Its epoch.
        epoch: u64,
        /// Its sequence.
        sequence: u64,
        /// The newest accepted epoch.
        last_epoch: u64,
        /// The newest accepted sequence.
        last_sequence: u64,
    },
    /// The own key does not sign.
    #[error("the component's key cannot sign: {0}")]
    Key(&'static str),
}

/// Signs one direction's messages.
#[derive(Debug)]
pub struct Sealer {
    identity: Identity,
    key: EcdsaKeyPair,
    random: SystemRandom,
    recipient: SpiffeId,
    epoch: u64,
    sequence: u64,
}

impl Sealer {
    /// A sender that starts an epoch.
    ///
    /// # Errors
    /// [`EnvelopeError::Key`] for a key that is not ECDSA P-256.
    pub fn new(identity: Identity, recipient: SpiffeId, epoch: u64) -> Result<Self, EnvelopeError> {
        let random = SystemRandom::new();
        let key = EcdsaKeyPair::from_pkcs8(
            &ECDSA_P256_SHA256_ASN1_SIGNING,
            identity.key_pkcs8(),
            &random,
        )
        .map_err(|_| EnvelopeError::Key("it is not an ECDSA P-256 key in PKCS#8"))?;
        Ok(Self {
            identity,
            key,
            random,
            recipient,
            epoch,
            sequence: 0,
        })
    }

    /// Moves to a new epoch, as `Welcome` gives it.
    pub fn set_epoch(&mut self, epoch: u64) {
        self.epoch = epoch;
        self.sequence = 0;
    }

    /// Signs a message at `now_ms` (the server's clock); gives the envelope and
    /// its sequence.
    ///
    /// # Errors
    /// [`EnvelopeError::Codec`] for a message over its bound.
    pub fn seal<M: Message>(
        &mut self,
        message: &M,
        answers: Option<u64>,
        now_ms: u64,
    ) -> Result<(Envelope, u64), EnvelopeError> {
        let sequence = self.sequence + 1;
        let sender = self.identity.id();
        let tenant = sender
            .role
            .tenant()
            .or(self.recipient.role.tenant())
            .cloned();
        let body = codec::encode(&Body {
            sender: Text::cut(&sender.to_string()),
            recipient: Text::cut(&self.recipient.to_string()),
            tenant,
            epoch: self.epoch,
            sequence,
            answers,
            expires_ms: now_ms.saturating_add(LIFETIME_MS),
            payload: codec::encode(message)?,
        })?;
        let signature = self
            .key
            .sign(&self.random, &body)
            .map_err(|_| EnvelopeError::Key("the signature failed"))?;
        let chain = self
            .identity
            .chain()
            .iter()
            .map(|der| List::cut(der.iter().copied()));
        self.sequence = sequence;
        Ok((
            Envelope {
                body,
                signature: List::cut(signature.as_ref().iter().copied()),
                chain: List::cut(chain),
            },
            sequence,
        ))
    }
}

/// A message whose envelope was accepted.
#[derive(Debug)]
pub struct Opened<M> {
    /// The message.
    pub message: M,
    /// Its sequence.
    pub sequence: u64,
    /// The sequence it answers.
    pub answers: Option<u64>,
    /// The tenant it is about.
    pub tenant: Option<TenantId>,
}

/// Verifies one direction's envelopes.
#[derive(Debug)]
pub struct Opener {
    trust: Trust,
    sender: SpiffeId,
    recipient: SpiffeId,
    last: (u64, u64),
    /// Whether the two clocks were compared: after a session's first message.
    clock_known: bool,
    /// A chain is validated when it is new, not with every message.
    known_chain: Option<List<Der, MAX_CHAIN>>,
}

impl Opener {
    /// A receiver of what `sender` sends to `recipient`, above `last_epoch`.
    pub fn new(trust: Trust, sender: SpiffeId, recipient: SpiffeId, last_epoch: u64) -> Self {
        Self {
            trust,
            sender,
            recipient,
            last: (last_epoch, 0),
            clock_known: false,
            known_chain: None,
        }
    }

    /// Requires envelopes of this epoch or later from now on.
    pub fn expect_epoch(&mut self, epoch: u64) {
        self.last = (epoch, 0);
    }

    /// Verifies an envelope at `now_ms` (the server's clock) and decodes its message.
    ///
    /// # Errors
    /// An [`EnvelopeError`] that says why it is not accepted; nothing changes then.
    pub fn open<M: Message>(
        &mut self,
        envelope: &Envelope,
        now_ms: u64,
    ) -> Result<Opened<M>, EnvelopeError> {
        let certificates: Vec<CertificateDer<'_>> = envelope
            .chain
            .iter()
            .map(|der| CertificateDer::from(&**der))
            .collect();
        let [leaf, intermediates @ ..] = certificates.as_slice() else {
            return Err(TrustError::NoCertificate.into());
        };
        if self.known_chain.as_ref() != Some(&envelope.chain) {
            let now = UnixTime::since_unix_epoch(Duration::from_millis(now_ms));
            let id = self
                .trust
                .verify(leaf, intermediates, Usage::Envelope, now)?;
            same("sender", &id.to_string(), &self.sender.to_string())?;
        }
        EndEntityCert::try_from(leaf)
            .and_then(|certificate| {
                certificate.verify_signature(
                    webpki::ring::ECDSA_P256_SHA256,
                    &envelope.body,
                    &envelope.signature,
                )
            })
            .map_err(|_| EnvelopeError::Signature(self.sender.clone()))?;
        let body: Body = codec::decode(&envelope.body)?;
        self.check(&body, now_ms)?;
        let message = codec::decode(&body.payload)?;
        self.last = (body.epoch, body.sequence);
        self.clock_known = true;
        self.known_chain = Some(envelope.chain.clone());
        Ok(Opened {
            message,
            sequence: body.sequence,
            answers: body.answers,
            tenant: body.tenant,
        })
    }

    fn check(&self, body: &Body, now_ms: u64) -> Result<(), EnvelopeError> {
        same("sender", &body.sender, &self.sender.to_string())?;
        same("recipient", &body.recipient, &self.recipient.to_string())?;
        let tenant = self.sender.role.tenant().or(self.recipient.role.tenant());
        same(
            "tenant",
            tenant_text(body.tenant.as_ref()),
            tenant_text(tenant),
        )?;
        let latest = body.expires_ms.saturating_add(MAX_DRIFT_MS);
        if self.clock_known && now_ms > latest {
            return Err(EnvelopeError::Expired(now_ms - latest));
        }
        if (body.epoch, body.sequence) <= self.last {
            return Err(EnvelopeError::Order {
                epoch: body.epoch,
                sequence: body.sequence,
                last_epoch: self.last.0,
                last_sequence: self.last.1,
            });
        }
        Ok(())
    }
}

fn tenant_text(tenant: Option<&TenantId>) -> &str {
    tenant.map_or("-", TenantId::as_str)
}

fn same(field: &'static str, got: &str, want: &str) -> Result<(), EnvelopeError> {
    if got == want {
        return Ok(());
    }
    Err(EnvelopeError::Address {
        field,
        got: got.to_owned(),
        want: want.to_owned(),
    })
}
