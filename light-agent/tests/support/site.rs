//! A site's CA.

use palisade_daemon::membership::Membership;
use palisade_protocol::identity::{Identity, new_key};
use palisade_protocol::ids::{AgentId, DeploymentId, SvmId, TenantId};
use palisade_protocol::spiffe::SpiffeId;
use rcgen::{
    BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::pki_types::CertificateDer;

pub struct Site {
    deployment: DeploymentId,
    root: CertificateDer<'static>,
    issuing: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl Site {
    pub fn new() -> Self {
        let root_key = new_key().unwrap();
        let root_params = ca("root");
        let root = root_params.self_signed(&root_key).unwrap().der().clone();
        let root_issuer = Issuer::new(root_params, root_key);
        let issuing_key = new_key().unwrap();
        let issuing_params = ca("issuing");
        let issuing = issuing_params
            .signed_by(&issuing_key, &root_issuer)
            .unwrap()
            .der()
            .clone();
        Self {
            deployment: "test".parse().unwrap(),
            root,
            issuing,
            issuer: Issuer::new(issuing_params, issuing_key),
        }
    }

    /// An agent whose certificate is valid between these moments, in days from now.
    pub fn agent_valid(&self, from: i64, until: i64) -> Membership {
        let mut agent = self.agent();
        let id = agent.identity.id().clone();
        let now = std::time::SystemTime::now();
        let at = |days: i64| {
            let day = std::time::Duration::from_secs(86_400 * days.unsigned_abs());
            if days < 0 { now - day } else { now + day }
        };
        agent.identity = self.issue_with(&id, |params| {
            params.not_before = at(from).into();
            params.not_after = at(until).into();
        });
        agent
    }

    pub fn agent(&self) -> Membership {
        let tenant = TenantId::default_tenant();
        let id = SpiffeId::agent(&self.deployment, &tenant, AgentId::random());
        Membership {
            identity: self.issue(&id),
            servers: vec![],
            name: "test-agent".into(),
        }
    }

    pub fn svm(&self, id: SvmId) -> Identity {
        self.issue(&SpiffeId::svm(&self.deployment, id))
    }

    pub fn server(&self) -> Identity {
        let name = "server-1".parse().unwrap();
        self.issue(&SpiffeId::server(&self.deployment, &name))
    }

    fn issue(&self, id: &SpiffeId) -> Identity {
        self.issue_with(id, |_| {})
    }

    fn issue_with(&self, id: &SpiffeId, change: impl FnOnce(&mut CertificateParams)) -> Identity {
        let key = new_key().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(id.to_string().try_into().unwrap())];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ClientAuth,
            ExtendedKeyUsagePurpose::ServerAuth,
        ];
        change(&mut params);
        let leaf = params.signed_by(&key, &self.issuer).unwrap().der().clone();
        Identity::new(&key, vec![leaf, self.issuing.clone(), self.root.clone()]).unwrap()
    }
}

fn ca(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}
