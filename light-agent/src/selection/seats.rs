//! Which session is used, which one stands by, and what is to be done next. No sockets, no
//! clock, no chance: sessions, the candidates, the time and the dice are arguments.
//!
//! ```text
//!  revoked? close ─► lost? promote ─► seat who came ─► excluded? leave ─► better for long
//!      enough? swap ─► connect ─► ask for loads
//! ```
//!
//! Each [`Seats::turn`] looks at what is true now and says what follows, so that there is
//! no order of events to get wrong.
//!
//! *Moves.* The one that stands by is moved to where it is the better one of the two, whoever
//! else is listed: what is best of all may never answer. It gives its place to a third one
//! at once if that is nearer or licensed, and for load only when the gain has lasted
//! ([`Steady`]). A move for load takes two loads that were asked for lately.
//!
//! *Tries.* Of those that may be tried, the one is that was not for longest, so that whoever
//! answers is found however many that do not are ranked before it ([`connect`]).

mod connect;

use std::time::{Duration, Instant};

use palisade_protocol::ids::SvmId;
use palisade_protocol::selection::{Gain, Steady};

use super::attempts::Attempts;
use super::candidates::Candidates;
use super::measurements::{LOAD_FRESH, Measurement, Measurements};
use super::turn::{News, Turn};
use crate::link::Target;

/// Attempts at a time while there is no session that may be used.
pub const MAX_CONNECTING: usize = 8;
/// How long a candidate has before the next one is tried beside it.
pub const STAGGER: Duration = Duration::from_millis(500);
/// The spare is connected about this long after the one in use: a host full of guests
/// that start at once has better to do.
pub const SPARE_DELAY: Duration = Duration::from_secs(1);
/// How often loads are compared, and, while the Protection Server in use is busy, asked for.
pub const REVIEW: Duration = Duration::from_secs(10);

/// A session with a Protection Server, as far as choosing looks at it.
pub trait Session: Clone {
    /// Who it is.
    fn id(&self) -> SvmId;
    /// What was connected to.
    fn target(&self) -> &Target;
    /// Whether this is a session with that target's Protection Server.
    fn is(&self, target: &Target) -> bool;
    /// When it began.
    fn since(&self) -> Instant;
    /// Why it is over, if it is.
    fn over(&self) -> Option<String>;
    /// What it has shown of its Protection Server.
    fn measured(&self) -> Measurement;
}

/// See the module.
#[derive(Debug)]
pub struct Seats<S> {
    /// Whether a second session stands by. Without, there is one only while it is moved to.
    stands_by: bool,
    used: Option<S>,
    spare: Option<S>,
    /// Connected, and not seated yet.
    came: Vec<S>,
    /// When the spare may be connected at the earliest.
    spare_from: Option<Instant>,
    attempts: Attempts,
    trying: Vec<Target>,
    began_last: Option<Instant>,
    asked_last: Option<Instant>,
    /// To the spare.
    moving: Steady,
    /// From the spare to one that would stand by better.
    relieving: Steady,
    measurements: Measurements,
    lost: Option<String>,
}

impl<S: Session> Seats<S> {
    /// No session yet; whether a second one is to stand by.
    pub fn new(stands_by: bool) -> Self {
        Self {
            stands_by,
            used: None,
            spare: None,
            came: Vec::new(),
            spare_from: None,
            attempts: Attempts::default(),
            trying: Vec::new(),
            began_last: None,
            asked_last: None,
            moving: Steady::default(),
            relieving: Steady::default(),
            measurements: Measurements::default(),
            lost: None,
        }
    }

    /// The session that is asked.
    pub fn used(&self) -> Option<&S> {
        self.used.as_ref()
    }

    /// The session that stands by.
    pub fn spare(&self) -> Option<&S> {
        self.spare.as_ref()
    }

    /// What failed.
    pub fn attempts(&self) -> &Attempts {
        &self.attempts
    }

    /// How the last session was lost, while there is none since.
    pub fn lost(&self) -> Option<&str> {
        self.lost.as_deref()
    }

    /// Takes down what sessions have shown: before candidates are made of it.
    pub fn measure(&mut self, now: Instant) {
        let sessions = self.used.iter().chain(&self.spare).chain(&self.came);
        let shown: Vec<_> = sessions.map(|one| (one.id(), one.measured())).collect();
        self.measurements.take(shown, now);
    }

    /// What was measured lately.
    pub fn measurements(&self) -> &Measurements {
        &self.measurements
    }

    /// The list changed: all in it may be tried at once.
    pub fn news(&mut self, targets: &[Target]) {
        self.attempts.news(targets);
    }

    /// An attempt came to an end.
    pub fn connected(
        &mut self,
        target: &Target,
        outcome: Result<S, String>,
        now: Instant,
        chance: f64,
    ) {
        self.trying.retain(|trying| trying != target);
        match outcome {
            Ok(session) => self.came.push(session),
            Err(reason) => self.attempts.failed(target, now, reason, spread(chance)),
        }
    }

    /// Looks at what is true now and says what follows from it. `chance` is between 0 and 1.
    pub fn turn(&mut self, candidates: &Candidates, now: Instant, chance: f64) -> Turn<S> {
        let mut turn = Turn::until(now + REVIEW);
        self.close_revoked(candidates, &mut turn);
        self.drop_lost(now, chance, &mut turn);
        for session in std::mem::take(&mut self.came) {
            self.seat(session, candidates, now, chance, &mut turn);
        }
        self.leave_excluded(candidates, &mut turn);
        self.review(candidates, now, chance, &mut turn);
        self.connect(candidates, now, chance, &mut turn);
        self.ask(candidates, now, &mut turn);
        turn
    }

