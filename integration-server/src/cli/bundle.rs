//! Files of definitions to be sent: of a directory, or within a tar file, which is not
//! unpacked.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context as _, bail};
use palisade_repository::contents::MAX_FILES;
use palisade_repository::{FileInfo, files, names};
use ring::digest::{Context, SHA256};

use crate::api::repository::NamedFile;

/// Bytes that are hashed at a time.
const HASH_BYTES: usize = 256 * 1024;
/// Most entries of a tar file that are looked at.
const MAX_ENTRIES: usize = 100_000;

/// Where a file's bytes are.
#[derive(Debug, Clone)]
struct Place {
    file: PathBuf,
    /// From which byte on.
    offset: u64,
    length: u64,
}

/// Files of definitions.
#[derive(Debug, Default)]
pub struct Bundle {
    files: BTreeMap<String, FileInfo>,
    places: BTreeMap<String, Place>,
}

impl Bundle {
    /// What is in a directory, or in a tar file.
    ///
    /// # Errors
    /// What is in the way, and what helps.
    pub fn open(from: &Path) -> anyhow::Result<Self> {
        let metadata = std::fs::metadata(from)
            .with_context(|| format!("{} cannot be read", from.display()))?;
        let mut bundle = Self::default();
        if metadata.is_dir() {
            bundle.read_directory(from)?;
        } else {
            bundle.read_tar(from).with_context(|| {
                format!(
                    "{} is neither a directory nor a plain tar file",
                    from.display()
                )
            })?;
        }
        if bundle.files.is_empty() {
            bail!(
                "{} holds no definitions: ClamAV databases (.cvd .cld .ndb .hdb …), YARA rules (.yar .yara) or hash lists are expected",
                from.display()
            );
        }
        Ok(bundle)
    }

    fn read_directory(&mut self, from: &Path) -> anyhow::Result<()> {
        for found in files::newest_containers(files::walk(from)?) {
            let place = Place {
                length: found.size,
                file: found.path,
                offset: 0,
            };
            self.add(found.stored, place)?;
        }
        Ok(())
    }

    fn read_tar(&mut self, from: &Path) -> anyhow::Result<()> {
        let mut archive = tar::Archive::new(File::open(from)?);
        let mut found = Vec::new();
        for entry in archive.entries_with_seek()?.take(MAX_ENTRIES) {
            let entry = entry?;
            let path = entry.path()?.into_owned();
            let hidden = |part: Component<'_>| match part {
                Component::Normal(name) => files::is_unfinished(&name.to_string_lossy()),
                _ => false,
            };
            if !entry.header().entry_type().is_file()
                || files::family(&path).is_none()
                || path.components().any(hidden)
            {
                continue;
            }
            // Only the name in a generation is made of it: no file is written by it.
            let below: PathBuf = path
                .components()
                .filter(|part| matches!(part, Component::Normal(_)))
                .collect();
            found.push((
                files::stored(&below),
                entry.raw_file_position(),
                entry.size(),
            ));
        }
        for (stored, offset, length) in found {
            let place = Place {
                file: from.to_owned(),
                offset,
                length,
            };
            self.add(stored, place)?;
        }
        Ok(())
    }

    fn add(&mut self, name: String, place: Place) -> anyhow::Result<()> {
        if !names::is_file_name(&name) {
            bail!("{:?} is no name for a file of definitions; rename it", name);
        }
        if self.files.len() >= MAX_FILES {
            bail!("there are more than {MAX_FILES} files, which is no set of definitions");
        }
        let sha256 = hash(&place).with_context(|| place.file.display().to_string())?;
        let info = FileInfo {
            sha256,
            length: place.length,
        };
        if self.files.insert(name.clone(), info).is_some() {
            bail!("two files would be called {name:?}; rename one");
        }
        self.places.insert(hex::encode(sha256), place);
        Ok(())
    }

    /// The files, by name.
    pub fn files(&self) -> &BTreeMap<String, FileInfo> {
        &self.files
    }

    /// The files, as the API has them.
    pub fn named(&self) -> Vec<NamedFile> {
        let named = |(name, file): (&String, &FileInfo)| NamedFile {
            name: name.clone(),
            sha256: hex::encode(file.sha256),
            length: file.length,
        };
        self.files.iter().map(named).collect()
    }

    fn place(&self, sha256: &str) -> anyhow::Result<&Place> {
        self.places
            .get(sha256)
            .context("the server asks for a file that was not offered to it")
    }

    /// A file's length.
    ///
    /// # Errors
    /// It is none of these.
    pub fn length(&self, sha256: &str) -> anyhow::Result<u64> {
        self.place(sha256).map(|place| place.length)
    }

    /// A part of a file, from this byte on.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn part(&self, sha256: &str, from: u64, most: usize) -> anyhow::Result<Vec<u8>> {
        let place = self.place(sha256)?;
        let left = place.length.saturating_sub(from);
        let length = usize::try_from(left).unwrap_or(usize::MAX).min(most);
        let mut bytes = vec![0; length];
        let read = File::open(&place.file).and_then(|mut file| {
            file.seek(SeekFrom::Start(place.offset.saturating_add(from)))?;
            file.read_exact(&mut bytes)
        });
        read.with_context(|| {
            format!(
                "{} has changed since it was looked at; try again",
                place.file.display()
            )
        })?;
        Ok(bytes)
    }
}

