//! Maintenance tokens: what the API makes is what an agent believes, and no more.

use palisade_integration_server::time::now_ms;
use palisade_protocol::control::Component;
use palisade_protocol::maintenance::{self, Allowed, BadMaintenance};
use serde_json::{Value, json};

use crate::api::{bearer, problem, send};
use crate::site::{Site, host};
use crate::talk::agent_id;

/// A token by the API.
async fn made(site: &Site, agent: impl std::fmt::Display, new: Value) -> Value {
    let path = format!("agents/{agent}/maintenance");
    site.api(move |client| client.post(&path, &new))
        .await
        .unwrap()
}

fn text(made: &Value) -> &str {
    made["token"].as_str().unwrap()
}

#[tokio::test]
async fn a_token_is_for_the_agent_that_it_names_and_for_its_time() {
    let site = Site::start("").await;
    let one = site.join(Component::Agent, host("one", None)).await;
    let other = site.join(Component::Agent, host("other", None)).await;
    let svm = site.join(Component::Svm, host("svm", None)).await;
    let before = now_ms();
    let stop = json!({"allowed": "stop", "reason": "a new kernel"});
    let stop = made(&site, agent_id(&one), stop).await;
    let fields: Vec<&String> = stop.as_object().unwrap().keys().collect();
    assert_eq!(fields, ["id", "token", "allowed", "until"]);

    let trust = one.identity.trust();
    let verify = |member: &palisade_daemon::membership::Membership, at_ms| {
        maintenance::verify(text(&stop), &trust, member.identity.id(), at_ms)
    };
    let grant = verify(&one, now_ms()).unwrap();
    assert_eq!(stop["id"], grant.id.to_string());
    assert_eq!(
        (grant.allowed, grant.reason.as_str()),
        (Allowed::Stop, "a new kernel")
    );
    assert!(before <= grant.from_ms && grant.from_ms <= now_ms());
    assert_eq!(grant.until_ms - grant.from_ms, 7200 * 1000);
    let until = palisade_integration_server::time::rfc3339(grant.until_ms);
    assert_eq!(stop["until"], until);
    for stranger in [&other, &svm] {
        assert!(matches!(
            verify(stranger, now_ms()),
            Err(BadMaintenance::OtherAgent { .. })
        ));
    }
    assert!(matches!(
        verify(&one, grant.until_ms + 1),
        Err(BadMaintenance::Time(_))
    ));

    let week = json!({"allowed": "remove", "for_s": 604_800, "reason": "x".repeat(200)});
    let week = made(&site, agent_id(&other), week).await;
    let grant = maintenance::verify(text(&week), &trust, other.identity.id(), now_ms()).unwrap();
    assert!(grant.allowed.covers(Allowed::Remove));
}

#[tokio::test]
async fn what_is_out_of_bounds_is_refused_by_name_and_leaves_nothing() {
    let site = Site::start("").await;
    let bearer = bearer(&site);
    let member = site.join(Component::Agent, host("guest", None)).await;
    let revoked = site.join(Component::Agent, host("gone", None)).await;
    let revoked = agent_id(&revoked);
    site.api(move |client| client.delete(&format!("agents/{revoked}")))
        .await
        .unwrap();
    let known = agent_id(&member).to_string();
    let good = json!({"allowed": "stop", "reason": "x"});
    let with = |key: &str, value: Value| {
        let mut body = good.clone();
        body[key] = value;
        body
    };
    let id = known.as_str();
    for (agent, body, status, says) in [
        (id, with("for_s", 604_801.into()), 400, "7 days"),
        (id, with("for_s", 0.into()), 400, "1 to 604800"),
        (id, with("for_s", u64::MAX.into()), 400, "7 days"),
        (id, with("reason", "".into()), 400, "reason"),
        (id, with("reason", " \t ".into()), 400, "reason"),
        (id, with("reason", "x".repeat(201).into()), 400, "200 bytes"),
        (id, with("reason", "a\nb".into()), 400, "one line"),
        (id, json!({"allowed": "stop"}), 422, "reason"),
        (id, json!({"reason": "x"}), 422, "allowed"),
        (id, with("allowed", "everything".into()), 422, "allowed"),
        (id, with("until", 1.into()), 422, "until"),
        ("nonsense", good.clone(), 400, ""),
        (
            "00000000-0000-4000-8000-000000000000",
            good.clone(),
            404,
            "no agent",
        ),
        (&revoked.to_string(), good.clone(), 404, "no agent"),
    ] {
        let path = format!("/api/v1/agents/{agent}/maintenance");
        let bytes = serde_json::to_vec(&body).unwrap();
        let json = Some(("application/json", bytes));
        let refused = send(&site, "POST", &path, Some(&bearer), json).await;
        let (got, _, value) = problem(refused).await;
        let detail = value["detail"].as_str().unwrap();
        assert_eq!(got, status, "{body}: {detail}");
        assert!(detail.contains(says), "{body}: {detail}");
    }
    let kept = site.server.fleet().store.maintenance(0).await.unwrap();
    assert!(kept.is_empty(), "{kept:?}");
}

#[tokio::test]
async fn a_grant_survives_a_restart_and_its_token_is_kept_nowhere() {
    let site = Site::start("").await;
    let member = site.join(Component::Agent, host("guest", None)).await;
    let first = || async { site.get("agents").await["items"][0].clone() };
    assert_eq!(first().await["state"], "lost");
    assert_eq!(first().await["maintenance"], Value::Null);
    let new = json!({"allowed": "remove", "for_s": 3600, "reason": "to be replaced"});
    let token = made(&site, agent_id(&member), new).await;
    let before = first().await;
    assert_eq!(before["state"], "maintenance");
    let shown = &before["maintenance"];
    assert_eq!(
        (&shown["id"], &shown["until"], &shown["allowed"]),
        (&token["id"], &token["until"], &"remove".into())
    );
    let Site { dir, server } = site;
    server.stop().await;

    let site = Site::start_in(dir, "").await;
    let after = site.get("agents").await["items"][0].clone();
    assert_eq!(after["state"], "maintenance");
    assert_eq!(after["maintenance"], before["maintenance"]);
    let secret = &text(&token).as_bytes()[4..40];
    for file in std::fs::read_dir(site.state()).unwrap() {
        let path = file.unwrap().path();
        if path.is_file() {
            let bytes = std::fs::read(&path).unwrap();
            let found = bytes.windows(secret.len()).any(|part| part == secret);
            assert!(!found, "{}", path.display());
        }
    }
}
