//! `palisade-agent bypass`: switches protection, says what is switched, ends it.

use std::time::Duration;

use anyhow::{Context as _, ensure};
use clap::Args;
use jiff::SignedDuration;
use palisade_daemon::cli::{Format, Output, exit};
use serde_json::json;

use super::{Bypass, BypassFile, LONGEST, MAX_REASON_BYTES, To};
use crate::scan::progress::spoken;
use crate::settings::Folders;
use crate::status;
use crate::supervise::record::now;

/// What is asked for.
#[derive(Debug, Args)]
pub struct Command {
    /// Why: everybody who looks at the guest's status sees it. Without it, what is
    /// switched is shown
    #[arg(long, conflicts_with = "end")]
    reason: Option<String>,
    /// To `off`, or to `monitor`, which sees opens and holds none
    #[arg(long, value_name = "MODE", default_value = "off", requires = "reason")]
    to: To,
    /// For how long, 7 days at most: `30m`, `2h`
    #[arg(
        long = "for",
        value_name = "TIME",
        default_value = "1h",
        requires = "reason"
    )]
    lasts: SignedDuration,
    /// Protect again, now
    #[arg(long)]
    end: bool,
    #[command(flatten)]
    format: Format,
}

/// Does it; gives the exit code, which says whether protection is switched.
///
/// # Errors
/// When the state folder cannot be written, or what is asked for makes no sense.
pub fn run(folders: &Folders, command: Command) -> anyhow::Result<u8> {
    let file = BypassFile::new(&folders.state);
    let folder = || {
        format!(
            "the state folder {}; run it as root",
            folders.state.display()
        )
    };
    if let Some(reason) = command.reason {
        let bypass = asked(command.to, command.lasts, reason)?;
        file.save(&bypass).with_context(folder)?;
    } else if command.end {
        file.remove().with_context(folder)?;
    }
    // A running agent looks when somebody asks for its status.
    let runs = status::ask(&folders.run).is_ok();
    let switched = file.switched();
    match command.format.output {
        Output::Json => {
            let left = switched.as_ref().and_then(|switched| switched.left);
            println!(
                "{}",
                json!({
                    "to": switched.as_ref().map(|switched| switched.to),
                    "reason": switched.as_ref().map(|switched| &switched.reason),
                    "left_s": left.map(|left| left.as_secs()),
                    "agent_runs": runs,
                })
            );
        }
        Output::Text => match &switched {
            None => println!("protection is as the settings say"),
            Some(switched) => {
                let to = match switched.to {
                    To::Off => "off",
                    To::Monitor => "monitoring only",
                };
                let left = switched.left.map_or_else(
                    || "until the next boot without it".to_owned(),
                    |left| format!("{} left", spoken(left.as_secs())),
                );
                println!("protection is {to}: {} ({left})", switched.reason);
                println!("`palisade-agent bypass --end` ends what was not asked of the kernel");
            }
        },
    }
    if !runs {
        eprintln!("palisade-agent: no agent runs; this counts from its next start on");
    }
    Ok(match switched {
        Some(_) => exit::FOUND,
        None => exit::FINE,
    })
}

fn asked(to: To, lasts: SignedDuration, reason: String) -> anyhow::Result<Bypass> {
    let lasts = Duration::try_from(lasts).unwrap_or_default();
    ensure!(
        lasts >= Duration::from_secs(1) && lasts <= LONGEST,
        "--for takes a time between 1s and 7d"
    );
    let reason = reason.trim().to_owned();
    ensure!(
        !reason.is_empty()
            && reason.len() <= MAX_REASON_BYTES
            && !reason.contains(char::is_control),
        "--reason takes one line of 1 to {MAX_REASON_BYTES} bytes"
    );
    Ok(Bypass {
        to,
        since: now(),
        for_s: lasts.as_secs(),
        reason,
    })
}
