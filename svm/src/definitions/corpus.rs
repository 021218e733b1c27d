//! What definitions are tried on before they are put in force.
//!
//! Owns the test content: EICAR, which must be found; a few contents that every guest
//! has in one form or another; and a bounded sample of real files, the guests' most
//! needed programs and libraries first, because a signature that matches one of those
//! takes every guest down at once. Does not own the judgement, which is
//! [`super::check`]'s.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use super::DefinitionsError;

/// Most files of a sample.
pub const MAX_FILES: usize = 64;
/// Most bytes of all files of a sample.
pub const MAX_BYTES: u64 = 32 << 20;
/// Larger files are left out of a sample, in bytes.
pub const MAX_FILE_BYTES: u64 = 4 << 20;
/// Most entries of the directories that are looked at.
const MAX_ENTRIES: usize = 20_000;
/// Deepest folder below a directory that is looked into.
const MAX_DEPTH: usize = 2;

/// Files that come first, by name: without them a guest does not even boot or log in.
const ESSENTIAL: [&str; 12] = [
    "libc.so.6",
    "ld-linux-x86-64.so.2",
    "ld-linux-aarch64.so.1",
    "bash",
    "dash",
    "ls",
    "cat",
    "mount",
    "login",
    "systemctl",
    "libcrypto.so.3",
    "perl",
];

/// The EICAR test file's 68 bytes, kept back to front: otherwise they would be found
/// in this program.
pub fn eicar() -> Vec<u8> {
    let reversed = br"*H+H$!ELIF-TSET-SURIVITNA-DRADNATS-RACIE$}7)CC7)^P(45XZP\4[PA@%P!O5X";
    let mut bytes = std::hint::black_box(reversed).to_vec();
    bytes.reverse();
    bytes
}

/// Clean contents that need no file.
pub fn built_in() -> Vec<(&'static str, Vec<u8>)> {
    let text = "The quick brown fox jumps over the lazy dog. 0123456789\n".repeat(64);
    let wide = text.encode_utf16().flat_map(u16::to_le_bytes).collect();
    vec![
        ("one space", b" ".to_vec()),
        ("a page of zeros", vec![0; 4096]),
        ("plain text", text.into_bytes()),
        ("UTF-16 text", wide),
        (
            "a shell script",
            b"#!/bin/sh\nset -eu\necho \"$1\"\n".to_vec(),
        ),
        (
            "a JSON document",
            br#"{"name": "value", "list": [1, 2, 3], "nothing": null}"#.to_vec(),
        ),
        (
            "an HTML page",
            b"<!DOCTYPE html><html><head><title>t</title></head><body><p>Hello</p></body></html>"
                .to_vec(),
        ),
        (
            "an empty zip archive",
            [b"PK\x05\x06".as_slice(), &[0; 18]].concat(),
        ),
        ("an empty tar archive", vec![0; 10_240]),
        ("an ELF header", elf_header()),
    ]
}

/// A program header's worth of ELF: a 64-bit file for x86-64 without sections.
fn elf_header() -> Vec<u8> {
    let mut header = b"\x7fELF\x02\x01\x01".to_vec();
    header.resize(16, 0);
    for half in [2_u16, 62] {
        header.extend(half.to_le_bytes());
    }
    header.extend(1_u32.to_le_bytes());
    for word in [0_u64, 64, 0] {
        header.extend(word.to_le_bytes());
    }
    header.extend(0_u32.to_le_bytes());
    for half in [64_u16, 56, 0, 64, 0, 0] {
        header.extend(half.to_le_bytes());
    }
    header.resize(4096, 0);
    header
}

/// The files of the directories that a check reads: the essential ones, and then
/// others spread over the rest, by name, within all bounds. Directories that are not
/// there hold nothing.
///
/// # Errors
/// [`DefinitionsError::Corpus`] naming a directory that cannot be read.
pub fn sample(directories: &[PathBuf]) -> Result<Vec<PathBuf>, DefinitionsError> {
    let mut found = Vec::new();
    let mut entries = 0;
    for directory in directories {
        walk(directory, 0, &mut entries, &mut found).map_err(|error| {
            let path = directory.clone();
            DefinitionsError::Corpus { path, error }
        })?;
    }
    found.sort();
    found.dedup();
    Ok(choose(found))
}

