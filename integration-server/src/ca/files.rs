//! The authority's files: `NAME.key` (0600) and `NAME.pem`, each whole or not at
//! all. The key is written first: a key without its certificate has vouched for
//! nothing and may be replaced; a certificate without its key is damage.

use std::path::Path;

use palisade_protocol::identity;
use rcgen::KeyPair;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use super::CaError;

/// Largest file that is read, in bytes.
const MAX_FILE_BYTES: u64 = 64 * 1024;

/// A certificate and its key.
pub type Pair = (CertificateDer<'static>, KeyPair);

/// Reads a pair; `None` when there is none yet.
///
/// # Errors
/// [`CaError::Damaged`] for a pair that is not whole.
pub fn read(dir: &Path, name: &str) -> Result<Option<Pair>, CaError> {
    let certificate_path = dir.join(name).with_extension("pem");
    let key_path = dir.join(name).with_extension("key");
    let damaged = |path: &Path, detail: String| CaError::Damaged {
        path: path.to_owned(),
        dir: dir.to_owned(),
        detail,
    };
    let Some(text) = read_text(&certificate_path).map_err(|e| damaged(&certificate_path, e))?
    else {
        return Ok(None);
    };
    let certificate = CertificateDer::from_pem_slice(text.as_bytes())
        .map_err(|error| damaged(&certificate_path, error.to_string()))?;
    let key = read_text(&key_path)
        .map_err(|error| damaged(&key_path, error))?
        .ok_or_else(|| damaged(&key_path, "it is missing".to_owned()))?;
    let key = KeyPair::from_pem(&key).map_err(|error| damaged(&key_path, error.to_string()))?;
    let (_, parsed) = x509_parser::parse_x509_certificate(&certificate)
        .map_err(|error| damaged(&certificate_path, error.to_string()))?;
    if parsed.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
        return Err(damaged(
            &key_path,
            format!("it is not the key of {name}.pem"),
        ));
    }
    Ok(Some((certificate, key)))
}

/// Makes a pair and writes it.
///
/// # Errors
/// [`CaError`] from making or writing.
pub fn create(
    dir: &Path,
    name: &str,
    certify: impl FnOnce(&KeyPair) -> Result<CertificateDer<'static>, CaError>,
) -> Result<Pair, CaError> {
    let key = identity::new_key()?;
    let certificate = certify(&key)?;
    let path = dir.join(name);
    identity::write_atomic(
        &path.with_extension("key"),
        key.serialize_pem().as_bytes(),
        0o600,
    )?;
    let pem = pem(&certificate);
    identity::write_atomic(&path.with_extension("pem"), pem.as_bytes(), 0o644)?;
    Ok((certificate, key))
}

/// A certificate as PEM.
pub fn pem(certificate: &CertificateDer<'_>) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(certificate);
    let mut out = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in text.as_bytes().chunks(64) {
        out.push_str(&String::from_utf8_lossy(line));
        out.push('\n');
    }
    out.push_str("-----END CERTIFICATE-----\n");
    out
}

fn read_text(path: &Path) -> Result<Option<String>, String> {
    use std::io::Read as _;
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    let mut text = String::new();
    file.take(MAX_FILE_BYTES)
        .read_to_string(&mut text)
        .map_err(|error| error.to_string())?;
    Ok(Some(text))
}
