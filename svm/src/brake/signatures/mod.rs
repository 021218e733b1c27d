//! The signatures that definitions hold: each one's name, and what it says.
//!
//! ```text
//!  a folder of definitions ─► clamav | yara ─► (name, definition), hashed ─► sorted ─► ledger
//! ```
//!
//! Only so can an old signature be told from a new one, where a whole set is new every day.
//! Read here is what an engine's program has loaded already, and what the site's own source
//! holds; contents of guests never come here. Signatures of one name are one: what they say
//! is added up.
//!
//! | module | owns |
//! | --- | --- |
//! | [`clamav`] | names in libclamav's databases, containers (`.cvd`, `.cld`) included |
//! | [`yara`] | rules, with what they refer to |
//! | [`sorted`] | any number of them in order, within bounded memory |
//!
//! What has no line of its own goes by what its name begins with ([`FAMILIES`]): bytecode
//! and lists of links are one signature each, as new as the last change of any of them.
//! Whatever else an engine finds by itself is never new.

mod clamav;
pub mod sorted;
mod yara;

use std::io;
use std::path::{Path, PathBuf};

use crate::engine::EngineKind;
use sorted::Sorter;

/// An engine's definitions that are in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// Whose.
    pub engine: EngineKind,
    /// Over their names and bytes.
    pub fingerprint: [u8; 16],
    /// Where they are.
    pub folder: PathBuf,
}

/// A signature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Signature {
    /// Its name, hashed.
    pub name: u64,
    /// What it says, hashed.
    pub definition: u64,
}

/// How names begin that libclamav gives to what bytecode finds, and to links.
pub const FAMILIES: [&str; 2] = [BYTECODE, LINKS];
const BYTECODE: &str = "BC.";
const LINKS: &str = "Heuristics.Phishing.";
/// What libclamav adds to the names of signatures that are not its makers'.
const UNOFFICIAL: &str = ".UNOFFICIAL";

/// A signature's name as verdicts give it, hashed as it is in its definitions.
pub fn name_of(name: &str) -> u64 {
    hash(name.strip_suffix(UNOFFICIAL).unwrap_or(name).as_bytes())
}

fn hash(bytes: &[u8]) -> u64 {
    let mut hash = [0; 8];
    hash.copy_from_slice(&blake3::hash(bytes).as_bytes()[..8]);
    u64::from_le_bytes(hash)
}

/// Collects what is found in files.
#[derive(Debug)]
struct Found<'a> {
    sorter: &'a mut Sorter,
}

impl Found<'_> {
    fn add(&mut self, name: &[u8], definition: &[u8]) -> io::Result<()> {
        self.sorter.add(Signature {
            name: hash(name),
            definition: hash(definition),
        })
    }
}

/// Gives every signature of an engine's definitions to `sorter`.
///
/// # Errors
/// The first file that cannot be read.
pub fn read(part: &Part, sorter: &mut Sorter) -> io::Result<()> {
    let mut found = Found { sorter };
    let mut files: Vec<PathBuf> = std::fs::read_dir(&part.folder)?
        .map(|entry| Ok(entry?.path()))
        .collect::<io::Result<_>>()?;
    files.sort();
    for file in &files {
        let read = match part.engine {
            EngineKind::Clamav => clamav::read(file, &mut found),
            EngineKind::Yara => yara::read(file, &mut found),
            // An entry of a list names one content, which somebody has looked at.
            EngineKind::HashList => Ok(()),
        };
        read.map_err(|error| io::Error::other(format!("{}: {error}", file.display())))?;
    }
    Ok(())
}

fn extension(path: &Path) -> &str {
    let extension = path.extension().and_then(|extension| extension.to_str());
    extension.unwrap_or_default()
}
