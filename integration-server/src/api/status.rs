//! `/api/v1/status`: the site on one screen.

use axum::Json;
use palisade_protocol::control::Protection;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::State;
use super::inventory::Protected;
use super::problem::{ApiError, Problem};
use crate::access::Access;
use crate::fleet::desk::VERSION;
use crate::inventory::HostState;
use crate::time::{now_ms, rfc3339, steady_ms};

/// The site on one screen.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Status {
    /// The deployment's name.
    pub deployment: String,
    /// This server's name.
    pub server: String,
    /// This server's version.
    pub version: String,
    /// When it started (RFC 3339, UTC).
    pub started: String,
    /// Seconds since then.
    pub uptime_s: u64,
    /// Control addresses that join tokens carry.
    pub control_addresses: Vec<String>,
    /// SHA-256 of the site's root certificate, in hexadecimal.
    pub root_sha256: String,
    /// Protection Servers.
    pub svms: Connected,
    /// Agents.
    pub agents: AgentCount,
    /// Hypervisors.
    pub hosts: HostCount,
    /// Domains.
    pub domains: DomainCount,
    /// Detections in the store.
    pub detections: u64,
    /// What somebody must look at now.
    pub alerts: usize,
}

/// How many there are, and are connected.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, ToSchema)]
pub struct Connected {
    /// All.
    pub total: usize,
    /// With a session.
    pub connected: usize,
}

/// How many agents there are, are connected, and block.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, ToSchema)]
pub struct AgentCount {
    /// All.
    pub total: usize,
    /// With a session.
    pub connected: usize,
    /// Connected, and opens of malware are blocked.
    pub blocking: usize,
    /// Connected, and no host knows the domain that they say they run in: when they are
    /// lost, it cannot be told whether their guests run.
    #[serde(default)]
    pub unplaced: usize,
}

/// How many hosts there are, and can be read.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, ToSchema)]
pub struct HostCount {
    /// All.
    pub total: usize,
    /// Can be read.
    pub up: usize,
}

/// How many domains there are, and are protected.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, ToSchema)]
pub struct DomainCount {
    /// All.
    pub total: usize,
    /// Protected.
    pub protected: usize,
}

/// The site on one screen
#[utoipa::path(
    get,
    path = "/api/v1/status",
    operation_id = "getStatus",
    tag = "status",
    responses(
        (status = 200, body = Status),
        (status = 401, body = Problem, content_type = "application/problem+json"),
        (status = 503, body = Problem, content_type = "application/problem+json"),
    ),
)]
pub async fn get(state: State) -> Result<Json<Status>, ApiError> {
    let api = &state.0;
    let fleet = &api.fleet;
    let (svms, agents) = (fleet.store.svms().await?, fleet.store.agents().await?);
    let detections = fleet.store.count_detections().await?;
    let hosts = fleet.inventory.hosts();
    let protected = Protected::among(&agents, &fleet.sessions);
    let connected = |id| fleet.sessions.is_connected(id);
    let blocking = |agent: &&crate::store::AgentRecord| {
        connected(agent.id.0)
            && agent
                .report
                .as_ref()
                .is_some_and(|r| r.protection == Protection::Blocking)
    };
    let unplaced = |agent: &&crate::store::AgentRecord| {
        let domain = agent.product_uuid;
        connected(agent.id.0)
            && domain
                .and_then(|uuid| fleet.inventory.domain(uuid))
                .is_none()
    };
    let domains = || hosts.iter().flat_map(|host| host.domains.keys());
    Ok(Json(Status {
        deployment: fleet.authority.deployment().to_string(),
        server: api.server.clone(),
        version: VERSION.to_owned(),
        started: rfc3339(api.started_ms),
        uptime_s: now_ms().saturating_sub(api.started_ms) / 1000,
        control_addresses: api.advertised.iter().map(ToString::to_string).collect(),
        root_sha256: hex::encode(fleet.authority.root_sha256()),
        svms: Connected {
            total: svms.len(),
            connected: svms.iter().filter(|svm| connected(svm.id.0)).count(),
        },
        agents: AgentCount {
            total: agents.len(),
            connected: agents.iter().filter(|agent| connected(agent.id.0)).count(),
            blocking: agents.iter().filter(blocking).count(),
            unplaced: agents.iter().filter(unplaced).count(),
        },
        hosts: HostCount {
            total: hosts.len(),
            up: hosts
                .iter()
                .filter(|host| {
                    let state = fleet.inventory.state_of(host, steady_ms());
                    state == HostState::Up
                })
                .count(),
        },
        domains: DomainCount {
            total: domains().count(),
            protected: domains().filter(|uuid| protected.has(**uuid)).count(),
        },
        detections,
        alerts: super::alerts::all(fleet, &Access::everything(), now_ms())
            .await?
            .len(),
    }))
}
