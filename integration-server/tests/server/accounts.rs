//! Accounts over real HTTPS, of a real `palisade-server` process: becoming somebody, what
//! he may do then, and what is on record of it.

use std::io::{ErrorKind, Read as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use palisade_integration_server::accounts::totp;
use palisade_integration_server::api::connections::MOST_OF_ONE;
use palisade_integration_server::api::pace::BURST;
use palisade_integration_server::time::now_ms;
use palisade_protocol::tls;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde_json::{Value, json};
use sqlx::{AssertSqlSafe, Connection as _, SqliteConnection};
use ureq::Agent;
use ureq::http::Request;
use ureq::tls::{Certificate, RootCerts, TlsConfig};

use crate::command::{Running, server};
use crate::postgres::Postgres;

/// What people type.
pub const PASSWORD: &str = "correct horse battery";

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub cookie: Option<String>,
    pub wait: Option<String>,
    pub value: Value,
}

impl Answer {
    /// The kind of a problem.
    pub fn kind(&self) -> &str {
        let kind = self.value["type"].as_str().unwrap_or_default();
        kind.strip_prefix("urn:palisade:problem:").unwrap_or(kind)
    }
}

/// As whom is asked.
#[derive(Debug, Clone, Default)]
pub struct Who {
    pub headers: Vec<(&'static str, String)>,
}

impl Who {
    pub fn token(text: &str) -> Self {
        Self {
            headers: vec![("authorization", format!("Bearer {text}"))],
        }
    }

    pub fn session(answer: &Answer) -> Self {
        let cookie = answer.cookie.as_deref().unwrap();
        let pair = cookie.split(';').next().unwrap();
        let csrf = answer.value["csrf"].as_str().unwrap();
        Self {
            headers: vec![
                ("cookie", pair.to_owned()),
                ("x-palisade-csrf", csrf.to_owned()),
            ],
        }
    }

    fn without(&self, name: &str) -> Self {
        let mut other = self.clone();
        other.headers.retain(|(header, _)| *header != name);
        other
    }
}

/// A server process, and somebody who asks it.
pub struct Api {
    pub running: Running,
    agent: Agent,
}

impl Api {
    pub fn start(settings: &str) -> Self {
        Self::of(Running::start(settings))
    }

    pub fn of(running: Running) -> Self {
        let root = std::fs::read(running.root()).unwrap();
        let root = CertificateDer::from_pem_slice(&root).unwrap();
        let root = Certificate::from_der(&root).to_owned();
        let tls = TlsConfig::builder()
            .unversioned_rustls_crypto_provider(tls::provider())
            .root_certs(RootCerts::Specific(Arc::new(vec![root])))
            .build();
        let agent = Agent::config_builder()
            .tls_config(tls)
            .http_status_as_error(false)
            // Who is refused before his body was read finds the connection closed.
            .max_idle_connections(0)
            .build()
            .new_agent();
        Self { running, agent }
    }

    pub fn call(&self, who: &Who, method: &str, path: &str, body: Option<&Value>) -> Answer {
        let url = format!("{}/api/v1/{path}", self.running.url);
        let mut request = Request::builder().method(method).uri(url);
        for (name, value) in &who.headers {
            request = request.header(*name, value);
        }
        let bytes = match body {
            Some(body) => {
                request = request.header("content-type", "application/json");
                serde_json::to_vec(body).unwrap()
            }
            None => Vec::new(),
        };
        let mut answer = self.agent.run(request.body(bytes).unwrap()).unwrap();
        let header = |name: &str| {
            let value = answer.headers().get(name)?;
            Some(value.to_str().unwrap().to_owned())
        };
        let (cookie, wait) = (header("set-cookie"), header("retry-after"));
        let text = answer.body_mut().read_to_string().unwrap();
        Answer {
            status: answer.status().as_u16(),
            cookie,
            wait,
            value: serde_json::from_str(&text).unwrap_or(Value::Null),
        }
    }

    pub fn get(&self, who: &Who, path: &str) -> Answer {
        self.call(who, "GET", path, None)
    }

    pub fn admin(&self) -> Who {
        let file = self.running.dir.path().join("var/server/admin.token");
        Who::token(std::fs::read_to_string(file).unwrap().trim())
    }

