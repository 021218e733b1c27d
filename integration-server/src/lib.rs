//! The Integration Server: the site's certificate authority, inventory and fleet,
//! its REST API, and the `palisade` command that speaks it.
//!
//! ```text
//!   agents, SVMs ──QUIC──► fleet ──► store (SQL) ◄──── api ◄──HTTPS── palisade, console
//!                            ▲                           ▲
//!   libvirt ──► inventory ───┴───────────────────────────┘
//! ```
//!
//! | module | owns |
//! | --- | --- |
//! | [`settings`] | `server.toml` |
//! | [`access`] | who may do what, and where (pure) |
//! | [`accounts`] | passwords, second factors, sessions, and how often may be tried |
//! | [`audit`] | what an entry of the audit log says, and whether the chain holds (pure) |
//! | [`ca`] | keys and certificates |
//! | [`store`] | what must not be forgotten |
//! | [`fleet`] | enrolment and control sessions |
//! | [`definitions`] | the site's signed repository of definitions |
//! | [`libvirt`] | the only code that touches libvirt |
//! | [`inventory`] | hosts and domains, and what changed (pure) |
//! | [`policy`] | what is set for guests, and what comes of it (pure) |
//! | [`api`] | the REST API |
//! | [`server`] | composition: start, run, stop |
//! | [`cli`] | the `palisade` command |
//! | [`secret`], [`interval`], [`time`], [`failure`] | secrets that are handed out, durations as people write them, the clock, errors as programs print them |
//!
//! **Invariant:** what a peer was told is stored was committed before.
//! **Invariant:** unsafe code is in `libvirt/events.rs` and nowhere else.

#![deny(unsafe_code)]

pub mod access;
pub mod accounts;
pub mod api;
pub mod audit;
pub mod ca;
pub mod cli;
pub mod definitions;
pub mod failure;
pub mod fleet;
pub mod interval;
pub mod inventory;

pub mod libvirt;
pub mod policy;
pub mod secret;
pub mod server;
pub mod settings;
pub mod store;
pub mod time;
