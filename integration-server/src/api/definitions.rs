//! `/api/v1/svms/{id}/definitions`: which definitions a Protection Server has, and
//! which are in force there. It is asked each time; nothing of it is stored.

use std::time::Duration;

use axum::Json;
use axum::extract::Path;
use axum::extract::rejection::{JsonRejection, PathRejection};
use axum::http::StatusCode;
use palisade_protocol::bounded::Text;
use palisade_protocol::definitions::{
    DefinitionsAnswer, DefinitionsOrder, DefinitionsStatus, GenerationEntry, Standing,
};
use palisade_protocol::ids::SvmId;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use uuid::Uuid;

use super::State;
use super::auth::Caller;
use super::problem::{ApiError, Problem};
use super::svms::{Definitions, engines};
use crate::fleet::asking::{AskError, Question};
use crate::store::Change;
use crate::time::{now_ms, rfc3339};

/// How long an order is waited for; what takes longer goes on.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// What a Protection Server is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Look at its source of definitions now.
    Refresh,
    /// Put a generation in force that it keeps.
    Activate,
    /// Go back to the generation before, and refuse this one until the source has
    /// another.
    Rollback,
    /// Let a new signature act that is reported only because it hit many guests.
    Confirm,
}

/// An order.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Order {
    /// What to do.
    pub action: Action,
    /// Which generation; for `activate`, and for nothing else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// Which signature, by its name; for `confirm`, and for nothing else.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signature: Option<String>,
}

/// A Protection Server's definitions.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct SvmDefinitions {
    /// The generation in force.
    pub active: Option<u64>,
    /// The directory that it looks at for new ones; empty for none.
    pub source: String,
    /// What was wrong with the source at the last look.
    pub problem: Option<String>,
    /// What it is doing now.
    pub working: Option<String>,
    /// The last order that came to its end.
    pub last: Option<LastOrder>,
    /// New signatures that hit many guests, and are reported only.
    pub braked: Vec<BrakedSignature>,
    /// The generations that it keeps, by number.
    pub generations: Vec<StoredGeneration>,
}

/// A new signature that is reported only, until somebody confirms it.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct BrakedSignature {
    /// Whose.
    pub engine: String,
    /// Its name.
    pub name: String,
    /// Since when (RFC 3339, UTC).
    pub since: String,
}

/// An order that came to its end.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct LastOrder {
    /// What was done or tried.
    pub what: String,
    /// Why it failed.
    pub failure: Option<String>,
}

/// A generation of definitions.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct StoredGeneration {
    /// Its number, which is this Protection Server's own.
    pub generation: u64,
    /// `active`, `previous` (a rollback goes there), `refused` or `kept`.
    pub state: String,
    /// What each engine has in it.
    pub engines: Vec<Definitions>,
    /// The directory that it was copied from.
    pub origin: String,
    /// When (RFC 3339, UTC).
    pub added: String,
    /// Bytes of its files.
    pub bytes: u64,
}

/// A Protection Server's definitions
#[utoipa::path(
    get,
    path = "/api/v1/svms/{id}/definitions",
    operation_id = "getSvmDefinitions",
    tag = "svms",
    params(("id" = Uuid, Path, description = "The Protection Server's id")),
    responses(
        (status = 200, body = SvmDefinitions),
        (status = 400, body = Problem, content_type = "application/problem+json"),
        (status = 401, body = Problem, content_type = "application/problem+json"),
        (status = 404, body = Problem, content_type = "application/problem+json"),
        (status = 409, body = Problem, content_type = "application/problem+json"),
        (status = 503, body = Problem, content_type = "application/problem+json"),
    ),
)]
pub async fn get(
    state: State,
    id: Result<Path<Uuid>, PathRejection>,
) -> Result<Json<SvmDefinitions>, ApiError> {
    let Path(id) = id?;
    let answer = give(&state, id, DefinitionsOrder::Show).await?;
    let answer = answer.ok_or(ApiError::TimedOut)?;
    Ok(Json(shown(&answer.status)))
}

