//! `palisade-agent policy`: what the site has set for this guest.

use palisade_daemon::cli::{Output, exit};

use super::people::Whole;
use crate::settings::Folders;
use crate::status;

/// Shows what the running agent has.
///
/// # Errors
/// When none runs.
pub fn run(folders: &Folders, output: Output) -> anyhow::Result<u8> {
    let answer = status::ask_running(&folders.run)?;
    let policy = &answer["policy"];
    match output {
        Output::Json => println!("{policy}"),
        Output::Text => println!("{}", Whole(policy)),
    }
    Ok(exit::FINE)
}
