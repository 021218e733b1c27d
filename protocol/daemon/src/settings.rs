//! Settings: a TOML file, drop-ins, environment; unknown keys are errors.
//!
//! Read in this order, later values winning key by key:
//! 1. the settings file (`agent.toml`); a missing one is an empty one;
//! 2. `agent.conf.d/*.toml` beside it, by name;
//! 3. environment variables `PALISADE_AGENT__SECTION__KEY=value`, where the value
//!    is TOML if it parses as TOML and text otherwise.
//!
//! The settings type must carry `#[serde(deny_unknown_fields, default)]`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use toml::{Table, Value};

use crate::site::Component;

/// Largest settings file, in bytes.
const MAX_FILE_BYTES: u64 = 1024 * 1024;

/// Why settings cannot be used. Each names the file and what to change.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// A file cannot be read.
    #[error("{path}: {source}")]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file is no settings file.
    #[error("{path}: over {MAX_FILE_BYTES} bytes; this is not a settings file")]
    TooLarge {
        /// Which.
        path: PathBuf,
    },
    /// A file is not TOML.
    #[error("{path}: {source}")]
    Syntax {
        /// Which.
        path: PathBuf,
        /// Where and what.
        source: Box<toml::de::Error>,
    },
    /// A key is unknown or has the wrong kind of value.
    #[error("settings of {component} ({sources}): {message}")]
    Value {
        /// Whose settings.
        component: Component,
        /// The files and variables that were read.
        sources: String,
        /// Which key, and what is wrong with it.
        message: String,
    },
}

/// What files and variables say, before it is taken as somebody's settings.
#[derive(Debug, Clone)]
pub struct Read {
    component: Component,
    table: Table,
    sources: Vec<String>,
}

impl Read {
    /// Takes it as settings.
    ///
    /// # Errors
    /// [`SettingsError::Value`], which names the key.
    pub fn parse<T: DeserializeOwned>(&self) -> Result<T, SettingsError> {
        T::deserialize(self.table.clone()).map_err(|error: toml::de::Error| SettingsError::Value {
            component: self.component,
            sources: self.sources.join(", "),
            message: one_line(&error),
        })
    }

    /// The same with a value in place of what was read. Sections stand before dots.
    #[must_use]
    pub fn with(&self, key: &str, value: Value) -> Self {
        let mut read = self.clone();
        put(&mut read.table, key, value);
        read
    }
}

fn put(table: &mut Table, key: &str, value: Value) {
    let Some((section, rest)) = key.split_once('.') else {
        table.insert(key.to_owned(), value);
        return;
    };
    let mut inner = match table.remove(section) {
        Some(Value::Table(inner)) => inner,
        // What is no section cannot have the key.
        _ => Table::new(),
    };
    put(&mut inner, rest, value);
    table.insert(section.to_owned(), Value::Table(inner));
}

