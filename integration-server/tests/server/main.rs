//! The server's parts, tested from outside: one program, so that it links once.
//!
//! Nothing here asserts how long something takes, but `alerts`, whose deadline is a
//! promise: what has to happen is waited for, up to a bound that only a hang reaches.

// clippy.toml allows these within test functions; the helpers here are tests too.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod account_commands;
mod accounts;
mod accounts_store;
mod alerts;
mod api;
mod audit_store;
mod authority;
mod backup;
mod command;
mod enrolment;
mod envelopes;
mod fleet;
mod inventory;
mod libvirtd;
mod maintenance;
mod orders;
mod policies;
mod policies_store;
mod policy_commands;
mod postgres;
mod quarantine_keys;
mod schema;
mod sealing;
mod shared_store;
mod site;
mod starting;
mod store;
mod talk;
mod tenants;
mod upkeep;
