//! `palisade group`: groups of a tenant's agents.

use anyhow::bail;
use clap::Subcommand;
use palisade_daemon::cli::Output;
use palisade_protocol::ids::TenantId;

use super::client::Client;
use super::resources::{Result, json};
use super::table::{Table, safe};
use crate::api::groups::{Group, GroupChange, Member, NewGroup};

const QUERY: &str = "\
All terms of a query must hold: name:web-* tag:prod !host:hv9 share:20%. There are id,
name, version, domain, tag, host, cluster, datacenter and share; commas stand between
values of which one is enough, * for any text, ! for not.";

/// What to do with groups.
#[derive(Debug, Subcommand)]
pub enum Groups {
    /// List all, by tenant, the strongest first
    List,
    /// Make one
    #[command(after_help = QUERY)]
    Create {
        /// Its name
        name: String,
        /// Its tenant
        #[arg(long, value_name = "NAME", default_value = "default")]
        tenant: TenantId,
        /// Who is in it
        #[arg(long, value_name = "QUERY")]
        query: String,
        /// Of two groups that an agent is in, the one with more wins
        #[arg(long, value_name = "NUMBER", default_value_t = 0)]
        priority: u32,
    },
    /// Change who is in one, or its priority
    #[command(after_help = QUERY)]
    Change {
        /// Its name or id
        group: String,
        /// Its tenant
        #[arg(long, value_name = "NAME", default_value = "default")]
        tenant: TenantId,
        /// Who is in it from now on
        #[arg(long, value_name = "QUERY", required_unless_present = "priority")]
        query: Option<String>,
        /// Its priority from now on
        #[arg(long, value_name = "NUMBER")]
        priority: Option<u32>,
    },
    /// Delete one; the revisions of its policy are kept
    Delete {
        /// Its name or id
        group: String,
        /// Its tenant
        #[arg(long, value_name = "NAME", default_value = "default")]
        tenant: TenantId,
    },
    /// List the agents that are in one, or that a query would have
    #[command(after_help = QUERY)]
    Members {
        /// Its name or id
        #[arg(required_unless_present = "query")]
        group: Option<String>,
        /// Its tenant
        #[arg(long, value_name = "NAME", default_value = "default")]
        tenant: TenantId,
        /// Whom this query would have, in place of a group
        #[arg(long, value_name = "QUERY", conflicts_with = "group")]
        query: Option<String>,
    },
}

/// Does it.
///
/// # Errors
/// What is in the way, and what helps.
pub fn run(client: &Client, what: &Groups, output: Output) -> Result {
    match what {
        Groups::List => {
            let groups: Vec<Group> = client.list("groups", None, usize::MAX)?;
            match output {
                Output::Json => json(&groups),
                Output::Text => Ok(as_table(groups)),
            }
        }
        Groups::Create {
            name,
            tenant,
            query,
            priority,
        } => {
            let new = NewGroup {
                tenant: Some(tenant.to_string()),
                name: name.clone(),
                query: query.clone(),
                priority: *priority,
            };
            print(client.post("groups", &new)?, output)
        }
        Groups::Change {
            group,
            tenant,
            query,
            priority,
        } => {
            let now = named(client, Some(tenant), group)?;
            let change = GroupChange {
                query: query.clone(),
                priority: *priority,
            };
            let path = format!("groups/{}", now.id);
            print(
                client.changed("PATCH", &path, now.revision, &change)?,
                output,
            )
        }
        Groups::Delete { group, tenant } => {
            let now = named(client, Some(tenant), group)?;
            let path = format!("groups/{}", now.id);
            client.change::<()>("DELETE", &path, now.revision, None)?;
            match output {
                Output::Json => json(&serde_json::json!({"deleted": now.id})),
                Output::Text => Ok(format!("deleted {}\n", safe(&now.name))),
            }
        }
        Groups::Members {
            group,
            tenant,
            query,
        } => {
            let path = match (group, query) {
                (Some(group), _) => {
                    let group = named(client, Some(tenant), group)?;
                    format!("groups/{}/members", group.id)
                }
                (None, query) => {
                    let query = encoded(query.as_deref().unwrap_or_default());
                    format!("group-preview?tenant={tenant}&query={query}")
                }
            };
            let found = client.get::<crate::api::page::Page<Member>>(&path)?;
            members(&found.items, output)
        }
    }
}

/// An id, or a name that a group of this tenant has; of tenant `default`, if none is said.
///
/// # Errors
/// None is called so, or what is in the way of finding out.
pub fn named(client: &Client, tenant: Option<&TenantId>, group: &str) -> anyhow::Result<Group> {
    let tenant = tenant.cloned().unwrap_or_else(TenantId::default_tenant);
    let groups: Vec<Group> = client.list("groups", None, usize::MAX)?;
    let is_it = |known: &Group| {
        known.id.to_string() == group || (known.name == group && known.tenant == tenant.as_str())
    };
    match groups.into_iter().find(is_it) {
        Some(found) => Ok(found),
        None => bail!(
            "tenant {tenant} has no group {}; `palisade group list` shows them",
            safe(group)
        ),
    }
}

fn print(group: Group, output: Output) -> Result {
    match output {
        Output::Json => json(&group),
        Output::Text => Ok(as_table(vec![group])),
    }
}

fn as_table(groups: Vec<Group>) -> String {
    let mut table = Table::new(["TENANT", "NAME", "PRIORITY", "MEMBERS", "QUERY", "ID"]);
    for group in groups {
        table.row([
            group.tenant,
            group.name,
            group.priority.to_string(),
            group.members.to_string(),
            group.query,
            group.id.to_string(),
        ]);
    }
    table.print("there is no group; `palisade group create` makes one")
}

fn members(members: &[Member], output: Output) -> Result {
    if output == Output::Json {
        return json(&members);
    }
    let mut table = Table::new(["NAME", "ID"]);
    for member in members {
        table.row([member.name.clone(), member.agent.to_string()]);
    }
    Ok(table.print("no agent is in it"))
}

/// A text within a URL's query.
fn encoded(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' => out.push(byte.into()),
            other => out.push_str(&format!("%{other:02X}")),
        }
    }
    out
}
