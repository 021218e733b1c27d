//! `palisade-agent`: the Light Agent's daemon and its commands.
//!
//! | command | part |
//! | --- | --- |
//! | `run` | [`palisade_light_agent::daemon`] |
//! | `supervise` | [`palisade_light_agent::supervise`] |
//! | `enrol` | [`palisade_light_agent::enrol`] |
//! | `scan` | [`palisade_light_agent::scan`] |
//! | `task` | [`palisade_light_agent::tasks`] |
//! | `quarantine` | [`palisade_light_agent::quarantine::command`] |
//! | `status` | [`palisade_light_agent::status`] |
//! | `policy` | [`palisade_light_agent::policy`] |
//! | `explain` | [`palisade_light_agent::selection`] |
//! | `bypass` | [`palisade_light_agent::bypass`] |
//! | `doctor` | [`palisade_light_agent::doctor`] |
//! | `support-bundle` | [`palisade_light_agent::bundle`] |
//! | `generalize` | [`palisade_light_agent::generalize`] |
//! | `check-config` | [`palisade_light_agent::settings`] |

use std::process::ExitCode;

use clap::Parser as _;
use palisade_light_agent::{cli::Cli, lease};

fn main() -> ExitCode {
    let cli = Cli::parse();
    // Before the first thread: a broken lease must not end the process.
    if let Err(error) = lease::block_signal() {
        eprintln!("palisade-agent: signals cannot be blocked: {error}");
        return ExitCode::from(palisade_daemon::cli::exit::FAILED);
    }
    cli.run()
}
