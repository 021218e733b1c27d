//! `definitions`: see and choose the definitions in force.
//!
//! A running daemon does it, asked by its local socket; where none runs, the command
//! takes the daemon's lock and does the same steps itself.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use palisade_daemon::cli::{Common, Format, Output};
use palisade_protocol::bounded::{PathBytes, Text};
use palisade_protocol::definitions::{
    DefinitionsOrder, DefinitionsStatus, GenerationEntry, Standing,
};
use palisade_svm::brake::Brake;
use palisade_svm::definitions::Keeper;
use palisade_svm::definitions::desk::Order;
use palisade_svm::local::{self, AskError, LocalAnswer, LocalRequest};
use palisade_svm::repository::Follower;
use palisade_svm::settings::{self, COMPONENT};
use palisade_svm::state::{State, StateError};
use serde::Serialize;

use super::{runtime, time};

/// The command's arguments.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    format: Format,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// The generations that are kept
    List,
    /// What is in force, what is being done, and what went wrong
    Status,
    /// Check a directory's definitions and put them in force as a new generation
    Import {
        /// ClamAV databases, YARA rules, or both; definitions.extra is added to it
        directory: PathBuf,
        /// Keep them for a later activate
        #[arg(long)]
        stage_only: bool,
    },
    /// Put a kept generation in force
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
        /// Its name, as `status` shows it
        signature: String,
    },
}

impl Verb {
    fn request(&self) -> anyhow::Result<LocalRequest> {
        Ok(match self {
            Self::List | Self::Status => LocalRequest::Order(DefinitionsOrder::Show),
            Self::Rollback => LocalRequest::Order(DefinitionsOrder::Rollback),
            Self::Refresh => LocalRequest::Order(DefinitionsOrder::Refresh),
            Self::Confirm { signature } => LocalRequest::Order(DefinitionsOrder::Confirm {
                signature: Text::new(signature)?,
            }),
            Self::Activate { generation } => LocalRequest::Order(DefinitionsOrder::Activate {
                generation: *generation,
            }),
            Self::Import {
                directory,
                stage_only,
            } => LocalRequest::Import {
                directory: PathBytes::from_path(&absolute(directory)?),
                stage_only: *stage_only,
            },
        })
    }

    fn order(&self) -> anyhow::Result<Option<Order>> {
        Ok(match self {
            Self::List | Self::Status => None,
            Self::Rollback => Some(Order::Rollback),
            Self::Refresh => Some(Order::Refresh),
            Self::Confirm { signature } => Some(Order::Confirm(Text::new(signature)?)),
            Self::Activate { generation } => Some(Order::Activate(*generation)),
            Self::Import {
                directory,
                stage_only,
            } => Some(Order::Import {
                directory: absolute(directory)?,
                stage_only: *stage_only,
            }),
        })
    }
}

/// The daemon has another working directory.
fn absolute(directory: &Path) -> anyhow::Result<PathBuf> {
    directory
        .canonicalize()
        .with_context(|| format!("{}: no such directory can be read", directory.display()))
}

/// Does it.
///
/// # Errors
/// Why it could not be done; the definitions in force are as before then.
pub fn definitions(common: &Common, arguments: &Arguments) -> anyhow::Result<()> {
    let file = common.settings(COMPONENT);
    let settings = settings::load(&file)?;
    let folders = settings.folders(&common.site())?;
    let request = arguments.verb.request()?;
    let asked = runtime()?.block_on(local::ask::<LocalAnswer>(&folders.run, &request));
    let (running, answer) = match asked {
        Ok(answer) => (true, answer),
        Err(AskError::NotRunning { path }) => {
            as_owner(&folders.state)?;
            let state = match State::open(folders) {
                Err(StateError::InUse { .. }) => bail!(
                    "a palisade-scanserver runs here, and does not listen at {}; its log says why",
                    path.display()
                ),
                other => other?,
            };
            let follower = Follower::open(&settings, state.repository())?;
            let folder = follower.as_ref().map(|follower| follower.folder());
            let mut keeper = Keeper::open(&settings, &file, state.folders(), folder)?;
            let guests = settings.retroactive.brake_guests as usize;
            let brake = Brake::open(&state.brake(), &state.signatures(), guests);
            (false, alone(&mut keeper, &brake, arguments.verb.order()?)?)
        }
        Err(error) => return Err(error.into()),
    };
    if let Some(failure) = &answer.failure {
        bail!("{failure}");
    }
    match arguments.format.output {
        Output::Json => println!("{}", json(&arguments.verb, running, &answer)?),
        Output::Text => print!("{}", text(&arguments.verb, running, &answer)),
    }
    Ok(())
}

/// What another user writes into the state folder, the daemon could not replace.
fn as_owner(state: &Path) -> anyhow::Result<()> {
    let own = nix::unistd::geteuid().as_raw();
    match std::fs::metadata(state).map(|metadata| metadata.uid()) {
        Ok(owner) if owner != own => bail!(
            "no daemon runs, and {} belongs to the user with the id {owner}: run this as that user",
            state.display()
        ),
        _ => Ok(()),
    }
}

