//! What runs where: hosts, their domains, and how old that knowledge is.
//!
//! ```text
//!   libvirt collectors ── Reading (facts or an error) ──► Inventory::apply ──► changes
//!                                                             │
//!                                  store ◄── keeper ──────────┴──► places (for SVM lists)
//! ```
//!
//! Pure: time and readings are arguments. An error is a fact of its own: the
//! host that cannot be read keeps what was last known, with its age.
//!
//! | module | owns |
//! | --- | --- |
//! | [`diff`] | what changed between two readings |
//! | [`keeper`] | the task that applies readings and stores them |
//! | [`sight`] | whether a domain runs, as far as can be told now |
//!
//! **Invariant:** nothing here knows libvirt; a reading may come from anywhere.

pub mod diff;
pub mod keeper;
pub mod sight;

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use palisade_protocol::bounded::{List, Text};
use palisade_protocol::control::{InfrastructurePath, MAX_TAGS, Name};
use uuid::Uuid;

use crate::settings::LibvirtSource;
pub use diff::Change;

/// Longest name of a host or a domain that is kept, in bytes.
const MAX_NAME_BYTES: usize = 255;

/// A domain's state, as libvirt tells it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum DomainState {
    /// It runs (or waits for a device).
    Running,
    /// It is suspended.
    Paused,
    /// It is shutting down.
    ShuttingDown,
    /// It is off.
    ShutOff,
    /// It crashed.
    Crashed,
    /// It sleeps by its own power management.
    Suspended,
    /// libvirt does not say.
    #[default]
    Unknown,
}

impl DomainState {
    /// The name that JSON and stores use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::ShuttingDown => "shutting_down",
            Self::ShutOff => "shutoff",
            Self::Crashed => "crashed",
            Self::Suspended => "suspended",
            Self::Unknown => "unknown",
        }
    }
}

impl fmt::Display for DomainState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A text is no domain state.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no domain state")]
pub struct UnknownState(String);

impl FromStr for DomainState {
    type Err = UnknownState;
    fn from_str(text: &str) -> Result<Self, UnknownState> {
        [
            Self::Running,
            Self::Paused,
            Self::ShuttingDown,
            Self::ShutOff,
            Self::Crashed,
            Self::Suspended,
            Self::Unknown,
        ]
        .into_iter()
        .find(|state| state.as_str() == text)
        .ok_or_else(|| UnknownState(text.chars().take(32).collect()))
    }
}

/// What is known of one domain.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DomainFacts {
    /// Its name, which its owner chose: printed escaped, never trusted.
    pub name: String,
    /// Its state.
    pub state: DomainState,
    /// What the host's administrator calls it in its metadata, in order.
    pub tags: Tags,
    /// When it last began to run, was resumed or restarted, as far as events told; not
    /// stored.
    pub began_ms: Option<u64>,
}

/// A domain's tags.
pub type Tags = List<Name, MAX_TAGS>;

/// What a collector saw, or could not see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reading {
    /// Which connection.
    pub uri: String,
    /// When.
    pub at_ms: u64,
    /// The host and its domains, or why they cannot be read.
    pub outcome: Result<HostFacts, String>,
}

/// One whole reading of a host.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct HostFacts {
    /// What the host calls itself.
    pub hostname: String,
    /// Its domains, active or not.
    pub domains: BTreeMap<Uuid, DomainFacts>,
}

/// One host as it is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostRecord {
    /// The connection that it is read through: what identifies it.
    pub uri: String,
    /// Its name; empty until it was read once.
    pub host: String,
    /// Its data centre; empty when unknown.
    pub datacenter: String,
    /// Its cluster; empty when unknown.
    pub cluster: String,
    /// Why it cannot be read now.
    pub error: Option<String>,
    /// When it was last read whole.
    pub read_ms: Option<u64>,
    /// When that was last tried.
    pub tried_ms: Option<u64>,
    /// Its domains at the last whole reading.
    pub domains: BTreeMap<Uuid, DomainFacts>,
}

/// Whether a host can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostState {
    /// Its facts are current.
    Up,
    /// It cannot be read; its facts are old.
    Down,
    /// It was not read yet.
    Unknown,
}

impl HostState {
    /// The name that JSON uses.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Down => "down",
            Self::Unknown => "unknown",
        }
    }
}

impl HostRecord {
    fn unread(source: &LibvirtSource) -> Self {
        Self {
            uri: source.uri.clone(),
            host: source.host.clone().unwrap_or_default(),
            datacenter: source.datacenter.clone(),
            cluster: source.cluster.clone(),
            error: None,
            read_ms: None,
            tried_ms: None,
            domains: BTreeMap::new(),
        }
    }

