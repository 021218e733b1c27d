//! `/api/v1/agents/{id}/maintenance`: tokens by which an agent may be stopped or removed.

use axum::Json;
use axum::extract::Path;
use axum::extract::rejection::{JsonRejection, PathRejection};
use axum::http::StatusCode;
use palisade_protocol::maintenance;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::State;
use super::agents::{place, reached};
use super::auth::Caller;
use super::problem::{ApiError, Problem};
use crate::access::Permission;
use crate::fleet::maintenance::{NotGranted, Wanted};
use crate::store::MaintenanceRecord;
use crate::time::{now_ms, rfc3339};

/// For how long, when it is not said: two hours.
pub const DEFAULT_FOR_S: u64 = 2 * 3600;

/// What a maintenance token allows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Allowed {
    /// To stop the agent's service.
    Stop,
    /// To stop it and to remove its package.
    Remove,
}

impl From<maintenance::Allowed> for Allowed {
    fn from(allowed: maintenance::Allowed) -> Self {
        match allowed {
            maintenance::Allowed::Stop => Self::Stop,
            maintenance::Allowed::Remove => Self::Remove,
        }
    }
}

impl From<Allowed> for maintenance::Allowed {
    fn from(allowed: Allowed) -> Self {
        match allowed {
            Allowed::Stop => Self::Stop,
            Allowed::Remove => Self::Remove,
        }
    }
}

/// A maintenance token to make.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewMaintenance {
    /// What it allows.
    pub allowed: Allowed,
    /// For how long, in seconds: two hours when it is not said, a week at most.
    #[serde(default = "two_hours")]
    #[schema(minimum = 1, maximum = 604800)]
    pub for_s: u64,
    /// Why, on one line; it is kept and logged.
    #[schema(min_length = 1, max_length = 200)]
    pub reason: String,
}

fn two_hours() -> u64 {
    DEFAULT_FOR_S
}

/// A maintenance token that was just made: the only time that its text is shown.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct CreatedMaintenance {
    /// Names it in logs of both sides.
    pub id: Uuid,
    /// The text to hand out.
    pub token: String,
    /// What it allows.
    pub allowed: Allowed,
    /// Until when (RFC 3339, UTC).
    pub until: String,
}

/// What is allowed of an agent now, without the token.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Maintenance {
    /// Names it in logs of both sides.
    pub id: Uuid,
    /// What is allowed.
    pub allowed: Allowed,
    /// Until when (RFC 3339, UTC).
    pub until: String,
    /// Why.
    pub reason: String,
}

impl From<MaintenanceRecord> for Maintenance {
    fn from(grant: MaintenanceRecord) -> Self {
        Self {
            id: grant.id,
            allowed: grant.allowed.into(),
            until: rfc3339(grant.until_ms),
            reason: grant.reason,
        }
    }
}

/// Let a Light Agent be stopped or removed for a time
///
/// The token works in the guest without any server. While it lasts, the agent's absence
/// is no alert.
#[utoipa::path(
    post,
    path = "/api/v1/agents/{id}/maintenance",
    operation_id = "createMaintenance",
    tag = "agents",
    params(("id" = Uuid, Path, description = "The agent's id")),
    request_body = NewMaintenance,
    responses(
        (status = 201, body = CreatedMaintenance),
        (status = 400, body = Problem, content_type = "application/problem+json"),
        (status = 401, body = Problem, content_type = "application/problem+json"),
        (status = 404, body = Problem, content_type = "application/problem+json"),
        (status = 413, body = Problem, content_type = "application/problem+json"),
        (status = 415, body = Problem, content_type = "application/problem+json"),
        (status = 422, body = Problem, content_type = "application/problem+json"),
        (status = 503, body = Problem, content_type = "application/problem+json"),
    ),
)]
pub async fn create(
    state: State,
    caller: Caller,
    id: Result<Path<Uuid>, PathRejection>,
    new: Result<Json<NewMaintenance>, JsonRejection>,
) -> Result<(StatusCode, Json<CreatedMaintenance>), ApiError> {
    let Path(id) = id?;
    let Json(new) = new?;
    let wanted = Wanted {
        allowed: new.allowed.into(),
        for_s: new.for_s,
        reason: new.reason,
    };
    let fleet = &state.fleet;
    let now_ms = now_ms();
    let agent = reached(fleet, &caller, Permission::ManageGuests, id).await?;
    let entry = caller
        .entry("agent.maintenance", id, now_ms)
        .at(place(&agent));
    let (grant, token) = fleet.allow(agent.id, &wanted, entry, now_ms).await?;
    let created = CreatedMaintenance {
        id: grant.id,
        token,
        allowed: grant.allowed.into(),
        until: rfc3339(grant.until_ms),
    };
    Ok((StatusCode::CREATED, Json(created)))
}

impl From<NotGranted> for ApiError {
    fn from(why: NotGranted) -> Self {
        match why {
            NotGranted::Bounds(why) => Self::BadRequest(why),
            NotGranted::NoAgent(id) => Self::NotFound {
                kind: "agent",
                id: id.to_string(),
            },
            NotGranted::Store(error) => Self::Store(error),
            NotGranted::Sign(error) => Self::Internal(error.into()),
        }
    }
}
