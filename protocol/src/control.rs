//! Messages of the control protocol (ALPN `palisade-control/1`): agents and
//! Protection Servers ↔ Integration Server.
//!
//! A connection is one of two kinds, decided by its TLS certificate:
//!
//! ```text
//!  no identity yet (self-signed)            enrolled (issued by the site's CA)
//!    ── Enrol ───────────►                    ── Envelope(Hello) ────────►
//!    ◄── Enrolled | Denied                    ◄── Envelope(Welcome{epoch})
//!    connection ends                          ── Envelope(request n) ────►
//!                                             ◄── Envelope(answer to n)
//!                                             ◄── Envelope(pushed SVM list)
//! ```
//!
//! An enrolled session has one bidirectional stream, opened by the component;
//! every frame on it is a signed [`Envelope`], so that a relay
//! could carry it. Answers name the sequence they answer; pushed messages name
//! none. What the server pushes to a Protection Server is a command about its
//! definitions ([`crate::definitions`]) or word of a new version of the repository, which
//! it pulls on streams of its own ([`crate::pull`]); and to an agent, besides lists and its
//! policy ([`crate::policy`]), a question about its choice ([`crate::choice`]). Their
//! answers come as requests.
//!
//! Versions: 1, the first.

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::bounded::{List, PathBytes, Text};
use crate::choice::Choice;
use crate::codec::Message;
use crate::definitions::{DefinitionsAnswer, DefinitionsCommand};
use crate::envelope::Envelope;
use crate::exposure::ExposureWindows;
use crate::ids::{DetectionId, SvmId, TenantId};
use crate::policy::{Fingerprint, Policy, PolicyReport};
use crate::problem::Problems;
use crate::scan::{LoadHint, ScanClass};
use crate::verdict::{EngineName, Generations, MemberPath, SignatureName, VerdictKind};

/// ALPN names in order of preference.
pub const ALPN: &[&[u8]] = &[b"palisade-control/1"];

/// Most Protection Servers in one list.
pub const MAX_SVMS: usize = 1024;
/// Most revoked Protection Servers that one list names.
pub const MAX_REVOKED: usize = 256;
/// Most addresses of one Protection Server.
pub const MAX_ADDRESSES: usize = 8;
/// Most detections in one message.
pub const MAX_DETECTIONS: usize = 64;
/// Most tags of one component.
pub const MAX_TAGS: usize = 16;
/// Most tenants that a Protection Server may be reserved for.
pub const MAX_TENANTS: usize = 64;
/// Bytes of a certificate or a certificate request, at the most.
pub const MAX_DER_BYTES: usize = 4096;
/// Bytes of a container's name, at the most.
pub const MAX_CONTAINER_BYTES: usize = 128;
/// Certificates in one chain, at the most.
pub const MAX_CHAIN: usize = 4;

/// A short name: host name, cluster, tag.
pub type Name = Text<255>;
/// What a container is called: its runtime, a colon, and its id or name.
pub type ContainerName = Text<MAX_CONTAINER_BYTES>;
/// One DER object.
pub type Der = List<u8, MAX_DER_BYTES>;

/// What travels on a control stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ControlFrame {
    /// A component without identity asks for one; its connection does nothing else.
    Enrol(EnrolRequest),
    /// Answers `Enrol`.
    Enrolled(Enrolled),
    /// Answers anything that is refused before an envelope could be opened.
    Denied(Denied),
    /// A signed message of an enrolled session.
    Envelope(Envelope),
}

impl Message for ControlFrame {
    const MAX_BYTES: usize = 1024 * 1024;
}

/// Asks for an identity with a join token.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrolRequest {
    /// What wants to join.
    pub component: Component,
    /// The join token's id.
    pub token_id: Uuid,
    /// The join token's secret.
    pub secret: [u8; 32],
    /// PKCS#10 request in DER, signed by the component's own key. Its subject
    /// and names are ignored: the server decides them.
    pub csr: Der,
    /// Facts about the machine.
    pub host: HostFacts,
}

