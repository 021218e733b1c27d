//! Palisade's benchmarks: each measure runs both sides on one machine in one run.
//!
//! ```text
//!  scale ─► bench: signatures, corpus, clamd, site, physical limits
//!                     │
//!                     └─► measures, one after the other ─► rows ─► report
//! ```
//!
//! | module | owns |
//! | --- | --- |
//! | [`scale`] | every count of a run |
//! | [`random`], [`signatures`], [`corpus`] | what is scanned with what: the same each time |
//! | [`clamd`], [`site`] | the two sides |
//! | [`pass`] | one scan by one side; whether both found the same |
//! | [`client`], [`agents`] | connected agents in this process: what they ask, and how |
//! | [`processes`], [`wire`], [`machine`] | what the kernel counts |
//! | [`cores`] | where each side runs |
//! | [`limits`] | what the machine could do at best |
//! | [`mod@bench`], [`measures`] | what every measure works with; the measures |
//! | [`interrupt`] | a run that is interrupted leaves nothing behind |
//! | [`stats`], [`report`] | medians, spread, ratios, targets |
//!
//! Nothing is asserted about time here: a target that is missed is said, not an error.

#![forbid(unsafe_code)]

pub mod agents;
pub mod bench;
pub mod clamd;
pub mod client;
pub mod cores;
pub mod corpus;
pub mod interrupt;
pub mod limits;
pub mod machine;
pub mod measures;
pub mod pass;
pub mod processes;
pub mod random;
pub mod report;
pub mod scale;
pub mod signatures;
pub mod site;
pub mod stats;
pub mod wire;
