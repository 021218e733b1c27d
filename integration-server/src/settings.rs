//! `server.toml`: every key, its default, and what is checked before a start.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use palisade_daemon::cli::Common;
use palisade_daemon::settings::{self, SettingsError};
use palisade_daemon::site::Component;
use palisade_protocol::ids::{BadId, DeploymentId, ServerName};
use palisade_protocol::{DEFAULT_API_PORT, DEFAULT_CONTROL_PORT};
use serde::Deserialize;

use crate::accounts::sessions::Limits;
use crate::interval::Interval;
use crate::store::postgres::Address;
use crate::store::seal::master::{self, Source};
use crate::store::{Database, Place, place};

/// The server's name within a site: its settings, state and run files.
pub const COMPONENT: Component = "server";

/// Most addresses that one join token carries.
const MAX_ADVERTISED: usize = 8;

/// What can be set.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// The deployment: the trust domain of every identity. Fixed at first start.
    pub deployment: String,
    /// This server among equals.
    pub server_name: String,
    /// UDP address on which agents and Protection Servers connect.
    pub listen_control: SocketAddr,
    /// TCP address of the REST API.
    pub listen_api: SocketAddr,
    /// Control addresses that join tokens carry; by default `listen_control`, or
    /// with an unspecified address the machine's own ones.
    pub advertise_control: Vec<SocketAddr>,
    /// DNS names and IP addresses in the API's certificate, beside the defaults.
    pub api_names: Vec<String>,
    /// Where state is kept, instead of the site's own folder.
    pub state_dir: Option<PathBuf>,
    /// The database: `sqlite:PATH`, by default `palisade.db` in the state folder, or
    /// `postgres://USER@HOST/DATABASE`, which several servers can share.
    pub database: Option<String>,
    /// A file of mode 0600 with the password for PostgreSQL; by default the credential
    /// `database-password`, `PGPASSFILE` or `~/.pgpass`.
    pub database_password_file: Option<PathBuf>,
    /// The key that the database is sealed with, in a file of mode 0600; by default the
    /// credential `master-key`, or else `master-key` in the state folder, which is made
    /// at first start.
    pub master_key_file: Option<PathBuf>,
    /// Hypervisor connections to read the inventory from.
    pub libvirt: Vec<LibvirtSource>,
    /// Timing of the inventory.
    pub inventory: InventorySettings,
    /// Timing of control sessions.
    pub fleet: FleetSettings,
    /// Accounts of people.
    pub accounts: Limits,
    /// The site's repository of definitions.
    pub definitions: DefinitionsSettings,
}

/// One libvirt connection and where its host stands.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LibvirtSource {
    /// A libvirt connection URI: `qemu:///system`, `qemu+tls://host/system`, …
    pub uri: String,
    /// The data centre.
    #[serde(default)]
    pub datacenter: String,
    /// The cluster.
    #[serde(default)]
    pub cluster: String,
    /// The host's name, instead of what libvirt calls it.
    #[serde(default)]
    pub host: Option<String>,
}

/// Timing of the inventory.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct InventorySettings {
    /// A full reading of every host, events or not.
    pub poll: Interval,
}

/// Timing of control sessions.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct FleetSettings {
    /// How often agents and Protection Servers report.
    pub report_every: Interval,
    /// A Protection Server without a session for this long is listed as absent, so that
    /// agents try it last; one that says nothing on its session for this long loses it.
    pub svm_lost_after: Interval,
    /// An agent that says nothing on its session for this long loses it.
    pub agent_lost_after: Interval,
    /// How long an agent may take to be there after its domain or this server has
    /// started; then it counts as lost, and is an alarm. As long may one be gone whose
    /// domain no host knows.
    pub agent_boot_grace: Interval,
}

/// The site's repository of definitions.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct DefinitionsSettings {
    /// A directory whose changes are imported by themselves, such as freshclam's
    /// `/var/lib/clamav`.
    pub source: Option<PathBuf>,
    /// Between two looks at it.
    pub poll: Interval,
    /// Most MiB of one generation.
    pub max_mib: u32,
    /// Generations that are kept, the wanted one and the one before included.
    pub keep: u8,
    /// How long the signed word that the definitions are current is good; it is signed
    /// anew when a third of that is left. A Protection Server that gets no newer one for
    /// so long says so.
    pub timestamp_lifetime: Interval,
}

impl Default for DefinitionsSettings {
    fn default() -> Self {
        Self {
            source: None,
            poll: Interval::from_secs(60),
            max_mib: 4096,
            keep: 5,
            timestamp_lifetime: Interval::from_secs(24 * 3600),
        }
    }
}

/// Generations that a repository may keep.
const KEPT: std::ops::RangeInclusive<u8> = 2..=16;

impl Default for InventorySettings {
    fn default() -> Self {
        Self {
            poll: Interval::from_secs(60),
        }
    }
}

