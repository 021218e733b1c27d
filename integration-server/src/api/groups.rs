//! `/api/v1/groups`: which of a tenant's agents have a policy in common.

use axum::Json;
use axum::extract::rejection::{JsonRejection, PathRejection, QueryRejection};
use axum::extract::{Path, Query};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use palisade_protocol::ids::TenantId;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use uuid::Uuid;

use super::State;
use super::auth::Caller;
use super::page::Page;
use super::precondition::{Tagged, created, wanted};
use super::problem::{ApiError, Problem};
use crate::access::{Permission, Scope};
use crate::policy::query::{Field, MAX_TENANT_QUERY_CHARS};
use crate::policy::{Group as Known, MAX_GROUPS, MAX_PRIORITY, Query as Members};
use crate::store::{Change, Changed, GroupRecord};
use crate::time::now_ms;

/// A group.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Group {
    /// Its id.
    pub id: Uuid,
    /// Its tenant.
    pub tenant: String,
    /// Its name, like no other of the tenant's.
    pub name: String,
    /// Who is in it.
    pub query: String,
    /// Of two groups that an agent is in, the one with more wins; of two with the same
    /// one, that whose name comes first.
    pub priority: u32,
    /// Which revision of it this is.
    pub revision: u64,
    /// How many agents are in it now.
    pub members: usize,
}

/// A group to make.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewGroup {
    /// The tenant whose agents it has, by default `default`.
    #[schema(min_length = 1, max_length = 63)]
    pub tenant: Option<String>,
    /// Its name: lower-case letters, digits and hyphens.
    #[schema(min_length = 1, max_length = 63)]
    pub name: String,
    /// Who is in it: `name:web-* tag:prod !host:hv9 share:20%`.
    #[schema(min_length = 1, max_length = 1024)]
    pub query: String,
    /// Of two groups that an agent is in, the one with more wins.
    #[serde(default)]
    #[schema(maximum = 1000000)]
    pub priority: u32,
}

/// What to change of a group.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct GroupChange {
    /// Who is in it from now on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(min_length = 1, max_length = 1024)]
    pub query: Option<String>,
    /// Its priority from now on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(maximum = 1000000)]
    pub priority: Option<u32>,
}

/// An agent that is in a group.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Member {
    /// The agent's id.
    pub agent: Uuid,
    /// Its name.
    pub name: String,
}

/// Whom a query would have.
#[derive(Debug, Clone, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub struct Previewed {
    /// The tenant whose agents it looks at.
    tenant: String,
    /// The query.
    query: String,
}

/// Groups, by tenant, the strongest first
#[utoipa::path(
    get,
    path = "/api/v1/groups",
    operation_id = "listGroups",
    tag = "groups",
    responses(
        (status = 200, body = Page<Group>),
        (status = 401, body = Problem, content_type = "application/problem+json"),
        (status = 503, body = Problem, content_type = "application/problem+json"),
    ),
)]
pub async fn list(state: State, caller: Caller) -> Result<Json<Page<Group>>, ApiError> {
    let book = state.fleet.book();
    let facts = all_facts(&state).await?;
    let mut seen: Vec<&Known> = book
        .groups()
        .filter(|group| {
            place(group).is_some_and(|place| caller.may(Permission::SeePolicies, &place))
        })
        .collect();
    // Within a tenant the book has the weakest first.
    seen.reverse();
    seen.sort_by(|a, b| a.tenant.cmp(&b.tenant));
    let seen: Vec<Known> = seen.into_iter().cloned().collect();
    let shown = apart(move || {
        let folded = facts.iter().map(|facts| (&facts.tenant, facts.folded()));
        let folded: Vec<_> = folded.collect();
        let shown = seen.iter().map(|group| {
            let members = folded.iter().filter(|(of, _)| **of == group.tenant);
            let count = members.filter(|(_, facts)| group.query.has(facts)).count();
            of(group, count)
        });
        shown.collect()
    });
    Ok(Json(Page::whole(shown.await?)))
}

