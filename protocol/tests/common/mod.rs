//! A site's CA, made anew for each test.
#![allow(dead_code, reason = "each test file uses a part of it")]

use palisade_protocol::identity::{Identity, new_key};
use palisade_protocol::ids::{AgentId, DeploymentId, ServerName, SvmId, TenantId};
use palisade_protocol::spiffe::SpiffeId;
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType, date_time_ymd,
};
use rustls::pki_types::CertificateDer;

/// Root and issuing CA of a deployment.
pub struct Ca {
    pub deployment: DeploymentId,
    root: CertificateDer<'static>,
    issuing: CertifiedIssuer<'static, KeyPair>,
}

impl Ca {
    pub fn new(deployment: &str) -> Self {
        let root = CertifiedIssuer::self_signed(ca_params("root", 1), new_key().unwrap()).unwrap();
        let issuing =
            CertifiedIssuer::signed_by(ca_params("issuing", 0), new_key().unwrap(), &root).unwrap();
        Self {
            deployment: deployment.parse().unwrap(),
            root: root.der().clone(),
            issuing,
        }
    }

    pub fn root(&self) -> CertificateDer<'static> {
        self.root.clone()
    }

    pub fn agent(&self, tenant: &str) -> Identity {
        let tenant: TenantId = tenant.parse().unwrap();
        self.issue(&[SpiffeId::agent(&self.deployment, &tenant, AgentId::random()).to_string()])
    }

    pub fn svm(&self) -> Identity {
        self.svm_with_id(SvmId::random())
    }

    pub fn svm_with_id(&self, id: SvmId) -> Identity {
        self.issue(&[SpiffeId::svm(&self.deployment, id).to_string()])
    }

    pub fn server(&self) -> Identity {
        let name: ServerName = "server-1".parse().unwrap();
        self.issue(&[SpiffeId::server(&self.deployment, &name).to_string()])
    }

    pub fn issue(&self, uris: &[String]) -> Identity {
        let key = new_key().unwrap();
        let chain = self.chain(&key, uris, |_| {});
        Identity::new(&key, chain).unwrap()
    }

    pub fn chain(
        &self,
        key: &KeyPair,
        uris: &[String],
        change: impl FnOnce(&mut CertificateParams),
    ) -> Vec<CertificateDer<'static>> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = uris
            .iter()
            .map(|uri| SanType::URI(uri.as_str().try_into().unwrap()))
            .collect();
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ClientAuth,
            ExtendedKeyUsagePurpose::ServerAuth,
        ];
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2120, 1, 1);
        change(&mut params);
        let leaf = params.signed_by(key, &*self.issuing).unwrap();
        vec![
            leaf.der().clone(),
            self.issuing.der().clone(),
            self.root.clone(),
        ]
    }
}

fn ca_params(name: &str, below: u8) -> CertificateParams {
    let mut params = CertificateParams::default();
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(below));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}
