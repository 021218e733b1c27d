//! What a Protection Server says of itself to this machine's administrator:
//! `palisade-scanserver status`.
//!
//! Owns the shape; the numbers are those of [`crate::metrics`], and go over the local
//! socket ([`crate::local`]).

use std::net::SocketAddr;

use palisade_protocol::bounded::Text;
use palisade_protocol::codec::Message;
use palisade_protocol::problem::Problems;
use palisade_protocol::verdict::Generations;
use serde::{Deserialize, Serialize};

use crate::metrics::{Counts, Gauges};

/// The daemon's state at one moment.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Its program's version.
    pub version: Text<64>,
    /// Its SPIFFE id.
    pub id: Text<256>,
    /// Where it listens for agents.
    pub address: SocketAddr,
    /// Where it answers `GET /metrics`, if anywhere.
    pub metrics: Option<SocketAddr>,
    /// Since when it runs, in milliseconds since 1970.
    pub started_ms: u64,
    /// Scans at a time.
    pub lanes: u32,
    /// Load in thousandths of capacity.
    pub load_permille: u16,
    /// The definitions in force.
    pub generations: Generations,
    /// What is wrong now.
    pub problems: Problems,
    /// What there is now.
    pub now: Gauges,
    /// What there was since the start.
    pub since_start: Counts,
}

impl Message for Status {
    const MAX_BYTES: usize = 32 * 1024;
}
