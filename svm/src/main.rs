//! `palisade-scanserver`: the Protection Server daemon, and its commands.
//!
//! | module | command |
//! | --- | --- |
//! | [`commands::run`] | `run` |
//! | [`commands::setup`] | `check-config`, `enrol` |
//! | [`commands::status`] | `status` |
//! | [`commands::definitions`] | `definitions …` |

#![forbid(unsafe_code)]

mod commands;

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use palisade_daemon::cli::{Common, exit};
use palisade_daemon::logging;

/// Palisade's Protection Server: scans what the Light Agents of this hypervisor's
/// guests ask about.
#[derive(Debug, Parser)]
#[command(name = "palisade-scanserver", version)]
struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve until SIGTERM (the default); SIGHUP looks for new definitions
    Run,
    /// Read the settings, say what is wrong with them, and exit
    CheckConfig,
    /// Join a site with a join token, and exit
    Enrol {
        /// What `palisade token create --component svm` printed; - reads it from standard
        /// input; without it, join_token_file is read
        token: Option<String>,
    },
    /// What the running daemon does
    Status(commands::status::Arguments),
    /// See and choose the definitions in force
    Definitions(commands::definitions::Arguments),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    logging::start(cli.common.log_format, "info");
    let done = match cli.command.unwrap_or(Command::Run) {
        Command::Run => commands::run::run(&cli.common),
        Command::CheckConfig => commands::setup::check_config(&cli.common),
        Command::Enrol { token } => commands::setup::enrol(&cli.common, token.as_deref()),
        Command::Status(arguments) => commands::status::status(&cli.common, &arguments),
        Command::Definitions(arguments) => {
            commands::definitions::definitions(&cli.common, &arguments)
        }
    };
    match done {
        Ok(()) => ExitCode::from(exit::FINE),
        Err(error) => {
            eprintln!("palisade-scanserver: {error:#}");
            ExitCode::from(exit::FAILED)
        }
    }
}
