//! What a Protection Server says unasked, within a scan session: contents that it
//! called clean are malware by newer definitions.
//!
//! ```text
//!  agent                                   Protection Server
//!    │ ◄── Notice ─────────────────────────── │   a unidirectional stream each, ended
//!    │                                        │   after its one frame
//!    │ looks the ids up in its own index, hashes the files again, and asks
//!    │ ── Scan, Outline* ───────────────────► │   as always
//! ```
//!
//! A notice is a hint to ask, and never a verdict: nothing may be done to a file for
//! it alone. An agent that does not take notices loses nothing but time. Only a session
//! whose Hello says that it takes them is told.

use serde::{Deserialize, Serialize};

use crate::bounded::List;
use crate::codec::Message;
use crate::content::ContentId;

/// Most contents in one notice.
pub const MAX_CONTENTS: usize = 128;

/// Contents to ask about again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Notice {
    /// Their ids.
    pub contents: List<ContentId, MAX_CONTENTS>,
}

impl Message for Notice {
    const MAX_BYTES: usize = 8 * 1024;
}