    pub fn log_in(&self, name: &str, more: Value) -> Answer {
        let mut proof = json!({"name": name, "password": PASSWORD});
        for (key, value) in more.as_object().cloned().unwrap_or_default() {
            proof[key] = value;
        }
        self.call(&Who::default(), "POST", "session", Some(&proof))
    }

    /// A new account; gives its id.
    pub fn account(&self, name: &str, grants: Value) -> String {
        let new = json!({"name": name, "password": PASSWORD, "grants": grants});
        let made = self.call(&self.admin(), "POST", "accounts", Some(&new));
        assert_eq!(made.status, 201, "{made:?}");
        made.value["id"].as_str().unwrap().to_owned()
    }

    /// A new account that is logged in.
    pub fn somebody(&self, name: &str, grants: Value) -> Who {
        self.account(name, grants);
        let answer = self.log_in(name, Value::Null);
        assert_eq!(answer.status, 201, "{answer:?}");
        Who::session(&answer)
    }

    /// Does something in the server's database.
    pub fn database(&self, statements: &str) {
        let file = self.running.dir.path().join("var/server/palisade.db");
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(async {
            let url = format!("sqlite:{}", file.display());
            let mut db = SqliteConnection::connect(&url).await.unwrap();
            sqlx::raw_sql(AssertSqlSafe(statements))
                .execute(&mut db)
                .await
                .unwrap();
            db.close().await.unwrap();
        });
    }
}

fn admin_at_site() -> Value {
    json!([{"role": "admin", "path": "/"}])
}

#[test]
fn the_setup_token_makes_the_first_account_once() {
    use std::os::unix::fs::PermissionsExt as _;
    let api = Api::start("");
    let file = api.running.dir.path().join("var/server/setup.token");
    let mode = std::fs::metadata(&file).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let log = api.running.log.lock().unwrap().clone();
    let named = |line: &Value| line["fields"]["file"] == file.display().to_string().as_str();
    assert!(log.iter().any(named), "its place is in the log: {log:?}");
    let token = std::fs::read_to_string(&file).unwrap().trim().to_owned();
    let nobody = Who::default();
    let setup = |token: &str, name: &str, password: &str| {
        let new = json!({"token": token, "name": name, "password": password});
        api.call(&nobody, "POST", "setup", Some(&new))
    };
    assert_eq!(
        setup("ps1.nonsense", "ann", PASSWORD).kind(),
        "login-refused"
    );
    let admin = std::fs::read_to_string(file.with_file_name("admin.token")).unwrap();
    assert_eq!(setup(admin.trim(), "ann", PASSWORD).status, 401);
    assert_eq!(setup(&token, "ann", "short").status, 422);
    assert_eq!(setup(&token, "Ann", PASSWORD).status, 422);
    assert_eq!(
        api.get(&Who::token(&token), "status").status,
        401,
        "it is no API token"
    );
    assert_eq!(setup(&token, "ann", PASSWORD).status, 204);
    assert!(!file.exists());
    assert_eq!(setup(&token, "bob", PASSWORD).status, 401);
    let ann = Who::session(&api.log_in("ann", Value::Null));
    assert_eq!(api.get(&ann, "session").value["grants"], admin_at_site());
    assert_eq!(api.get(&ann, "status").status, 200);

    // Locked out: root on the machine makes another one.
    let made = server(api.running.dir.path())
        .arg("new-setup-token")
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    let said = String::from_utf8(made.stdout).unwrap();
    assert_eq!(said.trim(), file.display().to_string());
    let token = std::fs::read_to_string(&file).unwrap();
    assert_eq!(
        setup(token.trim(), "ann", PASSWORD).status,
        409,
        "the name is taken"
    );
    assert_eq!(setup(token.trim(), "bob", PASSWORD).status, 204);
    let log = api.get(&ann, "audit").value;
    let by: Vec<&str> = log["items"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|entry| entry["action"] == "account.create")
        .map(|entry| entry["via"].as_str().unwrap())
        .collect();
    assert_eq!(by, ["setup_token", "setup_token"]);
}

#[test]
fn a_session_is_its_cookie_and_its_second_token() {
    let api = Api::start("");
    api.account("jo", admin_at_site());
    let answer = api.log_in("jo", Value::Null);
    let cookie = answer.cookie.clone().unwrap();
    for attribute in [
        "__Host-palisade=",
        "SameSite=Strict",
        "HttpOnly",
        "Secure",
        "Path=/",
    ] {
        assert!(cookie.contains(attribute), "{cookie}");
    }
    let token = cookie.split(['=', ';']).nth(1).unwrap();
    assert!(
        !answer.value.to_string().contains(token),
        "the cookie alone has it"
    );
    let jo = Who::session(&answer);
    assert_eq!(api.get(&jo, "session").value["name"], "jo");
    let bare = jo.without("x-palisade-csrf");
    assert_eq!(api.get(&bare, "tokens").status, 200, "reading wants none");
    let make = |who: &Who| api.call(who, "POST", "tokens", Some(&json!({})));
    assert_eq!(make(&bare).kind(), "csrf");
    let mut wrong = jo.clone();
    wrong.headers[1].1.push('x');
    assert_eq!(make(&wrong).kind(), "csrf");
    let other = Who::session(&api.log_in("jo", Value::Null));
    let mixed = Who {
        headers: vec![jo.headers[0].clone(), other.headers[1].clone()],
    };
    assert_eq!(make(&mixed).kind(), "csrf", "another session's");
    assert_eq!(make(&jo).status, 201);
    // A planted cookie, a changed one, and the second token in its place.
    for cookie in [
        format!("{}; __Host-palisade=x", jo.headers[0].1),
        format!("{}x", jo.headers[0].1),
        format!("__Host-palisade={}", jo.headers[1].1),
        format!("palisade={token}"),
    ] {
        let who = Who {
            headers: vec![("cookie", cookie)],
        };
        assert_eq!(api.get(&who, "session").status, 401);
    }
    assert_eq!(
        api.get(&Who::token(token), "session").status,
        401,
        "it is no API token"
    );
    let out = api.call(&jo, "DELETE", "session", None);
    assert_eq!(out.status, 204);
    assert!(out.cookie.unwrap().contains("Max-Age=0"));
    assert_eq!(api.get(&jo, "session").status, 401);
    assert_eq!(api.get(&other, "session").status, 200);
}

#[test]
fn what_is_wrong_is_not_told_and_too_many_failures_wait() {
    let api = Api::start("");
    let id = api.account("jo", admin_at_site());
    let try_with = |name: &str, password: &str| {
        let proof = json!({"name": name, "password": password});
        api.call(&Who::default(), "POST", "session", Some(&proof))
    };
    let (known, unknown) = (try_with("jo", "wrong"), try_with("nobody", "wrong"));
    assert_eq!((known.status, unknown.status), (401, 401));
    assert_eq!(known.value, unknown.value);
    api.call(
        &api.admin(),
        "PATCH",
        &format!("accounts/{id}"),
        Some(&json!({"disabled": true})),
    );
    assert_eq!(api.log_in("jo", Value::Null).value, known.value);
    api.call(
        &api.admin(),
        "PATCH",
        &format!("accounts/{id}"),
        Some(&json!({"disabled": false})),
    );

    // Nor by how many: who is nobody has the same.
    let mut answers = [const { Vec::new() }; 2];
    for _ in 0..6 {
        for (name, answers) in ["jo", "nobody"].iter().zip(&mut answers) {
            answers.push(try_with(name, "wrong").kind().to_owned());
        }
    }
    let [jo, nobody] = answers;
    // Enabling him anew has forgotten the two before.
    assert_eq!(jo[1..], nobody[..5]);
    assert_eq!(nobody[3..5], ["login-refused", "too-early"]);
    let early = api.log_in("jo", Value::Null);
    assert_eq!((early.status, early.kind()), (429, "too-early"));
    let wait: u64 = early.wait.unwrap().parse().unwrap();
    assert!((1..=5).contains(&wait));
    // Another account is not kept out by that.
    api.account("ann", admin_at_site());
    assert_eq!(api.log_in("ann", Value::Null).status, 201);
    std::thread::sleep(Duration::from_secs(wait));
    assert_eq!(api.log_in("jo", Value::Null).status, 201);
    // Those of an account that is there; they are written beside the answers.
    let refused = || {
        let log = api.get(&api.admin(), "audit?limit=500").value;
        let items = log["items"].as_array().unwrap().iter();
        let refused =
            |entry: &&Value| entry["action"] == "session.create" && entry["result"] == "refused";
        items.filter(refused).count()
    };
    let until = Instant::now() + Duration::from_secs(20);
    while refused() < 7 && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(refused(), 7);
}

#[test]
fn a_second_factor_is_asked_for_and_each_code_counts_once() {
    let api = Api::start("");
    let jo = api.somebody("jo", admin_at_site());
    let made = api.call(&jo, "POST", "session/totp", None);
    assert_eq!(made.status, 201, "{made:?}");
    let secret = unbase32(made.value["secret"].as_str().unwrap());
    assert_eq!(secret.len(), totp::SECRET_BYTES);
    assert_eq!(
        api.log_in("jo", Value::Null).status,
        201,
        "not before it was shown"
    );
    let confirm = |code: &str| api.call(&jo, "PUT", "session/totp", Some(&json!({"code": code})));
    assert_eq!(confirm("000000x").status, 409);
    let now = now_ms();
    let code = totp::text_at(&secret, now);
    let codes = confirm(&code);
    assert_eq!(codes.status, 200, "{codes:?}");
    let recovery: Vec<String> =
        serde_json::from_value(codes.value["recovery_codes"].clone()).unwrap();
    assert_eq!(recovery.len(), totp::RECOVERY_CODES);

    assert_eq!(api.log_in("jo", Value::Null).kind(), "code-needed");
    let replayed = api.log_in("jo", json!({"code": code}));
    assert_eq!(replayed.kind(), "login-refused", "it proved the secret");
    // The next step's, which a clock that goes ahead shows already.
    let next = totp::text_at(&secret, now + 30_000);
    assert_eq!(api.log_in("jo", json!({"code": next})).status, 201);
    assert_eq!(api.log_in("jo", json!({"code": next})).status, 401);
    let by_recovery = |code: &str| api.log_in("jo", json!({"recovery_code": code})).status;
    assert_eq!(by_recovery(&recovery[0]), 201);
    assert_eq!(by_recovery(&recovery[0]), 401);
    assert_eq!(by_recovery(&recovery[1].to_uppercase()), 201);
    // The password alone confirms nothing.
    let confirmation = json!({"password": PASSWORD});
    let unconfirmed = api.call(&jo, "POST", "session/confirmation", Some(&confirmation));
    assert_eq!(unconfirmed.kind(), "code-needed");
    let off = api.call(&jo, "DELETE", "session/totp", None);
    assert_eq!(off.status, 204);
    assert_eq!(api.log_in("jo", Value::Null).status, 201);
}

pub fn unbase32(text: &str) -> Vec<u8> {
    let alphabet = b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567";
    let (mut bytes, mut held, mut bits) = (Vec::new(), 0_u32, 0);
    for letter in text.bytes() {
        let value = alphabet.iter().position(|known| *known == letter).unwrap();
        held = (held << 5) | value as u32;
        bits += 5;
        if bits >= 8 {
            bits -= 8;
            bytes.push((held >> bits) as u8);
        }
    }
    bytes
}

#[test]
fn a_session_ends_when_it_is_idle_and_when_it_is_old() {
    let api = Api::start("[accounts]\nsession_idle = '1s'\nsession_max = '1h'");
    let idle = api.somebody("jo", admin_at_site());
    assert_eq!(api.get(&idle, "session").status, 200);
    std::thread::sleep(Duration::from_millis(1300));
    assert_eq!(api.get(&idle, "session").status, 401);
    drop(api);

    let api = Api::start("[accounts]\nsession_idle = '1h'\nsession_max = '2s'");
    let old = api.somebody("jo", admin_at_site());
    assert_eq!(api.get(&old, "session").status, 200);
    std::thread::sleep(Duration::from_millis(2100));
    assert_eq!(api.get(&old, "session").status, 401);
}

#[test]
fn dangerous_things_want_the_password_again() {
    let api = Api::start("");
    let jo = api.somebody("jo", admin_at_site());
    let new = json!({"name": "new", "password": PASSWORD});
    assert_eq!(api.call(&jo, "POST", "accounts", Some(&new)).status, 201);
    api.database("UPDATE sessions SET confirmed_ms = 0");
    let new = json!({"name": "newer", "password": PASSWORD});
    assert_eq!(
        api.call(&jo, "POST", "accounts", Some(&new)).kind(),
        "unconfirmed"
    );
    let key = json!({"name": "x", "scope": {"role": "auditor", "path": "/"}});
    assert_eq!(
        api.call(&jo, "POST", "api-tokens", Some(&key)).kind(),
        "unconfirmed"
    );
    let join = json!({});
    assert_eq!(
        api.call(&jo, "POST", "tokens", Some(&join)).kind(),
        "unconfirmed"
    );
    // What is not dangerous goes on.
    let none = format!("tokens/{}", uuid::Uuid::new_v4());
    assert_eq!(api.call(&jo, "DELETE", &none, None).status, 404);
    // Who tries to log in by his name keeps nobody from confirming.
    for _ in 0..6 {
        let proof = json!({"name": "jo", "password": "wrong"});
        api.call(&Who::default(), "POST", "session", Some(&proof));
    }
    assert_eq!(api.log_in("jo", Value::Null).status, 429, "the control");
    let confirm = |password: &str| {
        let shown = json!({"password": password});
        api.call(&jo, "POST", "session/confirmation", Some(&shown))
            .status
    };
    assert_eq!(confirm("wrong"), 401);
    assert_eq!(
        api.call(&jo, "POST", "accounts", Some(&new)).kind(),
        "unconfirmed"
    );
    assert_eq!(confirm(PASSWORD), 204);
    assert_eq!(api.call(&jo, "POST", "accounts", Some(&new)).status, 201);
    // And who has a session cannot guess for ever.
    for _ in 0..5 {
        assert_eq!(confirm("wrong"), 401);
    }
    assert_eq!(confirm(PASSWORD), 429);
}

#[test]
fn an_api_token_makes_no_credentials() {
    let api = Api::start("");
    let jo = api.somebody("jo", admin_at_site());
    let ann = api.account("ann", json!([{"role": "auditor", "path": "/"}]));
    let make = |role: &str| {
        let new = json!({"name": "k", "scope": {"role": role, "path": "/"}});
        let made = api.call(&jo, "POST", "api-tokens", Some(&new)).value;
        let id = made["id"].as_str().unwrap().to_owned();
        (id, Who::token(made["token"].as_str().unwrap()))
    };
    let ((all, key), (_, reading)) = (make("admin"), make("auditor"));
    let path = format!("accounts/{ann}");
    let password = format!("{path}/password");
    for (method, path, body) in [
        (
            "POST",
            "accounts",
            json!({"name": "x", "password": PASSWORD}),
        ),
        ("PATCH", path.as_str(), json!({"grants": []})),
        ("PUT", password.as_str(), json!({"password": PASSWORD})),
        ("DELETE", path.as_str(), Value::Null),
    ] {
        let refused = api.call(&key, method, path, Some(&body));
        assert_eq!(refused.status, 403, "{method} {path}: {refused:?}");
    }
    assert_eq!(api.get(&key, "accounts").status, 200, "the control");
    // One that may only read ends itself, and no other one of its account.
    let other = format!("api-tokens/{all}");
    assert_eq!(api.call(&reading, "DELETE", &other, None).status, 404);
    assert_eq!(api.call(&key, "DELETE", &other, None).status, 204);
    assert_eq!(api.get(&key, "accounts").status, 401);

    // The same with a session; who is removed is gone, and his name is free.
    assert_eq!(api.call(&jo, "DELETE", &path, None).status, 409, "enabled");
    let disabled = json!({"disabled": true});
    assert_eq!(api.call(&jo, "PATCH", &path, Some(&disabled)).status, 200);
    assert_eq!(api.call(&jo, "DELETE", &path, None).status, 204);
    assert_eq!(api.call(&jo, "DELETE", &path, None).status, 404);
    api.account("ann", json!([]));
    let reserved = json!({"name": "admin.token", "password": PASSWORD});
    assert_eq!(
        api.call(&jo, "POST", "accounts", Some(&reserved)).status,
        422
    );
}

#[test]
fn one_account_makes_so_many_changes_and_no_more() {
    let api = Api::start("");
    let (jo, ann) = (
        api.somebody("jo", json!([])),
        api.somebody("ann", json!([])),
    );
    let change = |who: &Who| {
        let none = format!("api-tokens/{}", uuid::Uuid::new_v4());
        api.call(who, "DELETE", &none, None).status
    };
    let mut done = 0;
    while change(&jo) == 404 {
        done += 1;
        assert!(done <= 2 * BURST, "nothing stops it");
    }
    assert_eq!(change(&ann), 404);
    assert_eq!(api.get(&jo, "session").status, 200, "he may look");
}

#[test]
fn connections_that_say_nothing_are_bounded() {
    let api = Api::start("");
    let address = api.running.url.strip_prefix("https://").unwrap();
    let open = |_| {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_nonblocking(true).unwrap();
        stream
    };
    let silent: Vec<TcpStream> = (0..=MOST_OF_ONE).map(open).collect();
    let closed = || {
        let is_closed = |mut stream: &TcpStream| match stream.read(&mut [0]) {
            Err(error) => error.kind() != ErrorKind::WouldBlock,
            Ok(_) => true,
        };
        silent.iter().filter(|stream| is_closed(stream)).count()
    };
    // One of them is too many. That is not because its handshake took too long: then all of
    // them would be closed.
    let until = Instant::now() + Duration::from_secs(20);
    while closed() == 0 {
        assert!(Instant::now() < until, "all are kept");
    }
    assert_eq!(closed(), 1);
    drop(silent);
    let admin = api.admin();
    let again = || {
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            api.get(&admin, "status").status
        }))
    };
    let until = Instant::now() + Duration::from_secs(20);
    while again().ok() != Some(200) {
        assert!(Instant::now() < until, "they left no room");
    }
}

