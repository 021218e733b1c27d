//! `palisade alert list`: what somebody must look at now.

use palisade_daemon::cli::{Output, exit};

use super::Printed;
use super::client::Client;
use super::resources::json;
use super::table::{Table, safe};
use crate::api::alerts::Alert;

/// The alerts; the exit code says whether there is one.
///
/// # Errors
/// What is in the way, and what helps.
pub fn list(client: &Client, output: Output) -> anyhow::Result<Printed> {
    let alerts: Vec<Alert> = client.list("alerts", None, usize::MAX)?;
    let code = if alerts.is_empty() {
        exit::FINE
    } else {
        exit::FOUND
    };
    let out = match output {
        Output::Json => json(&alerts)?,
        Output::Text => as_text(&alerts),
    };
    Ok(Printed {
        out,
        note: String::new(),
        code,
    })
}

/// A table, and below it what each one means and what to do about it.
fn as_text(alerts: &[Alert]) -> String {
    let mut table = Table::new(["SEVERITY", "KIND", "ABOUT", "DOMAIN", "SINCE", "RAISED"]);
    let mut notes = String::new();
    for alert in alerts {
        let domain = alert.domain_name.clone();
        let about = alert.agent_name.clone().or_else(|| alert.svm_name.clone());
        table.row([
            alert.severity.clone(),
            alert.kind.clone(),
            about.unwrap_or_default(),
            domain.unwrap_or_else(|| alert.domain.map_or_else(String::new, |id| id.to_string())),
            alert.since.clone(),
            alert.raised.clone(),
        ]);
        notes.push_str(&format!(
            "\n{}\n{}\n",
            safe(&alert.text),
            safe(&alert.remedy)
        ));
    }
    table.print("there is no alert") + &notes
}
