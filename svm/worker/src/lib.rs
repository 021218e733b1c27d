//! Scan engines as processes: what the daemon and every engine program share.
//!
//! ```text
//!   daemon                        engine program
//!   ┌───────────────┐  control    ┌────────────────────┐
//!   │ EngineProcess ├────────────►│ zygote             │ loads definitions once,
//!   │               │  (stdin)    │  one thread        │ forks, kills and reaps
//!   │ WorkerHandle  │             └──┬──────────┬──────┘
//!   │ WorkerHandle  │           fork │          │ fork
//!   │      ▲        │         ┌──────▼───┐ ┌────▼─────┐
//!   └──────┼────────┘         │ worker 1 │ │ worker 2 │ share the definitions'
//!          └─────────────────►│ sandbox  │ │ sandbox  │ pages, parse hostile bytes
//!            own socketpair   └──────────┘ └──────────┘
//! ```
//!
//! | module | owns |
//! | --- | --- |
//! | [`message`] | what is said, and how much of it |
//! | [`ipc`] | how it is said: one packet, at most one descriptor, nothing unbounded |
//! | [`content`] | sealed memory files: content on its way in, copies of what comes out |
//! | [`zygote`] | the engine program's side: load, fork, sandbox, serve |
//! | [`client`] | the daemon's side: start, spawn, scan, kill |
//! | [`args`] | the engine programs' command lines |
//!
//! **Invariant.** The crate knows nothing of Palisade's wire protocol, and links
//! nothing that may not be linked with GPL-2.0-only code.
//!
//! **Invariant.** Neither side trusts the other's sizes, counts or names: a packet
//! is bounded before it is decoded, a descriptor is checked for its seals and its
//! length before it is read, or copied.

#![deny(unsafe_code)]

pub mod args;
pub mod client;
pub mod content;
pub mod ipc;
pub mod message;
pub mod text;
pub mod zygote;

mod sys;
