//! The server's own certificates: its identity towards agents and Protection
//! Servers, and the API's HTTPS certificate. Both are made from the authority at
//! start and again from the tenth day on, while the server runs; new sessions get
//! the new one, open ones keep theirs.

use std::sync::{Arc, PoisonError, RwLock};

use palisade_protocol::identity::Identity;
use palisade_protocol::spiffe::SpiffeId;
use palisade_protocol::tls;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::{Authority, CaError, RENEW_AFTER};
use crate::time::millis;

/// A certificate that can be exchanged under a running listener.
#[derive(Debug)]
pub struct Exchangeable(RwLock<Arc<CertifiedKey>>);

impl Exchangeable {
    fn new(certified: CertifiedKey) -> Self {
        Self(RwLock::new(Arc::new(certified)))
    }

    fn set(&self, certified: CertifiedKey) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(certified);
    }
}

impl ResolvesServerCert for Exchangeable {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(
            &self.0.read().unwrap_or_else(PoisonError::into_inner),
        ))
    }
}

/// The server's own certificates in force.
#[derive(Debug)]
pub struct OwnCertificates {
    authority: Arc<Authority>,
    id: SpiffeId,
    api_names: Vec<String>,
    identity: RwLock<Identity>,
    control: Arc<Exchangeable>,
    api: Arc<Exchangeable>,
    made_ms: std::sync::atomic::AtomicU64,
}

impl OwnCertificates {
    /// Makes both.
    ///
    /// # Errors
    /// [`CaError`].
    pub fn new(
        authority: Arc<Authority>,
        id: SpiffeId,
        api_names: Vec<String>,
        now_ms: u64,
    ) -> Result<Self, CaError> {
        let (identity, control, api) = make(&authority, &id, &api_names, now_ms)?;
        Ok(Self {
            authority,
            id,
            api_names,
            identity: RwLock::new(identity),
            control: Arc::new(Exchangeable::new(control)),
            api: Arc::new(Exchangeable::new(api)),
            made_ms: now_ms.into(),
        })
    }

    /// The identity that signs this server's envelopes.
    pub fn identity(&self) -> Identity {
        self.identity
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// What the control listener shows.
    pub fn control(&self) -> Arc<Exchangeable> {
        Arc::clone(&self.control)
    }

    /// What the API's listener shows.
    pub fn api(&self) -> Arc<Exchangeable> {
        Arc::clone(&self.api)
    }

    /// Makes both anew when they are old enough; says whether it did.
    ///
    /// # Errors
    /// [`CaError`]; what is in force stays so.
    pub fn renew_if_due(&self, now_ms: u64) -> Result<bool, CaError> {
        use std::sync::atomic::Ordering::Relaxed;
        if now_ms.saturating_sub(self.made_ms.load(Relaxed)) < millis(RENEW_AFTER) {
            return Ok(false);
        }
        let (identity, control, api) = make(&self.authority, &self.id, &self.api_names, now_ms)?;
        *self
            .identity
            .write()
            .unwrap_or_else(PoisonError::into_inner) = identity;
        self.control.set(control);
        self.api.set(api);
        self.made_ms.store(now_ms, Relaxed);
        Ok(true)
    }
}

fn make(
    authority: &Authority,
    id: &SpiffeId,
    api_names: &[String],
    now_ms: u64,
) -> Result<(Identity, CertifiedKey, CertifiedKey), CaError> {
    let identity = authority.own_identity(id, now_ms)?;
    let control = certified(identity.chain().to_vec(), identity.key())?;
    let (chain, key) = authority.https_certificate(api_names, now_ms)?;
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    Ok((identity, control, certified(chain, key)?))
}

fn certified(
    chain: Vec<rustls::pki_types::CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
) -> Result<CertifiedKey, CaError> {
    CertifiedKey::from_der(chain, key, &tls::provider())
        .map_err(|_| CaError::Sign(rcgen::Error::RemoteKeyError))
}

#[cfg(test)]
mod tests {
    use super::*;
    use palisade_protocol::ids::{DeploymentId, ServerName};

    #[test]
    fn certificates_are_renewed_from_the_tenth_day() {
        let dir = tempfile::tempdir().unwrap();
        let deployment: DeploymentId = "site".parse().unwrap();
        let name: ServerName = "server-1".parse().unwrap();
        let now = 1_800_000_000_000;
        let authority = Arc::new(Authority::open(dir.path(), &deployment, now).unwrap());
        let id = SpiffeId::server(&deployment, &name);
        let own = OwnCertificates::new(authority, id, vec!["localhost".into()], now).unwrap();
        let first = own.identity().chain()[0].clone();
        let day = 24 * 3600 * 1000;
        assert!(!own.renew_if_due(now + 9 * day).unwrap());
        assert_eq!(own.identity().chain()[0], first);
        assert!(own.renew_if_due(now + 10 * day).unwrap());
        assert_ne!(own.identity().chain()[0], first);
    }
}
