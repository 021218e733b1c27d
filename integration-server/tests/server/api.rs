//! The API over real HTTPS: tokens, problems, headers, limits, specification.

use std::sync::Arc;

use palisade_protocol::tls;
use serde_json::{Value, json};
use ureq::http::{Request, Response};
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::{Agent, Body};

use crate::site::Site;

fn agent(site: &Site) -> Agent {
    let root = Certificate::from_der(&site.target().root).to_owned();
    let tls = TlsConfig::builder()
        .unversioned_rustls_crypto_provider(tls::provider())
        .root_certs(RootCerts::Specific(Arc::new(vec![root])))
        .build();
    Agent::config_builder()
        .tls_config(tls)
        .http_status_as_error(false)
        .build()
        .new_agent()
}

/// Sends a request as it is, with a token unless told otherwise.
pub async fn send(
    site: &Site,
    method: &str,
    path: &str,
    token: Option<&str>,
    body: Option<(&str, Vec<u8>)>,
) -> Response<Body> {
    let mut request = Request::builder()
        .method(method)
        .uri(format!("{}{path}", site.target().url));
    if let Some(token) = token {
        request = request.header("authorization", token);
    }
    let agent = agent(site);
    let (kind, bytes) = body.map_or((None, Vec::new()), |(kind, bytes)| (Some(kind), bytes));
    if let Some(kind) = kind {
        request = request.header("content-type", kind);
    }
    let request = request.body(bytes).unwrap();
    tokio::task::spawn_blocking(move || agent.run(request).unwrap())
        .await
        .unwrap()
}

pub async fn problem(mut response: Response<Body>) -> (u16, String, Value) {
    let kind = response.headers()["content-type"]
        .to_str()
        .unwrap()
        .to_owned();
    assert_eq!(kind, "application/problem+json");
    let value: Value =
        tokio::task::spawn_blocking(move || response.body_mut().read_json().unwrap())
            .await
            .unwrap();
    assert!(!value["detail"].as_str().unwrap().is_empty() && !value["title"].is_null());
    let status = value["status"].as_u64().unwrap() as u16;
    (status, value["type"].as_str().unwrap().to_owned(), value)
}

pub fn bearer(site: &Site) -> String {
    format!("Bearer {}", site.admin_token())
}

#[tokio::test]
async fn without_a_valid_token_nothing_is_told() {
    let site = Site::start("").await;
    let good = site.admin_token();
    for path in [
        "status",
        "svms",
        "agents",
        "inventory",
        "detections",
        "alerts",
        "tokens",
    ] {
        for token in [
            None,
            Some("Bearer ".to_owned()),
            Some(format!("Basic {good}")),
            Some(format!("Bearer {good}x")),
            Some(format!("Bearer {}", "x".repeat(4000))),
        ] {
            let path = format!("/api/v1/{path}");
            let refused = send(&site, "GET", &path, token.as_deref(), None).await;
            assert_eq!(refused.headers()["www-authenticate"], "Bearer");
            let (status, kind, _) = problem(refused).await;
            assert_eq!(
                (status, kind.as_str()),
                (401, "urn:palisade:problem:unauthorized")
            );
        }
    }
    let made = send(
        &site,
        "POST",
        "/api/v1/tokens",
        None,
        Some(("application/json", b"{}".to_vec())),
    )
    .await;
    assert_eq!(problem(made).await.0, 401);
    assert!(
        site.server
            .fleet()
            .store
            .join_tokens()
            .await
            .unwrap()
            .is_empty()
    );
}

