//! Maintenance tokens: who may give one, to whom, and for how long.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a panic in a test is a failed test with a place in it"
)]

mod common;

use common::Ca;
use palisade_protocol::bounded::Text;
use palisade_protocol::identity::Identity;
use palisade_protocol::maintenance::{
    Allowed, BadMaintenance, Grant, MAX_ALLOWED_MS, MAX_CLOCK_MS, MAX_TEXT_BYTES, sign, verify,
};
use palisade_protocol::trust::Trust;
use proptest::prelude::*;
use uuid::Uuid;

/// Some moment in which the test's certificates count.
const NOW: u64 = 1_800_000_000_000;

fn grant(agent: &Identity) -> Grant {
    Grant {
        id: Uuid::from_u128(7),
        agent: Text::cut(&agent.id().to_string()),
        allowed: Allowed::Stop,
        from_ms: NOW,
        until_ms: NOW + 3_600_000,
        reason: Text::cut("new kernel"),
    }
}

fn trust(ca: &Ca) -> Trust {
    Trust::in_root(ca.root(), ca.deployment.clone())
}

#[test]
fn a_servers_token_counts_for_its_agent_and_its_time() {
    let ca = Ca::new("acme");
    let (server, agent) = (ca.server(), ca.agent("default"));
    let grant = grant(&agent);
    let text = sign(&server, &grant).unwrap();
    assert!(text.len() < MAX_TEXT_BYTES / 4, "{} bytes", text.len());
    let at = |now_ms| verify(&text, &trust(&ca), agent.id(), now_ms);
    for now_ms in [NOW - MAX_CLOCK_MS, NOW, grant.until_ms] {
        assert_eq!(at(now_ms).unwrap(), grant);
    }
    for now_ms in [0, NOW - MAX_CLOCK_MS - 1, grant.until_ms + 1, u64::MAX] {
        assert!(matches!(at(now_ms), Err(BadMaintenance::Time(_))));
    }
    // As it comes out of a terminal.
    assert!(verify(&format!("  {text}\n"), &trust(&ca), agent.id(), NOW).is_ok());
}

#[test]
fn nobody_elses_token_counts() {
    let ca = Ca::new("acme");
    let (server, agent, other) = (ca.server(), ca.agent("default"), ca.agent("default"));
    let grant = grant(&agent);
    let of = |signer: &Identity, grant: &Grant| {
        verify(&sign(signer, grant).unwrap(), &trust(&ca), agent.id(), NOW)
    };
    assert!(of(&server, &grant).is_ok());
    assert!(matches!(of(&agent, &grant), Err(BadMaintenance::Signer(_))));
    assert!(matches!(
        of(&ca.svm(), &grant),
        Err(BadMaintenance::Signer(_))
    ));
    let foreign = Ca::new("acme");
    assert!(matches!(
        of(&foreign.server(), &grant),
        Err(BadMaintenance::Trust(_))
    ));
    let for_other = Grant {
        agent: Text::cut(&other.id().to_string()),
        ..grant.clone()
    };
    assert!(matches!(
        of(&server, &for_other),
        Err(BadMaintenance::OtherAgent { .. })
    ));
    let for_ever = Grant {
        until_ms: NOW + MAX_ALLOWED_MS + 1,
        ..grant.clone()
    };
    assert!(matches!(
        of(&server, &for_ever),
        Err(BadMaintenance::Time(_))
    ));
    let for_a_week = Grant {
        until_ms: NOW + MAX_ALLOWED_MS,
        ..grant
    };
    assert!(of(&server, &for_a_week).is_ok());
}

#[test]
fn removing_covers_stopping_and_not_the_other_way() {
    assert!(Allowed::Remove.covers(Allowed::Stop));
    assert!(Allowed::Remove.covers(Allowed::Remove));
    assert!(Allowed::Stop.covers(Allowed::Stop));
    assert!(!Allowed::Stop.covers(Allowed::Remove));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// One changed character anywhere, and it is refused.
    #[test]
    fn a_changed_token_is_refused(at in any::<prop::sample::Index>(), to in "[A-Za-z0-9_-]") {
        let ca = Ca::new("acme");
        let (server, agent) = (ca.server(), ca.agent("default"));
        let text = sign(&server, &grant(&agent)).unwrap();
        let at = at.index(text.len());
        let mut changed = text.clone();
        changed.replace_range(at..=at, &to);
        prop_assume!(changed != text);
        prop_assert!(verify(&changed, &trust(&ca), agent.id(), NOW).is_err());
    }

    #[test]
    fn rubbish_is_no_token(text in ".{0,200}") {
        let ca = Ca::new("acme");
        let agent = ca.agent("default");
        for text in [text.clone(), format!("pm1.{text}")] {
            let refused = verify(&text, &trust(&ca), agent.id(), NOW);
            prop_assert!(matches!(refused, Err(BadMaintenance::Malformed(_))));
        }
    }
}
