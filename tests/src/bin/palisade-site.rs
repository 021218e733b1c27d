//! `scripts/up` and `scripts/down` after they have built: starts a site in a
//! folder, demonstrates it, leaves it running or stops it.

use std::fs::File;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, Result};
use clap::{Args, Parser, Subcommand};
use palisade_daemon::cli::exit;
use palisade_tests::demonstration;
use palisade_tests::report::Report;
use palisade_tests::site::{Plan, Site};
use serde_json::json;

#[derive(Parser)]
#[command(about = "A Palisade site in one folder, on loopback", version)]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Start the site, demonstrate it, and leave it running
    Up(Up),
    /// Stop exactly what that site started
    Down(Down),
}

#[derive(Args)]
struct Up {
    /// The folder that holds all of the site
    #[arg(long, value_name = "DIR")]
    state: PathBuf,
    /// Stop everything after the demonstration
    #[arg(long)]
    once: bool,
    /// ClamAV databases and YARA rules to use instead of the built-in test set
    #[arg(long, value_name = "DIR")]
    definitions: Option<PathBuf>,
    /// The folder that the agent protects on access
    #[arg(long, value_name = "DIR")]
    protect: Option<PathBuf>,
    /// Tell each step as one JSON object a line
    #[arg(long)]
    json: bool,
}

#[derive(Args)]
struct Down {
    /// The folder that holds all of the site
    #[arg(long, value_name = "DIR")]
    state: PathBuf,
    /// Tell the result as a JSON object
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    let (report, outcome) = match Cli::parse().verb {
        Verb::Up(options) => {
            let report = Report { json: options.json };
            (report, up(&options, report))
        }
        Verb::Down(options) => {
            let report = Report { json: options.json };
            (report, down(&options, report))
        }
    };
    match outcome {
        Ok(()) => ExitCode::from(exit::FINE),
        Err(error) => {
            report.failed(&error);
            ExitCode::from(exit::FAILED)
        }
    }
}

fn up(options: &Up, report: Report) -> Result<()> {
    let plan = Plan {
        definitions: options.definitions.clone(),
        protect: options.protect.clone(),
    };
    let site = Site::open(&options.state, &plan)?;
    let lock = File::create(site.dir().join("run/up.lock"))?;
    lock.try_lock()
        .context("another `scripts/up` works on this folder")?;
    let outcome = start(&site, report).and_then(|()| demonstration::run(&site, report));
    if options.once {
        let stopped = site.stop();
        outcome?;
        let facts = json!({ "stopped": stopped? });
        report.step(
            "done",
            "The demonstration is over, and everything is stopped.",
            &facts,
        );
        return Ok(());
    }
    outcome?;
    running(&site, report)
}

fn start(site: &Site, report: Report) -> Result<()> {
    for part in palisade_tests::site::PARTS {
        let process = site.start_part(part)?;
        report.step(
            "started",
            &format!(
                "The {part} serves (pid {}, log {}).",
                process.pid,
                site.log(part).display()
            ),
            &json!({ "part": part, "pid": process.pid, "log": site.log(part) }),
        );
    }
    Ok(())
}

fn running(site: &Site, report: Report) -> Result<()> {
    let (url, token) = (site.url()?, site.token_file());
    let next = demonstration::next_commands(site);
    report.step(
        "running",
        &format!(
            "\nThe site runs.\n  URL    {url}\n  token  {}\n\nNext:\n  {}",
            token.display(),
            next.join("\n  ")
        ),
        &json!({ "url": url, "token_file": token, "protected": site.protected()?, "next": next }),
    );
    Ok(())
}

fn down(options: &Down, report: Report) -> Result<()> {
    let site = Site::existing(&options.state)?;
    let stopped = site.stop()?;
    let sentence = if stopped.is_empty() {
        "Nothing of this site was running.".to_owned()
    } else {
        format!("Stopped: {}.", stopped.join(", "))
    };
    report.step("stopped", &sentence, &json!({ "stopped": stopped }));
    Ok(())
}