#[test]
fn whoever_is_disabled_or_has_another_password_is_out_at_once() {
    let api = Api::start("");
    let admin = api.admin();
    let jo = api.somebody("jo", json!([{"role": "auditor", "path": "/"}]));
    let again = Who::session(&api.log_in("jo", Value::Null));
    let id = api.get(&jo, "session").value["account"]
        .as_str()
        .unwrap()
        .to_owned();
    let key = json!({"name": "k", "scope": {"role": "auditor", "path": "/"}});
    let key = api.call(&jo, "POST", "api-tokens", Some(&key));
    let key = Who::token(key.value["token"].as_str().unwrap());
    assert_eq!(api.get(&key, "status").status, 200);

    let new = "another horse battery";
    let change = |old: &str, new: &str| {
        let body = json!({"old": old, "new": new});
        api.call(&jo, "PUT", "session/password", Some(&body)).status
    };
    assert_eq!(change("wrong", new), 401);
    assert_eq!(change(PASSWORD, "short"), 422);
    assert_eq!(change(PASSWORD, new), 204);
    assert_eq!(
        api.get(&jo, "status").status,
        200,
        "the one that changed it"
    );
    assert_eq!(api.get(&again, "status").status, 401);
    assert_eq!(api.log_in("jo", Value::Null).status, 401);

    let path = format!("accounts/{id}");
    let disabled = api.call(&admin, "PATCH", &path, Some(&json!({"disabled": true})));
    assert_eq!(disabled.value["state"], "disabled");
    for who in [&jo, &key] {
        assert_eq!(api.get(who, "status").status, 401);
    }
    assert_eq!(
        api.call(&admin, "PATCH", &path, Some(&json!({"disabled": false})))
            .status,
        200
    );
    for who in [&jo, &key] {
        assert_eq!(api.get(who, "status").status, 401, "what ended stays ended");
    }
}

