//! Contents that tests keep and find.

use palisade_protocol::content::{FRAGMENT_BYTES, Outline, OutlineBuilder};
use palisade_protocol::ids::TenantId;
use palisade_protocol::scan::ScanOptions;

use crate::cache::Key;

pub(super) const FRAGMENT: usize = FRAGMENT_BYTES as usize;

/// A content whose fragments are named by numbers; the last has `tail` bytes.
pub(super) fn content(names: &[u8], tail: usize) -> Vec<u8> {
    let parts = names.iter().flat_map(|name| vec![*name; FRAGMENT]);
    let mut bytes: Vec<u8> = parts.collect();
    bytes.truncate((names.len() - 1) * FRAGMENT + tail);
    bytes
}

pub(super) fn outline(bytes: &[u8]) -> Outline {
    let mut builder = OutlineBuilder::new();
    for part in bytes.chunks(FRAGMENT) {
        builder.push(part).unwrap();
    }
    builder.finish()
}

pub(super) fn tenant(name: &str) -> TenantId {
    name.parse().unwrap()
}

pub(super) fn key(owner: &str, bytes: &[u8]) -> Key {
    Key {
        tenant: tenant(owner),
        content: outline(bytes).id(),
        size: bytes.len() as u64,
        options: ScanOptions::default(),
    }
}
