//! Where guests are, and what follows from it, with real processes: an agent that is gone
//! although its domain runs, Protection Servers that are for some guests only, guests that
//! move from host to host, and guests whose address changes.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a panic fails the test"
)]

mod common;

#[path = "../../integration-server/tests/support/libvirtd.rs"]
mod libvirtd;
#[path = "placement/lost.rs"]
mod lost;
#[path = "placement/moves.rs"]
mod moves;
#[path = "placement/openers.rs"]
mod openers;
#[path = "placement/reserved.rs"]
mod reserved;
#[path = "placement/roaming.rs"]
mod roaming;
