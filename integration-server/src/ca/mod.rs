//! The site's certificate authority.
//!
//! ```text
//!   root (20 years, path length 1)          state/ca/root.{key,pem}
//!     └─ issuing CA (10 years, length 0)    state/ca/issuing.{key,pem}
//!          ├─ components: SPIFFE id, 30 days, client and server
//!          └─ the API's HTTPS certificate: DNS names and addresses, server only
//! ```
//!
//! Owns the CA's keys and what is written into a certificate; does not own who
//! may have one (`fleet::enrol`). The root's key is used once, at first start.
//!
//! | module | owns |
//! | --- | --- |
//! | [`request`] | what is taken from a certificate request: its key, nothing else |
//! | [`files`] | the four files, and the order in which they appear |
//! | [`renewal`] | the server's own identity and HTTPS certificate, renewed while it runs |

pub mod files;
pub mod renewal;
pub mod request;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use palisade_protocol::identity::{self, Identity, IdentityError};
use palisade_protocol::ids::DeploymentId;
use palisade_protocol::spiffe::SpiffeId;
use palisade_protocol::trust::{Trust, sha256};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use rustls::pki_types::CertificateDer;

use crate::secret::{self, NoRandomness};
use request::{BadRequest, CertificateRequest};

/// How long a component's certificate is valid.
pub const LEAF_LIFETIME: Duration = Duration::from_secs(30 * 24 * 3600);
/// From this age on a certificate is renewed.
pub const RENEW_AFTER: Duration = Duration::from_secs(10 * 24 * 3600);
/// Certificates begin this long before they are made: clocks of guests are off.
pub const BACKDATED: Duration = Duration::from_secs(48 * 3600);
const ROOT_LIFETIME: Duration = Duration::from_secs(20 * 365 * 24 * 3600);
const ISSUING_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// Why the authority cannot be opened, or cannot issue.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] IdentityError),
    /// A file is missing or damaged. The CA is what every component trusts, so
    /// it is never made anew over an old one.
    #[error(
        "the certificate authority's {path} is unusable: {detail}; restore {dir} from a backup, or begin a new site in an empty state folder (every agent and Protection Server must then join again)"
    )]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// Its folder.
        dir: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// The certificate request is not acceptable.
    #[error(transparent)]
    Request(#[from] BadRequest),
    /// A name does not fit a certificate.
    #[error("{name:?} cannot stand in a certificate: {source}")]
    Name {
        /// Which.
        name: String,
        /// Why.
        source: rcgen::Error,
    },
    /// Signing failed.
    #[error("a certificate cannot be made: {0}")]
    Sign(#[from] rcgen::Error),
    /// No randomness.
    #[error(transparent)]
    Randomness(#[from] NoRandomness),
}

/// The site's certificate authority.
pub struct Authority {
    deployment: DeploymentId,
    root: CertificateDer<'static>,
    issuing: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Authority({})", self.deployment)
    }
}

impl Authority {
    /// Opens the authority in `dir`; at the very first start it is made.
    ///
    /// # Errors
    /// [`CaError`] naming the file and the remedy.
    pub fn open(dir: &Path, deployment: &DeploymentId, now_ms: u64) -> Result<Self, CaError> {
        let (root, root_key) = match files::read(dir, "root")? {
            Some(pair) => pair,
            None => files::create(dir, "root", |key| {
                let mut params = ca_params(deployment, "root", 1, ROOT_LIFETIME, now_ms)?;
                // Self-signed: its authority key is its own.
                params.use_authority_key_identifier_extension = false;
                Ok(params.self_signed(key)?.der().clone())
            })?,
        };
        let (issuing, issuing_key) = match files::read(dir, "issuing")? {
            Some(pair) => pair,
            None => files::create(dir, "issuing", |key| {
                let root_issuer = Issuer::from_ca_cert_der(&root, &root_key)?;
                let params = ca_params(deployment, "issuing CA", 0, ISSUING_LIFETIME, now_ms)?;
                Ok(params.signed_by(key, &root_issuer)?.der().clone())
            })?,
        };
        let issuer = Issuer::from_ca_cert_der(&issuing, issuing_key)?;
        Ok(Self {
            deployment: deployment.clone(),
            root,
            issuing,
            issuer,
        })
    }

    /// The deployment whose identities it vouches for.
    pub fn deployment(&self) -> &DeploymentId {
        &self.deployment
    }

    /// The root certificate.
    pub fn root(&self) -> &CertificateDer<'static> {
        &self.root
    }

    /// SHA-256 of the root certificate: what join tokens pin.
    pub fn root_sha256(&self) -> [u8; 32] {
        sha256(&self.root)
    }

    /// Trust in this site's components.
    pub fn trust(&self) -> Trust {
        Trust::in_root(self.root.clone(), self.deployment.clone())
    }

    /// Issues a component's certificate: leaf, issuing CA, root.
    ///
    /// # Errors
    /// [`CaError::Sign`].
    pub fn issue(
        &self,
        id: &SpiffeId,
        request: &CertificateRequest,
        now_ms: u64,
    ) -> Result<Vec<CertificateDer<'static>>, CaError> {
        self.sign(id, request.public_key(), now_ms)
    }

    /// A new key with an identity for this server itself.
    ///
    /// # Errors
    /// [`CaError::Sign`] or [`CaError::File`].
    pub fn own_identity(&self, id: &SpiffeId, now_ms: u64) -> Result<Identity, CaError> {
        let key = identity::new_key()?;
        let chain = self.sign(id, &key, now_ms)?;
        Ok(Identity::new(&key, chain)?)
    }

    /// A new key and HTTPS certificate for the API: leaf and issuing CA.
    ///
    /// # Errors
    /// [`CaError::Name`] for a name that does not fit a certificate.
    pub fn https_certificate(
        &self,
        names: &[String],
        now_ms: u64,
    ) -> Result<(Vec<CertificateDer<'static>>, KeyPair), CaError> {
        let mut params = leaf_params(now_ms, vec![ExtendedKeyUsagePurpose::ServerAuth])?;
        params.distinguished_name = subject(&self.deployment, "API");
        for name in names {
            params.subject_alt_names.push(match name.parse::<IpAddr>() {
                Ok(ip) => SanType::IpAddress(ip),
                Err(_) => {
                    SanType::DnsName(name.as_str().try_into().map_err(|source| CaError::Name {
                        name: name.clone(),
                        source,
                    })?)
                }
            });
        }
        let key = identity::new_key()?;
        let leaf = params.signed_by(&key, &self.issuer)?;
        Ok((vec![leaf.der().clone(), self.issuing.clone()], key))
    }

    fn sign(
        &self,
        id: &SpiffeId,
        key: &impl PublicKeyData,
        now_ms: u64,
    ) -> Result<Vec<CertificateDer<'static>>, CaError> {
        let usages = vec![
            ExtendedKeyUsagePurpose::ClientAuth,
            ExtendedKeyUsagePurpose::ServerAuth,
        ];
        let mut params = leaf_params(now_ms, usages)?;
        let name = id.to_string();
        params.distinguished_name = subject(&self.deployment, &id.role.kind().to_string());
        params.subject_alt_names = vec![SanType::URI(name.as_str().try_into().map_err(
            |source| CaError::Name {
                name: name.clone(),
                source,
            },
        )?)];
        let leaf = params.signed_by(key, &self.issuer)?;
        Ok(vec![
            leaf.der().clone(),
            self.issuing.clone(),
            self.root.clone(),
        ])
    }
}

