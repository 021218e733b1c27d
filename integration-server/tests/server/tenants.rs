//! Every route of the specification, asked by a tenant's admin with another tenant's ids;
//! and every route that changes something leaves an entry in the audit log. Generated: a
//! route that is added is asked, too, or its absence here fails.

use palisade_daemon::enrol::enrol;
use palisade_integration_server::access::routes::{self, Need};
use palisade_integration_server::accounts::totp;
use palisade_integration_server::store::seal::master::Source;
use palisade_integration_server::store::{Database, Opening, Place};
use palisade_integration_server::time::now_ms;
use palisade_protocol::bounded::{List, PathBytes};
use palisade_protocol::control::{AgentReport, Component, Protection};
use palisade_protocol::exposure::{ExposureCause, ExposureWindow};
use palisade_protocol::ids::AgentId;
use palisade_protocol::spiffe::Role;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::accounts::{Api, PASSWORD, Who};
use crate::api::operations;
use crate::command::server;
use crate::site::host;
use crate::store::detection;

/// What an agent says whose guest has had time without verdicts.
fn exposed() -> AgentReport {
    let window = ExposureWindow {
        id: 1,
        until_ms: Some(1),
        causes: List::cut([ExposureCause::NoSvm]),
        ..ExposureWindow::default()
    };
    AgentReport {
        protection: Protection::Blocking,
        svm: None,
        events: Default::default(),
        clock_ms: 1,
        exposure: List::cut([window]),
        maintenance: None,
    }
}

/// One of each, of one tenant.
struct Things {
    tenant: String,
    /// In every name.
    marker: String,
    agent: String,
    svm: String,
    join_token: String,
    account: String,
    api_token: String,
    group: String,
}

impl Things {
    fn make(api: &Api, tenant: &str) -> Self {
        let marker = format!("m{}", Uuid::new_v4().simple());
        let marker = marker.get(..20).unwrap().to_owned();
        let admin = api.admin();
        let join = |component: &str| {
            let new = json!({"component": component, "tenant": tenant});
            api.call(&admin, "POST", "tokens", Some(&new)).value
        };
        let enrolled = |component| {
            let made = join(match component {
                Component::Agent => "agent",
                Component::Svm => "svm",
            });
            let token = made["token"].as_str().unwrap().parse().unwrap();
            let runtime = tokio::runtime::Runtime::new().unwrap();
            let joined = runtime.block_on(enrol(&token, component, host(&marker, None)));
            match joined.unwrap().identity.id().role {
                Role::Agent { id, .. } => id.to_string(),
                Role::Svm(id) => id.to_string(),
                ref other => panic!("{other:?}"),
            }
        };
        let (agent, svm) = (enrolled(Component::Agent), enrolled(Component::Svm));
        let path = format!("/tenants/{tenant}");
        let grant = json!({"role": "tenant_admin", "path": path});
        let name = format!("{marker}-boss");
        let boss = api.somebody(&name, json!([grant]));
        let account = api.get(&boss, "session").value["account"].clone();
        let new = json!({"name": marker, "scope": grant});
        let key = api.call(&boss, "POST", "api-tokens", Some(&new)).value;
        let new = json!({"tenant": tenant, "name": marker, "query": format!("name:{marker}")});
        let group = api.call(&admin, "POST", "groups", Some(&new)).value;
        let sets = json!({"settings": {"exclude": [format!("/{marker}")]}});
        let policy = format!("policies/vm:{agent}");
        let set = api.call(&any(&admin), "PUT", &policy, Some(&sets));
        assert_eq!(set.status, 200, "{set:?}");
        Self {
            tenant: tenant.to_owned(),
            group: group["id"].as_str().unwrap().to_owned(),
            join_token: join("agent")["id"].as_str().unwrap().to_owned(),
            account: account.as_str().unwrap().to_owned(),
            api_token: key["id"].as_str().unwrap().to_owned(),
            agent,
            svm,
            marker,
        }
    }

