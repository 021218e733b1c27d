//! The source directory: what is there, and a faithful copy of it.
//!
//! Owns the walk (bounded, through no loop), the classification by name, and the
//! copy with its hash. Does not own generations: [`super::store`] says where a copy
//! goes and what becomes of it.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::DefinitionsError;
use crate::engine::EngineKind;

/// Deepest folder below the source that is looked into.
const MAX_DEPTH: usize = 16;
/// Most entries that are looked at.
const MAX_ENTRIES: usize = 100_000;
/// Bytes that are copied at a time.
const COPY_BYTES: usize = 256 * 1024;

/// One file of definitions in the source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceFile {
    /// Whose.
    pub engine: EngineKind,
    /// Where it is.
    pub path: PathBuf,
    /// Its name in a generation: the path below the source in one piece, because
    /// engines read one folder.
    pub stored: String,
    /// Its length in bytes.
    size: u64,
    modified: Option<SystemTime>,
    inode: (u64, u64),
}

/// All that the source holds, in the order of [`SourceFile::stored`]. Two equal
/// listings are the same definitions, unless somebody sets clocks back.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Listing {
    /// The files.
    pub files: Vec<SourceFile>,
}

impl Listing {
    /// Looks at the source, and at the extra directories beside it.
    ///
    /// # Errors
    /// [`DefinitionsError`] naming the directory or file that cannot be read, or
    /// the bound that is broken.
    pub fn of(source: &Path, extra: &[PathBuf], max_bytes: u64) -> Result<Self, DefinitionsError> {
        let mut walk = Walk {
            files: Vec::new(),
            seen: HashSet::new(),
            entries: 0,
        };
        walk.folder(source, source, 0)?;
        for (index, folder) in extra.iter().enumerate() {
            let before = walk.files.len();
            walk.folder(folder, folder, 0)?;
            for file in &mut walk.files[before..] {
                // Equal names in two folders are two files.
                file.stored = format!("extra{index}__{}", file.stored);
            }
        }
        let mut files = walk.files;
        files.sort_by(|a, b| (a.engine, &a.stored).cmp(&(b.engine, &b.stored)));
        let total = files
            .iter()
            .fold(0_u64, |sum, file| sum.saturating_add(file.size));
        if total > max_bytes {
            return Err(DefinitionsError::TooLarge {
                source_dir: source.to_owned(),
                bytes: total,
                max: max_bytes,
            });
        }
        Ok(Self { files })
    }

    /// Whether an engine has anything to find.
    pub fn serves(&self, engine: EngineKind) -> bool {
        self.files
            .iter()
            .any(|file| file.engine == engine && engine.detects(&file.path))
    }

    /// The engines that run, in the order in which a content passes them: those that
    /// have something to find, and what unpacks for those that take members.
    pub fn engines(&self) -> impl Iterator<Item = EngineKind> + '_ {
        let unpack = EngineKind::ALL
            .into_iter()
            .any(|engine| engine.takes_members() && self.serves(engine));
        EngineKind::ALL
            .into_iter()
            .filter(move |engine| self.serves(*engine) || (unpack && engine.unpacks()))
    }

    /// Whether any engine has anything to find.
    pub fn is_usable(&self) -> bool {
        // Lists alone look at nothing: what they do not name would pass as clean.
        EngineKind::ALL
            .into_iter()
            .any(|engine| engine.program().is_some() && self.serves(engine))
    }
}

struct Walk {
    files: Vec<SourceFile>,
    seen: HashSet<(u64, u64)>,
    entries: usize,
}

impl Walk {
    fn folder(
        &mut self,
        source: &Path,
        folder: &Path,
        depth: usize,
    ) -> Result<(), DefinitionsError> {
        let at = |path: &Path| {
            let path = path.to_owned();
            move |error| DefinitionsError::Source { path, error }
        };
        // Following links, so that a linked folder counts once and a loop ends.
        let metadata = fs::metadata(folder).map_err(at(folder))?;
        if !self.seen.insert((metadata.dev(), metadata.ino())) {
            return Ok(());
        }
        for entry in fs::read_dir(folder).map_err(at(folder))? {
            let path = entry.map_err(at(folder))?.path();
            self.entries += 1;
            if self.entries > MAX_ENTRIES {
                return Err(DefinitionsError::TooMany {
                    source_dir: source.to_owned(),
                    max: MAX_ENTRIES,
                });
            }
            let metadata = match fs::metadata(&path) {
                Ok(metadata) => metadata,
                // Gone since it was listed, or a link to nowhere, or to itself.
                Err(error) if EngineKind::of_file(&path).is_none() => {
                    tracing::debug!(path = %path.display(), %error, "not looked at");
                    continue;
                }
                Err(error) => return Err(at(&path)(error)),
            };
            if metadata.is_dir() {
                if depth < MAX_DEPTH {
                    self.folder(source, &path, depth + 1)?;
                }
            } else if metadata.is_file()
                && let Some(engine) = EngineKind::of_file(&path)
            {
                let below = path.strip_prefix(source).unwrap_or(&path);
                self.files.push(SourceFile {
                    engine,
                    stored: below.to_string_lossy().replace('/', "__"),
                    size: metadata.len(),
                    modified: metadata.modified().ok(),
                    inode: (metadata.dev(), metadata.ino()),
                    path,
                });
            }
        }
        Ok(())
    }
}