#[test]
fn an_api_token_has_its_scope_of_its_account_and_ends() {
    let api = Api::start("");
    let jo = api.somebody("jo", json!([{"role": "operator", "path": "/"}]));
    let make = |role: &str, path: &str, expires: &str| {
        let new =
            json!({"name": "k", "scope": {"role": role, "path": path}, "expires_in": expires});
        api.call(&jo, "POST", "api-tokens", Some(&new))
    };
    let made = make("auditor", "/", "1h");
    assert_eq!(made.status, 201);
    let id = made.value["id"].as_str().unwrap().to_owned();
    let key = Who::token(made.value["token"].as_str().unwrap());
    assert_eq!(api.get(&key, "status").status, 200);
    assert_eq!(
        api.get(&key, "audit").status,
        403,
        "an auditor may, an operator may not"
    );
    assert_eq!(
        api.call(&key, "POST", "tokens", Some(&json!({}))).status,
        403
    );
    // It does not make itself at home.
    for (method, path, body) in [
        (
            "POST",
            "api-tokens",
            json!({"name": "k", "scope": {"role": "auditor", "path": "/"}}),
        ),
        (
            "PUT",
            "session/password",
            json!({"old": PASSWORD, "new": PASSWORD}),
        ),
        ("POST", "session/totp", Value::Null),
        ("DELETE", "session", Value::Null),
    ] {
        assert_eq!(
            api.call(&key, method, path, Some(&body)).status,
            403,
            "{method} {path}"
        );
    }
    let listed = api.get(&jo, "api-tokens").value;
    assert!(listed["items"][0]["last_used"].is_string(), "{listed}");
    assert!(!listed.to_string().contains("pa1."));

    let narrow = make("operator", "/tenants/acme", "1h");
    let narrow = Who::token(narrow.value["token"].as_str().unwrap());
    assert_eq!(api.get(&narrow, "status").status, 403);
    assert_eq!(api.get(&narrow, "agents").status, 200);
    let join = |tenant: &str| {
        api.call(&narrow, "POST", "tokens", Some(&json!({"tenant": tenant})))
            .status
    };
    assert_eq!((join("acme"), join("other")), (201, 403));

    for (role, path, expires) in [
        ("tenant_admin", "/", "1h"),
        ("operator", "/", "367d"),
        ("operator", "/", "soon"),
        ("operator", "nowhere", "1h"),
    ] {
        assert_eq!(
            make(role, path, expires).status,
            422,
            "{role} {path} {expires}"
        );
    }
    let short = make("operator", "/", "1s");
    let short = Who::token(short.value["token"].as_str().unwrap());
    assert_eq!(api.get(&short, "status").status, 200);
    std::thread::sleep(Duration::from_millis(1100));
    assert_eq!(api.get(&short, "status").status, 401);

    let other = api.somebody("ann", json!([{"role": "auditor", "path": "/"}]));
    let path = format!("api-tokens/{id}");
    assert_eq!(
        api.call(&other, "DELETE", &path, None).status,
        404,
        "seen, and not hers"
    );
    assert_eq!(api.call(&jo, "DELETE", &path, None).status, 204);
    assert_eq!(api.get(&key, "status").status, 401);
}

