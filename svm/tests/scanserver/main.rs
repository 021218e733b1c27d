//! The daemon as a process, with its real engines, spoken to over QUIC.
//!
//! | module | shows |
//! | --- | --- |
//! | [`verdicts`] | what is found, cached, and kept apart |
//! | [`details`] | where, by whom, how long; settings and options |
//! | [`lists`] | hashes that are allowed or denied |
//! | [`hostile`] | peers that lie, stall, or speak nonsense |
//! | [`flights`] | one content, many requests, one scan |
//! | [`fragments`] | what was sent once is not sent again |
//! | [`older`] | verdicts of earlier definitions, lookups, re-checks |
//! | [`measured`] | the numbers for Prometheus |
//! | [`definitions`] | the source: good, bad, missing |
//! | [`generations`] | orders: import, activate, rollback, status |
//! | [`checks`] | what new definitions must find and must not |
//! | [`freshclam`] | a source that others update while it is looked at |
//! | [`swaps`] | nothing is missed, and little is in memory, while generations change |
//! | [`crashes`] | killed daemons, killed workers, damaged caches, clean stops |
//! | [`sandbox`] | what confines workers, set and told |
//! | [`retro`] | who is told that a content is malware by newer definitions |
//! | [`rescans`] | what new definitions find in contents that nobody asks for again |
//! | [`kills`] | killed under load, again and again: no verdict is wrong |
//! | [`silent`] | thousands that say nothing, or too little |
//! | [`bombs`] | archives that unpack to more than there is |
//! | [`stored`] | what a scan must come to before anything is stored |
//! | [`slow`] | contents that take long, and those who wait meanwhile |
//! | [`neighbours`] | another tenant's contents, another agent's flood |
//! | [`pulls`] | signed definitions from a server that may be anybody's by now |
//! | [`reports`] | what the Integration Server hears |
//!
//! [`site`] starts daemons, [`publisher`] makes what a server publishes, [`client`] is an agent that does as it is told, [`load`] one
//! that asks without a pause.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a panic in a test is a failed test, and its helpers are no tests by name"
)]

mod bombs;
mod checks;
mod client;
mod crashes;
mod definitions;
mod details;
mod flights;
mod fragments;
mod freshclam;
mod generations;
mod hostile;
mod kills;
mod lists;
mod load;
mod measured;
mod neighbours;
mod older;
mod publisher;
mod pulls;
mod reports;
mod rescans;
mod retro;
mod sandbox;
mod silent;
mod site;
mod slow;
mod stored;
mod swaps;
mod verdicts;
