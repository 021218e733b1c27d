//! `palisade policy`: what is set for guests.

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use palisade_daemon::cli::{Output, exit};
use palisade_protocol::ids::TenantId;
use palisade_protocol::policy::settings::{self, Kind};
use serde_json::Value;

use super::Printed;
use super::client::Client;
use super::groups;
use super::maintenance::named;
use super::resources::{Result, json};
use super::table::{Table, safe};
use crate::api::agent_policy::AgentPolicy;
use crate::api::policies::{Differences, KnownSetting, Policy, PolicyChange, Revert};
use crate::policy::Settings;

/// What a policy is of; the whole site, if nothing is said.
#[derive(Debug, Clone, Default, Args)]
pub struct Of {
    /// Of a tenant
    #[arg(long, value_name = "NAME")]
    tenant: Option<TenantId>,
    /// Of a group, by its name or id; of tenant `default`, if none is said
    #[arg(long, value_name = "NAME")]
    group: Option<String>,
    /// Of one VM, by its agent's name or id
    #[arg(long, value_name = "AGENT", conflicts_with_all = ["tenant", "group"])]
    vm: Option<String>,
}

/// What to do with policies.
#[derive(Debug, Subcommand)]
pub enum Policies {
    /// Show what one sets
    Show {
        /// Whose.
        #[command(flatten)]
        of: Of,
    },
    /// Set something: on_access.mode=block, exclude=/srv/db,/tmp, failure.no_svm=deny
    Set {
        /// Whose.
        #[command(flatten)]
        of: Of,
        /// SETTING=VALUE: JSON, a word, or a list with commas
        #[arg(required = true, value_name = "SETTING=VALUE")]
        settings: Vec<String>,
        /// Why, on one line
        #[arg(long, value_name = "TEXT", default_value = "")]
        note: String,
    },
    /// Inherit something from now on
    Unset {
        /// Whose.
        #[command(flatten)]
        of: Of,
        /// Which settings
        #[arg(required = true, value_name = "SETTING")]
        settings: Vec<String>,
        /// Why, on one line
        #[arg(long, value_name = "TEXT", default_value = "")]
        note: String,
    },
    /// List its revisions, newest first
    History {
        /// Whose.
        #[command(flatten)]
        of: Of,
    },
    /// Show what differs between two revisions: the latest two, if none is said
    Diff {
        /// Whose.
        #[command(flatten)]
        of: Of,
        /// The earlier one; 0 sets nothing
        from: Option<u64>,
        /// The later one
        to: Option<u64>,
    },
    /// Set what an earlier revision set, as a new one
    Revert {
        /// Whose.
        #[command(flatten)]
        of: Of,
        /// Which revision; 0 sets nothing
        revision: u64,
        /// Why, on one line
        #[arg(long, value_name = "TEXT", default_value = "")]
        note: String,
    },
    /// Show what an agent's settings come to, where each is from, and whether it has them
    ///
    /// Exits with 1 when the agent does not have them, or not all.
    Effective {
        /// Its name or id
        agent: String,
    },
    /// List what may be set
    Settings,
}

/// Does it.
///
/// # Errors
/// What is in the way, and what helps.
pub fn run(client: &Client, what: &Policies, output: Output) -> anyhow::Result<Printed> {
    let text = match what {
        Policies::Show { of } => show(client, of, output),
        Policies::Set { of, settings, note } => {
            let change = PolicyChange {
                set: assigned(settings)?,
                unset: Vec::new(),
                note: note.clone(),
            };
            apply(client, of, &change, output)
        }
        Policies::Unset { of, settings, note } => {
            let change = PolicyChange {
                set: Settings::new(),
                unset: settings.clone(),
                note: note.clone(),
            };
            apply(client, of, &change, output)
        }
        Policies::History { of } => history(client, of, output),
        Policies::Diff { of, from, to } => diff(client, of, (*from, *to), output),
        Policies::Revert { of, revision, note } => {
            let subject = of.subject(client)?;
            let path = format!("policies/{subject}");
            let now: Policy = client.get(&path)?;
            let wanted = Revert {
                revision: *revision,
                note: note.clone(),
            };
            let path = format!("{path}/revert");
            let after: Policy = client.changed("POST", &path, now.revision, &wanted)?;
            print(&after, output)
        }
        Policies::Effective { agent } => return effective(client, agent, output),
        Policies::Settings => known(client, output),
    };
    text.map(Printed::from)
}