#[test]
fn nobody_gives_or_takes_what_he_does_not_have() {
    let api = Api::start("");
    let boss = api.account("boss", admin_at_site());
    let tenant =
        |role: &str, name: &str| json!([{"role": role, "path": format!("/tenants/{name}")}]);
    let other = api.account("other", tenant("tenant_admin", "other"));
    let nobody = api.account("nobody", json!([]));
    let own = api.account("own", tenant("operator", "acme"));
    let jo = api.somebody("jo", tenant("tenant_admin", "acme"));
    let create = |grants: &Value| {
        let name = format!("a{}", uuid::Uuid::new_v4().simple());
        let new = json!({"name": name, "password": PASSWORD, "grants": grants});
        api.call(&jo, "POST", "accounts", Some(&new)).status
    };
    for (grants, status) in [
        (tenant("tenant_admin", "acme"), 201),
        (tenant("operator", "acme"), 201),
        (tenant("auditor", "acme"), 201),
        (tenant("tenant_admin", "other"), 403),
        (admin_at_site(), 403),
        (json!([]), 403),
        (json!([{"role": "tenant_admin", "path": "/"}]), 422),
    ] {
        assert_eq!(create(&grants), status, "{grants}");
    }
    for (id, status) in [(&boss, 404), (&other, 404), (&nobody, 404)] {
        let path = format!("accounts/{id}");
        for (method, path, body) in [
            ("PATCH", path.clone(), json!({"disabled": true})),
            (
                "PATCH",
                path.clone(),
                json!({"grants": tenant("tenant_admin", "acme")}),
            ),
            (
                "PUT",
                format!("{path}/password"),
                json!({"password": PASSWORD}),
            ),
            ("DELETE", format!("{path}/totp"), Value::Null),
        ] {
            let answer = api.call(&jo, method, &path, Some(&body));
            assert_eq!(answer.status, status, "{method} {path} {answer:?}");
        }
    }
    let path = format!("accounts/{own}");
    let more = json!({"grants": admin_at_site()});
    assert_eq!(api.call(&jo, "PATCH", &path, Some(&more)).status, 403);
    let disable = json!({"disabled": true});
    assert_eq!(api.call(&jo, "PATCH", &path, Some(&disable)).status, 200);
    // Nor himself.
    let own = api.get(&jo, "session").value["account"]
        .as_str()
        .unwrap()
        .to_owned();
    let path = format!("accounts/{own}");
    let more = api.call(&jo, "PATCH", &path, Some(&json!({"grants": []})));
    assert_eq!(more.status, 409);
    let log = api.get(&api.admin(), "audit?limit=500").value;
    let changes = log["items"].as_array().unwrap().iter();
    let of_jo = changes.filter(|entry| entry["by"] == "jo" && entry["action"] != "session.create");
    let of_jo: Vec<&str> = of_jo
        .map(|entry| entry["action"].as_str().unwrap())
        .collect();
    let create = "account.create";
    assert_eq!(of_jo, ["account.disable", create, create, create]);
}

