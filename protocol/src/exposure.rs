//! A guest's time without verdicts, as its agent reports it.
//!
//! Owns the shape on the wire and its bounds. When a window begins and ends is the
//! agent's to decide; the Integration Server shows what it was told.

use serde::{Deserialize, Serialize};

use crate::bounded::List;

/// Most windows in one report: the present one and the last few.
pub const MAX_WINDOWS: usize = 17;
/// Most causes of one window: each kind once.
pub const MAX_CAUSES: usize = 6;

/// The windows of one report, the newest first.
pub type ExposureWindows = List<ExposureWindow, MAX_WINDOWS>;

/// Why there were no verdicts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExposureCause {
    /// No agent ran: nobody counted what was opened.
    NotRunning,
    /// No Protection Server was connected.
    NoSvm,
    /// The supervisor let the agent hold no opens, since it had failed again and again.
    Fallback,
    /// On-access protection was off although the settings ask for it.
    Off,
    /// A Protection Server was connected, and gave no verdict in time.
    Overload,
    /// An administrator, or the kernel's command line, had opens watched and not held.
    Bypass,
}

impl ExposureCause {
    /// As programs read it, here and in the agent's own file.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NotRunning => "not_running",
            Self::NoSvm => "no_svm",
            Self::Fallback => "fallback",
            Self::Off => "off",
            Self::Overload => "overload",
            Self::Bypass => "bypass",
        }
    }

    /// For people.
    pub fn explain(self) -> &'static str {
        match self {
            Self::NotRunning => "the agent did not run",
            Self::NoSvm => "no Protection Server",
            Self::Fallback => "opens were not held after failures",
            Self::Off => "protection was off",
            Self::Overload => "no verdict in time",
            Self::Bypass => "opens were not held, as an administrator switched it",
        }
    }
}

/// One window. Times are milliseconds since 1970 by the agent's clock; counts are of
/// opens or of files.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExposureWindow {
    /// Its number, the agent's own.
    pub id: u64,
    /// When it began.
    pub from_ms: u64,
    /// When it ended; it lasts if unset.
    pub until_ms: Option<u64>,
    /// All causes that it had.
    pub causes: List<ExposureCause, MAX_CAUSES>,
    /// Opens that were let through without a verdict.
    pub opens: u64,
    /// Executions likewise.
    pub execs: u64,
    /// Files among them that are scanned later.
    pub files: u64,
    /// Files that are not: the agent's queue had no room.
    pub not_kept: u64,
    /// Of the files scanned later: clean.
    pub clean: u64,
    /// Malware.
    pub malware: u64,
    /// Suspicious.
    pub suspicious: u64,
    /// Without a verdict for good.
    pub not_scanned: u64,
    /// Not there any more.
    pub gone: u64,
}

impl ExposureWindow {
    /// Files that still wait.
    pub fn waiting(&self) -> u64 {
        let done = [
            self.clean,
            self.malware,
            self.suspicious,
            self.not_scanned,
            self.gone,
        ];
        // A peer may claim anything.
        let done = done.into_iter().fold(0, u64::saturating_add);
        self.files.saturating_sub(done)
    }
}
