//! Palisade's YARA-X engine program: compiles a directory of rules once, then
//! serves scans from forked workers.
//!
//! | module | owns |
//! | --- | --- |
//! | [`compile`] | rule files in, compiled rules or problems with file and line out |
//! | [`engine`] | one worker's scanner: warm-up, canary, scans |
//! | [`judge`] | what matching rules mean, and what they say of themselves |

#![forbid(unsafe_code)]

mod compile;
mod engine;
mod judge;

use palisade_worker::args::{Args, ArgsError, COMMON_USAGE};
use palisade_worker::zygote::{self, Settings};
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

const NAME: &str = "palisade-engine-yara";

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    match arguments.first().and_then(|first| first.to_str()) {
        Some("--version") => {
            println!("{NAME} {}", env!("CARGO_PKG_VERSION"));
            return ExitCode::SUCCESS;
        }
        Some("--help") => {
            println!("{}", usage());
            return ExitCode::SUCCESS;
        }
        _ => {}
    }
    match parse(arguments) {
        Ok((rules, settings)) => zygote::run("yara", &settings, || compile::load(&rules)),
        Err(error) => {
            eprintln!("{NAME}: {error}\n\n{}", usage());
            ExitCode::from(2)
        }
    }
}

fn parse(arguments: Vec<OsString>) -> Result<(PathBuf, Settings), ArgsError> {
    let args = Args::parse(arguments, &["--rules"])?;
    Ok((args.path("--rules")?, args.settings()?))
}

fn usage() -> String {
    format!(
        "usage: {NAME} --rules DIR --scratch DIR [OPTION …]\n\n  \
         --rules DIR                 directory of .yar and .yara files (required)\n{COMMON_USAGE}"
    )
}
