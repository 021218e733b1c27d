//! `status`: what the running daemon does, on one screen.

use clap::Args;
use palisade_daemon::cli::{Common, Format, Output};
use palisade_protocol::problem::{Problem, ProblemKind, Problems};
use palisade_svm::local::{self, LocalRequest};
use palisade_svm::settings::{self, COMPONENT};
use palisade_svm::status::Status;

use super::{runtime, time};

/// The command's arguments.
#[derive(Debug, Args)]
pub struct Arguments {
    #[command(flatten)]
    format: Format,
}

/// Asks the daemon and prints what it says.
///
/// # Errors
/// When none runs, or it cannot be asked.
pub fn status(common: &Common, arguments: &Arguments) -> anyhow::Result<()> {
    let settings = settings::load(&common.settings(COMPONENT))?;
    let folders = settings.folders(&common.site())?;
    let asked = local::ask::<Status>(&folders.run, &LocalRequest::Status);
    let status = runtime()?.block_on(asked)?;
    match arguments.format.output {
        Output::Json => println!("{}", serde_json::to_string_pretty(&status)?),
        Output::Text => print!("{}", text(&status)),
    }
    Ok(())
}

fn text(status: &Status) -> String {
    let (now, counts) = (&status.now, &status.since_start);
    let engines = status.generations.iter();
    let engines: Vec<String> = engines
        .map(|used| format!("{} {}", used.engine, used.generation))
        .collect();
    let hits = counts.cached + counts.cached_older;
    let asked = hits + counts.coalesced + counts.scanned;
    let share = (hits + counts.coalesced) * 100 / asked.max(1);
    let metrics = status.metrics.map(|address| address.to_string());
    let lines = [
        ("daemon", format!("{} {}", status.id, status.version)),
        ("running", format!("since {}", time(status.started_ms))),
        ("listens at", status.address.to_string()),
        ("metrics at", metrics.unwrap_or_else(|| "-".to_owned())),
        ("definitions", engines.join(", ")),
        (
            "load",
            format!(
                "{} %, {} of {} lanes busy, {} + {} waiting (on access + on demand)",
                status.load_permille / 10,
                now.busy,
                status.lanes,
                now.waiting_on_access,
                now.waiting_on_demand
            ),
        ),
        (
            "long scans",
            format!(
                "{} aside, {} waiting; {} moved aside and {} stopped since the start, for others",
                now.aside, now.waiting_long, counts.moved_aside, counts.stopped
            ),
        ),
        (
            "agents",
            format!("{} connected, {} requests open", now.agents, now.requests),
        ),
        (
            "verdicts",
            format!(
                "{} scanned, {} coalesced, {} known, {} known by earlier definitions: {share} % without a scan",
                counts.scanned, counts.coalesced, counts.cached, counts.cached_older
            ),
        ),
        (
            "found",
            format!(
                "{} malware, {} suspicious, {} not scanned, {} killed their workers",
                counts.malware, counts.suspicious, counts.not_scanned, now.poisoned
            ),
        ),
        ("turned away", counts.turned_away.to_string()),
        (
            "cache",
            format!(
                "{} verdicts, {} evicted",
                now.cache_entries, now.cache_evicted
            ),
        ),
        (
            "notices",
            format!(
                "{} wait, {} dropped, {} holders forgotten",
                now.notices_waiting, now.notices_dropped, now.holders_forgotten
            ),
        ),
        (
            "content",
            format!(
                "{} bytes received, {} bytes not sent",
                counts.received_bytes, counts.saved_bytes
            ),
        ),
        (
            "memory",
            format!(
                "{} bytes kept for their fragments, {} bytes free",
                now.fragment_bytes, now.free_bytes
            ),
        ),
        (
            "disk",
            format!(
                "{} bytes of fragments, {} read there and not sent, {} unusable",
                now.fragment_disk_bytes, counts.disk_read, counts.disk_lost
            ),
        ),
    ];
    lines
        .map(|(name, value)| format!("{name:<12}{value}\n"))
        .concat()
        + &problems(&status.problems)
}

/// What is wrong, a line each.
fn problems(problems: &Problems) -> String {
    let line = |problem: &Problem| {
        let (since, kind) = (time(problem.since_ms), problem.kind.as_str());
        let what = match &problem.kind {
            ProblemKind::EngineDown { engine } => {
                format!("{engine} cannot scan; the daemon's log says why")
            }
            ProblemKind::DefinitionsUnattended => {
                "nobody looks after definitions: restart the daemon".to_owned()
            }
            ProblemKind::DefinitionsSource { why } | ProblemKind::DefinitionsRepository { why } => {
                why.to_string()
            }
            ProblemKind::DefinitionsOld { added_ms } => format!(
                "the definitions in force are of {}: see whether their source is updated",
                time(*added_ms)
            ),
            ProblemKind::SignatureBraked { engine, signature } => format!(
                "{signature} of {engine} is reported only: `palisade-scanserver definitions \
                 confirm {signature}` lets it act"
            ),
            ProblemKind::ContentsPoisoned { contents } => {
                format!("{contents} contents killed their workers, and are not scanned")
            }
            ProblemKind::CacheUnsafe => {
                "the disk of the state folder does not answer: before a restart, remove `cache` \
                 there"
                    .to_owned()
            }
        };
        format!("{:<12}{kind} since {since}: {what}\n", "wrong")
    };
    problems.iter().map(line).collect()
}
