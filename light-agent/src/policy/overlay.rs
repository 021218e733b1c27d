//! Settings with a policy over them: pure.

use palisade_protocol::bounded::{List, Text};
use palisade_protocol::policy::settings::{check, find};
use palisade_protocol::policy::{MAX_SETTINGS, NotApplied, Policy, Setting};
use serde_json::Value;

use crate::settings::{Base, Settings};

/// What a policy comes to in this guest.
#[derive(Debug, Clone)]
pub struct Laid {
    /// The settings in force.
    pub settings: Settings,
    /// What of the policy is not in them, and why.
    pub not_applied: List<NotApplied, MAX_SETTINGS>,
}

/// Lays a policy over the guest's own settings, one setting after the other: one that
/// cannot be taken is left out alone.
pub fn lay(base: &Base, policy: &Policy) -> Laid {
    let mut read = base.read.clone();
    let mut settings = base.settings.clone();
    let mut not_applied = Vec::new();
    for setting in policy.settings.iter() {
        let taken = value(setting).and_then(|value| {
            let with = read.with(&setting.key, value);
            let taken: Settings = with.parse().map_err(|error| error.to_string())?;
            taken.check().map_err(|error| error.to_string())?;
            Ok((with, taken))
        });
        match taken {
            Ok(taken) => (read, settings) = taken,
            Err(why) => not_applied.push(NotApplied {
                key: setting.key.clone(),
                why: Text::cut(&why),
            }),
        }
    }
    Laid {
        settings,
        not_applied: List::cut(not_applied),
    }
}

/// A setting's value, if this agent knows what to do with it.
fn value(setting: &Setting) -> Result<toml::Value, String> {
    if find(&setting.key).is_none() {
        return Err("this agent does not know the setting; it may be an older one".to_owned());
    }
    let value: Value = serde_json::from_str(&setting.value)
        .map_err(|error| format!("its value is no JSON: {error}"))?;
    check(&setting.key, &value).map_err(|error| error.problem)?;
    as_toml(value).ok_or_else(|| "its value cannot be in settings".to_owned())
}

