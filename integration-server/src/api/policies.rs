//! `/api/v1/policies`: what is set for guests, and its revisions.
//!
//! A policy always exists: one that nobody has changed yet has revision 0 and sets
//! nothing. Each change is a new revision, and says in `If-Match` which one it was made
//! from, so that nobody undoes what he has not seen.

use std::collections::HashMap;

use axum::Json;
use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{Path, Query};
use axum::http::HeaderMap;
use palisade_protocol::ids::{AgentId, TenantId};
use palisade_protocol::policy::settings;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};

use super::State;
use super::auth::Caller;
use super::page::Page;
use super::precondition::{Tagged, wanted};
use super::problem::{ApiError, Problem};
use crate::access::{Permission, Scope};
use crate::fleet::Fleet;
use crate::policy::{self, MAX_NOTE_BYTES, Settings, Subject, diff};
use crate::store::{Change, Changed, PolicyRecord};
use crate::time::{now_ms, rfc3339};

/// Revisions of a page.
const PAGE: u32 = 100;

/// A policy, as one of its revisions has it.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Policy {
    /// What it is of: `site`, `tenant:NAME`, `group:ID`, `vm:ID` (the agent's id).
    pub subject: String,
    /// Which revision; 0 before there is one.
    pub revision: u64,
    /// What it sets, by the settings' names; all else is inherited.
    #[schema(value_type = Object)]
    pub settings: Settings,
    /// When it was made (RFC 3339, UTC).
    pub made: Option<String>,
    /// Who made it.
    pub by: Option<String>,
    /// Why.
    pub note: Option<String>,
}

/// A policy, as it shall be.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewPolicy {
    /// What it sets; all else is inherited.
    #[schema(value_type = Object)]
    pub settings: Settings,
    /// Why, on one line.
    #[serde(default)]
    #[schema(max_length = 200)]
    pub note: String,
}

/// What to change of a policy.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct PolicyChange {
    /// What to set.
    #[serde(default)]
    #[schema(value_type = Object)]
    pub set: Settings,
    /// What to inherit from now on.
    #[serde(default)]
    #[schema(max_items = 128)]
    pub unset: Vec<String>,
    /// Why, on one line.
    #[serde(default)]
    #[schema(max_length = 200)]
    pub note: String,
}

/// A revision to go back to.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct Revert {
    /// Its number; 0 sets nothing.
    pub revision: u64,
    /// Why, on one line.
    #[serde(default)]
    #[schema(max_length = 200)]
    pub note: String,
}

/// A setting that differs between two revisions.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Difference {
    /// Which.
    pub setting: String,
    /// What it was; absent where it was inherited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<Value>,
    /// What it is; absent where it is inherited.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub to: Option<Value>,
}

/// What differs between two revisions.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Differences {
    /// The earlier one.
    pub from: u64,
    /// The later one.
    pub to: u64,
    /// What differs, by the settings' names.
    pub differences: Vec<Difference>,
}

/// Which revisions to compare.
#[derive(Debug, Clone, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Compared {
    /// The earlier one; the one before `to`, if it is not said.
    from: Option<u64>,
    /// The later one; the latest, if it is not said.
    to: Option<u64>,
}

/// Which page of revisions.
#[derive(Debug, Clone, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Paged {
    /// `next` of the page before.
    cursor: Option<String>,
}

/// A setting that a policy may set.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct KnownSetting {
    /// Its name.
    pub setting: String,
    /// What it takes, for people.
    pub takes: String,
}

type Answered = Result<Tagged<Policy>, ApiError>;

/// What a policy may set, by name
#[utoipa::path(
    get,
    path = "/api/v1/policy-settings",
    operation_id = "listPolicySettings",
    tag = "policies",
    responses(
        (status = 200, body = Page<KnownSetting>),
        (status = 401, body = Problem, content_type = "application/problem+json"),
        (status = 503, body = Problem, content_type = "application/problem+json"),
    ),
)]
pub async fn known() -> Json<Page<KnownSetting>> {
    let of = |known: &settings::Known| KnownSetting {
        setting: known.key.to_owned(),
        takes: known.kind.explain(),
    };
    Json(Page::whole(settings::SETTINGS.iter().map(of).collect()))
}

