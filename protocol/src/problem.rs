//! What a Protection Server knows to be wrong with itself. Part of its report
//! ([`crate::control::SvmReport`]): nobody can log in to an SVM, so what its log says is
//! read by nobody.
//!
//! Owns the kinds; does not own when there is one (the Protection Server), nor what is to
//! be done about it (the Integration Server's alerts).

use serde::{Deserialize, Serialize};

use crate::bounded::{List, Text};
use crate::verdict::{EngineName, SignatureName};

/// Most problems in one report; the worst come first.
pub const MAX_PROBLEMS: usize = 32;

/// What is wrong with a Protection Server now, the worst first.
pub type Problems = List<Problem, MAX_PROBLEMS>;

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// What.
    pub kind: ProblemKind,
    /// Since when, in milliseconds since 1970 by the Protection Server's clock.
    pub since_ms: u64,
}

/// What can be wrong. The order is that of importance.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum ProblemKind {
    /// An engine cannot scan: what needs it is answered as not scanned.
    EngineDown {
        /// Which.
        engine: EngineName,
    },
    /// Nobody looks after definitions any more: a bug; a restart helps.
    DefinitionsUnattended,
    /// The source of definitions cannot be used; those in force stay.
    DefinitionsSource {
        /// What is wrong where, and what helps.
        why: Text<1024>,
    },
    /// What the site's repository of definitions offers is refused, or cannot be fetched;
    /// those in force stay.
    DefinitionsRepository {
        /// What is wrong with what, and what helps.
        why: Text<1024>,
    },
    /// The definitions in force are older than settings allow.
    DefinitionsOld {
        /// When they were added, in milliseconds since 1970.
        added_ms: u64,
    },
    /// A new signature hit many guests, and is reported only until it is confirmed.
    SignatureBraked {
        /// Whose.
        engine: EngineName,
        /// Its name.
        signature: SignatureName,
    },
    /// Contents killed their workers twice, and are not scanned by these definitions.
    ContentsPoisoned {
        /// How many.
        contents: u64,
    },
    /// The SharedCache's disk does not answer: after a restart, a clean verdict may be
    /// served that was overruled.
    CacheUnsafe,
}

impl ProblemKind {
    /// All names, in the order of importance.
    pub const NAMES: [&'static str; 8] = [
        "engine_down",
        "definitions_unattended",
        "definitions_source",
        "definitions_repository",
        "definitions_old",
        "signature_braked",
        "contents_poisoned",
        "cache_unsafe",
    ];

    /// The name that JSON and metrics use.
    pub fn as_str(&self) -> &'static str {
        let at = match self {
            Self::EngineDown { .. } => 0,
            Self::DefinitionsUnattended => 1,
            Self::DefinitionsSource { .. } => 2,
            Self::DefinitionsRepository { .. } => 3,
            Self::DefinitionsOld { .. } => 4,
            Self::SignatureBraked { .. } => 5,
            Self::ContentsPoisoned { .. } => 6,
            Self::CacheUnsafe => 7,
        };
        Self::NAMES[at]
    }

    /// Whether two say the same of the same thing, whatever the details are by now.
    pub fn is_same_as(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::EngineDown { engine: one }, Self::EngineDown { engine: two }) => one == two,
            (Self::SignatureBraked { .. }, Self::SignatureBraked { .. }) => self == other,
            _ => self.as_str() == other.as_str(),
        }
    }
}
