//! `/api/v1/detections`: what agents found.

use axum::Json;
use axum::extract::Query;
use axum::extract::rejection::QueryRejection;
use palisade_protocol::bounded::PathBytes;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::State;
use super::auth::Caller;
use super::page::Page;
use super::problem::{ApiError, Problem};
use crate::access::{Permission, Scope};
use crate::store::DetectionRecord;
use crate::time::rfc3339;

/// Items of a page, unless asked otherwise.
const DEFAULT_LIMIT: u32 = 100;
/// Most items of a page.
pub const MAX_LIMIT: u32 = 500;

/// Something that is not clean.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Detection {
    /// The id that the agent gave it.
    pub id: Uuid,
    /// When, by the agent's clock (RFC 3339, UTC).
    pub time: String,
    /// Who found it.
    pub agent: Uuid,
    /// The agent's name.
    pub agent_name: String,
    /// The agent's tenant.
    pub tenant: String,
    /// Which file. Bytes that are not printable are written as `\xNN`.
    pub path: String,
    /// `malware` or `suspicious`.
    pub verdict: String,
    /// The engine's signature name, unchanged.
    pub name: String,
    /// Which engine.
    pub engine: String,
    /// The part of the file that it was found in; absent for the file itself. Bytes that
    /// are not printable are written as `\xNN`.
    pub member: Option<String>,
    /// `blocked`, `reported`, `late`, `quarantined` or `deleted`.
    pub action: String,
    /// `on_access` or `on_demand`.
    pub class: String,
    /// SHA-256 of the content, in hexadecimal.
    pub sha256: Option<String>,
    /// BLAKE3 of the content, in hexadecimal.
    pub blake3: String,
    /// Bytes of the content.
    pub size: u64,
    /// The process that opened it; absent when there was none.
    pub pid: Option<u32>,
    /// The container that this process ran in (`docker:…`, `lxc:…`), as the guest says;
    /// absent where it ran in none, or was gone. Bytes that are not printable are written
    /// as `\xNN`.
    pub container: Option<String>,
    /// When it arrived (RFC 3339, UTC).
    pub received: String,
}

/// Which page.
#[derive(Debug, Clone, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Asked {
    /// `next` of the page before.
    cursor: Option<String>,
    /// Items at the most.
    #[param(minimum = 1, maximum = 500, default = 100)]
    limit: Option<u32>,
}

/// Detections in the order of their arrival, newest first
#[utoipa::path(
    get,
    path = "/api/v1/detections",
    operation_id = "listDetections",
    tag = "detections",
    params(Asked),
    responses(
        (status = 200, body = Page<Detection>),
        (status = 400, body = Problem, content_type = "application/problem+json"),
        (status = 401, body = Problem, content_type = "application/problem+json"),
        (status = 503, body = Problem, content_type = "application/problem+json"),
    ),
)]
pub async fn list(
    state: State,
    caller: Caller,
    asked: Result<Query<Asked>, QueryRejection>,
) -> Result<Json<Page<Detection>>, ApiError> {
    let Query(asked) = asked?;
    let limit = asked.limit.unwrap_or(DEFAULT_LIMIT);
    if !(1..=MAX_LIMIT).contains(&limit) {
        return Err(ApiError::BadRequest(format!(
            "limit must be 1 to {MAX_LIMIT}"
        )));
    }
    let before = asked.cursor.as_deref().map(cursor).transpose()?;
    let store = &state.fleet.store;
    let page = match caller.access.tenants(Permission::SeeGuests) {
        None => store.detections(before, limit).await?,
        Some(tenants) => store.detections_of(&tenants, before, limit).await?,
    };
    let seen = |found: &DetectionRecord| {
        let place = Scope::vm(found.tenant.clone(), found.agent);
        caller.may(Permission::SeeGuests, &place)
    };
    Ok(Json(Page {
        items: page.items.into_iter().filter(seen).map(of).collect(),
        next: page.next.map(|seq| format!("s{seq}")),
    }))
}

fn cursor(text: &str) -> Result<u64, ApiError> {
    text.strip_prefix('s')
        .and_then(|digits| digits.parse().ok())
        .ok_or_else(|| ApiError::BadRequest("cursor must be the next of a page before".to_owned()))
}

/// As an agent writes it, or with what no agent writes escaped.
fn printable(text: String) -> String {
    if text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return text;
    }
    PathBytes::from_path(text.as_ref()).to_string()
}

fn of(record: DetectionRecord) -> Detection {
    Detection {
        id: record.id,
        time: rfc3339(record.time_ms),
        agent: record.agent.0,
        agent_name: record.agent_name,
        tenant: record.tenant.to_string(),
        path: record.path.to_string(),
        verdict: record.verdict,
        name: record.name,
        engine: record.engine,
        member: record
            .member
            .map(|member| PathBytes::from_path(member.as_ref()).to_string()),
        action: record.action,
        class: record.class,
        sha256: record.sha256.map(hex::encode),
        blake3: hex::encode(record.blake3),
        size: record.size,
        pid: (record.pid != 0).then_some(record.pid),
        container: record.container.map(printable),
        received: rfc3339(record.received_ms),
    }
}
