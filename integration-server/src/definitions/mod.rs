//! The site's repository of definitions: signed here or by a publisher elsewhere, pulled
//! by Protection Servers.
//!
//! ```text
//!  API (import, activate, roll back) ─┐
//!  watched directory (freshclam's) ───┴─► Repository ─► targets signed ─► snapshot, timestamp
//!                                             │              │ checked as a reader would
//!                                             ▼              ▼
//!                                   files/SHA-256      metadata/N.role.json, timestamp.json last
//!                                             └──────┬───────┘
//!                    fleet::pulls ◄── parts ◄────────┘      version ─► told to Protection Servers
//! ```
//!
//! | module | owns |
//! | --- | --- |
//! | [`repository`] | what is published, who signs it, one change at a time |
//! | [`publish`] | the documents of a new version (pure) |
//! | [`folder`] | files on disk: metadata, definitions, what is still coming in |
//! | [`watch`] | a directory whose changes are imported; metadata that is signed anew in time |
//! | [`error`] | what can go wrong, and the remedy |
//!
//! Formats and signatures are [`palisade_repository`]'s. **Invariant:** nothing is
//! published that a reader would refuse. **Invariant:** without the publisher's key no
//! other generation becomes the wanted one.

pub mod error;
pub mod folder;
pub mod publish;
pub mod repository;
pub mod watch;

pub use error::DefinitionsError;
pub use repository::Repository;
