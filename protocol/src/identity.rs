//! A component's key and certificates: made once, kept in its state folder.
//!
//! Owns the two files of an identity (`key.pem`, mode 0600, and `chain.pem`:
//! leaf, issuing CA, root) and the making of keys and certificate requests. Does
//! not own issuing, which is the Integration Server's.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use webpki::EndEntityCert;

use crate::control::MAX_CHAIN;
use crate::spiffe::SpiffeId;
use crate::trust;

/// Largest identity file that is read, in bytes.
const MAX_FILE_BYTES: u64 = 64 * 1024;

/// Why an identity cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file cannot be read or written.
    #[error("{path}: {source}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file does not hold what it should.
    #[error("{path} is damaged: {detail}; remove it and enrol again")]
    Damaged {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// The chain is unusable.
    #[error("the certificate chain is unusable: {0}")]
    Chain(String),
    /// The key cannot be made or used.
    #[error("the key cannot be used: {0}")]
    Key(#[from] rcgen::Error),
}

/// A key with the certificate chain that was issued for it.
pub struct Identity {
    id: SpiffeId,
    key_pkcs8: Vec<u8>,
    chain: Vec<CertificateDer<'static>>,
}

impl Clone for Identity {
    fn clone(&self) -> Self {
        Self {
            id: self.id.clone(),
            key_pkcs8: self.key_pkcs8.clone(),
            chain: self.chain.clone(),
        }
    }
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Identity({})", self.id)
    }
}

impl Identity {
    /// Puts a key and its chain (leaf, issuing CA, root) together.
    ///
    /// # Errors
    /// [`IdentityError::Chain`] when the chain is empty, too long, for another
    /// key, or its leaf names no component.
    pub fn new(key: &KeyPair, chain: Vec<CertificateDer<'static>>) -> Result<Self, IdentityError> {
        if chain.len() < 2 || chain.len() > MAX_CHAIN {
            return Err(IdentityError::Chain(format!(
                "it has {} certificates, and needs 2 to {MAX_CHAIN}",
                chain.len()
            )));
        }
        let leaf = EndEntityCert::try_from(&chain[0])
            .map_err(|error| IdentityError::Chain(error.to_string()))?;
        let id =
            trust::spiffe_id(&leaf).map_err(|error| IdentityError::Chain(error.to_string()))?;
        let spki = leaf.subject_public_key_info();
        if !spki.as_ref().ends_with(key.public_key_raw()) {
            return Err(IdentityError::Chain(
                "it was issued for another key".to_owned(),
            ));
        }
        Ok(Self {
            id,
            key_pkcs8: key.serialize_der(),
            chain,
        })
    }

    /// Who this is.
    pub fn id(&self) -> &SpiffeId {
        &self.id
    }

    /// Leaf, issuing CA, root.
    pub fn chain(&self) -> &[CertificateDer<'static>] {
        &self.chain
    }

    /// The site's root certificate: the last of the chain.
    pub fn root(&self) -> &CertificateDer<'static> {
        // `new` refused chains of fewer than two.
        &self.chain[self.chain.len() - 1]
    }

    /// The private key in PKCS#8 DER.
    pub fn key_pkcs8(&self) -> &[u8] {
        &self.key_pkcs8
    }

    /// The private key as rustls takes it.
    pub fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key_pkcs8.clone()))
    }

    /// Trust in this identity's own site.
    pub fn trust(&self) -> trust::Trust {
        trust::Trust::in_root(self.root().clone(), self.id.deployment.clone())
    }

    /// Reads the identity in `dir`; `None` when there is none yet.
    ///
    /// # Errors
    /// [`IdentityError`] naming the file and the remedy.
    pub fn load(dir: &Path) -> Result<Option<Self>, IdentityError> {
        let chain_path = dir.join("chain.pem");
        let Some(chain_pem) = read_bounded(&chain_path)? else {
            return Ok(None);
        };
        let key_path = dir.join("key.pem");
        let Some(key_pem) = read_bounded(&key_path)? else {
            return Err(damaged(&key_path, "it is missing beside chain.pem"));
        };
        let key = KeyPair::from_pem(&key_pem).map_err(|error| damaged(&key_path, error))?;
        let chain = CertificateDer::pem_slice_iter(chain_pem.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| damaged(&chain_path, error))?;
        Self::new(&key, chain)
            .map(Some)
            .map_err(|error| damaged(&chain_path, error))
    }

    /// Writes the identity into `dir`: the key first, then the chain, each whole
    /// or not at all, so that a half-written identity is never loaded.
    ///
    /// # Errors
    /// [`IdentityError::File`].
    pub fn save(&self, dir: &Path) -> Result<(), IdentityError> {
        let key = pem("PRIVATE KEY", &self.key_pkcs8);
        let chain: String = self
            .chain
            .iter()
            .map(|der| pem("CERTIFICATE", der))
            .collect();
        write_atomic(&dir.join("key.pem"), key.as_bytes(), 0o600)?;
        write_atomic(&dir.join("chain.pem"), chain.as_bytes(), 0o644)
    }
}

/// A new ECDSA P-256 key.
///
/// # Errors
/// [`IdentityError::Key`] when the system gives no randomness.
pub fn new_key() -> Result<KeyPair, IdentityError> {
    Ok(KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?)
}

/// A certificate request in DER that proves the key and claims nothing else.
///
/// # Errors
/// [`IdentityError::Key`].
pub fn certificate_request(key: &KeyPair) -> Result<Vec<u8>, IdentityError> {
    Ok(CertificateParams::default()
        .serialize_request(key)?
        .der()
        .to_vec())
}

/// A self-signed certificate for the connection on which a component enrols:
/// TLS stays mutual, and the certificate vouches for nothing.
///
/// # Errors
/// [`IdentityError::Key`].
pub fn enrolment_certificate(key: &KeyPair) -> Result<CertificateDer<'static>, IdentityError> {
    Ok(CertificateParams::default().self_signed(key)?.der().clone())
}

/// Writes a file whole or not at all: a temporary file, synced, renamed.
///
/// # Errors
/// [`IdentityError::File`].
pub fn write_atomic(path: &Path, bytes: &[u8], mode: u32) -> Result<(), IdentityError> {
    let at = |path: &Path| {
        let path = path.to_owned();
        move |source| IdentityError::File { path, source }
    };
    let temporary = path.with_extension("new");
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(at(parent))?;
    }
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(&temporary)
        .map_err(at(&temporary))?;
    file.write_all(bytes)
        .and_then(|()| file.sync_all())
        .map_err(at(&temporary))?;
    fs::rename(&temporary, path).map_err(at(path))
}

fn pem(label: &str, der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let mut out = format!("-----BEGIN {label}-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, more) = rest.split_at(rest.len().min(64));
        out.push_str(line);
        out.push('\n');
        rest = more;
    }
    out.push_str(&format!("-----END {label}-----\n"));
    out
}

fn read_bounded(path: &Path) -> Result<Option<String>, IdentityError> {
    use std::io::Read as _;
    let file = match fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(source) => {
            return Err(IdentityError::File {
                path: path.to_owned(),
                source,
            });
        }
    };
    let mut text = String::new();
    file.take(MAX_FILE_BYTES)
        .read_to_string(&mut text)
        .map_err(|source| IdentityError::File {
            path: path.to_owned(),
            source,
        })?;
    Ok(Some(text))
}

fn damaged(path: &Path, detail: impl ToString) -> IdentityError {
    IdentityError::Damaged {
        path: path.to_owned(),
        detail: detail.to_string(),
    }
}
