//! What is copied to disk ahead of its end in memory: the large contents that are
//! forgotten next.
//!
//! ```text
//!  oldest ◄───── half of what may be kept ─────┼───── the newer half ─────► newest
//!            copied, oldest first              │  spared: the next version of it may
//!                                              │  come before it has to go
//! ```
//!
//! If requests take memory from the store before it is half full, nothing is spared
//! until it is: all of it goes next then.
//!
//! Contents of one fragment are not copied: they are kept to be scanned again, and have
//! nothing that a changed file could spare. What they take is not the large ones' to use.

use palisade_protocol::content::ChainingValue;
use palisade_protocol::ids::TenantId;

use super::super::kept::Glance;
use super::contents::{Inner, MAX_CONTENTS};

/// A fragment that is to be copied to disk.
pub struct Copying {
    /// Whose it is: names the content on disk, too.
    pub content: u64,
    pub tenant: TenantId,
    pub value: ChainingValue,
    pub offset: u64,
    pub length: u64,
    /// Holds memory that is not the copier's: for a moment only.
    pub bytes: Glance,
}

impl Inner {
    /// The next fragment that should be on disk and is not: of the contents that are
    /// forgotten next, the oldest first. Contents of more than `capacity` fragments
    /// have no room there.
    pub(in super::super) fn next_copy(&self, capacity: usize) -> Option<Copying> {
        let (spared_bytes, spared) = match self.pressed {
            true => (0, 0),
            false => (self.half_of_large(), MAX_CONTENTS / 2),
        };
        let (mut bytes, mut contents) = (self.large.bytes, self.large.order.len());
        for number in self.large.order.values() {
            if bytes <= spared_bytes && contents <= spared {
                return None;
            }
            let held = self.contents.get(number)?;
            if held.outline.fragments() <= capacity
                && let Some(value) = held.outline.chaining_values().get(held.copied)
            {
                let index = u32::try_from(held.copied).ok()?;
                let (offset, length) = held.outline.span(index).ok()?;
                return Some(Copying {
                    content: *number,
                    tenant: held.tenant.clone(),
                    value: *value,
                    offset,
                    length,
                    bytes: held.kept.glance(),
                });
            }
            bytes = bytes.saturating_sub(held.kept.held_bytes());
            contents = contents.saturating_sub(1);
        }
        None
    }

    /// That fragment is on disk.
    pub(in super::super) fn copied(&mut self, content: u64) {
        if let Some(held) = self.contents.get_mut(&content) {
            held.copied += 1;
        }
    }
}
