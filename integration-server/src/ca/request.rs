//! What is taken from a certificate request: its public key, if the request is
//! signed by it and it is ECDSA P-256. Subject, names and extensions are ignored;
//! the server decides what a certificate says.

use palisade_protocol::trust::sha256;
use rcgen::{PKCS_ECDSA_P256_SHA256, PublicKeyData, SubjectPublicKeyInfo};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer as _;

/// A request is not acceptable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the certificate request is not acceptable: {0}")]
pub struct BadRequest(&'static str);

/// A request whose signature was verified.
#[derive(Debug)]
pub struct CertificateRequest {
    key: SubjectPublicKeyInfo,
    key_sha256: [u8; 32],
}

impl CertificateRequest {
    /// Reads and verifies a PKCS#10 request in DER.
    ///
    /// # Errors
    /// [`BadRequest`] saying what is wrong with it.
    pub fn from_der(der: &[u8]) -> Result<Self, BadRequest> {
        let (rest, request) = X509CertificationRequest::from_der(der)
            .map_err(|_| BadRequest("it is not a PKCS#10 request in DER"))?;
        if !rest.is_empty() {
            return Err(BadRequest("bytes follow it"));
        }
        let spki = request.certification_request_info.subject_pki.raw;
        let key = SubjectPublicKeyInfo::from_der(spki)
            .map_err(|_| BadRequest("its key is of no known kind; ECDSA P-256 is expected"))?;
        if key.algorithm() != &PKCS_ECDSA_P256_SHA256 {
            return Err(BadRequest("its key is not ECDSA P-256"));
        }
        request
            .verify_signature()
            .map_err(|_| BadRequest("it is not signed by the key that it names"))?;
        Ok(Self {
            key,
            key_sha256: sha256(spki),
        })
    }

    /// The key to vouch for.
    pub fn public_key(&self) -> &impl PublicKeyData {
        &self.key
    }

    /// SHA-256 of the key: tells whether a request comes again.
    pub fn key_sha256(&self) -> [u8; 32] {
        self.key_sha256
    }
}

#[cfg(test)]
mod tests {
    use palisade_protocol::identity;
    use proptest::prelude::*;
    use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P384_SHA384, PKCS_ED25519};

    use super::*;

    #[test]
    fn a_signed_p256_key_is_taken() {
        let key = identity::new_key().unwrap();
        let csr = identity::certificate_request(&key).unwrap();
        let request = CertificateRequest::from_der(&csr).unwrap();
        assert_eq!(request.public_key().der_bytes(), key.public_key_raw());
    }

    #[test]
    fn other_kinds_of_key_are_refused() {
        for algorithm in [&PKCS_ECDSA_P384_SHA384, &PKCS_ED25519] {
            let key = KeyPair::generate_for(algorithm).unwrap();
            let csr = CertificateParams::default()
                .serialize_request(&key)
                .unwrap();
            assert!(CertificateRequest::from_der(csr.der()).is_err());
        }
    }

    #[test]
    fn a_key_without_its_signature_is_refused() {
        let key = identity::new_key().unwrap();
        let mut csr = identity::certificate_request(&key).unwrap();
        let last = csr.len() - 1;
        csr[last] ^= 1;
        assert!(CertificateRequest::from_der(&csr).is_err());
        csr[last] ^= 1;
        csr.push(0);
        assert!(CertificateRequest::from_der(&csr).is_err());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            prop_assert!(CertificateRequest::from_der(&bytes).is_err());
        }
    }
}
