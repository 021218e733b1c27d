//! When a connected agent moves: at once to what is nearer or licensed, for load only
//! when the gain is large and lasts, and never all agents at the same moment.
//!
//! Pure: the time is an argument, and the chance is.

use std::time::{Duration, Instant};

use super::{Candidate, LOAD_GAIN_PERMILLE};

/// How long a gain in load must last.
pub const LOAD_HOLD: Duration = Duration::from_secs(60);
/// Agents that have the same reason to move do it within this time, each by chance,
/// so that a Protection Server that returns is not stampeded.
pub const MOVE_SPREAD: Duration = Duration::from_secs(3);
/// The same where the reason is load, which the first ones to move change for the others.
pub const LOAD_MOVE_SPREAD: Duration = Duration::from_secs(60);

/// What an agent would gain by moving, the most first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Gain {
    /// The Protection Server in use is no candidate any more.
    Needed,
    /// A nearer one, or one with a valid licence.
    Kind,
    /// One with less load.
    Load,
}

impl Gain {
    /// How long it must last, and how long agents are spread over.
    fn patience(self) -> (Duration, Duration) {
        match self {
            Self::Needed | Self::Kind => (Duration::ZERO, MOVE_SPREAD),
            Self::Load => (LOAD_HOLD, LOAD_MOVE_SPREAD),
        }
    }
}

/// What an agent would gain by `to` instead of `from`, which is none if that is no
/// candidate.
pub fn gain(from: Option<&Candidate>, to: &Candidate) -> Option<Gain> {
    let Some(from) = from else {
        return Some(Gain::Needed);
    };
    if to.kind() < from.kind() {
        return Some(Gain::Kind);
    }
    let (now, then) = from.against(to);
    let lighter = now.saturating_sub(then) > LOAD_GAIN_PERMILLE;
    (to.kind() == from.kind() && lighter).then_some(Gain::Load)
}

/// Remembers since when there is something to gain.
#[derive(Debug, Default)]
pub struct Steady {
    pull: Option<Pull>,
}

#[derive(Debug, Clone, Copy)]
struct Pull {
    gain: Gain,
    due: Instant,
}

impl Steady {
    /// Takes down what there is to gain now; says whether it is time to have it.
    /// `chance` is between 0 and 1 and counts when a gain begins.
    pub fn observe(&mut self, gain: Option<Gain>, now: Instant, chance: f64) -> bool {
        let Some(gain) = gain else {
            self.pull = None;
            return false;
        };
        let pull = match self.pull {
            Some(pull) if pull.gain == gain => pull,
            _ => {
                let (hold, spread) = gain.patience();
                let due = now + hold + spread.mul_f64(chance.clamp(0.0, 1.0));
                Pull { gain, due }
            }
        };
        self.pull = Some(pull);
        now >= pull.due
    }

    /// When to look again at the latest, if there is something to gain.
    pub fn due(&self) -> Option<Instant> {
        self.pull.map(|pull| pull.due)
    }

    /// Begins anew, after a move.
    pub fn reset(&mut self) {
        self.pull = None;
    }
}
