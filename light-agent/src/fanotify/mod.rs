//! The kernel's side of on-access protection.
//!
//! ```text
//!  open()/exec ─► kernel queue ─► reader thread ─► Event ─┬─ trivial: answered here
//!                                                         └─ queue (bounded) ─► guard
//!        ▲                                                                       │
//!        └───────────── answer, exactly once: verdict, deadline, or drop ◄───────┘
//! ```
//!
//! | module | owns |
//! | --- | --- |
//! | [`group`] | the fanotify group, its flags and marks; answers are written here |
//! | [`event`] | one event: answered exactly once by construction |
//! | [`reader`] | the thread that reads events and does nothing else |
//! | [`places`] | which file systems may be marked, and which are gaps |
//!
//! **Invariant:** nothing is forked while the group is open; its descriptor is
//! CLOEXEC, and openers are released when its last copy closes.

pub mod event;
pub mod group;
pub mod places;
pub mod reader;
