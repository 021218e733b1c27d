//! Command lines of the engine programs: `--name value` or `--name=value`, nothing
//! else. (No clap: its licence terms and size have no place in these programs.)

use crate::zygote::{Confinement, Limits, Policy, Settings, User};
use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// Options of every engine program, for its usage text.
pub const COMMON_USAGE: &str =
    "  --scratch DIR               where workers keep their temporary files (required)
  --sandbox POLICY            required (default), or best-effort: serve without what this
                              machine cannot do for the sandbox, and say so
  --worker-user UID:GID       who workers run as, if started as root (default 65534:65534)
  --worker-memory BYTES       most memory that one worker allocates (default 2 GiB)
  --worker-scratch BYTES      most temporary files of one worker (default 1 GiB)
  --worker-scratch-files N    most of them by number (default 65536)
  --worker-open-files N       most descriptors of one worker (default 256)
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
const COMMON: [&str; 7] = [
    "--scratch",
    "--sandbox",
    "--worker-user",
    "--worker-memory",
    "--worker-scratch",
    "--worker-scratch-files",
    "--worker-open-files",
];

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

    /// The value of an option as `parse` reads it, if it is given.
    fn parsed<T>(
        &self,
        option: &str,
        why: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Result<Option<T>, ArgsError> {
        let Some(value) = self.get(option) else {
            return Ok(None);
        };
        let parsed = value.to_str().and_then(parse);
        parsed.map(Some).ok_or_else(|| ArgsError::Bad {
            option: option.to_owned(),
            value: value.to_owned(),
            why: why.to_owned(),
        })
    }

    /// A whole number from 1 on, or what is there without it.
    fn number(&self, option: &str, default: u64) -> Result<u64, ArgsError> {
        let parse = |text: &str| text.parse().ok().filter(|number| *number > 0);
        let given = self.parsed(option, "not a whole number from 1 on", parse)?;
        Ok(given.unwrap_or(default))
    }

    /// What the zygote needs to know; the engine adds the system calls that it needs.
    pub fn settings(&self) -> Result<Settings, ArgsError> {
        let defaults = Limits::default();
        let policy = self.parsed("--sandbox", "neither required nor best-effort", |text| {
            Policy::by_name(text)
        })?;
        let user = self.parsed(
            "--worker-user",
            "not of the form UID:GID, both from 1 on",
            |text| {
                let (uid, gid) = text.split_once(':')?;
                let id = |text: &str| text.parse().ok().filter(|id| *id > 0);
                Some(User {
                    uid: id(uid)?,
                    gid: id(gid)?,
                })
            },
        )?;
        Ok(Settings {
            scratch: self.path("--scratch")?,
            confinement: Confinement {
                policy: policy.unwrap_or_default(),
                user: user.unwrap_or_default(),
                limits: Limits {
                    open_files: self.number("--worker-open-files", defaults.open_files)?,
                    memory_bytes: self.number("--worker-memory", defaults.memory_bytes)?,
                    scratch_bytes: self.number("--worker-scratch", defaults.scratch_bytes)?,
                    scratch_files: self.number("--worker-scratch-files", defaults.scratch_files)?,
                },
                groups: &[],
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
        assert_eq!(settings.confinement, Confinement::default());
        let line = "--scratch /s --sandbox best-effort --worker-user 7:8 --worker-memory=9";
        let confinement = parse(line).unwrap().settings().unwrap().confinement;
        assert_eq!(confinement.policy, Policy::BestEffort);
        assert_eq!(confinement.user, User { uid: 7, gid: 8 });
        assert_eq!(confinement.limits.memory_bytes, 9);
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
            "--worker-open-files \"many\": not a whole number from 1 on"
        );
        for bad in ["--worker-user 0:1", "--worker-user nobody", "--sandbox off"] {
            assert!(
                said(&format!("--scratch /s {bad}")).starts_with(&bad[..9]),
                "{bad}"
            );
        }
    }
}
