//! `palisade svm definitions`: what a Protection Server has, and orders about it.

use std::time::Duration;

use anyhow::bail;
use clap::Subcommand;
use palisade_daemon::cli::Output;
use uuid::Uuid;

use super::client::Client;
use super::table::{Table, safe};
use crate::api::definitions::{self, Action, SvmDefinitions};
use crate::api::svms::Svm;

/// Between two looks whether an order that takes long has ended.
const POLL: Duration = Duration::from_secs(1);
/// So many looks, and it is left to itself: half an hour.
const MAX_POLLS: usize = 1800;

/// What is to be done there.
#[derive(Debug, Subcommand)]
pub enum Order {
    /// Put a generation in force that is kept there
    Activate {
        /// Its number
        generation: u64,
    },
    /// Go back to the generation before, and refuse this one until the source has another
    Rollback,
    /// Look at the source now
    Refresh,
    /// Let a new signature act that is reported only because it hit many guests
    Confirm {
        /// Its name
        signature: String,
    },
}

impl Order {
    fn body(&self) -> definitions::Order {
        let (action, generation, signature) = match self {
            Self::Activate { generation } => (Action::Activate, Some(*generation), None),
            Self::Rollback => (Action::Rollback, None, None),
            Self::Refresh => (Action::Refresh, None, None),
            Self::Confirm { signature } => (Action::Confirm, None, Some(signature.clone())),
        };
        definitions::Order {
            action,
            generation,
            signature,
        }
    }
}

/// Shows a Protection Server's definitions, after the order was carried out.
///
/// # Errors
/// Why it was not; nothing has changed then.
pub fn definitions(
    client: &Client,
    svm: &str,
    order: Option<&Order>,
    output: Output,
) -> anyhow::Result<String> {
    let path = format!("svms/{}/definitions", id_of(client, svm)?);
    let shown: SvmDefinitions = match order {
        None => client.get(&path)?,
        Some(order) => ended(client, &path, client.post(&path, &order.body())?)?,
    };
    match output {
        Output::Json => Ok(serde_json::to_string_pretty(&shown)? + "\n"),
        Output::Text => Ok(text(&shown)),
    }
}

/// A name, if exactly one has it, or an id.
fn id_of(client: &Client, svm: &str) -> anyhow::Result<Uuid> {
    if let Ok(id) = svm.parse() {
        return Ok(id);
    }
    let svms: Vec<Svm> = client.list("svms", None, usize::MAX)?;
    let named: Vec<&Svm> = svms.iter().filter(|known| known.name == svm).collect();
    match named.as_slice() {
        [only] => Ok(only.id),
        [] => bail!("no Protection Server is called {svm}; `palisade svm list` shows them"),
        _ => bail!(
            "{} Protection Servers are called {svm}; give the id that `palisade svm list` shows",
            named.len()
        ),
    }
}

/// Waits while the Protection Server is at work.
fn ended(client: &Client, path: &str, mut shown: SvmDefinitions) -> anyhow::Result<SvmDefinitions> {
    if shown.working.is_none() {
        return Ok(shown);
    }
    for _ in 0..MAX_POLLS {
        std::thread::sleep(POLL);
        shown = client.get(path)?;
        if shown.working.is_none() {
            break;
        }
    }
    match (&shown.working, &shown.last) {
        (Some(working), _) => bail!("it is still at work ({}); ask again later", safe(working)),
        (
            None,
            Some(definitions::LastOrder {
                failure: Some(failure),
                ..
            }),
        ) => {
            bail!("{}", safe(failure))
        }
        _ => Ok(shown),
    }
}

fn text(shown: &SvmDefinitions) -> String {
    let mut table = Table::new(["GENERATION", "STATE", "ADDED", "DEFINITIONS", "ORIGIN"]);
    for generation in &shown.generations {
        let engines: Vec<String> = generation
            .engines
            .iter()
            .map(|used| format!("{} {}", used.engine, used.generation))
            .collect();
        table.row([
            generation.generation.to_string(),
            generation.state.clone(),
            generation.added.clone(),
            engines.join(", "),
            generation.origin.clone(),
        ]);
    }
    let mut text = table.print("it has no definitions");
    if let Some(problem) = &shown.problem {
        text += &format!("the source {}: {}\n", safe(&shown.source), safe(problem));
    }
    for braked in &shown.braked {
        text += &format!(
            "{} ({}) hits many guests since {}: reported only, until `confirm`\n",
            safe(&braked.name),
            safe(&braked.engine),
            braked.since
        );
    }
    if let Some(working) = &shown.working {
        text += &format!("at work: {}\n", safe(working));
    }
    text
}