impl std::fmt::Debug for EnrolRequest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EnrolRequest")
            .field("component", &self.component)
            .field("token_id", &self.token_id)
            .field("host", &self.host)
            .finish_non_exhaustive()
    }
}

/// The kinds of component that enrol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Component {
    /// A Light Agent.
    Agent,
    /// A Protection Server.
    Svm,
}

/// What a component knows of the machine it runs on. Claims, all of them.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct HostFacts {
    /// The host name.
    pub hostname: Name,
    /// SMBIOS product UUID: under libvirt, the domain's UUID.
    pub product_uuid: Option<Uuid>,
    /// Changes with every boot.
    pub boot_id: Option<Uuid>,
    /// Kernel release.
    pub kernel: Name,
}

/// An identity, issued.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Enrolled {
    /// Leaf, issuing CA, root; each in DER. The leaf's SPIFFE id says who the
    /// component is now.
    pub chain: List<Der, MAX_CHAIN>,
    /// A name for people.
    pub name: Name,
}

/// A refusal.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Denied {
    /// The kind, for programs.
    pub code: DeniedCode,
    /// What is wrong and what helps, for people.
    pub message: Text<512>,
}

/// The kinds of refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum DeniedCode {
    /// No such token, or the wrong secret: both are one answer.
    UnknownToken,
    /// The token's time is over.
    ExpiredToken,
    /// The token was used as often as it may be.
    SpentToken,
    /// The certificate request is not acceptable.
    BadRequest,
    /// The component is unknown, held or revoked.
    NotAdmitted,
    /// An envelope does not verify, is late, or out of order.
    BadEnvelope,
    /// Asked too often; wait.
    TooManyRequests,
    /// The server cannot do it now.
    Unavailable,
}

/// From a component to the Integration Server, inside an envelope.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToServer {
    /// Opens a session; answered by `Welcome`.
    Hello(Hello),
    /// A Protection Server's state; answered by `Ack`.
    SvmReport(SvmReport),
    /// An agent's state; answered by `Ack`.
    AgentReport(AgentReport),
    /// What an agent found; answered by `Ack` once it is stored.
    Detections(List<Detection, MAX_DETECTIONS>),
    /// Asks for the SVM list; answered by `SvmList` or `NotModified`.
    GetSvmList {
        /// The list's version that the agent holds; 0 for none.
        etag: u64,
    },
    /// Asks for a new certificate for a new key; answered by `Renewed`.
    Renew {
        /// PKCS#10 request in DER.
        csr: Der,
    },
    /// What became of a command about a Protection Server's definitions; answered by
    /// `Ack`.
    Definitions(DefinitionsAnswer),
    /// An agent's quarantine key, to be kept for this guest; answered by `Ack` once it
    /// is stored.
    KeepQuarantineKey(QuarantineKey),
    /// Asks for the quarantine key that this guest had kept; answered by
    /// `QuarantineKey`.
    GetQuarantineKey,
    /// Why an agent uses the Protection Server that it uses: answers `Explain`; answered
    /// by `Ack`.
    Choice(Choice),
    /// Asks for the agent's policy; answered by `Policy` or `NotModified`. Who has asked
    /// is told of changes from then on.
    GetPolicy {
        /// The policy that the agent has.
        held: Option<Fingerprint>,
    },
    /// What an agent made of its policy; answered by `Ack` once it is stored.
    PolicyReport(PolicyReport),
}

impl Message for ToServer {
    const MAX_BYTES: usize = 512 * 1024;
}

