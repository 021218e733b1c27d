//! Quarantine keys: kept for a guest, and given to nobody else.

use palisade_daemon::control::{ControlError, Session};
use palisade_daemon::enrol::enrol;
use palisade_daemon::membership::Membership;
use palisade_protocol::control::{Component, DeniedCode, FromServer, QuarantineKey, ToServer};
use palisade_protocol::token::JoinToken;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::site::{Site, host};
use crate::talk::hello;

/// A new agent of this tenant, on this machine.
async fn joined(site: &Site, tenant: &str, machine: Option<Uuid>) -> Membership {
    let new = json!({"component": "agent", "uses": 1, "expires_in": "1h", "tenant": tenant});
    let made: Value = site
        .api(move |client| client.post("tokens", &new))
        .await
        .unwrap();
    let token: JoinToken = made["token"].as_str().unwrap().parse().unwrap();
    enrol(&token, Component::Agent, host("guest", machine))
        .await
        .unwrap()
}

async fn session(member: &Membership, machine: Option<Uuid>) -> Session {
    let connected = Session::connect(member, hello(machine)).await;
    connected.unwrap().0
}

async fn keep(session: &Session, key: &QuarantineKey) {
    let message = ToServer::KeepQuarantineKey(key.clone());
    assert_eq!(session.request(&message).await.unwrap(), FromServer::Ack);
}

async fn kept(session: &Session) -> Option<QuarantineKey> {
    match session.request(&ToServer::GetQuarantineKey).await.unwrap() {
        FromServer::QuarantineKey(key) => key,
        other => panic!("{other:?}"),
    }
}

fn key() -> QuarantineKey {
    let half = || Uuid::new_v4().into_bytes();
    QuarantineKey([half(), half()].concat().try_into().unwrap())
}

#[tokio::test]
async fn a_guest_that_joins_anew_gets_its_key_and_no_other_tenant_does() {
    let site = Site::start("").await;
    let (machine, other_machine) = (Some(Uuid::new_v4()), Some(Uuid::new_v4()));
    let (first, theirs) = (key(), key());

    let before = joined(&site, "acme", machine).await;
    let before = session(&before, machine).await;
    assert_eq!(kept(&before).await, None);
    keep(&before, &first).await;
    assert_eq!(kept(&before).await, Some(first.clone()));

    // The control: the same tenant on the same machine, with another identity.
    let again = joined(&site, "acme", machine).await;
    let again = session(&again, machine).await;
    assert_eq!(kept(&again).await, Some(first.clone()));

    // Another tenant that says it is this machine; another machine; no machine.
    for (tenant, says) in [("rival", machine), ("acme", other_machine), ("acme", None)] {
        let stranger = joined(&site, tenant, says).await;
        let stranger = session(&stranger, says).await;
        assert_eq!(kept(&stranger).await, None, "{tenant} {says:?}");
        keep(&stranger, &theirs).await;
        assert_eq!(kept(&stranger).await, Some(theirs.clone()));
    }
    // What they had kept is nobody else's.
    assert_eq!(kept(&before).await, Some(first.clone()));
    assert_eq!(kept(&again).await, Some(first.clone()));

    // An agent that keeps one of its own takes nothing from the one before.
    let second = key();
    keep(&again, &second).await;
    assert_eq!(kept(&again).await, Some(second));
    assert_eq!(kept(&before).await, Some(first));
}

#[tokio::test]
async fn a_protection_server_has_no_quarantine() {
    let site = Site::start("").await;
    let svm = site.join(Component::Svm, host("svm", None)).await;
    let svm = session(&svm, None).await;
    for message in [
        ToServer::GetQuarantineKey,
        ToServer::KeepQuarantineKey(key()),
    ] {
        match svm.request(&message).await {
            Err(ControlError::Denied(denied)) => assert_eq!(denied.code, DeniedCode::BadRequest),
            other => panic!("{other:?}"),
        }
    }
}
