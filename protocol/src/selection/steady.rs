//! When a connected agent moves: at once to what is nearer or licensed, for load only
//! when the gain is large and lasts, and never all agents at the same moment.
//!
//! Pure: the time is an argument, and the chance is.

use std::time::{Duration, Instant};

use super::{LOAD_GAIN_PERMILLE, Ranking};
use crate::ids::SvmId;

/// How long a gain in load must last.
pub const LOAD_HOLD: Duration = Duration::from_secs(60);
/// Agents that have the same reason to move do it within this time, each by chance,
/// so that a Protection Server that returns is not stampeded.
pub const MOVE_SPREAD: Duration = Duration::from_secs(3);
/// The same where the reason is load, which the first ones to move change for the others.
pub const LOAD_MOVE_SPREAD: Duration = Duration::from_secs(60);

/// What an agent would gain by moving.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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

/// Where an agent that is connected to `current` would move, and what for.
pub fn gain(ranking: &Ranking, current: SvmId) -> Option<(SvmId, Gain)> {
    let best = ranking.candidates.first()?;
    let Some(now) = ranking.candidate(current) else {
        return Some((best.id, Gain::Needed));
    };
    if best.kind() < now.kind() {
        return Some((best.id, Gain::Kind));
    }
    let lightest = ranking
        .candidates
        .iter()
        .filter(|candidate| candidate.kind() == now.kind())
        .min_by_key(|candidate| candidate.score)?;
    (now.score.saturating_sub(lightest.score) > LOAD_GAIN_PERMILLE)
        .then_some((lightest.id, Gain::Load))
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
    /// Takes down what there is to gain now; says where to move, when it is time to.
    /// `chance` is between 0 and 1 and counts when a gain begins.
    pub fn observe(
        &mut self,
        gain: Option<(SvmId, Gain)>,
        now: Instant,
        chance: f64,
    ) -> Option<SvmId> {
        let Some((to, gain)) = gain else {
            self.pull = None;
            return None;
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
        (now >= pull.due).then_some(to)
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
