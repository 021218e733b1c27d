//! The server's parts, tested from outside: one program, so that it links once.
//!
//! Nothing here asserts how long something takes: what has to happen is waited
//! for, up to a bound that only a hang reaches.

mod api;
mod authority;
mod command;
mod enrolment;
mod inventory;
mod libvirtd;
mod site;
mod starting;
mod store;
mod talk;
