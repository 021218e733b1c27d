//! Which certificate chains are believed, and who they say the peer is.
//!
//! Owns path validation (by webpki) against a pinned root or against the hash
//! of a root that a join token carries, and the reading of the SPIFFE id. Host
//! names play no part: a peer is who its SPIFFE id says, in this deployment.
//!
//! **Invariant:** a chain without exactly one Palisade SPIFFE id is no identity.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustls::pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage};

use crate::ids::DeploymentId;
use crate::spiffe::{BadSpiffeId, RoleKind, SpiffeId};

/// What a chain must lead to.
#[derive(Debug, Clone)]
pub enum Anchor {
    /// This root, in DER: what an enrolled component keeps.
    Root(CertificateDer<'static>),
    /// Any root with this SHA-256, sent by the peer in its chain: all that a
    /// component with a join token knows.
    RootHash([u8; 32]),
}

/// How long after its end a certificate is still honoured, shared with whoever
/// decides it (a Protection Server that cannot reach the Integration Server).
#[derive(Debug, Clone, Default)]
pub struct ExpiryGrace(Arc<AtomicU64>);

impl ExpiryGrace {
    /// Sets the grace, to the second.
    pub fn set(&self, grace: Duration) {
        self.0.store(grace.as_secs(), Ordering::Relaxed);
    }

    fn get(&self) -> Duration {
        Duration::from_secs(self.0.load(Ordering::Relaxed))
    }
}

/// The rule by which chains are believed.
#[derive(Debug, Clone)]
pub struct Trust {
    /// Where a chain must lead.
    pub anchor: Anchor,
    /// The deployment that the peer must belong to; `None` while enrolling, when
    /// the root's hash already names one site.
    pub deployment: Option<DeploymentId>,
    /// Tolerance for certificates that ran out.
    pub grace: ExpiryGrace,
}

/// Why a chain is not believed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum TrustError {
    /// The peer sent no certificate.
    #[error("the peer sent no certificate")]
    NoCertificate,
    /// No certificate of the chain has the pinned hash.
    #[error(
        "the peer's root certificate is not the one that the join token names (another server, or someone between)"
    )]
    WrongRoot,
    /// Path validation failed.
    #[error("the peer's certificate is not accepted: {0}")]
    Path(webpki::Error),
    /// The certificate names no identity, or several.
    #[error("the peer's certificate holds {0} SPIFFE ids and must hold one")]
    IdCount(usize),
    /// The identity is malformed.
    #[error("the peer's certificate: {0}")]
    BadId(#[from] BadSpiffeId),
    /// The peer belongs to another deployment.
    #[error("the peer belongs to deployment {got}, and this one is {want}")]
    OtherDeployment {
        /// The peer's.
        got: DeploymentId,
        /// Ours.
        want: DeploymentId,
    },
    /// The peer is something else than what has to be there.
    #[error("the peer is a {got} ({id}), where a {want} is expected")]
    WrongRole {
        /// Who it is.
        id: SpiffeId,
        /// What it is.
        got: RoleKind,
        /// What it should be.
        want: &'static str,
    },
}

/// Which end of a TLS session a certificate serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Usage {
    /// The listening end.
    Server,
    /// The connecting end.
    Client,
    /// The signer of an envelope, who may be either.
    Envelope,
}

impl Trust {
    /// Trust in a root for an enrolled component.
    pub fn in_root(root: CertificateDer<'static>, deployment: DeploymentId) -> Self {
        Self {
            anchor: Anchor::Root(root),
            deployment: Some(deployment),
            grace: ExpiryGrace::default(),
        }
    }

    /// Validates a chain, leaf first, at `now`, and says who it is for.
    ///
    /// # Errors
    /// A [`TrustError`] that names what is wrong.
    pub fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        usage: Usage,
        now: UnixTime,
    ) -> Result<SpiffeId, TrustError> {
        let root = match &self.anchor {
            Anchor::Root(root) => root,
            Anchor::RootHash(hash) => intermediates
                .iter()
                .find(|certificate| sha256(certificate) == *hash)
                .ok_or(TrustError::WrongRoot)?,
        };
        let anchor = webpki::anchor_from_trusted_cert(root).map_err(TrustError::Path)?;
        let end_entity = EndEntityCert::try_from(leaf).map_err(TrustError::Path)?;
        self.verify_path(&end_entity, &[anchor], intermediates, usage, now)?;
        let id = spiffe_id(&end_entity)?;
        match &self.deployment {
            Some(want) if id.deployment != *want => Err(TrustError::OtherDeployment {
                got: id.deployment.clone(),
                want: want.clone(),
            }),
            _ => Ok(id),
        }
    }

    fn verify_path(
        &self,
        end_entity: &EndEntityCert<'_>,
        anchors: &[TrustAnchor<'_>],
        intermediates: &[CertificateDer<'_>],
        usage: Usage,
        now: UnixTime,
    ) -> Result<(), TrustError> {
        let check = |at: UnixTime| match verify_at(end_entity, anchors, intermediates, usage, at) {
            Ok(()) => Ok(()),
            Err(error) => Err(error),
        };
        match check(now) {
            Err(webpki::Error::CertExpired { not_after, .. })
                if now.as_secs()
                    <= not_after
                        .as_secs()
                        .saturating_add(self.grace.get().as_secs()) =>
            {
                check(not_after).map_err(TrustError::Path)
            }
            other => other.map_err(TrustError::Path),
        }
    }
}

fn verify_at(
    end_entity: &EndEntityCert<'_>,
    anchors: &[TrustAnchor<'_>],
    intermediates: &[CertificateDer<'_>],
    usage: Usage,
    at: UnixTime,
) -> Result<(), webpki::Error> {
    let path = |usage: KeyUsage| {
        end_entity
            .verify_for_usage(
                webpki::ALL_VERIFICATION_ALGS,
                anchors,
                intermediates,
                at,
                usage,
                None,
                None,
            )
            .map(|_| ())
    };
    match usage {
        Usage::Server => path(KeyUsage::server_auth()),
        Usage::Client => path(KeyUsage::client_auth()),
        Usage::Envelope => path(KeyUsage::client_auth()).or_else(|_| path(KeyUsage::server_auth())),
    }
}

/// The one SPIFFE id of a certificate, which is not validated here.
///
/// # Errors
/// [`TrustError::IdCount`] or [`TrustError::BadId`].
pub fn spiffe_id(certificate: &EndEntityCert<'_>) -> Result<SpiffeId, TrustError> {
    let names: Vec<&str> = certificate.valid_uri_names().collect();
    match names.as_slice() {
        [one] => Ok(one.parse()?),
        more => Err(TrustError::IdCount(more.len())),
    }
}

/// SHA-256 of some bytes.
pub fn sha256(bytes: &[u8]) -> [u8; 32] {
    let mut hash = [0; 32];
    hash.copy_from_slice(ring::digest::digest(&ring::digest::SHA256, bytes).as_ref());
    hash
}