    /// Since when it has not been read: the last time that it was, or since it was begun to
    /// be tried.
    pub fn unread_since_ms(&self, began_ms: u64) -> u64 {
        self.read_ms.unwrap_or_default().max(began_ms)
    }

    /// Whether its facts are current, which takes that they are at most so old. One that
    /// hangs says nothing, not even an error.
    pub fn state(&self, now_ms: u64, facts_age_ms: u64, began_ms: u64) -> HostState {
        let age_ms = now_ms.saturating_sub(self.unread_since_ms(began_ms));
        match (&self.error, self.tried_ms) {
            (Some(_), _) => HostState::Down,
            _ if age_ms > facts_age_ms => HostState::Down,
            (None, Some(_)) => HostState::Up,
            (None, None) => HostState::Unknown,
        }
    }

    /// Its place.
    pub fn path(&self) -> InfrastructurePath {
        InfrastructurePath {
            datacenter: Text::cut(&self.datacenter),
            cluster: Text::cut(&self.cluster),
            hypervisor: Text::cut(&self.host),
        }
    }
}

/// All hosts that the settings name.
#[derive(Debug, Clone, Default)]
pub struct Inventory {
    hosts: BTreeMap<String, HostRecord>,
    /// Where a domain is: the host on which it runs before one on which it is defined.
    places: BTreeMap<Uuid, String>,
    overrides: BTreeMap<String, String>,
}

impl Inventory {
    /// The hosts of the settings, with what was known of them before.
    pub fn new(sources: &[LibvirtSource], known: Vec<HostRecord>) -> Self {
        let mut known: BTreeMap<String, HostRecord> = known
            .into_iter()
            .map(|host| (host.uri.clone(), host))
            .collect();
        let mut inventory = Self::default();
        for source in sources {
            let mut host = HostRecord::unread(source);
            if let Some(before) = known.remove(&source.uri) {
                host.domains = before.domains;
                host.read_ms = before.read_ms;
                if source.host.is_none() {
                    host.host = before.host;
                }
            }
            if let Some(name) = &source.host {
                inventory.overrides.insert(source.uri.clone(), name.clone());
            }
            inventory.hosts.insert(source.uri.clone(), host);
        }
        inventory.place();
        inventory
    }

    /// All hosts, by URI.
    pub fn hosts(&self) -> impl Iterator<Item = &HostRecord> {
        self.hosts.values()
    }

    /// One host.
    pub fn host(&self, uri: &str) -> Option<&HostRecord> {
        self.hosts.get(uri)
    }

    /// Takes a reading in; says what changed. Readings of hosts that the settings
    /// do not name change nothing. Those of one host come in their order.
    pub fn apply(&mut self, reading: Reading) -> Vec<Change> {
        let Some(host) = self.hosts.get_mut(&reading.uri) else {
            return Vec::new();
        };
        let before = host.clone();
        host.tried_ms = Some(reading.at_ms);
        match reading.outcome {
            Ok(facts) => {
                host.error = None;
                host.read_ms = Some(reading.at_ms);
                host.host = match self.overrides.get(&reading.uri) {
                    Some(name) => name.clone(),
                    None => cut(&facts.hostname),
                };
                host.domains = facts
                    .domains
                    .into_iter()
                    .map(|(uuid, facts)| {
                        (
                            uuid,
                            DomainFacts {
                                name: cut(&facts.name),
                                ..facts
                            },
                        )
                    })
                    .collect();
            }
            Err(error) => host.error = Some(error),
        }
        let changes = diff::between(&before, host);
        if !changes.is_empty() {
            self.place();
        }
        changes
    }

    /// Where the domain with this UUID is.
    pub fn place_of(&self, uuid: Uuid) -> Option<InfrastructurePath> {
        Some(self.hosts.get(self.places.get(&uuid)?)?.path())
    }

    /// What is known of the domain with this UUID.
    pub fn domain(&self, uuid: Uuid) -> Option<&DomainFacts> {
        self.hosts.get(self.places.get(&uuid)?)?.domains.get(&uuid)
    }

    fn place(&mut self) {
        let mut places = BTreeMap::new();
        for running in [false, true] {
            for host in self.hosts.values() {
                for (uuid, facts) in &host.domains {
                    if (facts.state == DomainState::Running) == running {
                        places.insert(*uuid, host.uri.clone());
                    }
                }
            }
        }
        self.places = places;
    }
}

fn cut(name: &str) -> String {
    Text::<MAX_NAME_BYTES>::cut(name).as_str().to_owned()
}
