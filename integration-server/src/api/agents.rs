//! `/api/v1/agents`: Light Agents.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::Path;
use axum::extract::rejection::PathRejection;
use axum::http::StatusCode;
use palisade_protocol::control::Protection;
use palisade_protocol::ids::{AgentId, SvmId};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::State;
use super::auth::Caller;
use super::maintenance::Maintenance;
use super::page::Page;
use super::problem::{ApiError, Problem, revoked};
use crate::access::{Permission, Scope};
use crate::fleet::Fleet;
use crate::store::AgentRecord;
use crate::time::{now_ms, rfc3339};

/// A Light Agent.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Agent {
    /// Its id.
    pub id: Uuid,
    /// A name for people.
    pub name: String,
    /// Its tenant.
    pub tenant: String,
    /// `connected`, `lost`, or `maintenance`: not connected, and it may be stopped now.
    pub state: String,
    /// What is allowed of it now.
    pub maintenance: Option<Maintenance>,
    /// The Protection Server that it uses.
    pub svm: Option<Uuid>,
    /// That Protection Server's name.
    pub svm_name: Option<String>,
    /// The libvirt domain that it says it runs in: a claim.
    pub domain: Option<Uuid>,
    /// That domain's name, when the inventory has it.
    pub domain_name: Option<String>,
    /// `blocking`, `monitoring`, `off` or `unknown`.
    pub protection: String,
    /// Why it is off, and what helps.
    pub protection_reason: Option<String>,
    /// Its program's version.
    pub version: String,
    /// When it was last heard (RFC 3339, UTC).
    pub last_seen: Option<String>,
}

/// Light Agents, by name
#[utoipa::path(
    get,
    path = "/api/v1/agents",
    operation_id = "listAgents",
    tag = "agents",
    responses(
        (status = 200, body = Page<Agent>),
        (status = 401, body = Problem, content_type = "application/problem+json"),
        (status = 503, body = Problem, content_type = "application/problem+json"),
    ),
)]
pub async fn list(state: State, caller: Caller) -> Result<Json<Page<Agent>>, ApiError> {
    let fleet = &state.fleet;
    let svms: BTreeMap<SvmId, String> = fleet
        .store
        .svms()
        .await?
        .into_iter()
        .map(|svm| (svm.id, svm.name))
        .collect();
    let agents = fleet.store.agents().await?;
    let now_ms = now_ms();
    Ok(Json(Page::whole(
        agents
            .into_iter()
            .filter(|agent| caller.may(Permission::SeeGuests, &place(agent)))
            .map(|agent| {
                let mut shown = of(agent, fleet, &svms, now_ms);
                if !caller.may(Permission::SeeSite, &Scope::site()) {
                    // Which domain it is in is what the agent says: it must not tell a
                    // tenant another one's name.
                    shown.domain_name = None;
                }
                shown
            })
            .collect(),
    )))
}

/// Where an agent is.
pub fn place(agent: &AgentRecord) -> Scope {
    Scope::vm(agent.tenant.clone(), agent.id)
}

/// An agent that the caller may do this to; one that he may not is one that does not exist.
///
/// # Errors
/// [`ApiError::NotFound`].
pub async fn reached(
    fleet: &Fleet,
    caller: &Caller,
    permission: Permission,
    id: Uuid,
) -> Result<AgentRecord, ApiError> {
    let found = fleet.store.agent(AgentId(id)).await?;
    found
        .filter(|agent| caller.may(permission, &place(agent)))
        .ok_or_else(|| ApiError::NotFound {
            kind: "agent",
            id: id.to_string(),
        })
}

/// Revoke a Light Agent
///
/// Its session is cut; it can join again only with a new token and a new key.
#[utoipa::path(
    delete,
    path = "/api/v1/agents/{id}",
    operation_id = "revokeAgent",
    tag = "agents",
    params(("id" = Uuid, Path, description = "The agent's id")),
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
    let agent = reached(&state.fleet, &caller, Permission::ManageGuests, id).await?;
    let entry = caller
        .entry("agent.revoke", id, now_ms)
        .at(place(&agent))
        .before(&agent.name);
    let done = state.fleet.revoke_agent(agent.id, &entry, now_ms).await?;
    revoked(done, "agent", id)
}

fn of(agent: AgentRecord, fleet: &Fleet, svms: &BTreeMap<SvmId, String>, now_ms: u64) -> Agent {
    let connected = fleet.sessions.is_connected(agent.id.0);
    let maintenance = fleet.alarms.granted(agent.id, now_ms);
    let state = match (connected, &maintenance) {
        (true, _) => "connected",
        (false, Some(_)) => "maintenance",
        (false, None) => "lost",
    };
    // What a lost agent used is history.
    let svm = agent
        .report
        .as_ref()
        .filter(|_| connected)
        .and_then(|report| report.svm);
    let domain = agent.product_uuid;
    let (protection, protection_reason) = match agent.report.map(|report| report.protection) {
        Some(Protection::Blocking) => ("blocking", None),
        Some(Protection::Monitoring) => ("monitoring", None),
        Some(Protection::Off { reason }) => ("off", Some(reason.to_string())),
        None => ("unknown", None),
    };
    Agent {
        id: agent.id.0,
        name: agent.name,
        tenant: agent.tenant.to_string(),
        state: state.to_owned(),
        maintenance: maintenance.map(Maintenance::from),
        svm: svm.map(|svm| svm.0),
        svm_name: svm.and_then(|svm| svms.get(&svm).cloned()),
        domain,
        domain_name: domain
            .and_then(|uuid| fleet.inventory.domain(uuid))
            .map(|facts| facts.name),
        protection: protection.to_owned(),
        protection_reason,
        version: agent.version,
        last_seen: agent.last_seen_ms.map(rfc3339),
    }
}
