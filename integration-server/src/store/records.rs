//! The store's rows, as the rest of the server sees them.

use palisade_protocol::bounded::PathBytes;
use palisade_protocol::control::{AgentReport, Component, HostFacts, SvmReport};
use palisade_protocol::ids::{AgentId, SvmId, TenantId};
use palisade_protocol::maintenance::Allowed;
use palisade_protocol::policy::PolicyReport;
use uuid::Uuid;

use crate::access::Grant;
use crate::accounts::sessions::Times;
use crate::policy::{Settings, Subject};
use crate::secret::Hash;

/// A join token, without its secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JoinTokenRecord {
    /// Its id.
    pub id: Uuid,
    /// What may join with it.
    pub component: Component,
    /// The tenant that agents join.
    pub tenant: TenantId,
    /// SHA-256 of the secret.
    pub secret_sha256: Hash,
    /// How often it may be used.
    pub uses: u32,
    /// How often it was used.
    pub used: u32,
    /// When it was made.
    pub created_ms: u64,
    /// When it ends.
    pub expires_ms: u64,
    /// When it was revoked.
    pub revoked_ms: Option<u64>,
}

/// An API token, without its text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiToken {
    /// Its id.
    pub id: Uuid,
    /// What it is for.
    pub name: String,
    /// SHA-256 of its text.
    pub token_sha256: Hash,
    /// When it was made.
    pub created_ms: u64,
}

/// A component that asks to be kept.
#[derive(Debug, Clone)]
pub struct NewComponent {
    /// Who it will be.
    pub id: Uuid,
    /// The token that it joins with; its kind and tenant are the component's.
    pub token: JoinTokenRecord,
    /// A name for people.
    pub name: String,
    /// SHA-256 of its public key.
    pub key_sha256: Hash,
    /// What it says of its machine.
    pub host: HostFacts,
}

/// A component that joined before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Joined {
    /// Its id.
    pub id: Uuid,
    /// Its name.
    pub name: String,
    /// Whether it was revoked since.
    pub revoked: bool,
}

/// What came of using a join token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Spent {
    /// The component is kept, under this name: its own, or one made unlike any other.
    Joined(String),
    /// The token is used up, over or revoked.
    NotUsable,
}

/// A Protection Server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SvmRecord {
    /// Its id.
    pub id: SvmId,
    /// A name for people.
    pub name: String,
    /// Whether it was revoked.
    pub revoked: bool,
    /// When it was last heard.
    pub last_seen_ms: Option<u64>,
    /// Its program's version.
    pub version: String,
    /// The SMBIOS UUID that it claims.
    pub product_uuid: Option<Uuid>,
    /// Its last report.
    pub report: Option<SvmReport>,
}

/// An agent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentRecord {
    /// Its id.
    pub id: AgentId,
    /// Its tenant.
    pub tenant: TenantId,
    /// A name for people.
    pub name: String,
    /// Whether it was revoked.
    pub revoked: bool,
    /// When it was last heard.
    pub last_seen_ms: Option<u64>,
    /// Its program's version.
    pub version: String,
    /// The SMBIOS UUID that it claims.
    pub product_uuid: Option<Uuid>,
    /// Its last report.
    pub report: Option<AgentReport>,
}

/// What a maintenance token allows, without its text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MaintenanceRecord {
    /// Names it in logs of both sides.
    pub id: Uuid,
    /// Whose agent may be stopped.
    pub agent: AgentId,
    /// What is allowed.
    pub allowed: Allowed,
    /// From when on.
    pub from_ms: u64,
    /// Until when.
    pub until_ms: u64,
    /// Why, in the words of who asked for it.
    pub reason: String,
}

