//! The command line: what is said, and which part does it.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Parser, Subcommand};
use palisade_daemon::cli::{Common, Format, Output, exit};
use palisade_daemon::logging;

use crate::daemon::{Ended, How};
use crate::doctor::InForce;
use crate::fanotify::overlay;
use crate::generalize::{self, Generalize};
use crate::maintenance::command::{Maintenance, Uninstall};
use crate::pulse::Supervisor;
use crate::scan::what::What;
use crate::settings::{Base, COMPONENT, Folders, Settings};
use crate::status::failures::Shown;
use crate::supervise::Program;
use crate::supervise::breaker::SETTLED;
use crate::tasks::command::TaskCommand;
use crate::{
    bundle, bypass, daemon, doctor, enrol, maintenance, policy, probe, quarantine, scan, selection,
    status, supervise, tasks,
};

/// Palisade Light Agent: protects this guest's files.
#[derive(Debug, Parser)]
#[command(name = "palisade-agent", version)]
pub struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the agent (the default)
    Run {
        /// Signs of life go to the supervisor at standard input
        #[arg(long, hide = true)]
        supervised: bool,
        /// Do not hold opens, for this reason
        #[arg(long, hide = true, value_name = "REASON")]
        fallback: Option<String>,
    },
    /// Run the agent, kill it if it hangs, and start it again: what the service runs
    Supervise {
        /// Only let opens be held again after the agent had failed again and again
        #[arg(long)]
        reset: bool,
        /// After how long an agent counts as one that runs well, in seconds
        #[arg(long, hide = true, default_value_t = SETTLED.as_secs())]
        settled_s: u64,
    },
    /// Join a site with a join token (`-` reads it from standard input)
    Enrol {
        /// What `palisade token create` printed; without it, join_token_file is read
        token: Option<String>,
    },
    /// Scan files and folders now
    Scan {
        #[command(flatten)]
        what: What,
        #[command(flatten)]
        format: Format,
    },
    /// Scans that the running agent does in the background
    Task {
        #[command(subcommand)]
        command: TaskCommand,
        #[command(flatten)]
        format: Format,
    },
    /// Look into the quarantine, and take files out of it
    Quarantine(quarantine::command::Quarantine),
    /// Show what the running agent does
    Status {
        /// Show what opens are answered without a verdict, reason by reason
        #[arg(long)]
        failures: bool,
        #[command(flatten)]
        format: Format,
    },
    /// Show what the site has set for this guest, and where each setting is from
    Policy {
        #[command(flatten)]
        format: Format,
    },
    /// Show why this Protection Server is used, and why not each other one
    Explain {
        /// Only the one of this name or id
        name: Option<String>,
        #[command(flatten)]
        format: Format,
    },
    /// Switch protection off for a time, in an emergency, or show that it is
    Bypass(bypass::command::Command),
    /// Find out what is wrong with this guest's protection, and what helps
    Doctor {
        #[command(flatten)]
        format: Format,
    },
    /// Put all that helps to find a fault into one file, without secrets
    SupportBundle {
        /// Where to; palisade-agent-TIME.tar.gz here, if left out
        #[arg(long, value_name = "FILE")]
        out: Option<PathBuf>,
    },
    /// Make this guest a template: remove identity, keys and state
    Generalize(Generalize),
    /// Show whether stopping and removing the agent needs leave; take it in, or give it back
    Maintenance(Maintenance),
    /// Stop the service until the next boot
    Stop,
    /// Remove the agent's package
    Uninstall(Uninstall),
    /// Check the settings
    CheckConfig,
    #[command(name = probe::COMMAND, hide = true)]
    ProbeOpens,
    #[command(name = overlay::COMMAND, hide = true)]
    ProbeOverlay {
        folder: PathBuf,
        /// Leave the answer in this folder, a run folder
        #[arg(long)]
        leave: bool,
    },
}

impl Cli {
    /// Does what was asked; gives the exit code.
    pub fn run(self) -> ExitCode {
        match self.dispatch() {
            Ok(code) => ExitCode::from(code),
            Err(error) => {
                eprintln!("palisade-agent: {error:#}");
                ExitCode::from(exit::FAILED)
            }
        }
    }

