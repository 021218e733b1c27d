//! `[tasks]` of the settings: scans in the background.

use serde::Deserialize;

use crate::scan::hands::Priority;

/// How tasks are done.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tasks {
    /// Files that a task asks for at a time.
    pub concurrency: usize,
    /// How much a task's threads give way to others.
    pub priority: Priority,
}

impl Default for Tasks {
    fn default() -> Self {
        Self {
            concurrency: 4,
            priority: Priority::default(),
        }
    }
}
