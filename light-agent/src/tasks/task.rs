//! One task: what it scans, its state, and what came of it so far; pure.
//!
//! ```text
//!             ┌──────────── resume ────────────┐
//!             ▼                                │
//!  start ─► waiting ─► running ─► done         │
//!             │  ▲       │ │ └──► failed ──────┤
//!             │  └───────┘ │ restart           │
//!             └─► paused ◄─┘ ──────────────────┘     all but done ─► cancelled
//! ```

use std::collections::BTreeSet;

use palisade_protocol::bounded::PathBytes;
use palisade_protocol::verdict::Verdict;
use serde::{Deserialize, Serialize};

use super::saved::SavedPath;
use crate::scan::Done;
use crate::scan::hands::Priority;
use crate::scan::report::Report;
use crate::scan::walk::{Found, Position, Resume};
use crate::scan::what::Kind;

/// Malware and suspicious files that a task lists, at the most; the Integration Server
/// is told of all.
pub const MAX_FINDINGS: usize = 100;
/// Files without a verdict that it lists, at the most; all are counted.
pub const MAX_PROBLEMS: usize = 20;

/// Where a task is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "lowercase")]
pub enum State {
    /// For its turn.
    Waiting,
    /// It has it.
    Running,
    /// Until somebody resumes it.
    Paused,
    /// All was looked at.
    Done,
    /// Somebody ended it.
    Cancelled,
    /// It could not go on; it can be resumed.
    Failed {
        /// Why, for people.
        reason: String,
    },
}

impl State {
    /// Its name.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Done => "done",
            Self::Cancelled => "cancelled",
            Self::Failed { .. } => "failed",
        }
    }

    /// Whether nothing more comes of it by itself, or by a resume after a pause.
    pub fn has_ended(&self) -> bool {
        matches!(self, Self::Done | Self::Cancelled | Self::Failed { .. })
    }
}

/// What is ordered of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// Stop, and keep the place.
    Pause,
    /// Go on at the place.
    Resume,
    /// End.
    Cancel,
}

/// Counts of files and bytes; each file once, whatever was paused or restarted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// With a full verdict.
    pub scanned: u64,
    /// Clean files.
    pub clean: u64,
    /// Malware.
    pub malware: u64,
    /// Suspicious files.
    pub suspicious: u64,
    /// With a reason for no verdict.
    pub not_scanned: u64,
    /// What could not be opened or listed.
    pub errors: u64,
    /// Files that are as their package has them, which settings say not to scan.
    #[serde(default)]
    pub packaged: u64,
    /// Bytes of the files with a full verdict.
    pub bytes: u64,
    /// Verdicts that another scan of the same content had made.
    pub shared_hits: u64,
    /// Content bytes that left the guest.
    pub sent_bytes: u64,
}

impl Counters {
    /// Files that were looked at.
    pub fn files(&self) -> u64 {
        self.scanned + self.not_scanned + self.errors + self.packaged
    }

    /// Adds one file's.
    fn add(&mut self, one: &Report) {
        self.scanned += one.scanned;
        self.clean += one.clean;
        self.malware += one.malware;
        self.suspicious += one.suspicious;
        self.not_scanned += one.not_scanned;
        self.errors += one.errors;
        self.packaged += one.packaged;
        self.bytes += one.bytes;
        self.shared_hits += one.shared_hits;
    }
}

/// A file that is not clean.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Note {
    /// Its path, escaped where it is not printable.
    pub path: String,
    /// `malware`, `suspicious`, `not_scanned` or `error`.
    pub verdict: String,
    /// The signature, or the reason for no verdict.
    pub what: String,
}

/// A place in the walk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Which of the roots.
    root: usize,
    /// The path.
    path: SavedPath,
}

impl From<&Position> for Place {
    fn from(at: &Position) -> Self {
        Self {
            root: at.root,
            path: at.path.as_path().into(),
        }
    }
}

impl From<&Place> for Position {
    fn from(place: &Place) -> Self {
        Self {
            root: place.root,
            path: place.path.0.clone(),
        }
    }
}

/// One task, as it is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Task {
    /// Its number.
    pub id: u64,
    /// What it scans.
    pub kind: Kind,
    /// The given paths of a custom one.
    pub paths: Vec<SavedPath>,
    /// How much it gives way.
    pub priority: Priority,
    /// Which schedule began it.
    pub schedule: Option<String>,
    /// Where it is.
    pub state: State,
    /// When it was ordered, began and ended; milliseconds since 1970.
    pub created_ms: u64,
    /// None before its first turn.
    pub started_ms: Option<u64>,
    /// None before its end.
    pub ended_ms: Option<u64>,
    /// Milliseconds that it had the turn.
    pub running_ms: u64,
    /// Files that there are, once they are counted.
    pub files_total: Option<u64>,
    /// What came of it.
    pub counters: Counters,
    /// Malware and suspicious files, the first [`MAX_FINDINGS`].
    pub findings: Vec<Note>,
    /// Files without a verdict, the first [`MAX_PROBLEMS`].
    pub problems: Vec<Note>,
    /// All up to here is done.
    pub upto: Option<Place>,
    /// And these behind it.
    pub ahead: Vec<Place>,
}

impl Task {
    /// What of its walk is done.
    pub fn resume(&self) -> Resume {
        Resume {
            upto: self.upto.as_ref().map(Position::from),
            ahead: self.ahead.iter().map(Position::from).collect(),
        }
    }

    /// Takes down where the walk is.
    pub fn note_place(&mut self, upto: Option<&Position>, ahead: &BTreeSet<Position>) {
        self.upto = upto.map(Place::from);
        self.ahead = ahead.iter().map(Place::from).collect();
    }

    /// Counts one file.
    pub fn count(&mut self, found: &Found, done: &Done) {
        let mut one = Report::default();
        one.add(&found.at.path, done);
        self.counters.add(&one);
        let Some(finding) = one.findings.pop() else {
            return;
        };
        let is_finding = matches!(done, Done::Scanned(scanned)
            if matches!(scanned.verdict, Verdict::Malware { .. } | Verdict::Suspicious { .. }));
        let (list, max) = match is_finding {
            true => (&mut self.findings, MAX_FINDINGS),
            false => (&mut self.problems, MAX_PROBLEMS),
        };
        if list.len() < max {
            let what = finding.name.or(finding.detail).or(finding.reason);
            list.push(Note {
                path: finding.path,
                verdict: finding.verdict.to_owned(),
                what: printable(&what.unwrap_or_default()),
            });
        }
    }

    /// The state that an order brings it to.
    ///
    /// # Errors
    /// Why it cannot be, for people.
    pub fn after(&self, order: Order) -> Result<State, String> {
        let refuse = |what: &str| {
            let state = self.state.as_str();
            Err(format!("task {} is {state} and cannot be {what}", self.id))
        };
        match (order, &self.state) {
            (Order::Pause, State::Waiting | State::Running) => Ok(State::Paused),
            (Order::Pause, _) => refuse("paused"),
            (Order::Resume, State::Paused | State::Failed { .. }) => Ok(State::Waiting),
            (Order::Resume, _) => refuse("resumed"),
            (Order::Cancel, State::Done | State::Cancelled) => refuse("cancelled"),
            (Order::Cancel, _) => Ok(State::Cancelled),
        }
    }
}

/// What others wrote, as it may stand on a terminal.
fn printable(text: &str) -> String {
    PathBytes::from_path(std::path::Path::new(text)).to_string()
}
