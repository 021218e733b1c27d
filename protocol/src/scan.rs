//! Messages of the scan protocol (ALPN `palisade-scan/1`): agent ↔ Protection Server.
//!
//! ```text
//!  agent                                     Protection Server
//!    │ first stream ── Hello ────────────────► │
//!    │ ◄─────────────────────────── Welcome ── │   stream ends
//!    │                                         │
//!    │ a stream each ── Scan, Outline* ──────► │   content is known:
//!    │ ◄──────────────────────────── Verdict ── │   stream ends, 0 content bytes
//!    │                                         │
//!    │ ◄─────────────────────────────── Need ── │   else, once or more
//!    │ ── Fragment* ─────────────────────────► │
//!    │ ◄──────────────────────────── Verdict ── │
//!    │                                         │
//!    │ a stream ── Lookup ───────────────────► │   many contents at once:
//!    │ ◄────────────────────────────── Known ── │   which are known to be clean
//! ```
//!
//! `Busy` or `Refused` may come in place of `Need` or `Verdict`, and end the
//! stream. `Outline` frames follow a `Scan` for contents of more than one
//! fragment ([`content::has_outline`](crate::content::has_outline)), in order,
//! as many as the size makes; the Protection Server verifies them against the
//! content id before it asks for anything.
//!
//! `Lookup` is for scans of many files: what is `Known` to be clean needs no stream
//! of its own. Everything else is asked for by a `Scan`, whatever it is, so that a
//! finding comes in one way only.
//!
//! A clean verdict may be older than the definitions in force, if the request
//! allows it (`max_age_s`). The answer then says so (`older`), and may ask for the
//! content to be scanned anew (`recheck`): by a second request that allows no age.
//!
//! Versions: 1, the first.

use serde::{Deserialize, Serialize};

use crate::bounded::{List, Text};
use crate::codec::{self, CodecError, Message};
use crate::content::{ChainingValue, ContentId, FRAGMENT_BYTES};
use crate::verdict::{Details, EngineRuns, Generations, Verdict};

/// ALPN names in order of preference; the first that both sides have is spoken.
pub const ALPN: &[&[u8]] = &[b"palisade-scan/1"];

/// Chaining values in one `Outline` frame: 1,024, which describe 256 MiB.
pub const MAX_OUTLINE_VALUES: usize = 1024;
/// Ranges in one `Need` frame; a content with more gaps is asked for in rounds.
pub const MAX_NEED_RANGES: usize = 256;
/// Contents in one `Lookup`.
pub const MAX_LOOKUP: usize = 128;

/// From the agent to the Protection Server.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToSvm {
    /// Opens the session, on the first stream.
    Hello(Hello),
    /// Asks for a verdict.
    Scan(ScanRequest),
    /// The next chaining values of the content.
    Outline(List<ChainingValue, MAX_OUTLINE_VALUES>),
    /// One fragment that was asked for.
    Fragment(Fragment),
    /// Asks which contents are known to be clean.
    Lookup(Lookup),
    /// Says which contents the guest holds that were called clean elsewhere, or before.
    Holds(Holds),
}

/// As [`ToSvm`], with a fragment's bytes where they were received.
#[derive(Debug, PartialEq, Eq, Deserialize)]
pub enum ToSvmRef<'a> {
    /// See [`ToSvm::Hello`].
    Hello(Hello),
    /// See [`ToSvm::Scan`].
    Scan(ScanRequest),
    /// See [`ToSvm::Outline`].
    Outline(List<ChainingValue, MAX_OUTLINE_VALUES>),
    /// See [`ToSvm::Fragment`].
    #[serde(borrow)]
    Fragment(FragmentRef<'a>),
    /// See [`ToSvm::Lookup`].
    Lookup(Lookup),
    /// See [`ToSvm::Holds`].
    Holds(Holds),
}

impl<'a> ToSvmRef<'a> {
    /// Decodes a frame's body.
    ///
    /// # Errors
    /// As [`codec::decode`].
    pub fn decode(body: &'a [u8]) -> Result<Self, CodecError> {
        codec::decode_borrowed(body, ToSvm::MAX_BYTES)
    }
}

/// The place of [`ToSvm::Fragment`] among the messages, as it is encoded.
pub const FRAGMENT_VARIANT: u32 = 3;

impl Message for ToSvm {
    const MAX_BYTES: usize = FRAGMENT_BYTES as usize + 64;
}

/// From the Protection Server to the agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToAgent {
    /// Answers `Hello`.
    Welcome(Welcome),
    /// Asks for fragments.
    Need(List<FragmentRange, MAX_NEED_RANGES>),
    /// The verdict; ends the stream.
    Verdict(ScanResult),
    /// No capacity now; ask again later. Ends the stream.
    Busy {
        /// Milliseconds to wait before asking again.
        retry_after_ms: u32,
    },
    /// The request cannot be served as it is. Ends the stream.
    Refused(Refusal),
    /// Answers `Lookup`; ends the stream. Answers `Holds`, too, and names no content then.
    Known(Known),
}

impl Message for ToAgent {
    const MAX_BYTES: usize = 8 * 1024;
}

/// What an agent says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The agent's version, for logs and support.
    pub version: Text<64>,
    /// It takes notices ([`crate::notice`]) on this session. A session of a command, which
    /// is soon over and acts on none, does not: what is told there would be lost.
    pub notices: bool,
}

/// What a Protection Server says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Welcome {
    /// The Protection Server's version.
    pub version: Text<64>,
    /// Contents above this many bytes are not scanned and need not be hashed.
    pub max_scan_bytes: u64,
    /// Requests that one agent may have open at a time.
    pub max_requests: u32,
    /// The definitions in force.
    pub generations: Generations,
    /// Load at this moment.
    pub load: LoadHint,
}