/// From the Integration Server to a component, inside an envelope.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromServer {
    /// Answers `Hello`.
    Welcome(Welcome),
    /// Done and stored.
    Ack,
    /// The SVM list: asked for, or pushed on a change.
    SvmList(SvmList),
    /// The list that the agent holds is current.
    NotModified,
    /// A new certificate chain.
    Renewed(Enrolled),
    /// Refused.
    Denied(Denied),
    /// A command about its definitions, pushed to a Protection Server.
    Definitions(DefinitionsCommand),
    /// The quarantine key that was kept for this guest, if one was.
    QuarantineKey(Option<QuarantineKey>),
    /// Asks an agent why it uses the Protection Server that it uses, pushed; its `Choice`
    /// has the number.
    Explain {
        /// Tells answers apart.
        number: u64,
    },
    /// The agent's policy: asked for, or pushed on a change.
    Policy(Policy),
    /// The site's repository of definitions has this version, pushed to a Protection Server
    /// when its session begins and on each change; what it holds is pulled
    /// ([`crate::pull`]).
    Published {
        /// Another than before means that something changed; it vouches for nothing.
        version: u64,
    },
}

impl Message for FromServer {
    const MAX_BYTES: usize = 900 * 1024;
}

/// The key that a guest's quarantine is sealed with. It never shows in a log.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuarantineKey(pub [u8; 32]);

impl std::fmt::Debug for QuarantineKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("QuarantineKey(…)")
    }
}

/// Opens a control session.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The component's version.
    pub version: Text<64>,
    /// Facts about the machine.
    pub host: HostFacts,
}

/// Answers `Hello`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The server's version.
    pub version: Text<64>,
    /// The epoch for this session's envelopes from the component.
    pub epoch: u64,
    /// The server's clock, in milliseconds since 1970: envelopes expire by it.
    pub server_time_ms: u64,
    /// Seconds between reports and between polls of the SVM list.
    pub report_every_s: u32,
}

/// Where a Protection Server can be reached.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SvmAddress {
    /// The network's name, for people; empty when it has none.
    pub network: Name,
    /// Where it listens.
    pub address: SocketAddr,
}

/// A place in the infrastructure.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct InfrastructurePath {
    /// Data centre; empty when unknown.
    pub datacenter: Name,
    /// Cluster; empty when unknown.
    pub cluster: Name,
    /// Hypervisor; empty when unknown.
    pub hypervisor: Name,
}

impl std::fmt::Display for InfrastructurePath {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let known = [&self.datacenter, &self.cluster, &self.hypervisor];
        let mut first = true;
        for part in known.into_iter().filter(|part| !part.is_empty()) {
            if !first {
                f.write_str("/")?;
            }
            first = false;
            f.write_str(part)?;
        }
        if first { f.write_str("-") } else { Ok(()) }
    }
}

/// Whether a Protection Server is licensed. It never stops protection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub enum LicenceState {
    /// Licensed, or under the built-in licence without limit.
    #[default]
    Valid,
    /// Over its limit or its time.
    Exceeded,
}

/// A Protection Server's state, at once on a change and every five minutes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SvmReport {
    /// Where agents reach it.
    pub addresses: List<SvmAddress, MAX_ADDRESSES>,
    /// Where it stands.
    pub path: InfrastructurePath,
    /// Its licence.
    pub licence: LicenceState,
    /// Load averaged since the last report.
    pub average_load: LoadHint,
    /// Connected agents.
    pub agents: u32,
    /// The definitions in force; empty when it cannot serve.
    pub generations: Generations,
    /// It finishes what it has and takes no new agents.
    pub draining: bool,
    /// Only agents that carry one of these tags may use it; empty for all.
    pub tags: List<Name, MAX_TAGS>,
    /// What is wrong with it; agents are not told.
    #[serde(default)]
    pub problems: Problems,
    /// Only agents of these tenants may use it; empty for all. Agents are told of none:
    /// the server leaves out of their lists what they may not use.
    #[serde(default)]
    pub tenants: List<TenantId, MAX_TENANTS>,
    /// The generation of the site's repository that is in force; none when none is, or it
    /// has a source of its own.
    #[serde(default)]
    pub followed: Option<u64>,
}

