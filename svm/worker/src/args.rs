//! Command lines of the engine programs: `--name value` or `--name=value`, nothing
//! else. (No clap: its licence terms and size have no place in these programs.)

use crate::zygote::{Limits, Settings};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// Options of every engine program, for its usage text.
pub const COMMON_USAGE: &str =
    "  --scratch DIR               where workers keep their temporary files (required)
  --worker-open-files N       most descriptors of one worker (default 256)
  --worker-cpu-seconds N      processor time after which a worker is killed (default: none)
  --version, --help";

/// What is wrong with a command line.
#[derive(Debug, thiserror::Error)]
pub enum ArgsError {
    /// An option that the program does not have, or an argument without one.
    #[error("unknown option {0:?}")]
    Unknown(OsString),
    /// An option at the end of the line.
    #[error("{0} needs a value")]
    NoValue(String),
    /// A required option is not there.
    #[error("{0} is required")]
    Missing(&'static str),
    /// A value that cannot be used.
    #[error("{option} {value:?}: {why}")]
    Bad {
        /// The option.
        option: String,
        /// Its value.
        value: OsString,
        /// What is wrong with it.
        why: String,
    },
}

/// A parsed command line.
#[derive(Debug, Default)]
pub struct Args(Vec<(String, OsString)>);

/// Options that every engine program has.
const COMMON: [&str; 3] = ["--scratch", "--worker-open-files", "--worker-cpu-seconds"];

impl Args {
    /// Parses arguments (without the program's name); `own` lists the options that
    /// are allowed beside the common ones.
    pub fn parse(
        arguments: impl IntoIterator<Item = OsString>,
        own: &[&str],
    ) -> Result<Self, ArgsError> {
        let mut parsed = Vec::new();
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            let (name, value) = split(&argument);
            let known = name
                .to_str()
                .filter(|name| own.contains(name) || COMMON.contains(name))
                .ok_or_else(|| ArgsError::Unknown(argument.clone()))?
                .to_owned();
            let value = match value {
                Some(value) => value.to_owned(),
                None => arguments
                    .next()
                    .ok_or_else(|| ArgsError::NoValue(known.clone()))?,
            };
            parsed.push((known, value));
        }
        Ok(Self(parsed))
    }

    /// The last value of an option.
    pub fn get(&self, option: &str) -> Option<&OsStr> {
        let mut values = self.0.iter().rev().filter(|(name, _)| name == option);
        values.next().map(|(_, value)| value.as_os_str())
    }

    /// Every value of an option, in order.
    pub fn all<'a>(&'a self, option: &'a str) -> impl Iterator<Item = &'a OsStr> {
        self.0
            .iter()
            .filter(move |(name, _)| name == option)
            .map(|(_, value)| value.as_os_str())
    }

    /// A path that must be given.
    pub fn path(&self, option: &'static str) -> Result<PathBuf, ArgsError> {
        self.get(option)
            .map(PathBuf::from)
            .ok_or(ArgsError::Missing(option))
    }

    /// A whole number, if it is given.
    pub fn number(&self, option: &str) -> Result<Option<u64>, ArgsError> {
        let Some(value) = self.get(option) else {
            return Ok(None);
        };
        value
            .to_str()
            .and_then(|text| text.parse().ok())
            .map(Some)
            .ok_or_else(|| ArgsError::Bad {
                option: option.to_owned(),
                value: value.to_owned(),
                why: "not a whole number".to_owned(),
            })
    }

    /// What the zygote needs to know.
    pub fn settings(&self) -> Result<Settings, ArgsError> {
        let defaults = Limits::default();
        Ok(Settings {
            scratch: self.path("--scratch")?,
            limits: Limits {
                open_files: self
                    .number("--worker-open-files")?
                    .unwrap_or(defaults.open_files),
                cpu_seconds: self
                    .number("--worker-cpu-seconds")?
                    .or(defaults.cpu_seconds),
            },
        })
    }
}

fn split(argument: &OsStr) -> (&OsStr, Option<&OsStr>) {
    let bytes = argument.as_bytes();
    match bytes.iter().position(|b| *b == b'=') {
        Some(at) => (
            OsStr::from_bytes(&bytes[..at]),
            Some(OsStr::from_bytes(&bytes[at + 1..])),
        ),
        None => (argument, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Args, ArgsError> {
        Args::parse(
            line.split_whitespace().map(OsString::from),
            &["--rules", "--set"],
        )
    }

    #[test]
    fn both_forms_and_repetition() {
        let args = parse("--scratch /s --rules=/r=x --set a=1 --set b=2").unwrap();
        assert_eq!(args.path("--rules").unwrap(), PathBuf::from("/r=x"));
        assert_eq!(args.all("--set").collect::<Vec<_>>(), ["a=1", "b=2"]);
        let settings = args.settings().unwrap();
        assert_eq!(
            (settings.limits.open_files, settings.limits.cpu_seconds),
            (256, None)
        );
    }

    #[test]
    fn mistakes_name_the_option() {
        let said = |line: &str| match parse(line).and_then(|args| args.settings()) {
            Ok(_) => String::new(),
            Err(error) => error.to_string(),
        };
        assert_eq!(said("--nonsense 1"), "unknown option \"--nonsense\"");
        assert_eq!(said("stray"), "unknown option \"stray\"");
        assert_eq!(said("--rules"), "--rules needs a value");
        assert_eq!(said("--rules /r"), "--scratch is required");
        assert_eq!(
            said("--scratch /s --worker-open-files many"),
            "--worker-open-files \"many\": not a whole number"
        );
    }
}
