//! TLS over real QUIC on loopback: who may talk to whom, and who may not.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a panic fails the test"
)]

mod common;

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use common::Ca;
use palisade_protocol::bounded::Text;
use palisade_protocol::endpoint::{self, Bounds};
use palisade_protocol::frame;
use palisade_protocol::identity::{Identity, enrolment_certificate, new_key};
use palisade_protocol::ids::SvmId;
use palisade_protocol::scan;
use palisade_protocol::spiffe::{Role, RoleKind};
use palisade_protocol::tls::{self, Accept, Expect, Own, Peer};
use palisade_protocol::trust::{Anchor, ExpiryGrace, Trust, sha256};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

const LOOPBACK: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 0);
const AGENTS: Accept = Accept {
    agents: true,
    svms: false,
    unenrolled: false,
};

/// Connects once; gives the peer as the listener saw it.
async fn connect(
    listener: Identity,
    accept: Accept,
    own: Own,
    trust: Trust,
    expect: Expect,
    alpn: &[&[u8]],
) -> Result<Peer, String> {
    let config = tls::server_config(&listener, listener.trust(), accept, scan::ALPN).unwrap();
    let server = endpoint::listen(LOOPBACK, config, Bounds::SCAN_SERVER).unwrap();
    let address = server.local_addr().unwrap();
    let accepted = tokio::spawn(async move {
        let connection = server.accept().await?.await.ok()?;
        let peer = endpoint::peer(&connection).unwrap();
        // One byte each way: a client learns of its refusal only after its own handshake.
        let (mut send, mut receive) = connection.accept_bi().await.ok()?;
        receive.read_to_end(16).await.ok()?;
        send.write_all(b"y").await.ok()?;
        send.finish().ok()?;
        let _ = send.stopped().await;
        Some(peer)
    });
    let config = tls::client_config(own, trust, expect, alpn).unwrap();
    let client = endpoint::dialler(LOOPBACK).unwrap();
    let config = endpoint::client(config, Bounds::SCAN_AGENT).unwrap();
    let talk = async {
        let connection = client
            .connect_with(config, address, endpoint::SERVER_NAME)
            .map_err(|e| e.to_string())?
            .await
            .map_err(|e| e.to_string())?;
        let (mut send, mut receive) = connection.open_bi().await.map_err(|e| e.to_string())?;
        send.write_all(b"x").await.map_err(|e| e.to_string())?;
        send.finish().map_err(|e| e.to_string())?;
        receive.read_to_end(16).await.map_err(|e| e.to_string())?;
        Ok::<_, String>(())
    };
    tokio::time::timeout(Duration::from_secs(10), talk)
        .await
        .expect("answered")?;
    Ok(accepted.await.unwrap().expect("the listener saw it"))
}

#[tokio::test]
async fn an_agent_and_its_svm_see_each_other() {
    let ca = Ca::new("site-a");
    let (agent, svm) = (ca.agent("t1"), ca.svm());
    let Role::Svm(id) = svm.id().role else {
        unreachable!()
    };
    let seen = connect(
        svm,
        AGENTS,
        Own::Enrolled(agent.clone()),
        agent.trust(),
        Expect::Svm(id),
        scan::ALPN,
    )
    .await
    .unwrap();
    assert_eq!(seen, Peer::Enrolled(agent.id().clone()));
}

#[tokio::test]
async fn another_svm_than_the_listed_one_is_refused() {
    let ca = Ca::new("site-a");
    let agent = ca.agent("t1");
    let expect = Expect::Svm(SvmId::random());
    let error = connect(
        ca.svm(),
        AGENTS,
        Own::Enrolled(agent.clone()),
        agent.trust(),
        expect,
        scan::ALPN,
    )
    .await
    .unwrap_err();
    assert!(error.contains("expected"), "{error}");
}

#[tokio::test]
async fn an_agents_certificate_does_not_serve_as_svm() {
    let ca = Ca::new("site-a");
    let agent = ca.agent("t1");
    let error = connect(
        ca.agent("t1"),
        AGENTS,
        Own::Enrolled(agent.clone()),
        agent.trust(),
        Expect::AnySvm,
        scan::ALPN,
    )
    .await
    .unwrap_err();
    assert!(error.contains("Light Agent"), "{error}");
}