/// A detection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DetectionRecord {
    /// Its place in the order of arrival.
    pub seq: u64,
    /// The id that the agent gave it.
    pub id: Uuid,
    /// Who found it.
    pub agent: AgentId,
    /// The agent's name.
    pub agent_name: String,
    /// The agent's tenant.
    pub tenant: TenantId,
    /// When, by the agent's clock.
    pub time_ms: u64,
    /// When it arrived.
    pub received_ms: u64,
    /// Which file.
    pub path: PathBytes,
    /// Malware or suspicious.
    pub verdict: String,
    /// The engine's signature name.
    pub name: String,
    /// Which engine.
    pub engine: String,
    /// The part of the file that it was found in.
    pub member: Option<String>,
    /// What was done.
    pub action: String,
    /// What the scan was asked for.
    pub class: String,
    /// BLAKE3 of the content.
    pub blake3: [u8; 32],
    /// SHA-256 of the content.
    pub sha256: Option<[u8; 32]>,
    /// Bytes of the content.
    pub size: u64,
    /// The process that opened it; 0 for none.
    pub pid: u32,
    /// The container that it ran in.
    pub container: Option<String>,
}

/// Some detections, and where the next ones are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DetectionPage {
    /// Newest first.
    pub items: Vec<DetectionRecord>,
    /// What to ask for next; none at the end.
    pub next: Option<u64>,
}

/// An account.
#[derive(Clone, PartialEq, Eq)]
pub struct AccountRecord {
    /// Its id.
    pub id: Uuid,
    /// Its name, like no other's.
    pub name: String,
    /// The password's hash, with its parameters.
    pub password: String,
    /// What it may do.
    pub grants: Vec<Grant>,
    /// The second factor's secret.
    pub totp: Option<Vec<u8>>,
    /// Since when the second factor is asked for.
    pub totp_on_ms: Option<u64>,
    /// Grows with each change that somebody else makes.
    pub revision: u64,
    /// When it was made.
    pub created_ms: u64,
    /// When its password was set.
    pub password_ms: u64,
    /// When it last logged in.
    pub login_ms: Option<u64>,
    /// When it was disabled.
    pub disabled_ms: Option<u64>,
}

impl std::fmt::Debug for AccountRecord {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "AccountRecord({} {:?})", self.id, self.name)
    }
}

/// A session, without its token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionRecord {
    /// Its id.
    pub id: Uuid,
    /// Whose.
    pub account: Uuid,
    /// The hash of its token.
    pub token_sha256: Hash,
    /// From where it was begun.
    pub address: String,
    /// Its times.
    pub times: Times,
}

/// An account's API token, without its text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AccountToken {
    /// Its id.
    pub id: Uuid,
    /// Whose.
    pub account: Uuid,
    /// What it is for.
    pub name: String,
    /// What it is limited to, of what its account may do.
    pub scope: Grant,
    /// SHA-256 of its text.
    pub token_sha256: Hash,
    /// When it was made.
    pub created_ms: u64,
    /// When it ends.
    pub expires_ms: u64,
    /// When it was last used.
    pub used_ms: Option<u64>,
    /// When it was revoked.
    pub revoked_ms: Option<u64>,
}

/// What came of an attempt to log in, before the password is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attempt {
    /// It counts as a failure until it is taken back.
    Counted,
    /// It is too early; for how many milliseconds.
    TooEarly(u64),
}

/// A revision of a policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyRecord {
    /// What it is of.
    pub subject: Subject,
    /// Its number, from 1 on.
    pub revision: u64,
    /// When it was made.
    pub made_ms: u64,
    /// What it sets.
    pub settings: Settings,
    /// Who made it.
    pub by: String,
    /// Why, in his words.
    pub note: String,
}

/// A group of a tenant's agents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GroupRecord {
    /// Its id.
    pub id: Uuid,
    /// Its tenant.
    pub tenant: TenantId,
    /// Its name, like no other of the tenant's.
    pub name: String,
    /// Who is in it.
    pub query: String,
    /// Of two groups that an agent is in, the one with more wins.
    pub priority: u32,
    /// Grows with each change.
    pub revision: u64,
    /// When it was made.
    pub made_ms: u64,
}

/// What an agent made of its policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyReportRecord {
    /// In its words.
    pub report: PolicyReport,
    /// When it said so.
    pub reported_ms: u64,
}

/// A key that signs the repository of definitions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DefinitionsKey {
    /// Of root and targets: what definitions say. It may be elsewhere.
    Publisher,
    /// Of snapshot and timestamp: that they are current.
    Online,
}

impl DefinitionsKey {
    /// As the store names it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Publisher => "publisher",
            Self::Online => "online",
        }
    }
}
