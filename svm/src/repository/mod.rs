//! Following the site's repository of definitions.
//!
//! ```text
//!  told, or every poll_s ─► metadata, each role verified ─► the wanted generation
//!                                                              │ files that are not here yet
//!  definitions::keeper ◄── generation-N ◄── all are here ◄──── files, each by its hash
//! ```
//!
//! | module | owns |
//! | --- | --- |
//! | [`transport`] | requests on a stream of the control session |
//! | [`folder`] | what is on disk: the pinned root, files, the generation |
//! | [`verified`] | metadata that was verified, kept all at once |
//! | [`pull`] | one pull, from the metadata to the generation |
//! | [`follow`] | when pulls happen, and what was wrong with the last one |
//! | [`first`] | waiting for the first definitions of all |
//!
//! The first root comes over the session of an enrolled Protection Server, and is pinned:
//! from then on only a root that the one before has signed is followed, by The Update
//! Framework's rules. Definitions go the way that a directory's do
//! ([`crate::definitions`]): loaded beside, checked, swapped. **Invariant:** nothing comes
//! into a generation's folder that the publisher's key has not signed, whatever the server
//! says. **Invariant:** what is verified is on disk before anything depends on it, so that
//! a restart forgets no version.

pub mod first;
pub mod folder;
pub mod follow;
pub mod pull;
pub mod transport;
pub mod verified;

pub use folder::Folder;
pub use follow::Follower;
