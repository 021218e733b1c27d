//! What a policy may set: one table, and the check of a value by it.
//!
//! The agent's own settings have the same names and bounds, which a test of the agent
//! holds against this table. What is not in here is each guest's own: folders, tokens,
//! names, Protection Servers that are named there, and how much memory lists may take.

use serde_json::Value;

pub use super::schedule::{MAX_IDLE_WAIT_MIN, MAX_SCHEDULES, MAX_SPREAD_MIN};
use super::{MAX_KEY_BYTES, MAX_VALUE_BYTES, schedule};

/// Paths of one setting, at the most.
pub const MAX_PATHS: usize = 256;
/// Bytes of a path in a policy, at the most: Linux's `PATH_MAX`.
pub const MAX_PATH_BYTES: usize = 4096;
/// The largest number: TOML's.
pub const MAX_NUMBER: u64 = i64::MAX as u64;
/// The smallest bound of `on_access.max_bytes`: the self-test's file must be below it.
pub const MIN_MAX_BYTES: u64 = 4096;
/// Characters of a wrong value that are named.
const MAX_SHOWN_CHARS: usize = 100;
/// Files in quarantine, at the most.
pub const MAX_QUARANTINED: u64 = 65_536;

/// Types of file systems that are protected on access, and so can be left out.
pub const FILE_SYSTEMS: &[&str] = &[
    "ext4", "xfs", "btrfs", "tmpfs", "erofs", "squashfs", "overlay",
];

/// What a value looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// `true` or `false`.
    Flag,
    /// A whole number within bounds.
    Number {
        /// The least.
        min: u64,
        /// The most.
        max: u64,
    },
    /// One of some words.
    Word(&'static [&'static str]),
    /// Some of some words.
    Words(&'static [&'static str]),
    /// Absolute paths.
    Paths,
    /// `"allow"`, `"deny"`, or an object with `open`, `exec` or both.
    Answers,
    /// A list of scans that begin by themselves.
    Schedules,
}

/// A setting that a policy may set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Known {
    /// Its name.
    pub key: &'static str,
    /// What its value looks like.
    pub kind: Kind,
}

/// A setting that cannot be taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("setting {key}: {problem}")]
pub struct BadSetting {
    /// Which.
    pub key: String,
    /// What is wrong with it, and what would be right.
    pub problem: String,
}

const ANSWERS: &[&str] = &["allow", "deny"];

const fn of(key: &'static str, kind: Kind) -> Known {
    Known { key, kind }
}

const fn number(key: &'static str, min: u64, max: u64) -> Known {
    of(key, Kind::Number { min, max })
}

/// All of them, by name.
#[rustfmt::skip]
pub const SETTINGS: &[Known] = &[
    of("exclude",                     Kind::Paths),
    of("failure.busy",                Kind::Answers),
    of("failure.changed",             Kind::Answers),
    of("failure.deadline",            Kind::Answers),
    of("failure.encrypted",           Kind::Answers),
    of("failure.engine_failed",       Kind::Answers),
    of("failure.limit",               Kind::Answers),
    of("failure.no_svm",              Kind::Answers),
    of("failure.out_of_fds",          Kind::Answers),
    of("failure.private",             Kind::Answers),
    of("failure.queue_full",          Kind::Answers),
    of("failure.read_error",          Kind::Answers),
    of("failure.stopping",            Kind::Answers),
    of("failure.suspicious",          Kind::Answers),
    of("failure.too_large",           Kind::Answers),
    of("maintenance.token_required",  Kind::Flag),
    of("on_access.after_writes",      Kind::Flag),
    number("on_access.deadline_ms",   100, 60_000),
    of("on_access.enabled",           Kind::Flag),
    of("on_access.exclude_processes", Kind::Paths),
    of("on_access.exclude_types",     Kind::Words(FILE_SYSTEMS)),
    of("on_access.ignore_marks",      Kind::Word(&["balanced", "strict", "off"])),
    number("on_access.max_bytes",     MIN_MAX_BYTES, MAX_NUMBER),
    number("on_access.max_verdict_age_s", 0, u32::MAX as u64),
    of("on_access.mode",              Kind::Word(&["block", "monitor", "learn"])),
    of("on_access.new_mounts",        Kind::Flag),
    of("on_access.other_namespaces",  Kind::Flag),
    of("on_access.paths",             Kind::Paths),
    number("on_access.queue",         1, 65_536),
    of("private",                     Kind::Paths),
    number("quarantine.max_bytes",    0, MAX_NUMBER),
    number("quarantine.max_files",    1, MAX_QUARANTINED),
    of("quarantine.restore_clean",    Kind::Flag),
    of("remediation.malware",         Kind::Word(&["block", "quarantine", "delete"])),
    of("scan.archives",               Kind::Flag),
    number("scan.concurrency",        1, 128),
    of("scan.heuristics",             Kind::Flag),
    number("scan.max_verdict_age_s",  0, u32::MAX as u64),
    of("scan.packaged",               Kind::Word(&["scan", "last", "skip"])),
    of("scan.pua",                    Kind::Flag),
    number("scan.svm_wait_s",         1, 86_400),
    of("schedule",                    Kind::Schedules),
    number("tasks.concurrency",       1, 128),
    of("tasks.priority",              Kind::Word(&["idle", "low", "normal"])),
];

