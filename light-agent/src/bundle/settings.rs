//! What of the settings may leave the guest: the known keys and their values, without
//! comments, without keys that nobody knows, and without texts where a path is expected.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use toml::{Table, Value};

/// Bytes of one file that are read, at the most.
const MAX_FILE_BYTES: u64 = 1 << 20;
/// Drop-ins that are read, at the most.
const MAX_FILES: usize = 64;
/// The file that shows every setting.
const KNOWN: &str = include_str!("../../agent.toml");
/// Settings that are paths: whoever put something else there may have put a secret.
const PATHS: [&str; 3] = ["join_token_file", "state_dir", "run_dir"];
/// What stands for a value that is not shown.
const LEFT_OUT: &str = "(left out)";

/// The settings files, as far as they may be shown.
pub fn shown(file: &Path) -> String {
    let mut all = String::new();
    for path in files(file) {
        all.push_str(&format!("# {}\n", path.display()));
        all.push_str(&one(&path));
        all.push('\n');
    }
    let variables = std::env::vars_os()
        .filter_map(|(name, _)| name.into_string().ok())
        .filter(|name| name.starts_with("PALISADE_AGENT__"));
    for name in variables {
        all.push_str(&format!("# {name} is set in the environment\n"));
    }
    all
}

fn files(file: &Path) -> Vec<PathBuf> {
    let mut drop_ins: Vec<PathBuf> = fs::read_dir(file.with_extension("conf.d"))
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|kind| kind == "toml"))
        .take(MAX_FILES)
        .collect();
    drop_ins.sort();
    drop_ins.insert(0, file.to_owned());
    drop_ins
}

fn one(path: &Path) -> String {
    let mut text = String::new();
    let read =
        fs::File::open(path).and_then(|file| file.take(MAX_FILE_BYTES).read_to_string(&mut text));
    if let Err(error) = read {
        return format!("# cannot be read: {error}\n");
    }
    match text.parse::<Table>() {
        Ok(table) => known(&table, &names()).to_string(),
        Err(error) => format!("# is not TOML: {}\n", place_of(&error.to_string())),
    }
}

/// Where a message about settings points to, without what it quotes.
pub fn place_of(message: &str) -> String {
    let words: Vec<&str> = message.split_whitespace().collect();
    let number = |after: &str| {
        let at = words.iter().position(|word| *word == after)?;
        let number = words
            .get(at + 1)?
            .trim_end_matches(|c: char| !c.is_ascii_digit());
        number.parse::<u32>().ok()
    };
    match (number("line"), number("column")) {
        (Some(line), Some(column)) => {
            format!("line {line}, column {column} (`palisade-agent check-config` says what)")
        }
        _ => "`palisade-agent check-config` says what".to_owned(),
    }
}

/// Every setting there is, as `section.key`.
fn names() -> Vec<String> {
    let mut section = String::new();
    let mut names = Vec::new();
    for line in KNOWN.lines() {
        let line = line.strip_prefix('#').unwrap_or(line);
        if line.starts_with('[') {
            section = line.trim_matches(['[', ']']).to_owned();
        } else if let Some((key, _)) = line.split_once(" = ")
            && key
                .chars()
                .all(|c| c.is_ascii_lowercase() || "0123456789_".contains(c))
        {
            names.push(name(&section, key));
        }
    }
    names
}

fn name(section: &str, key: &str) -> String {
    match section {
        "" => key.to_owned(),
        section => format!("{section}.{key}"),
    }
}

