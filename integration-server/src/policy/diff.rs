//! What changed between two revisions of a policy.

use serde_json::Value;

use super::Settings;

/// One setting that differs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Difference {
    /// Which.
    pub key: String,
    /// What it was; none where it was inherited.
    pub from: Option<Value>,
    /// What it is; none where it is inherited.
    pub to: Option<Value>,
}

/// What differs, by the settings' names.
pub fn between(from: &Settings, to: &Settings) -> Vec<Difference> {
    let added = to.keys().filter(|key| !from.contains_key(*key));
    let mut keys: Vec<&String> = from.keys().chain(added).collect();
    keys.sort();
    keys.into_iter()
        .filter(|key| from.get(*key) != to.get(*key))
        .map(|key| Difference {
            key: key.clone(),
            from: from.get(key).cloned(),
            to: to.get(key).cloned(),
        })
        .collect()
}

/// Characters of a value in the audit log.
const MAX_SHOWN_CHARS: usize = 100;

/// The differences on one line, for the audit log, which cuts what is too long: first the
/// names of all, so that none is hidden behind another's value, and the hash of all that
/// is set now; then the values, each cut by itself.
pub fn in_words(differences: &[Difference], now: &Settings) -> String {
    let hash = hash(now);
    if differences.is_empty() {
        return format!("nothing (BLAKE3 {hash})");
    }
    let names: Vec<&str> = differences.iter().map(|one| one.key.as_str()).collect();
    let one = |difference: &Difference| match &difference.to {
        Some(to) => format!("{} = {}", difference.key, cut(&to.to_string())),
        None => format!("{} inherited", difference.key),
    };
    let all: Vec<String> = differences.iter().map(one).collect();
    format!("{} (BLAKE3 {hash}): {}", names.join(", "), all.join(", "))
}

/// The hash of what a policy sets: of its JSON without spaces, names in order.
pub fn hash(settings: &Settings) -> String {
    // Maps are written in their order, which is that of the names.
    let text = Value::from_iter(settings.clone()).to_string();
    blake3::hash(text.as_bytes()).to_hex().to_string()
}

fn cut(text: &str) -> String {
    let mut chars = text.chars();
    let mut shown: String = chars.by_ref().take(MAX_SHOWN_CHARS).collect();
    if chars.next().is_some() {
        shown.push('…');
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::MAX_VALUE_BYTES;
    use palisade_protocol::policy::settings::SETTINGS;
    use proptest::prelude::*;
    use serde_json::json;

    fn settings() -> impl Strategy<Value = Settings> {
        let key = prop::sample::select(vec!["a", "b", "c", "d"]);
        prop::collection::btree_map(
            key.prop_map(str::to_owned),
            (0..3).prop_map(|n| json!(n)),
            0..4,
        )
    }

    proptest! {
        #[test]
        fn a_difference_leads_from_one_to_the_other(from in settings(), to in settings()) {
            let differences = between(&from, &to);
            prop_assert_eq!(differences.is_empty(), from == to);
            prop_assert!(differences.is_sorted_by(|a, b| a.key < b.key));
            let mut led = from.clone();
            for difference in differences {
                prop_assert_eq!(led.get(&difference.key), difference.from.as_ref());
                match difference.to {
                    Some(value) => led.insert(difference.key, value),
                    None => led.remove(&difference.key),
                };
            }
            prop_assert_eq!(led, to);
        }
    }

    #[test]
    fn it_is_said_in_words() {
        let from = Settings::from([("a".to_owned(), json!(1)), ("b".to_owned(), json!(true))]);
        let to = Settings::from([("b".to_owned(), json!(false))]);
        let hash = hash(&to);
        assert_eq!(
            in_words(&between(&from, &to), &to),
            format!("a, b (BLAKE3 {hash}): a inherited, b = false")
        );
        assert_eq!(in_words(&[], &to), format!("nothing (BLAKE3 {hash})"));
    }

    #[test]
    fn nothing_hides_behind_a_long_value() {
        let long = Settings::from_iter(SETTINGS.iter().map(|known| {
            let value = vec!["/x".repeat(1000); 8];
            (known.key.to_owned(), json!(value))
        }));
        let words = in_words(&between(&Settings::new(), &long), &long);
        let words = format!("revision {}: {words}", u64::MAX);
        let kept = &words[..words.floor_char_boundary(MAX_VALUE_BYTES)];
        for known in SETTINGS {
            assert!(kept.contains(known.key), "{}", known.key);
        }
        assert!(kept.contains(&hash(&long)), "{kept}");
        let two = Settings::from([
            ("exclude".to_owned(), json!(["/x".repeat(4000)])),
            ("on_access.enabled".to_owned(), json!(false)),
        ]);
        let words = in_words(&between(&Settings::new(), &two), &two);
        assert!(words.ends_with("on_access.enabled = false") && words.len() < 512);
    }
}
