//! The policy that the site has set for this guest: kept, laid over the guest's own
//! settings, and confirmed.
//!
//! ```text
//!  control ── policy ──► keeper ─► laid over agent.toml ─► kept on disk ─► applied
//!     ▲                                 │ cannot be               │ in place, or by a new start
//!     └──── report ◄──── board ◄────────┴─────────────────────────┘
//!
//!  at the start: policy.json ─ usable, and proven or not tried in vain? ─► in force
//!                    │ no
//!                    └► policy-good.json, the last one that was proven ─► in force
//!                           └ none either: agent.toml alone, and status says why
//! ```
//!
//! What a policy sets goes before `agent.toml` and its variables; what it does not set is
//! as these have it. What this agent does not know, or cannot take, is named and left
//! out, and all else applies.
//!
//! | module | owns |
//! | --- | --- |
//! | [`overlay`] | settings with a policy over them (pure) |
//! | [`kept`] | the files, and which one is used at a start (the decision is pure) |
//! | [`board`] | what is in force now, for whoever reports or shows it |
//! | [`people`], [`command`] | `palisade-agent policy` |
//!
//! **Invariant:** no policy, and no damage to what is kept of one, keeps the agent from
//! starting or from holding opens as the guest's own settings say.

pub mod board;
pub mod command;
pub mod kept;
pub mod overlay;
pub mod people;

use std::path::Path;

use crate::settings::{Base, Settings};

/// The settings that an agent would begin with: the guest's own, and what is kept of its
/// policy in this state folder. Who may not read it has the guest's own.
pub fn in_force(base: &Base, state: &Path) -> Settings {
    let choice = kept::Files::new(state).look();
    let policy = choice.policy.map(|(policy, _)| policy);
    overlay::lay(base, &policy.unwrap_or_default()).settings
}