fn subject(deployment: &DeploymentId, what: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, format!("Palisade {deployment}"));
    name.push(DnType::CommonName, format!("Palisade {what}"));
    name
}

fn params(now_ms: u64, lifetime: Duration) -> Result<CertificateParams, CaError> {
    let mut params = CertificateParams::default();
    let now = Duration::from_secs(now_ms / 1000);
    let epoch = rcgen::date_time_ymd(1970, 1, 1);
    params.not_before = epoch + now.saturating_sub(BACKDATED);
    params.not_after = epoch + now + lifetime;
    let mut serial = secret::random()?[..16].to_vec();
    serial[0] &= 0x7f;
    params.serial_number = Some(SerialNumber::from(serial));
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn ca_params(
    deployment: &DeploymentId,
    what: &str,
    path_length: u8,
    lifetime: Duration,
    now_ms: u64,
) -> Result<CertificateParams, CaError> {
    let mut params = params(now_ms, lifetime)?;
    params.distinguished_name = subject(deployment, what);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(path_length));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

fn leaf_params(
    now_ms: u64,
    usages: Vec<ExtendedKeyUsagePurpose>,
) -> Result<CertificateParams, CaError> {
    let mut params = params(now_ms, LEAF_LIFETIME)?;
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = usages;
    Ok(params)
}