    /// A detection of the agent, as if it had reported one.
    fn detect(&self, api: &Api) {
        let state = api.running.dir.path().join("var/server");
        let place = Place {
            database: Database::File(state.join("palisade.db")),
            master: Source::File(state.join("master-key")),
        };
        let found = palisade_protocol::control::Detection {
            path: PathBytes::from_path(std::path::Path::new(&format!("/{}", self.marker))),
            ..detection(b"/x")
        };
        let agent = AgentId(self.agent.parse().unwrap());
        tokio::runtime::Runtime::new().unwrap().block_on(async {
            let store = place.open_to(Opening::Look).await.unwrap();
            store.add_detections(agent, &[found], 1).await.unwrap();
            store.report_agent(agent, &exposed(), 1).await.unwrap();
            store.close().await;
        });
    }

    /// Makes them so that a route can do what it is for.
    fn make_ready(&self, api: &Api, method: &str, template: &str) {
        if (method, template) == ("DELETE", "/api/v1/accounts/{id}") {
            let disabled = json!({"disabled": true});
            let path = self.path(template);
            let done = api.call(&api.admin(), "PATCH", &path, Some(&disabled));
            assert_eq!(done.status, 200, "{done:?}");
        }
    }

    /// A route's path with these things' ids.
    fn path(&self, template: &str) -> String {
        let path = template.strip_prefix("/api/v1/").unwrap();
        let vm = format!("vm:{}", self.agent);
        let id = match path.split('/').next().unwrap() {
            "agents" => &self.agent,
            "svms" => &self.svm,
            "tokens" => &self.join_token,
            "accounts" => &self.account,
            "api-tokens" => &self.api_token,
            "groups" => &self.group,
            "policies" => &vm,
            "group-preview" => return format!("{path}?tenant=acme&query=name:*"),
            // The site's own, which no tenant reaches, whatever the number.
            "definitions" => {
                return path
                    .replace("{generation}", "1")
                    .replace("{role}", "root")
                    .replace("{sha256}", &format!("{}?length=1", "0".repeat(64)));
            }
            other if !path.contains('{') => return path.replace("{id}", other),
            other => panic!("whose id is it in {other}?"),
        };
        path.replace("{id}", id)
    }

    /// A body with which a route does something.
    fn body(&self, method: &str, template: &str) -> Value {
        let path = format!("/tenants/{}", self.tenant);
        let grant = json!({"role": "tenant_admin", "path": path});
        match (method, template.strip_prefix("/api/v1/").unwrap()) {
            ("POST", "svms/{id}/definitions") => json!({"action": "refresh"}),
            ("POST", "agents/{id}/maintenance") => {
                json!({"allowed": "stop", "for_s": 60, "reason": "work"})
            }
            ("POST", "groups") => {
                let name = format!("g{}", Uuid::new_v4().simple());
                json!({"tenant": self.tenant, "name": name, "query": "name:*"})
            }
            ("PATCH", "groups/{id}") => json!({"priority": 4}),
            ("PUT", "policies/{id}") => json!({"settings": {"on_access.mode": "monitor"}}),
            ("PATCH", "policies/{id}") => json!({"unset": ["exclude"]}),
            ("POST", "policies/{id}/revert") => json!({"revision": 1}),
            ("POST", "tokens") => json!({"tenant": self.tenant}),
            ("POST", "accounts") => {
                let name = format!("a{}", Uuid::new_v4().simple());
                json!({"name": name, "password": PASSWORD, "grants": [grant]})
            }
            ("PATCH", "accounts/{id}") => json!({"disabled": true}),
            ("PUT", "accounts/{id}/password") => json!({"password": PASSWORD}),
            ("POST", "api-tokens") => json!({"name": "x", "scope": grant}),
            ("POST", "session/confirmation") => json!({"password": PASSWORD}),
            ("PUT", "session/password") => json!({"old": PASSWORD, "new": PASSWORD}),
            _ => Value::Null,
        }
    }
}

