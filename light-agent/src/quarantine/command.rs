//! `palisade-agent quarantine`: looks into the quarantine, and takes files out of it.
//!
//! Works on the store itself, under its lock, as root: a running daemon is not needed,
//! and is not in the way. A re-scan has a session of its own with a Protection Server.

use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use palisade_daemon::cli::{Format, Output, exit};
use palisade_daemon::membership::Membership;
use palisade_protocol::verdict::VerdictKind;
use serde::Serialize;
use uuid::Uuid;

use super::rescan::Rescan;
use super::restore;
use super::show::{Answer, Item, Listed, Unreadable};
use super::vault::{Locked, Vault};
use crate::private::Private;
use crate::scan::command::connect;
use crate::scanner::Scanner;
use crate::settings::{Folders, Settings};

/// Characters of an id that are enough, if only one begins so.
const SHORTEST_ID: usize = 4;

/// The command and its option.
#[derive(Debug, Args)]
pub struct Quarantine {
    #[command(subcommand)]
    what: Command,
    #[command(flatten)]
    format: Format,
}

/// What is done with the quarantine.
#[derive(Debug, Subcommand)]
enum Command {
    /// List the files in quarantine
    List,
    /// Show all that is known of a file in quarantine
    Show {
        /// Its id, or how that begins
        id: String,
    },
    /// Put a file back to its place, with all that it had; nothing is overwritten
    Restore {
        /// Its id, or how that begins
        id: String,
        /// Put it here instead
        #[arg(long, value_name = "PATH")]
        to: Option<PathBuf>,
    },
    /// Remove files from quarantine, for good
    Delete {
        /// Their ids, or how those begin
        #[arg(required = true, value_name = "ID")]
        ids: Vec<String>,
    },
    /// Write a file's bytes, as they are, to a file that root alone may read
    Export {
        /// Its id, or how that begins
        id: String,
        /// The file to write; it must not be there yet
        file: PathBuf,
        /// Says that you know what you write
        #[arg(long)]
        i_know_this_is_malware: bool,
    },
    /// Scan the files in quarantine with the definitions in force now
    Rescan,
}

/// What became of one file.
#[derive(Debug, Serialize)]
struct Done {
    id: Uuid,
    /// `restored`, `deleted` or `exported`.
    done: &'static str,
    /// Where it is now.
    path: Option<String>,
}

/// Runs the command; gives the exit code.
///
/// # Errors
/// What could not be done, and what helps.
pub fn run(settings: &Settings, folders: &Folders, command: Quarantine) -> anyhow::Result<u8> {
    let output = command.format.output;
    let vault = Vault::new(&folders.state, settings.quarantine.limits());
    let locked = || {
        vault.lock().with_context(|| {
            format!(
                "the quarantine in {} cannot be used (are you root?)",
                folders.state.display()
            )
        })
    };
    match command.what {
        Command::List => {
            print(&listed(&locked()?)?, output)?;
        }
        Command::Show { id } => {
            let locked = locked()?;
            let id = find(&locked, &id)?;
            let record = locked.record(id).with_context(|| id.to_string())?;
            print(&Item::from(&record), output)?;
        }
        Command::Restore { id, to } => {
            let locked = locked()?;
            let id = find(&locked, &id)?;
            let to = to.as_deref().map(absolute).transpose()?;
            let path = restore::restore(&locked, id, to.as_deref())
                .with_context(|| format!("{id} stays in quarantine"))?;
            done(id, "restored", Some(&path), output)?;
        }
        Command::Delete { ids } => {
            let locked = locked()?;
            // All are looked for before the first is removed.
            let ids: Vec<Uuid> = ids
                .iter()
                .map(|id| find(&locked, id))
                .collect::<anyhow::Result<_>>()?;
            for id in ids {
                locked.remove(id).with_context(|| id.to_string())?;
                done(id, "deleted", None, output)?;
            }
        }
        Command::Export {
            i_know_this_is_malware: false,
            ..
        } => {
            eprintln!(
                "palisade-agent: what is exported is malware, readable and as it was; \
                 say --i-know-this-is-malware if that is what you want"
            );
            return Ok(exit::USAGE);
        }
        Command::Export { id, file, .. } => {
            let locked = locked()?;
            let id = find(&locked, &id)?;
            let file = absolute(&file)?;
            restore::export(&locked, id, &file)?;
            done(id, "exported", Some(&file), output)?;
        }
        Command::Rescan => {
            // The lock is not held while Protection Servers are asked.
            drop(locked()?);
            return crate::daemon::runtime()?.block_on(rescan(settings, folders, vault, output));
        }
    }
    Ok(exit::FINE)
}

