//! `palisade-agent doctor`: what is wrong with this guest's protection, and what helps.
//!
//! ```text
//!  status (if an agent runs) ─┐
//!  settings, state folder ────┼─► facts ─► findings (pure) ─► people, JSON, exit code
//!  kernel, processes, disk ───┤
//!  attempts to connect ───────┘  (only while no agent runs)
//! ```
//!
//! | module | owns |
//! | --- | --- |
//! | [`facts`] | what is known; the only types that findings are made from |
//! | [`gather`] | how it is found out |
//! | [`holders`] | other programs that hold opens |
//! | [`findings`] | the faults, each with its remedy; pure |
//!
//! It needs no running agent, changes nothing, and waits for nothing longer than
//! [`gather::PATIENCE`].

pub mod facts;
pub mod findings;
pub mod gather;
pub mod holders;

use palisade_daemon::cli::{Output, exit};
use palisade_daemon::site::Site;

use self::findings::{Report, examine};
use crate::settings::{Folders, Settings};

/// The settings that are in force, and why those that were written are not.
#[derive(Debug, Clone)]
pub struct InForce {
    /// As they are, or the defaults.
    pub settings: Settings,
    /// What is wrong with those that were written.
    pub problem: Option<String>,
    /// Their folders.
    pub folders: Folders,
}

impl InForce {
    /// Of a file that was read.
    pub fn new(read: Result<Settings, String>, site: &Site) -> Self {
        let (settings, problem) = match read {
            Ok(settings) => (settings, None),
            Err(problem) => (Settings::default(), Some(problem)),
        };
        let folders = settings.folders(site);
        Self {
            settings,
            problem,
            folders,
        }
    }
}

/// Looks for faults.
///
/// # Errors
/// When the system gives no runtime to connect with.
pub fn report(in_force: &InForce) -> std::io::Result<Report> {
    Ok(examine(&gather::gather(in_force)?))
}

/// The command: prints what was found; gives the exit code.
///
/// # Errors
/// As [`report`].
pub fn run(in_force: &InForce, output: Output) -> anyhow::Result<u8> {
    let report = report(in_force)?;
    match output {
        Output::Json => println!("{}", serde_json::to_string(&report)?),
        Output::Text => print!("{report}"),
    }
    Ok(match report.is_fine() {
        true => exit::FINE,
        false => exit::FOUND,
    })
}
