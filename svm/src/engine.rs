//! The engines that a Protection Server can run: one table.
//!
//! Owns an engine's program and its arguments. Does not own which files are its
//! definitions, which is [`palisade_repository::files`]'s, nor running it, which is
//! [`crate::scan`]'s.

use std::path::{Path, PathBuf};
use std::time::Duration;

use palisade_repository::files::{self, Family};
use palisade_worker::client::EngineCommand;
use serde::{Deserialize, Serialize};

use crate::scan::crew::Reserve;
use crate::settings::SandboxPolicy;

/// An engine, in the order in which a content passes them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EngineKind {
    /// Lists of hashes that are allowed or denied: a table in the daemon, no program.
    #[serde(rename = "hash-list")]
    HashList,
    /// libclamav: unpacks, and hands the members to the others.
    Clamav,
    /// YARA-X.
    Yara,
}

/// File name extensions of libclamav's definitions that alone find nothing.
const CLAMAV_AUXILIARY: [&str; 8] = ["fp", "sfp", "ign", "ign2", "ftm", "cfg", "wdb", "pwdb"];

impl From<Family> for EngineKind {
    fn from(family: Family) -> Self {
        match family {
            Family::HashList => Self::HashList,
            Family::Clamav => Self::Clamav,
            Family::Yara => Self::Yara,
        }
    }
}

impl EngineKind {
    /// Every engine, in the order in which a content passes them.
    pub const ALL: [Self; 3] = [Self::HashList, Self::Clamav, Self::Yara];

    /// The name that verdicts carry.
    pub fn name(self) -> &'static str {
        match self {
            Self::HashList => "hash-list",
            Self::Clamav => "libclamav",
            Self::Yara => "yara-x",
        }
    }

    /// The engine's program, if it is one.
    pub fn program(self) -> Option<&'static str> {
        match self {
            Self::HashList => None,
            Self::Clamav => Some("palisade-engine-clamav"),
            Self::Yara => Some("palisade-engine-yara"),
        }
    }

    /// Its definitions' folder within a generation.
    pub fn folder(self) -> &'static str {
        match self {
            Self::HashList => "hash-list",
            Self::Clamav => "clamav",
            Self::Yara => "yara",
        }
    }

    /// Whether it hands over what it unpacks.
    pub fn unpacks(self) -> bool {
        matches!(self, Self::Clamav)
    }

    /// Whether it scans what another engine unpacked.
    pub fn takes_members(self) -> bool {
        matches!(self, Self::Yara)
    }

    /// Whose definitions a file holds, by its name.
    pub fn of_file(path: &Path) -> Option<Self> {
        files::family(path).map(Self::from)
    }

    /// Whether a file of this engine can find something by itself.
    pub fn detects(self, path: &Path) -> bool {
        let extension = path.extension().and_then(|extension| extension.to_str());
        match self {
            Self::Clamav => {
                !extension.is_some_and(|extension| CLAMAV_AUXILIARY.contains(&extension))
            }
            Self::Yara | Self::HashList => true,
        }
    }

    /// What its program is told beside its definitions, as `key=value`; of one key, the
    /// last counts. Verdicts depend on it.
    pub fn settings(self, place: &Place) -> Vec<String> {
        match self {
            Self::Clamav => {
                let max = place.max_scan_bytes;
                let mut settings = vec![
                    format!("max-filesize={max}"),
                    format!("max-scansize={}", max.max(CLAMAV_UNPACKED_BYTES)),
                ];
                settings.extend(place.clamav.iter().cloned());
                settings
            }
            Self::HashList | Self::Yara => Vec::new(),
        }
    }

    /// How its program is started, if it is one.
    pub fn command(self, definitions: &Path, place: &Place) -> Option<EngineCommand> {
        let mut command = EngineCommand::new(place.helpers.join(self.program()?))
            .arg("--scratch")
            .arg(&place.scratch);
        command = match self {
            Self::Clamav => command.arg("--definitions").arg(definitions),
            Self::Yara => command.arg("--rules").arg(definitions),
            Self::HashList => command,
        };
        for setting in self.settings(place) {
            command = command.arg("--set").arg(setting);
        }
        let workers = &place.workers;
        for (option, value) in [
            ("--sandbox", workers.sandbox.name().to_owned()),
            ("--worker-user", format!("{}:{}", workers.uid, workers.gid)),
            ("--worker-memory", workers.memory_bytes.to_string()),
            ("--worker-scratch", workers.scratch_bytes.to_string()),
        ] {
            command = command.arg(option).arg(value);
        }
        command.load_timeout = place.load_timeout;
        command.scan_cpu = Some(workers.cpu_timeout);
        Some(command)
    }
}

/// Bytes that libclamav scans in one content, parts included, at the least.
const CLAMAV_UNPACKED_BYTES: u64 = 512 << 20;

/// What every engine's program is started with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// Where the programs are.
    pub helpers: PathBuf,
    /// Where workers keep their temporary files.
    pub scratch: PathBuf,
    /// How long definitions may load.
    pub load_timeout: Duration,
    /// Largest content that is scanned, in bytes.
    pub max_scan_bytes: u64,
    /// What else libclamav's program is told, as `key=value`.
    pub clamav: Vec<String>,
    /// What workers are confined by.
    pub workers: Confinement,
    /// How many workers are kept that scan nothing now.
    pub reserve: Reserve,
}

/// What workers are confined by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Confinement {
    /// What happens where the machine cannot do all of it.
    pub sandbox: SandboxPolicy,
    /// Who workers run as, if this process is root.
    pub uid: u32,
    /// Their group.
    pub gid: u32,
    /// Most memory that one worker allocates, in bytes.
    pub memory_bytes: u64,
    /// Most temporary files of one worker, in bytes.
    pub scratch_bytes: u64,
    /// Processor time of one scan.
    pub cpu_timeout: Duration,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_go_to_their_engines() {
        let of = |name: &str| EngineKind::of_file(Path::new(name));
        assert_eq!(of("main.cvd"), Some(EngineKind::Clamav));
        assert_eq!(of("marker.ndb"), Some(EngineKind::Clamav));
        assert_eq!(of("rules.yar"), Some(EngineKind::Yara));
        assert_eq!(of("site.allow.sha256"), Some(EngineKind::HashList));
        // A checksum beside a database is no list.
        assert_eq!(of("main.cvd.sha256"), None);
        assert_eq!(of("README.md"), None);
        assert_eq!(of("yar"), None);
        // What a list says in its name is one thing for both who read it.
        for name in [
            "a.allow.sha256",
            "a.deny.md5",
            "a.cvd.md5",
            "allow.sha256",
            "a.allow",
        ] {
            let is_list = crate::hash_lists::kind_of(Path::new(name)).is_some();
            assert_eq!(of(name) == Some(EngineKind::HashList), is_list, "{name}");
        }
        assert!(!EngineKind::Clamav.detects(Path::new("local.ign2")));
        assert!(EngineKind::Clamav.detects(Path::new("daily.cld")));
    }
}
