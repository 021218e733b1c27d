//! `/api/v1/agents/{id}/policy`: what an agent's settings come to, and what it made of
//! them.

use axum::Json;
use axum::extract::Path;
use axum::extract::rejection::PathRejection;
use palisade_protocol::policy::{Fingerprint, PolicyReport};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;
use uuid::Uuid;

use super::State;
use super::agents::reached;
use super::auth::Caller;
use super::problem::{ApiError, Problem};
use crate::access::Permission;
use crate::time::rfc3339;

/// An agent's policy.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct AgentPolicy {
    /// The agent's id.
    pub agent: Uuid,
    /// Its name.
    pub name: String,
    /// `applied`; `partial`: applied but for what `not_applied` names; `refused`: the
    /// agent goes on with the one before; `pending`: it has another one yet, or none;
    /// `unknown`: it never said.
    pub state: String,
    /// The fingerprint of what it should have.
    pub desired: String,
    /// The fingerprint of what it said that it has.
    pub confirmed: Option<String>,
    /// When it last said so (RFC 3339, UTC).
    pub reported: Option<String>,
    /// Why it refused one, or came to what it has.
    pub problem: Option<String>,
    /// Settings that it does not apply.
    pub not_applied: Vec<NotApplied>,
    /// What the policy is made of, the most general first.
    pub parts: Vec<Part>,
    /// What is set, by the settings' names. All else is as the guest's own `agent.toml`
    /// has it, or by default.
    pub settings: Vec<Effective>,
}

/// A policy that has a part in an agent's.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Part {
    /// What it is of: `site`, `tenant:NAME`, `group:ID`, `vm:ID`.
    pub subject: String,
    /// The same for people.
    pub origin: String,
    /// Its revision.
    pub revision: u64,
}

/// A setting's value in force.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct Effective {
    /// Which.
    pub setting: String,
    /// Its value.
    pub value: Value,
    /// What sets it: `site`, `tenant:NAME`, `group:ID`, `vm:ID`.
    pub subject: String,
    /// The same for people.
    pub origin: String,
}

/// A setting that the agent does not apply.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct NotApplied {
    /// Which.
    pub setting: String,
    /// Why, and what helps.
    pub why: String,
}

/// A Light Agent's effective policy, and what it made of it
#[utoipa::path(
    get,
    path = "/api/v1/agents/{id}/policy",
    operation_id = "getAgentPolicy",
    tag = "policies",
    params(("id" = Uuid, Path, description = "The agent's id")),
    responses(
        (status = 200, body = AgentPolicy),
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
) -> Result<Json<AgentPolicy>, ApiError> {
    let Path(id) = id?;
    let fleet = &state.fleet;
    let agent = reached(fleet, &caller, Permission::SeePolicies, id).await?;
    let effective = fleet.book().effective(&fleet.facts(&agent));
    let document = effective.document().map_err(internal)?;
    let desired = document.fingerprint().map_err(internal)?;
    let reported = fleet.store.policy_report(agent.id).await?;
    let reported_ms = reported.as_ref().map(|record| record.reported_ms);
    let report = reported.map(|record| record.report);
    let (state, problem) = stands(desired, report.as_ref());
    let report = report.unwrap_or_default();
    let mut settings = Vec::new();
    for (setting, (value, at)) in &effective.settings {
        let part = effective.part(*at);
        settings.push(Effective {
            setting: setting.clone(),
            value: value.clone(),
            subject: part.map_or_else(String::new, |part| part.subject.to_string()),
            origin: part.map_or_else(String::new, |part| part.origin.clone()),
        });
    }
    Ok(Json(AgentPolicy {
        agent: agent.id.0,
        name: agent.name,
        state: state.to_owned(),
        desired: desired.to_string(),
        confirmed: report.in_force.map(|fingerprint| fingerprint.to_string()),
        reported: reported_ms.map(rfc3339),
        problem,
        not_applied: report
            .not_applied
            .iter()
            .map(|setting| NotApplied {
                setting: setting.key.to_string(),
                why: setting.why.to_string(),
            })
            .collect(),
        parts: effective
            .parts
            .iter()
            .map(|part| Part {
                subject: part.subject.to_string(),
                origin: part.origin.clone(),
                revision: part.revision,
            })
            .collect(),
        settings,
    }))
}

/// How an agent stands to what it should have, and what it says is wrong.
pub fn stands(
    desired: Fingerprint,
    report: Option<&PolicyReport>,
) -> (&'static str, Option<String>) {
    let Some(report) = report else {
        return ("unknown", None);
    };
    let note = report.note.as_ref().map(ToString::to_string);
    if report.in_force == Some(desired) {
        let state = match report.not_applied.is_empty() {
            true => "applied",
            false => "partial",
        };
        return (state, note);
    }
    match &report.refused {
        Some(refused) if refused.fingerprint == desired => {
            ("refused", Some(refused.why.to_string()))
        }
        _ => ("pending", note),
    }
}

fn internal(error: impl std::error::Error + Send + Sync + 'static) -> ApiError {
    ApiError::Internal(Box::new(error))
}

#[cfg(test)]
mod tests {
    use palisade_protocol::bounded::{List, Text};
    use palisade_protocol::policy::{Layer, NotApplied, Policy, Refused};

    use super::*;

    fn fingerprint(revision: u64) -> Fingerprint {
        let layers = List::cut([Layer {
            origin: Text::cut("site"),
            revision,
        }]);
        let policy = Policy {
            layers,
            ..Policy::default()
        };
        policy.fingerprint().unwrap()
    }

    #[test]
    fn only_what_is_desired_and_said_counts_as_applied() {
        let (now, before) = (fingerprint(2), fingerprint(1));
        let state = |report: &PolicyReport| stands(now, Some(report)).0;
        assert_eq!(stands(now, None).0, "unknown");
        let mut report = PolicyReport::default();
        assert_eq!(state(&report), "pending");
        report.in_force = Some(before);
        assert_eq!(state(&report), "pending");
        report.refused = Some(Refused {
            fingerprint: now,
            why: Text::cut("no"),
        });
        assert_eq!(
            stands(now, Some(&report)),
            ("refused", Some("no".to_owned()))
        );
        report.refused = Some(Refused {
            fingerprint: before,
            why: Text::cut("no"),
        });
        assert_eq!(state(&report), "pending", "another one was refused");
        report.in_force = Some(now);
        assert_eq!(state(&report), "applied");
        report.not_applied = List::cut([NotApplied {
            key: Text::cut("x"),
            why: Text::cut("unknown"),
        }]);
        assert_eq!(state(&report), "partial");
    }
}