/// Make a group
#[utoipa::path(
    post,
    path = "/api/v1/groups",
    operation_id = "createGroup",
    tag = "groups",
    request_body = NewGroup,
    responses(
        (status = 201, body = Group, headers(("etag" = String, description = "Its revision"))),
        (status = 400, body = Problem, content_type = "application/problem+json"),
        (status = 401, body = Problem, content_type = "application/problem+json"),
        (status = 409, body = Problem, content_type = "application/problem+json"),
        (status = 413, body = Problem, content_type = "application/problem+json"),
        (status = 415, body = Problem, content_type = "application/problem+json"),
        (status = 422, body = Problem, content_type = "application/problem+json"),
        (status = 503, body = Problem, content_type = "application/problem+json"),
    ),
)]
pub async fn create(
    state: State,
    caller: Caller,
    new: Result<Json<NewGroup>, JsonRejection>,
) -> Result<Response, ApiError> {
    let Json(new) = new?;
    let tenant = match &new.tenant {
        Some(name) => tenant(name)?,
        None => TenantId::default_tenant(),
    };
    caller.require(Permission::ManagePolicies, &Scope::tenant(tenant.clone()))?;
    let place = Scope::group(tenant.clone(), &new.name).ok_or_else(|| {
        ApiError::Unprocessable("name is 1 to 63 lower-case letters, digits and hyphens".to_owned())
    })?;
    let query = checked(&caller, &new.query)?;
    fits(&state, &tenant, None, &query)?;
    let now_ms = now_ms();
    let record = GroupRecord {
        id: Uuid::new_v4(),
        tenant,
        name: new.name,
        query: query.to_string(),
        priority: priority(new.priority)?,
        revision: 1,
        made_ms: now_ms,
    };
    let entry = caller
        .entry("group.create", &record.name, now_ms)
        .at(place)
        .after(text(&record.query, record.priority));
    let change = Change::AddGroup(&record);
    match state
        .fleet
        .store
        .change(change, Some(&entry), now_ms)
        .await?
    {
        Changed::Done => {}
        Changed::Full => {
            return Err(ApiError::Conflict(format!(
                "tenant {} has {MAX_GROUPS} groups, and no more are kept; delete one first",
                record.tenant
            )));
        }
        _ => {
            return Err(ApiError::Conflict(format!(
                "tenant {} has a group {} already",
                record.tenant, record.name
            )));
        }
    }
    state.fleet.policies_changed().await;
    let group = Known {
        id: record.id,
        tenant: record.tenant,
        name: record.name,
        query,
        priority: record.priority,
        revision: record.revision,
    };
    let shown = of(&group, members_of(&state, &group).await?.len());
    Ok(created(Tagged(group.revision, shown)))
}

/// One group
#[utoipa::path(
    get,
    path = "/api/v1/groups/{id}",
    operation_id = "getGroup",
    tag = "groups",
    params(("id" = Uuid, Path, description = "The group's id")),
    responses(
        (status = 200, body = Group, headers(("etag" = String, description = "Its revision"))),
        (status = 400, body = Problem, content_type = "application/problem+json"),
        (status = 401, body = Problem, content_type = "application/problem+json"),
        (status = 404, body = Problem, content_type = "application/problem+json"),
        (status = 503, body = Problem, content_type = "application/problem+json"),
    ),
)]
pub async fn get(
    state: State,
    caller: Caller,
    id: Result<Path<Uuid>, PathRejection>,
) -> Result<Tagged<Group>, ApiError> {
    let (group, _) = reached(&state, &caller, id)?;
    let count = members_of(&state, &group).await?.len();
    Ok(Tagged(group.revision, of(&group, count)))
}

/// Change who is in a group, or its priority
#[utoipa::path(
    patch,
    path = "/api/v1/groups/{id}",
    operation_id = "changeGroup",
    tag = "groups",
    params(
        ("id" = Uuid, Path, description = "The group's id"),
        ("if-match" = String, Header, description = "The `etag` of the revision that was seen, or `*`"),
    ),
    request_body = GroupChange,
    responses(
        (status = 200, body = Group, headers(("etag" = String, description = "Its revision"))),
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
    id: Result<Path<Uuid>, PathRejection>,
    headers: HeaderMap,
    change: Result<Json<GroupChange>, JsonRejection>,
) -> Result<Tagged<Group>, ApiError> {
    let (group, place) = changed(&state, &caller, id)?;
    let Json(new) = change?;
    wanted(&headers)?.check(&format!("the group {}", group.name), group.revision)?;
    if new.query.is_none() && new.priority.is_none() {
        return Err(ApiError::Unprocessable("give query or priority".to_owned()));
    }
    let query = match &new.query {
        Some(query) => {
            let query = checked(&caller, query)?;
            fits(&state, &group.tenant, Some(group.id), &query)?;
            query
        }
        None => group.query.clone(),
    };
    let priority = priority(new.priority.unwrap_or(group.priority))?;
    let now_ms = now_ms();
    let words = query.to_string();
    let entry = caller
        .entry("group.change", &group.name, now_ms)
        .at(place)
        .before(text(&group.query.to_string(), group.priority))
        .after(text(&words, priority));
    let change = Change::SetGroup(group.id, group.revision, &words, priority);
    let changed = state
        .fleet
        .store
        .change(change, Some(&entry), now_ms)
        .await?;
    if !changed.is_done() {
        let what = format!("the group {}", group.name);
        return Err(ApiError::changed_meanwhile(&what));
    }
    state.fleet.policies_changed().await;
    let group = Known {
        query,
        priority,
        revision: group.revision + 1,
        ..group
    };
    let count = members_of(&state, &group).await?.len();
    Ok(Tagged(group.revision, of(&group, count)))
}