#[tokio::test]
async fn an_svm_does_not_pass_as_agent() {
    let ca = Ca::new("site-a");
    let svm = ca.svm();
    connect(
        ca.svm(),
        AGENTS,
        Own::Enrolled(svm.clone()),
        svm.trust(),
        Expect::AnySvm,
        scan::ALPN,
    )
    .await
    .unwrap_err();
}

#[tokio::test]
async fn another_sites_certificates_are_refused_on_both_ends() {
    let (ours, theirs) = (Ca::new("site-a"), Ca::new("site-a"));
    let stranger = theirs.agent("t1");
    // The stranger believes our SVM, and is not believed.
    connect(
        ours.svm(),
        AGENTS,
        Own::Enrolled(stranger.clone()),
        ours.agent("t1").trust(),
        Expect::AnySvm,
        scan::ALPN,
    )
    .await
    .unwrap_err();
    // Our agent does not believe theirs.
    let agent = ours.agent("t1");
    let error = connect(
        theirs.svm(),
        AGENTS,
        Own::Enrolled(agent.clone()),
        agent.trust(),
        Expect::AnySvm,
        scan::ALPN,
    )
    .await
    .unwrap_err();
    assert!(error.contains("not accepted"), "{error}");
}

#[tokio::test]
async fn a_certificate_of_another_deployment_under_our_root_is_refused() {
    let ca = Ca::new("site-a");
    let agent = ca.agent("t1");
    let other = ca.issue(&[format!("spiffe://site-b/svm/{}", SvmId::random())]);
    let error = connect(
        other,
        AGENTS,
        Own::Enrolled(agent.clone()),
        agent.trust(),
        Expect::AnySvm,
        scan::ALPN,
    )
    .await
    .unwrap_err();
    assert!(error.contains("site-b"), "{error}");
}

#[tokio::test]
async fn an_unknown_protocol_version_is_refused() {
    let ca = Ca::new("site-a");
    let agent = ca.agent("t1");
    connect(
        ca.svm(),
        AGENTS,
        Own::Enrolled(agent.clone()),
        agent.trust(),
        Expect::AnySvm,
        &[b"palisade-scan/999"],
    )
    .await
    .unwrap_err();
}

fn enrolling() -> Own {
    let key = new_key().unwrap();
    Own::Enrolling {
        certificate: enrolment_certificate(&key).unwrap(),
        key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
    }
}

fn pinned(hash: [u8; 32]) -> Trust {
    Trust {
        anchor: Anchor::RootHash(hash),
        deployment: None,
        grace: ExpiryGrace::default(),
    }
}

#[tokio::test]
async fn who_enrols_is_let_in_only_where_enrolment_is_taken_and_only_by_the_pinned_root() {
    let ca = Ca::new("site-a");
    let hash = sha256(&ca.root());
    let taken = Accept {
        agents: true,
        svms: true,
        unenrolled: true,
    };
    let seen = connect(
        ca.server(),
        taken,
        enrolling(),
        pinned(hash),
        Expect::Server,
        scan::ALPN,
    )
    .await;
    assert_eq!(seen.unwrap(), Peer::Unenrolled);
    connect(
        ca.server(),
        AGENTS,
        enrolling(),
        pinned(hash),
        Expect::Server,
        scan::ALPN,
    )
    .await
    .unwrap_err();
    let error = connect(
        ca.server(),
        taken,
        enrolling(),
        pinned([7; 32]),
        Expect::Server,
        scan::ALPN,
    )
    .await
    .unwrap_err();
    assert!(error.contains("join token"), "{error}");
    // An SVM must not be able to take a token's secret in the server's place.
    connect(
        ca.svm(),
        taken,
        enrolling(),
        pinned(hash),
        Expect::Server,
        scan::ALPN,
    )
    .await
    .unwrap_err();
}

#[test]
fn a_chain_is_believed_only_in_its_time_and_grace_is_bounded() {
    use palisade_protocol::trust::Usage;
    use rustls::pki_types::UnixTime;
    let ca = Ca::new("site-a");
    let agent = ca.agent("t1");
    let (leaf, rest) = agent.chain().split_first().unwrap();
    let trust = agent.trust();
    let day = 86_400;
    let end = 4_733_510_400; // 2120-01-01
    let at = |s| UnixTime::since_unix_epoch(Duration::from_secs(s));
    let kind = |s| {
        trust
            .verify(leaf, rest, Usage::Client, at(s))
            .map(|id| id.role.kind())
    };
    assert_eq!(kind(end - day).unwrap(), RoleKind::Agent);
    kind(end + day).unwrap_err();
    kind(day).unwrap_err();
    trust.grace.set(Duration::from_secs(2 * day));
    // The CA's own end is later than the leaf's, so only the leaf's is at stake.
    assert_eq!(kind(end + day).unwrap(), RoleKind::Agent);
    kind(end + 3 * day).unwrap_err();
}