async fn rescan(
    settings: &Settings,
    folders: &Folders,
    vault: Vault,
    output: Output,
) -> anyhow::Result<u8> {
    let Some(membership) = Membership::load(&folders.state)? else {
        bail!("this agent has no identity yet; enrol it first: palisade-agent enrol TOKEN");
    };
    let link = connect(settings, folders, &membership);
    let scanner =
        Scanner::new(link, 1, settings.scan.options()).keeping(Private::new(&settings.private));
    let restore_clean = settings.quarantine.restore_clean;
    let rescan = Rescan::new(vault, &scanner, &settings.private, restore_clean);
    let said = rescan.all().await?;
    let answers: Vec<Answer> = said.iter().map(Answer::from).collect();
    match output {
        Output::Json => println!("{}", serde_json::to_string(&answers)?),
        Output::Text => {
            for answer in &answers {
                println!("{answer}");
            }
            println!("{} files were scanned again", answers.len());
        }
    }
    let unscanned = said
        .iter()
        .any(|said| said.verdict.kind() == VerdictKind::NotScanned);
    Ok(match unscanned {
        true => exit::NOT_SCANNED,
        false => exit::FINE,
    })
}

fn listed(locked: &Locked) -> anyhow::Result<Listed> {
    let mut records = Vec::new();
    let mut unreadable = Vec::new();
    for id in locked.ids()? {
        match locked.record(id) {
            Ok(record) => records.push(record),
            Err(error) => unreadable.push(Unreadable {
                id,
                error: error.to_string(),
            }),
        }
    }
    records.sort_by_key(|record| record.found.time_ms);
    Ok(Listed {
        usage: locked.usage()?,
        items: records.iter().map(Item::from).collect(),
        unreadable,
    })
}

/// The one file whose id begins so.
fn find(locked: &Locked, text: &str) -> anyhow::Result<Uuid> {
    if text.len() < SHORTEST_ID {
        bail!("{text:?} is no id: at least {SHORTEST_ID} characters of it are needed");
    }
    let mut ids = locked.ids()?;
    ids.retain(|id| id.to_string().starts_with(text));
    match ids[..] {
        [id] => Ok(id),
        [] => bail!(
            "nothing in quarantine has the id {text:?}; `palisade-agent quarantine list` shows what is there"
        ),
        _ => bail!("{} files have ids that begin with {text:?}", ids.len()),
    }
}

fn absolute(path: &Path) -> anyhow::Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("{} is no usable path", path.display()))
}

fn print(shown: &(impl Serialize + std::fmt::Display), output: Output) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match output {
        Output::Json => writeln!(out, "{}", serde_json::to_string(shown)?)?,
        Output::Text => write!(out, "{shown}")?,
    }
    Ok(())
}

fn done(id: Uuid, done: &'static str, path: Option<&Path>, output: Output) -> anyhow::Result<()> {
    let path = path.map(|path| palisade_protocol::bounded::PathBytes::from_path(path).to_string());
    let what = Done { id, done, path };
    let mut out = std::io::stdout().lock();
    match output {
        Output::Json => writeln!(out, "{}", serde_json::to_string(&what)?)?,
        Output::Text => match &what.path {
            Some(path) => writeln!(out, "{id} {done}: {path}")?,
            None => writeln!(out, "{id} {done}")?,
        },
    }
    Ok(())
}
