//! What on-access protection does with what it finds: blocks it, or says it.
//!
//! Pure. In `monitor` the kernel only tells of opens and asks nothing, so that no
//! open waits, whatever happens to the agent; nothing is denied, and the counters
//! must not say that it was.

use serde::Deserialize;

use crate::accounts::Outcome;
use crate::failure::Answer;

/// The mode of on-access protection.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(
    rename_all = "lowercase",
    expecting = "on_access.mode is \"block\", \"monitor\" or \"learn\""
)]
pub enum Mode {
    /// Opens wait for a verdict, and those of malware are denied.
    #[default]
    Block,
    /// Opens never wait; malware is reported.
    Monitor,
    /// The same, and what costs how much is counted.
    Learn,
}

impl Mode {
    /// What comes of an event in this mode.
    pub fn outcome(self, outcome: Outcome) -> Outcome {
        if self == Self::Block {
            return outcome;
        }
        match outcome {
            Outcome::Scanned(_) => Outcome::Scanned(Answer::Allow),
            Outcome::Cached(_) => Outcome::Cached(Answer::Allow),
            Outcome::Failed(failure, _) => Outcome::Failed(failure, Answer::Allow),
            Outcome::Policy => Outcome::Policy,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::Failure;

    #[test]
    fn only_block_denies_and_no_reason_is_lost() {
        for outcome in [
            Outcome::Scanned(Answer::Deny),
            Outcome::Cached(Answer::Deny),
            Outcome::Failed(Failure::Busy, Answer::Deny),
            Outcome::Policy,
        ] {
            assert_eq!(Mode::Block.outcome(outcome), outcome);
            let told = Mode::Monitor.outcome(outcome);
            assert_eq!(told.answer(), Answer::Allow);
            assert_eq!(
                std::mem::discriminant(&told),
                std::mem::discriminant(&outcome)
            );
        }
    }
}