#[test]
fn a_certificate_with_two_identities_is_none() {
    let ca = Ca::new("site-a");
    let key = new_key().unwrap();
    let uris = [
        format!("spiffe://site-a/svm/{}", SvmId::random()),
        "spiffe://site-a/server/server-1".to_owned(),
    ];
    assert!(Identity::new(&key, ca.chain(&key, &uris, |_| {})).is_err());
    assert!(Identity::new(&key, ca.chain(&key, &[], |_| {})).is_err());
}

#[test]
fn an_identity_survives_its_files_and_damage_is_named() {
    let ca = Ca::new("site-a");
    let identity = ca.agent("t1");
    let dir = tempfile::tempdir().unwrap();
    assert!(Identity::load(dir.path()).unwrap().is_none());
    identity.save(dir.path()).unwrap();
    let loaded = Identity::load(dir.path()).unwrap().unwrap();
    assert_eq!(loaded.id(), identity.id());
    assert_eq!(loaded.chain(), identity.chain());
    let mode = std::os::unix::fs::PermissionsExt::mode(
        &std::fs::metadata(dir.path().join("key.pem"))
            .unwrap()
            .permissions(),
    );
    assert_eq!(mode & 0o777, 0o600);
    ca.agent("t1").save(dir.path()).unwrap();
    std::fs::write(dir.path().join("chain.pem"), "junk").unwrap();
    let error = Identity::load(dir.path()).unwrap_err().to_string();
    assert!(
        error.contains("chain.pem") && error.contains("enrol again"),
        "{error}"
    );
}

/// Requests to stop that the asking side sent, for ten streams that each ended with
/// their answer.
async fn stops(take_end: bool) -> u64 {
    const STREAMS: u64 = 10;
    let ca = Ca::new("site-a");
    let (agent, svm) = (ca.agent("t1"), ca.svm());
    let config = tls::server_config(&svm, svm.trust(), AGENTS, scan::ALPN).unwrap();
    let server = endpoint::listen(LOOPBACK, config, Bounds::SCAN_SERVER).unwrap();
    let address = server.local_addr().unwrap();
    let answering = tokio::spawn(async move {
        let connection = server.accept().await.unwrap().await.unwrap();
        while let Ok((mut send, mut receive)) = connection.accept_bi().await {
            receive.read_to_end(16).await.unwrap();
            let refusal = scan::Refusal {
                code: scan::RefusalCode::Unavailable,
                message: Text::cut("no"),
            };
            let bytes = frame::to_bytes(&scan::ToAgent::Refused(refusal)).unwrap();
            send.write_all(&bytes).await.unwrap();
            send.finish().unwrap();
        }
    });
    let config = tls::client_config(
        Own::Enrolled(agent.clone()),
        agent.trust(),
        Expect::AnySvm,
        scan::ALPN,
    )
    .unwrap();
    let config = endpoint::client(config, Bounds::SCAN_AGENT).unwrap();
    let connection = endpoint::dialler(LOOPBACK)
        .unwrap()
        .connect_with(config, address, endpoint::SERVER_NAME)
        .unwrap()
        .await
        .unwrap();
    for _ in 0..STREAMS {
        let (mut send, mut receive) = connection.open_bi().await.unwrap();
        send.write_all(b"x").await.unwrap();
        send.finish().unwrap();
        let answer = frame::read::<scan::ToAgent>(&mut receive).await.unwrap();
        assert!(matches!(answer, Some(scan::ToAgent::Refused(_))));
        if take_end {
            frame::take_end(&mut receive).await;
        }
    }
    tokio::time::sleep(Duration::from_millis(100)).await;
    let stops = connection.stats().frame_tx.stop_sending;
    connection.close(0_u32.into(), b"");
    answering.await.unwrap();
    stops
}

/// One thread, so that an answer and its end travel in one datagram.
#[tokio::test]
async fn a_stream_whose_end_was_taken_in_is_not_told_to_stop() {
    assert_eq!(stops(false).await, 10, "the control");
    assert_eq!(stops(true).await, 0);
}