#[tokio::test]
async fn every_error_is_a_problem_with_its_status() {
    let site = Site::start("").await;
    let bearer = bearer(&site);
    let json = "application/json";
    let body = |text: &str| Some((json, text.as_bytes().to_vec()));
    for (method, path, body, want) in [
        ("GET", "/", None, 404),
        ("GET", "/api/v1/nothing", None, 404),
        ("GET", "/api/v1/../../etc/passwd", None, 404),
        ("PUT", "/api/v1/status", body("{}"), 405),
        ("GET", "/api/v1/detections?limit=0", None, 400),
        ("GET", "/api/v1/detections?limit=501", None, 400),
        ("GET", "/api/v1/detections?limit=-1", None, 400),
        ("GET", "/api/v1/detections?cursor=1", None, 400),
        (
            "GET",
            "/api/v1/detections?cursor=s99999999999999999999",
            None,
            400,
        ),
        ("GET", "/api/v1/detections?offset=1", None, 400),
        ("DELETE", "/api/v1/tokens/nonsense", None, 400),
        (
            "DELETE",
            "/api/v1/tokens/00000000-0000-4000-8000-000000000000",
            None,
            404,
        ),
        (
            "DELETE",
            "/api/v1/svms/00000000-0000-4000-8000-000000000000",
            None,
            404,
        ),
        (
            "DELETE",
            "/api/v1/agents/00000000-0000-4000-8000-000000000000",
            None,
            404,
        ),
        (
            "GET",
            "/api/v1/svms/00000000-0000-4000-8000-000000000000/definitions",
            None,
            404,
        ),
        ("GET", "/api/v1/svms/nonsense/definitions", None, 400),
        (
            "POST",
            "/api/v1/svms/00000000-0000-4000-8000-000000000000/definitions",
            body("{\"action\": \"rollback\"}"),
            404,
        ),
        (
            "POST",
            "/api/v1/svms/00000000-0000-4000-8000-000000000000/definitions",
            body("{\"action\": \"activate\"}"),
            422,
        ),
        (
            "POST",
            "/api/v1/svms/00000000-0000-4000-8000-000000000000/definitions",
            body("{\"action\": \"rollback\", \"generation\": 1}"),
            422,
        ),
        (
            "POST",
            "/api/v1/svms/00000000-0000-4000-8000-000000000000/definitions",
            body("{\"action\": \"confirm\", \"generation\": 1}"),
            422,
        ),
        (
            "POST",
            "/api/v1/svms/00000000-0000-4000-8000-000000000000/definitions",
            body("{\"action\": \"format\"}"),
            422,
        ),
        ("POST", "/api/v1/tokens", body("{"), 400),
        ("POST", "/api/v1/tokens", body("{\"uses\": \"many\"}"), 422),
        ("POST", "/api/v1/tokens", body("{\"user\": 1}"), 422),
        ("POST", "/api/v1/tokens", body("{\"uses\": 0}"), 422),
        (
            "POST",
            "/api/v1/tokens",
            body("{\"tenant\": \"../x\"}"),
            422,
        ),
        (
            "POST",
            "/api/v1/tokens",
            body("{\"expires_in\": \"soon\"}"),
            422,
        ),
        (
            "POST",
            "/api/v1/tokens",
            Some(("text/plain", b"{}".to_vec())),
            415,
        ),
        (
            "POST",
            "/api/v1/tokens",
            Some((json, vec![b' '; 70_000])),
            413,
        ),
    ] {
        let refused = send(&site, method, path, Some(&bearer), body).await;
        assert_eq!(refused.status().as_u16(), want, "{method} {path}");
        assert_eq!(problem(refused).await.0, want, "{method} {path}");
    }
    assert!(
        site.server
            .fleet()
            .store
            .join_tokens()
            .await
            .unwrap()
            .is_empty()
    );
}

#[tokio::test]
async fn answers_carry_headers_that_keep_a_browser_out() {
    let site = Site::start("").await;
    let bearer = bearer(&site);
    for path in ["/api/v1/status", "/nothing", "/api/v1/openapi.json"] {
        let response = send(&site, "GET", path, Some(&bearer), None).await;
        let headers = response.headers();
        assert_eq!(headers["x-content-type-options"], "nosniff", "{path}");
        assert_eq!(headers["cache-control"], "no-store");
        assert_eq!(headers["x-frame-options"], "DENY");
        assert!(headers.contains_key("content-security-policy"));
        assert!(headers.contains_key("strict-transport-security"));
    }
}