/// Whoever changes something, whichever revision it has.
fn any(who: &Who) -> Who {
    let mut who = who.clone();
    who.headers.push(("if-match", "*".to_owned()));
    who
}

fn some(body: &Value) -> Option<&Value> {
    (!body.is_null()).then_some(body)
}

/// What the site's admin sees of somebody's things.
fn seen(api: &Api, things: &Things) -> String {
    let admin = api.admin();
    let mut text = String::new();
    for list in [
        "agents",
        "tokens",
        "accounts",
        "api-tokens",
        "detections",
        "groups",
        "policies",
    ] {
        let mut found = api.get(&admin, list).value["items"].take();
        let items = found.as_array_mut().unwrap();
        let policy = format!("vm:{}", things.agent);
        let of = [
            &things.agent,
            &things.join_token,
            &things.account,
            &things.api_token,
            &things.group,
            &policy,
        ];
        items.retain(|item| {
            of.iter()
                .any(|id| [&item["id"], &item["agent"], &item["subject"]].contains(&&json!(id)))
        });
        assert_eq!(items.len(), 1, "{list}: {items:?}");
        text.push_str(&found.to_string());
    }
    text
}

#[test]
fn a_tenants_admin_reaches_nothing_of_another() {
    let api = Api::start("");
    let (own, other) = (Things::make(&api, "acme"), Things::make(&api, "other"));
    for things in [&own, &other] {
        things.detect(&api);
    }
    let path = "/tenants/acme";
    let jo = api.somebody("jo", json!([{"role": "tenant_admin", "path": path}]));
    let nobody = api.somebody("nobody", json!([]));
    let before = seen(&api, &other);
    let (mut asked, mut lists) = (0, 0);
    for (method, template) in operations() {
        let route = routes::find(&method, &template).unwrap();
        let call = |who: &Who, things: &Things| {
            let body = things.body(&method, &template);
            api.call(&any(who), &method, &things.path(&template), some(&body))
        };
        let what = format!("{method} {template}");
        if route.need != Need::Nobody {
            assert_eq!(call(&Who::default(), &other).status, 401, "{what}");
        }
        match route.need {
            Need::Site(_) => {
                assert_eq!(call(&jo, &other).status, 403, "{what}");
                assert_eq!(call(&nobody, &other).status, 403, "{what}");
            }
            Need::Within(_) => assert_eq!(call(&nobody, &other).status, 403, "{what}"),
            _ => {}
        }
        let by_id = template.contains("{id}");
        if by_id && matches!(route.need, Need::Within(_) | Need::Somebody) {
            // As if it did not exist: the same answer as for an id that is nobody's.
            let swapped = call(&jo, &other);
            assert_eq!(swapped.status, 404, "{what}: {swapped:?}");
            let none = Things {
                marker: String::new(),
                tenant: "other".to_owned(),
                agent: Uuid::new_v4().to_string(),
                svm: Uuid::new_v4().to_string(),
                join_token: Uuid::new_v4().to_string(),
                account: Uuid::new_v4().to_string(),
                api_token: Uuid::new_v4().to_string(),
                group: Uuid::new_v4().to_string(),
            };
            let unknown = call(&jo, &none).value.to_string();
            let mut swapped = swapped.value.to_string();
            for (id, of_none) in [
                (&other.agent, &none.agent),
                (&other.join_token, &none.join_token),
                (&other.account, &none.account),
                (&other.api_token, &none.api_token),
                (&other.group, &none.group),
            ] {
                swapped = swapped.replace(id.as_str(), of_none);
            }
            assert_eq!(swapped, unknown, "{what}");
            asked += 1;
        } else if method == "GET" && !matches!(route.need, Need::Site(_)) {
            let list = call(&jo, &own);
            assert_eq!(list.status, 200, "{what}");
            let text = list.value.to_string();
            let all = call(&api.admin(), &own).value.to_string();
            let markers = [
                &other.marker,
                &other.agent,
                &other.join_token,
                &other.account,
                &other.group,
            ];
            for marker in markers {
                assert!(!text.contains(marker.as_str()), "{what}: {marker}: {text}");
            }
            // The control: it is there for who may see it, and his own for him.
            if markers.iter().any(|marker| all.contains(marker.as_str())) {
                assert!(
                    text.contains(&own.marker)
                        || text.contains(&own.agent)
                        || text.contains(&own.join_token),
                    "{what}: {text}"
                );
                lists += 1;
            }
        } else if method == "POST" && matches!(route.need, Need::Within(_)) {
            assert_eq!(call(&jo, &other).status, 403, "{what}: in another's name");
            asked += 1;
        }
    }
    assert!(asked >= 8 && lists >= 5, "{asked} routes, {lists} lists");
    assert_eq!(seen(&api, &other), before);

    // The control: with his own ids he does all of it.
    for (method, template) in operations() {
        let route = routes::find(&method, &template).unwrap();
        if let (Need::Within(_), true) = (route.need, method != "GET") {
            let fresh = Things::make(&api, "acme");
            let body = fresh.body(&method, &template);
            fresh.make_ready(&api, &method, &template);
            let done = api.call(&any(&jo), &method, &fresh.path(&template), some(&body));
            let nothing_to_remove = template.ends_with("/totp") && done.status == 409;
            assert!(
                done.status < 300 || nothing_to_remove,
                "{method} {template}: {done:?}"
            );
        }
    }
}

