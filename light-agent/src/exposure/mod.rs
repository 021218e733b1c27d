//! The guest's time without verdicts: when, why, and what came of it.
//!
//! | module | owns |
//! | --- | --- |
//! | [`windows`] | windows of such time; pure |
//! | [`record`] | their file, and when an agent was last known to run |
//! | [`watch`] | who notices that a cause begins or ends, and has all of it saved |
//! | [`people`] | how a window is shown |
//!
//! Files that were let through in a window are [`crate::deferred`]'s. The Integration
//! Server is told of the windows in each report, and at once when one begins or ends.

pub mod people;
pub mod record;
pub mod watch;
pub mod windows;
