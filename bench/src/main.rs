//! `palisade-bench`: what `scripts/bench` runs after it has built.

#![forbid(unsafe_code)]

use std::fs;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Parser;
use palisade_bench::bench::Bench;
use palisade_bench::interrupt::Interrupt;
use palisade_bench::machine::{self, Load, Machine};
use palisade_bench::measures::{ALL, Measure};
use palisade_bench::report::Report;
use palisade_bench::scale::Scale;
use palisade_daemon::cli::exit;

/// Measures Palisade and its peers on this machine, both sides in one run.
///
/// Ends with 0 when all was measured, whether or not targets were met, and with 3
/// when something could not be.
#[derive(Debug, Parser)]
#[command(name = "palisade-bench", version)]
struct Cli {
    /// What to measure; everything by default (--list names them)
    #[arg(value_parser = measure)]
    names: Vec<Measure>,
    /// Fewer and smaller: less than five minutes
    #[arg(long)]
    quick: bool,
    /// The least that exercises both sides: its numbers mean nothing
    #[arg(long, conflicts_with = "quick")]
    smoke: bool,
    /// Write the result there as JSON, too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Which state of the sources this is, for the report
    #[arg(long, value_name = "TEXT")]
    revision: Option<String>,
    /// Name the measures, and exit
    #[arg(long)]
    list: bool,
}

fn measure(name: &str) -> Result<Measure, String> {
    Measure::named(name).ok_or_else(|| {
        let names: Vec<&str> = ALL.iter().map(|measure| measure.name).collect();
        format!("no such measure; there are {}", names.join(", "))
    })
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if cli.list {
        for measure in ALL {
            println!("{:<14} {}", measure.name, measure.about);
        }
        return ExitCode::from(exit::FINE);
    }
    match run(&cli) {
        Ok(report) if report.is_complete() => ExitCode::from(exit::FINE),
        Ok(_) => ExitCode::from(exit::FAILED),
        Err(error) => {
            eprintln!("palisade-bench: {error:#}");
            ExitCode::from(exit::FAILED)
        }
    }
}

fn run(cli: &Cli) -> Result<Report> {
    let date = jiff::Timestamp::now()
        .strftime("%Y-%m-%d %H:%M UTC")
        .to_string();
    let before = machine::load()?;
    let scale = match (cli.quick, cli.smoke) {
        (true, _) => Scale::QUICK,
        (_, true) => Scale::SMOKE,
        _ => Scale::FULL,
    };
    let interrupt = Interrupt::listen()?;
    eprintln!("signatures, corpus, both sides …");
    let mut bench = Bench::prepare(scale)?;
    let chosen = if cli.names.is_empty() {
        ALL.to_vec()
    } else {
        cli.names.clone()
    };
    let mut measures = Vec::new();
    for measure in chosen {
        eprintln!("{}: {} …", measure.name, measure.about);
        let measured = measure.run(&mut bench);
        interrupt.check()?;
        eprintln!("{measured}");
        measures.push(measured);
    }
    let report = Report {
        command: command(cli),
        date,
        scale: scale.name,
        setup: bench.setup(),
        machine: Machine::here(cli.revision.as_deref(), bench.clamd.version()?)?,
        load: Load {
            before,
            after: machine::load()?,
        },
        measures,
    };
    println!("{report}");
    if let Some(file) = &cli.json {
        let text = serde_json::to_string_pretty(&report)?;
        fs::write(file, text + "\n").with_context(|| file.display().to_string())?;
    }
    Ok(report)
}

/// What to type for the same run.
fn command(cli: &Cli) -> String {
    let names = cli.names.iter().map(|measure| measure.name);
    let scale = [(cli.quick, "--quick"), (cli.smoke, "--smoke")];
    let scale = scale
        .into_iter()
        .filter(|(given, _)| *given)
        .map(|(_, option)| option);
    let words: Vec<&str> = std::iter::once("scripts/bench")
        .chain(names)
        .chain(scale)
        .collect();
    words.join(" ")
}