#[test]
fn every_change_has_its_entry() {
    let api = Api::start("");
    let admin = api.admin();
    let head = || {
        let page = api.get(&admin, "audit?limit=1").value;
        page["items"][0].clone()
    };
    let mut changes = 0;
    for (number, (method, template)) in operations().into_iter().enumerate() {
        if method == "GET" {
            continue;
        }
        let name = format!("admin{number}");
        let who = api.somebody(&name, json!([{"role": "admin", "path": "/"}]));
        let things = Things::make(&api, "acme");
        let mut body = things.body(&method, &template);
        let totp_on = |account: &Who| {
            let made = api.call(account, "POST", "session/totp", None);
            let secret = made.value["secret"].as_str().unwrap().to_owned();
            let secret = unbase32(&secret);
            json!({"code": totp::text_at(&secret, now_ms())})
        };
        match (method.as_str(), template.strip_prefix("/api/v1/").unwrap()) {
            ("POST", "setup") => {
                let made = server(api.running.dir.path())
                    .arg("new-setup-token")
                    .output();
                assert!(made.unwrap().status.success());
                let file = api.running.dir.path().join("var/server/setup.token");
                let token = std::fs::read_to_string(file).unwrap();
                body = json!({"token": token.trim(), "name": "first", "password": PASSWORD});
            }
            ("POST", "session") => body = json!({"name": name, "password": PASSWORD}),
            ("PUT", "session/totp") => body = totp_on(&who),
            ("DELETE", "session/totp") => drop(totp_on(&who)),
            ("DELETE", "accounts/{id}/totp") => {
                let boss = api.log_in(&format!("{}-boss", things.marker), Value::Null);
                drop(totp_on(&Who::session(&boss)));
            }
            ("POST", "api-tokens") => {
                body = json!({"name": "x", "scope": {"role": "admin", "path": "/"}});
            }
            ("POST", "definitions/generations") => {
                // With the very first, keys are made, which is an entry of its own.
                let first = generation(&api, false);
                api.call(&admin, "POST", "definitions/generations", Some(&first));
                body = generation(&api, true);
            }
            ("PUT", "definitions/wanted") => {
                let staged = generation(&api, false);
                let made = api.call(&admin, "POST", "definitions/generations", Some(&staged));
                body = made.value;
            }
            // A list of names, and bytes that no generation has yet: what becomes of them
            // has its entry. What a publisher signs elsewhere is tests/tests/definitions.rs.
            ("POST", "definitions/missing")
            | ("PUT", "definitions/files/{sha256}" | "definitions/signed") => {
                changes += 1;
                continue;
            }
            _ => {}
        }
        things.make_ready(&api, &method, &template);
        let before = head();
        let done = api.call(&any(&who), &method, &things.path(&template), some(&body));
        // No Protection Server is connected that would take the order; that it was given
        // is on record all the same.
        let ordered = template.ends_with("/definitions") && done.status == 409;
        assert!(
            done.status < 300 || ordered,
            "{method} {template}: {done:?}"
        );
        let after = head();
        let count = |entry: &Value| entry["number"].as_u64().unwrap();
        assert_eq!(
            count(&after),
            count(&before) + 1,
            "{method} {template}: {after}"
        );
        let action = after["action"].as_str().unwrap().to_owned();
        assert_eq!(action, action_of(&method, &template), "{method} {template}");
        assert_eq!(after["result"], "done");
        assert_eq!(after["from"], "127.0.0.1");
        if !template.ends_with("/setup") {
            assert_eq!(after["by"], name.as_str(), "{method} {template}");
        }
        changes += 1;
    }
    let table = routes::ROUTES.iter().filter(|route| route.method != "GET");
    assert_eq!(changes, table.count());
    let verified = api.get(&admin, "audit/verification").value;
    assert_eq!(verified["intact"], true, "{verified}");
}

