//! Policies over the API and over sessions: changed by revisions, told to agents, confirmed
//! by them; groups by what is known of agents.

use palisade_daemon::control::Session;
use palisade_protocol::bounded::{List, Text};
use palisade_protocol::control::{Component, FromServer, ToServer};
use palisade_protocol::policy::{Fingerprint, NotApplied, Policy, PolicyReport, Refused};
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::accounts::{Answer, Api, Who};
use crate::libvirtd::{Libvirtd, UUID, domain_is};
use crate::site::{Site, host, until};
use crate::talk::{PATIENCE, agent_id, hello};

/// The same caller, who changes what is at this revision.
fn at(who: &Who, revision: &str) -> Who {
    let mut who = who.clone();
    who.headers.push(("if-match", revision.to_owned()));
    who
}

fn set(api: &Api, who: &Who, id: &str, settings: Value) -> Answer {
    let change = json!({"set": settings});
    api.call(who, "PATCH", &format!("policies/{id}"), Some(&change))
}

#[test]
fn each_change_is_a_revision_and_says_what_it_was_made_from() {
    let api = Api::start("");
    let admin = api.admin();
    let first = api.get(&admin, "policies/site");
    assert_eq!((first.status, &first.value["revision"]), (200, &json!(0)));
    let monitor = json!({"on_access.mode": "monitor"});
    assert_eq!(
        set(&api, &admin, "site", monitor.clone()).kind(),
        "unconditional"
    );
    assert_eq!(
        set(&api, &at(&admin, "3"), "site", monitor.clone()).status,
        400
    );
    let stale = set(&api, &at(&admin, "\"1\""), "site", monitor.clone());
    assert_eq!((stale.status, stale.kind()), (412, "changed-meanwhile"));
    assert!(
        stale.value["detail"]
            .as_str()
            .unwrap()
            .contains("revision 0")
    );
    let made = set(&api, &at(&admin, "\"0\""), "site", monitor);
    assert_eq!((made.status, &made.value["revision"]), (200, &json!(1)));
    assert_eq!(made.value["by"], "admin.token");
    let more = json!({"exclude": ["/srv"], "failure.no_svm": {"exec": "deny"}});
    let body = json!({"set": more, "unset": ["on_access.mode"], "note": "for the db"});
    let any = at(&admin, "*");
    let made = api.call(&any, "PATCH", "policies/site", Some(&body));
    assert_eq!(
        (&made.value["revision"], &made.value["settings"]),
        (&json!(2), &more)
    );

    // Nothing of a change that is wrong is done, and what is wrong is named.
    for (method, body, says) in [
        (
            "PATCH",
            json!({"set": {"on_access.mode": "watch"}}),
            "monitor",
        ),
        (
            "PATCH",
            json!({"set": {"on_access.deadline_ms": 5}}),
            "100 to 60000",
        ),
        (
            "PATCH",
            json!({"set": {"state_dir": "/x"}}),
            "no such setting",
        ),
        (
            "PATCH",
            json!({"set": {"exclude": [], "name": "x"}}),
            "setting name",
        ),
        ("PATCH", json!({"unset": ["exlude"]}), "setting exlude"),
        (
            "PATCH",
            json!({"set": {"exclude": []}, "unset": ["exclude"]}),
            "one of both",
        ),
        ("PATCH", json!({}), "what to set"),
        (
            "PATCH",
            json!({"unset": ["exclude"], "note": "a\nb"}),
            "one line",
        ),
        (
            "PUT",
            json!({"settings": {"schedule": [{"kind": "quick"}]}}),
            "at is missing",
        ),
        ("PUT", json!({"settings": {}, "extra": 1}), "extra"),
    ] {
        let refused = api.call(&any, method, "policies/site", Some(&body));
        assert_eq!(refused.status, 422, "{body}: {refused:?}");
        let detail = refused.value["detail"].as_str().unwrap();
        assert!(detail.contains(says), "{body}: {detail}");
    }
    for (path, status) in [
        ("policies/nonsense", 400),
        ("policies/vm:00000000-0000-4000-8000-000000000000", 404),
        ("policies/group:00000000-0000-4000-8000-000000000000", 404),
        ("policies/site/diff?to=9", 404),
        ("policies/site/diff?to=x", 400),
        ("policies/site/revisions?cursor=x", 400),
        ("policies/tenant:nobody", 200),
    ] {
        assert_eq!(api.get(&admin, path).status, status, "{path}");
    }

    let differ = api.get(&admin, "policies/site/diff").value;
    let exclude = json!({"setting": "exclude", "to": ["/srv"]});
    assert_eq!((&differ["from"], &differ["to"]), (&json!(1), &json!(2)));
    assert_eq!(differ["differences"][0], exclude);
    let mode = json!({"setting": "on_access.mode", "from": "monitor"});
    assert_eq!(differ["differences"][2], mode);
    let revert = json!({"revision": 1});
    let path = "policies/site/revert";
    assert_eq!(api.call(&admin, "POST", path, Some(&revert)).status, 428);
    let back = api
        .call(&at(&admin, "\"2\""), "POST", path, Some(&revert))
        .value;
    assert_eq!(back["settings"], json!({"on_access.mode": "monitor"}));
    assert_eq!(
        (&back["revision"], &back["note"]),
        (&json!(3), &json!("as revision 1"))
    );
    let lost = api.call(&any, "POST", path, Some(&json!({"revision": 8})));
    assert_eq!(lost.status, 404);
    let nothing = api
        .call(&any, "POST", path, Some(&json!({"revision": 0})))
        .value;
    assert_eq!(nothing["settings"], json!({}));
    let all = api.get(&admin, "policies/site/revisions").value;
    let numbers = all["items"].as_array().unwrap().iter();
    let numbers: Vec<u64> = numbers
        .map(|item| item["revision"].as_u64().unwrap())
        .collect();
    assert_eq!(numbers, [4, 3, 2, 1], "none is lost");
    let log = api.get(&admin, "audit?limit=1").value["items"][0].clone();
    assert_eq!(
        (&log["action"], &log["object"]),
        (&json!("policy.revert"), &json!("site"))
    );
    assert_eq!(log["before"], "revision 3");
    let after = log["after"].as_str().unwrap();
    assert!(after.starts_with("revision 4: on_access.mode (BLAKE3 "));
    assert!(after.ends_with("): on_access.mode inherited"), "{after}");
}

