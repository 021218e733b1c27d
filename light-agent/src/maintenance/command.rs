//! `palisade-agent maintenance`, `stop` and `uninstall`.

use std::io::Read as _;
use std::path::Path;
use std::process::{Command as Process, Stdio};

use anyhow::{Context as _, bail};
use clap::{Args, Subcommand};
use palisade_daemon::cli::{Format, Output, exit};
use palisade_daemon::membership::Membership;
use palisade_protocol::maintenance::{Allowed, MAX_TEXT_BYTES};
use serde_json::json;

use super::{TokenFile, permit, unit};
use crate::settings::{Folders, Settings};
use crate::spool::now_ms;

/// What is asked for.
#[derive(Debug, Args)]
pub struct Maintenance {
    #[command(subcommand)]
    command: Option<What>,
    #[command(flatten)]
    format: Format,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Take a maintenance token in (`-` reads it from standard input)
    Begin {
        /// What `palisade agent maintenance` printed
        token: String,
    },
    /// Give the leave back
    End,
    /// Say whether the agent may be stopped, or removed, now: the exit code is 0, or 3
    Check {
        /// Removed, too
        #[arg(long)]
        remove: bool,
    },
}

/// `palisade-agent uninstall`'s options.
#[derive(Debug, Args)]
pub struct Uninstall {
    /// Remove settings, identity and quarantine, too
    #[arg(long)]
    purge: bool,
    /// Do it; without this it is only said what would be done
    #[arg(long)]
    yes: bool,
}

/// Does it; gives the exit code.
///
/// # Errors
/// Why it is not allowed, or could not be done.
pub fn run(settings: &Settings, folders: &Folders, command: &Maintenance) -> anyhow::Result<u8> {
    let file = TokenFile::new(&folders.state);
    match &command.command {
        Some(What::Begin { token }) => {
            let Some(membership) = Membership::load(&folders.state)? else {
                bail!("this agent has no identity yet: it needs no leave");
            };
            let grant = file.begin(&text(token)?, &membership.identity, now_ms())?;
            tracing::warn!(grant = %grant.id, reason = %grant.reason, "maintenance begins");
            show(settings, folders, command.format.output)
        }
        Some(What::End) => {
            let folder = || format!("the state folder {}", folders.state.display());
            file.end().with_context(folder)?;
            show(settings, folders, command.format.output)
        }
        Some(What::Check { remove }) => {
            let wanted = match remove {
                true => Allowed::Remove,
                false => Allowed::Stop,
            };
            permit(&settings.maintenance, folders, wanted, now_ms())?;
            Ok(exit::FINE)
        }
        None => show(settings, folders, command.format.output),
    }
}

fn text(token: &str) -> anyhow::Result<String> {
    if token != "-" {
        return Ok(token.to_owned());
    }
    let mut text = String::new();
    std::io::stdin()
        .take(MAX_TEXT_BYTES as u64 + 2)
        .read_to_string(&mut text)
        .context("standard input")?;
    Ok(text)
}

fn show(settings: &Settings, folders: &Folders, output: Output) -> anyhow::Result<u8> {
    let required = settings.maintenance.token_required;
    let file = TokenFile::new(&folders.state);
    let grant = Membership::load(&folders.state)?
        .and_then(|membership| file.grant(&membership.identity, now_ms()));
    if output == Output::Json {
        let allowed = match &grant {
            Some(Ok(grant)) => json!({
                "id": grant.id, "allowed": grant.allowed.as_str(),
                "until_ms": grant.until_ms, "reason": grant.reason.as_str(),
            }),
            _ => json!(null),
        };
        println!(
            "{}",
            json!({ "token_required": required, "grant": allowed })
        );
        return Ok(exit::FINE);
    }
    let needs = match required {
        true => "stopping and removing this agent needs a maintenance token",
        false => {
            "stopping and removing this agent needs no maintenance token (maintenance.token_required)"
        }
    };
    println!("{needs}");
    match grant {
        None => {}
        Some(Err(error)) => {
            println!(
                "there is one that does not count: {:#}",
                anyhow::Error::from(error)
            );
        }
        Some(Ok(grant)) => {
            let until = i64::try_from(grant.until_ms).unwrap_or(i64::MAX);
            let until = jiff::Timestamp::from_millisecond(until)
                .map_or_else(|_| grant.until_ms.to_string(), |until| until.to_string());
            println!(
                "{} allows to {} it until {until}: {}",
                grant.id,
                grant.allowed.as_str(),
                grant.reason.escape_debug()
            );
        }
    }
    Ok(exit::FINE)
}

/// `palisade-agent stop`.
///
/// # Errors
/// Why it is not allowed, or could not be done.
pub fn stop(settings: &Settings, folders: &Folders) -> anyhow::Result<u8> {
    permit(&settings.maintenance, folders, Allowed::Stop, now_ms())?;
    if !unit::has_systemd() {
        bail!("systemd does not run this system: end the agent as you started it");
    }
    unit::refuse_stop(false).context("systemd cannot be told that the service may be stopped")?;
    unit::systemctl(&["stop", unit::UNIT])?;
    println!(
        "{} is stopped: it starts at the next boot, or by `systemctl start palisade-agent`",
        unit::UNIT
    );
    Ok(exit::FINE)
}

/// How a package is removed.
struct Remover {
    program: &'static str,
    remove: &'static [&'static str],
    purge: &'static [&'static str],
}

const DPKG: Remover = Remover {
    program: "dpkg",
    remove: &["--remove", "palisade-agent"],
    purge: &["--purge", "palisade-agent"],
};
const RPM: Remover = Remover {
    program: "rpm",
    remove: &["--erase", "palisade-agent"],
    purge: &["--erase", "palisade-agent"],
};

/// `palisade-agent uninstall`.
///
/// # Errors
/// Why it is not allowed, or could not be done.
pub fn uninstall(settings: &Settings, folders: &Folders, how: &Uninstall) -> anyhow::Result<u8> {
    permit(&settings.maintenance, folders, Allowed::Remove, now_ms())?;
    let installed = |program: &str, arguments: &[&str]| {
        let mut asked = Process::new(program);
        asked.args(arguments).stdin(Stdio::null());
        asked.stdout(Stdio::null()).stderr(Stdio::null());
        asked.status().is_ok_and(|status| status.success())
    };
    let remover = if Path::new("/var/lib/dpkg/info/palisade-agent.list").exists() {
        DPKG
    } else if installed("rpm", &["--query", "palisade-agent"]) {
        RPM
    } else {
        bail!(
            "no package of dpkg or rpm brought this program: stop it, and remove it, {} and its \
             settings by hand",
            folders.state.display()
        );
    };
    let arguments = match how.purge {
        true => remover.purge,
        false => remover.remove,
    };
    let command = format!("{} {}", remover.program, arguments.join(" "));
    let state = folders.state.display();
    // dpkg purges what its package made; rpm keeps it.
    let by_hand = how.purge && remover.program == RPM.program;
    if !how.yes {
        println!("would run: {command}");
        if by_hand {
            println!("would remove: {state}");
        }
        println!("nothing was done: --yes does it");
        return Ok(exit::USAGE);
    }
    let done = Process::new(remover.program).args(arguments).status();
    let done = done.with_context(|| format!("`{command}` cannot be run"))?;
    if !done.success() {
        bail!("`{command}` ended with {done}");
    }
    if by_hand && let Err(error) = std::fs::remove_dir_all(&folders.state) {
        bail!("the package is removed, and {state} is not: {error}");
    }
    println!("the agent is removed; at the Integration Server, `palisade agent revoke` forgets it");
    Ok(exit::FINE)
}
