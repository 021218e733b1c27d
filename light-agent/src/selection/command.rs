//! `palisade-agent explain`: what the running agent says of its choice.

use palisade_daemon::cli::{Output, exit};
use serde::Deserialize as _;

use super::explained::{Role, Shown};
use crate::settings::Folders;
use crate::status;

/// Shows all, or the one of this name or id; gives the exit code, which says whether a
/// Protection Server is in use.
///
/// # Errors
/// When no agent runs, it says nothing of its choice, or there is none of this name.
pub fn run(folders: &Folders, name: Option<&str>, output: Output) -> anyhow::Result<u8> {
    let answer = status::ask_running(&folders.run)?;
    let mut shown = Shown::deserialize(&answer["selection"]).map_err(|error| {
        anyhow::anyhow!(
            "the running agent does not say how it chooses ({error}); it is another version: \
             restart it"
        )
    })?;
    let used = shown.svms.iter().any(|svm| svm.role == Role::InUse);
    if let Some(name) = name {
        let is = |svm: &super::explained::Svm| svm.name == name || svm.id.as_deref() == Some(name);
        shown.svms.retain(is);
        if shown.svms.is_empty() {
            anyhow::bail!(
                "no Protection Server is called {name}; `palisade-agent explain` lists all"
            );
        }
    }
    match output {
        Output::Json => println!("{}", serde_json::to_string(&shown)?),
        Output::Text => print!("{shown}"),
    }
    Ok(if used { exit::FINE } else { exit::FOUND })
}