/// Policies that somebody has changed, as they are now
#[utoipa::path(
    get,
    path = "/api/v1/policies",
    operation_id = "listPolicies",
    tag = "policies",
    responses(
        (status = 200, body = Page<Policy>),
        (status = 401, body = Problem, content_type = "application/problem+json"),
        (status = 503, body = Problem, content_type = "application/problem+json"),
    ),
)]
pub async fn list(state: State, caller: Caller) -> Result<Json<Page<Policy>>, ApiError> {
    let fleet = &state.fleet;
    // Once, and not for each VM.
    let agents = fleet.store.agents().await?.into_iter();
    let tenants: HashMap<AgentId, TenantId> =
        agents.map(|agent| (agent.id, agent.tenant)).collect();
    let mut seen = Vec::new();
    for policy in fleet.store.policies().await? {
        let place = match &policy.subject {
            Subject::Vm(id) => tenants.get(id).map(|name| Scope::vm(name.clone(), *id)),
            other => place(fleet, other).await?,
        };
        // What is left of a group or an agent that is no more is nobody's but the site's.
        let place = place.unwrap_or_else(Scope::site);
        if caller.may(Permission::SeePolicies, &place) {
            seen.push(policy);
        }
    }
    seen.sort_by(|a, b| a.subject.cmp(&b.subject));
    Ok(Json(Page::whole(seen.into_iter().map(of).collect())))
}

/// One policy, as it is now
#[utoipa::path(
    get,
    path = "/api/v1/policies/{id}",
    operation_id = "getPolicy",
    tag = "policies",
    params(("id" = String, Path, description = "`site`, `tenant:NAME`, `group:ID` or `vm:ID`")),
    responses(
        (status = 200, body = Policy, headers(("etag" = String, description = "Its revision"))),
        (status = 400, body = Problem, content_type = "application/problem+json"),
        (status = 401, body = Problem, content_type = "application/problem+json"),
        (status = 404, body = Problem, content_type = "application/problem+json"),
        (status = 503, body = Problem, content_type = "application/problem+json"),
    ),
)]
pub async fn get(
    state: State,
    caller: Caller,
    id: Result<Path<String>, PathRejection>,
) -> Answered {
    let (subject, _) = reached(&state, &caller, Permission::SeePolicies, id).await?;
    tagged(latest(&state, &subject).await?)
}

/// Say all that a policy sets
#[utoipa::path(
    put,
    path = "/api/v1/policies/{id}",
    operation_id = "putPolicy",
    tag = "policies",
    params(
        ("id" = String, Path, description = "`site`, `tenant:NAME`, `group:ID` or `vm:ID`"),
        ("if-match" = String, Header, description = "The `etag` of the revision that was seen, or `*`"),
    ),
    request_body = NewPolicy,
    responses(
        (status = 200, body = Policy, headers(("etag" = String, description = "Its revision"))),
        (status = 400, body = Problem, content_type = "application/problem+json"),
        (status = 401, body = Problem, content_type = "application/problem+json"),
        (status = 404, body = Problem, content_type = "application/problem+json"),
        (status = 412, body = Problem, content_type = "application/problem+json"),
        (status = 413, body = Problem, content_type = "application/problem+json"),
        (status = 415, body = Problem, content_type = "application/problem+json"),
        (status = 422, body = Problem, content_type = "application/problem+json"),
        (status = 428, body = Problem, content_type = "application/problem+json"),
        (status = 503, body = Problem, content_type = "application/problem+json"),
    ),
)]
pub async fn put(
    state: State,
    caller: Caller,
    id: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
    new: Result<Json<NewPolicy>, JsonRejection>,
) -> Answered {
    let reached = reached(&state, &caller, Permission::ManagePolicies, id).await?;
    let Json(new) = new?;
    let work = Work::begin(&state, &caller, reached, &headers).await?;
    work.end("policy.change", new.settings, new.note).await
}