    fn dispatch(self) -> anyhow::Result<u8> {
        if matches!(self.command, Some(Command::ProbeOpens)) {
            probe::serve()?;
            return Ok(exit::FINE);
        }
        if let Some(Command::ProbeOverlay { folder, leave }) = &self.command {
            match leave {
                true => overlay::leave(folder)?,
                false => overlay::serve(folder)?,
            }
            return Ok(exit::FINE);
        }
        let command = self.command.unwrap_or(Command::Run {
            supervised: false,
            fallback: None,
        });
        let quiet = !matches!(
            command,
            Command::Run { .. } | Command::Supervise { reset: false, .. }
        );
        // Who answers openers waits for no log.
        if matches!(command, Command::Supervise { reset: false, .. }) {
            // Before there is another thread, which would take the signals.
            supervise::block_signals()?;
        }
        let _ending = if quiet {
            logging::start(self.common.log_format, "error");
            None
        } else {
            Some(logging::start_unheld(self.common.log_format, "info")?)
        };
        let file = self.common.settings(COMPONENT);
        let base = Base::load(&file);
        let read = match &base {
            Ok(base) => {
                let folders = base.settings.folders(&self.common.site());
                Ok(policy::in_force(base, &folders.state))
            }
            Err(error) => Err(error.to_string()),
        };
        // The settings are what may be wrong.
        let in_force = |read: Result<_, String>| InForce::new(read, &self.common.site());
        let command = match command {
            Command::Doctor { format } => return doctor::run(&in_force(read), format.output),
            Command::SupportBundle { out } => return bundle::run(&in_force(read), &file, out),
            other => other,
        };
        let known = read.is_ok();
        let settings = match (read, &command) {
            (Ok(settings), _) => settings,
            // The agent says what is wrong with them, and is started until it is mended.
            (Err(_), Command::Supervise { .. }) => Settings::default(),
            (Err(error), Command::CheckConfig) => {
                eprintln!("palisade-agent: {error}");
                return Ok(exit::FOUND);
            }
            (Err(error), _) => anyhow::bail!(error),
        };
        let folders = settings.folders(&self.common.site());
        match command {
            Command::Run {
                supervised,
                fallback,
            } => {
                let supervisor = match supervised {
                    true => {
                        supervise::unblock_signals()?;
                        Some(Supervisor::from_stdin()?)
                    }
                    false => None,
                };
                let how = How {
                    supervisor,
                    fallback,
                };
                let supervised = how.supervisor.is_some();
                match daemon::run(base?, &folders, how)? {
                    // Its supervisor starts it.
                    Ended::Anew if !supervised => Err(begin_anew().into()),
                    _ => Ok(exit::FINE),
                }
            }
            Command::Supervise { reset: true, .. } => {
                supervise::reset(&folders)?;
                println!("opens are held again when the service is restarted");
                Ok(exit::FINE)
            }
            Command::Supervise {
                reset: false,
                settled_s,
            } => {
                let program = Program {
                    options: self.common.arguments(),
                    settled_after: Duration::from_secs(settled_s),
                };
                // Of settings that are damaged nothing is known: what is so stays so.
                if known && maintenance::unit::is_service() {
                    let required = settings.maintenance.token_required;
                    if let Err(error) = maintenance::unit::refuse_stop(required) {
                        tracing::error!(%error, "systemd cannot be told whether the service may be stopped by hand");
                    }
                }
                supervise::run(&program, &folders, settings.wants_packages()).map(|()| exit::FINE)
            }
            Command::Enrol { token } => {
                let runtime = daemon::runtime()?;
                let said =
                    runtime.block_on(enrol::command(token.as_deref(), &settings, &folders))?;
                println!("{said}");
                Ok(exit::FINE)
            }
            Command::Scan { what, format } => {
                let runtime = daemon::runtime()?;
                runtime.block_on(scan::command::run(
                    &settings,
                    &folders,
                    &what,
                    format.output,
                ))
            }
            Command::Task { command, format } => {
                tasks::command::run(&command, &folders, format.output)
            }
            Command::Quarantine(command) => quarantine::command::run(&settings, &folders, command),
            Command::Status {
                failures: true,
                format,
            } => show_failures(&settings, &folders, format.output),
            Command::Status { format, .. } => show_status(&folders, format.output),
            Command::Policy { format } => policy::command::run(&folders, format.output),
            Command::Explain { name, format } => {
                selection::command::run(&folders, name.as_deref(), format.output)
            }
            Command::Bypass(command) => bypass::command::run(&folders, command),
            Command::Generalize(command) => generalize::run(&settings, &folders, &command),
            Command::Maintenance(command) => {
                maintenance::command::run(&settings, &folders, &command)
            }
            Command::Stop => maintenance::command::stop(&settings, &folders),
            Command::Uninstall(how) => maintenance::command::uninstall(&settings, &folders, &how),
            Command::CheckConfig => {
                println!("{}: fine", file.display());
                Ok(exit::FINE)
            }
            // Done above.
            Command::Doctor { .. }
            | Command::SupportBundle { .. }
            | Command::ProbeOpens
            | Command::ProbeOverlay { .. } => Ok(exit::FINE),
        }
    }
}

/// Runs this program once more in place of this process; gives why it cannot.
fn begin_anew() -> std::io::Error {
    use std::os::unix::process::CommandExt as _;
    let mut command = std::process::Command::new("/proc/self/exe");
    command.args(std::env::args_os().skip(1)).exec()
}

fn show_status(folders: &Folders, output: Output) -> anyhow::Result<u8> {
    let answer = status::ask_running(&folders.run)?;
    match output {
        Output::Json => println!("{answer}"),
        Output::Text => println!("{}", status::people::ForPeople(&answer)),
    }
    Ok(exit::FINE)
}

fn show_failures(settings: &Settings, folders: &Folders, output: Output) -> anyhow::Result<u8> {
    let shown = match status::ask(&folders.run) {
        Ok(answer) => Shown::in_force(&answer),
        Err(_) => Shown::as_set(&settings.failure_table()),
    };
    match output {
        Output::Json => println!("{}", serde_json::to_string(&shown)?),
        Output::Text => println!("{shown}"),
    }
    Ok(exit::FINE)
}
