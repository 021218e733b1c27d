//! Policies, groups and what agents answer in the store: one suite, both backends.

use std::sync::Arc;

use palisade_integration_server::policy::{MAX_GROUPS, Settings, Subject};
use palisade_integration_server::store::{Change, Changed, GroupRecord, PolicyRecord, Store};
use palisade_protocol::bounded::Text;
use palisade_protocol::policy::{Policy, PolicyReport, Refused};
use serde_json::json;
use uuid::Uuid;

use crate::store::{Kind, joined_agent, on_both};

pub fn policy(subject: Subject, revision: u64, mode: &str) -> PolicyRecord {
    PolicyRecord {
        subject,
        revision,
        made_ms: 40 + revision,
        settings: Settings::from([("on_access.mode".to_owned(), json!(mode))]),
        by: "jo".to_owned(),
        note: format!("to {mode}"),
    }
}

pub fn group(tenant: &str, name: &str) -> GroupRecord {
    GroupRecord {
        id: Uuid::new_v4(),
        tenant: tenant.parse().unwrap(),
        name: name.to_owned(),
        query: "name:web-*".to_owned(),
        priority: 7,
        revision: 1,
        made_ms: 5,
    }
}

async fn change(store: &dyn Store, change: Change<'_>) -> Changed {
    store.change(change, None, 50).await.unwrap()
}

on_both!(
    revisions_follow_each_other_and_none_is_lost,
    groups_have_names_of_their_tenants,
    what_an_agent_says_is_kept_in_place_of_what_it_said
);

async fn revisions_follow_each_other_and_none_is_lost(kind: Kind) {
    let store = kind.store().await;
    let tenant = Subject::Tenant("acme".parse().unwrap());
    let put = async |record: &PolicyRecord| change(store.as_ref(), Change::PutPolicy(record)).await;
    let version = store.policy_version().await.unwrap();
    let first = policy(Subject::Site, 1, "monitor");
    assert_eq!(
        put(&policy(Subject::Site, 2, "block")).await,
        Changed::Nothing
    );
    assert_eq!(
        put(&policy(Subject::Site, 0, "block")).await,
        Changed::Nothing
    );
    assert_eq!(put(&first).await, Changed::Done);
    assert_eq!(
        put(&policy(Subject::Site, 1, "block")).await,
        Changed::Nothing
    );
    let second = policy(Subject::Site, 2, "block");
    assert_eq!(put(&second).await, Changed::Done);
    let other = policy(tenant.clone(), 1, "learn");
    assert_eq!(put(&other).await, Changed::Done);
    assert_eq!(store.policy_version().await.unwrap(), version + 3);

    let mut latest = store.policies().await.unwrap();
    latest.sort_by(|a, b| a.subject.cmp(&b.subject));
    assert_eq!(latest, [second.clone(), other]);
    let of = async |before| {
        let found = store.policy_revisions(&Subject::Site, before, 10).await;
        found.unwrap()
    };
    assert_eq!(of(None).await, [second.clone(), first.clone()]);
    assert_eq!(of(Some(2)).await, [first]);
    assert_eq!(
        store
            .policy_revisions(&Subject::Site, None, 1)
            .await
            .unwrap()
            .len(),
        1
    );
    let found = store.policy_revision(&Subject::Site, 2).await.unwrap();
    assert_eq!(found, Some(second));
    assert_eq!(store.policy_revision(&tenant, 2).await.unwrap(), None);

    // Of many at once one is the third.
    let racers: Vec<_> = (0..8)
        .map(|_| {
            let store = Arc::clone(&store);
            tokio::spawn(async move {
                let record = policy(Subject::Site, 3, "monitor");
                change(store.as_ref(), Change::PutPolicy(&record)).await
            })
        })
        .collect();
    let mut done = 0;
    for racer in racers {
        done += usize::from(racer.await.unwrap().is_done());
    }
    assert_eq!(done, 1);
}

async fn groups_have_names_of_their_tenants(kind: Kind) {
    let store = kind.store().await;
    let store = store.as_ref();
    let version = store.policy_version().await.unwrap();
    let (own, same) = (group("acme", "web"), group("acme", "web"));
    assert_eq!(change(store, Change::AddGroup(&own)).await, Changed::Done);
    assert_eq!(change(store, Change::AddGroup(&same)).await, Changed::Taken);
    let other = group("other", "web");
    assert_eq!(change(store, Change::AddGroup(&other)).await, Changed::Done);
    assert_eq!(store.policy_version().await.unwrap(), version + 2);

    let set = async |revision| change(store, Change::SetGroup(own.id, revision, "tag:x", 9)).await;
    assert_eq!(set(0).await, Changed::Nothing, "not the one that there is");
    assert_eq!(set(1).await, Changed::Done);
    assert_eq!(set(1).await, Changed::Nothing, "somebody was faster");
    let groups = store.groups().await.unwrap();
    let found = groups.iter().find(|group| group.id == own.id).unwrap();
    let changed = GroupRecord {
        query: "tag:x".to_owned(),
        priority: 9,
        revision: 2,
        ..own.clone()
    };
    assert_eq!((groups.len(), found), (2, &changed));

    // What it set is not lost with it.
    let of_group = policy(Subject::Group(own.id), 1, "block");
    assert_eq!(
        change(store, Change::PutPolicy(&of_group)).await,
        Changed::Done
    );
    let is_there = async || {
        let latest = store.policies().await.unwrap();
        latest
            .iter()
            .any(|policy| policy.subject == of_group.subject)
    };
    assert!(is_there().await);
    assert_eq!(
        change(store, Change::RemoveGroup(own.id, 1)).await,
        Changed::Nothing
    );
    assert_eq!(
        change(store, Change::RemoveGroup(own.id, 2)).await,
        Changed::Done
    );
    assert_eq!(store.groups().await.unwrap(), [other]);
    assert!(!is_there().await, "nobody has it any more");
    let kept = store.policy_revision(&of_group.subject, 1).await.unwrap();
    assert_eq!(kept, Some(of_group));

    for n in 0..MAX_GROUPS {
        let one = group("acme", &format!("g{n}"));
        assert_eq!(change(store, Change::AddGroup(&one)).await, Changed::Done);
    }
    assert_eq!(change(store, Change::AddGroup(&same)).await, Changed::Full);
    let elsewhere = group("third", "web");
    assert_eq!(
        change(store, Change::AddGroup(&elsewhere)).await,
        Changed::Done
    );
}

async fn what_an_agent_says_is_kept_in_place_of_what_it_said(kind: Kind) {
    let store = kind.store().await;
    let (agent, silent) = (
        joined_agent(store.as_ref()).await,
        joined_agent(store.as_ref()).await,
    );
    let mut report = PolicyReport::default();
    for (at_ms, note) in [(5, None), (6, Some("damaged"))] {
        report.note = note.map(Text::cut);
        store
            .keep_policy_report(agent, &report, at_ms)
            .await
            .unwrap();
        let kept = store.policy_report(agent).await.unwrap().unwrap();
        assert_eq!((kept.report, kept.reported_ms), (report.clone(), at_ms));
    }
    assert_eq!(store.policy_report(silent).await.unwrap(), None);
    assert!(store.refused_policies().await.unwrap().is_empty());
    report.refused = Some(Refused {
        fingerprint: Policy::default().fingerprint().unwrap(),
        why: Text::cut("no"),
    });
    store.keep_policy_report(agent, &report, 7).await.unwrap();
    let refused = store.refused_policies().await.unwrap();
    assert_eq!(refused.keys().collect::<Vec<_>>(), [&agent]);
    assert_eq!(refused[&agent].report, report);
}
