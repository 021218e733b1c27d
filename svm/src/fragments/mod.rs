//! Contents that were scanned lately: what a changed file need not send again, and what
//! new definitions can be tried on unasked.
//!
//! ```text
//!                 ┌─ more than one fragment: its memory file ─┐──find──► pieces of a new
//!  scan done ─keep┤   │ oldest first, while they are there     │          content: request/
//!                 │ writer (a thread)                         │          gather
//!                 │   ▼                                       │            ▲
//!                 │ disk: slots of a file without a name, ────┼────────────┘ opened,
//!                 │   sealed                                  │              verified
//!                 └─ one fragment: packed, without descriptor ┘──lend──► a scan by new
//!                                                                        definitions
//! ```
//!
//! | module | owns |
//! | --- | --- |
//! | [`memory`] | contents as they were scanned, within the budget for contents; who asks talks to it alone |
//! | [`kept`] | one content's memory, its share of the budget, and who uses it |
//! | [`pack`] | small contents, all in one memory file |
//! | [`disk`] | the file of fragments, its faults, reading in the background |
//! | [`slots`] | what is in which slot, and what goes first (pure) |
//! | [`seal`] | the key of this start, and why no nonce comes twice |
//! | [`writer`] | from memory to disk, in nobody's way |
//!
//! What is copied to disk stays in memory, and in its share of the budget, until the
//! memory is wanted. Then it is given back at once, and nobody waits for the disk: what
//! was copied is found there, and what was not yet is forgotten and counted. No memory
//! of a content is held for the disk's sake but for the copy of one fragment.
//!
//! On disk are fragments, and no contents: new definitions look at what is in memory. A
//! content of one fragment saves nobody a byte, and is not copied there.
//!
//! **Invariant:** a tenant is never asked for less because of what another holds.
//! **Invariant:** every byte in memory was verified against its chaining value, or the
//! content's id, before it was sealed. **Invariant:** memory is counted until its last
//! user is done. **Invariant:** whatever the disk does, no byte from it gets into a
//! content that does not belong there: each fragment is opened, and then verified as one
//! from an agent is.

pub mod disk;
mod kept;
mod memory;
mod pack;
#[cfg(test)]
mod samples;
mod seal;
mod slots;
#[cfg(test)]
mod tests;
mod writer;

use std::sync::Arc;

use disk::OnDisk;
pub use kept::{Kept, Loan};
pub use memory::{Bounds, FragmentStore};

/// Where a fragment of a new content can be had.
#[derive(Debug, Clone)]
pub struct Piece {
    /// Which fragment of the new content.
    pub index: u32,
    /// Holds its bytes.
    pub source: Source,
    /// Where, in bytes: the same offset in the old content as in the new one.
    pub offset: u64,
    /// How many bytes.
    pub length: u64,
}

/// What holds a fragment's bytes.
#[derive(Debug, Clone)]
pub enum Source {
    /// An older content, at the piece's offset: verified when it was sent.
    Memory(Arc<Kept>),
    /// The disk, which is believed nothing: to be read by [`disk::read`].
    Disk(OnDisk),
}
