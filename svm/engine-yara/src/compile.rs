//! From a directory of rule files to compiled rules: all of them, or none and the
//! reasons.

use crate::engine::YaraEngine;
use palisade_worker::message::DefinitionProblem;
use palisade_worker::zygote::{LoadReport, problem, random_hex};
use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use yara_x::errors::CompileError;
use yara_x::{Compiler, SourceCode};

/// Variables that public rule sets expect. They are empty, but for the names of parts
/// inside a content: what the content itself is called is not known here, so that one
/// content has one verdict.
pub const GLOBALS: [&str; 5] = ["filename", "filepath", "extension", "filetype", "owner"];
/// Largest file of rules that is read (bytes).
const MAX_RULE_FILE: u64 = 64 << 20;
/// Namespace of the canary; no file's stem can take it, for it is random as well.
const CANARY_NAMESPACE: &str = "palisade_canary";

/// What the canary rule looks for, and how it is told from others.
#[derive(Clone, Debug)]
pub struct Canary {
    /// Namespace of its rule, which nothing else has.
    pub namespace: String,
    /// Content that it matches.
    pub marker: String,
}

/// Compiles every rule file directly in `directory`.
pub fn load(directory: &Path) -> Result<LoadReport<YaraEngine>, Vec<DefinitionProblem>> {
    let whole = |message: String| vec![problem(directory, None, message)];
    let files = rule_files(directory).map_err(|error| whole(format!("cannot be read: {error}")))?;
    if files.is_empty() {
        return Err(whole("holds no .yar or .yara file".to_owned()));
    }
    let canary = canary().map_err(|error| whole(format!("canary: {error}")))?;

    let mut compiler = Compiler::new();
    compiler.relaxed_re_syntax(true).enable_includes(false);
    let mut problems = Vec::new();
    let mut taken = HashSet::new();
    for name in GLOBALS {
        if let Err(error) = compiler.define_global(name, "") {
            problems.push(problem(directory, None, format!("global {name}: {error}")));
        }
    }
    for file in &files {
        if let Err(found) = add_file(&mut compiler, file, &mut taken) {
            problems.push(found);
        }
    }
    compiler.new_namespace(&canary.namespace);
    let rule = format!(
        "rule canary {{ strings: $m = \"{}\" condition: $m }}",
        canary.marker
    );
    if let Err(error) = compiler.add_source(rule.as_str()) {
        problems.push(problem(directory, None, format!("canary: {error}")));
    }
    if !problems.is_empty() {
        return Err(problems);
    }
    let rules = compiler.build();
    let signatures = rules.iter().len().saturating_sub(1);
    if signatures == 0 {
        return Err(whole("its files hold no rule".to_owned()));
    }
    Ok(LoadReport {
        // The rules live as long as the process: every worker's scanner borrows them.
        engine: YaraEngine::new(Box::leak(Box::new(rules)), canary),
        version: yara_version().to_owned(),
        signatures: signatures as u64,
        warnings: Vec::new(),
    })
}

/// The files, in an order that does not depend on the file system.
fn rule_files(directory: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let extension = path.extension().and_then(|extension| extension.to_str());
        if matches!(extension, Some("yar" | "yara")) && fs::metadata(&path)?.is_file() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

/// A file's rules are a namespace of their own, called by the file's stem; or by its
/// whole name, if another file has the stem.
fn add_file(
    compiler: &mut Compiler<'_>,
    file: &Path,
    taken: &mut HashSet<String>,
) -> Result<(), DefinitionProblem> {
    let failed = |error: std::io::Error| problem(file, None, format!("cannot be read: {error}"));
    let size = fs::metadata(file).map_err(failed)?.len();
    if size > MAX_RULE_FILE {
        return Err(problem(
            file,
            None,
            format!("{size} bytes of rules are too many"),
        ));
    }
    let source = fs::read(file).map_err(failed)?;
    let name = |name: Option<&OsStr>| name.unwrap_or_default().to_string_lossy().into_owned();
    let mut namespace = name(file.file_stem());
    if !taken.insert(namespace.clone()) {
        namespace = name(file.file_name());
    }
    compiler.new_namespace(&namespace);
    let origin = file.to_string_lossy();
    match compiler.add_source(SourceCode::from(source.as_slice()).with_origin(origin)) {
        Ok(_) => Ok(()),
        Err(error) => Err(described(file, &source, &error)),
    }
}

fn described(file: &Path, source: &[u8], error: &CompileError) -> DefinitionProblem {
    let label = error.labels().next();
    let line = label.as_ref().and_then(|label| {
        let before = source.get(..label.span().start())?;
        u32::try_from(before.iter().filter(|byte| **byte == b'\n').count() + 1).ok()
    });
    let detail = label
        .map(|label| label.text().to_owned())
        .unwrap_or_default();
    let message = match detail.as_str() {
        "" => error.title().to_owned(),
        detail => format!("{}: {detail}", error.title()),
    };
    problem(file, line, message)
}

fn canary() -> std::io::Result<Canary> {
    Ok(Canary {
        namespace: format!("{CANARY_NAMESPACE}_{}", random_hex(8)?),
        marker: random_hex(32)?,
    })
}

/// The version of yara-x that is linked; a test holds it against the lock file.
pub fn yara_version() -> &'static str {
    "1.22.1"
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_version_is_the_locked_one() {
        let lock =
            std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../Cargo.lock"));
        let entry = format!("name = \"yara-x\"\nversion = \"{}\"", super::yara_version());
        assert!(
            lock.unwrap().contains(&entry),
            "Cargo.lock has another version"
        );
    }
}
