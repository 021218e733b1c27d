//! Alerts about what the site as a whole goes by: hosts that nobody can see into, and
//! identities and domains that more than one machine claims.

use uuid::Uuid;

use super::{Alert, id_of};
use crate::fleet::claims::Dispute;
use crate::inventory::keeper::Unread;
use crate::store::AgentRecord;
use crate::time::{rfc3339, wall_ms};

/// A host has not been read for too long.
pub(super) fn unread(host: &Unread) -> Alert {
    let since = rfc3339(wall_ms(host.since_ms));
    let name = match host.host.as_str() {
        "" => host.uri.clone(),
        name => format!("{name} ({})", host.uri),
    };
    let why = match &host.error {
        Some(error) => format!("libvirt says: {error}"),
        None => "libvirt does not answer there".to_owned(),
    };
    let text = format!(
        "The host {name} has not been read since {since}: {why}. Meanwhile no agent that is lost \
         there is an alert, and Protection Servers are chosen by where guests were."
    );
    let remedy = format!(
        "On this server's machine, as its user, `virsh -r -c {} list --all` must answer. If it \
         hangs, restart libvirtd (or virtqemud) on the host: guests run on. If the host is gone \
         for good, take it out of [[libvirt]] in server.toml and restart this server.",
        host.uri
    );
    let mut alert = about("host_unread", "warning", text, remedy);
    alert.id = id_of(
        Uuid::nil(),
        host.since_ms,
        &format!("host_unread {}", host.uri),
    );
    alert.since = since;
    alert.raised = rfc3339(wall_ms(host.raised_ms));
    alert
}

/// A machine is not let in, since another one has its identity and is connected. `name` is
/// that identity's.
pub(super) fn cloned(name: &str, of: Cloned, since_ms: u64) -> Alert {
    let (kind, id, who) = match of {
        Cloned::Agent(id) => ("agent_cloned", id, "agent"),
        Cloned::Svm(id) => ("svm_cloned", id, "Protection Server"),
    };
    let since = rfc3339(wall_ms(since_ms));
    let text = format!(
        "Since {since}, two machines have had the identity of the {who} {name} and taken turns: \
         the one that is connected stays, the other one is not let in."
    );
    let remedy = format!(
        "One was cloned from the other, or somebody has its key. In the copy, remove the \
         identity (`palisade-agent generalize` does, in an agent's guest) and join anew with a \
         token. If neither is a copy, `palisade {} revoke {id}` and join both anew: whoever has \
         the key has it no longer.",
        match of {
            Cloned::Agent(_) => "agent",
            Cloned::Svm(_) => "svm",
        }
    );
    let mut alert = about(kind, "critical", text, remedy);
    alert.id = id_of(id, since_ms, kind);
    match of {
        Cloned::Agent(_) => (alert.agent, alert.agent_name) = (Some(id), Some(name.to_owned())),
        Cloned::Svm(_) => (alert.svm, alert.svm_name) = (Some(id), Some(name.to_owned())),
    }
    alert.since.clone_from(&since);
    alert.raised = since;
    alert
}

/// Whose identity two machines have.
#[derive(Debug, Clone, Copy)]
pub(super) enum Cloned {
    Agent(Uuid),
    Svm(Uuid),
}

/// Agents of several tenants say that they are in one domain.
pub(super) fn disputed(dispute: &Dispute, name: Option<String>, agents: &[&AgentRecord]) -> Alert {
    let domain = dispute.domain;
    let mut claims: Vec<String> = agents
        .iter()
        .map(|agent| format!("{} of the tenant {}", agent.name, agent.tenant))
        .collect();
    claims.sort();
    let known = name.as_deref().unwrap_or("a domain that no host knows");
    let text = format!(
        "Agents of several tenants say that they run in the domain {domain} ({known}): {}. None \
         of them is told where it is, or has its tags.",
        claims.join(", ")
    );
    let remedy = "Which domain it runs in is what a guest says itself. See which of these guests \
                  it is (`virsh domuuid`), and revoke the agents of the others: `palisade agent \
                  revoke ID`. What has just been moved from one tenant to another leaves its old \
                  agent behind."
        .to_owned();
    let mut alert = about("domain_disputed", "warning", text, remedy);
    alert.id = id_of(domain, dispute.since_ms, "domain_disputed");
    (alert.domain, alert.domain_name) = (Some(domain), name);
    alert.since = rfc3339(wall_ms(dispute.since_ms));
    alert.raised.clone_from(&alert.since);
    alert
}

fn about(kind: &str, severity: &str, text: String, remedy: String) -> Alert {
    Alert {
        id: Uuid::nil(),
        kind: kind.to_owned(),
        severity: severity.to_owned(),
        agent: None,
        agent_name: None,
        svm: None,
        svm_name: None,
        domain: None,
        domain_name: None,
        since: String::new(),
        raised: String::new(),
        text,
        remedy,
    }
}
