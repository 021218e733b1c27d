//! The status for people.

use std::fmt;

use serde::Deserialize;

use crate::{exposure, learn, policy};

/// What the command shows; the daemon may be of another version.
#[derive(Debug, Deserialize)]
struct Shown {
    agent: serde_json::Value,
    #[serde(default)]
    supervisor: serde_json::Value,
    protection: serde_json::Value,
    svm: serde_json::Value,
    #[serde(default)]
    selection: serde_json::Value,
    server: serde_json::Value,
    events: serde_json::Value,
    #[serde(default)]
    spool: serde_json::Value,
    #[serde(default)]
    log_lines_lost: serde_json::Value,
    #[serde(default)]
    exposure: serde_json::Value,
    #[serde(default)]
    learned: serde_json::Value,
    #[serde(default)]
    policy: serde_json::Value,
}

/// The status for people.
pub struct ForPeople<'a>(pub &'a serde_json::Value);

impl fmt::Display for ForPeople<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Ok(shown) = Shown::deserialize(self.0) else {
            return write!(f, "{}", self.0);
        };
        let text = |value: &serde_json::Value, key: &str| match &value[key] {
            serde_json::Value::String(text) => text.clone(),
            serde_json::Value::Null => "-".to_owned(),
            other => other.to_string(),
        };
        writeln!(
            f,
            "agent       {} ({})",
            text(&shown.agent, "name"),
            text(&shown.agent, "id")
        )?;
        if let Some(restarts @ 1..) = shown.supervisor["restarts"].as_u64() {
            writeln!(
                f,
                "restarted   {restarts} times by the supervisor, the last time because {}",
                text(&shown.supervisor, "last")
            )?;
        }
        write!(f, "protection  {}", text(&shown.protection, "state"))?;
        match &shown.protection["reason"] {
            serde_json::Value::String(reason) => writeln!(f, ": {reason}")?,
            _ => writeln!(f)?,
        }
        for path in shown.protection["paths"].as_array().into_iter().flatten() {
            writeln!(f, "  path      {}", path.as_str().unwrap_or_default())?;
        }
        for gap in shown.protection["gaps"].as_array().into_iter().flatten() {
            writeln!(
                f,
                "  gap       {}: {}",
                text(gap, "path"),
                text(gap, "reason")
            )?;
        }
        let unseen = shown.protection["unseen"].as_array();
        for unseen in unseen.into_iter().flatten() {
            writeln!(
                f,
                "  unseen    {}: {}",
                text(unseen, "what"),
                text(unseen, "remedy")
            )?;
        }
        match &shown.svm["id"] {
            serde_json::Value::String(id) => writeln!(
                f,
                "svm         {} ({}, {id})",
                text(&shown.svm, "name"),
                text(&shown.svm, "address")
            )?,
            _ => writeln!(f, "svm         none: {}", text(&shown.svm, "reason"))?,
        }
        for svm in shown.selection["svms"].as_array().into_iter().flatten() {
            if svm["role"] == "spare" {
                writeln!(f, "  stands by {}", text(svm, "name"))?;
            }
        }
        match shown.server["connected"].as_bool() {
            Some(true) => writeln!(f, "server      connected")?,
            _ => writeln!(f, "server      none: {}", text(&shown.server, "reason"))?,
        }
        write!(f, "{}", policy::people::Brief(&shown.policy))?;
        write!(f, "{}", exposure::people::ForPeople(&shown.exposure))?;
        write!(f, "{}", learn::people::ForPeople(&shown.learned))?;
        write!(f, "events     ")?;
        for key in [
            "seen",
            "scanned",
            "cached",
            "allowed_by_policy",
            "failed_open",
            "failed_closed",
            "pending",
            "denied",
            "kernel_refused",
        ] {
            write!(f, " {key} {}", shown.events[key])?;
        }
        let lost = (
            shown.spool["dropped"].as_u64().unwrap_or(0),
            shown.log_lines_lost.as_u64().unwrap_or(0),
        );
        if lost != (0, 0) {
            let (detections, lines) = lost;
            write!(
                f,
                "\nlost        {detections} detections were lost and {lines} lines of the log: \
                 see whether their disks are full"
            )?;
        }
        Ok(())
    }
}
