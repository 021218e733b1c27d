//! Settings of the Protection Server: `scanserver.toml`, its drop-ins, and
//! `PALISADE_SCANSERVER__…` variables.
//!
//! Owns the keys, their defaults and their bounds; does not own the reading,
//! which is the same in every daemon. Sizes are bytes, or text with a unit
//! (`"512 MiB"`); times are seconds.

mod byte_size;
mod confinement;
mod engines;
mod fragments;

use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use palisade_daemon::settings::{self, SettingsError};
use palisade_daemon::site::{Component, Site};
use palisade_protocol::content::MAX_CONTENT_BYTES;
use palisade_protocol::control::{MAX_ADDRESSES, MAX_TAGS, MAX_TENANTS, Name};
use palisade_protocol::ids::TenantId;
use palisade_protocol::{DEFAULT_SCAN_PORT, endpoint};
use serde::Deserialize;

pub use byte_size::ByteSize;
pub use engines::{Clamav, Engines};

use crate::admission::Layout;
use crate::request::Bounds;

pub use confinement::SandboxPolicy;

/// The component's name in a site.
pub const COMPONENT: Component = "scanserver";

/// Most generations beside the one in force.
const MAX_KEPT: u32 = 16;
/// Most guests that a new signature may be allowed to hit.
const MAX_BRAKE_GUESTS: u32 = 1000;
/// Most contents whose holders are remembered.
const MAX_HELD: u32 = 2_000_000;
/// Most directories of clean files.
const MAX_CORPUS_DIRECTORIES: usize = 16;

/// All settings.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// UDP address that agents connect to.
    pub listen: SocketAddr,
    /// Addresses that the Integration Server hands to agents; empty for the
    /// listening address, or every interface's when that is unspecified.
    pub advertise: Vec<Advertised>,
    /// Where this Protection Server stands.
    pub path: Place,
    /// Only agents that carry one of these tags may use it; empty for all.
    pub tags: Vec<String>,
    /// Only agents of these tenants may use it; empty for all. Others are refused.
    pub tenants: Vec<TenantId>,
    /// The licence.
    pub licence: Licence,
    /// A file that holds a join token, for a first start without identity.
    pub join_token_file: Option<PathBuf>,
    /// Where state is kept, instead of the site's place.
    pub state_dir: Option<PathBuf>,
    /// Where scratch files go, instead of the site's place.
    pub run_dir: Option<PathBuf>,
    /// Where the engine programs are, instead of the site's place.
    pub helpers_dir: Option<PathBuf>,
    /// Signatures and rules.
    pub definitions: Definitions,
    /// What the engines' own programs are told.
    pub engines: Engines,
    /// Scans and what they may take.
    pub scan: Scan,
    /// The SharedCache.
    pub cache: Cache,
    /// What new definitions do to what was clean before.
    pub retroactive: Retroactive,
    /// What peers may have at a time.
    pub limits: Limits,
    /// Numbers for Prometheus.
    pub metrics: Metrics,
}

/// Numbers for Prometheus.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Metrics {
    /// TCP address that `GET /metrics` is answered on, without TLS or accounts: a local
    /// or a management network's; none if unset.
    pub listen: Option<SocketAddr>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            listen: (Ipv4Addr::UNSPECIFIED, DEFAULT_SCAN_PORT).into(),
            advertise: Vec::new(),
            path: Place::default(),
            tags: Vec::new(),
            tenants: Vec::new(),
            licence: Licence::default(),
            join_token_file: None,
            state_dir: None,
            run_dir: None,
            helpers_dir: None,
            definitions: Definitions::default(),
            engines: Engines::default(),
            scan: Scan::default(),
            cache: Cache::default(),
            retroactive: Retroactive::default(),
            limits: Limits::default(),
            metrics: Metrics::default(),
        }
    }
}

/// One address that agents are told.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Advertised {
    /// The network's name, for people.
    #[serde(default)]
    pub network: String,
    /// Where agents of that network reach this Protection Server.
    pub address: SocketAddr,
}

/// A place in the infrastructure; empty parts are unknown.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Place {
    /// Data centre.
    pub datacenter: String,
    /// Cluster.
    pub cluster: String,
    /// Hypervisor.
    pub hypervisor: String,
}