/// Within the bounds, the essential files and every so manyeth of the others.
fn choose(found: Vec<(PathBuf, u64)>) -> Vec<PathBuf> {
    let (mut first, others): (Vec<_>, Vec<_>) = found.into_iter().partition(|(path, _)| {
        path.file_name()
            .and_then(|name| name.to_str())
            .is_some_and(|name| ESSENTIAL.contains(&name))
    });
    let step = others.len().div_ceil(MAX_FILES).max(1);
    first.extend(others.into_iter().step_by(step));
    let mut bytes = 0_u64;
    first
        .into_iter()
        .filter(|(_, size)| {
            let fits = bytes + size <= MAX_BYTES;
            bytes += if fits { *size } else { 0 };
            fits
        })
        .map(|(path, _)| path)
        .take(MAX_FILES)
        .collect()
}

fn walk(
    folder: &Path,
    depth: usize,
    entries: &mut usize,
    found: &mut Vec<(PathBuf, u64)>,
) -> io::Result<()> {
    let listed = match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        // Below the directory that was named, what may not be read is left out.
        Err(_) if depth > 0 => return Ok(()),
        other => other?,
    };
    for entry in listed {
        let entry = entry?;
        *entries += 1;
        if *entries > MAX_ENTRIES {
            return Ok(());
        }
        // Links are not followed: what they lead to is found in its own place.
        let Ok(metadata) = entry.metadata() else {
            continue;
        };
        if metadata.is_dir() && depth < MAX_DEPTH {
            walk(&entry.path(), depth + 1, entries, found)?;
        } else if metadata.is_file() && (1..=MAX_FILE_BYTES).contains(&metadata.len()) {
            found.push((entry.path(), metadata.len()));
        }
    }
    Ok(())
}

/// A file of the sample; none if it cannot be read, which is no fault of definitions.
pub fn read(path: &Path) -> Option<Vec<u8>> {
    let mut bytes = Vec::new();
    let read =
        fs::File::open(path).and_then(|file| file.take(MAX_FILE_BYTES).read_to_end(&mut bytes));
    match read {
        Ok(_) => Some(bytes),
        Err(error) => {
            tracing::debug!(path = %path.display(), %error, "left out of the check");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sample_is_bounded_and_has_the_essential_files() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("a/b");
        fs::create_dir_all(deep.join("c/d")).unwrap();
        for n in 0..1000 {
            fs::write(dir.path().join(format!("f{n:04}")), "x").unwrap();
        }
        fs::write(deep.join("libc.so.6"), "y").unwrap();
        fs::write(deep.join("c/d/too-deep"), "z").unwrap();
        fs::write(dir.path().join("empty"), "").unwrap();
        std::os::unix::fs::symlink(dir.path(), dir.path().join("loop")).unwrap();
        let chosen = sample(&[dir.path().to_owned(), dir.path().to_owned()]).unwrap();
        assert_eq!(chosen.len(), MAX_FILES);
        assert_eq!(chosen[0], deep.join("libc.so.6"));
        assert_eq!(chosen, sample(&[dir.path().to_owned()]).unwrap());
        assert!(sample(&[dir.path().join("nothing")]).unwrap().is_empty());
    }

    #[test]
    fn the_bytes_of_a_sample_are_bounded() {
        let files = (0..20).map(|n| (PathBuf::from(format!("{n}")), MAX_FILE_BYTES));
        let chosen = choose(files.collect());
        assert_eq!(chosen.len() as u64, MAX_BYTES / MAX_FILE_BYTES);
    }

    #[test]
    fn eicar_has_its_length_and_a_header_its_own() {
        assert_eq!(eicar().len(), 68);
        assert!(eicar().starts_with(b"X5O!P%@AP"));
        assert_eq!(elf_header().len(), 4096);
    }
}