/// Delete a group
///
/// Its agents lose what it set at once. The revisions of its policy are kept.
#[utoipa::path(
    delete,
    path = "/api/v1/groups/{id}",
    operation_id = "deleteGroup",
    tag = "groups",
    params(
        ("id" = Uuid, Path, description = "The group's id"),
        ("if-match" = String, Header, description = "The `etag` of the revision that was seen, or `*`"),
    ),
    responses(
        (status = 204, description = "Deleted"),
        (status = 400, body = Problem, content_type = "application/problem+json"),
        (status = 401, body = Problem, content_type = "application/problem+json"),
        (status = 404, body = Problem, content_type = "application/problem+json"),
        (status = 412, body = Problem, content_type = "application/problem+json"),
        (status = 428, body = Problem, content_type = "application/problem+json"),
        (status = 503, body = Problem, content_type = "application/problem+json"),
    ),
)]
pub async fn delete(
    state: State,
    caller: Caller,
    id: Result<Path<Uuid>, PathRejection>,
    headers: HeaderMap,
) -> Result<StatusCode, ApiError> {
    let (group, place) = changed(&state, &caller, id)?;
    wanted(&headers)?.check(&format!("the group {}", group.name), group.revision)?;
    let now_ms = now_ms();
    let entry = caller
        .entry("group.delete", &group.name, now_ms)
        .at(place)
        .before(text(&group.query.to_string(), group.priority));
    let change = Change::RemoveGroup(group.id, group.revision);
    let changed = state
        .fleet
        .store
        .change(change, Some(&entry), now_ms)
        .await?;
    if !changed.is_done() {
        let what = format!("the group {}", group.name);
        return Err(ApiError::changed_meanwhile(&what));
    }
    state.fleet.policies_changed().await;
    Ok(StatusCode::NO_CONTENT)
}

/// Agents that are in a group now, by name
#[utoipa::path(
    get,
    path = "/api/v1/groups/{id}/members",
    operation_id = "listGroupMembers",
    tag = "groups",
    params(("id" = Uuid, Path, description = "The group's id")),
    responses(
        (status = 200, body = Page<Member>),
        (status = 400, body = Problem, content_type = "application/problem+json"),
        (status = 401, body = Problem, content_type = "application/problem+json"),
        (status = 404, body = Problem, content_type = "application/problem+json"),
        (status = 503, body = Problem, content_type = "application/problem+json"),
    ),
)]
pub async fn members(
    state: State,
    caller: Caller,
    id: Result<Path<Uuid>, PathRejection>,
) -> Result<Json<Page<Member>>, ApiError> {
    let (group, _) = reached(&state, &caller, id)?;
    Ok(Json(Page::whole(members_of(&state, &group).await?)))
}

/// Agents that a query would have, by name
#[utoipa::path(
    get,
    path = "/api/v1/group-preview",
    operation_id = "previewGroup",
    tag = "groups",
    params(Previewed),
    responses(
        (status = 200, body = Page<Member>),
        (status = 400, body = Problem, content_type = "application/problem+json"),
        (status = 401, body = Problem, content_type = "application/problem+json"),
        (status = 422, body = Problem, content_type = "application/problem+json"),
        (status = 503, body = Problem, content_type = "application/problem+json"),
    ),
)]
pub async fn preview(
    state: State,
    caller: Caller,
    previewed: Result<Query<Previewed>, QueryRejection>,
) -> Result<Json<Page<Member>>, ApiError> {
    let Query(previewed) = previewed?;
    let tenant = tenant(&previewed.tenant)?;
    caller.require(Permission::SeePolicies, &Scope::tenant(tenant.clone()))?;
    let query = checked(&caller, &previewed.query)?;
    let found = found(&state, &tenant, &query).await?;
    Ok(Json(Page::whole(found)))
}

