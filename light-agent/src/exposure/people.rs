//! A window for people, of an agent that may be of another version.

use std::fmt;

use serde::Deserialize;

use super::windows::{Cause, Window};

/// Windows that have ended and are shown to people.
const SHOWN: usize = 3;

/// What `status` says of exposure, as lines.
pub struct ForPeople<'a>(pub &'a serde_json::Value);

impl fmt::Display for ForPeople<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (key, most) in [("now", 1), ("last", SHOWN)] {
            let all = match &self.0[key] {
                serde_json::Value::Array(all) => all.as_slice(),
                serde_json::Value::Null => &[],
                one => std::slice::from_ref(one),
            };
            for window in all.iter().take(most) {
                if let Ok(window) = Window::deserialize(window) {
                    line(f, &window)?;
                }
            }
        }
        match self.0["not_kept"].as_u64() {
            Some(lost @ 1..) => writeln!(
                f,
                "exposed     {lost} files more were not kept: `palisade-agent scan --full` finds them"
            ),
            _ => Ok(()),
        }
    }
}

fn line(f: &mut fmt::Formatter<'_>, window: &Window) -> fmt::Result {
    let causes: Vec<&str> = window.causes.iter().map(|cause| cause.explain()).collect();
    write!(f, "exposed     ")?;
    match window.until_ms {
        None => write!(f, "since {}", time(window.from_ms))?,
        Some(until) => write!(f, "{} to {}", time(window.from_ms), time(until))?,
    }
    write!(
        f,
        " ({}): {} opens, {} execs let through",
        causes.join(", "),
        window.opens,
        window.execs
    )?;
    if window.causes.contains(&Cause::NotRunning) {
        write!(f, ", none counted while the agent did not run")?;
    }
    let results = &window.results;
    write!(
        f,
        "; {} files to scan: {} wait",
        window.files,
        window.waiting()
    )?;
    for (count, what) in [
        (results.clean, "clean"),
        (results.malware, "malware"),
        (results.suspicious, "suspicious"),
        (results.not_scanned, "not scanned"),
        (results.gone, "gone"),
    ] {
        if count > 0 {
            write!(f, ", {count} {what}")?;
        }
    }
    if window.not_kept > 0 {
        write!(f, "; {} not kept", window.not_kept)?;
    }
    writeln!(f)
}

/// To the second, in universal time.
fn time(ms: u64) -> String {
    let ms = i64::try_from(ms).unwrap_or(i64::MAX);
    jiff::Timestamp::from_millisecond(ms).map_or_else(
        |_| "?".to_owned(),
        |time| time.strftime("%Y-%m-%d %H:%M:%S UTC").to_string(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn windows_are_lines() {
        let shown = json!({
            "now": {
                "id": 3, "from_ms": 1_800_000_000_000_u64, "causes": ["no_svm"],
                "opens": 12, "execs": 3, "files": 9, "waiting": 9,
            },
            "last": [{
                "id": 2, "from_ms": 1_799_990_000_000_u64, "until_ms": 1_799_990_060_000_u64,
                "causes": ["not_running", "no_svm"], "opens": 2, "files": 5, "not_kept": 1,
                "results": {"clean": 1, "malware": 1, "gone": 1, "of_another_version": 3},
            }],
            "not_kept": 1,
        });
        insta::assert_snapshot!(ForPeople(&shown));
        assert_eq!(ForPeople(&serde_json::Value::Null).to_string(), "");
    }
}
