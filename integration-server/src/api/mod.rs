//! The REST API under `/api/v1`: what the console, the command line and other
//! programs see. One file per resource; a handler parses, calls, and maps errors.
//!
//! ```text
//!   TLS 1.3 ─► headers ─► time limit ─► who, and may he ─► handler ─► store, fleet, inventory
//!                                              │              │
//!                                              └──────────────┴──► problem (one place)
//! ```
//!
//! | module | owns |
//! | --- | --- |
//! | [`status`], [`svms`], [`definitions`], [`repository`], [`agents`], [`maintenance`], [`selection`], [`alerts`], [`exposures`], [`inventory`], [`detections`], [`tokens`], [`accounts`], [`api_tokens`], [`audit`] | a resource each: its JSON and its routes |
//! | [`policies`], [`groups`], [`agent_policy`] | what is set for guests, for whom, and what comes of it |
//! | [`session`], [`own`] | becoming somebody and being it; an account's own secrets |
//! | [`page`] | lists with a cursor |
//! | [`precondition`] | which revision a change was made from |
//! | [`problem`] | errors as RFC 9457 `application/problem+json` |
//! | [`auth`] | who asks, and whether he may |
//! | [`guard`] | headers and time limits around every answer |
//! | [`pace`] | how many changes one account makes |
//! | [`listener`], [`connections`] | HTTPS, and how many connections |
//!
//! `openapi.json` beside `Cargo.toml` is the specification, made from this code
//! and compared with it by a test; `palisade-server openapi` prints a new one.

pub mod accounts;
pub mod agent_policy;
pub mod agents;
pub mod alerts;
pub mod api_tokens;
pub mod audit;
pub mod auth;
pub mod connections;
pub mod definitions;
pub mod detections;
pub mod exposures;
pub mod groups;
pub mod guard;
pub mod inventory;
pub mod listener;
pub mod maintenance;
pub mod own;
pub mod pace;
pub mod page;
pub mod policies;
pub mod precondition;
pub mod problem;
pub mod repository;
pub mod selection;
pub mod session;
pub mod status;
pub mod svms;
pub mod tokens;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

use axum::extract::DefaultBodyLimit;
use axum::routing::get;
use axum::{Router, middleware};
use utoipa::OpenApi;
use utoipa::openapi::path::Operation;
use utoipa::openapi::security::{
    ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme,
};
use utoipa::openapi::{Content, Ref, ResponseBuilder};
use utoipa_axum::router::{OpenApiRouter, UtoipaMethodRouter, UtoipaMethodRouterExt as _};
use utoipa_axum::routes;

use crate::access::routes::{Need, ROUTES, Route};
use crate::accounts::sessions::{COOKIE, Limits};
use crate::fleet::Fleet;

/// Largest request body, in bytes.
const MAX_BODY_BYTES: usize = 64 * 1024;

/// What handlers work with.
#[derive(Debug)]
pub struct Api {
    /// Sessions, store, authority and inventory.
    pub fleet: Arc<Fleet>,
    /// This server's name.
    pub server: String,
    /// Control addresses that join tokens carry.
    pub advertised: Vec<SocketAddr>,
    /// When the server started.
    pub started_ms: u64,
    /// The state folder.
    pub state: PathBuf,
    /// How long sessions last.
    pub sessions: Limits,
    /// When the machine's own token was last noted.
    pub admin_noted_ms: auth::Noted,
    /// How many changes each account has made of late.
    pub paces: pace::Paces,
}

/// The state as handlers take it.
pub type State = axum::extract::State<Arc<Api>>;

#[derive(OpenApi)]
#[openapi(
    info(
        title = "Palisade Integration Server",
        description = "Inventory, identity, fleet and detections of one Palisade site. \
                       Errors are RFC 9457 problem details; lists are pages of `items` with a \
                       `next` cursor, absent at the end.",
        license(name = "MIT OR Apache-2.0", identifier = "MIT OR Apache-2.0"),
    ),
    servers((url = "/", description = "This server")),
    security(("token" = []), ("session" = [])),
)]
struct Document;

fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(status::get))
        .routes(routes!(svms::list))
        .routes(routes!(svms::revoke))
        .routes(routes!(definitions::get, definitions::order))
        .routes(routes!(repository::get))
        .routes(routes!(repository::show))
        .routes(lists(routes!(repository::missing)))
        .routes(
            routes!(repository::put_file).layer(DefaultBodyLimit::max(repository::MAX_PART_BYTES)),
        )
        .routes(lists(routes!(repository::import)))
        .routes(routes!(repository::choose))
        .routes(routes!(repository::metadata))
        .routes(lists(routes!(repository::publish)))
        .routes(routes!(agents::list))
        .routes(routes!(agents::revoke))
        .routes(routes!(maintenance::create))
        .routes(routes!(agent_policy::get))
        .routes(routes!(policies::known))
        .routes(routes!(policies::list))
        .routes(routes!(policies::get, policies::put, policies::change))
        .routes(routes!(policies::revisions))
        .routes(routes!(policies::compare))
        .routes(routes!(policies::revert))
        .routes(routes!(groups::list, groups::create))
        .routes(routes!(groups::get, groups::change, groups::delete))
        .routes(routes!(groups::members))
        .routes(routes!(groups::preview))
        .routes(routes!(selection::get))
        .routes(routes!(alerts::list))
        .routes(routes!(exposures::list))
        .routes(routes!(inventory::list))
        .routes(routes!(detections::list))
        .routes(routes!(tokens::list, tokens::create))
        .routes(routes!(tokens::revoke))
        .routes(routes!(accounts::list, accounts::create))
        .routes(routes!(accounts::change, accounts::remove))
        .routes(routes!(accounts::set_password))
        .routes(routes!(accounts::remove_totp))
        .routes(routes!(api_tokens::list, api_tokens::create))
        .routes(routes!(api_tokens::revoke))
        .routes(routes!(audit::list))
        .routes(routes!(audit::verify))
        .routes(routes!(session::set_up))
        .routes(routes!(session::get, session::log_in, session::log_out))
        .routes(routes!(session::confirm))
        .routes(routes!(own::change_password))
        .routes(routes!(
            own::begin_totp,
            own::confirm_totp,
            own::remove_totp
        ))
}

/// Routes that take long lists.
fn lists(routes: UtoipaMethodRouter<Arc<Api>>) -> UtoipaMethodRouter<Arc<Api>> {
    routes.layer(DefaultBodyLimit::max(repository::MAX_LIST_BYTES))
}

/// The specification.
pub fn document() -> utoipa::openapi::OpenApi {
    let (_, mut document) = routes().split_for_parts();
    let scheme = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .description(Some(
            "An API token of an account, or the machine's own one in the state folder's \
             `admin.token`.",
        ))
        .build();
    let cookie = SecurityScheme::ApiKey(ApiKey::Cookie(ApiKeyValue::with_description(
        COOKIE,
        "A session, begun by `logIn`. Each change carries the session's `csrf` in the header \
         `x-palisade-csrf`.",
    )));
    let components = document.components.get_or_insert_with(Default::default);
    components.add_security_scheme("token", SecurityScheme::Http(scheme));
    components.add_security_scheme("session", cookie);
    for route in ROUTES {
        let path = document.paths.paths.get_mut(route.path);
        let operation = path.and_then(|path| match route.method {
            "GET" => path.get.as_mut(),
            "PUT" => path.put.as_mut(),
            "POST" => path.post.as_mut(),
            "PATCH" => path.patch.as_mut(),
            "DELETE" => path.delete.as_mut(),
            _ => None,
        });
        if let Some(operation) = operation {
            say_need(operation, route);
        }
    }
    document
}

/// What a route needs stands in one table; the specification says it from there.
fn say_need(operation: &mut Operation, route: &Route) {
    let said = operation.description.take().unwrap_or_default();
    let text = format!("{said}\n\n{}", route.explain());
    operation.description = Some(text.trim().to_owned());
    match route.need {
        Need::Nobody => operation.security = Some(vec![SecurityRequirement::default()]),
        Need::Session => {
            let session = SecurityRequirement::new("session", Vec::<String>::new());
            operation.security = Some(vec![session]);
        }
        _ => {}
    }
    if route.need == Need::Nobody {
        return;
    }
    let problem = || {
        let content = Content::new(Some(Ref::from_schema_name("Problem")));
        ResponseBuilder::new().content("application/problem+json", content)
    };
    let responses = &mut operation.responses.responses;
    responses.insert("403".to_owned(), problem().build().into());
    if route.method != "GET" {
        responses.insert("429".to_owned(), problem().build().into());
    }
}

/// The specification as the file `openapi.json` holds it.
///
/// # Errors
/// serde's; none is known.
pub fn document_text() -> Result<String, serde_json::Error> {
    Ok(document().to_pretty_json()? + "\n")
}

/// The whole API.
pub fn router(api: Arc<Api>) -> Router {
    let (resources, _) = routes().split_for_parts();
    resources
        .layer(middleware::from_fn_with_state(
            Arc::clone(&api),
            auth::require,
        ))
        .route(
            "/api/v1/openapi.json",
            get(|| async {
                static TEXT: LazyLock<serde_json::Value> =
                    LazyLock::new(|| serde_json::to_value(document()).unwrap_or_default());
                axum::Json(&*TEXT)
            }),
        )
        .fallback(problem::no_such_resource)
        .method_not_allowed_fallback(problem::no_such_method)
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .layer(middleware::from_fn(guard::around))
        .with_state(api)
}