/// What the entry of a change is called.
fn action_of(method: &str, template: &str) -> &'static str {
    match (method, template.strip_prefix("/api/v1/").unwrap()) {
        ("DELETE", "svms/{id}") => "svm.revoke",
        ("POST", "svms/{id}/definitions") => "svm.definitions",
        ("DELETE", "agents/{id}") => "agent.revoke",
        ("POST", "agents/{id}/maintenance") => "agent.maintenance",
        ("POST", "tokens") => "join_token.create",
        ("DELETE", "tokens/{id}") => "join_token.revoke",
        ("POST", "accounts" | "setup") => "account.create",
        ("PATCH", "accounts/{id}") => "account.disable",
        ("DELETE", "accounts/{id}") => "account.remove",
        ("PUT", "accounts/{id}/password" | "session/password") => "account.password",
        ("DELETE", "accounts/{id}/totp" | "session/totp") => "account.totp.off",
        ("POST", "session/totp") => "account.totp.begin",
        ("PUT", "session/totp") => "account.totp.on",
        ("POST", "api-tokens") => "api_token.create",
        ("DELETE", "api-tokens/{id}") => "api_token.revoke",
        ("POST", "session") => "session.create",
        ("DELETE", "session") => "session.end",
        ("POST", "session/confirmation") => "session.confirm",
        ("PUT" | "PATCH", "policies/{id}") => "policy.change",
        ("POST", "policies/{id}/revert") => "policy.revert",
        ("POST", "groups") => "group.create",
        ("PATCH" | "PUT", "groups/{id}") => "group.change",
        ("DELETE", "groups/{id}") => "group.delete",
        ("POST", "definitions/generations") => "definitions.import",
        ("PUT", "definitions/wanted") => "definitions.activate",
        other => panic!("what is the entry of {other:?} called?"),
    }
}

/// A generation of one file, which the server has got.
fn generation(api: &Api, wanted: bool) -> Value {
    let text = Value::String(Uuid::new_v4().to_string());
    let bytes = text.to_string();
    let sha256 = hex::encode(ring::digest::digest(
        &ring::digest::SHA256,
        bytes.as_bytes(),
    ));
    let path = format!("definitions/files/{sha256}?length={}", bytes.len());
    let sent = api.call(&api.admin(), "PUT", &path, Some(&text));
    assert_eq!(sent.value["have"], bytes.len(), "{sent:?}");
    let file = json!({"name": "some.ndb", "sha256": sha256, "length": bytes.len()});
    json!({"origin": "a test", "files": [file], "wanted": wanted})
}