impl Default for FleetSettings {
    fn default() -> Self {
        Self {
            report_every: Interval::from_secs(300),
            svm_lost_after: Interval::from_secs(15 * 60),
            agent_lost_after: Interval::from_secs(30 * 60),
            // A guest boots, and its agent waits up to 43 s between two attempts.
            agent_boot_grace: Interval::from_secs(2 * 60),
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            deployment: "palisade".to_owned(),
            server_name: "server-1".to_owned(),
            listen_control: (Ipv4Addr::UNSPECIFIED, DEFAULT_CONTROL_PORT).into(),
            listen_api: (Ipv4Addr::UNSPECIFIED, DEFAULT_API_PORT).into(),
            advertise_control: Vec::new(),
            api_names: Vec::new(),
            state_dir: None,
            database: None,
            database_password_file: None,
            master_key_file: None,
            libvirt: Vec::new(),
            inventory: InventorySettings::default(),
            fleet: FleetSettings::default(),
            accounts: Limits::default(),
            definitions: DefinitionsSettings::default(),
        }
    }
}

/// Settings that cannot be used, with the key to change.
#[derive(Debug, thiserror::Error)]
pub enum BadSettings {
    /// The files cannot be read as settings.
    #[error(transparent)]
    Read(#[from] SettingsError),
    /// A value is not usable.
    #[error("settings of server ({file}): {key}: {problem}")]
    Value {
        /// Where it was read from.
        file: PathBuf,
        /// Which key.
        key: &'static str,
        /// What is wrong, and what is expected.
        problem: String,
    },
}

impl Settings {
    /// Reads and checks the settings that the command line names.
    ///
    /// # Errors
    /// [`BadSettings`] naming the file, the key and the remedy.
    pub fn load(
        common: &Common,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Result<Self, BadSettings> {
        let file = common.settings(COMPONENT);
        let settings: Self = settings::load(COMPONENT, &file, environment)?;
        settings.check(&file)?;
        Ok(settings)
    }

    fn check(&self, file: &Path) -> Result<(), BadSettings> {
        let bad = |key, problem: String| {
            Err(BadSettings::Value {
                file: file.to_owned(),
                key,
                problem,
            })
        };
        if let Err(error) = self.deployment() {
            return bad("deployment", error.to_string());
        }
        if let Err(error) = self.server_name() {
            return bad("server_name", error.to_string());
        }
        let mut uris = BTreeSet::new();
        for source in &self.libvirt {
            if !source.uri.contains(':') {
                return bad(
                    "libvirt.uri",
                    format!("{:?} is not a libvirt URI", source.uri),
                );
            }
            if !uris.insert(&source.uri) {
                return bad("libvirt.uri", format!("{:?} is given twice", source.uri));
            }
            let names = [
                Some(&source.datacenter),
                Some(&source.cluster),
                source.host.as_ref(),
            ];
            if names.into_iter().flatten().any(|name| name.len() > 255) {
                return bad(
                    "libvirt",
                    format!("a name of {:?} is over 255 bytes", source.uri),
                );
            }
        }
        if self.advertise_control.len() > MAX_ADVERTISED {
            return bad(
                "advertise_control",
                format!("at most {MAX_ADVERTISED} addresses fit a join token"),
            );
        }
        if let Some(address) = self
            .advertise_control
            .iter()
            .find(|a| a.ip().is_unspecified())
        {
            return bad(
                "advertise_control",
                format!("nobody can connect to {address}"),
            );
        }
        if !KEPT.contains(&self.definitions.keep) {
            let (least, most) = (KEPT.start(), KEPT.end());
            return bad(
                "definitions.keep",
                format!("{least} to {most} are possible"),
            );
        }
        if self.definitions.max_mib == 0 {
            return bad("definitions.max_mib", "at least 1 is needed".to_owned());
        }
        if let Err(problem) = self.place(Path::new("")) {
            return bad("database", problem);
        }
        Ok(())
    }

    /// The deployment's name.
    ///
    /// # Errors
    /// [`BadId`]; not for settings that were loaded, which are checked.
    pub fn deployment(&self) -> Result<DeploymentId, BadId> {
        self.deployment.parse()
    }

    /// This server's name.
    ///
    /// # Errors
    /// [`BadId`]; not for settings that were loaded, which are checked.
    pub fn server_name(&self) -> Result<ServerName, BadId> {
        self.server_name.parse()
    }

    /// Where state is kept.
    pub fn state(&self, common: &Common) -> PathBuf {
        self.state_dir
            .clone()
            .unwrap_or_else(|| common.site().state(COMPONENT))
    }

    /// Where the store is.
    ///
    /// # Errors
    /// What is wrong with `database`; not for settings that were loaded, which are
    /// checked.
    pub fn place(&self, state: &Path) -> Result<Place, String> {
        let master = match &self.master_key_file {
            Some(file) => Source::File(file.clone()),
            None => place::credential(master::NAME).map_or_else(
                || Source::File(state.join(master::NAME)),
                Source::Credential,
            ),
        };
        Ok(Place {
            database: self.place_of_database(state)?,
            master,
        })
    }

    fn place_of_database(&self, state: &Path) -> Result<Database, String> {
        let Some(database) = self.database.as_deref() else {
            return Ok(Database::File(state.join("palisade.db")));
        };
        if let Some(path) = database.strip_prefix("sqlite:").filter(|p| !p.is_empty()) {
            return Ok(Database::File(PathBuf::from(path)));
        }
        if database.starts_with("postgres://") || database.starts_with("postgresql://") {
            let address = Address::parse(database)?.into();
            return Ok(Database::Postgres(
                address,
                self.database_password_file.clone(),
            ));
        }
        Err(format!(
            "{database:?} is neither sqlite:PATH nor postgres://USER@HOST/DATABASE"
        ))
    }

    /// The control addresses that join tokens carry, once the listener is bound.
    pub fn advertised(&self, bound: SocketAddr) -> Vec<SocketAddr> {
        if !self.advertise_control.is_empty() {
            return self.advertise_control.clone();
        }
        if !bound.ip().is_unspecified() {
            return vec![bound];
        }
        let mut addresses: Vec<IpAddr> = interface_addresses(bound.is_ipv6());
        if addresses.is_empty() {
            addresses.push(Ipv4Addr::LOCALHOST.into());
        }
        addresses.truncate(MAX_ADVERTISED);
        addresses
            .into_iter()
            .map(|ip| SocketAddr::new(ip, bound.port()))
            .collect()
    }

    /// DNS names and IP addresses of the API's certificate.
    pub fn certificate_names(&self, hostname: &str) -> Vec<String> {
        let mut names: BTreeSet<String> =
            ["localhost", "127.0.0.1", "::1"].map(str::to_owned).into();
        if !hostname.is_empty() {
            names.insert(hostname.to_owned());
        }
        if !self.listen_api.ip().is_unspecified() {
            names.insert(self.listen_api.ip().to_string());
        }
        names.extend(self.api_names.iter().cloned());
        names.into_iter().collect()
    }
}

/// The machine's addresses that others may reach, loopback and link-local left out.
fn interface_addresses(v6_too: bool) -> Vec<IpAddr> {
    let Ok(interfaces) = nix::ifaddrs::getifaddrs() else {
        return Vec::new();
    };
    let mut addresses = BTreeSet::new();
    for interface in interfaces {
        let Some(storage) = interface.address else {
            continue;
        };
        if let Some(v4) = storage.as_sockaddr_in() {
            let ip = v4.ip();
            if !ip.is_loopback() && !ip.is_link_local() {
                addresses.insert(IpAddr::V4(ip));
            }
        } else if let Some(v6) = storage.as_sockaddr_in6().filter(|_| v6_too) {
            let ip = v6.ip();
            if !ip.is_loopback() && !ip.is_unicast_link_local() {
                addresses.insert(IpAddr::V6(ip));
            }
        }
    }
    addresses.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<Settings, String> {
        let settings: Settings = toml::from_str(text).map_err(|error| error.to_string())?;
        settings
            .check(Path::new("server.toml"))
            .map_err(|error| error.to_string())?;
        Ok(settings)
    }

    #[test]
    fn defaults_are_usable() {
        let settings = parsed("").unwrap();
        assert_eq!(settings.deployment().unwrap().as_str(), "palisade");
        assert_eq!(settings.server_name().unwrap().as_str(), "server-1");
        assert_eq!(settings.listen_control.port(), 7444);
        assert_eq!(settings.listen_api.port(), 7445);
    }

    #[test]
    fn bad_values_name_their_key() {
        for (text, key) in [
            ("deployment = 'Not A Label'", "deployment: "),
            ("server_name = ''", "server_name: "),
            ("advertise_control = ['0.0.0.0:7444']", "advertise_control"),
            ("database = 'mysql://x'", "database"),
            ("database = 'sqlite:'", "database: "),
            (
                "database = 'postgres://u:secret@h/d'",
                "database_password_file",
            ),
            ("[[libvirt]]\nuri = 'nonsense'", "libvirt.uri"),
            (
                "[[libvirt]]\nuri = 'a:b'\n[[libvirt]]\nuri = 'a:b'",
                "libvirt.uri",
            ),
            ("[fleet]\nreport_every = 'often'", "duration"),
            ("listen = 1", "listen"),
        ] {
            let error = parsed(text).unwrap_err();
            assert!(error.contains(key), "{text}: {error}");
        }
    }

    #[test]
    fn an_advertised_address_can_be_dialled() {
        let settings = parsed("").unwrap();
        for address in settings.advertised(([0, 0, 0, 0], 7444).into()) {
            assert!(!address.ip().is_unspecified());
            assert_eq!(address.port(), 7444);
        }
        let one = settings.advertised(([127, 0, 0, 1], 9).into());
        assert_eq!(one, vec![SocketAddr::from(([127, 0, 0, 1], 9))]);
    }
}