/// Copies the files of `engine` into `folder` and gives the fingerprint over their
/// names and bytes.
///
/// # Errors
/// [`DefinitionsError`] naming the file.
pub fn copy(
    listing: &Listing,
    engine: EngineKind,
    folder: &Path,
) -> Result<[u8; 16], DefinitionsError> {
    let at = |path: &Path| {
        let path = path.to_owned();
        move |error| DefinitionsError::Source { path, error }
    };
    fs::create_dir_all(folder).map_err(at(folder))?;
    let mut fingerprint = blake3::Hasher::new();
    let mut taken = HashSet::new();
    for file in listing.files.iter().filter(|file| file.engine == engine) {
        if !taken.insert(&file.stored) {
            return Err(DefinitionsError::SameName {
                path: file.path.clone(),
            });
        }
        let content =
            copy_file(&file.path, &folder.join(&file.stored), file.size).map_err(at(&file.path))?;
        fingerprint.update(&(file.stored.len() as u64).to_le_bytes());
        fingerprint.update(file.stored.as_bytes());
        fingerprint.update(content.as_bytes());
    }
    let mut bytes = [0; 16];
    fingerprint.finalize_xof().fill(&mut bytes);
    Ok(bytes)
}

/// Copies a file that should have `size` bytes; another length means that somebody
/// writes to it.
fn copy_file(from: &Path, to: &Path, size: u64) -> io::Result<blake3::Hash> {
    let mut source = File::open(from)?.take(size.saturating_add(1));
    let mut target = File::options().write(true).create_new(true).open(to)?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; COPY_BYTES];
    let mut copied: u64 = 0;
    loop {
        let count = source.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        copied += count as u64;
        hasher.update(&buffer[..count]);
        target.write_all(&buffer[..count])?;
    }
    if copied != size {
        return Err(io::Error::other("it changed while it was copied"));
    }
    target.sync_all()?;
    Ok(hasher.finalize())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(listing: &Listing) -> Vec<(EngineKind, &str)> {
        listing
            .files
            .iter()
            .map(|file| (file.engine, file.stored.as_str()))
            .collect()
    }

    #[test]
    fn loops_end_and_other_files_are_left() {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path();
        fs::create_dir(source.join("sub")).unwrap();
        fs::write(source.join("a.ndb"), "x").unwrap();
        fs::write(source.join("sub/b.yar"), "y").unwrap();
        fs::write(source.join("README"), "z").unwrap();
        std::os::unix::fs::symlink(source, source.join("sub/loop")).unwrap();
        std::os::unix::fs::symlink("self", source.join("self")).unwrap();
        let listing = Listing::of(source, &[], 100).unwrap();
        assert_eq!(
            names(&listing),
            [
                (EngineKind::Clamav, "a.ndb"),
                (EngineKind::Yara, "sub__b.yar")
            ]
        );
    }

    #[test]
    fn size_is_bounded_and_emptiness_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("local.ign2"), "x").unwrap();
        assert!(!Listing::of(dir.path(), &[], 100).unwrap().is_usable());
        fs::write(dir.path().join("a.ndb"), vec![0; 101]).unwrap();
        assert!(matches!(
            Listing::of(dir.path(), &[], 100),
            Err(DefinitionsError::TooLarge { bytes: 102, .. })
        ));
    }

    #[test]
    fn a_fingerprint_is_over_names_and_bytes() {
        let fingerprint = |files: &[(&str, &str)]| {
            let dir = tempfile::tempdir().unwrap();
            let source = dir.path().join("source");
            fs::create_dir(&source).unwrap();
            for (name, text) in files {
                fs::write(source.join(name), text).unwrap();
            }
            let listing = Listing::of(&source, &[], 100).unwrap();
            copy(&listing, EngineKind::Yara, &dir.path().join("copy")).unwrap()
        };
        let one = fingerprint(&[("a.yar", "x"), ("b.yar", "y")]);
        assert_eq!(
            one,
            fingerprint(&[("b.yar", "y"), ("a.yar", "x"), ("c.ndb", "z")])
        );
        assert_ne!(one, fingerprint(&[("a.yar", "y"), ("b.yar", "x")]));
        assert_ne!(one, fingerprint(&[("a.yar", "x"), ("c.yar", "y")]));
    }
}
