//! `/api/v1/exposures`: when guests ran without verdicts, as their agents report it.

use std::cmp::Reverse;

use axum::Json;
use palisade_protocol::exposure::{ExposureCause, ExposureWindow};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::State;
use super::agents::place;
use super::auth::Caller;
use super::page::Page;
use super::problem::{ApiError, Problem};
use crate::access::Permission;
use crate::store::AgentRecord;
use crate::time::rfc3339;

/// A time in which a guest ran without verdicts. The agent's last report says it: the
/// last sixteen of each agent, and the one that lasts; the times are by its clock.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Exposure {
    /// Whose.
    pub agent: Uuid,
    /// That agent's name.
    pub agent_name: String,
    /// The agent's own number for it.
    pub number: u64,
    /// When it began (RFC 3339, UTC).
    pub from: String,
    /// When it ended; it lasted at the last report if unset.
    pub until: Option<String>,
    /// `not_running`, `no_svm`, `fallback`, `off`, `overload`, `bypass`.
    pub causes: Vec<String>,
    /// Opens that were let through without a verdict; none are counted while no agent ran.
    pub opens: u64,
    /// Executions likewise.
    pub execs: u64,
    /// Files among them that are scanned later.
    pub files: u64,
    /// Of these, those that still wait.
    pub waiting: u64,
    /// Files that are not scanned later: a full scan finds them.
    pub not_kept: u64,
    /// Of the files scanned later: clean.
    pub clean: u64,
    /// Malware: each is a detection.
    pub malware: u64,
    /// Suspicious: each is a detection.
    pub suspicious: u64,
    /// Without a verdict for good.
    pub not_scanned: u64,
    /// Not there any more.
    pub gone: u64,
}

/// When guests ran without verdicts, the latest beginning first
#[utoipa::path(
    get,
    path = "/api/v1/exposures",
    operation_id = "listExposures",
    tag = "exposures",
    responses(
        (status = 200, body = Page<Exposure>),
        (status = 401, body = Problem, content_type = "application/problem+json"),
        (status = 503, body = Problem, content_type = "application/problem+json"),
    ),
)]
pub async fn list(state: State, caller: Caller) -> Result<Json<Page<Exposure>>, ApiError> {
    let mut agents = state.fleet.store.agents().await?;
    agents.retain(|agent| caller.may(Permission::SeeGuests, &place(agent)));
    let mut all: Vec<(u64, Exposure)> = agents.iter().flat_map(of_agent).collect();
    all.sort_by_key(|(from_ms, _)| Reverse(*from_ms));
    let shown = all.into_iter().map(|(_, exposure)| exposure);
    Ok(Json(Page::whole(shown.collect())))
}

fn of_agent(agent: &AgentRecord) -> impl Iterator<Item = (u64, Exposure)> {
    let windows = agent
        .report
        .iter()
        .flat_map(|report| report.exposure.iter());
    windows.map(|window| (window.from_ms, of(agent, window)))
}

fn of(agent: &AgentRecord, window: &ExposureWindow) -> Exposure {
    let causes = window.causes.iter().copied().map(ExposureCause::as_str);
    Exposure {
        agent: agent.id.0,
        agent_name: agent.name.clone(),
        number: window.id,
        from: rfc3339(window.from_ms),
        until: window.until_ms.map(rfc3339),
        causes: causes.map(str::to_owned).collect(),
        opens: window.opens,
        execs: window.execs,
        files: window.files,
        waiting: window.waiting(),
        not_kept: window.not_kept,
        clean: window.clean,
        malware: window.malware,
        suspicious: window.suspicious,
        not_scanned: window.not_scanned,
        gone: window.gone,
    }
}
