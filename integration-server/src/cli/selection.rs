//! `palisade agent explain`: why an agent uses its Protection Server.

use palisade_daemon::cli::{Output, exit};

use super::Printed;
use super::client::Client;
use super::maintenance::named;
use super::resources::json;
use super::table::safe;
use crate::api::selection::{Selection, SelectionSvm};

/// What the agent says; the exit code says whether it uses a Protection Server.
///
/// # Errors
/// What is in the way, and what helps.
pub fn explain(client: &Client, agent: &str, output: Output) -> anyhow::Result<Printed> {
    let (id, _) = named(client, agent)?;
    let selection: Selection = client.get(&format!("agents/{id}/selection"))?;
    let used = selection.svms.iter().any(|svm| svm.role == "in-use");
    let out = match output {
        Output::Json => json(&selection)?,
        Output::Text => as_text(&selection),
    };
    Ok(Printed {
        out,
        note: String::new(),
        code: if used { exit::FINE } else { exit::FOUND },
    })
}

/// As `palisade-agent explain` prints it in the guest, and what only the server knows.
fn as_text(selection: &Selection) -> String {
    let mut text = format!(
        "agent {} of tenant {}: candidates from {}\n",
        safe(&selection.agent_name),
        safe(&selection.tenant),
        safe(&selection.source)
    );
    if !selection.place.is_empty() {
        text.push_str(&format!("its guest is at {}\n", safe(&selection.place)));
    }
    if !selection.tags.is_empty() {
        text.push_str(&format!(
            "its tags are {}\n",
            safe(&selection.tags.join(", "))
        ));
    }
    if selection.path != "any" {
        text.push_str(&format!(
            "selection.path = \"{}\" in its settings\n",
            safe(&selection.path)
        ));
    }
    if selection.svms.is_empty() {
        text.push_str("no Protection Server is known; `palisade token create --component svm` lets one join\n");
    }
    for svm in &selection.svms {
        text.push_str(&line(svm));
    }
    if selection.more > 0 {
        text.push_str(&format!("and {} more, which come last\n", selection.more));
    }
    text
}

fn line(svm: &SelectionSvm) -> String {
    let role = match svm.role.as_str() {
        "in-use" => "in use",
        "spare" => "stands by",
        "candidate" => "not used",
        other => other,
    };
    let mut line = format!("{:<10} {}", safe(role), safe(&svm.name));
    if !svm.addresses.is_empty() && svm.addresses != [svm.name.clone()] {
        line.push_str(&format!(" ({})", safe(&svm.addresses.join(", "))));
    }
    line.push_str(&format!(": {}", safe(&svm.why)));
    if let Some(score) = svm.score {
        line.push_str(&format!("; score {score}"));
    }
    if let Some(micros) = svm.round_trip_us {
        line.push_str(&format!(
            "; round trip {}.{:03} ms",
            micros / 1000,
            micros % 1000
        ));
    }
    if let (Some(failure), Some(ago_s)) = (&svm.failure, svm.failed_ago_s) {
        line.push_str(&format!("; failed {ago_s} s ago: {}", safe(failure)));
    }
    line + "\n"
}
