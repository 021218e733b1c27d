//! Palisade's Protection Server: it scans, for the guests of a hypervisor, what
//! their agents ask about.
//!
//! ```text
//!  agents ══QUIC══► listener ─► request ─► cache ──────────► verdict
//!                                  │
//!                                  └─► flight ─► budget ─► gather ─► admission ─► scan ─► engines
//!                                                            ▲                      ▲
//!                                                        fragments                  │
//!  source directory ─┬► definitions (generations) ──────────────────────────────────┘
//!  repository ◄──────┘ pulled, verified
//!  Integration Server ◄══QUIC══ report, repository
//! ```
//!
//! | module | owns |
//! | --- | --- |
//! | [`settings`] | `scanserver.toml`: keys, defaults, bounds |
//! | [`state`] | the folders, the lock, the identity |
//! | [`addresses`] | where agents are told to connect |
//! | [`listener`] | QUIC sessions and streams |
//! | [`agents`] | who is connected, and how much each has open |
//! | [`request`] | one request from its first frame to its answer |
//! | [`failure`] | what went wrong, and what the agent is told: one table |
//! | [`cache`] | SharedCache |
//! | [`flight`] | requests for one content are one piece of work |
//! | [`budget`] | memory for contents in flight |
//! | [`fragments`] | what was sent lately and need not be sent again |
//! | [`admission`] | what is scanned next, and what is turned away (pure) |
//! | [`scan`] | lanes, engine processes, and from their words to one verdict |
//! | [`engine`] | the engines there are: one table |
//! | [`hash_lists`] | hashes that are allowed or denied |
//! | [`digest`] | SHA-256 and MD5 of sealed content |
//! | [`definitions`] | generations of signatures and rules, and orders about them |
//! | [`brake`] | a new signature that hits many guests at once is reported only |
//! | [`retro`] | who is told when a content that was clean is malware by newer definitions |
//! | `waiting` | how many wait for something |
//! | [`local`], [`status`] | commands of this machine; what they are told |
//! | [`metrics`] | what is counted, for Prometheus: one table |
//! | [`repository`] | following the site's signed definitions |
//! | [`report`] | what the Integration Server is told |
//!
//! **Invariants.** Parsers of hostile bytes run in worker processes, never here.
//! `Clean` is said only after every engine completed on bytes of which every
//! fragment verified, where a site's list allows such bytes, or from the cache where
//! such an end was stored. No message
//! from a peer makes this process panic, allocate without bound, or keep another
//! peer waiting.

#![forbid(unsafe_code)]

pub mod addresses;
pub mod admission;
pub mod agents;
pub mod brake;
pub mod budget;
pub mod cache;
pub mod definitions;
pub mod digest;
pub mod engine;
pub mod failure;
pub mod flight;
pub mod fragments;
pub mod hash_lists;
pub mod listener;
pub mod local;
pub mod metrics;
pub mod problems;
pub mod report;
pub mod repository;
pub mod request;
pub mod retro;
pub mod scan;
pub mod settings;
pub mod state;
pub mod status;
mod waiting;