#[tokio::test]
async fn a_token_is_shown_once_and_listed_without_its_secret() {
    let site = Site::start("").await;
    let new = json!({"component": "svm", "uses": 3, "expires_in": "2h"});
    let made: Value = site
        .api(move |client| client.post("tokens", &new))
        .await
        .unwrap();
    let text = made["token"].as_str().unwrap();
    assert!(text.starts_with("pj1."));
    let listed = site.get("tokens").await;
    assert!(!listed.to_string().contains(text));
    let item = &listed["items"][0];
    assert_eq!(item["id"], made["id"]);
    assert_eq!(
        (&item["uses"], &item["used"], &item["state"]),
        (&3.into(), &0.into(), &"valid".into())
    );
    let defaults: Value = site
        .api(|client| client.post("tokens", &json!({})))
        .await
        .unwrap();
    assert_eq!(
        (&defaults["component"], &defaults["tenant"]),
        (&"agent".into(), &"default".into())
    );
}

#[tokio::test]
async fn a_new_admin_token_voids_the_one_before() {
    let site = Site::start("").await;
    let old = bearer(&site);
    let store = &site.server.fleet().store;
    let state = site.state();
    palisade_integration_server::api::auth::new_admin_token(store.as_ref(), &state, 1)
        .await
        .unwrap();
    assert_eq!(
        send(&site, "GET", "/api/v1/status", Some(&old), None)
            .await
            .status(),
        401
    );
    let new = bearer(&site);
    assert_eq!(
        send(&site, "GET", "/api/v1/status", Some(&new), None)
            .await
            .status(),
        200
    );
}

/// `palisade-server openapi > integration-server/openapi.json` makes it anew.
#[test]
fn the_committed_specification_is_the_one_in_force() {
    let committed = include_str!("../../openapi.json");
    let now = palisade_integration_server::api::document_text().unwrap();
    assert!(
        committed == now,
        "the API changed: review it, then run `palisade-server openapi > integration-server/openapi.json`"
    );
    let value: Value = serde_json::from_str(committed).unwrap();
    assert!(value["openapi"].as_str().unwrap().starts_with("3.1"));
}

#[tokio::test]
async fn the_specification_is_served_and_names_every_resource() {
    let site = Site::start("").await;
    let mut response = send(&site, "GET", "/api/v1/openapi.json", None, None).await;
    let value: Value = response.body_mut().read_json().unwrap();
    for path in [
        "status",
        "svms",
        "agents",
        "inventory",
        "detections",
        "alerts",
        "agents/{id}/maintenance",
        "tokens",
        "tokens/{id}",
    ] {
        assert!(
            value["paths"].get(format!("/api/v1/{path}")).is_some(),
            "{path}"
        );
    }
}

/// The methods and paths of the specification.
pub fn operations() -> Vec<(String, String)> {
    let text = palisade_integration_server::api::document_text().unwrap();
    let document: Value = serde_json::from_str(&text).unwrap();
    let methods = [
        "get", "put", "post", "delete", "options", "head", "patch", "trace",
    ];
    let paths = document["paths"].as_object().unwrap();
    paths
        .iter()
        .flat_map(|(path, operations)| {
            let operations = operations.as_object().unwrap();
            operations
                .keys()
                .filter(|method| methods.contains(&method.as_str()))
                .map(|method| (method.to_uppercase(), path.clone()))
        })
        .collect()
}

#[test]
fn every_route_names_what_it_needs() {
    let operations = operations();
    assert!(operations.len() > 10, "{operations:?}");
    for (method, path) in &operations {
        let found = palisade_integration_server::access::routes::find(method, path);
        assert!(found.is_some(), "{method} {path} needs no permission");
    }
    // Nor does the table name what is not there.
    let table = palisade_integration_server::access::routes::ROUTES;
    assert_eq!(table.len(), operations.len());
}
