//! What a Protection Server is asked to do with its definitions, and how it says
//! what it has. Part of the control protocol ([`crate::control`]), and of what
//! `palisade-scanserver definitions` says to a running daemon.
//!
//! ```text
//!  Integration Server                         Protection Server
//!    ── FromServer::Definitions(command n) ────► │
//!    ◄─── ToServer::Definitions(answer to n) ─── │   when it is done, minutes later maybe
//!    ── Ack ───────────────────────────────────► │
//! ```
//!
//! An order needs no shell on a Protection Server, and brings no definitions with it:
//! it chooses among those that the Protection Server checked itself.

use serde::{Deserialize, Serialize};

use crate::bounded::{List, Text};
use crate::verdict::{EngineName, Generations, SignatureName};

/// Most generations that one Protection Server keeps.
pub const MAX_GENERATIONS: usize = 32;
/// Longest explanation of a failure, in bytes: files, lines and reasons.
pub const MAX_FAILURE_BYTES: usize = 4096;

/// A failure for people: what is wrong where, and what helps.
pub type Failure = Text<MAX_FAILURE_BYTES>;

/// Most braked signatures that are named in one status.
pub const MAX_BRAKED_SHOWN: usize = 64;

/// What a Protection Server is to do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum DefinitionsOrder {
    /// Say what it has; answered at once.
    Show,
    /// Look at the source now, as at each poll.
    Refresh,
    /// Put a generation in force that is kept.
    Activate {
        /// Its number.
        generation: u64,
    },
    /// Go back to the generation before, and refuse the one that was in force until
    /// the source has another.
    Rollback,
    /// Let a new signature act that was braked because it hit many guests.
    Confirm {
        /// Its name.
        signature: SignatureName,
    },
}

/// An order with its number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DefinitionsCommand {
    /// The answer names it.
    pub number: u64,
    /// What to do.
    pub order: DefinitionsOrder,
}

/// What became of an order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DefinitionsAnswer {
    /// The command's number.
    pub number: u64,
    /// Why it could not be done; the definitions in force are as before then.
    pub failure: Option<Failure>,
    /// What there is now.
    pub status: DefinitionsStatus,
}

/// What a generation is to a Protection Server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Standing {
    /// In force.
    Active,
    /// What a rollback goes to.
    Previous,
    /// Kept, and refused until the source has another.
    Refused,
    /// Kept.
    Kept,
}

impl Standing {
    /// The name that JSON uses.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Previous => "previous",
            Self::Refused => "refused",
            Self::Kept => "kept",
        }
    }
}

/// One generation of definitions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GenerationEntry {
    /// Its number.
    pub generation: u64,
    /// What it is now.
    pub standing: Standing,
    /// What each engine has in it.
    pub engines: Generations,
    /// The directory that it was copied from.
    pub origin: Text<512>,
    /// When, in milliseconds since 1970.
    pub added_ms: u64,
    /// Bytes of its files.
    pub bytes: u64,
}

/// What a Protection Server has.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DefinitionsStatus {
    /// The generations, by number.
    pub generations: List<GenerationEntry, MAX_GENERATIONS>,
    /// The directory that is looked at for new ones; empty for none.
    pub source: Text<512>,
    /// What was wrong with the source at the last look.
    pub problem: Option<Failure>,
    /// What is being done now.
    pub working: Option<Text<256>>,
    /// The last order that came to its end.
    pub last: Option<LastOrder>,
    /// New signatures that hit many guests, and are reported only.
    pub braked: List<BrakedSignature, MAX_BRAKED_SHOWN>,
}

/// A new signature that is reported only, until somebody confirms it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BrakedSignature {
    /// Whose.
    pub engine: EngineName,
    /// Its name.
    pub name: SignatureName,
    /// Since when, in milliseconds since 1970.
    pub since_ms: u64,
}

/// An order that came to its end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastOrder {
    /// Grows by one with each order since the daemon's start.
    pub number: u64,
    /// What was done or tried.
    pub what: Text<256>,
    /// Why it failed.
    pub failure: Option<Failure>,
}