/// Without a daemon: the next start finds what was put in force.
fn alone(keeper: &mut Keeper, brake: &Brake, order: Option<Order>) -> anyhow::Result<LocalAnswer> {
    let done = match order {
        Some(order) => order.carry_out(keeper, brake)?.said(),
        None => String::new(),
    };
    Ok(LocalAnswer {
        done: Text::cut(&done),
        failure: None,
        status: DefinitionsStatus {
            braked: brake.braked(),
            ..keeper.status()
        },
    })
}

#[derive(Serialize)]
struct Row<'a> {
    generation: u64,
    state: &'static str,
    engines: Vec<Engine<'a>>,
    origin: &'a str,
    added: String,
    bytes: u64,
}

#[derive(Serialize)]
struct Engine<'a> {
    engine: &'a str,
    generation: u64,
    fingerprint: String,
}

#[derive(Serialize)]
struct Status<'a> {
    running: bool,
    done: &'a str,
    active: Option<u64>,
    source: &'a str,
    problem: Option<&'a str>,
    working: Option<&'a str>,
    last: Option<Last<'a>>,
    braked: Vec<Braked<'a>>,
    generations: Vec<Row<'a>>,
}

#[derive(Serialize)]
struct Braked<'a> {
    engine: &'a str,
    name: &'a str,
    since: String,
}

#[derive(Serialize)]
struct Last<'a> {
    what: &'a str,
    failure: Option<&'a str>,
}

fn row(entry: &GenerationEntry) -> Row<'_> {
    Row {
        generation: entry.generation,
        state: entry.standing.as_str(),
        engines: entry
            .engines
            .iter()
            .map(|used| Engine {
                engine: used.engine.as_str(),
                generation: used.generation.0,
                fingerprint: hex::encode(used.fingerprint),
            })
            .collect(),
        origin: entry.origin.as_str(),
        added: time(entry.added_ms),
        bytes: entry.bytes,
    }
}

fn active(status: &DefinitionsStatus) -> Option<u64> {
    let active = |entry: &&GenerationEntry| entry.standing == Standing::Active;
    let found = status.generations.iter().find(active);
    found.map(|entry| entry.generation)
}

fn json(verb: &Verb, running: bool, answer: &LocalAnswer) -> anyhow::Result<String> {
    let status = &answer.status;
    let rows: Vec<Row<'_>> = status.generations.iter().map(row).collect();
    if matches!(verb, Verb::List) {
        return Ok(serde_json::to_string_pretty(&rows)?);
    }
    Ok(serde_json::to_string_pretty(&Status {
        running,
        done: answer.done.as_str(),
        active: active(status),
        source: status.source.as_str(),
        problem: status.problem.as_deref(),
        working: status.working.as_deref(),
        last: status.last.as_ref().map(|last| Last {
            what: last.what.as_str(),
            failure: last.failure.as_deref(),
        }),
        braked: status
            .braked
            .iter()
            .map(|braked| Braked {
                engine: braked.engine.as_str(),
                name: braked.name.as_str(),
                since: time(braked.since_ms),
            })
            .collect(),
        generations: rows,
    })?)
}

fn text(verb: &Verb, running: bool, answer: &LocalAnswer) -> String {
    let status = &answer.status;
    match verb {
        Verb::List => table(status),
        Verb::Status => {
            let or_none = |text: Option<&str>| text.unwrap_or("-").to_owned();
            let last = status.last.as_ref().map(|last| match &last.failure {
                Some(failure) => format!("{}: failed: {failure}", last.what),
                None => last.what.to_string(),
            });
            let lines = [
                (
                    "daemon",
                    if running { "running" } else { "not running" }.to_owned(),
                ),
                (
                    "in force",
                    or_none(active(status).map(|n| format!("generation {n}")).as_deref()),
                ),
                (
                    "source",
                    or_none(Some(status.source.as_str()).filter(|source| !source.is_empty())),
                ),
                ("problem", or_none(status.problem.as_deref())),
                ("working", or_none(status.working.as_deref())),
                ("last order", or_none(last.as_deref())),
            ];
            let lines = lines.map(|(name, value)| format!("{name:<12}{value}\n"));
            let braked = status.braked.iter().map(|braked| {
                format!(
                    "{:<12}{} ({}), since {}: reported only, until `confirm`\n",
                    "braked",
                    braked.name,
                    braked.engine,
                    time(braked.since_ms)
                )
            });
            lines.concat() + &braked.collect::<String>() + &table(status)
        }
        _ => format!("{}\n", answer.done),
    }
}

fn table(status: &DefinitionsStatus) -> String {
    let mut text = String::new();
    for entry in status.generations.iter() {
        let engines: Vec<String> = entry
            .engines
            .iter()
            .map(|used| format!("{} {}", used.engine, used.generation))
            .collect();
        text += &format!(
            "{:>6}  {:<8}  {}  {:>12} bytes  {}  from {}\n",
            entry.generation,
            entry.standing.as_str(),
            time(entry.added_ms),
            entry.bytes,
            engines.join(", "),
            entry.origin
        );
    }
    if text.is_empty() {
        text += "there is no generation of definitions; set definitions.source, or import a directory\n";
    }
    text
}
