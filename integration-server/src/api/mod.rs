//! The REST API under `/api/v1`: what the console, the command line and other
//! programs see. One file per resource; a handler parses, calls, and maps errors.
//!
//! ```text
//!   TLS 1.3 ─► headers ─► time limit ─► token ─► handler ─► store, fleet, inventory
//!                                         │         │
//!                                         └─────────┴──► problem (one place)
//! ```
//!
//! | module | owns |
//! | --- | --- |
//! | [`status`], [`svms`], [`definitions`], [`agents`], [`maintenance`], [`selection`], [`alerts`], [`exposures`], [`inventory`], [`detections`], [`tokens`] | a resource each: its JSON and its routes |
//! | [`page`] | lists with a cursor |
//! | [`problem`] | errors as RFC 9457 `application/problem+json` |
//! | [`auth`] | bearer tokens |
//! | [`guard`] | headers and time limits around every answer |
//! | [`listener`] | HTTPS |
//!
//! `openapi.json` beside `Cargo.toml` is the specification, made from this code
//! and compared with it by a test; `palisade-server openapi` prints a new one.

pub mod agents;
pub mod alerts;
pub mod auth;
pub mod definitions;
pub mod detections;
pub mod exposures;
pub mod guard;
pub mod inventory;
pub mod listener;
pub mod maintenance;
pub mod page;
pub mod problem;
pub mod selection;
pub mod status;
pub mod svms;
pub mod tokens;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::extract::DefaultBodyLimit;
use axum::routing::get;
use axum::{Router, middleware};
use utoipa::OpenApi;
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityScheme};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

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
    security(("token" = [])),
)]
struct Document;

fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::with_openapi(Document::openapi())
        .routes(routes!(status::get))
        .routes(routes!(svms::list))
        .routes(routes!(svms::revoke))
        .routes(routes!(definitions::get, definitions::order))
        .routes(routes!(agents::list))
        .routes(routes!(agents::revoke))
        .routes(routes!(maintenance::create))
        .routes(routes!(selection::get))
        .routes(routes!(alerts::list))
        .routes(routes!(exposures::list))
        .routes(routes!(inventory::list))
        .routes(routes!(detections::list))
        .routes(routes!(tokens::list, tokens::create))
        .routes(routes!(tokens::revoke))
}

/// The specification.
pub fn document() -> utoipa::openapi::OpenApi {
    let (_, mut document) = routes().split_for_parts();
    let scheme = HttpBuilder::new()
        .scheme(HttpAuthScheme::Bearer)
        .description(Some(
            "An API token, like the one in the state folder's `admin.token`.",
        ))
        .build();
    document
        .components
        .get_or_insert_with(Default::default)
        .add_security_scheme("token", SecurityScheme::Http(scheme));
    document
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
            get(|| async { axum::Json(document()) }),
        )
        .fallback(problem::no_such_resource)
        .method_not_allowed_fallback(problem::no_such_method)
        .layer(DefaultBodyLimit::max(MAX_BODY_BYTES))
        .layer(middleware::from_fn(guard::around))
        .with_state(api)
}
