//! `palisade-agent task`: orders the running agent's scan tasks.

use anyhow::bail;
use clap::Subcommand;
use palisade_daemon::cli::{Output, exit};
use palisade_protocol::bounded::PathBytes;

use super::socket::{self, Answer, Request};
use crate::scan::hands::Priority;
use crate::scan::what::What;
use crate::settings::Folders;

/// What is ordered.
#[derive(Debug, Clone, Subcommand)]
pub enum TaskCommand {
    /// Start a scan in the background
    Start {
        /// What is scanned
        #[command(flatten)]
        what: What,
        /// How much it gives way to others; tasks.priority by default
        #[arg(long, value_enum)]
        priority: Option<Priority>,
    },
    /// List the tasks
    List,
    /// Show a task: how far it is, at which rate, the time left, what it found
    Show {
        /// Its number
        id: u64,
    },
    /// Stop a task; it keeps its place
    Pause {
        /// Its number
        id: u64,
    },
    /// Go on with a task that was paused, or failed
    Resume {
        /// Its number
        id: u64,
    },
    /// End a task
    Cancel {
        /// Its number
        id: u64,
    },
}

/// Runs the command; gives the exit code.
///
/// # Errors
/// When no agent runs, or it refuses.
pub fn run(command: &TaskCommand, folders: &Folders, output: Output) -> anyhow::Result<u8> {
    let request = match *command {
        TaskCommand::Start { ref what, priority } => Request::Start {
            kind: what.kind(),
            paths: what
                .paths()?
                .iter()
                .map(|path| path.as_path().into())
                .collect(),
            priority,
        },
        TaskCommand::List => Request::List,
        TaskCommand::Show { id } => Request::Show { id },
        TaskCommand::Pause { id } => Request::Pause { id },
        TaskCommand::Resume { id } => Request::Resume { id },
        TaskCommand::Cancel { id } => Request::Cancel { id },
    };
    let answer = match socket::ask(&folders.run, &request) {
        Ok(answer) => answer,
        Err(error) => bail!(
            "the agent is not running: {} does not answer ({error}); start it with \
             `palisade-agent run` or `systemctl start palisade-agent`, and order tasks as root",
            socket::socket(&folders.run).display()
        ),
    };
    match (answer, output) {
        (Answer::Refused(reason), _) => {
            bail!("{}", PathBytes::from_path(std::path::Path::new(&reason)))
        }
        (Answer::Task(task), Output::Json) => println!("{}", serde_json::to_string(&task)?),
        (Answer::Task(task), Output::Text) => println!("{task}"),
        (Answer::Tasks(tasks), Output::Json) => println!("{}", serde_json::to_string(&tasks)?),
        (Answer::Tasks(tasks), Output::Text) if tasks.is_empty() => println!("no tasks"),
        (Answer::Tasks(tasks), Output::Text) => {
            for task in tasks {
                println!("{task}");
            }
        }
    }
    Ok(exit::FINE)
}
