//! What to connect to, and which loads to ask for.

use std::time::{Duration, Instant};

use palisade_protocol::selection::{Gain, LOAD_GAIN_PERMILLE};

use super::{MAX_CONNECTING, REVIEW, STAGGER, Seats, Session, is_better};
use crate::link::Target;
use crate::selection::attempts::{LONGEST_WAIT, LONGEST_WAIT_OF_SPARE};
use crate::selection::candidates::Candidates;
use crate::selection::turn::Turn;

impl<S: Session> Seats<S> {
    /// Begins the attempts that are due.
    pub(super) fn connect(
        &mut self,
        candidates: &Candidates,
        now: Instant,
        chance: f64,
        turn: &mut Turn<S>,
    ) {
        let Some(used) = self.used.clone() else {
            let all = candidates.targets.clone();
            return self.begin(all, MAX_CONNECTING, LONGEST_WAIT, now, turn);
        };
        // While the one in use must not be, it is as if there were none.
        let slots = match candidates.position(&used) {
            Some(_) => 1,
            None => MAX_CONNECTING,
        };
        let wanted = match &self.spare {
            None if self.stands_by => match self.spare_from.filter(|from| *from > now) {
                Some(from) => {
                    turn.look(from);
                    Vec::new()
                }
                None => candidates.all_but([Some(&used), None]),
            },
            None => match self.moving.due() {
                Some(due) if due > now => {
                    turn.look(due);
                    Vec::new()
                }
                Some(_) => candidates.better_than(&used, is_better),
                None => Vec::new(),
            },
            Some(spare) => {
                let others = |which: fn(Option<Gain>) -> bool| {
                    let mut targets = candidates.better_than(spare, which);
                    targets.retain(|target| !used.is(target));
                    targets
                };
                let lighter = others(|gain| gain == Some(Gain::Load));
                let gain = (!lighter.is_empty()).then_some(Gain::Load);
                let relieved = self.relieving.observe(gain, now, chance);
                let mut wanted = others(is_better);
                if wanted.is_empty() && relieved {
                    wanted = lighter;
                }
                wanted
            }
        };
        self.begin(wanted, slots, LONGEST_WAIT_OF_SPARE, now, turn);
        let dues = self.moving.due().into_iter().chain(self.relieving.due());
        dues.filter(|due| *due > now).for_each(|due| turn.look(due));
    }

    /// Begins attempts in their order of turn, up to so many at a time.
    fn begin(
        &mut self,
        mut wanted: Vec<Target>,
        slots: usize,
        longest: Duration,
        now: Instant,
        turn: &mut Turn<S>,
    ) {
        wanted.retain(|target| !self.trying.contains(target));
        wanted.retain(|target| match self.attempts.due(target, longest) {
            Some(due) if due > now => {
                turn.look(due);
                false
            }
            _ => true,
        });
        // In their order of preference, those that were tried last at the end.
        wanted.sort_by_key(|target| self.attempts.tried(target));
        for target in wanted {
            if self.trying.len() >= slots {
                // The end of an attempt is a turn.
                return;
            }
            if let Some(last) = self.began_last.filter(|_| !self.trying.is_empty())
                && now < last + STAGGER
            {
                return turn.look(last + STAGGER);
            }
            self.began_last = Some(now);
            self.attempts.begun(&target, now);
            self.trying.push(target.clone());
            turn.connect.push(target);
        }
    }

    /// Has both sessions say their load, where a move for load may come of it.
    pub(super) fn ask(&mut self, candidates: &Candidates, now: Instant, turn: &mut Turn<S>) {
        let (Some(used), Some(spare)) = (&self.used, &self.spare) else {
            return;
        };
        let may_move = candidates.is_same_kind(used, spare)
            && candidates
                .worst_score(used)
                .is_some_and(|score| score > LOAD_GAIN_PERMILLE);
        let asked_lately = self
            .asked_last
            .is_some_and(|last| now.saturating_duration_since(last) < REVIEW);
        if !may_move || asked_lately {
            return;
        }
        self.asked_last = Some(now);
        for session in [used, spare] {
            if now.saturating_duration_since(session.measured().at) >= REVIEW {
                turn.ask.push(session.clone());
            }
        }
    }
}
