//! From a directory of databases to a compiled engine: all of them, or none and the
//! reasons.

use crate::canary::Canary;
use crate::databases;
use crate::engine::ClamEngine;
use crate::ffi::{self, LibraryMessage, RawEngine};
use crate::settings::Configuration;
use palisade_worker::message::DefinitionProblem;
use palisade_worker::zygote::{LoadReport, problem};
use std::path::Path;

/// Loads and compiles every database directly in `directory`.
pub fn load(
    directory: &Path,
    scratch: &Path,
    configuration: &Configuration,
) -> Result<LoadReport<ClamEngine>, Vec<DefinitionProblem>> {
    let whole = |message: String| vec![problem(directory, None, message)];
    let files =
        databases::find(directory).map_err(|error| whole(format!("cannot be read: {error}")))?;
    if files.is_empty() {
        return Err(whole(
            "holds no ClamAV database (.cvd, .cld, .hdb, .ndb, .ldb, …)".to_owned(),
        ));
    }
    let mut engine = RawEngine::new().map_err(whole)?;
    configuration.apply(&mut engine).map_err(whole)?;
    let in_scratch = |message: String| vec![problem(scratch, None, message)];
    engine.set_scratch(scratch).map_err(in_scratch)?;

    let (mut signatures, mut problems, mut warnings) = (0, Vec::new(), Vec::new());
    for file in &files {
        ffi::take_messages();
        let loaded = engine.load(file, configuration.database);
        let messages = ffi::take_messages();
        match loaded {
            Ok(count) => {
                signatures += u64::from(count);
                warnings.extend(
                    messages
                        .iter()
                        .map(|m| problem(file, line_in(&m.text), &m.text)),
                );
            }
            Err(text) => problems.push(explain(file, &text, &messages)),
        }
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    if signatures == 0 {
        return Err(whole("its databases hold no signature".to_owned()));
    }
    let canary = Canary::new().map_err(|error| in_scratch(format!("canary: {error}")))?;
    canary
        .with_file(scratch, |file| engine.load(file, configuration.database))
        .map_err(|error| in_scratch(format!("canary: {error}")))?;
    ffi::take_messages();
    engine.compile().map_err(|error| {
        let said = ffi::take_messages();
        vec![explain(directory, &error, &said)]
    })?;
    Ok(LoadReport {
        engine: ClamEngine::new(engine, canary, configuration.flags),
        version: ffi::version(),
        signatures,
        warnings,
    })
}

/// Why a file was refused: libclamav's messages, and the line that they name.
fn explain(file: &Path, text: &str, messages: &[LibraryMessage]) -> DefinitionProblem {
    let line = messages.iter().find_map(|message| line_in(&message.text));
    let mut said: Vec<&str> = vec![text];
    said.extend(
        messages
            .iter()
            .map(|message| message.text.as_str())
            // Says no more than the file's name and the text that is there already.
            .filter(|message| !message.starts_with("Can't load ")),
    );
    said.dedup();
    problem(file, line, said.join("; "))
}

/// The number after the last "line" of a message.
fn line_in(message: &str) -> Option<u32> {
    let (_, after) = message.rsplit_once("line")?;
    let after = after.trim_start_matches([' ', ':']);
    let digits = after.split(|c: char| !c.is_ascii_digit()).next()?;
    digits.parse().ok().filter(|line| *line > 0)
}

#[cfg(test)]
mod tests {
    use super::line_in;

    #[test]
    fn lines_as_libclamav_words_them() {
        assert_eq!(line_in("Problem parsing database at line 17"), Some(17));
        assert_eq!(
            line_in("cli_loadidb: Malformed hash at line 3 (bad chars)"),
            Some(3)
        );
        assert_eq!(line_in("Error loading at line: 9"), Some(9));
        assert_eq!(line_in("Malformed pattern line 2"), Some(2));
        assert_eq!(line_in("Malformed database"), None);
        assert_eq!(line_in("an outline"), None);
    }
}
