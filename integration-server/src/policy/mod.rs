//! What is set for guests, from where, and what comes of it: pure. No clock, no store, no
//! request.
//!
//! ```text
//!   site ─► tenant ─► groups, the weakest first ─► VM        each sets some, or nothing
//!      └───────┴────────────┴──────────────────────┴─► effective value, with its origin
//!                           ▲                                │
//!   inventory ─► query ─────┘                 document with fingerprint ─► agent
//! ```
//!
//! A policy sets some settings and leaves all others to what is more general; what no
//! policy sets is as the guest's own `agent.toml` has it. Of several groups that a VM is
//! in, the one with the higher priority wins, and of two with the same one that whose
//! name comes first: the order is always total, and never depends on when something was
//! made.
//!
//! Owns the tree, inheritance, the groups' queries and the difference between revisions.
//! Does not own what a setting may be (the protocol's
//! [`settings`], which the agent reads, too), who may
//! change what (`access`) or how it reaches agents (`fleet`).
//!
//! | module | owns |
//! | --- | --- |
//! | [`subject`] | what a policy is of, as one word |
//! | [`query`] | which agents a group has: a language of one line |
//! | [`book`] | all policies and groups, and an agent's effective one |
//! | [`diff`] | what changed between two revisions |
//!
//! **Invariant:** an effective value is the one of the most special policy that sets it.
//! **Invariant:** a group has agents of its own tenant alone.

pub mod book;
pub mod diff;
pub mod query;
pub mod subject;

use std::collections::BTreeMap;

use palisade_protocol::policy::settings::{self, BadSetting};
use serde_json::Value;

pub use book::{Book, Effective, Group};
pub use query::{Facts, Query};
pub use subject::Subject;

/// What one policy sets, by the settings' names.
pub type Settings = BTreeMap<String, Value>;

/// Most groups of one tenant.
pub const MAX_GROUPS: usize = 250;
/// Longest note of a change, in bytes.
pub const MAX_NOTE_BYTES: usize = 200;
/// The highest priority of a group.
pub const MAX_PRIORITY: u32 = 1_000_000;

/// Looks at all that a policy sets, before it is kept.
///
/// # Errors
/// The first setting that cannot be, with what would be right.
pub fn check(all: &Settings) -> Result<(), BadSetting> {
    all.iter()
        .try_for_each(|(key, value)| settings::check(key, value))
}
