//! What a look at the sessions comes to: what is to be done, and what is to be said.

use std::time::Instant;

use palisade_protocol::selection::Gain;

use crate::link::Target;

/// What follows from a look.
#[derive(Debug)]
pub struct Turn<S> {
    /// What to connect to.
    pub connect: Vec<Target>,
    /// Sessions to close once their requests had time to end.
    pub leave: Vec<S>,
    /// Sessions to close at once.
    pub close: Vec<S>,
    /// Sessions to ask for their load.
    pub ask: Vec<S>,
    /// What happened.
    pub news: Vec<News<S>>,
    /// When to look again at the latest.
    pub next: Instant,
}

/// What happened to sessions, for people.
#[derive(Debug)]
pub enum News<S> {
    /// The first that answered is used.
    Connected(S),
    /// A second one stands by.
    StandsBy(S),
    /// The one that stood by is used, for this reason.
    Moved(S, Gain),
    /// The one that stood by is lost, and why.
    SpareLost(S, String),
    /// The one in use is lost.
    Lost {
        /// Which it was.
        left: S,
        /// Why.
        reason: String,
        /// Which is used now.
        next: Option<S>,
    },
    /// The server says that it was revoked.
    Revoked(S),
}

impl<S> Turn<S> {
    /// Nothing to do until then.
    pub fn until(next: Instant) -> Self {
        Self {
            connect: Vec::new(),
            leave: Vec::new(),
            close: Vec::new(),
            ask: Vec::new(),
            news: Vec::new(),
            next,
        }
    }

    /// Look again at this moment at the latest.
    pub fn look(&mut self, at: Instant) {
        self.next = self.next.min(at);
    }
}
