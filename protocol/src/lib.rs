//! The wire contract of Palisade: what the Light Agent, the Protection Server
//! and the Integration Server say to each other, and nothing about how any of
//! them works.
//!
//! ```text
//!   agent ──palisade-scan/1────► scanserver        scan.rs    one stream a file
//!   agent ──palisade-control/1─► server            control.rs signed envelopes
//!   scanserver ─────────────────► server           control.rs signed envelopes
//! ```
//!
//! | module | owns |
//! | --- | --- |
//! | [`bounded`] | text, lists and paths that cannot outgrow their bound, on encode and on decode |
//! | [`codec`] | the one place that knows bincode: bounded encode and decode |
//! | [`frame`] | length-prefixed frames on a stream |
//! | [`content`] | content ids, fragments, chaining values and their verification |
//! | [`verdict`] | what a scan can end in, and why something was not scanned |
//! | [`scan`] | messages of a scan stream |
//! | [`notice`] | what a Protection Server says unasked |
//! | [`control`] | messages to and from the Integration Server |
//! | [`exposure`] | a guest's time without verdicts, as its agent reports it |
//! | [`problem`] | what a Protection Server knows to be wrong with itself |
//! | [`definitions`] | orders about a Protection Server's definitions, and what it has |
//! | [`policy`] | what a site sets for an agent, and what may be set |
//! | [`pull`] | how a Protection Server fetches signed definitions |
//! | [`envelope`] | signatures, epochs and sequences around control messages |
//! | [`ids`], [`spiffe`] | who is who |
//! | [`identity`], [`token`] | keys, certificates, certificate requests, join tokens |
//! | [`maintenance`] | leave to stop or remove an agent, signed by a server |
//! | [`trust`] | which certificate chains are believed, and for which role |
//! | [`tls`], [`endpoint`] | TLS 1.3 with mutual certificates, and the bounded QUIC endpoint over it |
//! | [`selection`] | which Protection Server an agent connects to, and why (pure) |
//! | [`choice`] | the same in an agent's words, as it tells the Integration Server |
//!
//! **Invariant:** no message from a peer can make a decoder panic or allocate
//! more than the frame's named bound. **Invariant:** nothing here reads a clock;
//! time is an argument.

#![forbid(unsafe_code)]

pub mod bounded;
pub mod choice;
pub mod codec;
pub mod content;
pub mod control;
pub mod definitions;
pub mod endpoint;
pub mod envelope;
pub mod exposure;
pub mod frame;
pub mod identity;
pub mod ids;
pub mod maintenance;
pub mod notice;
pub mod policy;
pub mod problem;
pub mod pull;
pub mod scan;
pub mod selection;
pub mod spiffe;
pub mod tls;
pub mod token;
pub mod trust;
pub mod verdict;

/// UDP port on which a Protection Server takes scan connections, unless configured.
pub const DEFAULT_SCAN_PORT: u16 = 7443;
/// UDP port on which the Integration Server takes control connections, unless configured.
pub const DEFAULT_CONTROL_PORT: u16 = 7444;
/// TCP port of the Integration Server's REST API and console, unless configured.
pub const DEFAULT_API_PORT: u16 = 7445;