/// The setting of this name.
pub fn find(key: &str) -> Option<&'static Known> {
    let at = SETTINGS.binary_search_by(|known| known.key.cmp(key)).ok()?;
    SETTINGS.get(at)
}

/// Looks at a value before it is kept or applied.
///
/// # Errors
/// [`BadSetting`] that says what would be right.
pub fn check(key: &str, value: &Value) -> Result<(), BadSetting> {
    let bad = |problem: String| BadSetting {
        key: key.chars().take(MAX_KEY_BYTES).collect(),
        problem,
    };
    let Some(known) = find(key) else {
        return Err(bad(unknown(key)));
    };
    known.kind.check(value).map_err(bad)?;
    let bytes = value.to_string().len();
    if bytes > MAX_VALUE_BYTES {
        return Err(bad(format!(
            "it has {bytes} bytes as JSON, and {MAX_VALUE_BYTES} are allowed"
        )));
    }
    Ok(())
}

fn unknown(key: &str) -> String {
    let section = key.split_once('.').map_or("", |(section, _)| section);
    let near: Vec<&str> = SETTINGS
        .iter()
        .map(|known| known.key)
        .filter(|known| match section {
            "" => !known.contains('.'),
            section => known
                .strip_prefix(section)
                .is_some_and(|rest| rest.starts_with('.')),
        })
        .collect();
    match near.as_slice() {
        [] => "a policy has no such setting".to_owned(),
        near => format!(
            "a policy has no such setting; there are {}",
            near.join(", ")
        ),
    }
}

impl Kind {
    fn check(self, value: &Value) -> Result<(), String> {
        let shown = || shown(value);
        match self {
            Self::Flag if value.is_boolean() => Ok(()),
            Self::Flag => Err("it takes true or false".to_owned()),
            Self::Number { min, max } => match value.as_u64() {
                Some(number) if (min..=max).contains(&number) => Ok(()),
                _ => Err(format!(
                    "{} is not a whole number within {min} to {max}",
                    shown()
                )),
            },
            Self::Word(words) => match value.as_str() {
                Some(word) if words.contains(&word) => Ok(()),
                _ => Err(format!("{} is none of {}", shown(), words.join(", "))),
            },
            Self::Words(words) => {
                let all = list(value, words.len())?;
                let is_one =
                    |word: &&Value| word.as_str().is_some_and(|word| words.contains(&word));
                match all.iter().find(|word| !is_one(word)) {
                    Some(other) => {
                        let other = self::shown(other);
                        Err(format!("{other} is none of {}", words.join(", ")))
                    }
                    None => Ok(()),
                }
            }
            Self::Paths => paths(value),
            Self::Answers => answers(value),
            Self::Schedules => schedule::check(value),
        }
    }

    /// What a value looks like, for people.
    pub fn explain(self) -> String {
        match self {
            Self::Flag => "true or false".to_owned(),
            Self::Number {
                min,
                max: MAX_NUMBER,
            } => format!("{min} or more"),
            Self::Number { min, max } => format!("{min} to {max}"),
            Self::Word(words) => words.join(", "),
            Self::Words(words) => format!("a list of some of {}", words.join(", ")),
            Self::Paths => "a list of absolute paths".to_owned(),
            Self::Answers => "allow, deny, or an object with open and exec".to_owned(),
            Self::Schedules => "a list of schedules".to_owned(),
        }
    }
}

/// A value as a problem names it.
pub(super) fn shown(value: &Value) -> String {
    cut(&value.to_string())
}

fn cut(text: &str) -> String {
    let mut chars = text.chars();
    let mut shown: String = chars.by_ref().take(MAX_SHOWN_CHARS).collect();
    if chars.next().is_some() {
        shown.push('…');
    }
    shown
}

fn list(value: &Value, max: usize) -> Result<&Vec<Value>, String> {
    let all = value.as_array().ok_or("it takes a list")?;
    if all.len() > max {
        return Err(format!("there are more than {max}"));
    }
    Ok(all)
}

