//! The quarantine: what is done about malware besides denying its opens.
//!
//! ```text
//!  guard, again, scan ─► remedies ─► facts ─► policy ─► take ─► vault
//!                                                                 │
//!  palisade-agent quarantine ─► command ─► restore, rescan ◄──────┤
//!  other definitions ─────────► rescan ◄──────────────────────────┘
//! ```
//!
//! | module | owns |
//! | --- | --- |
//! | [`policy`] | whether a file may be moved by itself, and every reason why not; pure |
//! | [`facts`], [`packages`] | what is known of a file; whether a package installed it |
//! | [`remedies`] | from a finding to what is reported of it |
//! | [`take`], [`folders`] | the move, following no link; what was moved is the file that was found |
//! | [`sweep`] | moves that were cut short |
//! | [`vault`], [`record`] | the store, its lock and its bounds; what is known of each file |
//! | [`seal`], [`key`] | what makes it unreadable |
//! | [`escrow`] | the key at the Integration Server, and back from there |
//! | [`restore`] | back to a path, or out as an export |
//! | [`rescan`] | what newer definitions say |
//! | [`command`], [`show`] | `palisade-agent quarantine` and what it prints |
//!
//! **Invariant:** a file is never lost: it is at its place, in a holding folder with a
//! note of where it belongs, or in the quarantine with its record. **Invariant:** what
//! fails leaves a file blocked where it is. **Invariant:** only the file that the verdict
//! is about is moved.

pub mod command;
pub mod escrow;
pub mod facts;
pub mod folders;
pub mod key;
pub mod packages;
pub mod policy;
pub mod record;
pub mod remedies;
pub mod rescan;
pub mod restore;
pub mod seal;
pub mod show;
pub mod sweep;
pub mod take;
pub mod vault;
