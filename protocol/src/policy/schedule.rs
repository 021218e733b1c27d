//! The check of `schedule`: scans that begin by themselves.

use serde_json::{Map, Value};

use super::settings::{paths, shown};

/// Schedules, at the most.
pub const MAX_SCHEDULES: usize = 64;
/// Minutes that starts are spread over, at the most: less than a day, so that the runs
/// of a daily schedule never overtake each other.
pub const MAX_SPREAD_MIN: u32 = 1439;
/// Minutes that a scan waits for an idle machine, at the most.
pub const MAX_IDLE_WAIT_MIN: u32 = 10_080;
/// The highest load average per core that may count as idle.
const MAX_IDLE_LOAD: f64 = 100.0;

const KINDS: &[&str] = &["quick", "full", "custom"];
const DAYS: &[&str] = &["mon", "tue", "wed", "thu", "fri", "sat", "sun"];
const PRIORITIES: &[&str] = &["idle", "low", "normal"];
const IF_NEVER_IDLE: &[&str] = &["run", "skip"];

/// Looks at all schedules of a value.
pub(super) fn check(value: &Value) -> Result<(), String> {
    let all = value.as_array().ok_or("it takes a list")?;
    if all.len() > MAX_SCHEDULES {
        return Err(format!("there are more than {MAX_SCHEDULES}"));
    }
    for (number, schedule) in all.iter().enumerate() {
        let one = schedule
            .as_object()
            .ok_or_else(|| format!("{schedule} is no schedule: an object with kind and at is one"));
        one.and_then(check_one)
            .map_err(|problem| format!("number {}: {problem}", number + 1))?;
    }
    Ok(())
}

fn check_one(schedule: &Map<String, Value>) -> Result<(), String> {
    for needed in ["kind", "at"] {
        if !schedule.contains_key(needed) {
            return Err(format!("{needed} is missing"));
        }
    }
    for (field, value) in schedule {
        check_field(field, value).map_err(|problem| format!("{field}: {problem}"))?;
    }
    let is_custom = schedule.get("kind").and_then(Value::as_str) == Some("custom");
    let paths = schedule.get("paths").and_then(Value::as_array);
    if is_custom == paths.is_none_or(Vec::is_empty) {
        return Err("paths: a custom scan takes paths, and no other does".to_owned());
    }
    Ok(())
}

fn check_field(field: &str, value: &Value) -> Result<(), String> {
    match field {
        "kind" => word(value, KINDS),
        "at" => at(value),
        "days" => days(value),
        "paths" => paths(value),
        "spread_min" => number(value, MAX_SPREAD_MIN),
        "only_idle" if value.is_boolean() => Ok(()),
        "only_idle" => Err("it takes true or false".to_owned()),
        "idle_load" => match value.as_f64() {
            Some(load) if (0.0..=MAX_IDLE_LOAD).contains(&load) => Ok(()),
            _ => Err(format!(
                "{} is not within 0 to {MAX_IDLE_LOAD}",
                shown(value)
            )),
        },
        "idle_wait_min" => number(value, MAX_IDLE_WAIT_MIN),
        "if_never_idle" => word(value, IF_NEVER_IDLE),
        "priority" => word(value, PRIORITIES),
        _ => Err("a schedule has no such field".to_owned()),
    }
}

fn word(value: &Value, words: &[&str]) -> Result<(), String> {
    match value.as_str() {
        Some(word) if words.contains(&word) => Ok(()),
        _ => Err(format!("{} is none of {}", shown(value), words.join(", "))),
    }
}

fn number(value: &Value, max: u32) -> Result<(), String> {
    match value.as_u64() {
        Some(number) if number <= u64::from(max) => Ok(()),
        _ => Err(format!(
            "{} is not a whole number within 0 to {max}",
            shown(value)
        )),
    }
}

/// A time of day: two digits each.
fn at(value: &Value) -> Result<(), String> {
    let two = |text: &str, below: u8| {
        let digits = text.len() == 2 && text.bytes().all(|byte| byte.is_ascii_digit());
        digits && text.parse::<u8>().is_ok_and(|number| number < below)
    };
    let parts = value.as_str().and_then(|text| text.split_once(':'));
    match parts {
        Some((hour, minute)) if two(hour, 24) && two(minute, 60) => Ok(()),
        _ => Err(format!(
            "{} is no time of day such as \"02:30\"",
            shown(value)
        )),
    }
}

fn days(value: &Value) -> Result<(), String> {
    match value {
        Value::String(every) if every == "every" => Ok(()),
        Value::Array(some) if !some.is_empty() && some.len() <= DAYS.len() => {
            some.iter().try_for_each(|day| word(day, DAYS))
        }
        _ => Err(format!(
            "{} is neither \"every\" nor a list of some of {}",
            shown(value),
            DAYS.join(", ")
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_field_has_its_bounds() {
        let with = |more: Value| {
            let mut one = json!({"kind": "quick", "at": "02:30"});
            let (into, more) = (one.as_object_mut().unwrap(), more);
            into.extend(more.as_object().unwrap().clone());
            check(&json!([one]))
        };
        for good in [
            json!({}),
            json!({"days": "every"}),
            json!({"days": ["mon", "sun"]}),
            json!({"spread_min": 1439, "idle_load": 0, "idle_wait_min": 10_080}),
            json!({"only_idle": true, "if_never_idle": "skip", "priority": "low"}),
            json!({"kind": "custom", "paths": ["/srv"]}),
        ] {
            assert_eq!(with(good.clone()), Ok(()), "{good}");
        }
        for (bad, says) in [
            (json!({"at": "24:00"}), "24:00"),
            (json!({"at": "2:30"}), "2:30"),
            (json!({"at": "02:60"}), "02:60"),
            (json!({"at": "+2:30"}), "+2:30"),
            (json!({"days": []}), "every"),
            (json!({"days": ["monday"]}), "monday"),
            (json!({"spread_min": 1440}), "1439"),
            (json!({"idle_load": 101}), "100"),
            (json!({"idle_wait_min": 10_081}), "10080"),
            (json!({"kind": "custom"}), "custom scan"),
            (json!({"paths": ["/srv"]}), "custom scan"),
            (json!({"kind": "custom", "paths": ["srv"]}), "absolute"),
            (json!({"when": "now"}), "no such field"),
            (json!({"only_idle": 1}), "true or false"),
        ] {
            let error = with(bad.clone()).unwrap_err();
            assert!(error.contains(says), "{bad}: {error}");
            assert!(error.starts_with("number 1: "), "{error}");
        }
        let many = vec![json!({"kind": "quick", "at": "02:30"}); MAX_SCHEDULES + 1];
        assert!(check(&json!(many)).unwrap_err().contains("64"));
    }
}
