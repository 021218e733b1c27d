//! Envelopes: a relay can carry them, and can do nothing else with them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a panic fails the test"
)]

mod common;

use common::Ca;
use palisade_protocol::bounded::List;
use palisade_protocol::control::ToServer;
use palisade_protocol::envelope::{
    Envelope, EnvelopeError, LIFETIME_MS, MAX_DRIFT_MS, Opener, Sealer,
};
use palisade_protocol::identity::Identity;

const NOW: u64 = 1_800_000_000_000;

struct Pair {
    ca: Ca,
    agent: Identity,
    server: Identity,
    sealer: Sealer,
    opener: Opener,
}

fn pair() -> Pair {
    let ca = Ca::new("site-a");
    let (agent, server) = (ca.agent("t1"), ca.server());
    let sealer = Sealer::new(agent.clone(), server.id().clone(), 5).unwrap();
    let opener = opener(&agent, &server);
    Pair {
        ca,
        agent,
        server,
        sealer,
        opener,
    }
}

fn opener(agent: &Identity, server: &Identity) -> Opener {
    Opener::new(server.trust(), agent.id().clone(), server.id().clone(), 5)
}

fn sealed(sealer: &mut Sealer, etag: u64) -> Envelope {
    sealer
        .seal(&ToServer::GetSvmList { etag }, None, NOW)
        .unwrap()
        .0
}

fn open(opener: &mut Opener, envelope: &Envelope, now: u64) -> Result<ToServer, EnvelopeError> {
    opener
        .open::<ToServer>(envelope, now)
        .map(|opened| opened.message)
}

#[test]
fn messages_arrive_in_order_and_with_their_tenant() {
    let mut p = pair();
    for etag in 1..4 {
        let envelope = sealed(&mut p.sealer, etag);
        let opened = p.opener.open::<ToServer>(&envelope, NOW).unwrap();
        assert_eq!(opened.message, ToServer::GetSvmList { etag });
        assert_eq!(opened.sequence, etag);
        assert_eq!(opened.tenant.unwrap().as_str(), "t1");
    }
}

#[test]
fn a_replay_a_reordering_and_an_old_epoch_are_refused() {
    let mut p = pair();
    let (first, second) = (sealed(&mut p.sealer, 1), sealed(&mut p.sealer, 2));
    open(&mut p.opener, &second, NOW).unwrap();
    for late in [&first, &second] {
        assert!(matches!(
            open(&mut p.opener, late, NOW),
            Err(EnvelopeError::Order { .. })
        ));
    }
    p.opener.expect_epoch(6);
    let third = sealed(&mut p.sealer, 3);
    assert!(matches!(
        open(&mut p.opener, &third, NOW),
        Err(EnvelopeError::Order { .. })
    ));
    p.sealer.set_epoch(6);
    let fourth = sealed(&mut p.sealer, 4);
    open(&mut p.opener, &fourth, NOW).unwrap();
}

#[test]
fn any_changed_byte_of_body_or_signature_is_refused() {
    let mut p = pair();
    let envelope = sealed(&mut p.sealer, 1);
    for index in 0..envelope.body.len() {
        let mut changed = envelope.clone();
        changed.body[index] ^= 1;
        let error = open(&mut opener(&p.agent, &p.server), &changed, NOW).unwrap_err();
        assert!(matches!(error, EnvelopeError::Signature(_)), "{error}");
    }
    let mut changed = envelope.clone();
    let mut signature = changed.signature.to_vec();
    signature[10] ^= 1;
    changed.signature = List::cut(signature);
    assert!(open(&mut opener(&p.agent, &p.server), &changed, NOW).is_err());
    // The control: unchanged, it opens.
    open(&mut opener(&p.agent, &p.server), &envelope, NOW).unwrap();
}

#[test]
fn a_relay_cannot_speak_for_another_nor_readdress() {
    let mut p = pair();
    // Another enrolled component of the same tenant signs with its own key.
    let relay = p.ca.agent("t1");
    let mut forging = Sealer::new(relay.clone(), p.server.id().clone(), 5).unwrap();
    let forged = sealed(&mut forging, 1);
    assert!(matches!(
        open(&mut p.opener, &forged, NOW),
        Err(EnvelopeError::Address {
            field: "sender",
            ..
        })
    ));
    // It puts the victim's chain on its own signature.
    let genuine = sealed(&mut p.sealer, 1);
    let grafted = Envelope {
        chain: genuine.chain.clone(),
        ..forged
    };
    assert!(matches!(
        open(&mut p.opener, &grafted, NOW),
        Err(EnvelopeError::Signature(_))
    ));
    // A message to one server is not accepted by another.
    let other = p.ca.issue(&["spiffe://site-a/server/server-2".to_owned()]);
    let mut elsewhere = Opener::new(other.trust(), p.agent.id().clone(), other.id().clone(), 5);
    assert!(matches!(
        open(&mut elsewhere, &genuine, NOW),
        Err(EnvelopeError::Address {
            field: "recipient",
            ..
        })
    ));
    // And another site's root vouches for nobody here.
    let stranger = Ca::new("site-a").server();
    let mut foreign = Opener::new(
        stranger.trust(),
        p.agent.id().clone(),
        p.server.id().clone(),
        5,
    );
    assert!(matches!(
        open(&mut foreign, &genuine, NOW),
        Err(EnvelopeError::Trust(_))
    ));
}

#[test]
fn an_envelope_expires_once_the_clocks_were_compared() {
    let mut p = pair();
    let first = sealed(&mut p.sealer, 1);
    let year = 365 * 86_400_000;
    open(&mut p.opener, &first, NOW + year).unwrap();
    let second = sealed(&mut p.sealer, 2);
    let late = NOW + LIFETIME_MS + MAX_DRIFT_MS + 1;
    assert!(matches!(
        open(&mut p.opener, &second, late),
        Err(EnvelopeError::Expired(1))
    ));
    open(&mut p.opener, &second, late - 1).unwrap();
}

#[test]
fn an_envelope_without_certificates_is_refused() {
    let mut p = pair();
    let bare = Envelope {
        chain: List::default(),
        ..sealed(&mut p.sealer, 1)
    };
    assert!(matches!(
        open(&mut p.opener, &bare, NOW),
        Err(EnvelopeError::Trust(_))
    ));
}
