//! That no secret is in a text: this guest's own by their values, others by their shape.
//!
//! The values are read where they lie: the identity's key, the quarantine's key, the
//! join token. The shapes are those of join tokens, of PEM blocks, and of words that are
//! named as secrets (`password = …`).

use std::fs;
use std::io::Read as _;
use std::path::Path;

use crate::quarantine::key;
use crate::settings::{Folders, Settings};

/// What stands for a secret.
pub const REMOVED: &str = "[removed]";
/// Shorter values would be found by chance.
const SHORTEST: usize = 8;
/// Bytes of a secret's file that are read, at the most.
const MAX_BYTES: u64 = 64 * 1024;
/// Fields of the log that hold names of files.
const NAMES_OF_FILES: [&str; 6] = ["path=", "member=", "folder=", "from=", "to=", "root="];
/// Names of secrets, in lower case.
const NAMES: [&str; 6] = ["password", "passwd", "secret", "token", "api_key", "apikey"];

/// Removes secrets.
#[derive(Clone, Default)]
pub struct Scrub {
    values: Vec<String>,
}

impl Scrub {
    /// Knows the secrets of this guest.
    pub fn of(settings: &Settings, folders: &Folders) -> Self {
        let mut scrub = Self::default();
        let identity = folders.state.join("identity");
        for line in text(&identity.join("key.pem")).lines() {
            if !line.starts_with("-----") {
                scrub.know(line);
            }
        }
        let quarantine = bytes(&folders.state.join(key::FILE));
        scrub.know(&hex::encode(&quarantine));
        scrub.know(&String::from_utf8_lossy(&quarantine));
        if let Some(file) = &settings.join_token_file {
            scrub.know(&text(file));
        }
        scrub
    }

    fn know(&mut self, value: &str) {
        let value = value.trim();
        if value.len() >= SHORTEST {
            self.values.push(value.to_owned());
        }
    }

    /// The text without secrets.
    pub fn text(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for value in &self.values {
            text = text.replace(value.as_str(), REMOVED);
        }
        let mut scrubbed = String::with_capacity(text.len());
        let mut in_pem = false;
        for line in text.split_inclusive('\n') {
            let begins = line.contains("-----BEGIN ");
            let ends = line.contains("-----END ");
            if begins && !in_pem {
                scrubbed.push_str(REMOVED);
                scrubbed.push('\n');
            }
            if begins || in_pem {
                in_pem = !ends;
                continue;
            }
            scrubbed.push_str(&words(line));
        }
        scrubbed
    }
}

/// A log without the names of files: the values of the fields that have them.
pub fn without_names(log: &str) -> String {
    let mut out = String::with_capacity(log.len());
    for line in log.split_inclusive('\n') {
        let mut rest = line;
        while let Some((at, field)) = first_field(rest) {
            let (before, value) = rest.split_at(at + field.len());
            out.push_str(before);
            out.push_str(REMOVED);
            // Values are not quoted: up to the next field, whatever is in between.
            rest = value.get(next_field(value)..).unwrap_or_default();
        }
        out.push_str(rest);
    }
    out
}

fn first_field(line: &str) -> Option<(usize, &'static str)> {
    let begins = |at: usize| at == 0 || line.as_bytes().get(at - 1) == Some(&b' ');
    let found = NAMES_OF_FILES.iter().filter_map(|field| {
        let mut all = line.match_indices(field);
        all.find(|(at, _)| begins(*at)).map(|(at, _)| (at, *field))
    });
    found.min()
}

/// Where the next field begins, with the blank before it; or the line's end.
fn next_field(value: &str) -> usize {
    let blanks = value.match_indices(' ').map(|(at, _)| at);
    let is_field = |at: &usize| {
        let name = value.get(at + 1..).unwrap_or_default();
        let end = name.find(|c: char| !c.is_ascii_lowercase() && c != '_');
        end.is_some_and(|end| end > 0 && name[end..].starts_with('='))
    };
    let end = value.trim_end_matches('\n').len();
    blanks.filter(is_field).min().unwrap_or(end).min(end)
}

/// A line without tokens, and without values that are named as secrets.
fn words(line: &str) -> String {
    let mut out = String::with_capacity(line.len());
    let mut rest = line;
    while let Some(at) = rest.find("pj1.") {
        let (before, token) = rest.split_at(at);
        out.push_str(before);
        out.push_str(REMOVED);
        let end = token
            .find(|c: char| !c.is_ascii_alphanumeric() && !"._-".contains(c))
            .unwrap_or(token.len());
        rest = &token[end..];
    }
    out.push_str(rest);
    let lower = out.to_ascii_lowercase();
    let named = NAMES
        .iter()
        .flat_map(|name| lower.match_indices(name))
        .map(|(at, name)| at + name.len())
        .filter(|end| {
            let behind = lower[*end..].trim_start_matches(['"', '\'', ' ']);
            behind.starts_with(['=', ':'])
        })
        .min();
    match named {
        Some(end) => format!("{}{REMOVED}\n", &out[..end]),
        None => out,
    }
}

fn bytes(path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Ok(file) = fs::File::open(path) {
        // What cannot be read cannot have been put anywhere.
        let _ = file.take(MAX_BYTES).read_to_end(&mut bytes);
    }
    bytes
}

fn text(path: &Path) -> String {
    String::from_utf8_lossy(&bytes(path)).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_of_secrets_are_removed_and_the_rest_stays() {
        let scrub = Scrub {
            values: vec!["known-value".to_owned()],
        };
        let text = "a known-value b\n\
                    joins with pj1.abcDEF_-123, and goes on\n\
                    -----BEGIN PRIVATE KEY-----\nMIGH\n-----END PRIVATE KEY-----\n\
                    Password: hunter2\n\
                    join_token_file = \"/etc/palisade/token\"\n\
                    the token was taken\n\
                    the token was taken, token=abcdef\n";
        assert_eq!(
            scrub.text(text),
            "a [removed] b\n\
             joins with [removed], and goes on\n\
             [removed]\n\
             Password[removed]\n\
             join_token_file = \"/etc/palisade/token\"\n\
             the token was taken\n\
             the token was taken, token[removed]\n"
        );
    }

    #[test]
    fn names_of_files_are_taken_out_of_a_log() {
        let log = "T WARN blocked path=/home/a b/c=d.txt member=x pid=7 verdict=\"malware\"\n\
                   T INFO xpath=1 was seen, path=/p\nT INFO nothing\npath=";
        assert_eq!(
            without_names(log),
            "T WARN blocked path=[removed] member=[removed] pid=7 verdict=\"malware\"\n\
             T INFO xpath=1 was seen, path=[removed]\nT INFO nothing\npath=[removed]"
        );
    }

    #[test]
    fn an_unfinished_block_hides_all_behind_it() {
        let text = "-----BEGIN PRIVATE KEY-----\nMIGH\nmore";
        assert_eq!(Scrub::default().text(text), "[removed]\n");
    }
}
