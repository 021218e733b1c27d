//! Certificates, as the other end sees them: validated by the shared trust rules.

use std::time::Duration;

use palisade_integration_server::ca::request::CertificateRequest;
use palisade_integration_server::ca::{Authority, BACKDATED, LEAF_LIFETIME};
use palisade_protocol::identity;
use palisade_protocol::ids::{AgentId, DeploymentId, ServerName, SvmId, TenantId};
use palisade_protocol::spiffe::SpiffeId;
use palisade_protocol::trust::{Anchor, Trust, TrustError, Usage};
use rustls::pki_types::{CertificateDer, UnixTime};
use tempfile::TempDir;

const NOW_MS: u64 = 1_800_000_000_000;

fn deployment(name: &str) -> DeploymentId {
    name.parse().unwrap()
}

fn authority(name: &str) -> (TempDir, Authority) {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::open(dir.path(), &deployment(name), NOW_MS).unwrap();
    (dir, authority)
}

fn at(ms: u64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_millis(ms))
}

fn issued(authority: &Authority, id: &SpiffeId) -> Vec<CertificateDer<'static>> {
    let key = identity::new_key().unwrap();
    let csr = identity::certificate_request(&key).unwrap();
    let request = CertificateRequest::from_der(&csr).unwrap();
    authority.issue(id, &request, NOW_MS).unwrap()
}

#[test]
fn every_kind_of_component_is_vouched_for_by_root_and_by_its_hash() {
    let (_dir, authority) = authority("site");
    let site = deployment("site");
    let tenant = TenantId::default_tenant();
    let name: ServerName = "server-1".parse().unwrap();
    for id in [
        SpiffeId::agent(&site, &tenant, AgentId::random()),
        SpiffeId::svm(&site, SvmId::random()),
        SpiffeId::server(&site, &name),
    ] {
        let chain = issued(&authority, &id);
        assert_eq!(chain.len(), 3);
        for usage in [Usage::Client, Usage::Server, Usage::Envelope] {
            let who = authority
                .trust()
                .verify(&chain[0], &chain[1..], usage, at(NOW_MS))
                .unwrap();
            assert_eq!(who, id);
        }
        let pinned = Trust {
            anchor: Anchor::RootHash(authority.root_sha256()),
            deployment: None,
            grace: Default::default(),
        };
        assert_eq!(
            pinned
                .verify(&chain[0], &chain[1..], Usage::Server, at(NOW_MS))
                .unwrap(),
            id
        );
    }
}

#[test]
fn a_certificate_is_valid_from_two_days_before_to_thirty_days_after() {
    let (_dir, authority) = authority("site");
    let chain = issued(
        &authority,
        &SpiffeId::svm(&deployment("site"), SvmId::random()),
    );
    let ok = |ms: u64| {
        authority
            .trust()
            .verify(&chain[0], &chain[1..], Usage::Client, at(ms))
            .is_ok()
    };
    let (before, after) = (
        BACKDATED.as_millis() as u64,
        LEAF_LIFETIME.as_millis() as u64,
    );
    assert!(ok(NOW_MS - before) && ok(NOW_MS) && ok(NOW_MS + after));
    assert!(!ok(NOW_MS - before - 1000) && !ok(NOW_MS + after + 1000));
}

#[test]
fn another_site_is_another_trust() {
    let (_dir, ours) = authority("site");
    let (_dir, theirs) = authority("site");
    let id = SpiffeId::svm(&deployment("site"), SvmId::random());
    let chain = issued(&theirs, &id);
    let refused = ours
        .trust()
        .verify(&chain[0], &chain[1..], Usage::Client, at(NOW_MS));
    assert!(matches!(refused, Err(TrustError::Path(_))), "{refused:?}");
    let other = SpiffeId::svm(&deployment("other"), SvmId::random());
    let chain = issued(&ours, &other);
    let refused = ours
        .trust()
        .verify(&chain[0], &chain[1..], Usage::Client, at(NOW_MS));
    assert!(
        matches!(refused, Err(TrustError::OtherDeployment { .. })),
        "{refused:?}"
    );
}

#[test]
fn a_component_cannot_issue_and_the_https_certificate_is_no_identity() {
    let (_dir, authority) = authority("site");
    let chain = issued(
        &authority,
        &SpiffeId::svm(&deployment("site"), SvmId::random()),
    );
    let key = identity::new_key().unwrap();
    // A component's certificate in the place of an issuing CA.
    let issuer = rcgen::Issuer::from_ca_cert_der(&chain[0], &key).unwrap();
    let forged = rcgen::CertificateParams::default()
        .signed_by(&key, &issuer)
        .unwrap();
    let path = [chain[0].clone(), chain[1].clone(), chain[2].clone()];
    let refused = authority
        .trust()
        .verify(forged.der(), &path, Usage::Client, at(NOW_MS));
    assert!(refused.is_err());

    let names = ["localhost".to_owned(), "127.0.0.1".to_owned()];
    let (https, _key) = authority.https_certificate(&names, NOW_MS).unwrap();
    let refused = authority
        .trust()
        .verify(&https[0], &https[1..], Usage::Server, at(NOW_MS));
    assert!(
        matches!(refused, Err(TrustError::IdCount(0))),
        "{refused:?}"
    );
    let refused = authority
        .trust()
        .verify(&https[0], &https[1..], Usage::Client, at(NOW_MS));
    assert!(matches!(refused, Err(TrustError::Path(_))), "{refused:?}");
    assert!(
        authority
            .https_certificate(&["ü".to_owned()], NOW_MS)
            .is_err()
    );
}

#[test]
fn the_authority_is_the_same_after_a_restart() {
    let (dir, first) = authority("site");
    let again = Authority::open(dir.path(), &deployment("site"), NOW_MS + 1).unwrap();
    assert_eq!(first.root_sha256(), again.root_sha256());
    let chain = issued(&again, &SpiffeId::svm(&deployment("site"), SvmId::random()));
    assert!(
        first
            .trust()
            .verify(&chain[0], &chain[1..], Usage::Client, at(NOW_MS))
            .is_ok()
    );
}

#[test]
fn a_start_that_was_cut_short_is_taken_up() {
    let (dir, first) = authority("site");
    // The issuing CA's key was written, its certificate not yet.
    std::fs::remove_file(dir.path().join("issuing.pem")).unwrap();
    let again = Authority::open(dir.path(), &deployment("site"), NOW_MS).unwrap();
    assert_eq!(first.root_sha256(), again.root_sha256());
    let chain = issued(&again, &SpiffeId::svm(&deployment("site"), SvmId::random()));
    assert!(
        first
            .trust()
            .verify(&chain[0], &chain[1..], Usage::Client, at(NOW_MS))
            .is_ok()
    );
}
