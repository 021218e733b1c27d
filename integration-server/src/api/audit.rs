//! `/api/v1/audit`: what was changed, by whom, from where.

use axum::Json;
use axum::extract::Query;
use axum::extract::rejection::QueryRejection;
use serde::{Deserialize, Serialize};
use tokio::sync::Semaphore;
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::State;
use super::auth::Caller;
use super::page::Page;
use super::problem::{ApiError, Problem};
use crate::access::Permission;
use crate::audit::{Head, Record, Via};
use crate::time::rfc3339;

/// One at a time: it reads all of the log, and others want to read, too.
static VERIFICATIONS: Semaphore = Semaphore::const_new(1);

/// Entries of a page, unless asked otherwise.
const DEFAULT_LIMIT: u32 = 100;
/// Most entries of a page.
pub const MAX_LIMIT: u32 = 500;
/// Most entries that are looked at for one page, for who sees few of them.
const MAX_LOOKED_AT: u32 = 10_000;

/// An entry of the audit log.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct AuditEntry {
    /// Its number, from 1 on, without gaps.
    pub number: u64,
    /// When (RFC 3339, UTC).
    pub time: String,
    /// Who: an account's name, `admin.token`, or `palisade-server`.
    pub by: String,
    /// The account.
    pub account: Option<Uuid>,
    /// How he proved it.
    pub via: Via,
    /// Which session or token it was.
    pub credential: Option<Uuid>,
    /// From which address; absent on the server's own machine.
    pub from: Option<String>,
    /// What: `account.create`, `agent.revoke`.
    pub action: String,
    /// To what: a name or an id.
    pub object: String,
    /// Where that is.
    pub path: String,
    /// `done` or `refused`.
    pub result: String,
    /// What it was before, or why it was refused.
    pub before: Option<String>,
    /// What it is now.
    pub after: Option<String>,
    /// The hash that chains it to those before, in hexadecimal.
    pub hash: String,
}

/// Which page.
#[derive(Debug, Clone, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Asked {
    /// `next` of the page before.
    cursor: Option<String>,
    /// Entries at the most.
    #[param(minimum = 1, maximum = 500, default = 100)]
    limit: Option<u32>,
}

/// What somebody noted earlier.
#[derive(Debug, Clone, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Noted {
    /// A `head` of a verification before, which must still be in the chain.
    head: Option<String>,
}

/// Whether the audit log is as it was written.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Verification {
    /// Whether nothing is wrong.
    pub intact: bool,
    /// How many entries there are.
    pub entries: u64,
    /// The last entry's number and hash: noted elsewhere, it shows later that the chain's
    /// end was not taken off.
    pub head: String,
    /// What is wrong; the first twenty.
    pub problems: Vec<String>,
}

/// The audit log, newest first
#[utoipa::path(
    get,
    path = "/api/v1/audit",
    operation_id = "listAudit",
    tag = "audit",
    params(Asked),
    responses(
        (status = 200, body = Page<AuditEntry>),
        (status = 400, body = Problem, content_type = "application/problem+json"),
        (status = 401, body = Problem, content_type = "application/problem+json"),
        (status = 503, body = Problem, content_type = "application/problem+json"),
    ),
)]
pub async fn list(
    state: State,
    caller: Caller,
    asked: Result<Query<Asked>, QueryRejection>,
) -> Result<Json<Page<AuditEntry>>, ApiError> {
    let Query(asked) = asked?;
    let limit = asked.limit.unwrap_or(DEFAULT_LIMIT);
    if !(1..=MAX_LIMIT).contains(&limit) {
        return Err(ApiError::BadRequest(format!(
            "limit must be 1 to {MAX_LIMIT}"
        )));
    }
    let mut before = asked.cursor.as_deref().map(cursor).transpose()?;
    let mut items = Vec::new();
    let mut looked_at = 0;
    loop {
        let records = state.fleet.store.audit(before, MAX_LIMIT).await?;
        let last = records.len() < MAX_LIMIT as usize;
        for record in records {
            if items.len() >= limit as usize {
                return Ok(Json(page(items, before)));
            }
            before = Some(record.number);
            if caller.may(Permission::SeeAudit, &record.body.place) {
                items.push(of(record));
            }
        }
        looked_at += MAX_LIMIT;
        if last {
            return Ok(Json(Page::whole(items)));
        }
        if looked_at >= MAX_LOOKED_AT {
            return Ok(Json(page(items, before)));
        }
    }
}

fn page(items: Vec<AuditEntry>, before: Option<u64>) -> Page<AuditEntry> {
    Page {
        items,
        next: before.map(|number| format!("a{number}")),
    }
}

/// Go through the whole audit log
#[utoipa::path(
    get,
    path = "/api/v1/audit/verification",
    operation_id = "verifyAudit",
    tag = "audit",
    params(Noted),
    responses(
        (status = 200, body = Verification),
        (status = 400, body = Problem, content_type = "application/problem+json"),
        (status = 401, body = Problem, content_type = "application/problem+json"),
        (status = 503, body = Problem, content_type = "application/problem+json"),
    ),
)]
pub async fn verify(
    state: State,
    noted: Result<Query<Noted>, QueryRejection>,
) -> Result<Json<Verification>, ApiError> {
    let Query(noted) = noted?;
    let noted: Option<Head> = noted
        .head
        .map(|text| {
            text.parse()
                .map_err(|error: &str| ApiError::BadRequest(error.to_owned()))
        })
        .transpose()?;
    let _turn = VERIFICATIONS.try_acquire().map_err(|_| {
        ApiError::Busy(
            "the audit log is being gone through already; try again in a minute".to_owned(),
        )
    })?;
    let found = state.fleet.store.verify_audit(noted).await?;
    Ok(Json(Verification {
        intact: found.problems.is_empty(),
        entries: found.head.number,
        head: found.head.to_string(),
        problems: found.problems,
    }))
}

fn cursor(text: &str) -> Result<u64, ApiError> {
    text.strip_prefix('a')
        .and_then(|digits| digits.parse().ok())
        .ok_or_else(|| ApiError::BadRequest("cursor must be the next of a page before".to_owned()))
}

fn of(record: Record) -> AuditEntry {
    let body = record.body;
    AuditEntry {
        number: record.number,
        time: rfc3339(record.time_ms),
        by: body.actor.name,
        account: body.actor.account,
        via: body.actor.via,
        credential: body.actor.credential,
        from: body.actor.address,
        action: body.action,
        object: body.object,
        path: body.place.to_string(),
        result: match body.done {
            true => "done",
            false => "refused",
        }
        .to_owned(),
        before: body.before,
        after: body.after,
        hash: hex::encode(record.hash),
    }
}
