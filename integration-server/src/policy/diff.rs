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

/// The differences on one line, for the audit log.
pub fn in_words(differences: &[Difference]) -> String {
    if differences.is_empty() {
        return "nothing".to_owned();
    }
    let one = |difference: &Difference| match &difference.to {
        Some(to) => format!("{} = {to}", difference.key),
        None => format!("{} inherited", difference.key),
    };
    let all: Vec<String> = differences.iter().map(one).collect();
    all.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
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
        assert_eq!(in_words(&between(&from, &to)), "a inherited, b = false");
        assert_eq!(in_words(&[]), "nothing");
    }
}
