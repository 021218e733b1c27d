//! The task that keeps the sessions: one in use, one that stands by.
//!
//! Each turn looks at what is true now and does what follows from it, then sleeps until
//! something happens: a session ends, an attempt ends, the list changes, or a wait is
//! over. So there is no order of events to get wrong.
//!
//! ```text
//!  lost? promote ─► excluded? retire ─► better for long enough? swap ─► connect ─► publish ─► sleep
//! ```
//!
//! **Invariant:** the session in use is closed by this task only after the requests on
//! it had their time to end ([`retire`]).

use std::sync::Arc;
use std::time::{Duration, Instant};

use palisade_protocol::identity::Identity;
use palisade_protocol::ids::SvmId;
use palisade_protocol::selection::{Measured, Steady};
use rand::Rng as _;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::attempts::{Attempts, LONGEST_WAIT, LONGEST_WAIT_OF_SPARE};
use super::candidates::Candidates;
use super::explained::Explanation;
use super::{Choice, Kept, LinkState, Source};
use crate::link::{Link, LinkError, Target};
use crate::pace::jittered;

/// Attempts at a time while there is no session.
const MAX_CONNECTING: usize = 3;
/// How long the first candidate has before the next one is tried beside it.
const STAGGER: Duration = Duration::from_millis(500);
/// The spare is connected about this long after the one in use: a host full of guests
/// that start at once has better to do.
const SPARE_DELAY: Duration = Duration::from_secs(1);
/// How often loads are compared.
const REVIEW: Duration = Duration::from_secs(10);
/// How long requests on a session that is left may take to end.
const RETIRE: Duration = Duration::from_secs(60);

/// See the module.
pub struct Keeper {
    identity: Identity,
    source: Source,
    choice: Choice,
    state: watch::Sender<LinkState>,
    explanation: watch::Sender<Arc<Explanation>>,
    used: Option<Arc<Link>>,
    spare: Option<Arc<Link>>,
    /// When the spare may be connected at the earliest.
    spare_from: Instant,
    attempts: Attempts,
    connecting: JoinSet<(Target, Result<Arc<Link>, LinkError>)>,
    /// The targets of `connecting`.
    trying: Vec<Target>,
    tried_last: Option<Instant>,
    steady: Steady,
    lost: Option<String>,
}

impl Keeper {
    /// A keeper without a session.
    pub fn new(identity: Identity, source: Source, choice: Choice) -> (Self, Kept) {
        let (state, watched) = watch::channel(LinkState::none("not connected yet"));
        let (explanation, explained) = watch::channel(Arc::default());
        let keeper = Self {
            identity,
            source,
            choice,
            state,
            explanation,
            used: None,
            spare: None,
            spare_from: Instant::now(),
            attempts: Attempts::default(),
            connecting: JoinSet::new(),
            trying: Vec::new(),
            tried_last: None,
            steady: Steady::default(),
            lost: None,
        };
        let kept = Kept {
            state: watched,
            explanation: explained,
        };
        (keeper, kept)
    }

    /// Keeps until nobody watches.
    pub async fn run(mut self) {
        let state = self.state.clone();
        tokio::select! {
            () = state.closed() => {}
            () = self.keep() => {}
        }
        for link in self.used.iter().chain(&self.spare) {
            link.close("the agent stops");
        }
    }

    async fn keep(&mut self) {
        loop {
            let now = Instant::now();
            let candidates = self.candidates();
            self.drop_lost(now);
            self.drop_excluded(&candidates);
            self.review(&candidates, now);
            let next = self.connect(&candidates, now);
            self.publish(&candidates);
            self.sleep(next).await;
        }
    }

    fn candidates(&mut self) -> Candidates {
        if let Source::List(list) = &mut self.source
            && list.has_changed().unwrap_or(false)
        {
            list.mark_unchanged();
            let candidates = self.read();
            self.attempts.news(&candidates.targets);
            return candidates;
        }
        self.read()
    }

    fn read(&self) -> Candidates {
        let links: Vec<&Arc<Link>> = self.used.iter().chain(&self.spare).collect();
        let measured = |id: SvmId| {
            let link = links.iter().find(|link| link.id == id);
            link.map_or_else(Measured::default, |link| link.measured())
        };
        Candidates::of(
            &self.source,
            &self.identity,
            self.choice.policy.path,
            measured,
        )
    }

    /// Sessions that are over are no sessions; the spare takes over.
    fn drop_lost(&mut self, now: Instant) {
        if let Some(spare) = self.spare.take_if(|spare| spare.is_closed()) {
            let reason = spare.close_reason();
            tracing::info!(svm = %spare.id, %reason, "lost the Protection Server that stood by");
            self.lost(&spare, now, reason);
        }
        if let Some(used) = self.used.take_if(|used| used.is_closed()) {
            let reason = used.close_reason();
            self.used = self.spare.take();
            self.steady.reset();
            self.spare_from = now + jittered(SPARE_DELAY, 0.5, 1.5);
            match &self.used {
                Some(next) => tracing::warn!(
                    svm = %used.id, %reason, next = %next.id, name = %next.name,
                    "lost the Protection Server; the one that stood by is used"
                ),
                None => tracing::warn!(svm = %used.id, %reason, "lost the Protection Server"),
            }
            self.lost = Some(format!("the session with {} was lost: {reason}", used.name));
            self.lost(&used, now, reason);
        }
    }