/// Asks for one content's verdict.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScanRequest {
    /// The content's hash: a hint where to look, never evidence.
    pub content: ContentId,
    /// The content's size in bytes: a claim until the last fragment verified.
    pub size: u64,
    /// Why it is asked.
    pub class: ScanClass,
    /// Milliseconds until the answer is of no more use; 0 for no such moment.
    pub deadline_ms: u32,
    /// What to look into.
    pub options: ScanOptions,
    /// Oldest clean verdict of earlier definitions that will do, in seconds; 0 for
    /// none: only the definitions in force may answer.
    pub max_age_s: u32,
}

/// Asks which of many contents are known to be clean.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lookup {
    /// What to look into.
    pub options: ScanOptions,
    /// As in [`ScanRequest::max_age_s`].
    pub max_age_s: u32,
    /// The contents; none to hear only which definitions are in force.
    pub contents: List<Named, MAX_LOOKUP>,
}

/// Contents that a guest holds, and that were called clean by a Protection Server that this
/// one does not know of: another one, or itself before it was started. When one of them is
/// malware, here and now or later, the agent is told ([`crate::notice`]).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Holds {
    /// What was looked into.
    pub options: ScanOptions,
    /// The contents.
    pub contents: List<Named, MAX_LOOKUP>,
}

/// A content by its hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named {
    /// The content's hash.
    pub content: ContentId,
    /// Its size in bytes.
    pub size: u64,
}

/// Which contents of a `Lookup` are known to be clean, each with a verdict that
/// needs no re-check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Known {
    /// One for each content that was asked about, in that order.
    pub clean: List<bool, MAX_LOOKUP>,
    /// The definitions in force.
    pub generations: Generations,
    /// Load at this moment, for the choice of Protection Server.
    pub load: LoadHint,
}

/// Why a scan is asked for; on-access goes before on-demand.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ScanClass {
    /// Someone waits in `open` or `exec`.
    OnAccess,
    /// A task, an administrator's command, a deferred check.
    OnDemand,
}

/// What to look into; part of the cache's key, since it changes verdicts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ScanOptions {
    /// Look into archives and other containers.
    pub archives: bool,
    /// Report heuristic findings, and rules that say of themselves that they merely
    /// suspect, as suspicious.
    pub heuristics: bool,
    /// Report potentially unwanted applications (signatures named `PUA.…`) as
    /// suspicious. They are found only where the Protection Server loads them.
    pub pua: bool,
}

impl Default for ScanOptions {
    fn default() -> Self {
        Self {
            archives: true,
            heuristics: true,
            pua: false,
        }
    }
}

/// `count` fragments from `first` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FragmentRange {
    /// Index of the first.
    pub first: u32,
    /// How many.
    pub count: u32,
}

/// One fragment's bytes.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fragment {
    /// Which, counted from the content's start.
    pub index: u32,
    /// Its bytes: [`FRAGMENT_BYTES`], or fewer at the content's end.
    #[serde(with = "serde_bytes")]
    pub bytes: Vec<u8>,
}

impl std::fmt::Debug for Fragment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        describe(f, self.index, &self.bytes)
    }
}

/// One fragment's bytes, where they were received.
#[derive(Clone, Copy, PartialEq, Eq, Deserialize)]
pub struct FragmentRef<'a> {
    /// See [`Fragment::index`].
    pub index: u32,
    /// See [`Fragment::bytes`].
    #[serde(borrow, with = "serde_bytes")]
    pub bytes: &'a [u8],
}

impl std::fmt::Debug for FragmentRef<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        describe(f, self.index, self.bytes)
    }
}

/// Guests' content does not belong into logs.
fn describe(f: &mut std::fmt::Formatter<'_>, index: u32, bytes: &[u8]) -> std::fmt::Result {
    write!(f, "Fragment {{ index: {index}, bytes: {} }}", bytes.len())
}

/// A verdict and where it came from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScanResult {
    /// What it ended in.
    pub verdict: Verdict,
    /// What else there is to say of it.
    pub details: Details,
    /// Where it came from.
    pub source: VerdictSource,
    /// What each engine did and how long it took; empty unless `source` is
    /// [`VerdictSource::Scanned`].
    pub engines: EngineRuns,
    /// SHA-256 of the content, as the Protection Server hashed it; for findings.
    pub sha256: Option<[u8; 32]>,
    /// The definitions in force.
    pub generations: Generations,
    /// It was given by earlier definitions than those in force.
    pub older: bool,
    /// The content should be asked for again, without urgency, with `max_age_s` 0.
    pub recheck: bool,
    /// Load at this moment, for the choice of Protection Server.
    pub load: LoadHint,
}

/// Where a verdict came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum VerdictSource {
    /// This request's fragments were scanned.
    Scanned,
    /// The SharedCache had it.
    SharedCache,
    /// Another request for the same content was in flight.
    Coalesced,
}

/// How busy a Protection Server is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct LoadHint {
    /// Busy workers and queue, in thousandths of capacity; above 1,000 work queues up.
    pub load_permille: u16,
    /// Milliseconds that a new on-access request waits for a worker.
    pub queue_wait_ms: u32,
}

/// Why a request cannot be served as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// The kind, for programs.
    pub code: RefusalCode,
    /// What is wrong and what helps, for people.
    pub message: Text<512>,
}

/// The kinds of refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum RefusalCode {
    /// The bytes or chaining values are not those of the content id: the file
    /// changed, or the peer lies. Hash again and ask again.
    ContentMismatch,
    /// The message does not fit the protocol's order.
    Protocol,
    /// More requests, streams or bytes than this agent may have.
    OverLimit,
    /// The Protection Server holds no definitions, or is stopping.
    Unavailable,
}
