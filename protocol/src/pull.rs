//! How a Protection Server fetches signed definitions from an Integration Server: on a
//! stream of its own within the control session.
//!
//! ```text
//!  Protection Server                              Integration Server
//!    opens a bidirectional stream
//!    ── Wanted{what, from byte n} ─────────────────► │
//!    ◄─────────── Part{length of all, bytes} | Absent│
//!    ── Wanted{what, from byte n + bytes} ─────────► │   and so on; the end of the stream ends it
//! ```
//!
//! One part is on its way at a time, so that what is pulled holds up nothing else of the
//! session: a part is a quarter of what a session may have on its way. Nothing here is
//! believed: metadata is verified as The Update Framework wants it, and files by their
//! hash. What was cut goes on from the byte that it came to.

use serde::{Deserialize, Serialize};

use crate::bounded::Text;
use crate::codec::Message;

/// Most bytes of one part.
pub const MAX_PART_BYTES: usize = 256 * 1024;

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum What {
    /// A file of metadata, by its name.
    Metadata(Text<64>),
    /// A file of definitions, by the SHA-256 of its bytes.
    File([u8; 32]),
}

/// Asks for a part.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Wanted {
    /// Of what.
    pub what: What,
    /// From this byte on.
    pub from: u64,
}

impl Message for Wanted {
    const MAX_BYTES: usize = 256;
}

/// Answers `Wanted`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Answer {
    /// There is no such thing.
    Absent,
    /// A part; an empty one is the end.
    Part {
        /// Bytes of all of it, as the server has it.
        length: u64,
        /// At most [`MAX_PART_BYTES`].
        #[serde(with = "serde_bytes")]
        bytes: Vec<u8>,
    },
    /// Too many are pulling; ask again later.
    Busy,
}

impl Message for Answer {
    const MAX_BYTES: usize = MAX_PART_BYTES + 64;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec;

    #[test]
    fn a_part_has_a_bound_on_both_ends() {
        let part = |bytes| Answer::Part {
            length: u64::MAX,
            bytes: vec![7; bytes],
        };
        let encoded = codec::encode(&part(MAX_PART_BYTES)).unwrap();
        let decoded: Answer = codec::decode(&encoded).unwrap();
        assert_eq!(decoded, part(MAX_PART_BYTES));
        assert!(codec::encode(&part(MAX_PART_BYTES + 65)).is_err());
        let name = What::Metadata(Text::cut(&"x".repeat(64)));
        let wanted = Wanted {
            what: name,
            from: u64::MAX,
        };
        assert!(codec::encode(&wanted).is_ok());
    }
}