fn unbase32(text: &str) -> Vec<u8> {
    crate::accounts::unbase32(text)
}

#[test]
fn a_grant_for_one_vm_is_for_that_one() {
    let api = Api::start("");
    let (own, neighbour) = (Things::make(&api, "acme"), Things::make(&api, "acme"));
    for things in [&own, &neighbour] {
        things.detect(&api);
    }
    let grant = |things: &Things| {
        let path = format!("/tenants/acme/vms/{}", things.agent);
        json!([{"role": "operator", "path": path}])
    };
    let jo = api.somebody("jo", grant(&own));
    for list in [
        "agents",
        "detections",
        "exposures",
        "alerts",
        "tokens",
        "audit",
    ] {
        let found = api.get(&jo, list);
        let text = found.value.to_string();
        assert!(
            !text.contains(&neighbour.agent) && !text.contains(&neighbour.join_token),
            "{list}"
        );
        if ["agents", "detections", "exposures"].contains(&list) {
            assert_eq!(
                found.value["items"].as_array().unwrap().len(),
                1,
                "{list}: {text}"
            );
            assert!(text.contains(&own.marker), "{list}: {text}");
        }
    }
    let work = json!({"allowed": "stop", "for_s": 60, "reason": "work"});
    for (things, maintenance, revoked) in [(&neighbour, 404, 404), (&own, 201, 204)] {
        let path = format!("agents/{}", things.agent);
        let allowed = api.call(&jo, "POST", &format!("{path}/maintenance"), Some(&work));
        assert_eq!(allowed.status, maintenance, "{allowed:?}");
        assert_eq!(api.call(&jo, "DELETE", &path, None).status, revoked);
    }
    // Nobody joins one VM's place.
    let join = json!({"tenant": "acme"});
    assert_eq!(api.call(&jo, "POST", "tokens", Some(&join)).status, 403);
}

/// An agent says which domain it runs in, and may say another tenant's.
#[test]
fn a_claimed_domain_tells_a_tenant_nothing_of_it() {
    const DOMAIN: Uuid = uuid::uuid!("6695eb01-f6a4-8304-79aa-97f2502e193f");
    let api = Api::start("[[libvirt]]\nuri = 'test:///default'\n[fleet]\nagent_boot_grace = '1s'");
    let admin = api.admin();
    for (tenant, name) in [("acme", "claims"), ("other", "victim")] {
        let new = json!({"tenant": tenant});
        let made = api.call(&admin, "POST", "tokens", Some(&new)).value;
        let token = made["token"].as_str().unwrap().parse().unwrap();
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let joined = enrol(&token, Component::Agent, host(name, Some(DOMAIN)));
        runtime.block_on(joined).unwrap();
    }
    let end = std::time::Instant::now() + std::time::Duration::from_secs(60);
    let alerts = || {
        api.get(&admin, "alerts").value["items"]
            .as_array()
            .unwrap()
            .len()
    };
    while alerts() < 2 {
        assert!(std::time::Instant::now() < end, "no alert of both");
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
    // The control: the site's admin is told whose domain it is.
    let domain = api.get(&admin, "agents").value["items"][0]["domain_name"].clone();
    assert_eq!(domain, "test");
    assert!(
        api.get(&admin, "alerts")
            .value
            .to_string()
            .contains("\"test\"")
    );
    let path = "/tenants/acme";
    let jo = api.somebody("jo", json!([{"role": "tenant_admin", "path": path}]));
    for list in ["agents", "alerts"] {
        let found = api.get(&jo, list).value;
        assert_eq!(
            found["items"].as_array().unwrap().len(),
            1,
            "{list}: {found}"
        );
        let text = found.to_string();
        assert!(
            text.contains("claims") && !text.contains("victim"),
            "{list}: {text}"
        );
        assert!(found["items"][0]["domain_name"].is_null(), "{list}: {text}");
        assert!(!text.contains("domain test"), "{list}: {text}");
    }
}
