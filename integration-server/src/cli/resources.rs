//! One function a noun and verb: which columns people see, which JSON programs get.
//! The JSON's fields are a promise; the API has more.

use palisade_daemon::cli::Output;
use serde::Serialize;
use uuid::Uuid;

use super::client::Client;
use super::table::{Table, safe};
use crate::api::agents::Agent;
use crate::api::detections::{self, Detection};
use crate::api::inventory::{Domain, Host};
use crate::api::status::Status;
use crate::api::svms::{Definitions, Svm};
use crate::api::tokens::{CreatedToken, NewToken, Token};

/// Digits that are shown of a container's id.
const SHORT_ID_DIGITS: usize = 12;

pub(super) type Result = anyhow::Result<String>;

pub(super) fn json(value: &impl Serialize) -> Result {
    Ok(serde_json::to_string_pretty(value)? + "\n")
}

/// `palisade status`.
pub fn status(client: &Client, output: Output) -> Result {
    let status: Status = client.get("status")?;
    if output == Output::Json {
        return json(&status);
    }
    let lines = [
        ("deployment", status.deployment),
        (
            "server",
            format!(
                "{} {}, since {}",
                status.server, status.version, status.started
            ),
        ),
        ("control", status.control_addresses.join(", ")),
        (
            "protection servers",
            format!(
                "{} of {} connected",
                status.svms.connected, status.svms.total
            ),
        ),
        (
            "agents",
            format!(
                "{} of {} connected, {} blocking{}",
                status.agents.connected,
                status.agents.total,
                status.agents.blocking,
                match (status.agents.unplaced, status.hosts.total) {
                    // Without hosts it is so of all.
                    (0, _) | (_, 0) => String::new(),
                    (many, _) => format!(", {many} in a domain that no host knows"),
                }
            ),
        ),
        (
            "hosts",
            format!("{} of {} up", status.hosts.up, status.hosts.total),
        ),
        (
            "domains",
            format!(
                "{} of {} protected",
                status.domains.protected, status.domains.total
            ),
        ),
        ("detections", status.detections.to_string()),
        ("alerts", status.alerts.to_string()),
    ];
    Ok(lines
        .iter()
        .map(|(name, value)| format!("{name:<20}{}\n", safe(value)))
        .collect())
}

/// `palisade svm list`.
pub fn svms(client: &Client, output: Output) -> Result {
    #[derive(Serialize)]
    struct Row {
        id: Uuid,
        name: String,
        addresses: Vec<String>,
        state: String,
        load: f64,
        agents: u32,
        path: String,
        definitions: Vec<Definitions>,
    }
    let svms: Vec<Svm> = client.list("svms", None, usize::MAX)?;
    if output == Output::Json {
        let row = |svm: Svm| Row {
            id: svm.id,
            name: svm.name,
            addresses: svm.addresses,
            state: svm.state,
            load: svm.load,
            agents: svm.agents,
            path: svm.path,
            definitions: svm.definitions,
        };
        return json(&svms.into_iter().map(row).collect::<Vec<_>>());
    }
    let mut table = Table::new([
        "NAME",
        "STATE",
        "ADDRESSES",
        "LOAD",
        "AGENTS",
        "PATH",
        "DEFINITIONS",
        "ID",
    ]);
    for svm in svms {
        let used = |used: &Definitions| format!("{} {}", used.engine, used.generation);
        table.row([
            svm.name,
            svm.state,
            svm.addresses.join(", "),
            format!("{:.0} %", svm.load * 100.0),
            svm.agents.to_string(),
            svm.path,
            svm.definitions
                .iter()
                .map(used)
                .collect::<Vec<_>>()
                .join(", "),
            svm.id.to_string(),
        ]);
    }
    Ok(table
        .print("no Protection Server has joined; `palisade token create --component svm` lets one"))
}

/// `palisade agent list`.
pub fn agents(client: &Client, output: Output) -> Result {
    #[derive(Serialize)]
    struct Row {
        id: Uuid,
        name: String,
        state: String,
        svm: Option<Uuid>,
        domain: Option<Uuid>,
        last_seen: Option<String>,
    }
    let agents: Vec<Agent> = client.list("agents", None, usize::MAX)?;
    if output == Output::Json {
        let row = |agent: Agent| Row {
            id: agent.id,
            name: agent.name,
            state: agent.state,
            svm: agent.svm,
            domain: agent.domain,
            last_seen: agent.last_seen,
        };
        return json(&agents.into_iter().map(row).collect::<Vec<_>>());
    }
    let mut table = Table::new([
        "NAME",
        "STATE",
        "PROTECTION",
        "SVM",
        "DOMAIN",
        "LAST SEEN",
        "ID",
    ]);
    for agent in agents {
        let text = |id: Option<Uuid>| id.map(|id| id.to_string()).unwrap_or_default();
        table.row([
            agent.name,
            agent.state,
            agent.protection,
            agent.svm_name.unwrap_or_else(|| text(agent.svm)),
            agent.domain_name.unwrap_or_else(|| text(agent.domain)),
            agent.last_seen.unwrap_or_default(),
            agent.id.to_string(),
        ]);
    }
    Ok(table.print("no agent has joined; `palisade token create` lets one"))
}