/// Set or inherit some settings of a policy
#[utoipa::path(
    patch,
    path = "/api/v1/policies/{id}",
    operation_id = "changePolicy",
    tag = "policies",
    params(
        ("id" = String, Path, description = "`site`, `tenant:NAME`, `group:ID` or `vm:ID`"),
        ("if-match" = String, Header, description = "The `etag` of the revision that was seen, or `*`"),
    ),
    request_body = PolicyChange,
    responses(
        (status = 200, body = Policy, headers(("etag" = String, description = "Its revision"))),
        (status = 400, body = Problem, content_type = "application/problem+json"),
        (status = 401, body = Problem, content_type = "application/problem+json"),
        (status = 404, body = Problem, content_type = "application/problem+json"),
        (status = 412, body = Problem, content_type = "application/problem+json"),
        (status = 413, body = Problem, content_type = "application/problem+json"),
        (status = 415, body = Problem, content_type = "application/problem+json"),
        (status = 422, body = Problem, content_type = "application/problem+json"),
        (status = 428, body = Problem, content_type = "application/problem+json"),
        (status = 503, body = Problem, content_type = "application/problem+json"),
    ),
)]
pub async fn change(
    state: State,
    caller: Caller,
    id: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
    wanted: Result<Json<PolicyChange>, JsonRejection>,
) -> Answered {
    let reached = reached(&state, &caller, Permission::ManagePolicies, id).await?;
    let Json(wanted) = wanted?;
    if wanted.set.is_empty() && wanted.unset.is_empty() {
        return Err(ApiError::Unprocessable(
            "give what to set, or what to unset".to_owned(),
        ));
    }
    let work = Work::begin(&state, &caller, reached, &headers).await?;
    let mut settings = work.before.settings.clone();
    for key in &wanted.unset {
        if wanted.set.contains_key(key) {
            return Err(ApiError::Unprocessable(format!(
                "{key} is in both set and unset; say one of both"
            )));
        }
        // What is inherited already stays so; what nobody knows is a slip of the pen.
        if settings.remove(key).is_none() && settings::find(key).is_none() {
            return Err(ApiError::Unprocessable(format!(
                "setting {key}: a policy has no such setting"
            )));
        }
    }
    settings.extend(wanted.set);
    work.end("policy.change", settings, wanted.note).await
}

/// Revisions of a policy, newest first
#[utoipa::path(
    get,
    path = "/api/v1/policies/{id}/revisions",
    operation_id = "listPolicyRevisions",
    tag = "policies",
    params(
        ("id" = String, Path, description = "`site`, `tenant:NAME`, `group:ID` or `vm:ID`"),
        Paged,
    ),
    responses(
        (status = 200, body = Page<Policy>),
        (status = 400, body = Problem, content_type = "application/problem+json"),
        (status = 401, body = Problem, content_type = "application/problem+json"),
        (status = 404, body = Problem, content_type = "application/problem+json"),
        (status = 503, body = Problem, content_type = "application/problem+json"),
    ),
)]
pub async fn revisions(
    state: State,
    caller: Caller,
    id: Result<Path<String>, PathRejection>,
    paged: Result<Query<Paged>, QueryRejection>,
) -> Result<Json<Page<Policy>>, ApiError> {
    let (subject, _) = reached(&state, &caller, Permission::SeePolicies, id).await?;
    let Query(paged) = paged?;
    let before = paged.cursor.as_deref().map(|cursor| {
        let bad = |_| ApiError::BadRequest("cursor is not one that a page gave".to_owned());
        cursor.parse::<u64>().map_err(bad)
    });
    let before = before.transpose()?;
    let store = &state.fleet.store;
    let found = store.policy_revisions(&subject, before, PAGE).await?;
    let full = found.len() >= PAGE as usize;
    let last = found.last().map(|policy| policy.revision);
    let next = last.filter(|last| full && *last > 1);
    Ok(Json(Page {
        items: found.into_iter().map(of).collect(),
        next: next.map(|last| last.to_string()),
    }))
}