#[test]
fn groups_are_changed_by_who_may_and_ask_what_he_may() {
    let api = Api::start("");
    let (admin, jo) = (
        api.admin(),
        api.somebody(
            "jo",
            json!([{"role": "tenant_admin", "path": "/tenants/acme"}]),
        ),
    );
    let make = |who: &Who, more: Value| {
        let mut new = json!({"tenant": "acme", "name": "web", "query": "name:web-*"});
        let fields = more.as_object().unwrap().clone();
        new.as_object_mut().unwrap().extend(fields);
        api.call(who, "POST", "groups", Some(&new))
    };
    for (more, status, says) in [
        (json!({"name": "Web"}), 422, "lower-case"),
        (json!({"query": "name"}), 422, "no term"),
        (json!({"query": "colour:red"}), 422, "colour"),
        (json!({"tenant": "../x"}), 422, "tenant"),
        (json!({"priority": 1_000_001}), 422, "1000000"),
        (json!({"tenant": "other"}), 403, "tenants/other"),
        (json!({"query": "domain:vm-*"}), 403, "domain"),
    ] {
        let refused = make(&jo, more.clone());
        assert_eq!(refused.status, status, "{more}: {refused:?}");
        let detail = refused.value["detail"].as_str().unwrap();
        assert!(detail.contains(says), "{more}: {detail}");
    }
    assert_eq!(
        make(&admin, json!({"name": "vms", "query": "domain:vm-*"})).status,
        201
    );
    let made = make(&jo, json!({}));
    assert_eq!((made.status, &made.value["revision"]), (201, &json!(1)));
    assert_eq!(make(&jo, json!({})).status, 409);
    let path = format!("groups/{}", made.value["id"].as_str().unwrap());
    let change = json!({"priority": 5});
    assert_eq!(api.call(&jo, "PATCH", &path, Some(&change)).status, 428);
    let stale = api.call(&at(&jo, "\"7\""), "PATCH", &path, Some(&change));
    assert_eq!(stale.status, 412);
    let now = api.call(&at(&jo, "\"1\""), "PATCH", &path, Some(&change));
    assert_eq!(
        (&now.value["priority"], &now.value["revision"]),
        (&json!(5), &json!(2))
    );
    assert_eq!(now.value["query"], "name:web-*");
    let sneaky = json!({"query": "domain:secret*"});
    assert_eq!(
        api.call(&at(&jo, "*"), "PATCH", &path, Some(&sneaky))
            .status,
        403
    );
    let preview = |query: &str| api.get(&jo, &format!("group-preview?tenant=acme&query={query}"));
    assert_eq!(preview("name:web-*").status, 200);
    for of_site in ["domain:a*", "host:a*", "!cluster:a*", "datacenter:a*"] {
        assert_eq!(preview(of_site).status, 403, "{of_site}");
    }
    assert_eq!(preview("x").status, 422);
    assert_eq!(
        api.get(&jo, "group-preview?tenant=other&query=name:*")
            .status,
        403
    );
    assert_eq!(api.get(&jo, "group-preview").status, 400);
    // All queries of a tenant are as long as one server can ask them.
    let long =
        |n: usize| json!({"name": format!("n{n}"), "query": format!("name:{}", "a".repeat(1000))});
    let refused = (0..40)
        .map(|n| make(&jo, long(n)))
        .find(|made| made.status != 201);
    let refused = refused.unwrap();
    let detail = refused.value["detail"].as_str().unwrap();
    assert!(
        refused.status == 422 && detail.contains("delete a group"),
        "{detail}"
    );
    let longer = json!({"query": format!("name:{}", "a".repeat(1000))});
    let refused = api.call(&at(&jo, "*"), "PATCH", &path, Some(&longer));
    assert_eq!(refused.status, 422);
    // Who may set what a group has may not say who is in it.
    let grant = json!([{"role": "operator", "path": "/tenants/acme/groups/web"}]);
    let lee = at(&api.somebody("lee", grant), "*");
    let policy = format!("group:{}", made.value["id"].as_str().unwrap());
    let pua = json!({"scan.pua": true});
    assert_eq!(set(&api, &lee, &policy, pua.clone()).status, 200);
    assert_eq!(set(&api, &lee, "tenant:acme", pua).status, 404);
    let wider = json!({"query": "name:*"});
    assert_eq!(api.call(&lee, "PATCH", &path, Some(&wider)).status, 403);
    assert_eq!(api.call(&lee, "DELETE", &path, None).status, 403);
    assert_eq!(
        api.call(&at(&jo, "\"1\""), "DELETE", &path, None).status,
        412
    );
    assert_eq!(
        api.call(&at(&jo, "\"2\""), "DELETE", &path, None).status,
        204
    );
    assert_eq!(api.get(&jo, &path).status, 404);
}