/// The known keys of a file; what is not known is named by its number alone.
fn known(table: &Table, names: &[String]) -> Table {
    let mut shown = Table::new();
    let mut unknown = 0_usize;
    for (key, value) in table {
        match value {
            Value::Table(inner) => {
                let (inner, more) = section(key, inner, names);
                unknown += more;
                insert(&mut shown, key, names, Value::Table(inner), &mut unknown);
            }
            Value::Array(items) if items.iter().all(Value::is_table) && !items.is_empty() => {
                let mut all = Vec::new();
                for item in items {
                    let (inner, more) = section(key, item.as_table().unwrap_or(table), names);
                    unknown += more;
                    all.push(Value::Table(inner));
                }
                insert(&mut shown, key, names, Value::Array(all), &mut unknown);
            }
            value if names.contains(key) => {
                shown.insert(key.clone(), safe(key, value));
            }
            _ => unknown += 1,
        }
    }
    if unknown > 0 {
        let unknown = i64::try_from(unknown).unwrap_or(i64::MAX);
        shown.insert("unknown_keys_left_out".to_owned(), unknown.into());
    }
    shown
}

fn insert(shown: &mut Table, key: &str, names: &[String], value: Value, unknown: &mut usize) {
    let prefix = format!("{key}.");
    if names.iter().any(|name| name.starts_with(&prefix)) {
        shown.insert(key.to_owned(), value);
    } else {
        *unknown += 1;
    }
}

fn section(section: &str, table: &Table, names: &[String]) -> (Table, usize) {
    let mut shown = Table::new();
    let mut unknown = 0;
    for (key, value) in table {
        if names.contains(&name(section, key)) {
            shown.insert(key.clone(), safe(key, value));
        } else {
            unknown += 1;
        }
    }
    (shown, unknown)
}

/// A value, unless it is something else than its key asks for: a text that is no path
/// where one is expected, a text among paths, a table with keys of its own.
fn safe(key: &str, value: &Value) -> Value {
    let is_path = |value: &Value| value.as_str().is_some_and(|text| text.starts_with('/'));
    let fine = match value {
        Value::Integer(_) | Value::Boolean(_) | Value::Float(_) | Value::Datetime(_) => true,
        Value::String(_) if PATHS.contains(&key) => is_path(value),
        Value::String(text) => text.len() <= 64,
        Value::Array(items) => items
            .iter()
            .all(|item| is_path(item) || item.as_str().is_some_and(|text| text.len() <= 16)),
        // A row of the failure table.
        Value::Table(row) => row.iter().all(|(key, value)| {
            ["open", "exec"].contains(&key.as_str())
                && value.as_str().is_some_and(|text| text.len() <= 16)
        }),
    };
    match fine {
        true => value.clone(),
        false => Value::String(LEFT_OUT.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown_of(text: &str) -> String {
        known(&text.parse().unwrap(), &names()).to_string()
    }

    #[test]
    fn known_keys_are_shown_and_nothing_else() {
        let shown = shown_of(
            "# comment-secret\njoin_token_file = 'pasted-secret'\nname = 'web'\nodd = 'odd-secret'\n\
             [on_access]\npaths = ['/srv']\nmode = 'block'\nkey = 'key-secret'\n\
             [failure]\nno_svm = { open = 'deny' }\nbusy = { secret = 'row-secret' }\n\
             [other]\nx = 'section-secret'\n[[svm]]\naddress = '192.0.2.1:1'\nx = 'svm-secret'\n",
        );
        assert!(!shown.contains("secret"), "{shown}");
        for kept in ["web", "/srv", "block", "deny", "192.0.2.1:1", LEFT_OUT] {
            assert!(shown.contains(kept), "{kept}: {shown}");
        }
        let table: Table = shown.parse().unwrap();
        // Four keys, and a section.
        assert_eq!(table["unknown_keys_left_out"].as_integer(), Some(5));
    }

    #[test]
    fn what_is_no_toml_is_not_quoted() {
        let error = "key = my-secret".parse::<Table>().unwrap_err().to_string();
        assert!(error.contains("my-secret"), "the control: {error}");
        let place = place_of(&error);
        assert!(place.starts_with("line 1, column "), "{place}");
        assert!(!place.contains("secret"));
        assert!(!place_of("bad value \"my-secret\"").contains("secret"));
    }
}