    /// Nothing that a revoked one says counts.
    fn close_revoked(&mut self, candidates: &Candidates, turn: &mut Turn<S>) {
        let is_revoked = |session: &mut S| candidates.is_revoked(session.id());
        let spare = self.spare.take_if(is_revoked);
        let used = self.used.take_if(is_revoked);
        if let Some(used) = &used {
            self.lost = Some(format!("{} was revoked", used.target().name));
            self.used = self.spare.take();
            self.moving.reset();
        }
        let came = self.came.extract_if(.., |session| is_revoked(session));
        for session in used.into_iter().chain(spare).chain(came) {
            turn.news.push(News::Revoked(session.clone()));
            turn.close.push(session);
        }
    }

    /// Sessions that are over are no sessions; the spare takes over.
    fn drop_lost(&mut self, now: Instant, chance: f64, turn: &mut Turn<S>) {
        let is_over = |session: &mut S| session.over().is_some();
        if let Some(spare) = self.spare.take_if(is_over) {
            let reason = self.note_lost(&spare, now, chance);
            turn.news.push(News::SpareLost(spare, reason));
        }
        if let Some(used) = self.used.take_if(is_over) {
            let reason = self.note_lost(&used, now, chance);
            self.used = self.spare.take();
            self.moving.reset();
            self.relieving.reset();
            self.spare_from = Some(now + SPARE_DELAY.mul_f64(0.5 + chance));
            let name = &used.target().name;
            self.lost = Some(format!("the session with {name} was lost: {reason}"));
            turn.news.push(News::Lost {
                left: used,
                reason,
                next: self.used.clone(),
            });
        }
    }

    fn note_lost(&mut self, session: &S, now: Instant, chance: f64) -> String {
        let reason = session.over().unwrap_or_default();
        let lasted = now.saturating_duration_since(session.since());
        let target = session.target();
        self.attempts
            .lost(target, now, lasted, reason.clone(), spread(chance));
        reason
    }

    /// Gives a session that came its seat, if it has one.
    fn seat(
        &mut self,
        session: S,
        candidates: &Candidates,
        now: Instant,
        chance: f64,
        turn: &mut Turn<S>,
    ) {
        if session.over().is_some() {
            self.note_lost(&session, now, chance);
            return;
        }
        let open = self.used.iter().chain(&self.spare);
        if open.into_iter().any(|one| one.id() == session.id()) {
            let reason = "it is a Protection Server with which there is a session".to_owned();
            self.attempts
                .failed(session.target(), now, reason, spread(chance));
            turn.close.push(session);
            return;
        }
        if candidates.position(&session).is_none() {
            // It was, when it was begun to be connected to.
            turn.close.push(session);
            return;
        }
        let Some(used) = &self.used else {
            self.spare_from = Some(now + SPARE_DELAY.mul_f64(0.5 + chance));
            self.lost = None;
            self.attempts.found();
            turn.news.push(News::Connected(session.clone()));
            self.used = Some(session);
            return;
        };
        let wanted = match &self.spare {
            None => self.stands_by || is_better(candidates.gain(used, &session)),
            Some(spare) => candidates.gain(spare, &session).is_some(),
        };
        if !wanted {
            turn.leave.push(session);
            return;
        }
        self.attempts.found();
        self.relieving.reset();
        turn.news.push(News::StandsBy(session.clone()));
        turn.leave.extend(self.spare.replace(session));
    }

    /// What may not be used does not stand by.
    fn leave_excluded(&mut self, candidates: &Candidates, turn: &mut Turn<S>) {
        let unusable = |spare: &mut S| candidates.position(spare).is_none();
        turn.leave.extend(self.spare.take_if(unusable));
    }

    /// Swaps the two, when the spare is better and has been for long enough.
    fn review(&mut self, candidates: &Candidates, now: Instant, chance: f64, turn: &mut Turn<S>) {
        let Some(used) = &self.used else { return };
        let gain = match &self.spare {
            Some(spare) => candidates
                .gain(used, spare)
                .filter(|gain| *gain != Gain::Load || are_fresh([used, spare], now)),
            // There is nobody to move to yet, but a reason to connect to somebody.
            None if !self.stands_by => candidates
                .best_gain(used)
                .filter(|gain| is_better(Some(*gain))),
            None => None,
        };
        let due = self.moving.observe(gain, now, chance);
        if gain.is_none() && !self.stands_by {
            turn.leave.extend(self.spare.take());
        }
        if let (true, Some(gain), Some(next)) = (due, gain, self.spare.take_if(|_| due)) {
            turn.news.push(News::Moved(next.clone(), gain));
            let left = self.used.replace(next);
            self.moving.reset();
            self.relieving.reset();
            self.spare = left;
            if !self.stands_by {
                turn.leave.extend(self.spare.take());
            }
            self.leave_excluded(candidates, turn);
        }
    }
}

/// Worth a move as it is, however much either has to do.
fn is_better(gain: Option<Gain>) -> bool {
    matches!(gain, Some(Gain::Needed | Gain::Kind))
}

fn are_fresh<S: Session>(sessions: [&S; 2], now: Instant) -> bool {
    let age = |session: &S| now.saturating_duration_since(session.measured().at);
    sessions.iter().all(|session| age(session) < LOAD_FRESH)
}

/// About 1: keeps agents from coming at once.
fn spread(chance: f64) -> f64 {
    0.8 + 0.4 * chance
}

#[cfg(test)]
mod tests;
