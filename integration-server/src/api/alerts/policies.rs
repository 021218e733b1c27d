//! Alerts about policies: an agent goes on by another one than it should.

use palisade_protocol::policy::Refused;

use super::{Alert, id_of};
use crate::fleet::Fleet;
use crate::store::{AgentRecord, PolicyReportRecord};
use crate::time::rfc3339;

/// The policy that a connected agent refuses, if that is the one that it should have.
pub fn refused_by<'a>(
    fleet: &Fleet,
    agent: &AgentRecord,
    said: &'a PolicyReportRecord,
) -> Option<&'a Refused> {
    let refused = said.report.refused.as_ref()?;
    let (_, desired) = fleet.policy_of(agent)?;
    (refused.fingerprint == desired && said.report.in_force != Some(desired)).then_some(refused)
}

/// What is said of it.
pub fn refused(
    agent: &AgentRecord,
    said: &PolicyReportRecord,
    refused: &Refused,
    domain_name: Option<String>,
) -> Alert {
    let since = rfc3339(said.reported_ms);
    let name = &agent.name;
    Alert {
        id: id_of(agent.id.0, 0, &refused.fingerprint.to_string()),
        kind: "policy_refused".to_owned(),
        severity: "warning".to_owned(),
        agent: Some(agent.id.0),
        agent_name: Some(name.clone()),
        svm: None,
        svm_name: None,
        domain: agent.product_uuid,
        domain_name,
        since: since.clone(),
        raised: since,
        text: format!(
            "The agent {name} does not take the policy that is set for it, and goes on by the one \
             before: {}.",
            refused.why
        ),
        remedy: format!(
            "`palisade policy effective {name}` says what is set for it and from where, \
             `palisade policy revert` takes it back. Mend the cause, and change the policy: each \
             new revision is tried again."
        ),
    }
}