/// Which licence is in force. It never stops protection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Licence {
    /// The built-in licence, without limit.
    #[default]
    BuiltIn,
}

/// Signatures and rules.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Definitions {
    /// A directory with ClamAV databases, YARA rules, or both, and perhaps lists of hashes
    /// (`NAME.allow.sha256`, `NAME.deny.md5`, …) beside them.
    pub source: Option<PathBuf>,
    /// Whether the definitions of the site's repository are followed, which the Integration
    /// Server offers. Unset, they are when no source is set.
    pub repository: Option<bool>,
    /// Further directories, for example with a site's own signatures and rules
    /// beside a vendor's.
    pub extra: Vec<PathBuf>,
    /// Seconds between two looks for changes of the source.
    pub poll_s: u32,
    /// Most bytes of one generation.
    pub max_size: ByteSize,
    /// Seconds that an engine may take to load a generation.
    pub load_timeout_s: u32,
    /// Generations that are kept beside the one in force; the one before is the first.
    pub keep: u32,
    /// Directories with clean files, of which new definitions must call none malware:
    /// at most 64 files and 32 MiB are read, what guests need most first. Empty for the
    /// built-in contents alone.
    pub clean_corpus: Vec<PathBuf>,
    /// Whether new definitions must find the EICAR test file. Unset, those must that have
    /// a vendor's main or daily database (`main.cvd`, `daily.cld`, …).
    pub require_eicar: Option<bool>,
    /// Days after which definitions in force are a problem that is reported; 0 for never.
    pub stale_after_days: u32,
}

impl Default for Definitions {
    fn default() -> Self {
        Self {
            source: None,
            repository: None,
            extra: Vec::new(),
            poll_s: 60,
            max_size: ByteSize(4 << 30),
            load_timeout_s: 300,
            keep: 2,
            clean_corpus: vec!["/usr/bin".into(), "/usr/lib".into()],
            require_eicar: None,
            stale_after_days: 7,
        }
    }
}

impl Definitions {
    /// Whether the site's repository is followed.
    pub fn follows_repository(&self) -> bool {
        self.repository.unwrap_or(self.source.is_none())
    }
}

/// Scans and what they may take.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Scan {
    /// Scans at a time, each with one worker of every engine; 0 for the machine's cores.
    pub workers: u32,
    /// Larger contents are not scanned.
    pub max_scan_size: ByteSize,
    /// Memory for contents: those in flight, and those that are kept when they were
    /// scanned.
    pub memory: ByteSize,
    /// How much of it contents may take that were scanned, so that of a changed file
    /// only what changed is sent, and new definitions can look at them
    /// (`retroactive.rescan`); given back when it is wanted. Half of it if unset, 0
    /// keeps none.
    pub fragment_store: Option<ByteSize>,
    /// How much disk below the state folder fragments may take that were forgotten in
    /// memory, under a key that no start has from another; at most 256 GiB, of which each
    /// takes some 1 MiB of memory. 0 for none.
    pub fragment_disk: ByteSize,
    /// Seconds that each engine may take over one content.
    pub timeout_s: u32,
    /// Seconds of processor time that each engine may take over one content.
    pub cpu_timeout_s: u32,
    /// Milliseconds on its lane after which a scan gives way to an on-access content of
    /// another agent, if no lane is free for that.
    pub give_way_ms: u32,
    /// Contents after which a worker is replaced.
    pub recycle_after: u32,
    /// What happens where this machine cannot do all that confines workers.
    pub sandbox: SandboxPolicy,
    /// Who workers run as, by name or number, if the Protection Server runs as root.
    pub worker_user: String,
    /// Most memory that one worker allocates.
    pub worker_memory: ByteSize,
    /// Most temporary files of one worker.
    pub worker_scratch: ByteSize,
}

impl Default for Scan {
    fn default() -> Self {
        Self {
            workers: 0,
            max_scan_size: ByteSize(512 << 20),
            memory: ByteSize(1 << 30),
            fragment_store: None,
            fragment_disk: ByteSize(0),
            timeout_s: 120,
            cpu_timeout_s: 120,
            give_way_ms: 1000,
            recycle_after: 1000,
            sandbox: SandboxPolicy::Required,
            worker_user: "nobody".to_owned(),
            worker_memory: ByteSize(2 << 30),
            worker_scratch: ByteSize(1 << 30),
        }
    }
}

