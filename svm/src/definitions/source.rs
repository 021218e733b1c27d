//! The source directory: what is there, and a faithful copy of it.
//!
//! Owns the walk (bounded, through no loop, stat only), the classification by name,
//! and the copy with its hash. Does not own generations: [`super::store`] says where a
//! copy goes and what becomes of it.
//!
//! A source may be a directory that others write to while it is looked at, such as
//! freshclam's `/var/lib/clamav`. What is not definitions yet is left out by its name
//! ([`is_unfinished`]): hidden files, freshclam's `tmp.…` folders with the parts of an
//! update, its downloads. Locks, `freshclam.dat` and `mirrors.dat` have no name of
//! definitions. For the moment in which `daily.cvd` and the `daily.cld` that replaces
//! it are both there, the newer one counts.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::DefinitionsError;
use crate::engine::EngineKind;

/// Deepest folder below the source that is looked into.
const MAX_DEPTH: usize = 16;
/// Most entries that are looked at.
const MAX_ENTRIES: usize = 100_000;
/// Bytes that are copied at a time.
const COPY_BYTES: usize = 256 * 1024;
/// Mode of a generation's files: they never change.
const READ_ONLY: u32 = 0o444;

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
    pub size: u64,
    /// When its bytes, and when its inode, changed last: seconds since 1970, and
    /// nanoseconds.
    times: [(i64, i64); 2],
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
        let mut files = newest_containers(walk.files);
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
        let Ok(now) = now.duration_since(SystemTime::UNIX_EPOCH) else {
            return false;
        };
        self.files.iter().any(|file| {
            let changed = u64::try_from(file.times[1].0).unwrap_or(0);
            // A change from the future is by another clock, and is not waited for.
            (now.saturating_sub(moment).as_secs()..=now.as_secs()).contains(&changed)
        })
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
            let entry = entry.map_err(at(folder))?;
            let path = entry.path();
            self.entries += 1;
            if self.entries > MAX_ENTRIES {
                return Err(DefinitionsError::TooMany {
                    source_dir: source.to_owned(),
                    max: MAX_ENTRIES,
                });
            }
            if is_unfinished(&entry.file_name().to_string_lossy()) {
                continue;
            }
            let metadata = match fs::metadata(&path) {
                Ok(metadata) => metadata,
                // Replaced or removed by an update that is going on.
                Err(error)
                    if error.kind() == io::ErrorKind::NotFound
                        && fs::symlink_metadata(&path).is_err() =>
                {
                    continue;
                }
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
                    times: [
                        (metadata.mtime(), metadata.mtime_nsec()),
                        (metadata.ctime(), metadata.ctime_nsec()),
                    ],
                    inode: (metadata.dev(), metadata.ino()),
                    path,
                });
            }
        }
        Ok(())
    }
}

/// Whether a file or folder of this name is not, or not yet, part of the definitions.
fn is_unfinished(name: &str) -> bool {
    name.starts_with('.')
        || name.starts_with("tmp.")
        || name.ends_with(".tmp")
        || (name.starts_with("clamav-") && name.contains(".tmp"))
}

/// Kinds of file that pack a whole database, of which one version is enough.
const CONTAINERS: [&str; 3] = ["cvd", "cld", "cud"];
/// Bytes of a container's header.
const HEADER_BYTES: u64 = 512;

/// Leaves out containers of which a newer version is there: an update writes
/// `daily.cld` before it removes `daily.cvd`.
fn newest_containers(files: Vec<SourceFile>) -> Vec<SourceFile> {
    let database = |file: &SourceFile| {
        let (stem, kind) = file.stored.rsplit_once('.')?;
        CONTAINERS
            .contains(&kind)
            .then(|| (stem.to_owned(), kind == "cld"))
    };
    let mut names: HashMap<String, Vec<(usize, bool)>> = HashMap::new();
    for (index, file) in files.iter().enumerate() {
        if let Some((stem, is_cld)) = database(file) {
            names.entry(stem).or_default().push((index, is_cld));
        }
    }
    let mut superseded = HashSet::new();
    for twins in names.values().filter(|twins| twins.len() > 1) {
        // Of two with one version, the .cld: it is what an update wrote last.
        let newest = twins
            .iter()
            .max_by_key(|(index, is_cld)| (version(&files[*index].path), *is_cld));
        let newest = newest.map(|(index, _)| *index);
        superseded.extend(
            twins
                .iter()
                .map(|(index, _)| *index)
                .filter(|index| Some(*index) != newest),
        );
    }
    let mut index = 0..;
    let mut files = files;
    files.retain(|_| {
        index
            .next()
            .is_none_or(|index| !superseded.contains(&index))
    });
    files
}

/// The version in a container's header (`ClamAV-VDB:build time:version:…`); 0 where
/// there is none.
fn version(path: &Path) -> u64 {
    let mut header = Vec::new();
    let read = File::open(path).and_then(|file| file.take(HEADER_BYTES).read_to_end(&mut header));
    match read {
        Ok(_) => String::from_utf8_lossy(&header)
            .split(':')
            .nth(2)
            .and_then(|version| version.parse().ok())
            .unwrap_or(0),
        Err(_) => 0,
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
