//! Why an agent uses the Protection Server that it uses, and none of the others, as it
//! tells the Integration Server when it is asked.
//!
//! Owns the shape on the wire and its bounds. The rules are [`crate::selection`]'s, the
//! words the agent's; the Integration Server shows what it was told.

use serde::{Deserialize, Serialize};

use crate::bounded::{List, Text};
use crate::control::{MAX_ADDRESSES, MAX_TAGS, Name};
use crate::ids::SvmId;
use crate::selection::Reach;

/// Most Protection Servers in one answer; those that come last in an agent's order are
/// counted.
pub const MAX_CHOICES: usize = 256;

/// A sentence.
pub type Words = Text<256>;

/// An agent's choice, at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Choice {
    /// Which question this answers.
    pub number: u64,
    /// Where the candidates come from.
    pub source: Words,
    /// How far from the guest the agent's settings allow.
    pub reach: Reach,
    /// Where the guest is, as the agent was told.
    pub place: Words,
    /// The guest's tags, as the agent was told.
    pub tags: List<Name, MAX_TAGS>,
    /// The Protection Servers that the agent knows, best first.
    pub svms: List<Chosen, MAX_CHOICES>,
    /// Further ones.
    pub more: u32,
}

/// One Protection Server, as an agent sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Chosen {
    /// Which, where the agent knows.
    pub id: Option<SvmId>,
    /// Its name for people.
    pub name: Name,
    /// Where it is reached.
    pub addresses: List<Text<64>, MAX_ADDRESSES>,
    /// What it is to the agent.
    pub role: ChoiceRole,
    /// Why.
    pub why: Words,
    /// Its score, in thousandths of a full machine; less is better.
    pub score: Option<u32>,
    /// Seconds since the session began.
    pub connected_s: Option<u64>,
    /// Its round trip, in microseconds.
    pub round_trip_us: Option<u64>,
    /// How it failed the last time, and how many seconds ago.
    pub failure: Option<(Words, u64)>,
}

/// What a Protection Server is to an agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ChoiceRole {
    /// It is asked.
    InUse,
    /// It stands by.
    Spare,
    /// It may be used.
    Candidate,
    /// It must not be used.
    Excluded,
}

impl ChoiceRole {
    /// As programs read it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InUse => "in-use",
            Self::Spare => "spare",
            Self::Candidate => "candidate",
            Self::Excluded => "excluded",
        }
    }
}