fn as_toml(value: Value) -> Option<toml::Value> {
    Some(match value {
        Value::Null => return None,
        Value::Bool(flag) => flag.into(),
        Value::Number(number) => match number.as_i64() {
            Some(whole) => whole.into(),
            None => number.as_f64()?.into(),
        },
        Value::String(text) => text.into(),
        Value::Array(all) => {
            let all: Option<Vec<_>> = all.into_iter().map(as_toml).collect();
            all?.into()
        }
        Value::Object(fields) => {
            let fields = fields.into_iter();
            let fields: Option<toml::Table> = fields
                .map(|(key, value)| Some((key, as_toml(value)?)))
                .collect();
            fields?.into()
        }
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::failure::{Access, Answer, Failure};
    use crate::fanotify::places;
    use crate::mode::Mode;
    use palisade_protocol::policy::settings::{FILE_SYSTEMS, Kind, MAX_QUARANTINED, SETTINGS};
    use proptest::prelude::*;
    use serde_json::json;

    pub fn base(text: &str) -> Base {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("agent.toml");
        std::fs::write(&file, text).unwrap();
        Base::load(&file).unwrap()
    }

    pub fn policy(settings: &[(&str, Value)]) -> Policy {
        let settings = settings.iter().map(|(key, value)| Setting {
            key: Text::cut(key),
            value: Text::cut(&value.to_string()),
            origin: Text::cut("site"),
        });
        Policy {
            layers: List::default(),
            settings: List::cut(settings),
        }
    }

    #[test]
    fn what_a_policy_says_goes_first_and_all_else_is_the_guests() {
        let base = base(
            "exclude = ['/own']\n[on_access]\npaths = ['/srv']\nmode = 'block'\n\
             [failure]\nno_svm = { exec = 'deny' }\nbusy = 'deny'",
        );
        let said = policy(&[
            ("exclude", json!(["/theirs"])),
            ("failure.no_svm", json!({"open": "deny"})),
            ("on_access.mode", json!("monitor")),
            (
                "schedule",
                json!([{"kind": "quick", "at": "02:30", "idle_load": 1}]),
            ),
        ]);
        let laid = lay(&base, &said);
        assert!(laid.not_applied.is_empty(), "{:?}", laid.not_applied);
        let settings = laid.settings;
        assert_eq!(
            settings.exclude,
            ["/theirs".into()] as [std::path::PathBuf; 1]
        );
        assert_eq!(settings.on_access.mode, Mode::Monitor);
        assert_eq!(settings.on_access.paths, base.settings.on_access.paths);
        assert_eq!(settings.schedule.len(), 1);
        let table = settings.failure_table();
        assert_eq!(table.answer(Failure::NoSvm, Access::Open), Answer::Deny);
        // A value is replaced whole.
        assert_eq!(table.answer(Failure::NoSvm, Access::Exec), Answer::Allow);
        assert_eq!(table.answer(Failure::Busy, Access::Open), Answer::Deny);
        let nothing = lay(&base, &Policy::default());
        assert_eq!(nothing.settings, base.settings);
    }

    #[test]
    fn what_cannot_be_taken_is_named_and_the_rest_applies() {
        let mut said = policy(&[
            ("name", json!("x")),
            ("on_access.deadline_ms", json!(700)),
            ("on_access.later", json!(true)),
            ("on_access.mode", json!("paranoid")),
            ("scan.pua", json!(true)),
        ]);
        let mut settings = said.settings.into_vec();
        settings.push(Setting {
            key: Text::cut("exclude"),
            value: Text::cut("["),
            origin: Text::cut("site"),
        });
        said.settings = List::cut(settings);
        let laid = lay(&base(""), &said);
        let named: Vec<&str> = laid
            .not_applied
            .iter()
            .map(|not| not.key.as_str())
            .collect();
        assert_eq!(
            named,
            ["name", "on_access.later", "on_access.mode", "exclude"]
        );
        assert!(laid.not_applied[2].why.contains("monitor"));
        assert!(laid.settings.scan.pua);
        assert_eq!(laid.settings.on_access.deadline_ms, 700);
    }

    /// Values of a kind, at its edges and over them.
    fn values(kind: Kind) -> Vec<Value> {
        match kind {
            Kind::Flag => vec![json!(true), json!(false), json!("yes"), json!(1)],
            Kind::Number { min, max } => {
                let mut all = vec![json!(min), json!(max), json!("5"), json!(-1), json!(1.5)];
                all.extend(min.checked_sub(1).map(|number| json!(number)));
                all.extend((max < i64::MAX as u64).then(|| json!(max + 1)));
                all
            }
            Kind::Word(words) => words
                .iter()
                .chain(&["nonsense"])
                .map(|word| json!(word))
                .collect(),
            Kind::Words(words) => vec![json!([]), json!(words), json!(["nonsense"]), json!("x")],
            Kind::Paths => vec![json!([]), json!(["/a", "/b"]), json!(["a"]), json!("/a")],
            Kind::Answers => vec![
                json!("allow"),
                json!({"open": "deny"}),
                json!({"open": "deny", "exec": "allow"}),
                json!({"read": "deny"}),
                json!("block"),
            ],
            Kind::Schedules => vec![
                json!([]),
                json!([{"kind": "full", "at": "23:59", "days": ["mon"], "spread_min": 1439}]),
                json!([{"kind": "full", "at": "23:59", "spread_min": 1440}]),
                json!([{"kind": "full", "at": "23:59", "idle_load": 100.5}]),
                json!([{"kind": "custom", "at": "23:59"}]),
                json!([{"kind": "full", "at": "23:59", "days": []}]),
                json!([{"kind": "full", "at": "23:59", "idle_wait_min": 10_081}]),
                json!([{"kind": "full", "at": "23:59", "priority": "high"}]),
                json!([{"kind": "quick", "at": "7:00"}]),
                json!([{"kind": "quick", "at": "07:00", "only_idle": true, "if_never_idle": "skip"}]),
            ],
        }
    }

    /// The protocol's table is what this agent's settings are: what the server takes the
    /// agent takes, and what it refuses the agent would, too.
    #[test]
    fn the_table_of_settings_is_this_agents() {
        let base = base("");
        let kinds: Vec<&str> = places::kinds().collect();
        assert_eq!(kinds, FILE_SYSTEMS);
        assert_eq!(MAX_QUARANTINED, crate::quarantine::vault::MOST_FILES as u64);
        for known in SETTINGS {
            let mut right = 0;
            for value in values(known.kind) {
                let by_table = check(known.key, &value).is_ok();
                let toml = as_toml(value.clone()).unwrap();
                let taken = base.read.with(known.key, toml).parse::<Settings>();
                let by_agent = taken.is_ok_and(|settings| settings.check().is_ok());
                assert_eq!(by_table, by_agent, "{}: {value}", known.key);
                right += usize::from(by_table);
            }
            assert!(right > 0, "{}", known.key);
        }
    }

    proptest! {
        #[test]
        fn no_policy_makes_settings_that_cannot_be(
            settings in prop::collection::vec(("[a-z_.]{0,20}", "[ -~]{0,12}"), 0..8),
            known in prop::sample::subsequence(SETTINGS.to_vec(), 0..5),
            text in "[ -~]{0,12}",
        ) {
            let known = known.iter().map(|known| (known.key.to_owned(), text.clone()));
            let all = settings.into_iter().chain(known).map(|(key, value)| Setting {
                key: Text::cut(&key),
                value: Text::cut(&value),
                origin: Text::default(),
            });
            let policy = Policy { layers: List::default(), settings: List::cut(all) };
            let laid = lay(&base("[on_access]\npaths = ['/srv']"), &policy);
            prop_assert!(laid.settings.check().is_ok());
            prop_assert!(laid.not_applied.len() <= policy.settings.len());
        }
    }
}
