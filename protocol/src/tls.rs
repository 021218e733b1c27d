//! TLS 1.3 with certificates on both sides; no tickets, no resumption, no 0-RTT.
//!
//! Owns the rustls configurations and the two verifiers, which leave all
//! judgement to [`Trust`]. The one exception to "a certificate of the site" is a
//! component that enrols: it shows a self-signed certificate, and a listener that
//! takes those ([`Accept::unenrolled`]) learns from [`peer_of`] that nobody
//! vouches for it.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, DistinguishedName, OtherError,
    ServerConfig, SignatureScheme,
};
use webpki::EndEntityCert;

use crate::identity::Identity;
use crate::ids::SvmId;
use crate::spiffe::{Role, RoleKind, SpiffeId};
use crate::trust::{self, Trust, TrustError, Usage};

/// The crypto provider that everything of Palisade uses: passed explicitly, so
/// that only one is linked and none depends on a process-wide default.
pub fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

/// Who must answer a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expect {
    /// This Protection Server and no other.
    Svm(SvmId),
    /// Any Protection Server of the site: for a static list without ids.
    AnySvm,
    /// An Integration Server.
    Server,
}

impl Expect {
    fn check(self, id: SpiffeId) -> Result<(), TrustError> {
        let fits = match (self, &id.role) {
            (Self::Svm(want), Role::Svm(got)) => want == *got,
            (Self::AnySvm, Role::Svm(_)) | (Self::Server, Role::Server(_)) => true,
            _ => false,
        };
        if fits {
            return Ok(());
        }
        let want = match self {
            Self::Svm(_) => "Protection Server with the id of the list",
            Self::AnySvm => "Protection Server",
            Self::Server => "Integration Server",
        };
        Err(TrustError::WrongRole {
            got: id.role.kind(),
            id,
            want,
        })
    }
}

/// Who may connect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accept {
    /// Agents of the site.
    pub agents: bool,
    /// Protection Servers of the site.
    pub svms: bool,
    /// Components that enrol.
    pub unenrolled: bool,
}

impl Accept {
    fn check(self, id: SpiffeId) -> Result<(), TrustError> {
        let fits = match id.role.kind() {
            RoleKind::Agent => self.agents,
            RoleKind::Svm => self.svms,
            RoleKind::Server => false,
        };
        if fits {
            return Ok(());
        }
        let want = match (self.agents, self.svms) {
            (true, true) => "Light Agent or Protection Server",
            (true, false) => "Light Agent",
            (false, true) => "Protection Server",
            (false, false) => "component that enrols",
        };
        Err(TrustError::WrongRole {
            got: id.role.kind(),
            id,
            want,
        })
    }
}

/// What the connecting side shows.
#[derive(Debug)]
pub enum Own {
    /// An issued identity.
    Enrolled(Identity),
    /// A key without identity and its self-signed certificate.
    Enrolling {
        /// The certificate.
        certificate: CertificateDer<'static>,
        /// Its key.
        key: PrivateKeyDer<'static>,
    },
}

/// A connecting side's configuration.
///
/// # Errors
/// rustls's, for a key that does not fit its certificate.
pub fn client_config(
    own: Own,
    trust: Trust,
    expect: Expect,
    alpn: &[&[u8]],
) -> Result<ClientConfig, rustls::Error> {
    let verifier = Arc::new(PeerVerifier {
        trust,
        rule: Rule::Dial(expect),
        provider: provider(),
    });
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier);
    let mut config = match own {
        Own::Enrolled(identity) => {
            builder.with_client_auth_cert(identity.chain().to_vec(), identity.key())?
        }
        Own::Enrolling { certificate, key } => {
            builder.with_client_auth_cert(vec![certificate], key)?
        }
    };
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    config.resumption = rustls::client::Resumption::disabled();
    config.enable_early_data = false;
    Ok(config)
}

/// A listening side's configuration.
///
/// # Errors
/// rustls's, for a key that does not fit its certificate.
pub fn server_config(
    identity: &Identity,
    trust: Trust,
    accept: Accept,
    alpn: &[&[u8]],
) -> Result<ServerConfig, rustls::Error> {
    let verifier = Arc::new(PeerVerifier {
        trust,
        rule: Rule::Listen(accept),
        provider: provider(),
    });
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_single_cert(identity.chain().to_vec(), identity.key())?;
    config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
    config.max_early_data_size = 0;
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    Ok(config)
}

/// Who is at the other end of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peer {
    /// A component of the site, validated in the handshake.
    Enrolled(SpiffeId),
    /// Holds a key, and nobody vouches for it.
    Unenrolled,
}

/// Reads the peer from the chain that its handshake was accepted with: by the
/// verifiers here, a single certificate is one that enrols, and more were validated.
///
/// # Errors
/// [`TrustError`] for a chain that no verifier here accepts.
pub fn peer_of(chain: &[CertificateDer<'_>]) -> Result<Peer, TrustError> {
    match chain {
        [] => Err(TrustError::NoCertificate),
        [_] => Ok(Peer::Unenrolled),
        [leaf, ..] => {
            let leaf = EndEntityCert::try_from(leaf).map_err(TrustError::Path)?;
            Ok(Peer::Enrolled(trust::spiffe_id(&leaf)?))
        }
    }
}

/// quinn shows a handshake's failure by its `Debug`: this one's is its sentence.
#[derive(thiserror::Error)]
#[error("{0}")]
struct Explained(#[source] TrustError);

impl std::fmt::Debug for Explained {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(&self.0, f)
    }
}

#[derive(Debug)]
enum Rule {
    Dial(Expect),
    Listen(Accept),
}

#[derive(Debug)]
struct PeerVerifier {
    trust: Trust,
    rule: Rule,
    provider: Arc<CryptoProvider>,
}

impl PeerVerifier {
    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<(), rustls::Error> {
        let outcome = match &self.rule {
            Rule::Listen(accept) if accept.unenrolled && intermediates.is_empty() => Ok(()),
            Rule::Listen(accept) => self
                .trust
                .verify(leaf, intermediates, Usage::Client, now)
                .and_then(|id| accept.check(id)),
            Rule::Dial(expect) => self
                .trust
                .verify(leaf, intermediates, Usage::Server, now)
                .and_then(|id| expect.check(id)),
        };
        outcome.map_err(|error| {
            rustls::Error::InvalidCertificate(match error {
                // These two have alerts of their own, which the peer can read.
                TrustError::Path(webpki::Error::CertExpired { .. }) => CertificateError::Expired,
                TrustError::Path(webpki::Error::UnknownIssuer) => CertificateError::UnknownIssuer,
                other => CertificateError::Other(OtherError(Arc::new(Explained(other)))),
            })
        })
    }

    fn verify_signature(
        &self,
        message: &[u8],
        leaf: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(
            message,
            leaf,
            signed,
            &self.provider.signature_verification_algorithms,
        )
    }
}

fn no_tls12() -> rustls::Error {
    rustls::Error::PeerIncompatible(rustls::PeerIncompatible::Tls13RequiredForQuic)
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.verify(end_entity, intermediates, now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verify_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

impl ClientCertVerifier for PeerVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.verify(end_entity, intermediates, now)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verify_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}
