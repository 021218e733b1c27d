//! Which Protection Server the agent is connected to.
//!
//! ```text
//!  list (static, or from the Integration Server) ─► rank ─► connect, best first
//!        ▲                                                     │
//!        │ new list: move if it gains                          ▼
//!        └───────────────────────────── down, jittered wait ◄─ up ─► lost
//! ```
//!
//! Owns one task, the keeper, and the state that everybody watches. The order is
//! `palisade_protocol::selection`'s; sessions are [`link`](crate::link)'s.

use std::sync::Arc;
use std::time::{Duration, Instant};

use palisade_protocol::control::SvmList;
use palisade_protocol::identity::Identity;
use palisade_protocol::ids::AgentId;
use palisade_protocol::selection::{rank, should_move};
use palisade_protocol::spiffe::Role;
use tokio::sync::watch;

use crate::link::{Link, Target};
use crate::pace::jittered;
use crate::settings::StaticSvm;

/// The first wait after every Protection Server failed.
const FIRST_WAIT: Duration = Duration::from_millis(250);
/// The longest wait.
const LONGEST_WAIT: Duration = Duration::from_secs(5);
/// A move to a better Protection Server waits up to this long, so that one that
/// returns is not stampeded.
const MOVE_JITTER: Duration = Duration::from_secs(3);

/// The session in force.
#[derive(Clone)]
pub enum LinkState {
    /// None, since when and why.
    Down {
        /// Since when.
        since: Instant,
        /// Why, for people.
        reason: Arc<str>,
    },
    /// This one.
    Up(Arc<Link>),
}

impl LinkState {
    /// No session yet.
    pub fn none(reason: &str) -> Self {
        Self::Down {
            since: Instant::now(),
            reason: reason.into(),
        }
    }

    /// The session, if there is one.
    pub fn link(&self) -> Option<&Arc<Link>> {
        match self {
            Self::Up(link) if !link.is_closed() => Some(link),
            _ => None,
        }
    }
}

/// Where the candidates come from.
#[derive(Debug, Clone)]
pub enum Source {
    /// Settings; in the order written.
    Static(Vec<StaticSvm>),
    /// The Integration Server's list, as it changes.
    List(watch::Receiver<Option<Arc<SvmList>>>),
}

/// Starts the keeper; it ends when nobody watches the state any more.
pub fn keep(identity: Identity, source: Source) -> watch::Receiver<LinkState> {
    let (state, watched) = watch::channel(LinkState::none("not connected yet"));
    tokio::spawn(
        Keeper {
            identity,
            source,
            state,
        }
        .run(),
    );
    watched
}

struct Keeper {
    identity: Identity,
    source: Source,
    state: watch::Sender<LinkState>,
}

impl Keeper {
    async fn run(mut self) {
        let state = self.state.clone();
        tokio::select! {
            () = state.closed() => {}
            () = self.keep() => {}
        }
        if let LinkState::Up(link) = &*state.borrow() {
            link.close("the agent stops");
        };
    }

    async fn keep(&mut self) {
        let mut wait = FIRST_WAIT;
        loop {
            let (targets, excluded) = self.targets();
            match self.connect_best(&targets, excluded).await {
                Ok(link) => {
                    wait = FIRST_WAIT;
                    self.stay(link).await;
                }
                Err(reason) => {
                    self.down(&reason);
                    let jittered = jittered(wait, 0.8, 1.2);
                    tokio::select! {
                        () = tokio::time::sleep(jittered) => wait = (wait * 2).min(LONGEST_WAIT),
                        () = self.list_changed() => wait = FIRST_WAIT,
                    }
                }
            }
        }
    }

    /// Holds a session until it is lost or a better one is there.
    async fn stay(&mut self, mut link: Arc<Link>) {
        loop {
            tracing::info!(svm = %link.id, name = %link.name, address = %link.address, "connected to a Protection Server");
            self.state.send_replace(LinkState::Up(Arc::clone(&link)));
            let reason = loop {
                tokio::select! {
                    reason = link.closed() => break Some(reason),
                    () = self.list_changed() => if self.should_leave(&link) { break None },
                }
            };
            if let Some(reason) = reason {
                tracing::warn!(svm = %link.id, %reason, "lost the Protection Server");
                self.down(&format!(
                    "the session with {} was lost: {reason}",
                    link.name
                ));
                return;
            }
            let jitter = jittered(MOVE_JITTER, 0.0, 1.0);
            tokio::time::sleep(jitter).await;
            let (targets, excluded) = self.targets();
            if let Ok(better) = self.connect_best(&targets, excluded).await {
                // Requests that are open on the old session end there.
                tokio::spawn(retire(std::mem::replace(&mut link, better)));
            }
        }
    }

