//! `/api/v1/alerts`: what somebody must look at now.

use axum::Json;
use palisade_protocol::trust::sha256;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::State;
use super::page::Page;
use super::problem::{ApiError, Problem};
use crate::fleet::lost::Alarm;
use crate::time::rfc3339;

/// Something that somebody must look at now. It is gone when its cause is.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Alert {
    /// The same for as long as it lasts.
    pub id: Uuid,
    /// `agent_lost`: an agent has no session although its domain runs.
    pub kind: String,
    /// `critical`.
    pub severity: String,
    /// Which agent.
    pub agent: Uuid,
    /// That agent's name.
    pub agent_name: String,
    /// The libvirt domain that the agent says it runs in.
    pub domain: Uuid,
    /// That domain's name, when the inventory has it.
    pub domain_name: Option<String>,
    /// Since when the agent is gone, as far as this server can tell (RFC 3339, UTC).
    pub since: String,
    /// When that became an alert (RFC 3339, UTC).
    pub raised: String,
    /// What happened, for people.
    pub text: String,
    /// What to do, for people.
    pub remedy: String,
}

/// What somebody must look at now, the oldest first
#[utoipa::path(
    get,
    path = "/api/v1/alerts",
    operation_id = "listAlerts",
    tag = "alerts",
    responses(
        (status = 200, body = Page<Alert>),
        (status = 401, body = Problem, content_type = "application/problem+json"),
    ),
)]
pub async fn list(state: State) -> Result<Json<Page<Alert>>, ApiError> {
    let fleet = &state.fleet;
    let shown = |alarm: Alarm| {
        let facts = fleet.inventory.domain(alarm.domain);
        of(alarm, facts.map(|facts| facts.name))
    };
    Ok(Json(Page::whole(
        fleet.alarms.all().into_iter().map(shown).collect(),
    )))
}

fn of(alarm: Alarm, domain_name: Option<String>) -> Alert {
    let name = &alarm.name;
    let since = rfc3339(alarm.since_ms);
    let domain = domain_name
        .clone()
        .unwrap_or_else(|| alarm.domain.to_string());
    let text = format!(
        "The agent {name} has been gone since {since}, although its domain {domain} runs and no \
         maintenance token allows it: the guest may be unprotected."
    );
    let remedy = format!(
        "First see in the guest whether the agent runs: `systemctl status palisade-agent` says \
         how it ended, and whoever stopped it may be in that guest still. If it runs, the network \
         from the guest to this server is cut: `palisade-agent doctor` says where. If the guest \
         is just starting, this ends by itself. If the agent was removed for good, `palisade \
         agent revoke {}` ends this. Planned work wants a token beforehand: `palisade agent \
         maintenance {name} --reason TEXT`.",
        alarm.agent
    );
    Alert {
        id: id_of(&alarm),
        kind: "agent_lost".to_owned(),
        severity: "critical".to_owned(),
        agent: alarm.agent.0,
        agent_name: alarm.name,
        domain: alarm.domain,
        domain_name,
        since,
        raised: rfc3339(alarm.raised_ms),
        text,
        remedy,
    }
}

/// Made of what the alarm is about: equal each time it is asked for.
fn id_of(alarm: &Alarm) -> Uuid {
    let mut about = alarm.agent.0.as_bytes().to_vec();
    about.extend(alarm.since_ms.to_be_bytes());
    about.extend(alarm.raised_ms.to_be_bytes());
    let mut first = [0; 16];
    first.copy_from_slice(&sha256(&about)[..16]);
    uuid::Builder::from_random_bytes(first).into_uuid()
}
