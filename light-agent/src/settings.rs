//! What an administrator may set in `agent.toml`, its defaults and its bounds.
//!
//! Owns the shape and the checks of the values; does not own reading files and
//! drop-ins, which is `palisade_daemon::settings`.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use palisade_daemon::settings::{Read, SettingsError};
use palisade_daemon::site::Site;
use palisade_protocol::bounded::Text;
use palisade_protocol::control::HostFacts;
use palisade_protocol::ids::SvmId;
use palisade_protocol::policy::settings::{MAX_SCHEDULES, MIN_MAX_BYTES};
use palisade_protocol::scan::ScanOptions;
use serde::Deserialize;

use crate::failure::{Overrides, Table};
use crate::fanotify::places;
use crate::maintenance;
use crate::marks::Level;
use crate::mode::Mode;
use crate::packaged;
use crate::quarantine::policy::{OnSuspicion, Remedy};
use crate::quarantine::vault::{Limits, MOST_FILES};
use crate::selection::Policy;
use crate::tasks::schedule::settings::Schedule;
use crate::tasks::settings::Tasks;

/// The agent's name within a site.
pub const COMPONENT: &str = "agent";

/// All settings.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// A file that holds a join token; `run` enrols with it while there is no identity.
    pub join_token_file: Option<PathBuf>,
    /// The name that people see; the host name if unset.
    pub name: Option<String>,
    /// State folder, if not the site's.
    pub state_dir: Option<PathBuf>,
    /// Folder of run files, if not the site's.
    pub run_dir: Option<PathBuf>,
    /// Paths whose contents are neither scanned on access nor found by a walk.
    pub exclude: Vec<PathBuf>,
    /// Paths whose contents never leave the guest: they are looked up by their hashes
    /// alone, and what is not known by them has a row in the failure table.
    pub private: Vec<PathBuf>,
    /// Protection of opens.
    pub on_access: OnAccess,
    /// Differences from the built-in failure table.
    pub failure: Overrides,
    /// How scans are done.
    pub scan: Scan,
    /// Scans in the background.
    pub tasks: Tasks,
    /// When they begin by themselves.
    pub schedule: Vec<Schedule>,
    /// What is done about malware, besides denying its opens.
    pub remediation: Remediation,
    /// Files that were moved away.
    pub quarantine: Quarantine,
    /// Whether stopping and removing the agent needs leave.
    pub maintenance: maintenance::Settings,
    /// Which Protection Server of the list is used.
    pub selection: Policy,
    /// Protection Servers to use instead of the Integration Server's list, best first.
    pub svm: Vec<StaticSvm>,
}

/// Protection of opens.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct OnAccess {
    /// Whether opens are protected at all.
    pub enabled: bool,
    /// `block` holds opens until there is a verdict; `monitor` delays none, and reports;
    /// `learn` does the same, and counts what costs how much.
    pub mode: Mode,
    /// Below which paths.
    pub paths: Vec<PathBuf>,
    /// Whether file systems that are mounted below the paths, now or later, are
    /// protected, too.
    pub new_mounts: bool,
    /// Whether file systems that only other mount namespaces have (containers) are
    /// protected, wherever they are mounted there.
    pub other_namespaces: bool,
    /// Programs whose opens are let through: paths of executables that root owns and
    /// nobody else may write.
    pub exclude_processes: Vec<PathBuf>,
    /// Whether files are scanned when they are closed after writing, too, so that
    /// malware is found before anybody opens it. Nobody waits for these scans.
    pub after_writes: bool,
    /// Types of file systems whose files are let through, wherever they are mounted.
    pub exclude_types: Vec<String>,
    /// Files above this many bytes are let through unseen, as policy; all are scanned
    /// if unset.
    pub max_bytes: Option<u64>,
    /// For which clean files the kernel is told to ask no more, until they change:
    /// `balanced`, those of root that nobody else may write; `strict`, those that the
    /// kernel keeps unchanged; `off`, none.
    pub ignore_marks: Level,
    /// Milliseconds after which an open is answered by the failure table.
    pub deadline_ms: u64,
    /// Opens that may wait for a verdict at a time; more are answered by the failure table.
    pub queue: usize,
    /// Files whose verdict is remembered, at the most.
    pub cache_files: usize,
    /// Files that were let through without a verdict and wait to be scanned, at the most.
    pub deferred_files: usize,
    /// Oldest clean verdict of earlier definitions that an open is answered by, in
    /// seconds: what is opened often is scanned anew soon, without anyone waiting. 0
    /// has every open wait for the definitions in force.
    pub max_verdict_age_s: u32,
}