impl Of {
    /// The subject's word in the API.
    fn subject(&self, client: &Client) -> Result {
        Ok(match (&self.tenant, &self.group, &self.vm) {
            (tenant, Some(group), _) => {
                let group = groups::named(client, tenant.as_ref(), group)?;
                format!("group:{}", group.id)
            }
            (Some(tenant), ..) => format!("tenant:{tenant}"),
            (.., Some(vm)) => format!("vm:{}", named(client, vm)?.0),
            _ => "site".to_owned(),
        })
    }
}

/// `SETTING=VALUE`, as often as it is there.
fn assigned(all: &[String]) -> anyhow::Result<Settings> {
    let mut settings = Settings::new();
    for one in all {
        let (key, text) = one
            .split_once('=')
            .with_context(|| format!("{} is not like on_access.mode=block", safe(one)))?;
        if settings.insert(key.to_owned(), value(key, text)).is_some() {
            bail!("{} is set twice; say one of both", safe(key));
        }
    }
    Ok(settings)
}

/// What somebody typed for a setting: JSON where it is, a list where one is wanted.
fn value(key: &str, text: &str) -> Value {
    let kind = settings::find(key).map(|known| known.kind);
    match (kind, serde_json::from_str(text)) {
        // A word of digits is no number, and one like `off` no JSON.
        (Some(Kind::Word(_)), Ok(Value::String(word))) => word.into(),
        (Some(Kind::Word(_)), _) => text.into(),
        (_, Ok(value)) => value,
        (Some(Kind::Paths | Kind::Words(_)), Err(_)) => {
            let parts = text.split(',').filter(|part| !part.is_empty());
            parts.map(Value::from).collect()
        }
        (_, Err(_)) => text.into(),
    }
}

fn show(client: &Client, of: &Of, output: Output) -> Result {
    let subject = of.subject(client)?;
    print(&client.get(&format!("policies/{subject}"))?, output)
}

fn apply(client: &Client, of: &Of, change: &PolicyChange, output: Output) -> Result {
    let subject = of.subject(client)?;
    let path = format!("policies/{subject}");
    let now: Policy = client.get(&path)?;
    let after: Policy = client.changed("PATCH", &path, now.revision, change)?;
    print(&after, output)
}

fn print(policy: &Policy, output: Output) -> Result {
    if output == Output::Json {
        return json(policy);
    }
    let mut table = Table::new(["SETTING", "VALUE"]);
    for (setting, value) in &policy.settings {
        table.row([setting.clone(), value.to_string()]);
    }
    let head = match (&policy.made, &policy.by) {
        (Some(made), by) => format!(
            "{}, revision {}, made {made} by {}{}\n",
            safe(&policy.subject),
            policy.revision,
            safe(by.as_deref().unwrap_or("-")),
            noted(policy.note.as_deref())
        ),
        _ => format!("{}: nobody has set anything yet\n", safe(&policy.subject)),
    };
    Ok(head + &table.print("it sets nothing: all is inherited"))
}

fn noted(note: Option<&str>) -> String {
    note.map_or_else(String::new, |note| format!(": {}", safe(note)))
}

fn history(client: &Client, of: &Of, output: Output) -> Result {
    let subject = of.subject(client)?;
    let path = format!("policies/{subject}/revisions");
    let revisions: Vec<Policy> = client.list(&path, None, usize::MAX)?;
    if output == Output::Json {
        return json(&revisions);
    }
    let mut table = Table::new(["REVISION", "SETS", "BY", "NOTE", "MADE"]);
    for policy in revisions {
        table.row([
            policy.revision.to_string(),
            policy.settings.len().to_string(),
            policy.by.unwrap_or_default(),
            policy.note.unwrap_or_default(),
            policy.made.unwrap_or_default(),
        ]);
    }
    Ok(table.print("nobody has set anything yet"))
}