/// The Protection Servers that an agent may choose from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SvmList {
    /// The list's version.
    pub etag: u64,
    /// The agent's own place, from the inventory.
    pub own_path: InfrastructurePath,
    /// The agent's own tags.
    pub own_tags: List<Name, MAX_TAGS>,
    /// The Protection Servers.
    pub svms: List<SvmEntry, MAX_SVMS>,
    /// Protection Servers that were revoked, the latest first: a session with one ends at
    /// once, where one that is merely not listed goes on until there is a better one.
    #[serde(default)]
    pub revoked: List<SvmId, MAX_REVOKED>,
}

/// One Protection Server in a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SvmEntry {
    /// Whose certificate must answer there.
    pub id: SvmId,
    /// A name for people.
    pub name: Name,
    /// Its last report.
    pub report: SvmReport,
    /// The server has had no session with it for long. Agents may reach it all the same,
    /// and try it after all others.
    #[serde(default)]
    pub absent: bool,
}

/// Whether and how an agent protects on access.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Protection {
    /// Opens of malware are blocked; the self-test says so.
    Blocking,
    /// Nothing is protected on access, for this reason.
    Off {
        /// Why, and what helps.
        reason: Text<512>,
    },
    /// Opens are scanned and malware is reported; nothing is blocked, as policy has it.
    Monitoring,
}

/// An agent's state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentReport {
    /// On-access protection.
    pub protection: Protection,
    /// The Protection Server it is connected to.
    pub svm: Option<SvmId>,
    /// Events since the agent started.
    pub events: EventCounters,
    /// The agent's clock, in milliseconds since 1970.
    pub clock_ms: u64,
    /// The guest's time without verdicts, the newest first.
    pub exposure: ExposureWindows,
    /// The maintenance token in force in the guest.
    pub maintenance: Option<Uuid>,
}

/// Where every permission event went; `seen` is the sum of the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct EventCounters {
    /// Permission events read from the kernel.
    pub seen: u64,
    /// Answered by a Protection Server's verdict.
    pub scanned: u64,
    /// Answered by a cached verdict.
    pub cached: u64,
    /// Allowed because policy does not cover them.
    pub allowed_by_policy: u64,
    /// Answered by the failure table: allowed.
    pub failed_open: u64,
    /// Answered by the failure table: denied.
    pub failed_closed: u64,
}

/// Something that is not clean.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Detection {
    /// Made by the agent, so that a repeated report is one row.
    pub id: DetectionId,
    /// When, in milliseconds since 1970 by the agent's clock.
    pub time_ms: u64,
    /// The tenant of the agent.
    pub tenant: TenantId,
    /// Which file.
    pub path: PathBytes,
    /// Malware or suspicious.
    pub verdict: VerdictKind,
    /// The engine's signature name, unchanged.
    pub name: SignatureName,
    /// Which engine.
    pub engine: EngineName,
    /// The part of the file that it was found in, where it was in a part.
    #[serde(default)]
    pub member: Option<MemberPath>,
    /// What was done.
    pub action: Action,
    /// What the scan was asked for.
    pub class: ScanClass,
    /// BLAKE3 of the content.
    pub blake3: [u8; 32],
    /// SHA-256 of the content.
    pub sha256: Option<[u8; 32]>,
    /// Bytes of the content.
    pub size: u64,
    /// The process that opened it; 0 when there was none.
    pub pid: u32,
    /// The container that this process ran in, by its cgroup; none where it ran in none,
    /// or was gone.
    #[serde(default)]
    pub container: Option<ContainerName>,
}

/// What an agent did about a finding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Action {
    /// The open or exec was denied.
    Blocked,
    /// It was reported only.
    Reported,
    /// The verdict came after the deadline; the open had been let through.
    Late,
    /// The file was moved into the agent's quarantine.
    Quarantined,
    /// The file was removed, as the agent's settings have it.
    Deleted,
}

impl Action {
    /// The name that JSON and stores use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Blocked => "blocked",
            Self::Reported => "reported",
            Self::Late => "late",
            Self::Quarantined => "quarantined",
            Self::Deleted => "deleted",
        }
    }
}
