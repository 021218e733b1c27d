//! The policy for people: a few lines in `palisade-agent status`, all of it by
//! `palisade-agent policy`.

use std::fmt;

use serde_json::Value;

/// In short.
pub struct Brief<'a>(pub &'a Value);

/// All of it.
pub struct Whole<'a>(pub &'a Value);

/// Digits that are shown of a fingerprint in short.
const SHORT_DIGITS: usize = 12;

/// A text, as it can neither forge a line nor drive a terminal.
fn text(value: &Value) -> String {
    value.as_str().unwrap_or("-").escape_debug().to_string()
}

fn printable(c: char) -> char {
    match c.is_control() {
        true => char::REPLACEMENT_CHARACTER,
        false => c,
    }
}

/// Whether there is nothing to say of it.
fn is_none(policy: &Value) -> bool {
    ["fingerprint", "refused", "note"]
        .iter()
        .all(|key| policy[key].is_null())
}

fn problems(f: &mut fmt::Formatter<'_>, policy: &Value) -> fmt::Result {
    if let Value::String(note) = &policy["note"] {
        writeln!(f, "  policy    {}", note.escape_debug())?;
    }
    if let Some([print, why]) = policy["refused"].as_array().map(Vec::as_slice) {
        let print = text(print);
        let print = print.get(..SHORT_DIGITS).unwrap_or_default();
        writeln!(f, "  refused   {print}: {}", text(why))?;
    }
    for (key, why) in policy["not_applied"].as_object().into_iter().flatten() {
        writeln!(f, "  not applied {}: {}", key.escape_debug(), text(why))?;
    }
    Ok(())
}

fn layers(policy: &Value) -> String {
    let layers = policy["layers"].as_array().into_iter().flatten();
    let layers: Vec<String> = layers
        .map(|layer| format!("{} r{}", text(&layer["origin"]), layer["revision"]))
        .collect();
    match layers.is_empty() {
        true => "nothing is set".to_owned(),
        false => layers.join(", "),
    }
}

impl fmt::Display for Brief<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let policy = self.0;
        if is_none(policy) {
            return Ok(());
        }
        match policy["fingerprint"].as_str() {
            Some(print) => {
                let print = print.get(..SHORT_DIGITS).unwrap_or_default();
                writeln!(f, "policy      {print} ({})", layers(policy))?;
            }
            None => writeln!(f, "policy      none: the guest's own settings are in force")?,
        }
        problems(f, policy)
    }
}

impl fmt::Display for Whole<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let policy = self.0;
        match policy["fingerprint"].as_str() {
            Some(print) => {
                writeln!(f, "policy      {print}")?;
                writeln!(f, "made of     {}", layers(policy))?;
            }
            None => writeln!(f, "policy      none: the guest's own settings are in force")?,
        }
        problems(f, policy)?;
        for (key, setting) in policy["settings"].as_object().into_iter().flatten() {
            let (value, origin) = (&setting["value"], text(&setting["origin"]));
            // JSON leaves what is beyond ASCII as it is.
            let value = value.to_string();
            let printed: String = value.chars().map(printable).collect();
            writeln!(f, "{} = {printed}   ({origin})", key.escape_debug())?;
        }
        write!(f, "All else is as agent.toml has it, or by default.")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn people_see_what_is_set_and_what_is_wrong() {
        assert_eq!(Brief(&Value::Null).to_string(), "");
        let policy = json!({
            "fingerprint": "0123456789abcdef",
            "layers": [{"origin": "site", "revision": 3}, {"origin": "VM", "revision": 1}],
            "settings": {"on_access.mode": {"value": "block", "origin": "VM"}},
            "not_applied": {"x.y": "unknown"},
            "refused": ["fedcba9876543210", "no"],
            "note": "policy.json is damaged",
        });
        let brief = Brief(&policy).to_string();
        assert_eq!(
            brief,
            "policy      0123456789ab (site r3, VM r1)\n  policy    policy.json is damaged\n  \
             refused   fedcba987654: no\n  not applied x.y: unknown\n"
        );
        let whole = Whole(&policy).to_string();
        assert!(
            whole.contains("on_access.mode = \"block\"   (VM)"),
            "{whole}"
        );
        let forged = json!({
            "fingerprint": "0123456789abcdef",
            "layers": [{"origin": "VM\n\u{1b}[2J", "revision": 1}],
            "settings": {"a\nb": {"value": "\u{9b}2J", "origin": "x\ny"}},
            "not_applied": {"c\nd": "e\nf"},
            "refused": ["fedcba9876543210", "no\n\u{1b}"],
            "note": "x\u{1b}",
        });
        for shown in [Brief(&forged).to_string(), Whole(&forged).to_string()] {
            let bad = |c: char| c.is_control() && c != '\n';
            assert!(!shown.contains(bad), "{shown:?}");
            assert_eq!(
                shown
                    .lines()
                    .filter(|line| *line == "y)" || *line == "f")
                    .count(),
                0
            );
        }
        let none = Whole(&Value::Null).to_string();
        assert!(none.starts_with("policy      none"), "{none}");
    }
}