/// The SharedCache.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Cache {
    /// Most verdicts that are kept.
    pub entries: u64,
    /// Whether verdicts outlive a restart.
    pub persist: bool,
    /// Oldest clean verdict of earlier definitions that is served, in seconds, however
    /// old an agent lets it be; 0 for none: each change of definitions voids all.
    pub max_verdict_age_s: u32,
}

impl Default for Cache {
    fn default() -> Self {
        Self {
            entries: 500_000,
            persist: true,
            max_verdict_age_s: 86_400,
        }
    }
}

/// What new definitions do to what was clean before.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Retroactive {
    /// Most contents whose holders are remembered, so that they can be told; at most
    /// 2,000,000, and 0 to tell nobody. Each takes some 100 bytes, and 16 more for each
    /// of at most 32 holders.
    pub contents: u32,
    /// A new signature (for a day) that hits more guests than this within ten minutes
    /// is reported only, until it is confirmed; 0 to let all act.
    pub brake_guests: u32,
    /// Whether contents that were clean, and are still kept (`scan.fragment_store`), are
    /// scanned anew, unasked, when definitions come into force: the most recently used
    /// first, one at a time, while nothing of the guests waits. A content is left out if
    /// `scan.memory` is not larger than `scan.max_scan_size` by as much as it has.
    pub rescan: bool,
}

impl Default for Retroactive {
    fn default() -> Self {
        Self {
            contents: 200_000,
            brake_guests: 5,
            rescan: true,
        }
    }
}

/// What peers may have at a time.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Connected agents' sessions.
    pub sessions: u32,
    /// Sessions of one agent; a further one ends its oldest.
    pub sessions_per_agent: u32,
    /// Open requests of all agents.
    pub requests: u32,
    /// Open requests of one tenant's agents.
    pub requests_per_tenant: u32,
    /// Open requests of one agent.
    pub requests_per_agent: u32,
    /// Contents that wait for a worker.
    pub queue: u32,
    /// Contents of one tenant's agents that wait for a worker.
    pub queue_per_tenant: u32,
    /// Contents of one agent that wait for a worker.
    pub queue_per_agent: u32,
    /// Seconds without the expected frame after which a sender is given up.
    pub stall_s: u32,
    /// Milliseconds after which a sender that is silent, or slow, gives way to another one
    /// that waits with the same content.
    pub hand_over_ms: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            sessions: 4096,
            sessions_per_agent: 4,
            requests: 8192,
            requests_per_tenant: 6144,
            requests_per_agent: 64,
            queue: 1024,
            queue_per_tenant: 768,
            queue_per_agent: 64,
            stall_s: 5,
            hand_over_ms: 1000,
        }
    }
}

impl Limits {
    /// Time without the expected frame after which a sender is given up.
    pub fn stall(&self) -> Duration {
        Duration::from_secs(self.stall_s.into())
    }
}

/// Why settings cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BadSettings {
    /// The file, a drop-in or a variable.
    #[error(transparent)]
    Read(#[from] SettingsError),
    /// A value is outside its bounds.
    #[error("{file}: {key} is {value}; {rule}", file = file.display())]
    Bound {
        /// The settings file.
        file: PathBuf,
        /// Which key.
        key: String,
        /// What it holds.
        value: String,
        /// What it may hold.
        rule: String,
    },
}

/// Reads and checks the settings in `file`.
///
/// # Errors
/// [`BadSettings`] naming the file, the key, and what it may hold.
pub fn load(file: &Path) -> Result<Settings, BadSettings> {
    let settings: Settings = settings::load(COMPONENT, file, std::env::vars_os())?;
    settings.check(file)?;
    Ok(settings)
}