type Pushed = mpsc::Receiver<FromServer>;

async fn policy(pushes: &mut Pushed) -> Policy {
    loop {
        let message = tokio::time::timeout(PATIENCE, pushes.recv()).await.unwrap();
        if let FromServer::Policy(policy) = message.unwrap() {
            return policy;
        }
    }
}

async fn ask(session: &Session, held: Option<Fingerprint>) -> FromServer {
    session
        .request(&ToServer::GetPolicy { held })
        .await
        .unwrap()
}

fn value(policy: &Policy, key: &str) -> Option<(String, String)> {
    let setting = policy
        .settings
        .iter()
        .find(|setting| setting.key.as_str() == key)?;
    Some((setting.value.to_string(), setting.origin.to_string()))
}

async fn change(site: &Site, id: String, settings: Value) {
    let body = json!({"set": settings});
    let changed = site.api(move |client| {
        let path = format!("policies/{id}");
        let now: Value = client.get(&path)?;
        client.changed::<Value>("PATCH", &path, now["revision"].as_u64().unwrap(), &body)
    });
    changed.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_has_what_is_set_within_seconds_and_says_so() {
    let site = Site::start("").await;
    let member = site.join(Component::Agent, host("web-1", None)).await;
    let id = agent_id(&member);
    let (session, _, mut pushes) = Session::connect(&member, hello(None)).await.unwrap();
    let shown = async || -> Value {
        let path = format!("agents/{id}/policy");
        site.api(move |client| client.get(&path)).await.unwrap()
    };
    assert_eq!(shown().await["state"], "unknown");
    // Who has not asked is of an earlier version, and is told nothing.
    change(
        &site,
        "site".to_owned(),
        json!({"on_access.mode": "monitor"}),
    )
    .await;
    let FromServer::Policy(first) = ask(&session, None).await else {
        panic!("no policy");
    };
    while let Ok(message) = pushes.try_recv() {
        assert!(!matches!(message, FromServer::Policy(_)), "{message:?}");
    }
    let monitor = ("\"monitor\"".to_owned(), "site".to_owned());
    assert_eq!(value(&first, "on_access.mode"), Some(monitor.clone()));
    let held = first.fingerprint().unwrap();
    assert_eq!(ask(&session, Some(held)).await, FromServer::NotModified);

    let new = json!({"name": "web", "query": "name:web-*", "priority": 3});
    let group: Value = site
        .api(move |client| client.post("groups", &new))
        .await
        .unwrap();
    let of_group = format!("group:{}", group["id"].as_str().unwrap());
    change(&site, of_group.clone(), json!({"on_access.mode": "block"})).await;
    let second = policy(&mut pushes).await;
    let block = ("\"block\"".to_owned(), "group web (priority 3)".to_owned());
    assert_eq!(value(&second, "on_access.mode"), Some(block));
    let desired = second.fingerprint().unwrap();
    let before = shown().await;
    assert_eq!(
        (&before["state"], &before["desired"]),
        (&json!("unknown"), &json!(desired))
    );
    assert_eq!(before["settings"][0]["origin"], "group web (priority 3)");
    assert_eq!(before["settings"][0]["subject"], of_group.as_str());

    let say = async |report: PolicyReport| {
        let said = session
            .request(&ToServer::PolicyReport(report))
            .await
            .unwrap();
        assert_eq!(said, FromServer::Ack);
        shown().await["state"].clone()
    };
    let mut report = PolicyReport {
        in_force: Some(held),
        ..PolicyReport::default()
    };
    assert_eq!(say(report.clone()).await, "pending");
    report.refused = Some(Refused {
        fingerprint: desired,
        why: Text::cut("the disk is full"),
    });
    assert_eq!(say(report.clone()).await, "refused");
    assert_eq!(shown().await["problem"], "the disk is full");
    let alerts = site.get("alerts").await;
    assert_eq!(alerts["items"][0]["kind"], "policy_refused", "{alerts}");
    let text = alerts["items"][0]["text"].as_str().unwrap();
    assert!(text.contains("the disk is full"), "{text}");
    report.in_force = Some(desired);
    report.not_applied = List::cut([NotApplied {
        key: Text::cut("x.y"),
        why: Text::cut("unknown"),
    }]);
    assert_eq!(say(report.clone()).await, "partial");
    report.not_applied = List::default();
    assert_eq!(say(report).await, "applied");
    assert_eq!(shown().await["confirmed"], json!(desired));
    assert_eq!(site.get("alerts").await["items"], json!([]));

    // Another one's own is nothing to it; one for it alone wins; a group that is gone
    // leaves the site's.
    change(
        &site,
        "tenant:other".to_owned(),
        json!({"on_access.mode": "learn"}),
    )
    .await;
    change(
        &site,
        format!("vm:{id}"),
        json!({"on_access.deadline_ms": 900}),
    )
    .await;
    let third = policy(&mut pushes).await;
    assert_eq!(value(&third, "on_access.deadline_ms").unwrap().1, "VM");
    assert_eq!(third.layers.len(), 3);
    let path = format!("groups/{}", group["id"].as_str().unwrap());
    let gone = site.api(move |client| client.change::<()>("DELETE", &path, 1, None).map(drop));
    gone.await.unwrap();
    assert_eq!(
        value(&policy(&mut pushes).await, "on_access.mode"),
        Some(monitor)
    );

    // While nobody is connected, things change; who comes back has what is so by then.
    session.close();
    change(&site, "site".to_owned(), json!({"on_access.mode": "learn"})).await;
    let (session, _, _pushes) = Session::connect(&member, hello(None)).await.unwrap();
    let FromServer::Policy(now) = ask(&session, Some(desired)).await else {
        panic!("no policy");
    };
    assert_eq!(value(&now, "on_access.mode").unwrap().0, "\"learn\"");
    // And so has a server that was started anew.
    let known = now.fingerprint().unwrap();
    let Site { dir, server } = site;
    server.stop().await;
    let site = Site::start_in(dir, "").await;
    let path = format!("agents/{id}/policy");
    let shown: Value = site.api(move |client| client.get(&path)).await.unwrap();
    assert_eq!(shown["desired"], json!(known));
}

/// A change by somebody else in the same database: another server's.
#[tokio::test(flavor = "multi_thread")]
async fn what_another_server_changes_is_told_too() {
    use palisade_integration_server::policy::Subject;
    use palisade_integration_server::store::Change;

    let site = Site::start("").await;
    let member = site.join(Component::Agent, host("web-1", None)).await;
    let (session, _, mut pushes) = Session::connect(&member, hello(None)).await.unwrap();
    ask(&session, None).await;
    let record = crate::policies_store::policy(Subject::Site, 1, "learn");
    let change = Change::PutPolicy(&record);
    let store = &site.server.fleet().store;
    assert!(store.change(change, None, 1).await.unwrap().is_done());
    let told = policy(&mut pushes).await;
    assert_eq!(value(&told, "on_access.mode").unwrap().0, "\"learn\"");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_brings_a_guest_into_a_group_and_out_of_it() {
    let Some(daemon) = Libvirtd::start() else {
        return;
    };
    daemon.define("tiny");
    daemon.must(&["start", "tiny"]);
    let more = format!(
        "[inventory]\npoll = '1h'\n[[libvirt]]\nuri = '{}'\nhost = 'hv1'",
        daemon.uri()
    );
    let site = Site::start(&more).await;
    domain_is(&site, "tiny", "running").await;
    let new = json!({"name": "prod", "query": "tag:prod host:hv*"});
    let group: Value = site
        .api(move |client| client.post("groups", &new))
        .await
        .unwrap();
    let id = group["id"].as_str().unwrap().to_owned();
    change(
        &site,
        format!("group:{id}"),
        json!({"on_access.mode": "block"}),
    )
    .await;
    let member = site.join(Component::Agent, host("guest", None)).await;
    let greeting = hello(Some(UUID.parse().unwrap()));
    let (session, _, mut pushes) = Session::connect(&member, greeting).await.unwrap();
    let FromServer::Policy(before) = ask(&session, None).await else {
        panic!("no policy");
    };
    assert_eq!(value(&before, "on_access.mode"), None);
    let tag = |element: &str| {
        let uri = ["metadata", "tiny", "--uri", "urn:palisade:domain:1"];
        let what = ["--key", "palisade", "--live", "--config", "--set", element];
        daemon.must(&[&uri[..], &what].concat());
    };
    let members = async || -> usize {
        let path = format!("groups/{id}/members");
        let found: Value = site.api(move |client| client.get(&path)).await.unwrap();
        found["items"].as_array().unwrap().len()
    };
    // The control: another tag is no reason.
    tag("<domain><tag>test</tag></domain>");
    until("the other tag is known", || async {
        site.get("inventory").await.to_string().contains("test")
    })
    .await;
    assert_eq!(members().await, 0);
    tag("<domain><tag>prod</tag></domain>");
    let joined = policy(&mut pushes).await;
    let block = ("\"block\"".to_owned(), "group prod (priority 0)".to_owned());
    assert_eq!(value(&joined, "on_access.mode"), Some(block));
    assert_eq!(members().await, 1);
    tag("<domain><tag>test</tag></domain>");
    assert_eq!(value(&policy(&mut pushes).await, "on_access.mode"), None);
    site.server.stop().await;
}
