//! A task as commands show it: JSON whose shape is a promise, and text for people.

use std::fmt;

use palisade_protocol::bounded::PathBytes;
use serde::{Deserialize, Serialize};

use super::saved::SavedPath;
use super::task::{Counters, Note, State, Task};
use crate::scan::hands::Priority;
use crate::scan::progress::{Progress, spoken};
use crate::scan::what::Kind;

/// How the task that has the turn is getting on.
#[derive(Debug, Clone, PartialEq)]
pub struct Live {
    /// Which.
    pub id: u64,
    /// Its counts now.
    pub counters: Counters,
    /// Its files, rate and time left.
    pub progress: Progress,
    /// How long it had the turn.
    pub running_ms: u64,
    /// Why it gets no further just now.
    pub waits_for: Option<String>,
}

/// What is shown.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Shown {
    /// Its number.
    pub id: u64,
    /// What it scans.
    pub kind: Kind,
    /// The given paths.
    pub paths: Vec<SavedPath>,
    /// `state`, and `reason` of one that failed.
    #[serde(flatten)]
    pub state: State,
    /// Why it gets no further just now.
    pub waits_for: Option<String>,
    /// How much it gives way.
    pub priority: Priority,
    /// Which schedule began it.
    pub schedule: Option<String>,
    /// Milliseconds since 1970.
    pub created_ms: u64,
    /// Milliseconds since 1970.
    pub started_ms: Option<u64>,
    /// Milliseconds since 1970.
    pub ended_ms: Option<u64>,
    /// Milliseconds that it had the turn.
    pub running_ms: u64,
    /// `files`, `files_total`, `files_per_s`, `left_s`.
    #[serde(flatten)]
    pub progress: Progress,
    /// The counts by outcome.
    #[serde(flatten)]
    pub counters: Counters,
    /// Malware and suspicious files, the first of them; none in a list.
    pub findings: Vec<Note>,
    /// Files without a verdict, the first of them; none in a list.
    pub problems: Vec<Note>,
}

impl Shown {
    /// With its findings.
    pub fn whole(task: &Task, live: Option<&Live>) -> Self {
        let live = live.filter(|live| live.id == task.id && task.state == State::Running);
        let counters = live.map_or(task.counters, |live| live.counters);
        Self {
            id: task.id,
            kind: task.kind,
            paths: task.paths.clone(),
            state: task.state.clone(),
            waits_for: live.and_then(|live| live.waits_for.clone()),
            priority: task.priority,
            schedule: task.schedule.clone(),
            created_ms: task.created_ms,
            started_ms: task.started_ms,
            ended_ms: task.ended_ms,
            running_ms: live.map_or(task.running_ms, |live| live.running_ms),
            progress: live.map_or_else(
                || Progress {
                    files: counters.files(),
                    files_total: task.files_total,
                    ..Progress::default()
                },
                |live| live.progress,
            ),
            counters,
            findings: task.findings.clone(),
            problems: task.problems.clone(),
        }
    }

    /// Without its findings.
    pub fn brief(task: &Task, live: Option<&Live>) -> Self {
        Self {
            findings: Vec::new(),
            problems: Vec::new(),
            ..Self::whole(task, live)
        }
    }

    /// `3 quick running, 120 of 5000 files (12.5/s, 6 min 31 s left), 1 malware`.
    fn line(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:<4} {:<6} {:<9}  {}",
            self.id,
            self.kind.as_str(),
            self.state.as_str(),
            self.progress.files
        )?;
        if let Some(total) = self.progress.files_total {
            write!(f, " of {total}")?;
        }
        write!(f, " files")?;
        if self.state == State::Running {
            if let Some(rate) = self.progress.files_per_s {
                write!(f, ", {rate:.1} a second")?;
            }
            if let Some(left) = self.progress.left_s {
                write!(f, ", {} left", spoken(left))?;
            }
        }
        let counters = &self.counters;
        for (count, what) in [
            (counters.malware, "malware"),
            (counters.suspicious, "suspicious"),
            (counters.not_scanned, "not scanned"),
            (counters.errors, "errors"),
        ] {
            if count > 0 {
                write!(f, ", {count} {what}")?;
            }
        }
        Ok(())
    }
}

/// Several lines for people: the task, and what it found.
impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.line(f)?;
        if let State::Failed { reason } = &self.state {
            write!(f, "\n     failed: {}", printable(reason))?;
        }
        if let Some(reason) = &self.waits_for {
            write!(f, "\n     waits: {}", printable(reason))?;
        }
        for note in self.findings.iter().chain(&self.problems) {
            let verdict = note.verdict.to_uppercase().replace('_', " ");
            write!(f, "\n     {verdict:<11} {}: {}", note.path, note.what)?;
        }
        Ok(())
    }
}

fn printable(text: &str) -> String {
    PathBytes::from_path(std::path::Path::new(text)).to_string()
}
