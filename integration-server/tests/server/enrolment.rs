//! Joining, with the real client at the other end.

use palisade_daemon::enrol::EnrolError;
use palisade_protocol::bounded::List;
use palisade_protocol::control::{
    self, Component, ControlFrame, DeniedCode, EnrolRequest, Enrolled,
};
use palisade_protocol::endpoint::{self, Bounds};
use palisade_protocol::spiffe::Role;
use palisade_protocol::tls::{self, Expect, Own};
use palisade_protocol::token::JoinToken;
use palisade_protocol::trust::{Anchor, Trust};
use palisade_protocol::{frame, identity};
use rcgen::KeyPair;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::site::{Site, host};

fn denied(outcome: Result<palisade_daemon::membership::Membership, EnrolError>) -> DeniedCode {
    match outcome {
        Err(EnrolError::Denied { code, .. }) => code,
        other => panic!("{other:?}"),
    }
}

/// Sends one frame without an identity, whatever it is, and reads the answer.
async fn ask(token: &JoinToken, key: &KeyPair, frame: &ControlFrame) -> Option<ControlFrame> {
    let trust = Trust {
        anchor: Anchor::RootHash(token.root_sha256),
        deployment: None,
        grace: Default::default(),
    };
    let own = Own::Enrolling {
        certificate: identity::enrolment_certificate(key).unwrap(),
        key: PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der())),
    };
    let config = tls::client_config(own, trust, Expect::Server, control::ALPN).unwrap();
    let dialler = endpoint::dialler(([127, 0, 0, 1], 0).into()).unwrap();
    let connection = dialler
        .connect_with(
            endpoint::client(config, Bounds::CONTROL).unwrap(),
            token.servers[0],
            endpoint::SERVER_NAME,
        )
        .unwrap()
        .await
        .unwrap();
    let (mut send, mut receive) = connection.open_bi().await.unwrap();
    frame::write(&mut send, frame).await.unwrap();
    let answer = frame::read(&mut receive).await.ok().flatten();
    connection.close(0_u32.into(), b"");
    answer
}

fn request(token: &JoinToken, key: &KeyPair) -> EnrolRequest {
    EnrolRequest {
        component: token.component,
        token_id: token.id,
        secret: token.secret,
        csr: List::new(identity::certificate_request(key).unwrap()).unwrap(),
        host: host("guest", None),
    }
}

#[tokio::test]
async fn agents_and_svms_join_and_have_their_roles() {
    let site = Site::start("deployment = 'one'").await;
    let agent = site.join(Component::Agent, host("web-1", None)).await;
    assert!(
        matches!(&agent.identity.id().role, Role::Agent { tenant, .. } if tenant.as_str() == "default")
    );
    assert_eq!(agent.identity.id().deployment.as_str(), "one");
    assert_eq!(agent.name, "web-1");
    let svm = site.join(Component::Svm, host("svm-1", None)).await;
    assert!(matches!(svm.identity.id().role, Role::Svm(_)));
    let agents = site.get("agents").await;
    assert_eq!(agents["items"][0]["name"], "web-1");
    assert_eq!(agents["items"][0]["state"], "lost");
    assert_eq!(site.get("svms").await["items"][0]["name"], "svm-1");
    assert_eq!(site.get("tokens").await["items"][0]["state"], "spent");
}

#[tokio::test]
async fn wrong_secrets_unknown_tokens_and_revoked_ones_are_one_answer() {
    let site = Site::start("").await;
    let good = site.token("agent", 1, "1h").await;
    let wrong = JoinToken {
        secret: [0; 32],
        ..good.clone()
    };
    assert_eq!(
        denied(site.try_enrol(&wrong).await),
        DeniedCode::UnknownToken
    );
    let unknown = JoinToken {
        id: uuid::Uuid::new_v4(),
        ..good.clone()
    };
    assert_eq!(
        denied(site.try_enrol(&unknown).await),
        DeniedCode::UnknownToken
    );
    let id = good.id;
    site.api(move |client| client.delete(&format!("tokens/{id}")))
        .await
        .unwrap();
    assert_eq!(
        denied(site.try_enrol(&good).await),
        DeniedCode::UnknownToken
    );
    assert_eq!(
        site.get("agents").await["items"].as_array().unwrap().len(),
        0
    );
}

