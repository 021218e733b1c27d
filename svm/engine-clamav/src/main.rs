//! Palisade's libclamav engine program: loads a directory of ClamAV databases once,
//! then serves scans from forked workers.
//!
//! | module | owns |
//! | --- | --- |
//! | [`ffi`] | libclamav's functions; the only unsafe code |
//! | [`settings`] | what can be set, and what differs from clamscan |
//! | [`charsets`] | converters that workers cannot load themselves |
//! | [`databases`] | which files load, and in which order |
//! | [`load`] | databases in, a compiled engine or problems with file and line out |
//! | [`canary`] | proof that the engine still finds anything |
//! | [`engine`] | one worker's scans |
//! | [`findings`] | what libclamav says in a scan, and what it comes to |

#![deny(unsafe_code)]

mod canary;
mod charsets;
mod databases;
mod engine;
mod ffi;
mod findings;
mod load;
mod settings;

use palisade_worker::args::{Args, ArgsError, COMMON_USAGE};
use palisade_worker::zygote::{self, Group, Settings, keep_charsets};
use settings::Configuration;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::ExitCode;

const NAME: &str = "palisade-engine-clamav";

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    match arguments.first().and_then(|first| first.to_str()) {
        Some("--version") => {
            println!(
                "{NAME} {} (libclamav {})",
                env!("CARGO_PKG_VERSION"),
                ffi::version()
            );
            return ExitCode::SUCCESS;
        }
        Some("--help") => {
            println!("{}", usage());
            return ExitCode::SUCCESS;
        }
        _ => {}
    }
    match parse(arguments) {
        Ok((definitions, configuration, settings)) => zygote::run("clamav", &settings, || {
            keep_charsets(&charsets::CHARSETS);
            load::load(&definitions, &settings.scratch, &configuration)
        }),
        Err(error) => {
            eprintln!("{NAME}: {error}\n\n{}", usage());
            ExitCode::from(2)
        }
    }
}

fn parse(arguments: Vec<OsString>) -> Result<(PathBuf, Configuration, Settings), ArgsError> {
    let args = Args::parse(arguments, &["--definitions", "--set"])?;
    let mut configuration = Configuration::default();
    for value in args.all("--set") {
        let bad = |why: String| ArgsError::Bad {
            option: "--set".to_owned(),
            value: value.to_owned(),
            why,
        };
        let setting = value.to_str().ok_or_else(|| bad("not UTF-8".to_owned()))?;
        configuration.set(setting).map_err(bad)?;
    }
    let definitions = args.path("--definitions")?;
    let mut settings = args.settings()?;
    settings.confinement.groups = &[Group::Files];
    Ok((definitions, configuration, settings))
}

fn usage() -> String {
    format!(
        "usage: {NAME} --definitions DIR --scratch DIR [OPTION …]\n\n  \
         --definitions DIR           directory of ClamAV databases (required)\n  \
         --set KEY=VALUE             one setting; may be repeated\n{COMMON_USAGE}\n\n\
         settings: {}",
        Configuration::names()
    )
}
