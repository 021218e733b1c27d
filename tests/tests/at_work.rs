//! What an agent does at length, with a real Protection Server and its engine: tasks that
//! outlive their agent, packages' files, contents that take too long, agents that fail
//! again and again. The agent's own tests have a Protection Server that can be told to be
//! slow and counts what it is asked; here it is slow because it is stopped most of the
//! time, and what it did is what it says of itself.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a panic fails the test"
)]

mod common;

#[path = "at_work/failing.rs"]
mod failing;
#[path = "guest_faults/guest.rs"]
#[allow(dead_code, reason = "other suites need the rest of it")]
mod guest;
#[path = "at_work/in_time.rs"]
mod in_time;
#[path = "at_work/packages.rs"]
mod packages;
#[path = "at_work/slow.rs"]
mod slow;
#[path = "at_work/tasks.rs"]
mod tasks;