impl Default for OnAccess {
    fn default() -> Self {
        Self {
            enabled: true,
            mode: Mode::default(),
            paths: Vec::new(),
            new_mounts: true,
            other_namespaces: true,
            exclude_processes: Vec::new(),
            after_writes: false,
            exclude_types: Vec::new(),
            max_bytes: None,
            ignore_marks: Level::default(),
            deadline_ms: 5000,
            queue: 512,
            cache_files: 16_384,
            deferred_files: 8192,
            max_verdict_age_s: 86_400,
        }
    }
}

impl OnAccess {
    /// The deadline of every permission event.
    pub fn deadline(&self) -> Duration {
        Duration::from_millis(self.deadline_ms)
    }
}

/// How scans are done.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Scan {
    /// Files that are asked for at a time.
    pub concurrency: usize,
    /// Seconds that an on-demand scan waits while no Protection Server can be reached.
    pub svm_wait_s: u64,
    /// Oldest clean verdict of earlier definitions that an on-demand scan accepts, in
    /// seconds; 0 has everything scanned by the definitions in force.
    pub max_verdict_age_s: u32,
    /// What scans on demand do with files that are as the package has them that installed
    /// them (by the lists of dpkg, or rpm): `scan` them as others, `last`, or `skip` them.
    /// Opens are asked for in any case.
    pub packaged: packaged::Policy,
    /// Whether to look into archives and other containers, of opens, too. Without, a
    /// packed file is scanned as the bytes that it is.
    pub archives: bool,
    /// Whether heuristic findings are reported, as suspicious.
    pub heuristics: bool,
    /// Whether potentially unwanted applications are reported, as suspicious: where the
    /// Protection Server loads their signatures.
    pub pua: bool,
}

impl Default for Scan {
    fn default() -> Self {
        let look_into = ScanOptions::default();
        Self {
            concurrency: 16,
            svm_wait_s: 300,
            max_verdict_age_s: 0,
            packaged: packaged::Policy::default(),
            archives: look_into.archives,
            heuristics: look_into.heuristics,
            pua: look_into.pua,
        }
    }
}

impl Scan {
    /// What Protection Servers are asked to look into.
    pub fn options(&self) -> ScanOptions {
        ScanOptions {
            archives: self.archives,
            heuristics: self.heuristics,
            pua: self.pua,
        }
    }
}

/// What is done about a finding, besides denying its opens.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Remediation {
    /// `block` leaves the file; `quarantine` moves it there; `delete` removes it for good.
    pub malware: Remedy,
    /// `block`: a suspicion moves nothing.
    pub suspicious: OnSuspicion,
}

/// Files that were moved away.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Quarantine {
    /// Bytes that may lie there; what does not fit is blocked only.
    pub max_bytes: u64,
    /// Files that may lie there; what is too many is blocked only.
    pub max_files: usize,
    /// Whether what is clean by newer definitions is put back to its place.
    pub restore_clean: bool,
}

impl Default for Quarantine {
    fn default() -> Self {
        Self {
            max_bytes: 1 << 30,
            max_files: 1000,
            restore_clean: false,
        }
    }
}

