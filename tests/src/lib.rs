//! A whole Palisade site in one folder, on loopback: what `scripts/up` starts and
//! what the end-to-end tests use.
//!
//! | module | owns |
//! | --- | --- |
//! | [`site`] | the folder: settings, ports, start and stop of the parts in order |
//! | [`process`] | one long-running program: started detached, known by pid and start time |
//! | [`command`] | one program run to its end with a deadline, its output as JSON |
//! | [`definitions`] | the built-in test signatures and the markers that are random per run |
//! | [`demonstration`] | real files scanned, malware blocked, clean files readable |
//! | [`skip`] | tests that cannot run here, counted with their reason |
//! | [`fuzz`] | what is done with hostile bytes, decoder by decoder; seeds and mutations |
//! | [`report`] | each step as a line for people, or as JSON for programs |

#![forbid(unsafe_code)]

pub mod command;
pub mod definitions;
pub mod demonstration;
pub mod fuzz;
pub mod process;
pub mod report;
pub mod site;
pub mod skip;