fn diff(
    client: &Client,
    of: &Of,
    (from, to): (Option<u64>, Option<u64>),
    output: Output,
) -> Result {
    let subject = of.subject(client)?;
    let query: Vec<String> = [("from", from), ("to", to)]
        .into_iter()
        .filter_map(|(name, number)| Some(format!("{name}={}", number?)))
        .collect();
    let path = format!("policies/{subject}/diff?{}", query.join("&"));
    let found: Differences = client.get(&path)?;
    if output == Output::Json {
        return json(&found);
    }
    let mut table = Table::new(["SETTING", "FROM", "TO"]);
    let shown = |value: Option<Value>| {
        value.map_or_else(|| "(inherited)".to_owned(), |value| value.to_string())
    };
    for difference in found.differences {
        table.row([
            difference.setting,
            shown(difference.from),
            shown(difference.to),
        ]);
    }
    let head = format!("from revision {} to {}\n", found.from, found.to);
    Ok(head + &table.print("nothing differs"))
}

fn effective(client: &Client, agent: &str, output: Output) -> anyhow::Result<Printed> {
    let (id, _) = named(client, agent)?;
    let policy: AgentPolicy = client.get(&format!("agents/{id}/policy"))?;
    let code = match policy.state.as_str() {
        "applied" => exit::FINE,
        _ => exit::FOUND,
    };
    let out = match output {
        Output::Json => json(&policy)?,
        Output::Text => for_people(&policy),
    };
    Ok(Printed {
        out,
        note: String::new(),
        code,
    })
}

fn for_people(policy: &AgentPolicy) -> String {
    let mut out = format!("{}: {}", safe(&policy.name), safe(&policy.state));
    if let Some(problem) = &policy.problem {
        out.push_str(&format!(": {}", safe(problem)));
    }
    out.push_str(&format!("\ndesired    {}\n", safe(&policy.desired)));
    let confirmed = policy.confirmed.as_deref().unwrap_or("-");
    out.push_str(&format!("confirmed  {}", safe(confirmed)));
    if let Some(reported) = &policy.reported {
        out.push_str(&format!(", said {}", safe(reported)));
    }
    out.push('\n');
    for part in &policy.parts {
        let (origin, revision) = (safe(&part.origin), part.revision);
        out.push_str(&format!("made of    {origin}, revision {revision}\n"));
    }
    for not in &policy.not_applied {
        let (setting, why) = (safe(&not.setting), safe(&not.why));
        out.push_str(&format!("not applied: {setting}: {why}\n"));
    }
    let mut table = Table::new(["SETTING", "VALUE", "FROM"]);
    for setting in &policy.settings {
        table.row([
            setting.setting.clone(),
            setting.value.to_string(),
            setting.origin.clone(),
        ]);
    }
    out + &table.print("no policy sets anything: all is as the guest's own agent.toml has it")
}

fn known(client: &Client, output: Output) -> Result {
    let known: Vec<KnownSetting> = client.list("policy-settings", None, usize::MAX)?;
    if output == Output::Json {
        return json(&known);
    }
    let mut table = Table::new(["SETTING", "TAKES"]);
    for setting in known {
        table.row([setting.setting, setting.takes]);
    }
    Ok(table.print("nothing may be set"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_typed_is_taken_as_it_is_meant() {
        for (key, text, meant) in [
            ("on_access.mode", "block", json!("block")),
            ("on_access.mode", "\"block\"", json!("block")),
            ("on_access.enabled", "true", json!(true)),
            ("on_access.deadline_ms", "500", json!(500)),
            ("exclude", "/a,/b", json!(["/a", "/b"])),
            ("exclude", "/a", json!(["/a"])),
            ("exclude", "", json!([])),
            ("exclude", "[\"/a,b\"]", json!(["/a,b"])),
            (
                "on_access.exclude_types",
                "xfs,tmpfs",
                json!(["xfs", "tmpfs"]),
            ),
            ("failure.no_svm", "deny", json!("deny")),
            (
                "failure.no_svm",
                "{\"exec\":\"deny\"}",
                json!({"exec": "deny"}),
            ),
            ("nonsense", "x", json!("x")),
        ] {
            assert_eq!(value(key, text), meant, "{key}={text}");
        }
        assert!(assigned(&["on_access.mode".to_owned()]).is_err());
        let twice = ["a=1".to_owned(), "a=2".to_owned()];
        assert!(assigned(&twice).unwrap_err().to_string().contains("twice"));
    }
}