impl Quarantine {
    /// How much may lie there.
    pub fn limits(&self) -> Limits {
        Limits {
            bytes: self.max_bytes,
            files: self.max_files,
        }
    }
}

/// A Protection Server that is known without any Integration Server.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StaticSvm {
    /// Whose certificate must answer; without it, any Protection Server of the site.
    pub id: Option<SvmId>,
    /// Where it listens.
    pub address: SocketAddr,
}

/// A value that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("setting {key}: {problem}")]
pub struct BadValue {
    key: &'static str,
    problem: String,
}

/// Why there are no usable settings.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The files or variables cannot be read as settings.
    #[error(transparent)]
    Settings(#[from] SettingsError),
    /// A value is out of its bounds.
    #[error("{file}: {source}", file = .file.display())]
    Value {
        /// The settings file.
        file: PathBuf,
        /// What is wrong.
        source: BadValue,
    },
}

/// What the guest's own files and variables say, and what they come to: a policy is laid
/// over it.
#[derive(Debug, Clone)]
pub struct Base {
    /// As it was read.
    pub read: Read,
    /// As it is without any policy.
    pub settings: Settings,
}

impl Base {
    /// Reads and checks them.
    ///
    /// # Errors
    /// A [`LoadError`] that names the file and the key.
    pub fn load(file: &Path) -> Result<Self, LoadError> {
        let read = palisade_daemon::settings::read_all(COMPONENT, file, std::env::vars_os())?;
        let settings: Settings = read.parse()?;
        settings.check().map_err(|source| LoadError::Value {
            file: file.to_owned(),
            source,
        })?;
        Ok(Self { read, settings })
    }
}

/// The folders in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folders {
    /// What must survive a restart.
    pub state: PathBuf,
    /// Sockets.
    pub run: PathBuf,
}

impl Settings {
    /// Reads and checks the settings.
    ///
    /// # Errors
    /// A [`LoadError`] that names the file and the key.
    pub fn load(file: &Path) -> Result<Self, LoadError> {
        Base::load(file).map(|base| base.settings)
    }

    /// The folders: the site's, unless set.
    pub fn folders(&self, site: &Site) -> Folders {
        Folders {
            state: self
                .state_dir
                .clone()
                .unwrap_or_else(|| site.state(COMPONENT)),
            run: self.run_dir.clone().unwrap_or_else(|| site.run(COMPONENT)),
        }
    }

    /// The failure table in force.
    pub fn failure_table(&self) -> Table {
        Table::with(&self.failure)
    }

    /// Whether it matters what the system's packages have.
    pub fn wants_packages(&self) -> bool {
        self.scan.packaged != packaged::Policy::Scan || self.remediation.malware != Remedy::Block
    }

    /// What is said of this machine, with the name that people see.
    pub fn host_facts(&self) -> HostFacts {
        let mut facts = palisade_daemon::host::facts();
        if let Some(name) = &self.name {
            facts.hostname = Text::cut(name);
        }
        facts
    }

    /// Whether all values are within their bounds.
    ///
    /// # Errors
    /// The first that is not.
    pub fn check(&self) -> Result<(), BadValue> {
        absolute("on_access.paths", &self.on_access.paths)?;
        absolute(
            "on_access.exclude_processes",
            &self.on_access.exclude_processes,
        )?;
        absolute("exclude", &self.exclude)?;
        absolute("private", &self.private)?;
        known_types("on_access.exclude_types", &self.on_access.exclude_types)?;
        within(
            "on_access.deadline_ms",
            self.on_access.deadline_ms,
            100,
            60_000,
        )?;
        if let Some(max) = self.on_access.max_bytes {
            within("on_access.max_bytes", max, MIN_MAX_BYTES, u64::MAX)?;
        }
        within("on_access.queue", self.on_access.queue as u64, 1, 65_536)?;
        within(
            "on_access.cache_files",
            self.on_access.cache_files as u64,
            0,
            1_048_576,
        )?;
        let deferred = self.on_access.deferred_files as u64;
        within("on_access.deferred_files", deferred, 0, 65_536)?;
        let files = self.quarantine.max_files as u64;
        within("quarantine.max_files", files, 1, MOST_FILES as u64)?;
        within("scan.concurrency", self.scan.concurrency as u64, 1, 128)?;
        within("scan.svm_wait_s", self.scan.svm_wait_s, 1, 86_400)?;
        within("tasks.concurrency", self.tasks.concurrency as u64, 1, 128)?;
        match self.schedule.iter().find_map(Schedule::problem) {
            Some((key, problem)) => Err(BadValue { key, problem }),
            None if self.schedule.len() > MAX_SCHEDULES => Err(BadValue {
                key: "schedule",
                problem: format!("there are more than {MAX_SCHEDULES}"),
            }),
            None => Ok(()),
        }
    }
}