/// Absolute paths, as lists of a policy have them.
pub(super) fn paths(value: &Value) -> Result<(), String> {
    for path in list(value, MAX_PATHS)? {
        let path = path
            .as_str()
            .ok_or_else(|| format!("{} is no path", shown(path)))?;
        if !path.starts_with('/') {
            return Err(format!("{:?} is not an absolute path", cut(path)));
        }
        if path.len() > MAX_PATH_BYTES || path.contains('\0') {
            return Err(format!(
                "a path has at most {MAX_PATH_BYTES} bytes, and none of them is 0"
            ));
        }
    }
    Ok(())
}

fn answers(value: &Value) -> Result<(), String> {
    let wrong = || {
        format!(
            "{} is neither \"allow\", \"deny\" nor an object with open and exec of these",
            shown(value)
        )
    };
    let is_answer = |value: &Value| value.as_str().is_some_and(|word| ANSWERS.contains(&word));
    match value {
        Value::Object(pair) => {
            let known = |(access, answer): (&String, &Value)| {
                ["open", "exec"].contains(&access.as_str()) && is_answer(answer)
            };
            (!pair.is_empty() && pair.iter().all(known))
                .then_some(())
                .ok_or_else(wrong)
        }
        value if is_answer(value) => Ok(()),
        _ => Err(wrong()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_table_is_in_order_and_each_is_found() {
        assert!(SETTINGS.is_sorted_by(|a, b| a.key < b.key));
        assert!(SETTINGS.len() <= super::super::MAX_SETTINGS);
        for known in SETTINGS {
            assert_eq!(find(known.key), Some(known));
            assert!(known.key.len() <= MAX_KEY_BYTES && !known.kind.explain().is_empty());
        }
        assert_eq!(find("name"), None);
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (key, value, says) in [
            ("on_access.mod", json!("block"), "on_access.mode"),
            ("state_dir", json!("/x"), "exclude"),
            ("nonsense.x", json!(1), "no such setting"),
            ("on_access.mode", json!("watch"), "monitor"),
            ("on_access.mode", json!(1), "monitor"),
            ("on_access.deadline_ms", json!(99), "100 to 60000"),
            ("on_access.deadline_ms", json!(60_001), "100 to 60000"),
            ("on_access.deadline_ms", json!(-1), "whole number"),
            ("on_access.deadline_ms", json!(200.5), "whole number"),
            ("on_access.max_bytes", json!(u64::MAX), "whole number"),
            ("on_access.enabled", json!("yes"), "true or false"),
            (
                "exclude",
                json!(["home"]),
                "\"home\" is not an absolute path",
            ),
            ("exclude", json!("/home"), "a list"),
            ("exclude", json!(["/a\0b"]), "none of them is 0"),
            ("exclude", json!(vec!["/x"; MAX_PATHS + 1]), "more than"),
            ("on_access.exclude_types", json!(["ext5"]), "ext5"),
            ("failure.no_svm", json!("block"), "allow"),
            ("failure.no_svm", json!({}), "allow"),
            ("failure.no_svm", json!({"read": "deny"}), "allow"),
            ("schedule", json!([{"kind": "quick"}]), "at"),
        ] {
            let error = check(key, &value).unwrap_err().to_string();
            assert!(error.contains(says), "{key} {value}: {error}");
            assert!(error.contains(key), "{error}");
        }
        let long = json!("x".repeat(100_000));
        for key in ["on_access.mode", "on_access.deadline_ms", "failure.busy"] {
            assert!(check(key, &long).unwrap_err().problem.len() < 300);
        }
        for key in ["exclude", "on_access.exclude_types"] {
            let long = json!([long]);
            assert!(check(key, &long).unwrap_err().problem.len() < 300);
        }
        let long = json!(vec![format!("/{}", "x".repeat(4000)); 5]);
        let error = check("exclude", &long).unwrap_err();
        assert!(error.problem.contains("16384"), "{error}");
    }

    #[test]
    fn what_is_right_is_taken() {
        for (key, value) in [
            ("on_access.mode", json!("block")),
            ("on_access.deadline_ms", json!(100)),
            ("exclude", json!([])),
            ("exclude", json!(["/srv/db"])),
            ("on_access.exclude_types", json!(["xfs", "overlay"])),
            ("failure.no_svm", json!({"exec": "deny"})),
            ("failure.busy", json!("deny")),
            ("schedule", json!([{"kind": "quick", "at": "02:30"}])),
        ] {
            assert_eq!(check(key, &value), Ok(()));
        }
    }
}
