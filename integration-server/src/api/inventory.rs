//! `/api/v1/inventory`: hypervisors and their domains.

use std::collections::BTreeSet;

use axum::Json;
use palisade_protocol::control::Protection;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::State;
use super::page::Page;
use super::problem::{ApiError, Problem};
use crate::fleet::sessions::Sessions;
use crate::inventory::{HostRecord, HostState};
use crate::store::AgentRecord;
use crate::time::{rfc3339, steady_ms, wall_ms};

/// What is said of a host that gives no error, and no facts either.
const HANGS: &str = "libvirt has not answered there for long";

/// A hypervisor.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Host {
    /// The connection that it is read through: what identifies it.
    pub uri: String,
    /// Its name; empty until it was read once.
    pub host: String,
    /// `up`, `down` or `unknown` (not read yet).
    pub state: String,
    /// Its domains when it was last read.
    pub domains: Vec<Domain>,
    /// Its data centre; empty when unknown.
    pub datacenter: String,
    /// Its cluster; empty when unknown.
    pub cluster: String,
    /// Why it cannot be read.
    pub error: Option<String>,
    /// When it was last read whole (RFC 3339, UTC).
    pub read: Option<String>,
    /// Seconds since then.
    pub age_s: Option<u64>,
}

/// A domain.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Domain {
    /// Its UUID.
    pub uuid: Uuid,
    /// Its name.
    pub name: String,
    /// `running`, `paused`, `shutting_down`, `shutoff`, `crashed`, `suspended` or
    /// `unknown`.
    pub state: String,
    /// A connected agent claims to run in it and blocks opens of malware.
    pub protected: bool,
    /// Its tags, from Palisade's element in its metadata.
    #[serde(default)]
    pub tags: Vec<String>,
}

/// The domains that are protected.
#[derive(Debug)]
pub struct Protected(BTreeSet<Uuid>);

impl Protected {
    /// Those that some connected, blocking agent claims.
    pub fn among(agents: &[AgentRecord], sessions: &Sessions) -> Self {
        let blocking = |agent: &&AgentRecord| {
            sessions.is_connected(agent.id.0)
                && agent
                    .report
                    .as_ref()
                    .is_some_and(|report| report.protection == Protection::Blocking)
        };
        Self(
            agents
                .iter()
                .filter(blocking)
                .filter_map(|agent| agent.product_uuid)
                .collect(),
        )
    }

    /// Whether this domain is.
    pub fn has(&self, uuid: Uuid) -> bool {
        self.0.contains(&uuid)
    }
}

/// Hypervisors and their domains, by URI
#[utoipa::path(
    get,
    path = "/api/v1/inventory",
    operation_id = "listInventory",
    tag = "inventory",
    responses(
        (status = 200, body = Page<Host>),
        (status = 401, body = Problem, content_type = "application/problem+json"),
        (status = 503, body = Problem, content_type = "application/problem+json"),
    ),
)]
pub async fn list(state: State) -> Result<Json<Page<Host>>, ApiError> {
    let fleet = &state.fleet;
    let agents = fleet.store.agents().await?;
    let protected = Protected::among(&agents, &fleet.sessions);
    let now_ms = steady_ms();
    let hosts = fleet.inventory.hosts();
    let hosts = hosts
        .into_iter()
        .map(|host| {
            let state = fleet.inventory.state_of(&host, now_ms);
            of(host, state, &protected, now_ms)
        })
        .collect();
    Ok(Json(Page::whole(hosts)))
}

fn of(host: HostRecord, state: HostState, protected: &Protected, now_ms: u64) -> Host {
    Host {
        state: state.as_str().to_owned(),
        uri: host.uri,
        host: host.host,
        domains: host
            .domains
            .into_iter()
            .map(|(uuid, facts)| Domain {
                uuid,
                name: facts.name,
                state: facts.state.as_str().to_owned(),
                protected: protected.has(uuid),
                tags: facts.tags.iter().map(ToString::to_string).collect(),
            })
            .collect(),
        datacenter: host.datacenter,
        cluster: host.cluster,
        error: match state {
            HostState::Down => Some(host.error.unwrap_or_else(|| HANGS.to_owned())),
            _ => host.error,
        },
        read: host.read_ms.map(wall_ms).map(rfc3339),
        age_s: host.read_ms.map(|read| now_ms.saturating_sub(read) / 1000),
    }
}