fn absolute(key: &'static str, paths: &[PathBuf]) -> Result<(), BadValue> {
    match paths.iter().find(|path| !path.is_absolute()) {
        Some(path) => Err(BadValue {
            key,
            problem: format!("{} is not an absolute path", path.display()),
        }),
        None => Ok(()),
    }
}

fn known_types(key: &'static str, types: &[String]) -> Result<(), BadValue> {
    let unknown = types
        .iter()
        .find(|kind| !places::kinds().any(|known| known == *kind));
    match unknown {
        Some(kind) => Err(BadValue {
            key,
            problem: format!(
                "{kind:?} is no type that is protected: {}",
                places::kinds().collect::<Vec<_>>().join(", ")
            ),
        }),
        None => Ok(()),
    }
}

fn within(key: &'static str, value: u64, min: u64, max: u64) -> Result<(), BadValue> {
    if (min..=max).contains(&value) {
        return Ok(());
    }
    Err(BadValue {
        key,
        problem: format!("{value} is not within {min} to {max}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::{Access, Answer, Failure};

    fn parse(text: &str) -> Result<Settings, String> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("agent.toml");
        std::fs::write(&file, text).unwrap();
        Settings::load(&file).map_err(|error| error.to_string())
    }

    #[test]
    fn nothing_set_means_the_defaults() {
        let settings = parse("").unwrap();
        assert!(settings.on_access.enabled);
        assert_eq!(settings.on_access.deadline(), Duration::from_secs(5));
        assert_eq!(
            settings.scan,
            Scan {
                concurrency: 16,
                svm_wait_s: 300,
                max_verdict_age_s: 0,
                packaged: packaged::Policy::default(),
                archives: true,
                heuristics: true,
                pua: false,
            }
        );
        assert_eq!(settings.scan.options(), ScanOptions::default());
    }

    /// The file that shows every setting, with the settings it shows taken as set.
    fn shown() -> String {
        include_str!("../agent.toml")
            .lines()
            .map(|line| match line.strip_prefix('#') {
                Some(set) if set.starts_with(|c: char| c.is_ascii_lowercase() || c == '[') => set,
                _ => line,
            })
            .collect::<Vec<_>>()
            .join("\n")
    }

    #[test]
    fn the_file_that_shows_every_setting_sets_none_and_shows_defaults() {
        assert_eq!(
            parse(include_str!("../agent.toml")),
            Ok(Settings::default())
        );
        let set = parse(&shown()).unwrap();
        assert_eq!(set.failure_table(), Table::default());
        assert_eq!((set.svm.len(), set.schedule.len()), (1, 1));
        let without_examples = Settings {
            on_access: OnAccess {
                paths: Vec::new(),
                exclude_processes: Vec::new(),
                exclude_types: Vec::new(),
                max_bytes: None,
                ..set.on_access
            },
            scan: set.scan,
            tasks: set.tasks,
            remediation: set.remediation,
            quarantine: set.quarantine,
            ..Settings::default()
        };
        assert_eq!(without_examples, Settings::default());
    }

    /// What may be set is what the reader of settings says when something else is.
    #[test]
    fn the_file_that_shows_every_setting_lacks_none() {
        let shown = shown();
        for section in [
            "",
            "[on_access]\n",
            "[failure]\n",
            "[scan]\n",
            "[tasks]\n",
            "[[schedule]]\n",
            "[remediation]\n",
            "[quarantine]\n",
            "[[svm]]\n",
        ] {
            let error = parse(&format!("{section}nonsense = 1")).unwrap_err();
            let (_, names) = error.split_once("expected").unwrap();
            let names: Vec<&str> = names.split('`').skip(1).step_by(2).collect();
            assert!(names.len() >= 2, "{error}");
            for name in names {
                let there = shown.lines().any(|line| {
                    line.starts_with(&format!("{name} = "))
                        || line == format!("[{name}]")
                        || line == format!("[[{name}]]")
                });
                assert!(there, "{section}{name}");
            }
        }
    }

    #[test]
    fn the_failure_table_takes_one_answer_or_one_each() {
        let settings = parse("[failure]\nno_svm = 'deny'\ndeadline = { exec = 'deny' }").unwrap();
        let table = settings.failure_table();
        assert_eq!(table.answer(Failure::NoSvm, Access::Open), Answer::Deny);
        assert_eq!(table.answer(Failure::Deadline, Access::Open), Answer::Allow);
        assert_eq!(table.answer(Failure::Deadline, Access::Exec), Answer::Deny);
    }

    #[test]
    fn a_bad_value_is_named() {
        for (text, names) in [
            ("[on_access]\npaths = ['home']", "on_access.paths"),
            (
                "[on_access]\nexclude_types = ['ext5']",
                "on_access.exclude_types",
            ),
            (
                "[on_access]\nexclude_processes = ['rsync']",
                "on_access.exclude_processes",
            ),
            ("[on_access]\ndeadline_ms = 1", "on_access.deadline_ms"),
            ("[scan]\nconcurrency = 1000", "scan.concurrency"),
            ("[on_access]\nmax_bytes = 10", "on_access.max_bytes"),
            ("private = ['here']", "private"),
            ("[remediation]\nmalware = 'move'", "quarantine"),
            ("[remediation]\nsuspicious = 'delete'", "block"),
            ("[quarantine]\nmax_files = 0", "quarantine.max_files"),
            ("[on_access]\nmode = 'watch'", "monitor"),
            ("[on_access]\nignore_marks = 'all'", "balanced"),
            ("[failure]\nno_smv = 'deny'", "no_smv"),
            ("[failure]\nno_svm = 'block'", "failure table"),
            ("[[svm]]\naddress = 'somewhere'", "socket address"),
            ("[tasks]\nconcurrency = 0", "tasks.concurrency"),
            ("[tasks]\npriority = 'none'", "idle"),
            ("[[schedule]]\nkind = 'quick'", "at"),
            ("[[schedule]]\nkind = 'quick'\nat = '24:00'", "24:00"),
            ("[[schedule]]\nkind = 'quick'\nat = '2:30'", "2:30"),
            (
                "[[schedule]]\nkind = 'custom'\nat = '02:30'",
                "schedule.paths",
            ),
            (
                "[[schedule]]\nkind = 'custom'\npaths = ['a']\nat = '02:30'",
                "schedule.paths",
            ),
            (
                "[[schedule]]\nkind = 'full'\nat = '02:30'\nspread_min = 1440",
                "schedule.spread_min",
            ),
            (
                "[[schedule]]\nkind = 'full'\nat = '02:30'\ndays = ['monday']",
                "monday",
            ),
            (
                "[[schedule]]\nkind = 'full'\nat = '02:30'\ndays = []",
                "every day",
            ),
        ] {
            let error = parse(text).unwrap_err();
            assert!(
                error.contains(names) && error.contains("agent.toml"),
                "{text}: {error}"
            );
        }
    }
}
