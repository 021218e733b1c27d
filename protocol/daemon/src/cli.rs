//! The options that every program takes, and what its exit code says.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Args, ValueEnum};

use crate::site::{Component, Site};

/// Exit codes, the same in every program.
pub mod exit {
    /// Fine; for a scan: all clean.
    pub const FINE: u8 = 0;
    /// Malware was found, or a check failed.
    pub const FOUND: u8 = 1;
    /// Wrong usage.
    pub const USAGE: u8 = 2;
    /// It could not be done.
    pub const FAILED: u8 = 3;
    /// Nothing was found, but something was not scanned.
    pub const NOT_SCANNED: u8 = 4;
}

/// How logs are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Human,
    /// One JSON object a line.
    Json,
}

/// How results are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Output {
    /// Tables and sentences.
    #[default]
    Text,
    /// One JSON value.
    Json,
}

/// Options before every subcommand.
#[derive(Debug, Clone, Args)]
pub struct Common {
    /// A site in one folder, as `scripts/up --state DIR` makes it (or PALISADE_SITE)
    #[arg(
        long,
        value_name = "DIR",
        env = "PALISADE_SITE",
        hide_env = true,
        global = true
    )]
    pub site: Option<PathBuf>,
    /// The settings file
    #[arg(long, value_name = "FILE", global = true)]
    pub config: Option<PathBuf>,
    /// How logs are written to stderr: human or json
    #[arg(
        long,
        value_name = "FORMAT",
        value_enum,
        default_value_t,
        hide_possible_values = true,
        hide_default_value = true,
        global = true
    )]
    pub log_format: LogFormat,
}

/// The option of every command that prints a result.
#[derive(Debug, Clone, Copy, Args)]
pub struct Format {
    /// How results are written: text or json
    #[arg(
        short,
        long,
        value_name = "FORMAT",
        value_enum,
        default_value_t,
        hide_possible_values = true,
        hide_default_value = true,
        global = true
    )]
    pub output: Output,
}

impl Common {
    /// The layout in force.
    pub fn site(&self) -> Site {
        Site::new(self.site.as_deref())
    }

    /// The same options, for another process of the same program.
    pub fn arguments(&self) -> Vec<OsString> {
        let mut arguments = Vec::new();
        for (option, value) in [("--site", &self.site), ("--config", &self.config)] {
            if let Some(value) = value {
                arguments.extend([option.into(), value.clone().into_os_string()]);
            }
        }
        if self.log_format == LogFormat::Json {
            arguments.extend(["--log-format".into(), "json".into()]);
        }
        arguments
    }

    /// The settings file in force.
    pub fn settings(&self, component: Component) -> PathBuf {
        self.config
            .clone()
            .unwrap_or_else(|| self.site().settings(component))
    }
}