    fn lost(&mut self, link: &Link, now: Instant, reason: String) {
        let lasted = now.saturating_duration_since(link.since);
        self.attempts
            .lost(&link.target, now, lasted, reason, spread());
    }

    /// What may not be used does not stand by.
    fn drop_excluded(&mut self, candidates: &Candidates) {
        let unusable = |spare: &mut Arc<Link>| candidates.position(spare).is_none();
        if let Some(spare) = self.spare.take_if(unusable) {
            tokio::spawn(retire(spare));
        }
    }

    /// Swaps the two, when the spare is better and has been for long enough.
    fn review(&mut self, candidates: &Candidates, now: Instant) {
        let Some(used) = &self.used else { return };
        let gain = candidates.gain(used, self.spare.as_deref());
        let chance = rand::rng().random_range(0.0..1.0);
        let Some(to) = self.steady.observe(gain, now, chance) else {
            return;
        };
        let Some(next) = self.spare.take_if(|spare| spare.id == to) else {
            return;
        };
        tracing::info!(svm = %next.id, name = %next.name, address = %next.address, "moving to a better Protection Server");
        let left = self.used.replace(next);
        self.steady.reset();
        match left {
            Some(left) if self.choice.spare => self.spare = Some(left),
            Some(left) => drop(tokio::spawn(retire(left))),
            None => {}
        }
    }

    /// Starts the attempt that is due; says when to look again at the latest.
    fn connect(&mut self, candidates: &Candidates, now: Instant) -> Instant {
        let review = now + REVIEW;
        let Some(used) = self.used.clone() else {
            return self.connect_first(candidates, now).min(review);
        };
        let wanted = match &self.spare {
            // One that is moved to has to be connected first.
            None if self.choice.spare => {
                if now < self.spare_from {
                    return self.spare_from.min(review);
                }
                candidates.spare_for(&used, |target| self.is_due(target, now))
            }
            None => self.steady.due().filter(|due| *due <= now).and_then(|_| {
                let (to, _) = candidates.gain(&used, None)?;
                let mut targets = candidates.targets.iter();
                targets.find(|target| target.id == Some(to) && self.is_due(target, now))
            }),
            Some(spare) => candidates
                .better_spare(&used, spare)
                .filter(|target| self.is_due(target, now)),
        };
        if let Some(target) = wanted
            && self.trying.is_empty()
        {
            self.start(target.clone(), now);
        }
        let due = candidates
            .targets
            .iter()
            .filter(|target| !used.is(target))
            .filter_map(|target| self.attempts.due(target, LONGEST_WAIT_OF_SPARE))
            .chain(self.steady.due())
            .filter(|due| *due > now);
        due.fold(review, Instant::min)
    }

    /// Without a session, the best candidate is tried first, and the others beside it
    /// when it does not answer at once.
    fn connect_first(&mut self, candidates: &Candidates, now: Instant) -> Instant {
        let mut next = now + LONGEST_WAIT;
        for target in &candidates.targets {
            if self.trying.len() >= MAX_CONNECTING {
                break;
            }
            if self.trying.contains(target) {
                continue;
            }
            let due = self.attempts.due(target, LONGEST_WAIT).unwrap_or(now);
            let turn = match self.tried_last {
                Some(last) if !self.trying.is_empty() => last + STAGGER,
                _ => now,
            };
            let due = due.max(turn);
            if due <= now {
                self.start(target.clone(), now);
            } else {
                next = next.min(due);
            }
        }
        next
    }

    fn is_due(&self, target: &Target, now: Instant) -> bool {
        let due = self.attempts.due(target, LONGEST_WAIT_OF_SPARE);
        due.is_none_or(|due| due <= now)
    }

    fn start(&mut self, target: Target, now: Instant) {
        self.tried_last = Some(now);
        self.trying.push(target.clone());
        let (identity, notices) = (self.identity.clone(), self.choice.notices);
        self.connecting.spawn(async move {
            let outcome = Link::connect(&target, &identity, notices).await;
            (target, outcome)
        });
    }