/// What differs between two revisions of a policy
#[utoipa::path(
    get,
    path = "/api/v1/policies/{id}/diff",
    operation_id = "diffPolicy",
    tag = "policies",
    params(
        ("id" = String, Path, description = "`site`, `tenant:NAME`, `group:ID` or `vm:ID`"),
        Compared,
    ),
    responses(
        (status = 200, body = Differences),
        (status = 400, body = Problem, content_type = "application/problem+json"),
        (status = 401, body = Problem, content_type = "application/problem+json"),
        (status = 404, body = Problem, content_type = "application/problem+json"),
        (status = 503, body = Problem, content_type = "application/problem+json"),
    ),
)]
pub async fn compare(
    state: State,
    caller: Caller,
    id: Result<Path<String>, PathRejection>,
    compared: Result<Query<Compared>, QueryRejection>,
) -> Result<Json<Differences>, ApiError> {
    let (subject, _) = reached(&state, &caller, Permission::SeePolicies, id).await?;
    let Query(compared) = compared?;
    let to = match compared.to {
        Some(number) => revision(&state, &subject, number).await?,
        None => latest(&state, &subject).await?,
    };
    let from = compared.from.unwrap_or(to.revision.saturating_sub(1));
    let from = revision(&state, &subject, from).await?;
    let differences = diff::between(&from.settings, &to.settings);
    Ok(Json(Differences {
        from: from.revision,
        to: to.revision,
        differences: differences
            .into_iter()
            .map(|difference| Difference {
                setting: difference.key,
                from: difference.from,
                to: difference.to,
            })
            .collect(),
    }))
}

/// Set what an earlier revision set
///
/// That is a new revision: none is ever lost.
#[utoipa::path(
    post,
    path = "/api/v1/policies/{id}/revert",
    operation_id = "revertPolicy",
    tag = "policies",
    params(
        ("id" = String, Path, description = "`site`, `tenant:NAME`, `group:ID` or `vm:ID`"),
        ("if-match" = String, Header, description = "The `etag` of the revision that was seen, or `*`"),
    ),
    request_body = Revert,
    responses(
        (status = 200, body = Policy, headers(("etag" = String, description = "Its revision"))),
        (status = 400, body = Problem, content_type = "application/problem+json"),
        (status = 401, body = Problem, content_type = "application/problem+json"),
        (status = 404, body = Problem, content_type = "application/problem+json"),
        (status = 412, body = Problem, content_type = "application/problem+json"),
        (status = 413, body = Problem, content_type = "application/problem+json"),
        (status = 415, body = Problem, content_type = "application/problem+json"),
        (status = 422, body = Problem, content_type = "application/problem+json"),
        (status = 428, body = Problem, content_type = "application/problem+json"),
        (status = 503, body = Problem, content_type = "application/problem+json"),
    ),
)]
pub async fn revert(
    state: State,
    caller: Caller,
    id: Result<Path<String>, PathRejection>,
    headers: HeaderMap,
    wanted: Result<Json<Revert>, JsonRejection>,
) -> Answered {
    let reached = reached(&state, &caller, Permission::ManagePolicies, id).await?;
    let Json(wanted) = wanted?;
    let earlier = revision(&state, &reached.0, wanted.revision).await?;
    let work = Work::begin(&state, &caller, reached, &headers).await?;
    let note = match wanted.note.is_empty() {
        true => format!("as revision {}", earlier.revision),
        false => wanted.note,
    };
    work.end("policy.revert", earlier.settings, note).await
}

/// A change of a policy, from the revision that was seen to the next one.
struct Work<'a> {
    state: &'a State,
    caller: &'a Caller,
    place: Scope,
    before: PolicyRecord,
}

impl<'a> Work<'a> {
    async fn begin(
        state: &'a State,
        caller: &'a Caller,
        (subject, place): (Subject, Scope),
        headers: &HeaderMap,
    ) -> Result<Self, ApiError> {
        let before = latest(state, &subject).await?;
        wanted(headers)?.check(&format!("the policy {subject}"), before.revision)?;
        Ok(Self {
            state,
            caller,
            place,
            before,
        })
    }

