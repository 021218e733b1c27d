//! `palisade exposure list`: when guests ran without verdicts.

use palisade_daemon::cli::Output;

use super::client::Client;
use super::resources::{Result, json};
use super::table::Table;
use crate::api::exposures::Exposure;

/// The windows, the latest beginning first.
///
/// # Errors
/// What is in the way, and what helps.
pub fn list(client: &Client, output: Output) -> Result {
    let exposures: Vec<Exposure> = client.list("exposures", None, usize::MAX)?;
    match output {
        Output::Json => json(&exposures),
        Output::Text => Ok(as_text(&exposures)),
    }
}

fn as_text(exposures: &[Exposure]) -> String {
    let mut table = Table::new([
        "AGENT",
        "FROM",
        "UNTIL",
        "CAUSES",
        "LET THROUGH",
        "WAITING",
        "NOT KEPT",
        "MALWARE",
    ]);
    for exposure in exposures {
        let let_through = exposure.opens.saturating_add(exposure.execs);
        let until = exposure.until.clone();
        table.row([
            exposure.agent_name.clone(),
            exposure.from.clone(),
            until.unwrap_or_else(|| "(it lasts)".to_owned()),
            exposure.causes.join(","),
            let_through.to_string(),
            exposure.waiting.to_string(),
            exposure.not_kept.to_string(),
            exposure.malware.to_string(),
        ]);
    }
    table.print("no agent reports a time without verdicts")
}