    /// Takes the outcome of an attempt.
    fn connected(&mut self, target: &Target, outcome: Result<Arc<Link>, LinkError>) {
        self.trying.retain(|trying| trying != target);
        let now = Instant::now();
        match outcome {
            Ok(link) if self.used.is_none() => {
                tracing::info!(svm = %link.id, name = %link.name, address = %link.address, "connected to a Protection Server");
                self.spare_from = now + jittered(SPARE_DELAY, 0.5, 1.5);
                self.lost = None;
                self.used = Some(link);
            }
            Ok(link) if self.used.as_ref().is_some_and(|used| used.id == link.id) => {
                link.close("there is a session already");
                let reason = "it is the Protection Server that is in use".to_owned();
                self.attempts.failed(target, now, reason, spread());
            }
            Ok(link) => {
                tracing::info!(svm = %link.id, name = %link.name, address = %link.address, "a second Protection Server stands by");
                if let Some(old) = self.spare.replace(link) {
                    tokio::spawn(retire(old));
                }
            }
            Err(error) => {
                tracing::debug!(name = %target.name, %error, "a Protection Server cannot be reached");
                self.attempts
                    .failed(target, now, error.to_string(), spread());
            }
        }
    }

    fn publish(&self, candidates: &Candidates) {
        let down = self.used.is_none().then(|| self.down_reason(candidates));
        self.state.send_if_modified(|state| {
            let next = match (&self.used, down) {
                (Some(link), _) => LinkState::Up {
                    link: Arc::clone(link),
                    spare: self.spare.clone(),
                },
                (None, reason) => {
                    let reason = reason.unwrap_or_default();
                    let since = match &*state {
                        LinkState::Down { since, .. } => *since,
                        LinkState::Up { .. } => Instant::now(),
                    };
                    LinkState::Down {
                        since,
                        reason: reason.into(),
                    }
                }
            };
            if is_same(state, &next) {
                return false;
            }
            if let LinkState::Down { reason, .. } = &next {
                tracing::warn!(%reason, "no Protection Server");
            }
            *state = next;
            true
        });
        let explanation = Explanation::new(
            candidates,
            &self.source,
            self.choice.policy.path,
            [self.used.as_ref(), self.spare.as_ref()],
            &self.attempts,
        );
        self.explanation.send_replace(Arc::new(explanation));
    }

    /// Why there is no session: what was tried since, or how the last one ended.
    fn down_reason(&self, candidates: &Candidates) -> String {
        if let Some(nothing) = candidates.nothing {
            return nothing.to_owned();
        }
        let failed = |target: &Target| {
            let failure = self.attempts.of(target)?;
            let addresses: Vec<String> = target.addresses.iter().map(ToString::to_string).collect();
            Some(format!(
                "{} ({}): {}",
                target.name,
                addresses.join(", "),
                failure.reason
            ))
        };
        let mut reasons: Vec<String> = candidates.targets.iter().filter_map(failed).collect();
        if reasons.len() < candidates.targets.len() {
            // Not all were tried yet.
            let lost = self.lost.clone();
            return lost.unwrap_or_else(|| "not connected yet".to_owned());
        }
        let unusable = candidates.unusable();
        if !unusable.is_empty() {
            reasons.push(unusable);
        }
        reasons.join("; ")
    }

    /// Sleeps until there is something to look at.
    async fn sleep(&mut self, until: Instant) {
        let done = tokio::select! {
            () = closed(self.used.as_ref()) => None,
            () = closed(self.spare.as_ref()) => None,
            () = changed(&self.source) => None,
            Some(done) = self.connecting.join_next() => Some(done),
            () = tokio::time::sleep_until(until.into()) => None,
        };
        match done {
            Some(Ok((target, outcome))) => self.connected(&target, outcome),
            // An attempt that panicked: all of them are begun again.
            Some(Err(error)) => {
                tracing::error!(%error, "an attempt to connect ended badly");
                self.connecting.abort_all();
                self.trying.clear();
            }
            None => {}
        }
    }
}

async fn closed(link: Option<&Arc<Link>>) {
    match link {
        Some(link) => drop(link.closed().await),
        None => std::future::pending().await,
    }
}

async fn changed(source: &Source) {
    if let Source::List(list) = source {
        // Marked as seen by `candidates`.
        if list.clone().changed().await.is_ok() {
            return;
        }
    }
    std::future::pending().await
}

fn is_same(a: &LinkState, b: &LinkState) -> bool {
    let same = |a: &Option<Arc<Link>>, b: &Option<Arc<Link>>| match (a, b) {
        (Some(a), Some(b)) => Arc::ptr_eq(a, b),
        (None, None) => true,
        _ => false,
    };
    match (a, b) {
        (LinkState::Down { reason: a, .. }, LinkState::Down { reason: b, .. }) => a == b,
        (LinkState::Up { link: a, spare: s }, LinkState::Up { link: b, spare: t }) => {
            Arc::ptr_eq(a, b) && same(s, t)
        }
        _ => false,
    }
}

fn spread() -> f64 {
    rand::rng().random_range(0.8..1.2)
}

/// Closes a session once its requests have had time to end.
async fn retire(link: Arc<Link>) {
    let _ = tokio::time::timeout(RETIRE, link.idle()).await;
    link.close("moved to another Protection Server");
}
