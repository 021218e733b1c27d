//! Why one candidate stands behind another, in the order in which it is decided.

use std::fmt;

use super::{Candidate, LOAD_GAIN_PERMILLE, SCORE_STEP_PERMILLE, Tier};
use crate::control::LicenceState;

/// Why a candidate is not the one in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WhyNot {
    /// The Integration Server has lost it.
    Absent,
    /// Its licence is not valid, the other one's is.
    Licence,
    /// It is further away.
    Further {
        /// How near it is.
        is: Tier,
        /// How near the one in use is.
        other: Tier,
    },
    /// It has more to do.
    Busier {
        /// Its score.
        score: u32,
        /// The score of the one in use.
        other: u32,
    },
    /// Both are equal, and the hash of agent and Protection Server decides.
    Tie,
    /// It is better, but not by enough, or not for long enough, to move.
    NotWorthIt {
        /// Its score.
        score: u32,
        /// The score of the one in use.
        other: u32,
    },
    /// It is better; the agent is about to move.
    Moving,
}

impl fmt::Display for WhyNot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Absent => write!(
                f,
                "the Integration Server has had no session with it for long, so it is tried last"
            ),
            Self::Licence => write!(f, "its licence is not valid"),
            Self::Further { is, other } => write!(f, "further away: it is {is}, not {other}"),
            Self::Busier { score, other } => write!(f, "busier: {score} against {other}"),
            Self::Tie => write!(f, "as good; agents are spread by a hash"),
            Self::NotWorthIt { score, other } => write!(
                f,
                "less busy, not by enough to move: {score} against {other}, {LOAD_GAIN_PERMILLE} \
                 for a minute are needed"
            ),
            Self::Moving => write!(f, "better; the agent moves there as soon as it can"),
        }
    }
}

/// Why `candidate` is not the one in use while `used` is.
pub fn why_not(candidate: &Candidate, used: &Candidate) -> WhyNot {
    let licensed = |candidate: &Candidate| candidate.licence == LicenceState::Valid;
    let (score, other) = candidate.against(used);
    if candidate.absent && !used.absent {
        WhyNot::Absent
    } else if !licensed(candidate) && licensed(used) {
        WhyNot::Licence
    } else if candidate.kind() < used.kind() {
        WhyNot::Moving
    } else if candidate.kind() > used.kind() {
        WhyNot::Further {
            is: candidate.tier,
            other: used.tier,
        }
    } else if score / SCORE_STEP_PERMILLE == other / SCORE_STEP_PERMILLE {
        WhyNot::Tie
    } else if score > other {
        WhyNot::Busier { score, other }
    } else {
        WhyNot::NotWorthIt { score, other }
    }
}