    async fn connect_best(
        &self,
        targets: &[Target],
        excluded: String,
    ) -> Result<Arc<Link>, String> {
        let mut failures = Vec::new();
        for target in targets {
            match Link::connect(target, &self.identity).await {
                Ok(link) => return Ok(link),
                Err(error) => {
                    let addresses: Vec<String> =
                        target.addresses.iter().map(ToString::to_string).collect();
                    failures.push(format!(
                        "{} ({}): {error}",
                        target.name,
                        addresses.join(", ")
                    ));
                }
            }
        }
        if !excluded.is_empty() {
            failures.push(excluded);
        }
        if failures.is_empty() {
            failures.push(match &self.source {
                Source::List(list) if list.borrow().is_none() => {
                    "no list of Protection Servers yet".to_owned()
                }
                _ => "the list of Protection Servers is empty".to_owned(),
            });
        }
        Err(failures.join("; "))
    }

    /// The candidates in order, and why others are none.
    fn targets(&mut self) -> (Vec<Target>, String) {
        match &mut self.source {
            Source::Static(svms) => (svms.iter().map(static_target).collect(), String::new()),
            Source::List(list) => {
                let list = list.borrow_and_update().clone();
                list.map_or_else(Default::default, |list| {
                    listed_targets(&self.identity, &list)
                })
            }
        }
    }

    fn should_leave(&self, link: &Link) -> bool {
        let Source::List(list) = &self.source else {
            return false;
        };
        let Some(list) = list.borrow().clone() else {
            return false;
        };
        let ranking = rank(
            agent_id(&self.identity),
            &list.own_path,
            &list.own_tags,
            &list.svms,
        );
        !ranking.candidates.is_empty() && should_move(&ranking, link.id)
    }

    async fn list_changed(&mut self) {
        match &mut self.source {
            Source::List(list) => {
                if list.changed().await.is_err() {
                    std::future::pending().await
                }
            }
            Source::Static(_) => std::future::pending().await,
        }
    }

    fn down(&self, reason: &str) {
        self.state.send_if_modified(|state| {
            let since = match state {
                LinkState::Down { since, reason: old } => {
                    if **old == *reason {
                        return false;
                    }
                    *since
                }
                LinkState::Up(_) => Instant::now(),
            };
            tracing::warn!(%reason, "no Protection Server");
            *state = LinkState::Down {
                since,
                reason: reason.into(),
            };
            true
        });
    }
}

/// Closes a session once its requests have had time to end.
async fn retire(link: Arc<Link>) {
    for _ in 0..120 {
        if Arc::strong_count(&link) <= 2 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    link.close("moved to another Protection Server");
}

fn static_target(svm: &StaticSvm) -> Target {
    Target {
        id: svm.id,
        name: svm.address.to_string(),
        addresses: vec![svm.address],
    }
}

fn listed_targets(identity: &Identity, list: &SvmList) -> (Vec<Target>, String) {
    let ranking = rank(
        agent_id(identity),
        &list.own_path,
        &list.own_tags,
        &list.svms,
    );
    let entry = |id| list.svms.iter().find(|svm| svm.id == id);
    let targets = ranking
        .candidates
        .iter()
        .filter_map(|candidate| entry(candidate.id))
        .map(|svm| Target {
            id: Some(svm.id),
            name: svm.name.as_str().to_owned(),
            addresses: svm.report.addresses.iter().map(|at| at.address).collect(),
        })
        .collect();
    let excluded: Vec<String> = ranking
        .excluded
        .iter()
        .filter_map(|(id, why)| Some(format!("{}: {why:?}", entry(*id)?.name)))
        .collect();
    let excluded = if excluded.is_empty() {
        String::new()
    } else {
        format!("not usable: {}", excluded.join(", "))
    };
    (targets, excluded)
}

/// The agent's own id; a nil one for an identity that is no agent's, which no
/// Protection Server accepts.
pub fn agent_id(identity: &Identity) -> AgentId {
    match &identity.id().role {
        Role::Agent { id, .. } => *id,
        _ => AgentId(uuid::Uuid::nil()),
    }
}
