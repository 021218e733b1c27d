//! Definitions: generations of signatures and rules, and which one is in force.
//!
//! ```text
//!  source ──changed, and still──► copy ──► engines load ──► check ──► generation n
//!    ▲                             │ same    │ malformed     │ misses EICAR, or      │
//!    │                             │ bytes   │               │ finds clean content   ▼
//!    ├── start, SIGHUP,            └─► gone ◄┴───────────────┘                    in force
//!    │   every poll_s                  file and line are said;                       │
//!    └── an order                      the one before stays             kept ◄──────┘
//! ```
//!
//! | module | owns |
//! | --- | --- |
//! | [`source`] | what the source directory holds, and copying it |
//! | [`store`], [`manifest`] | generations on disk; which is active, which were before |
//! | [`corpus`], [`check`] | what definitions must find and must not, before they serve |
//! | [`keeper`] | the steps above |
//! | [`desk`] | when they run: time, SIGHUP, orders; one at a time |
//! | [`crate::local`] | brings orders from `palisade-scanserver definitions`, by a socket |
//! | [`error`] | what can be wrong, and the remedy |
//!
//! Does not own running engines ([`crate::scan`]); it hands a set of loaded ones
//! over, and scans in flight keep the set that they began with. What did not change
//! in one engine is not loaded again: its process goes over to the new set. So at most
//! one engine more than there are is in memory twice.
//!
//! Rules are compiled from their text whenever they are loaded: nothing compiled is
//! read from disk.

pub mod check;
pub mod corpus;
pub mod desk;
pub mod error;
pub mod keeper;
pub mod manifest;
pub mod source;
pub mod store;

pub use error::DefinitionsError;
pub use keeper::{Change, Keeper};