#[test]
fn the_machines_own_token_is_on_record() {
    let api = Api::start("");
    let admin = api.admin();
    for _ in 0..3 {
        assert_eq!(api.get(&admin, "status").status, 200);
    }
    assert_eq!(
        api.call(&admin, "POST", "tokens", Some(&json!({}))).status,
        201
    );
    let log = api.get(&admin, "audit").value;
    let by_token: Vec<(&str, &str)> = log["items"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|entry| entry["via"] == "admin_token")
        .map(|entry| {
            (
                entry["action"].as_str().unwrap(),
                entry["from"].as_str().unwrap(),
            )
        })
        .collect();
    assert_eq!(
        by_token,
        [
            ("join_token.create", "127.0.0.1"),
            ("admin_token.use", "127.0.0.1")
        ]
    );
    assert_eq!(api.get(&admin, "session").value["via"], "admin_token");
}

/// Two server processes on one PostgreSQL: what one began, the other one knows.
#[test]
fn a_session_holds_at_every_server_of_one_database() {
    let Some(postgres) = Postgres::start("a_session_holds_at_every_server_of_one_database") else {
        return;
    };
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let name = runtime.block_on(postgres.new_database());
    let key = tempfile::tempdir().unwrap();
    let key = key.path().join("master-key");
    let settings = format!(
        "database = '{}'\nmaster_key_file = '{}'",
        postgres.url("palisade", &name),
        key.display()
    );
    let (one, other) = (Api::start(&settings), Api::start(&settings));
    let file = one.running.dir.path().join("var/server/setup.token");
    assert!(file.exists(), "the one that was first has it");
    let token = std::fs::read_to_string(&file).unwrap();
    let new = json!({"token": token.trim(), "name": "ann", "password": PASSWORD});
    assert_eq!(
        other
            .call(&Who::default(), "POST", "setup", Some(&new))
            .status,
        204
    );
    let ann = Who::session(&one.log_in("ann", Value::Null));
    assert_eq!(other.get(&ann, "session").value["name"], "ann");
    // Failures count at both together.
    for n in 0..5 {
        let server = if n % 2 == 0 { &one } else { &other };
        let proof = json!({"name": "ann", "password": "wrong"});
        let wrong = server.call(&Who::default(), "POST", "session", Some(&proof));
        assert_eq!(wrong.kind(), "login-refused");
    }
    assert_eq!(other.log_in("ann", Value::Null).kind(), "too-early");
    let jo = json!({"name": "jo", "password": PASSWORD});
    let jo = one.call(&ann, "POST", "accounts", Some(&jo));
    assert_eq!(jo.status, 201);
    let session = Who::session(&other.log_in("jo", Value::Null));
    assert_eq!(one.get(&session, "session").status, 200);
    let path = format!("accounts/{}", jo.value["id"].as_str().unwrap());
    let disable = json!({"disabled": true});
    assert_eq!(other.call(&ann, "PATCH", &path, Some(&disable)).status, 200);
    assert_eq!(
        one.get(&session, "session").status,
        401,
        "at once, and everywhere"
    );
    let verified = one.get(&ann, "audit/verification").value;
    assert_eq!(verified["intact"], true, "{verified}");
    assert_eq!(one.call(&ann, "DELETE", "session", None).status, 204);
    assert_eq!(other.get(&ann, "session").status, 401);
}