/// `palisade inventory list`.
pub fn inventory(client: &Client, output: Output) -> Result {
    #[derive(Serialize)]
    struct Row {
        uri: String,
        host: String,
        state: String,
        domains: Vec<Domain>,
    }
    let hosts: Vec<Host> = client.list("inventory", None, usize::MAX)?;
    if output == Output::Json {
        let row = |host: Host| Row {
            uri: host.uri,
            host: host.host,
            state: host.state,
            domains: host.domains,
        };
        return json(&hosts.into_iter().map(row).collect::<Vec<_>>());
    }
    let mut table = Table::new([
        "HOST",
        "HOST STATE",
        "DOMAIN",
        "STATE",
        "PROTECTED",
        "TAGS",
        "UUID",
    ]);
    let mut notes = String::new();
    for host in hosts {
        let name = if host.host.is_empty() {
            host.uri.clone()
        } else {
            host.host.clone()
        };
        if let Some(error) = &host.error {
            let age = host.age_s.map_or_else(
                || "it was never read".to_owned(),
                |age| format!("what is shown is {age} s old"),
            );
            notes.push_str(&format!(
                "{} ({}): {}; {age}\n",
                safe(&name),
                safe(&host.uri),
                safe(error)
            ));
        }
        if host.domains.is_empty() {
            let none = String::new;
            table.row([name, host.state, none(), none(), none(), none(), none()]);
            continue;
        }
        for domain in host.domains {
            table.row([
                name.clone(),
                host.state.clone(),
                domain.name,
                domain.state,
                if domain.protected { "yes" } else { "no" }.to_owned(),
                domain.tags.join(", "),
                domain.uuid.to_string(),
            ]);
        }
    }
    let table = table.print("no hypervisor is followed; name one under [[libvirt]] in server.toml");
    Ok(table + &notes)
}

/// `palisade detection list`.
pub fn detections(client: &Client, limit: u32, output: Output) -> Result {
    #[derive(Serialize)]
    struct Row {
        id: Uuid,
        time: String,
        agent: Uuid,
        path: String,
        name: String,
        engine: String,
        member: Option<String>,
        container: Option<String>,
        action: String,
        sha256: Option<String>,
    }
    let page = detections::MAX_LIMIT as usize;
    let found: Vec<Detection> = client.list("detections", Some(page), limit as usize)?;
    if output == Output::Json {
        let row = |detection: Detection| Row {
            id: detection.id,
            time: detection.time,
            agent: detection.agent,
            path: detection.path,
            name: detection.name,
            engine: detection.engine,
            member: detection.member,
            container: detection.container,
            action: detection.action,
            sha256: detection.sha256,
        };
        return json(&found.into_iter().map(row).collect::<Vec<_>>());
    }
    let mut table = Table::new(["TIME", "AGENT", "ACTION", "NAME", "ENGINE", "PATH"]);
    for detection in found {
        table.row([
            detection.time,
            detection.agent_name,
            detection.action,
            detection.name,
            detection.engine,
            [
                Some(detection.path),
                detection.member.map(|member| format!("(inside: {member})")),
                detection
                    .container
                    .map(|name| format!("(container: {})", short(&name))),
            ]
            .into_iter()
            .flatten()
            .collect::<Vec<_>>()
            .join(" "),
        ]);
    }
    Ok(table.print("nothing was detected"))
}

/// A container's name with as much of its id as tools show.
fn short(container: &str) -> &str {
    let is_id = |id: &str| id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
    match container.split_once(':') {
        Some((runtime, id)) if is_id(id) => container
            .get(..runtime.len() + 1 + SHORT_ID_DIGITS)
            .unwrap_or(container),
        _ => container,
    }
}

/// `palisade token list`.
pub fn tokens(client: &Client, output: Output) -> Result {
    let tokens: Vec<Token> = client.list("tokens", None, usize::MAX)?;
    if output == Output::Json {
        return json(&tokens);
    }
    let mut table = Table::new(["ID", "COMPONENT", "TENANT", "USED", "STATE", "EXPIRES"]);
    for token in tokens {
        table.row([
            token.id.to_string(),
            format!("{:?}", token.component).to_lowercase(),
            token.tenant,
            format!("{} of {}", token.used, token.uses),
            token.state,
            token.expires,
        ]);
    }
    Ok(table.print("there is no join token; `palisade token create` makes one"))
}

/// `palisade token create`: the text alone, or all that was made.
pub fn create_token(client: &Client, new: &NewToken, output: Output) -> Result {
    let created: CreatedToken = client.post("tokens", new)?;
    match output {
        Output::Json => json(&created),
        Output::Text => Ok(created.token + "\n"),
    }
}

/// `palisade … revoke ID`.
pub fn revoke(client: &Client, list: &str, id: Uuid, output: Output) -> Result {
    #[derive(Serialize)]
    struct Revoked {
        revoked: Uuid,
    }
    client.delete(&format!("{list}/{id}"))?;
    match output {
        Output::Json => json(&Revoked { revoked: id }),
        Output::Text => Ok(format!("{id} is revoked\n")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_ids_are_shortened() {
        let id = "0123456789abcdef".repeat(4);
        assert_eq!(short(&format!("docker:{id}")), "docker:0123456789ab");
        for name in ["lxc:web", "lxc:", "", &id, "é:é", &format!("lxc:{id}0")] {
            assert_eq!(short(name), name);
        }
    }
}
