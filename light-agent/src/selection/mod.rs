//! Which Protection Server the agent is connected to, and which one stands by.
//!
//! ```text
//!  list (static, or from the Integration Server) ─► candidates, best first
//!                                                        │ connect: the first that answers is used,
//!                                                        ▼ the next one stands by
//!             down, waiting ◄──both lost── used + spare ──used lost──► the spare is used at once
//!                                             │
//!                                             └ the spare is better, and stays so ──► they swap
//! ```
//!
//! Owns the choice ([`seats`], pure), one task that carries it out, the [`keeper`], the
//! state that everybody watches and what `palisade-agent explain` shows ([`explained`]).
//! The order, and what is worth a move, are `palisade_protocol::selection`'s; sessions are
//! [`link`](crate::link)'s.

mod attempts;
mod candidates;
pub mod command;
mod connecting;
pub mod explained;
mod keeper;
pub mod measurements;
mod seats;
mod told;
mod turn;

use std::sync::Arc;
use std::time::Instant;

use palisade_protocol::control::SvmList;
use palisade_protocol::identity::Identity;
use palisade_protocol::ids::AgentId;
use palisade_protocol::selection::Reach;
use palisade_protocol::spiffe::Role;
use serde::Deserialize;
use tokio::sync::watch;

use crate::link::Link;
use crate::settings::StaticSvm;
use explained::Explanation;

/// The sessions in force.
#[derive(Clone)]
pub enum LinkState {
    /// None, since when and why.
    Down {
        /// Since when.
        since: Instant,
        /// Why, for people.
        reason: Arc<str>,
    },
    /// There is one.
    Up {
        /// Which is asked.
        link: Arc<Link>,
        /// Which is asked when nothing is heard of the other.
        spare: Option<Arc<Link>>,
    },
}

impl LinkState {
    /// No session yet.
    pub fn none(reason: &str) -> Self {
        Self::Down {
            since: Instant::now(),
            reason: reason.into(),
        }
    }

    /// The session to ask, if there is one: the spare, where the one in use has just
    /// been lost.
    pub fn link(&self) -> Option<&Arc<Link>> {
        match self {
            Self::Up { link, .. } if !link.is_closed() => Some(link),
            Self::Up { .. } => self.spare(),
            Self::Down { .. } => None,
        }
    }

    /// The session that stands by, if there is one.
    pub fn spare(&self) -> Option<&Arc<Link>> {
        match self {
            Self::Up { spare, .. } => spare.as_ref().filter(|spare| !spare.is_closed()),
            Self::Down { .. } => None,
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

/// What an administrator may set of the choice.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Policy {
    /// How far from this guest a Protection Server of the list may be: `hypervisor`,
    /// `cluster`, `datacenter` or `any`, near ones first.
    pub path: Reach,
}

/// How sessions are kept.
#[derive(Debug, Clone, Copy, Default)]
pub struct Choice {
    /// What an administrator has set.
    pub policy: Policy,
    /// Whether a second session stands by.
    pub spare: bool,
    /// Whether what a Protection Server says unasked is heard.
    pub notices: bool,
}

/// What the keeper says.
#[derive(Clone)]
pub struct Kept {
    /// The sessions in force.
    pub state: watch::Receiver<LinkState>,
    /// Why these.
    pub explanation: watch::Receiver<Arc<Explanation>>,
}

/// Starts the keeper; it ends when nobody watches the state any more.
pub fn keep(identity: Identity, source: Source, choice: Choice) -> Kept {
    let (keeper, kept) = keeper::Keeper::new(identity, source, choice);
    tokio::spawn(keeper.run());
    kept
}

/// The agent's own id; a nil one for an identity that is no agent's, which no
/// Protection Server accepts.
pub fn agent_id(identity: &Identity) -> AgentId {
    match &identity.id().role {
        Role::Agent { id, .. } => *id,
        _ => AgentId(uuid::Uuid::nil()),
    }
}
