//! `/api/v1/svms`: Protection Servers.

use axum::Json;
use axum::extract::Path;
use axum::extract::rejection::PathRejection;
use axum::http::StatusCode;
use palisade_protocol::control::{InfrastructurePath, LicenceState, SvmReport};
use palisade_protocol::ids::SvmId;
use palisade_protocol::verdict::{EngineGeneration, Generations};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::State;
use super::auth::Caller;
use super::page::Page;
use super::problem::{ApiError, Problem, revoked};
use crate::fleet::Fleet;
use crate::store::SvmRecord;
use crate::time::{now_ms, rfc3339};

/// A Protection Server.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Svm {
    /// Its id.
    pub id: Uuid,
    /// A name for people.
    pub name: String,
    /// Where agents reach it: `address:port`.
    pub addresses: Vec<String>,
    /// `connected` or `lost`.
    pub state: String,
    /// Busy workers and queue, as a share of capacity; above 1 work queues up.
    pub load: f64,
    /// Connected agents.
    pub agents: u32,
    /// Data centre, cluster and hypervisor, as far as they are known, with `/`.
    pub path: String,
    /// The definitions in force; empty when it cannot serve.
    pub definitions: Vec<Definitions>,
    /// `valid` or `exceeded`.
    pub licence: String,
    /// It takes no new agents.
    pub draining: bool,
    /// Its program's version.
    pub version: String,
    /// When it was last heard (RFC 3339, UTC).
    pub last_seen: Option<String>,
}

/// The definitions of one engine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct Definitions {
    /// The engine.
    pub engine: String,
    /// Grows with each set that the engine activates.
    pub generation: u64,
    /// Hash of the definitions, in hexadecimal: equal sets have equal ones.
    pub fingerprint: String,
}

/// Protection Servers, by name
#[utoipa::path(
    get,
    path = "/api/v1/svms",
    operation_id = "listSvms",
    tag = "svms",
    responses(
        (status = 200, body = Page<Svm>),
        (status = 401, body = Problem, content_type = "application/problem+json"),
        (status = 503, body = Problem, content_type = "application/problem+json"),
    ),
)]
pub async fn list(state: State) -> Result<Json<Page<Svm>>, ApiError> {
    let fleet = &state.fleet;
    let svms = fleet.store.svms().await?;
    Ok(Json(Page::whole(
        svms.into_iter().map(|svm| of(svm, fleet)).collect(),
    )))
}

/// Revoke a Protection Server
///
/// Its session is cut, and agents are told a list without it.
#[utoipa::path(
    delete,
    path = "/api/v1/svms/{id}",
    operation_id = "revokeSvm",
    tag = "svms",
    params(("id" = Uuid, Path, description = "The Protection Server's id")),
    responses(
        (status = 204, description = "Revoked"),
        (status = 400, body = Problem, content_type = "application/problem+json"),
        (status = 401, body = Problem, content_type = "application/problem+json"),
        (status = 404, body = Problem, content_type = "application/problem+json"),
        (status = 503, body = Problem, content_type = "application/problem+json"),
    ),
)]
pub async fn revoke(
    state: State,
    caller: Caller,
    id: Result<Path<Uuid>, PathRejection>,
) -> Result<StatusCode, ApiError> {
    let Path(id) = id?;
    let now_ms = now_ms();
    let entry = caller.entry("svm.revoke", id, now_ms);
    let done = state.fleet.revoke_svm(SvmId(id), &entry, now_ms).await?;
    revoked(done, "Protection Server", id)
}

fn of(svm: SvmRecord, fleet: &Fleet) -> Svm {
    let connected = fleet.sessions.is_connected(svm.id.0);
    let report = svm.report.as_ref();
    Svm {
        id: svm.id.0,
        addresses: report.map(addresses).unwrap_or_default(),
        state: if connected { "connected" } else { "lost" }.to_owned(),
        load: report.map_or(0.0, |report| {
            f64::from(report.average_load.load_permille) / 1000.0
        }),
        agents: report.map_or(0, |report| report.agents),
        path: path(&svm, fleet),
        definitions: report
            .map(|report| engines(&report.generations))
            .unwrap_or_default(),
        licence: match report.map(|report| report.licence).unwrap_or_default() {
            LicenceState::Valid => "valid",
            LicenceState::Exceeded => "exceeded",
        }
        .to_owned(),
        draining: report.is_some_and(|report| report.draining),
        version: svm.version,
        last_seen: svm.last_seen_ms.map(rfc3339),
        name: svm.name,
    }
}

fn addresses(report: &SvmReport) -> Vec<String> {
    report
        .addresses
        .iter()
        .map(|address| address.address.to_string())
        .collect()
}

/// What each engine uses.
pub fn engines(used: &Generations) -> Vec<Definitions> {
    let of = |used: &EngineGeneration| Definitions {
        engine: used.engine.to_string(),
        generation: used.generation.0,
        fingerprint: hex::encode(used.fingerprint),
    };
    used.iter().map(of).collect()
}

fn path(svm: &SvmRecord, fleet: &Fleet) -> String {
    let own = svm
        .report
        .as_ref()
        .map(|report| report.path.clone())
        .unwrap_or_default();
    let known = if own == InfrastructurePath::default() {
        svm.product_uuid
            .and_then(|uuid| fleet.inventory.place_of(uuid))
            .unwrap_or_default()
    } else {
        own
    };
    if known == InfrastructurePath::default() {
        String::new()
    } else {
        known.to_string()
    }
}