    async fn end(self, action: &'static str, settings: Settings, note: String) -> Answered {
        policy::check(&settings).map_err(|error| ApiError::Unprocessable(error.to_string()))?;
        if note.len() > MAX_NOTE_BYTES || note.chars().any(char::is_control) {
            return Err(ApiError::Unprocessable(format!(
                "note is one line of at most {MAX_NOTE_BYTES} bytes"
            )));
        }
        let (fleet, now_ms) = (&self.state.fleet, now_ms());
        let before = self.before;
        let differences = diff::between(&before.settings, &settings);
        let words = diff::in_words(&differences, &settings);
        let new = PolicyRecord {
            subject: before.subject.clone(),
            revision: before.revision + 1,
            made_ms: now_ms,
            settings,
            by: self.caller.actor.name.clone(),
            note,
        };
        let entry = self
            .caller
            .entry(action, &new.subject, now_ms)
            .at(self.place)
            .before(format!("revision {}", before.revision))
            .after(format!("revision {}: {words}", new.revision));
        let change = Change::PutPolicy(&new);
        match fleet.store.change(change, Some(&entry), now_ms).await? {
            Changed::Done => {}
            _ => {
                let what = format!("the policy {}", new.subject);
                return Err(ApiError::changed_meanwhile(&what));
            }
        }
        fleet.policies_changed().await;
        tagged(new)
    }
}

/// A policy that the caller may do this to; one that he may not is one that does not
/// exist.
async fn reached(
    state: &State,
    caller: &Caller,
    permission: Permission,
    id: Result<Path<String>, PathRejection>,
) -> Result<(Subject, Scope), ApiError> {
    let Path(id) = id?;
    let bad = |error: policy::subject::BadSubject| ApiError::BadRequest(error.to_string());
    let subject: Subject = id.parse().map_err(bad)?;
    let place = place(&state.fleet, &subject).await?;
    let place = place.filter(|place| caller.may(permission, place));
    let place = place.ok_or_else(|| missing(&subject.to_string()))?;
    Ok((subject, place))
}

/// Where a policy's subject is; none where there is no such thing.
async fn place(fleet: &Fleet, subject: &Subject) -> Result<Option<Scope>, ApiError> {
    Ok(match subject {
        Subject::Site => Some(Scope::site()),
        Subject::Tenant(name) => Some(Scope::tenant(name.clone())),
        Subject::Group(id) => {
            let book = fleet.book();
            let group = book.group(*id);
            group.and_then(|group| Scope::group(group.tenant.clone(), &group.name))
        }
        Subject::Vm(id) => {
            let agent = fleet.store.agent(*id).await?;
            agent.map(|agent| Scope::vm(agent.tenant, agent.id))
        }
    })
}

async fn latest(state: &State, subject: &Subject) -> Result<PolicyRecord, ApiError> {
    let store = &state.fleet.store;
    let found = store.policy_revisions(subject, None, 1).await?;
    Ok(found.into_iter().next().unwrap_or_else(|| nothing(subject)))
}

async fn revision(state: &State, subject: &Subject, number: u64) -> Result<PolicyRecord, ApiError> {
    if number == 0 {
        return Ok(nothing(subject));
    }
    let found = state.fleet.store.policy_revision(subject, number).await?;
    found.ok_or_else(|| ApiError::NotFound {
        kind: "revision",
        id: format!("{number} of {subject}"),
    })
}

/// What is before the first revision.
fn nothing(subject: &Subject) -> PolicyRecord {
    PolicyRecord {
        subject: subject.clone(),
        revision: 0,
        made_ms: 0,
        settings: Settings::new(),
        by: String::new(),
        note: String::new(),
    }
}

fn missing(id: &str) -> ApiError {
    ApiError::NotFound {
        kind: "policy",
        id: id.to_owned(),
    }
}

fn tagged(policy: PolicyRecord) -> Answered {
    Ok(Tagged(policy.revision, of(policy)))
}

fn of(policy: PolicyRecord) -> Policy {
    let is_there = policy.revision > 0;
    let said = |text: String| (is_there && !text.is_empty()).then_some(text);
    Policy {
        subject: policy.subject.to_string(),
        revision: policy.revision,
        settings: policy.settings,
        made: is_there.then(|| rfc3339(policy.made_ms)),
        by: said(policy.by),
        note: said(policy.note),
    }
}
