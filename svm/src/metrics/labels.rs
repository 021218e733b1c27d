//! The values that labels may have: few, and fixed.

use palisade_protocol::verdict::VerdictKind;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};

use crate::failure::Failure;

/// Where a verdict came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(non_camel_case_types, reason = "the label's values as they are read")]
pub enum Source {
    /// A scan that this request led.
    scanned,
    /// A scan that another request led.
    coalesced,
    /// The SharedCache, by the definitions in force.
    cache,
    /// The SharedCache, by earlier definitions.
    cache_older,
    /// No content was needed: empty, or too large.
    size,
    /// The content killed its worker twice, and is not scanned again.
    poisoned,
}

impl Source {
    pub(super) const ALL: [Self; 6] = [
        Self::scanned,
        Self::coalesced,
        Self::cache,
        Self::cache_older,
        Self::size,
        Self::poisoned,
    ];
}

/// What became of a scan.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(non_camel_case_types, reason = "the label's values as they are read")]
pub enum Ended {
    /// See [`VerdictKind::Clean`].
    clean,
    /// See [`VerdictKind::Malware`].
    malware,
    /// See [`VerdictKind::Suspicious`].
    suspicious,
    /// See [`VerdictKind::NotScanned`].
    not_scanned,
    /// No engine could be asked.
    no_engine,
}

impl Ended {
    pub(super) const ALL: [Self; 5] = [
        Self::clean,
        Self::malware,
        Self::suspicious,
        Self::not_scanned,
        Self::no_engine,
    ];
}

/// Labels that have a value for each kind of verdict, and others.
macro_rules! of_verdicts {
    ($($label:ident),*) => {$(
        impl From<VerdictKind> for $label {
            fn from(kind: VerdictKind) -> Self {
                match kind {
                    VerdictKind::Clean => Self::clean,
                    VerdictKind::Malware => Self::malware,
                    VerdictKind::Suspicious => Self::suspicious,
                    VerdictKind::NotScanned => Self::not_scanned,
                }
            }
        }
    )*};
}

of_verdicts!(Ended, Rescanned);

/// Why a request ended without a verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(non_camel_case_types, reason = "the label's values as they are read")]
pub enum Reason {
    /// The queue was full, or longer than the request could wait.
    queue,
    /// The memory for contents was taken.
    memory,
    /// The agent had as much open as it may.
    limit,
    /// The bytes were not those of the content id.
    mismatch,
    /// A message did not fit the protocol.
    protocol,
    /// The sender was too slow.
    stalled,
    /// Another one sent the same content in its place.
    handed_over,
    /// The peer was gone.
    gone,
    /// No engine could scan.
    no_engine,
    /// It was stopping.
    stopping,
}

impl Reason {
    pub(super) const ALL: [Self; 10] = [
        Self::queue,
        Self::memory,
        Self::limit,
        Self::mismatch,
        Self::protocol,
        Self::stalled,
        Self::handed_over,
        Self::gone,
        Self::no_engine,
        Self::stopping,
    ];
}

impl From<&Failure> for Reason {
    fn from(failure: &Failure) -> Self {
        match failure {
            Failure::Queue { .. } => Self::queue,
            Failure::Memory { .. } => Self::memory,
            Failure::OverLimit { .. } => Self::limit,
            Failure::Mismatch(_) => Self::mismatch,
            Failure::Protocol(_) => Self::protocol,
            Failure::Stalled { .. } => Self::stalled,
            Failure::HandedOver => Self::handed_over,
            Failure::PeerGone => Self::gone,
            Failure::NoEngine(_) => Self::no_engine,
            Failure::Stopping => Self::stopping,
        }
    }
}

/// Why content bytes did not have to travel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(non_camel_case_types, reason = "the label's values as they are read")]
pub enum SavedBy {
    /// The verdict was known.
    cache,
    /// Another request sent the same content.
    flight,
    /// The fragments were there from an earlier content.
    fragments,
}

impl SavedBy {
    pub(super) const ALL: [Self; 3] = [Self::cache, Self::flight, Self::fragments];
}

/// What became of a long scan for which others waited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(non_camel_case_types, reason = "the label's values as they are read")]
pub enum GaveWay {
    /// It went on on a side lane.
    moved,
    /// It was stopped, and its content queued again.
    stopped,
}

impl GaveWay {
    pub(super) const ALL: [Self; 2] = [Self::moved, Self::stopped];
}

/// What became of a kept content that was to be scanned anew, unasked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(non_camel_case_types, reason = "the label's values as they are read")]
pub enum Rescanned {
    /// See [`VerdictKind::Clean`].
    clean,
    /// See [`VerdictKind::Malware`].
    malware,
    /// See [`VerdictKind::Suspicious`].
    suspicious,
    /// See [`VerdictKind::NotScanned`].
    not_scanned,
    /// No engine could be asked, or the kernel gave no memory.
    failed,
    /// Its memory was given back before its turn.
    gone,
    /// It would leave no room for a guest's content.
    no_room,
}

impl Rescanned {
    pub(super) const ALL: [Self; 7] = [
        Self::clean,
        Self::malware,
        Self::suspicious,
        Self::not_scanned,
        Self::failed,
        Self::gone,
        Self::no_room,
    ];

    /// Whether engines were asked.
    pub fn is_scan(self) -> bool {
        !matches!(self, Self::failed | Self::gone | Self::no_room)
    }
}

/// What happened to a fragment on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(non_camel_case_types, reason = "the label's values as they are read")]
pub enum DiskEvent {
    /// It was written there.
    written,
    /// It was read there, and did not have to be sent.
    read,
    /// Its memory was wanted before it was written.
    skipped,
    /// What was read is not what was written.
    damaged,
    /// The disk did not write or read it.
    failed,
}

impl DiskEvent {
    pub(super) const ALL: [Self; 5] = [
        Self::written,
        Self::read,
        Self::skipped,
        Self::damaged,
        Self::failed,
    ];
}

macro_rules! labels {
    ($($set:ident { $field:ident: $of:ty })*) => {$(
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelSet)]
        pub(super) struct $set { pub(super) $field: $of }
    )*};
}

labels! {
    SourceLabel { source: Source }
    EndedLabel { verdict: Ended }
    ReasonLabel { reason: Reason }
    SavedLabel { by: SavedBy }
    GaveWayLabel { how: GaveWay }
    ClassLabel { class: ClassValue }
    UseLabel { r#use: UseValue }
    RescannedLabel { outcome: Rescanned }
    DiskLabel { event: DiskEvent }
    ProblemLabel { problem: &'static str }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(non_camel_case_types, reason = "the label's values as they are read")]
pub(super) enum ClassValue {
    on_access,
    on_demand,
    long,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
#[allow(non_camel_case_types, reason = "the label's values as they are read")]
pub(super) enum UseValue {
    fragments,
    free,
}