/// A query, if the caller may ask it: where domains are and what they are called is the
/// site's, and an agent may say that it is in another tenant's.
fn checked(caller: &Caller, text: &str) -> Result<Members, ApiError> {
    let query: Members = text
        .parse()
        .map_err(|error: crate::policy::query::BadQuery| {
            ApiError::Unprocessable(error.to_string())
        })?;
    let of_site = [
        Field::Domain,
        Field::Host,
        Field::Cluster,
        Field::Datacenter,
    ];
    if of_site.iter().any(|field| query.looks_at(*field))
        && !caller.may(Permission::SeeSite, &Scope::site())
    {
        return Err(ApiError::Forbidden(
            "only who may see the site asks for domain:, host:, cluster: or datacenter:; use \
             name: or tag:, or ask the site's admin"
                .to_owned(),
        ));
    }
    Ok(query)
}

/// Whether a tenant's groups may have this query, in place of that of the group `instead`
/// or beside all: they are asked for every agent of it, by a server that is everybody's.
fn fits(
    state: &State,
    tenant: &TenantId,
    instead: Option<Uuid>,
    query: &Members,
) -> Result<(), ApiError> {
    let book = state.fleet.book();
    let groups = book.groups_of(tenant).iter();
    let others = groups.filter(|group| Some(group.id) != instead);
    let chars: usize = others.map(|group| group.query.chars()).sum();
    if chars + query.chars() <= MAX_TENANT_QUERY_CHARS {
        return Ok(());
    }
    Err(ApiError::Unprocessable(format!(
        "the queries of tenant {tenant}'s groups would have over {MAX_TENANT_QUERY_CHARS} \
         characters; use wildcards or tags instead of lists, or delete a group first"
    )))
}

/// Compares on a thread for that: there may be many agents.
async fn apart<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ApiError> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| ApiError::Internal(error.into()))
}

fn priority(number: u32) -> Result<u32, ApiError> {
    if number <= MAX_PRIORITY {
        return Ok(number);
    }
    Err(ApiError::Unprocessable(format!(
        "priority is at most {MAX_PRIORITY}"
    )))
}

fn tenant(name: &str) -> Result<TenantId, ApiError> {
    name.parse()
        .map_err(|error: palisade_protocol::ids::BadId| ApiError::Unprocessable(error.to_string()))
}

/// A group that the caller may change: who is in it decides for whom its policy is, so
/// that who may change what it sets, and no more, may not.
fn changed(
    state: &State,
    caller: &Caller,
    id: Result<Path<Uuid>, PathRejection>,
) -> Result<(Known, Scope), ApiError> {
    let (group, place) = reached(state, caller, id)?;
    let tenant = Scope::tenant(group.tenant.clone());
    caller.require(Permission::ManagePolicies, &tenant)?;
    Ok((group, place))
}

/// A group that the caller may see; one that he may not is one that does not exist.
fn reached(
    state: &State,
    caller: &Caller,
    id: Result<Path<Uuid>, PathRejection>,
) -> Result<(Known, Scope), ApiError> {
    let Path(id) = id?;
    let book = state.fleet.book();
    let group = book
        .group(id)
        .and_then(|group| Some((group, place(group)?)));
    let group = group.filter(|(_, place)| caller.may(Permission::SeePolicies, place));
    group
        .map(|(group, place)| (group.clone(), place))
        .ok_or_else(|| ApiError::NotFound {
            kind: "group",
            id: id.to_string(),
        })
}

fn place(group: &Known) -> Option<Scope> {
    Scope::group(group.tenant.clone(), &group.name)
}

async fn all_facts(state: &State) -> Result<Vec<crate::policy::Facts>, ApiError> {
    let fleet = &state.fleet;
    let agents = fleet.store.agents().await?;
    Ok(agents.iter().map(|agent| fleet.facts(agent)).collect())
}

async fn members_of(state: &State, group: &Known) -> Result<Vec<Member>, ApiError> {
    found(state, &group.tenant, &group.query).await
}

async fn found(state: &State, tenant: &TenantId, query: &Members) -> Result<Vec<Member>, ApiError> {
    let facts = all_facts(state).await?;
    let (tenant, query) = (tenant.clone(), query.clone());
    apart(move || {
        let members = facts
            .into_iter()
            .filter(|facts| facts.tenant == tenant && query.holds(facts))
            .map(|facts| Member {
                agent: facts.id.0,
                name: facts.name,
            });
        members.collect()
    })
    .await
}

fn text(query: &str, priority: u32) -> String {
    format!("{query}, priority {priority}")
}

fn of(group: &Known, members: usize) -> Group {
    Group {
        id: group.id,
        tenant: group.tenant.to_string(),
        name: group.name.clone(),
        query: group.query.to_string(),
        priority: group.priority,
        revision: group.revision,
        members,
    }
}
