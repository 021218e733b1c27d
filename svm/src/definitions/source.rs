//! The source directory: what is there, and a faithful copy of it.
//!
//! Owns the listing, and the copy with its hash. Does not own the walk and what is a file
//! of definitions, which is [`palisade_repository::files`]'s, nor generations:
//! [`super::store`] says where a copy goes and what becomes of it.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use palisade_repository::files::{self, Found, WalkError};

use super::DefinitionsError;
use crate::engine::EngineKind;

/// Bytes that are copied at a time.
const COPY_BYTES: usize = 256 * 1024;
/// Mode of a generation's files: they never change.
const READ_ONLY: u32 = 0o444;

/// One file of definitions in the source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceFile {
    /// Whose.
    pub engine: EngineKind,
    found: Found,
}

impl std::ops::Deref for SourceFile {
    type Target = Found;

    fn deref(&self) -> &Found {
        &self.found
    }
}

/// All that the source holds, in the order of the names in a generation. Two equal
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
        let folders = std::iter::once(source).chain(extra.iter().map(PathBuf::as_path));
        let mut each = files::walk_each(folders).map_err(walked)?.into_iter();
        let mut found = each.next().unwrap_or_default();
        for (index, beside) in each.enumerate() {
            found.extend(beside.into_iter().map(|file| Found {
                // Equal names in two folders are two files.
                stored: format!("extra{index}__{}", file.stored),
                ..file
            }));
        }
        let found = files::newest_containers(found);
        let mut files: Vec<SourceFile> = found
            .into_iter()
            .map(|found| SourceFile {
                engine: found.family.into(),
                found,
            })
            .collect();
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

    /// Bytes of all files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size).sum()
    }

    /// Whether something changed within the last `moment`, so that somebody may still
    /// be writing.
    pub fn is_fresh(&self, now: SystemTime, moment: Duration) -> bool {
        files::is_fresh(self.files.iter().map(|file| &file.found), now, moment)
    }

    /// Short for all of it: equal for equal listings, across restarts.
    pub fn stamp(&self) -> [u8; 32] {
        let mut stamp = blake3::Hasher::new();
        for file in &self.files {
            let path = file.path.as_os_str().as_encoded_bytes();
            stamp.update(&(path.len() as u64).to_le_bytes());
            stamp.update(path);
            for number in [file.size, file.inode.0, file.inode.1] {
                stamp.update(&number.to_le_bytes());
            }
            for (seconds, nanoseconds) in file.times {
                stamp.update(&seconds.to_le_bytes());
                stamp.update(&nanoseconds.to_le_bytes());
            }
        }
        stamp.finalize().into()
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

fn walked(error: WalkError) -> DefinitionsError {
    match error {
        WalkError::Read { path, error } => DefinitionsError::Source { path, error },
        WalkError::TooMany { directory, max } => DefinitionsError::TooMany {
            source_dir: directory,
            max,
        },
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
    fs::create_dir_all(folder).map_err(stored(folder))?;
    let mut fingerprint = Fingerprint::default();
    let mut taken = HashSet::new();
    for file in listing.files.iter().filter(|file| file.engine == engine) {
        if !taken.insert(&file.stored) {
            return Err(DefinitionsError::SameName {
                path: file.path.clone(),
            });
        }
        let content = copy_file(&file.path, &folder.join(&file.stored), file.size)?;
        fingerprint.add(&file.stored, &content);
    }
    Ok(fingerprint.finish())
}

/// A fingerprint in the making: over names and contents, in the order of the names.
#[derive(Debug, Default)]
pub struct Fingerprint(blake3::Hasher);

impl Fingerprint {
    /// The next file.
    pub fn add(&mut self, name: &str, content: &blake3::Hash) {
        self.0.update(&(name.len() as u64).to_le_bytes());
        self.0.update(name.as_bytes());
        self.0.update(content.as_bytes());
    }

    /// Over all that was added.
    pub fn finish(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        self.0.finalize_xof().fill(&mut bytes);
        bytes
    }
}

fn read(path: &Path) -> impl Fn(io::Error) -> DefinitionsError {
    let path = path.to_owned();
    move |error| DefinitionsError::Source {
        path: path.clone(),
        error,
    }
}

fn stored(path: &Path) -> impl Fn(io::Error) -> DefinitionsError {
    let path = path.to_owned();
    move |error| DefinitionsError::Store {
        path: path.clone(),
        error,
    }
}

/// Copies a file that should have `size` bytes; another length means that somebody
/// writes to it. The error names the side that failed.
fn copy_file(from: &Path, to: &Path, size: u64) -> Result<blake3::Hash, DefinitionsError> {
    let (read, stored) = (read(from), stored(to));
    let mut source = File::open(from)
        .map_err(&read)?
        .take(size.saturating_add(1));
    let mut target = File::options()
        .write(true)
        .create_new(true)
        .mode(READ_ONLY)
        .open(to)
        .map_err(&stored)?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; COPY_BYTES];
    let mut copied: u64 = 0;
    loop {
        let count = source.read(&mut buffer).map_err(&read)?;
        if count == 0 {
            break;
        }
        copied += count as u64;
        hasher.update(&buffer[..count]);
        target.write_all(&buffer[..count]).map_err(&stored)?;
    }
    if copied != size {
        return Err(read(io::Error::other("it changed while it was copied")));
    }
    target.sync_all().map_err(&stored)?;
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
    fn an_update_that_goes_on_is_not_looked_at() {
        let dir = tempfile::tempdir().unwrap();
        let source = dir.path();
        let container = |name: &str, version: u64| {
            fs::write(source.join(name), format!("ClamAV-VDB:x:{version}:y")).unwrap();
        };
        for folder in ["tmp.0123456789", "clamav-0123.tmp", ".git"] {
            fs::create_dir(source.join(folder)).unwrap();
            fs::write(source.join(folder).join("daily.ndb"), "half").unwrap();
        }
        for name in [".rules.yar", "clamav-0123.tmp-daily.cld", "x.yar.tmp"] {
            fs::write(source.join(name), "half").unwrap();
        }
        for name in ["freshclam.dat", "mirrors.dat", "daily.lock", ".dbLock"] {
            fs::write(source.join(name), "no definitions").unwrap();
        }
        container("daily.cvd", 7);
        container("daily.cld", 8);
        container("main.cvd", 62);
        container("main.cld", 61);
        container("bytecode.cvd", 3);
        container("bytecode.cld", 3);
        let listing = Listing::of(source, &[], 1000).unwrap();
        let stored: Vec<&str> = names(&listing).iter().map(|(_, name)| *name).collect();
        assert_eq!(stored, ["bytecode.cld", "daily.cld", "main.cvd"]);
    }

    #[test]
    fn a_stamp_changes_with_the_listing_and_fresh_is_a_moment() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a.ndb");
        fs::write(&file, "x").unwrap();
        let listing = || Listing::of(dir.path(), &[], 1000).unwrap();
        let first = listing();
        assert_eq!(first.stamp(), listing().stamp());
        // Replaced by a file of the same length and times.
        let new = dir.path().join("new");
        fs::write(&new, "y").unwrap();
        let times =
            fs::FileTimes::new().set_modified(fs::metadata(&file).unwrap().modified().unwrap());
        File::options()
            .write(true)
            .open(&new)
            .unwrap()
            .set_times(times)
            .unwrap();
        fs::rename(&new, &file).unwrap();
        assert_ne!(first.stamp(), listing().stamp());
        let moment = Duration::from_secs(2);
        assert!(listing().is_fresh(SystemTime::now(), moment));
        let later = SystemTime::now() + Duration::from_secs(60);
        assert!(!listing().is_fresh(later, moment));
        assert!(!listing().is_fresh(SystemTime::UNIX_EPOCH, moment));
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