#[tokio::test]
async fn a_spent_token_admits_nobody() {
    let site = Site::start("").await;
    let token = site.token("agent", 1, "1h").await;
    site.try_enrol(&token).await.unwrap();
    assert_eq!(denied(site.try_enrol(&token).await), DeniedCode::SpentToken);
}

#[tokio::test]
async fn an_expired_token_admits_nobody_whatever_its_text_says() {
    let site = Site::start("").await;
    let token = site.token("agent", 1, "1s").await;
    // The client believes the text and asks; the server knows better.
    let later = JoinToken {
        expires_ms: u64::MAX,
        ..token
    };
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    assert_eq!(
        denied(site.try_enrol(&later).await),
        DeniedCode::ExpiredToken
    );
}

#[tokio::test]
async fn a_token_of_one_kind_admits_no_other() {
    let site = Site::start("").await;
    let token = site.token("svm", 1, "1h").await;
    let lying = JoinToken {
        component: Component::Agent,
        ..token.clone()
    };
    assert_eq!(denied(site.try_enrol(&lying).await), DeniedCode::BadRequest);
    site.try_enrol(&token).await.unwrap();
}

#[tokio::test]
async fn the_secret_is_not_sent_to_a_server_with_another_root() {
    let site = Site::start("").await;
    let token = site.token("agent", 1, "1h").await;
    let wrong = JoinToken {
        root_sha256: [0; 32],
        ..token.clone()
    };
    assert!(matches!(
        site.try_enrol(&wrong).await,
        Err(EnrolError::Unreachable(_))
    ));
    site.try_enrol(&token)
        .await
        .expect("the token is not used up");
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_that_race_for_one_use_one_wins() {
    let site = Site::start("").await;
    let token = site.token("agent", 1, "1h").await;
    let racers: Vec<_> = (0..16)
        .map(|n| {
            let token = token.clone();
            tokio::spawn(async move {
                let host = host(&format!("guest-{n}"), None);
                palisade_daemon::enrol::enrol(&token, Component::Agent, host).await
            })
        })
        .collect();
    let mut joined = 0;
    for racer in racers {
        match racer.await.unwrap() {
            Ok(_) => joined += 1,
            Err(EnrolError::Denied { code, .. }) => assert_eq!(code, DeniedCode::SpentToken),
            Err(other) => panic!("{other}"),
        }
    }
    assert_eq!(joined, 1);
    assert_eq!(
        site.get("agents").await["items"].as_array().unwrap().len(),
        1
    );
}

#[tokio::test]
async fn who_asks_again_with_the_same_key_is_the_same_component() {
    let site = Site::start("").await;
    let token = site.token("agent", 1, "1h").await;
    let key = identity::new_key().unwrap();
    let mut leaves = Vec::new();
    for _ in 0..2 {
        let answer = ask(&token, &key, &ControlFrame::Enrol(request(&token, &key))).await;
        let Some(ControlFrame::Enrolled(Enrolled { chain, .. })) = answer else {
            panic!("{answer:?}")
        };
        let chain = chain.iter().map(|der| der.to_vec().into()).collect();
        leaves.push(identity::Identity::new(&key, chain).unwrap().id().clone());
    }
    assert_eq!(leaves[0], leaves[1]);
    assert_eq!(
        site.get("agents").await["items"].as_array().unwrap().len(),
        1
    );
}

#[tokio::test]
async fn a_bad_request_costs_no_use_and_anything_else_no_answer() {
    let site = Site::start("").await;
    let token = site.token("agent", 1, "1h").await;
    let key = identity::new_key().unwrap();
    let mut csr = identity::certificate_request(&key).unwrap();
    let last = csr.len() - 1;
    csr[last] ^= 1;
    let bad = EnrolRequest {
        csr: List::new(csr).unwrap(),
        ..request(&token, &key)
    };
    let answer = ask(&token, &key, &ControlFrame::Enrol(bad)).await;
    let Some(ControlFrame::Denied(denied)) = answer else {
        panic!("{answer:?}")
    };
    assert_eq!(denied.code, DeniedCode::BadRequest);
    let other = ControlFrame::Denied(denied);
    assert_eq!(ask(&token, &key, &other).await, None);
    site.try_enrol(&token).await.unwrap();
}