/// Order something about a Protection Server's definitions
///
/// Answered with 200 when it is done, and with 202 when it takes long: then it goes on,
/// and `working` and `last` say how it ends. With 409 nothing has changed.
#[utoipa::path(
    post,
    path = "/api/v1/svms/{id}/definitions",
    operation_id = "orderSvmDefinitions",
    tag = "svms",
    params(("id" = Uuid, Path, description = "The Protection Server's id")),
    request_body = Order,
    responses(
        (status = 200, body = SvmDefinitions),
        (status = 202, body = SvmDefinitions),
        (status = 400, body = Problem, content_type = "application/problem+json"),
        (status = 401, body = Problem, content_type = "application/problem+json"),
        (status = 404, body = Problem, content_type = "application/problem+json"),
        (status = 409, body = Problem, content_type = "application/problem+json"),
        (status = 413, body = Problem, content_type = "application/problem+json"),
        (status = 415, body = Problem, content_type = "application/problem+json"),
        (status = 422, body = Problem, content_type = "application/problem+json"),
        (status = 503, body = Problem, content_type = "application/problem+json"),
    ),
)]
pub async fn order(
    state: State,
    caller: Caller,
    id: Result<Path<Uuid>, PathRejection>,
    order: Result<Json<Order>, JsonRejection>,
) -> Result<(StatusCode, Json<SvmDefinitions>), ApiError> {
    let Path(id) = id?;
    let Json(order) = order?;
    let order = meant(order)?;
    known(&state, SvmId(id)).await?;
    // Before it is given: what it does is the Protection Server's, and not in one
    // transaction with anything here.
    let now_ms = now_ms();
    let entry = caller
        .entry("svm.definitions", id, now_ms)
        .after(format!("ordered: {order:?}"));
    let store = &state.fleet.store;
    store.change(Change::Nothing, Some(&entry), now_ms).await?;
    if let Some(answer) = give(&state, id, order).await? {
        return match answer.failure {
            Some(failure) => Err(ApiError::Conflict(failure.to_string())),
            None => Ok((StatusCode::OK, Json(shown(&answer.status)))),
        };
    }
    let answer = give(&state, id, DefinitionsOrder::Show).await?;
    let answer = answer.ok_or(ApiError::TimedOut)?;
    Ok((StatusCode::ACCEPTED, Json(shown(&answer.status))))
}

fn meant(order: Order) -> Result<DefinitionsOrder, ApiError> {
    let wrong = |why: &str| Err(ApiError::Unprocessable(why.to_owned()));
    match (order.action, order.generation, order.signature) {
        (Action::Refresh, None, None) => Ok(DefinitionsOrder::Refresh),
        (Action::Rollback, None, None) => Ok(DefinitionsOrder::Rollback),
        (Action::Activate, Some(generation), None) => Ok(DefinitionsOrder::Activate { generation }),
        (Action::Confirm, None, Some(signature)) => match Text::new(signature) {
            Ok(signature) => Ok(DefinitionsOrder::Confirm { signature }),
            Err(error) => wrong(&format!("signature: {error}")),
        },
        (Action::Activate, None, _) => wrong("activate needs the generation's number"),
        (Action::Confirm, _, None) => wrong("confirm needs the signature's name"),
        (_, Some(_), _) => wrong("generation is for activate alone"),
        (_, _, Some(_)) => wrong("signature is for confirm alone"),
    }
}

async fn give(
    state: &State,
    id: Uuid,
    order: DefinitionsOrder,
) -> Result<Option<DefinitionsAnswer>, ApiError> {
    let svm = SvmId(id);
    known(state, svm).await?;
    let order = Question::Definitions(order);
    let given = state.fleet.orders.ask(svm, order, PATIENCE).await;
    given.map_err(|error| ApiError::Conflict(refused(error).to_owned()))
}

async fn known(state: &State, svm: SvmId) -> Result<(), ApiError> {
    let known = state.fleet.store.svm(svm).await?;
    if known.is_none_or(|record| record.revoked) {
        return Err(ApiError::NotFound {
            kind: "Protection Server",
            id: svm.to_string(),
        });
    }
    Ok(())
}

fn refused(error: AskError) -> &'static str {
    match error {
        AskError::NotConnected => {
            "the Protection Server is not connected; look at its log, or use \
             `palisade-scanserver definitions` on it"
        }
        AskError::TooMany => "too many orders are under way; wait for their answers",
        AskError::Gone => {
            "the session with the Protection Server ended before it answered; ask what it has \
             when it is back"
        }
    }
}

fn shown(status: &DefinitionsStatus) -> SvmDefinitions {
    let is_active = |entry: &&GenerationEntry| entry.standing == Standing::Active;
    SvmDefinitions {
        active: status
            .generations
            .iter()
            .find(is_active)
            .map(|entry| entry.generation),
        source: status.source.to_string(),
        problem: status.problem.as_ref().map(ToString::to_string),
        working: status.working.as_ref().map(ToString::to_string),
        last: status.last.as_ref().map(|last| LastOrder {
            what: last.what.to_string(),
            failure: last.failure.as_ref().map(ToString::to_string),
        }),
        braked: status
            .braked
            .iter()
            .map(|braked| BrakedSignature {
                engine: braked.engine.to_string(),
                name: braked.name.to_string(),
                since: rfc3339(braked.since_ms),
            })
            .collect(),
        generations: status.generations.iter().map(stored).collect(),
    }
}

fn stored(entry: &GenerationEntry) -> StoredGeneration {
    StoredGeneration {
        generation: entry.generation,
        state: entry.standing.as_str().to_owned(),
        engines: engines(&entry.engines),
        origin: entry.origin.to_string(),
        added: rfc3339(entry.added_ms),
        bytes: entry.bytes,
    }
}