impl Settings {
    fn check(&self, file: &Path) -> Result<(), BadSettings> {
        let bound = |fits: bool, key: &str, value: &dyn fmt::Display, rule: String| {
            if fits {
                return Ok(());
            }
            Err(BadSettings::Bound {
                file: file.to_owned(),
                key: key.to_owned(),
                value: value.to_string(),
                rule,
            })
        };
        let max = self.scan.max_scan_size;
        bound(
            (1..=MAX_CONTENT_BYTES).contains(&max.0),
            "scan.max_scan_size",
            &max,
            format!("1 to {MAX_CONTENT_BYTES} bytes are possible"),
        )?;
        bound(
            self.scan.memory >= max,
            "scan.memory",
            &self.scan.memory,
            format!("it must hold the largest content that is scanned ({max})"),
        )?;
        let confinement = self.scan.confinement_rules().into_iter();
        for (fits, key, value, rule) in confinement.chain(self.scan.fragment_rules()) {
            bound(fits, key, &value, rule)?;
        }
        bound(
            self.advertise.len() <= MAX_ADDRESSES,
            "advertise",
            &format!("a list of {}", self.advertise.len()),
            format!("{MAX_ADDRESSES} addresses are possible"),
        )?;
        bound(
            self.tags.len() <= MAX_TAGS
                && self.tags.iter().all(|tag| Name::new(tag.as_str()).is_ok()),
            "tags",
            &format!("a list of {}", self.tags.len()),
            format!("{MAX_TAGS} tags of 255 bytes each are possible"),
        )?;
        bound(
            self.tenants.len() <= MAX_TENANTS,
            "tenants",
            &format!("a list of {}", self.tenants.len()),
            format!("{MAX_TENANTS} tenants are possible"),
        )?;
        bound(
            self.definitions.repository != Some(true) || self.definitions.source.is_none(),
            "definitions.repository",
            &true,
            "either it or definitions.source is possible".to_owned(),
        )?;
        bound(
            (1..=MAX_KEPT).contains(&self.definitions.keep),
            "definitions.keep",
            &self.definitions.keep,
            format!("1 to {MAX_KEPT} are possible"),
        )?;
        bound(
            self.definitions.clean_corpus.len() <= MAX_CORPUS_DIRECTORIES,
            "definitions.clean_corpus",
            &format!("a list of {}", self.definitions.clean_corpus.len()),
            format!("{MAX_CORPUS_DIRECTORIES} directories are possible"),
        )?;
        bound(
            self.retroactive.contents <= MAX_HELD,
            "retroactive.contents",
            &self.retroactive.contents,
            format!("0 to {MAX_HELD} are possible"),
        )?;
        bound(
            self.retroactive.brake_guests <= MAX_BRAKE_GUESTS,
            "retroactive.brake_guests",
            &self.retroactive.brake_guests,
            format!("0 to {MAX_BRAKE_GUESTS} are possible"),
        )?;
        let streams = endpoint::Bounds::SCAN_SERVER.peer_streams;
        bound(
            (1..=streams).contains(&self.limits.requests_per_agent),
            "limits.requests_per_agent",
            &self.limits.requests_per_agent,
            format!("1 to {streams} are possible"),
        )?;
        if let Some((key, value, rule)) = self.engines.clamav.broken_bound() {
            bound(false, &key, &value, rule)?;
        }
        for (key, value) in [
            ("definitions.poll_s", self.definitions.poll_s),
            (
                "definitions.load_timeout_s",
                self.definitions.load_timeout_s,
            ),
            ("scan.timeout_s", self.scan.timeout_s),
            ("scan.cpu_timeout_s", self.scan.cpu_timeout_s),
            ("scan.give_way_ms", self.scan.give_way_ms),
            ("scan.recycle_after", self.scan.recycle_after),
            ("limits.sessions", self.limits.sessions),
            ("limits.sessions_per_agent", self.limits.sessions_per_agent),
            ("limits.requests", self.limits.requests),
            (
                "limits.requests_per_tenant",
                self.limits.requests_per_tenant,
            ),
            ("limits.queue", self.limits.queue),
            ("limits.queue_per_tenant", self.limits.queue_per_tenant),
            ("limits.queue_per_agent", self.limits.queue_per_agent),
            ("limits.stall_s", self.limits.stall_s),
            ("limits.hand_over_ms", self.limits.hand_over_ms),
        ] {
            bound(value > 0, key, &value, "at least 1 is needed".to_owned())?;
        }
        Ok(())
    }

    /// The folders in force.
    ///
    /// # Errors
    /// When the running program's own path is unknown.
    pub fn folders(&self, site: &Site) -> std::io::Result<Folders> {
        Ok(Folders {
            state: self
                .state_dir
                .clone()
                .unwrap_or_else(|| site.state(COMPONENT)),
            run: self.run_dir.clone().unwrap_or_else(|| site.run(COMPONENT)),
            helpers: match &self.helpers_dir {
                Some(folder) => folder.clone(),
                None => site.helpers()?,
            },
        })
    }

