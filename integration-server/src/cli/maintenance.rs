//! `palisade agent maintenance`: a token by which an agent may be stopped or removed.

use anyhow::bail;
use palisade_daemon::cli::{Output, exit};
use uuid::Uuid;

use super::Printed;
use super::client::Client;
use super::resources::json;
use super::table::safe;
use crate::api::agents::Agent;
use crate::api::maintenance::{Allowed, CreatedMaintenance, NewMaintenance};

/// Makes a token: its text alone to hand on, and a sentence for people beside it.
///
/// # Errors
/// What is in the way, and what helps; nothing is allowed then.
pub fn create(
    client: &Client,
    agent: &str,
    new: &NewMaintenance,
    output: Output,
) -> anyhow::Result<Printed> {
    let (id, name) = named(client, agent)?;
    let created: CreatedMaintenance = client.post(&format!("agents/{id}/maintenance"), new)?;
    if output == Output::Json {
        return Ok(json(&created)?.into());
    }
    let may = match created.allowed {
        Allowed::Stop => "stopped",
        Allowed::Remove => "stopped and removed",
    };
    let note = format!(
        "With this token {} may be {may} until {} (grant {}); until then its absence is no alert.\n",
        safe(&name),
        safe(&created.until),
        created.id
    );
    Ok(Printed {
        out: created.token + "\n",
        note,
        code: exit::FINE,
    })
}

/// An id, or a name that exactly one agent has.
///
/// # Errors
/// None or several are called so, or what is in the way of finding out.
pub fn named(client: &Client, agent: &str) -> anyhow::Result<(Uuid, String)> {
    if let Ok(id) = agent.parse::<Uuid>() {
        return Ok((id, id.to_string()));
    }
    let agents: Vec<Agent> = client.list("agents", None, usize::MAX)?;
    let mut named = agents.iter().filter(|known| known.name == agent);
    let shown = safe(agent);
    match (named.next(), named.count()) {
        (Some(only), 0) => Ok((only.id, only.name.clone())),
        (Some(_), others) => bail!(
            "{} agents are called {shown}; give the id that `palisade agent list` shows",
            others + 1
        ),
        (None, _) => bail!("no agent is called {shown}; `palisade agent list` shows them"),
    }
}
