//! `palisade audit`: what was changed, and whether the log is as it was written.

use clap::Subcommand;
use palisade_daemon::cli::{Output, exit};

use super::Printed;
use super::client::Client;
use super::resources::json;
use super::table::{Table, safe};
use crate::api::audit::{AuditEntry, MAX_LIMIT, Verification};
use crate::audit::Head;

/// What to do with the audit log.
#[derive(Debug, Subcommand)]
pub enum Audit {
    /// List entries, newest first
    List {
        /// How many at the most
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
    },
    /// Go through all of it; exits with 1 when something is wrong
    Verify {
        /// The head that an earlier verification printed, which must still be in it
        #[arg(long, value_name = "NUMBER:HASH")]
        head: Option<Head>,
    },
}

/// Does it.
///
/// # Errors
/// What is in the way, and what helps.
pub fn run(client: &Client, what: &Audit, output: Output) -> anyhow::Result<Printed> {
    match what {
        Audit::List { limit } => list(client, *limit, output).map(Printed::from),
        Audit::Verify { head } => verify(client, head.as_ref(), output),
    }
}

fn list(client: &Client, limit: u32, output: Output) -> super::resources::Result {
    let page = MAX_LIMIT as usize;
    let entries: Vec<AuditEntry> = client.list("audit", Some(page), limit as usize)?;
    if output == Output::Json {
        return json(&entries);
    }
    let mut table = Table::new([
        "NO", "TIME", "BY", "VIA", "FROM", "ACTION", "OBJECT", "RESULT", "CHANGE",
    ]);
    for entry in entries {
        let change = match (entry.before, entry.after) {
            (Some(before), Some(after)) => format!("{before} -> {after}"),
            (Some(one), None) | (None, Some(one)) => one,
            (None, None) => String::new(),
        };
        table.row([
            entry.number.to_string(),
            entry.time,
            entry.by,
            entry.via.as_str().to_owned(),
            entry.from.unwrap_or_default(),
            entry.action,
            entry.object,
            entry.result,
            change,
        ]);
    }
    Ok(table.print("nothing that you may see was changed"))
}

fn verify(client: &Client, head: Option<&Head>, output: Output) -> anyhow::Result<Printed> {
    let query = head.map_or_else(String::new, |head| format!("?head={head}"));
    let found: Verification = client.get(&format!("audit/verification{query}"))?;
    let code = match found.intact {
        true => exit::FINE,
        false => exit::FOUND,
    };
    let out = match output {
        Output::Json => json(&found)?,
        Output::Text => {
            let mut text: String = found
                .problems
                .iter()
                .map(|problem| format!("{}\n", safe(problem)))
                .collect();
            text.push_str(&match found.intact {
                true => format!(
                    "all {} entries are as they were written\nhead {}\nKeep the head elsewhere: `palisade audit verify --head` shows by it later that the end was not taken off.\n",
                    found.entries,
                    safe(&found.head)
                ),
                false => "the audit log was changed: keep a copy of the database as it is, and compare it with the last backup and with the server's own log, which has each entry's head\n".to_owned(),
            });
            text
        }
    };
    Ok(Printed {
        out,
        note: String::new(),
        code,
    })
}