    /// Scans at a time.
    pub fn workers(&self) -> usize {
        match self.scan.workers {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            given => given as usize,
        }
    }

    /// What bounds the service of requests.
    pub fn bounds(&self) -> Bounds {
        Bounds {
            max_scan_bytes: self.scan.max_scan_size.0,
            max_verdict_age: Duration::from_secs(self.cache.max_verdict_age_s.into()),
            stall: self.limits.stall(),
            hand_over: Duration::from_millis(self.limits.hand_over_ms.into()),
        }
    }

    /// How many scans run at a time, and which give way.
    pub fn layout(&self) -> Layout {
        let give_way = Duration::from_millis(self.scan.give_way_ms.into());
        Layout::new(self.workers(), give_way)
    }

    /// Time that each engine may take over one content.
    pub fn scan_timeout(&self) -> Duration {
        Duration::from_secs(self.scan.timeout_s.into())
    }
}

/// The folders in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folders {
    /// What must outlive a restart.
    pub state: PathBuf,
    /// Scratch.
    pub run: PathBuf,
    /// The engine programs.
    pub helpers: PathBuf,
}

impl Folders {
    /// Where workers keep their temporary files.
    pub fn scratch(&self) -> PathBuf {
        self.run.join("scratch")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Settings, BadSettings> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("scanserver.toml");
        std::fs::write(&file, text).unwrap();
        let settings: Settings = settings::load(COMPONENT, &file, [])?;
        settings.check(&file)?;
        Ok(settings)
    }

    #[test]
    fn defaults_are_within_their_own_bounds() {
        assert_eq!(read("").unwrap(), Settings::default());
    }

    #[test]
    fn sizes_have_units() {
        let settings = read("[scan]\nmax_scan_size = '64 MiB'\nmemory = 134217728").unwrap();
        assert_eq!(settings.scan.max_scan_size, ByteSize(64 << 20));
        assert_eq!(settings.scan.memory, ByteSize(128 << 20));
        let settings = read("[scan]\nfragment_disk = '8 GiB'").unwrap();
        assert_eq!(settings.scan.fragment_disk, ByteSize(8 << 30));
        assert!(read("[scan]\nmax_scan_size = '64 MB'").is_err());
        assert!(read("[scan]\nmax_scan_size = '99999999999999999999 GiB'").is_err());
    }

    #[test]
    fn mistakes_name_the_key() {
        let said = |text: &str| read(text).unwrap_err().to_string();
        assert!(said("[scan]\nmax_scan_size = 0").contains("scan.max_scan_size"));
        assert!(said("[scan]\nmemory = 1").contains("scan.memory"));
        assert!(said("[limits]\nrequests_per_agent = 1000").contains("requests_per_agent"));
        assert!(said("[limits]\nqueue = 0").contains("limits.queue"));
        assert!(said("[scan]\ngive_way_ms = 0").contains("scan.give_way_ms"));
        assert!(said("[scan]\nworker_memory = '512 MiB'").contains("scan.worker_memory"));
        assert!(said("[scan]\nworker_scratch = 0").contains("scan.worker_scratch"));
        for disk in ["1", "'257 GiB'"] {
            let text = said(&format!("[scan]\nfragment_disk = {disk}"));
            assert!(text.contains("scan.fragment_disk"), "{text}");
        }
        let text = said("[scan]\nfragment_store = 0\nfragment_disk = '1 GiB'");
        assert!(text.contains("scan.fragment_store, which keeps"), "{text}");
        assert!(said("[scan]\nfragment_store = '2 GiB'").contains("scan.fragment_store"));
        for user in ["root", "0", "no-such-user"] {
            let text = said(&format!("[scan]\nworker_user = '{user}'"));
            assert!(text.contains("scan.worker_user"), "{text}");
        }
        assert!(said("[scan]\nsandbox = 'off'").contains("best-effort"));
        assert!(said("[definitions]\nkeep = 0").contains("definitions.keep"));
        assert!(said("[definitions]\nkeep = 17").contains("1 to 16"));
        assert!(said("lisen = '127.0.0.1:1'").contains("lisen"));
    }
}
