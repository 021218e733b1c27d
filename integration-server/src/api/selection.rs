//! `/api/v1/agents/{id}/selection`: why an agent uses the Protection Server that it uses,
//! and why none of the others. It is asked each time; nothing of it is stored.
//!
//! What the agent answers is its own account. The server adds those that it left out of
//! the agent's list, which the agent has never heard of.

use std::time::Duration;

use axum::Json;
use axum::extract::Path;
use axum::extract::rejection::PathRejection;
use palisade_protocol::choice::{Choice, Chosen};
use palisade_protocol::ids::{AgentId, SvmId};
use palisade_protocol::selection::Reach;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::State;
use super::agents::reached;
use super::auth::Caller;
use super::problem::{ApiError, Problem};
use crate::access::{Permission, Scope};
use crate::fleet::asking::{AskError, Question};
use crate::fleet::roster::Unlisted;
use crate::store::SvmRecord;

/// How long an agent may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// An agent's choice.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Selection {
    /// Which agent.
    pub agent: Uuid,
    /// Its name.
    pub agent_name: String,
    /// Its tenant.
    pub tenant: String,
    /// Where its candidates come from.
    pub source: String,
    /// How far from its guest its settings allow: `hypervisor`, `cluster`, `datacenter` or
    /// `any`.
    pub path: String,
    /// Where its guest is; empty where its candidates come from its settings.
    pub place: String,
    /// Its guest's tags.
    pub tags: Vec<String>,
    /// Protection Servers, best first; then those that it may not use, and those that are
    /// not in its list.
    pub svms: Vec<SelectionSvm>,
    /// Further ones that the agent knows, the last in its order.
    pub more: u32,
}

/// A Protection Server, as an agent sees it.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct SelectionSvm {
    /// Which, where the agent knows.
    pub id: Option<Uuid>,
    /// Its name.
    pub name: String,
    /// Where it is reached.
    pub addresses: Vec<String>,
    /// `in-use`, `spare`, `candidate`, `excluded`, or `unlisted`: the agent does not know it.
    pub role: String,
    /// Why.
    pub why: String,
    /// Its score, in thousandths of a full machine; less is better.
    pub score: Option<u32>,
    /// Seconds since the session began.
    pub connected_s: Option<u64>,
    /// Its round trip, in microseconds.
    pub round_trip_us: Option<u64>,
    /// How it failed the last time.
    pub failure: Option<String>,
    /// How many seconds ago.
    pub failed_ago_s: Option<u64>,
}

/// Why an agent uses the Protection Server that it uses
///
/// The agent is asked; with 409 it is not connected, and cannot say.
#[utoipa::path(
    get,
    path = "/api/v1/agents/{id}/selection",
    operation_id = "getAgentSelection",
    tag = "agents",
    params(("id" = Uuid, Path, description = "The agent's id")),
    responses(
        (status = 200, body = Selection),
        (status = 400, body = Problem, content_type = "application/problem+json"),
        (status = 401, body = Problem, content_type = "application/problem+json"),
        (status = 404, body = Problem, content_type = "application/problem+json"),
        (status = 409, body = Problem, content_type = "application/problem+json"),
        (status = 503, body = Problem, content_type = "application/problem+json"),
    ),
)]
pub async fn get(
    state: State,
    caller: Caller,
    id: Result<Path<Uuid>, PathRejection>,
) -> Result<Json<Selection>, ApiError> {
    let Path(id) = id?;
    let agent = AgentId(id);
    let fleet = &state.fleet;
    let record = reached(fleet, &caller, Permission::SeeGuests, id).await?;
    if record.revoked {
        return Err(ApiError::NotFound {
            kind: "agent",
            id: id.to_string(),
        });
    }
    let asked = fleet.choices.ask(agent, Question::Explain, PATIENCE).await;
    let choice = asked.map_err(|error| refused(error, &record.name))?;
    let choice = choice.ok_or(ApiError::TimedOut)?;
    let mut svms: Vec<SelectionSvm> = choice.svms.iter().map(of).collect();
    let standings = fleet.standings(&record.tenant);
    // A tenant is not told of Protection Servers that its agents may not use.
    let others = match caller.may(Permission::SeeSite, &Scope::site()) {
        true => fleet.store.svms().await?,
        false => Vec::new(),
    };
    for svm in others {
        let standing = standings.iter().find(|standing| standing.id == svm.id);
        // One that joined and was never there is on no roster.
        let why = standing.map_or(Some(Unlisted::NoReport), |standing| standing.unlisted);
        if !knows(&choice, svm.id, why) {
            svms.push(unlisted(svm, why));
        }
    }
    Ok(Json(Selection {
        agent: id,
        agent_name: record.name,
        tenant: record.tenant.to_string(),
        source: choice.source.to_string(),
        path: reach(choice.reach).to_owned(),
        place: choice.place.to_string(),
        tags: choice.tags.iter().map(ToString::to_string).collect(),
        svms,
        more: choice.more,
    }))
}

fn refused(error: AskError, name: &str) -> ApiError {
    ApiError::Conflict(match error {
        AskError::NotConnected => format!(
            "the agent {name} is not connected and cannot say how it chooses; `palisade-agent \
             explain` in its guest does, and `palisade agent list` says when it was last heard"
        ),
        AskError::TooMany => format!(
            "too many questions to the agent {name}, or to all, wait for their answers; ask again"
        ),
        AskError::Gone => format!(
            "the session with the agent {name} ended before it answered; ask again when it is back"
        ),
    })
}

fn reach(reach: Reach) -> &'static str {
    match reach {
        Reach::Hypervisor => "hypervisor",
        Reach::Cluster => "cluster",
        Reach::Datacenter => "datacenter",
        Reach::Any => "any",
    }
}

fn knows(choice: &Choice, id: SvmId, unlisted: Option<Unlisted>) -> bool {
    // One that was not named may be among those that had no room.
    let named = choice.svms.iter().any(|svm| svm.id == Some(id));
    named || (choice.more > 0 && unlisted.is_none())
}

fn of(svm: &Chosen) -> SelectionSvm {
    SelectionSvm {
        id: svm.id.map(|id| id.0),
        name: svm.name.to_string(),
        addresses: svm.addresses.iter().map(ToString::to_string).collect(),
        role: svm.role.as_str().to_owned(),
        why: svm.why.to_string(),
        score: svm.score,
        connected_s: svm.connected_s,
        round_trip_us: svm.round_trip_us,
        failure: svm.failure.as_ref().map(|(reason, _)| reason.to_string()),
        failed_ago_s: svm.failure.as_ref().map(|(_, ago_s)| *ago_s),
    }
}

fn unlisted(svm: SvmRecord, why: Option<Unlisted>) -> SelectionSvm {
    let why = match why {
        Some(Unlisted::OtherTenants) => {
            "it serves other tenants: `tenants` in its scanserver.toml names them"
        }
        Some(Unlisted::NoReport) => "it has never said where it is reached: see its log",
        None => {
            "the agent does not know of it: its settings name others, or its list is on its way"
        }
    };
    SelectionSvm {
        id: Some(svm.id.0),
        name: svm.name,
        addresses: Vec::new(),
        role: "unlisted".to_owned(),
        why: why.to_owned(),
        score: None,
        connected_s: None,
        round_trip_us: None,
        failure: None,
        failed_ago_s: None,
    }
}
