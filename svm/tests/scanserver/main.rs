//! The daemon as a process, with its real engines, spoken to over QUIC.
//!
//! | module | shows |
//! | --- | --- |
//! | [`verdicts`] | what is found, cached, and kept apart |
//! | [`hostile`] | peers that lie, stall, or speak nonsense |
//! | [`flights`] | one content, many requests, one scan |
//! | [`definitions`] | generations: good, bad, missing |
//! | [`crashes`] | killed daemons, killed workers, damaged caches, clean stops |
//! | [`reports`] | what the Integration Server hears |
//!
//! [`site`] starts daemons, [`client`] is an agent that does as it is told.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a panic in a test is a failed test, and its helpers are no tests by name"
)]

mod client;
mod crashes;
mod definitions;
mod flights;
mod hostile;
mod reports;
mod site;
mod verdicts;
