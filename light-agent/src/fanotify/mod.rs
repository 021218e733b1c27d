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
//! | [`mountinfo`], [`namespaces`] | the kernel's tables of mounts, in all namespaces |
//! | [`plan`], [`follow`] | what is mounted later: which of it is marked (pure), and when |
//! | [`names`] | whether an open is one of a protected file, whatever mount names it |
//! | [`programs`] | programs whose opens are let through |
//! | [`overlay`] | whether marks of an overlay's layers see it |
//! | [`devices`] | whether opens of device nodes are events, and where such nodes are |
//! | [`coverage`], [`unseen`] | what is protected at the moment, and what no kernel of this kind asks about |
//!
//! **Invariant:** nothing is forked while the group is open; its descriptor is
//! CLOEXEC, and openers are released when its last copy closes.

pub mod coverage;
pub mod devices;
pub mod elsewhere;
pub mod event;
pub mod follow;
pub mod group;
pub mod mountinfo;
pub mod names;
pub mod namespaces;
pub mod overlay;
pub mod places;
pub mod plan;
pub mod programs;
pub mod reader;
pub mod unseen;