fn hash(place: &Place) -> std::io::Result<[u8; 32]> {
    let mut file = File::open(&place.file)?;
    file.seek(SeekFrom::Start(place.offset))?;
    let mut file = file.take(place.length);
    let mut context = Context::new(&SHA256);
    let mut buffer = vec![0; HASH_BYTES];
    loop {
        match file.read(&mut buffer)? {
            0 => break,
            read => context.update(&buffer[..read]),
        }
    }
    let mut hash = [0; 32];
    for (to, from) in hash.iter_mut().zip(context.finish().as_ref()) {
        *to = *from;
    }
    Ok(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tar_file_is_the_directory_that_it_was_made_of() {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path().join("source");
        std::fs::create_dir_all(source.join("sub")).unwrap();
        for (name, text) in [
            ("a.ndb", "first"),
            ("sub/b.yar", "second, and longer"),
            ("README.md", "no definitions"),
            (".hidden.ndb", "not yet"),
        ] {
            std::fs::write(source.join(name), text).unwrap();
        }
        let tarred = dir.path().join("bundle.tar");
        let mut builder = tar::Builder::new(File::create(&tarred).unwrap());
        builder.append_dir_all(".", &source).unwrap();
        builder.finish().unwrap();
        let (one, two) = (
            Bundle::open(&source).unwrap(),
            Bundle::open(&tarred).unwrap(),
        );
        assert_eq!(one.files(), two.files());
        let names: Vec<&str> = one.files().keys().map(String::as_str).collect();
        assert_eq!(names, ["a.ndb", "sub__b.yar"]);
        for bundle in [one, two] {
            let file = &bundle.named()[1];
            let part = bundle.part(&file.sha256, 3, 5).unwrap();
            assert_eq!(part, b"ond, ");
            let end = bundle.part(&file.sha256, file.length - 1, 5).unwrap();
            assert_eq!(end, b"r");
        }
    }

    #[test]
    fn what_is_no_bundle_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let said = |path: &Path| format!("{:#}", Bundle::open(path).unwrap_err());
        assert!(said(dir.path()).contains("holds no definitions"));
        let file = dir.path().join("bundle.tar");
        std::fs::write(&file, vec![7; 2048]).unwrap();
        assert!(said(&file).contains("neither a directory nor a plain tar file"));
        assert!(said(&dir.path().join("nothing")).contains("cannot be read"));
    }
}