/// Reads a component's settings. `environment` is `std::env::vars_os()`, given as
/// a value so that tests need not change the process.
///
/// # Errors
/// A [`SettingsError`] that names the object.
pub fn load<T: DeserializeOwned>(
    component: Component,
    file: &Path,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<T, SettingsError> {
    read_all(component, file, environment)?.parse()
}

/// Reads what is said of a component's settings.
///
/// # Errors
/// A [`SettingsError`] that names the file.
pub fn read_all(
    component: Component,
    file: &Path,
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Read, SettingsError> {
    let mut table = Table::new();
    let mut sources = Vec::new();
    for path in files(file)? {
        if let Some(read) = read(&path)? {
            merge(&mut table, read);
            sources.push(path.display().to_string());
        }
    }
    let prefix = format!("PALISADE_{}__", component.to_ascii_uppercase());
    let mut variables: Vec<(String, String)> = environment
        .into_iter()
        .filter_map(|(key, value)| Some((key.into_string().ok()?, value.into_string().ok()?)))
        .filter(|(key, _)| key.starts_with(&prefix))
        .collect();
    variables.sort();
    for (key, value) in variables {
        let path: Vec<String> = key[prefix.len()..]
            .split("__")
            .map(str::to_ascii_lowercase)
            .collect();
        merge(&mut table, nested(&path, scalar(&value)));
        sources.push(key);
    }
    if sources.is_empty() {
        sources.push(format!("{}: absent, defaults apply", file.display()));
    }
    Ok(Read {
        component,
        table,
        sources,
    })
}

/// The error in one line, with the path of keys that leads to it.
fn one_line(error: &toml::de::Error) -> String {
    let text = error.to_string();
    text.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
}

fn files(file: &Path) -> Result<Vec<PathBuf>, SettingsError> {
    let directory = file.with_extension("conf.d");
    let mut drop_ins = match std::fs::read_dir(&directory) {
        Ok(entries) => entries
            .map(|entry| entry.map(|entry| entry.path()))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|source| SettingsError::Read {
                path: directory.clone(),
                source,
            })?,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        Err(source) => {
            return Err(SettingsError::Read {
                path: directory,
                source,
            });
        }
    };
    drop_ins.retain(|path| {
        path.extension()
            .is_some_and(|extension| extension == "toml")
    });
    drop_ins.sort();
    drop_ins.insert(0, file.to_owned());
    Ok(drop_ins)
}

fn read(path: &Path) -> Result<Option<Table>, SettingsError> {
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.len() > MAX_FILE_BYTES => {
            return Err(SettingsError::TooLarge {
                path: path.to_owned(),
            });
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        _ => {}
    }
    let text = std::fs::read_to_string(path).map_err(|source| SettingsError::Read {
        path: path.to_owned(),
        source,
    })?;
    text.parse::<Table>()
        .map(Some)
        .map_err(|source| SettingsError::Syntax {
            path: path.to_owned(),
            source: Box::new(source),
        })
}

fn merge(into: &mut Table, from: Table) {
    for (key, value) in from {
        match (into.get_mut(&key), value) {
            (Some(Value::Table(old)), Value::Table(new)) => merge(old, new),
            (_, value) => {
                into.insert(key, value);
            }
        }
    }
}

fn nested(path: &[String], value: Value) -> Table {
    let mut table = Table::new();
    if let Some((first, rest)) = path.split_first() {
        let value = if rest.is_empty() {
            value
        } else {
            Value::Table(nested(rest, value))
        };
        table.insert(first.clone(), value);
    }
    table
}

fn scalar(text: &str) -> Value {
    format!("v = {text}")
        .parse::<Table>()
        .ok()
        .and_then(|mut table| table.remove("v"))
        .unwrap_or_else(|| Value::String(text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Default, PartialEq, serde::Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Sample {
        listen: String,
        scan: Scan,
    }

    #[derive(Debug, Default, PartialEq, serde::Deserialize)]
    #[serde(deny_unknown_fields, default)]
    struct Scan {
        workers: u32,
        paths: Vec<String>,
    }

    fn at(files: &[(&str, &str)]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (name, text) in files {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        }
        dir
    }

    #[test]
    fn later_sources_win_key_by_key() {
        let dir = at(&[
            (
                "agent.toml",
                "listen = 'a'\n[scan]\nworkers = 1\npaths = ['/x']",
            ),
            ("agent.conf.d/20.toml", "[scan]\nworkers = 3"),
            ("agent.conf.d/10.toml", "[scan]\nworkers = 2"),
            ("agent.conf.d/note.txt", "not read"),
        ]);
        let environment = [("PALISADE_AGENT__LISTEN".into(), "b".into())];
        let sample: Sample = load("agent", &dir.path().join("agent.toml"), environment).unwrap();
        let scan = Scan {
            workers: 3,
            paths: vec!["/x".into()],
        };
        assert_eq!(
            sample,
            Sample {
                listen: "b".into(),
                scan
            }
        );
    }

    #[test]
    fn an_unknown_key_is_named_with_its_file() {
        let dir = at(&[("agent.toml", "[scan]\nwrokers = 1")]);
        let error = load::<Sample>("agent", &dir.path().join("agent.toml"), []).unwrap_err();
        assert!(error.to_string().contains("wrokers"), "{error}");
        assert!(error.to_string().contains("agent.toml"), "{error}");
    }

    #[test]
    fn a_value_of_the_wrong_kind_is_named_with_its_key() {
        let dir = at(&[("agent.toml", "[scan]\nworkers = 'many'")]);
        let error = load::<Sample>("agent", &dir.path().join("agent.toml"), []).unwrap_err();
        let said = error.to_string();
        assert!(
            said.contains("scan.workers") && !said.contains('\n'),
            "{said}"
        );
    }

    #[test]
    fn a_value_takes_the_place_of_what_was_read() {
        let dir = at(&[(
            "agent.toml",
            "listen = 'a'\n[scan]\nworkers = 1\npaths = ['/x']",
        )]);
        let read = read_all("agent", &dir.path().join("agent.toml"), []).unwrap();
        let paths = Value::Array(vec!["/y".into()]);
        let other = read.with("scan.paths", paths).with("listen", "b".into());
        let scan = |paths: &str| Scan {
            workers: 1,
            paths: vec![paths.into()],
        };
        let (listen, scan_of) = ("b".to_owned(), scan("/y"));
        let sample = Sample {
            listen,
            scan: scan_of,
        };
        assert_eq!(other.parse::<Sample>().unwrap(), sample);
        let before: Sample = read.parse().unwrap();
        assert_eq!((before.listen.as_str(), before.scan), ("a", scan("/x")));
        let error = read.with("scan.wrokers", 1.into()).parse::<Sample>();
        assert!(error.unwrap_err().to_string().contains("wrokers"));
    }

    #[test]
    fn no_file_means_defaults() {
        let dir = at(&[]);
        let sample: Sample = load("agent", &dir.path().join("agent.toml"), []).unwrap();
        assert_eq!(sample, Sample::default());
    }
}
