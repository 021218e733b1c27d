//! The engine program as the daemon sees it: started through the client, with real
//! databases and real archives.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a panic here is a failed test"
)]

mod canary;
mod definitions;
mod members;
mod memory;
mod parity;
mod scans;
mod site;
mod unseen;
