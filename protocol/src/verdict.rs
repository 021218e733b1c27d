//! What a scan can end in.
//!
//! **Invariant:** only a completed scan of verified bytes is `Clean`, or bytes that a
//! site's list allows; whatever
//! stopped short is `NotScanned` with its reason, and no code turns one into
//! the other.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::bounded::{List, Text};

/// Longest signature name, in bytes. Longer ones are cut by the engine's worker.
pub const MAX_NAME_BYTES: usize = 256;
/// Longest detail that explains a reason, in bytes.
pub const MAX_DETAIL_BYTES: usize = 256;
/// Most engines that one Protection Server runs.
pub const MAX_ENGINES: usize = 8;
/// Longest path of a part inside a content, in bytes. Longer ones keep their end.
pub const MAX_MEMBER_BYTES: usize = 512;
/// Most things that a signature says of itself in one result.
pub const MAX_METADATA: usize = 8;

/// A signature's name, as the engine gives it.
pub type SignatureName = Text<MAX_NAME_BYTES>;
/// An engine's name: `libclamav`, `yara-x`, `hash-list`.
pub type EngineName = Text<32>;
/// Where in a content something was found: the names of its parts from the outside
/// inwards, such as `b.tar/c.exe`. Not to be used as a path of a file system.
pub type MemberPath = Text<MAX_MEMBER_BYTES>;

/// What a scan ended in.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Verdict {
    /// Every engine scanned all of it and found nothing; or a site's list allows it,
    /// which [`Details::engine`] says.
    Clean,
    /// An engine names it malware.
    Malware {
        /// The engine's own signature name, unchanged.
        name: SignatureName,
        /// Which engine decided.
        engine: EngineName,
    },
    /// A heuristic speaks against it.
    Suspicious {
        /// The heuristic's name, unchanged.
        name: SignatureName,
        /// Which engine decided.
        engine: EngineName,
    },
    /// It was not, or not wholly, scanned. Never to be shown as clean.
    NotScanned(NotScanned),
}

impl Verdict {
    /// The verdict's kind, for counting and for tables.
    pub fn kind(&self) -> VerdictKind {
        match self {
            Self::Clean => VerdictKind::Clean,
            Self::Malware { .. } => VerdictKind::Malware,
            Self::Suspicious { .. } => VerdictKind::Suspicious,
            Self::NotScanned(_) => VerdictKind::NotScanned,
        }
    }
}

/// A verdict without its details.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VerdictKind {
    /// See [`Verdict::Clean`].
    Clean,
    /// See [`Verdict::Malware`].
    Malware,
    /// See [`Verdict::Suspicious`].
    Suspicious,
    /// See [`Verdict::NotScanned`].
    NotScanned,
}

impl VerdictKind {
    /// The name that JSON and stores use.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Clean => "clean",
            Self::Malware => "malware",
            Self::Suspicious => "suspicious",
            Self::NotScanned => "not_scanned",
        }
    }
}

/// What there is to say of a verdict besides it; all empty where there is nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Details {
    /// The engine that decided: that found, that stopped short, or that allowed. Empty
    /// where every engine had to agree.
    pub engine: Option<EngineName>,
    /// The part of the content that a finding is about; none for the content itself,
    /// or where the part has no name.
    pub member: Option<MemberPath>,
    /// What the signature or rule says of itself, in its own order.
    pub metadata: List<Metadatum, MAX_METADATA>,
}

/// One thing that a signature or rule says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Metadatum {
    /// What: `description`, `author`, `reference`, `severity`, `score`, `list`.
    pub key: Text<32>,
    /// In its words.
    pub value: Text<256>,
}

/// One engine's part in a scan.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct EngineRun {
    /// Which engine.
    pub engine: EngineName,
    /// How long it took, over the content and all of its parts, in microseconds.
    pub micros: u64,
    /// The worst that it said. An engine that was not asked is not in the list: another
    /// had decided, or it had found the same content clean by the same definitions.
    pub outcome: VerdictKind,
}

/// Every engine's part in a scan, in the order in which they were asked.
pub type EngineRuns = List<EngineRun, MAX_ENGINES>;

/// Why something was not scanned.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum NotScanned {
    /// Above `max_scan_size`.
    TooLarge {
        /// The bound, in bytes.
        max: u64,
    },
    /// The content, or a member of it, is encrypted.
    Encrypted,
    /// An engine's limit (depth, members, unpacked bytes, …) was reached.
    LimitHit {
        /// Which, as the engine calls it.
        limit: Text<MAX_DETAIL_BYTES>,
    },
    /// The scan took longer than its deadline.
    TimedOut,
    /// An engine failed on it.
    EngineFailed {
        /// What it said.
        detail: Text<MAX_DETAIL_BYTES>,
    },
    /// The Protection Server had no capacity in time.
    Overloaded,
    /// The content changed while it was hashed or sent.
    Changed,
    /// The content could not be read.
    ReadError {
        /// What the kernel said.
        detail: Text<MAX_DETAIL_BYTES>,
    },
    /// No Protection Server could be reached.
    NoSvm,
    /// Its content must not leave the guest, and its hash alone says nothing.
    Private,
}

impl NotScanned {
    /// The reason's fixed name, for JSON, counters and the failure table.
    pub fn code(&self) -> &'static str {
        match self {
            Self::TooLarge { .. } => "too_large",
            Self::Encrypted => "encrypted",
            Self::LimitHit { .. } => "limit",
            Self::TimedOut => "timed_out",
            Self::EngineFailed { .. } => "engine_failed",
            Self::Overloaded => "overloaded",
            Self::Changed => "changed",
            Self::ReadError { .. } => "read_error",
            Self::NoSvm => "no_svm",
            Self::Private => "private",
        }
    }
}

impl fmt::Display for NotScanned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLarge { max } => write!(f, "too large (over {max} bytes)"),
            Self::Encrypted => f.write_str("encrypted"),
            Self::LimitHit { limit } => write!(f, "limit hit: {limit}"),
            Self::TimedOut => f.write_str("timed out"),
            Self::EngineFailed { detail } => write!(f, "engine failed: {detail}"),
            Self::Overloaded => f.write_str("the Protection Server is overloaded"),
            Self::Changed => f.write_str("changed while it was read"),
            Self::ReadError { detail } => write!(f, "cannot be read: {detail}"),
            Self::NoSvm => f.write_str("no Protection Server can be reached"),
            Self::Private => {
                f.write_str("its content must not leave the guest, and its hash is not known")
            }
        }
    }
}

/// A number that grows with each set of definitions an engine activates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Generation(pub u64);

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Which definitions an engine used.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct EngineGeneration {
    /// Which engine.
    pub engine: EngineName,
    /// Its definitions' generation.
    pub generation: Generation,
    /// Hash of the definitions' bytes, so that equal sets on two Protection
    /// Servers are known to be equal whatever number each gave them.
    pub fingerprint: [u8; 16],
}

/// The definitions of every engine that took part.
pub type Generations = List<EngineGeneration, MAX_ENGINES>;
