//! What daemon, zygote and workers say to each other.
//!
//! ```text
//! daemon ──► zygote   ZygoteRequest   Spawn + the worker's channel, Kill; end of file means exit
//! zygote ──► daemon   ZygoteEvent     Loaded | LoadFailed, then Spawned and Exited
//! daemon ──► worker   WorkerRequest   Scan + sealed content
//! worker ──► daemon   WorkerEvent     Serving | CanaryMissed | SandboxFailed, then for each
//!                                     scan Member + its file …, Done
//! ```
//!
//! Every bound has a name here. A message that breaks one is refused by the
//! receiver, and cut by the sender before it is sent.

use crate::text::Text;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// Most bytes in one packet, on any of the sockets.
pub const MAX_PACKET: usize = 32 * 1024;
/// Most problems that one [`ZygoteEvent`] lists; further ones are dropped.
pub const MAX_PROBLEMS: usize = 24;
/// Most signature names in one [`Outcome::Found`]; further ones are dropped.
pub const MAX_NAMES: usize = 64;
/// Most [`Metadatum`]s in one [`Outcome::Found`]; further ones are dropped.
pub const MAX_METADATA: usize = 8;
/// Most gaps in its sandbox that a worker lists; further ones are dropped.
pub const MAX_GAPS: usize = 16;
/// Most archive members handed over in one scan.
pub const MAX_MEMBERS: u32 = 4096;
/// Most bytes of one archive member that is handed over.
pub const MAX_MEMBER_BYTES: u64 = 64 << 20;
/// Most bytes of all archive members handed over in one scan.
pub const MAX_MEMBER_BYTES_PER_SCAN: u64 = 256 << 20;

/// A short name: of a signature, an engine, a limit (bytes of UTF-8).
pub type Name = Text<256>;
/// A sentence for people, or a path (bytes of UTF-8).
pub type Detail = Text<512>;

/// Names of a content's parts from the outside inwards, joined by `/` (bytes of
/// UTF-8); empty for the content itself, or where no name is known.
pub type MemberName = Text<512>;

/// The daemon's name for a worker, unique within one engine process.
pub type WorkerId = u64;

/// A message that knows its own bounds.
pub trait Message: Serialize + DeserializeOwned {
    /// Whether every list in it is within its bound.
    fn within_bounds(&self) -> bool;
}

/// Daemon to zygote, on the engine program's standard input.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ZygoteRequest {
    /// Fork a worker that serves the channel which comes with this packet.
    Spawn {
        /// The new worker's name.
        worker: WorkerId,
    },
    /// Kill a worker. The zygote is its parent and has not reaped it, so the
    /// process id cannot have been given to another. Unknown workers are ignored.
    Kill {
        /// The worker's name.
        worker: WorkerId,
    },
}

/// Zygote to daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ZygoteEvent {
    /// The definitions are in memory; workers can be spawned.
    Loaded(Loaded),
    /// The definitions cannot be used. The zygote exits after this.
    LoadFailed {
        /// What is wrong, and where; never empty.
        problems: Vec<DefinitionProblem>,
    },
    /// A worker was forked; it does not serve yet.
    Spawned {
        /// The worker's name.
        worker: WorkerId,
        /// Its process id, as the zygote sees it.
        pid: i32,
    },
    /// A worker is gone (or never came to be).
    Exited {
        /// The worker's name.
        worker: WorkerId,
        /// What ended it.
        exit: WorkerExit,
    },
}

/// What a zygote loaded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Loaded {
    /// The engine's name, for instance `clamav`.
    pub engine: Name,
    /// The engine's version, for instance `1.4.6`.
    pub engine_version: Name,
    /// How many signatures or rules are active, the canary not counted.
    pub signatures: u64,
    /// How long loading took (milliseconds).
    pub load_ms: u64,
    /// What the engine remarked on without refusing it; at most [`MAX_PROBLEMS`].
    pub warnings: Vec<DefinitionProblem>,
}

/// Something wrong with a file of definitions.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DefinitionProblem {
    /// The file, or the directory when no single file is to blame.
    pub file: Detail,
    /// The line, counted from 1, where the engine knows it.
    pub line: Option<u32>,
    /// What is wrong.
    pub message: Detail,
}

impl std::fmt::Display for DefinitionProblem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}: {}", self.file, self.message),
            None => write!(f, "{}: {}", self.file, self.message),
        }
    }
}

/// What ended a worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum WorkerExit {
    /// It exited by itself, with this code.
    Code(i32),
    /// A signal killed it.
    Signal(i32),
    /// It was never forked.
    NotStarted {
        /// Why.
        detail: Detail,
    },
}

impl std::fmt::Display for WorkerExit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Code(code) => write!(f, "exit code {code}"),
            Self::Signal(signal) => match nix::sys::signal::Signal::try_from(*signal) {
                Ok(name) => write!(f, "killed by {name}"),
                Err(_) => write!(f, "killed by signal {signal}"),
            },
            Self::NotStarted { detail } => write!(f, "not started: {detail}"),
        }
    }
}

/// Daemon to worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum WorkerRequest {
    /// Scan the sealed content that comes with this packet.
    Scan {
        /// Comes back in every answer to this request.
        request: u64,
        /// The content's length (bytes); checked against the descriptor.
        size: u64,
        /// How to scan it.
        options: ScanOptions,
    },
}

