//! The task that keeps the sessions: one in use, one that stands by.
//!
//! Each round has [`Seats`] look at what is true now and does what follows from it, then
//! sleeps until something happens: a session ends, an attempt ends, the list changes, or a
//! wait is over.
//!
//! **Invariant:** the session in use is closed by this task only after the requests on
//! it had their time to end ([`retire`]), or when it was revoked.

use std::sync::Arc;
use std::time::{Duration, Instant};

use palisade_protocol::identity::Identity;
use palisade_protocol::ids::SvmId;
use rand::Rng as _;
use tokio::sync::watch;

use super::candidates::Candidates;
use super::connecting::Connecting;
use super::explained::Explanation;
use super::measurements::Measurement;
use super::seats::{Seats, Session};
use super::turn::News;
use super::{Choice, Kept, LinkState, Source};
use crate::link::{Link, Target};

/// How long requests on a session that is left may take to end.
const RETIRE: Duration = Duration::from_secs(60);

/// See the module.
pub struct Keeper {
    identity: Identity,
    source: Source,
    choice: Choice,
    state: watch::Sender<LinkState>,
    explanation: watch::Sender<Arc<Explanation>>,
    seats: Seats<Arc<Link>>,
    connecting: Connecting<Arc<Link>>,
}

impl Session for Arc<Link> {
    fn id(&self) -> SvmId {
        self.id
    }

    fn target(&self) -> &Target {
        &self.target
    }

    fn is(&self, target: &Target) -> bool {
        Link::is(self, target)
    }

    fn since(&self) -> Instant {
        self.since
    }

    fn over(&self) -> Option<String> {
        self.is_closed().then(|| self.close_reason())
    }

    fn measured(&self) -> Measurement {
        Link::measured(self)
    }
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
            seats: Seats::new(choice.spare),
            connecting: Connecting::default(),
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
        for link in self.seats.used().into_iter().chain(self.seats.spare()) {
            link.close("the agent stops");
        }
    }

    async fn keep(&mut self) {
        loop {
            let now = Instant::now();
            self.seats.measure(now);
            let candidates = self.candidates();
            let turn = self.seats.turn(&candidates, now, chance());
            turn.news.iter().for_each(tell);
            for link in turn.close {
                link.close("it is not used");
            }
            for link in turn.leave {
                tokio::spawn(retire(link));
            }
            for link in turn.ask {
                // Its answer has the load, and a session that is lost is noticed by its watch.
                tokio::spawn(async move { link.definitions().await.map(drop) });
            }
            for target in turn.connect {
                self.connect(target);
            }
            self.publish(&candidates);
            self.sleep(turn.next).await;
        }
    }

    fn candidates(&mut self) -> Candidates {
        if let Source::List(list) = &mut self.source
            && list.has_changed().unwrap_or(false)
        {
            list.mark_unchanged();
            let candidates = self.read();
            self.seats.news(&candidates.targets);
            return candidates;
        }
        self.read()
    }

    fn read(&self) -> Candidates {
        let measured = |id: SvmId| self.seats.measurements().of(id);
        let reach = self.choice.policy.path;
        Candidates::of(&self.source, &self.identity, reach, measured)
    }

    fn connect(&mut self, target: Target) {
        let (identity, notices) = (self.identity.clone(), self.choice.notices);
        self.connecting.begin(target.clone(), async move {
            let connected = Link::connect(&target, &identity, notices).await;
            connected.map_err(|error| {
                tracing::debug!(name = %target.name, %error, "a Protection Server cannot be reached");
                error.to_string()
            })
        });
    }

    fn publish(&self, candidates: &Candidates) {
        let (used, spare) = (self.seats.used(), self.seats.spare());
        let down = used.is_none().then(|| self.down_reason(candidates));
        self.state.send_if_modified(|state| {
            let next = match (used, down) {
                (Some(link), _) => LinkState::Up {
                    link: Arc::clone(link),
                    spare: spare.cloned(),
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
            [used, spare],
            self.seats.attempts(),
        );
        self.explanation.send_replace(Arc::new(explanation));
    }

    /// Why there is no session: what was tried since, or how the last one ended.
    fn down_reason(&self, candidates: &Candidates) -> String {
        if let Some(nothing) = candidates.nothing {
            return nothing.to_owned();
        }
        let failed = |target: &Target| {
            let failure = self.seats.attempts().of(target)?;
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
            let lost = self.seats.lost();
            return lost.unwrap_or("not connected yet").to_owned();
        }
        let unusable = candidates.unusable();
        if !unusable.is_empty() {
            reasons.push(unusable);
        }
        reasons.join("; ")
    }

    /// Sleeps until there is something to look at.
    async fn sleep(&mut self, until: Instant) {
        let (target, outcome) = tokio::select! {
            () = closed(self.seats.used()) => return,
            () = closed(self.seats.spare()) => return,
            () = changed(&self.source) => return,
            () = tokio::time::sleep_until(until.into()) => return,
            ended = self.connecting.next() => ended,
        };
        self.seats
            .connected(&target, outcome, Instant::now(), chance());
    }
}

/// Says what happened.
fn tell(news: &News<Arc<Link>>) {
    match news {
        News::Connected(link) => {
            tracing::info!(svm = %link.id, name = %link.name, address = %link.address, "connected to a Protection Server");
        }
        News::StandsBy(link) => {
            tracing::info!(svm = %link.id, name = %link.name, address = %link.address, "a second Protection Server stands by");
        }
        News::Moved(link, why) => {
            tracing::info!(svm = %link.id, name = %link.name, address = %link.address, ?why, "moving to a better Protection Server");
        }
        News::SpareLost(link, reason) => {
            tracing::info!(svm = %link.id, %reason, "lost the Protection Server that stood by");
        }
        News::Lost {
            left,
            reason,
            next: Some(next),
        } => tracing::warn!(
            svm = %left.id, %reason, next = %next.id, name = %next.name,
            "lost the Protection Server; the one that stood by is used"
        ),
        News::Lost { left, reason, .. } => {
            tracing::warn!(svm = %left.id, %reason, "lost the Protection Server");
        }
        News::Revoked(link) => {
            tracing::warn!(svm = %link.id, name = %link.name, "the Protection Server was revoked; its session ends at once");
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

fn chance() -> f64 {
    rand::rng().random_range(0.0..1.0)
}

/// Closes a session once its requests have had time to end.
async fn retire(link: Arc<Link>) {
    let _ = tokio::time::timeout(RETIRE, link.idle()).await;
    link.close("moved to another Protection Server");
}