/// How one content is scanned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScanOptions {
    /// Hand over what the engine unpacks, for another engine to scan.
    pub members: bool,
    /// Look into archives and other containers.
    pub archives: bool,
    /// Report what merely gives reason for suspicion.
    pub heuristics: bool,
    /// Report potentially unwanted applications.
    pub pua: bool,
    /// What the content is called, if it is a part of another; for rules that look at
    /// names.
    pub name: MemberName,
    /// The engine's own time limit (milliseconds; 0 means the engine's default).
    /// It is the polite limit; the deadline that kills is the daemon's.
    pub timeout_ms: u32,
}

impl Default for ScanOptions {
    fn default() -> Self {
        Self {
            members: false,
            archives: true,
            heuristics: true,
            pua: false,
            name: MemberName::default(),
            timeout_ms: 30_000,
        }
    }
}

/// Worker to daemon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum WorkerEvent {
    /// The worker is in its sandbox and found its canary there.
    Serving {
        /// The worker's name.
        worker: WorkerId,
        /// What this machine could not do for the sandbox, and the remedies; at most
        /// [`MAX_GAPS`], and none unless that was allowed.
        gaps: Vec<Detail>,
    },
    /// The worker did not find its canary, and exits: an engine that finds nothing
    /// must not be asked.
    CanaryMissed {
        /// What happened instead.
        detail: Detail,
    },
    /// The worker could not enter its sandbox, and exits.
    SandboxFailed {
        /// Which step failed, and why.
        detail: Detail,
    },
    /// A part that the engine unpacked; a file of its content comes with this packet.
    Member {
        /// The request that it belongs to.
        request: u64,
        /// Counts up from 0 within a request.
        index: u32,
        /// Its path inside the content, where known; empty otherwise.
        name: MemberName,
        /// Its length (bytes).
        size: u64,
    },
    /// The scan is over.
    Done(ScanDone),
}

/// The end of one scan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScanDone {
    /// The request that this answers.
    pub request: u64,
    /// What was found.
    pub outcome: Outcome,
    /// A bound on members was hit: not all that was unpacked was handed over.
    pub members_truncated: bool,
    /// Processor time (milliseconds).
    pub cpu_ms: u64,
    /// Time on the clock (milliseconds).
    pub wall_ms: u64,
}

/// What a scan says of a content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// All of it was looked at, and nothing matched.
    Clean,
    /// Something matched.
    Found {
        /// The signatures' own names, unchanged; the first is the one to show.
        /// At least one, at most [`MAX_NAMES`].
        names: Vec<Name>,
        /// The part of the content that the first was found in, where it was in a part.
        member: MemberName,
        /// What the first signature says of itself; at most [`MAX_METADATA`].
        metadata: Vec<Metadatum>,
        /// Nothing but heuristics, unwanted applications, or rules that say so of
        /// themselves, matched.
        suspicious: bool,
    },
    /// It was not, or not wholly, looked at. Never the same as clean.
    NotScanned {
        /// Why.
        reason: NotScanned,
    },
}

impl Outcome {
    /// The engine failed at this content.
    pub fn engine_error(detail: impl AsRef<str>) -> Self {
        Self::NotScanned {
            reason: NotScanned::EngineError {
                detail: detail.as_ref().into(),
            },
        }
    }

    /// Something matched in the content itself; the names are cut to [`MAX_NAMES`].
    pub fn found(names: impl IntoIterator<Item = Name>, suspicious: bool) -> Self {
        Self::Found {
            names: names.into_iter().take(MAX_NAMES).collect(),
            member: MemberName::default(),
            metadata: Vec::new(),
            suspicious,
        }
    }

    /// The same, found in a part.
    pub fn inside(self, part: MemberName) -> Self {
        match self {
            Self::Found {
                names,
                metadata,
                suspicious,
                ..
            } => Self::Found {
                names,
                member: part,
                metadata,
                suspicious,
            },
            other => other,
        }
    }
}

/// One thing that a signature says of itself.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Metadatum {
    /// What.
    pub key: Text<32>,
    /// In its words.
    pub value: Text<256>,
}

/// Why a content was not scanned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum NotScanned {
    /// It, or a part of it, is encrypted.
    Encrypted,
    /// A limit was reached before its end.
    Limit {
        /// The engine's name of the limit, for instance `MaxRecursion`.
        which: Name,
    },
    /// The engine's own time limit was reached.
    TimedOut,
    /// The engine failed.
    EngineError {
        /// In the engine's words.
        detail: Detail,
    },
    /// It is larger than the engine can scan, whatever is set.
    TooLarge {
        /// The largest that it can scan (bytes).
        max: u64,
    },
}

impl Message for ZygoteRequest {
    fn within_bounds(&self) -> bool {
        true
    }
}

impl Message for ZygoteEvent {
    fn within_bounds(&self) -> bool {
        match self {
            Self::Loaded(loaded) => loaded.warnings.len() <= MAX_PROBLEMS,
            Self::LoadFailed { problems } => (1..=MAX_PROBLEMS).contains(&problems.len()),
            Self::Spawned { .. } | Self::Exited { .. } => true,
        }
    }
}

impl Message for WorkerRequest {
    fn within_bounds(&self) -> bool {
        true
    }
}

impl Message for WorkerEvent {
    fn within_bounds(&self) -> bool {
        match self {
            Self::Done(ScanDone {
                outcome: Outcome::Found {
                    names, metadata, ..
                },
                ..
            }) => (1..=MAX_NAMES).contains(&names.len()) && metadata.len() <= MAX_METADATA,
            Self::Serving { gaps, .. } => gaps.len() <= MAX_GAPS,
            _ => true,
        }
    }
}
