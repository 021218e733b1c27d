//! What is a file of definitions, and a walk through a directory of them.
//!
//! Owns the classification by name, and the walk: bounded, through no loop, stat only.
//! Does not own what becomes of what is found.
//!
//! A directory may be one that others write to while it is looked at, such as
//! freshclam's `/var/lib/clamav`. What is not definitions yet is left out by its name
//! ([`is_unfinished`]): hidden files, freshclam's `tmp.…` folders with the parts of an
//! update, its downloads. Locks, `freshclam.dat` and `mirrors.dat` have no name of
//! definitions. For the moment in which `daily.cvd` and the `daily.cld` that replaces
//! it are both there, the newer one counts ([`newest_containers`]).

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// Deepest folder below the directory that is looked into.
const MAX_DEPTH: usize = 16;
/// Most entries that are looked at.
const MAX_ENTRIES: usize = 100_000;

/// Whose definitions a file holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Family {
    /// A list of hashes that are allowed or denied.
    HashList,
    /// libclamav's.
    Clamav,
    /// Rules in YARA's language.
    Yara,
}

/// File name extensions that libclamav's program loads (rules in YARA's language
/// are YARA-X's).
const CLAMAV_EXTENSIONS: [&str; 33] = [
    "cvd", "cld", "cud", "hdb", "hsb", "hdu", "hsu", "mdb", "msb", "mdu", "msu", "ndb", "ndu",
    "ldb", "ldu", "sdb", "zmd", "rmd", "idb", "cdb", "fp", "sfp", "ign", "ign2", "ftm", "cbc",
    "crb", "pdb", "gdb", "wdb", "cat", "cfg", "pwdb",
];
const YARA_EXTENSIONS: [&str; 2] = ["yar", "yara"];
/// What a list of hashes says in its name: `site.allow.sha256`, and not `main.cvd.sha256`.
const LISTS: [&str; 4] = [".allow.sha256", ".deny.sha256", ".allow.md5", ".deny.md5"];

/// Whose definitions a file holds, by its name; none if it holds no definitions.
pub fn family(path: &Path) -> Option<Family> {
    let name = path.file_name()?.to_str()?;
    // Something stands before what makes it a list, or a dot and nothing else would.
    if LISTS.iter().any(|list| name.ends_with(list)) {
        return Some(Family::HashList);
    }
    let extension = path.extension()?.to_str()?;
    if CLAMAV_EXTENSIONS.contains(&extension) {
        Some(Family::Clamav)
    } else if YARA_EXTENSIONS.contains(&extension) {
        Some(Family::Yara)
    } else {
        None
    }
}

/// Whether a file or folder of this name is not, or not yet, part of the definitions.
pub fn is_unfinished(name: &str) -> bool {
    name.starts_with('.')
        || name.starts_with("tmp.")
        || name.ends_with(".tmp")
        || (name.starts_with("clamav-") && name.contains(".tmp"))
}

/// A file of definitions in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Whose.
    pub family: Family,
    /// Where it is.
    pub path: PathBuf,
    /// Its name in a generation: the path below the directory in one piece, because
    /// engines read one folder.
    pub stored: String,
    /// Its length in bytes.
    pub size: u64,
    /// When its bytes, and when its inode, changed last: seconds since 1970, and
    /// nanoseconds.
    pub times: [(i64, i64); 2],
    /// Its device and inode.
    pub inode: (u64, u64),
}

/// Why a directory cannot be walked through.
#[derive(Debug, thiserror::Error)]
pub enum WalkError {
    /// Something in it cannot be read.
    #[error("{path}: {error}; check who may read it", path = path.display())]
    Read {
        /// What.
        path: PathBuf,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// It has more entries than are looked at.
    #[error("{directory} has more than {max} entries; this is no directory of definitions", directory = directory.display())]
    TooMany {
        /// Which.
        directory: PathBuf,
        /// The bound.
        max: usize,
    },
}

/// The files of definitions in a directory and below it, in no order.
///
/// # Errors
/// [`WalkError`].
pub fn walk(directory: &Path) -> Result<Vec<Found>, WalkError> {
    walk_each([directory]).map(|found| found.into_iter().flatten().collect())
}

/// The same of several directories; what is in two of them is found in the first.
///
/// # Errors
/// [`WalkError`].
pub fn walk_each<'a>(
    directories: impl IntoIterator<Item = &'a Path>,
) -> Result<Vec<Vec<Found>>, WalkError> {
    let mut walk = Walk {
        files: Vec::new(),
        seen: HashSet::new(),
        entries: 0,
    };
    directories
        .into_iter()
        .map(|directory| {
            walk.folder(directory, directory, 0)?;
            Ok(std::mem::take(&mut walk.files))
        })
        .collect()
}

struct Walk {
    files: Vec<Found>,
    seen: HashSet<(u64, u64)>,
    entries: usize,
}

impl Walk {
    fn folder(&mut self, top: &Path, folder: &Path, depth: usize) -> Result<(), WalkError> {
        let at = |path: &Path| {
            let path = path.to_owned();
            move |error| WalkError::Read { path, error }
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
                return Err(WalkError::TooMany {
                    directory: top.to_owned(),
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
                Err(error) if family(&path).is_none() => {
                    tracing::debug!(path = %path.display(), %error, "not looked at");
                    continue;
                }
                Err(error) => return Err(at(&path)(error)),
            };
            if metadata.is_dir() {
                if depth < MAX_DEPTH {
                    self.folder(top, &path, depth + 1)?;
                }
            } else if metadata.is_file()
                && let Some(family) = family(&path)
            {
                let below = path.strip_prefix(top).unwrap_or(&path);
                self.files.push(Found {
                    family,
                    stored: stored(below),
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

/// A path below a directory in one piece.
pub fn stored(below: &Path) -> String {
    below.to_string_lossy().replace('/', "__")
}

/// Whether something changed within the last `moment`, so that somebody may still be
/// writing.
pub fn is_fresh<'a>(
    files: impl IntoIterator<Item = &'a Found>,
    now: SystemTime,
    moment: Duration,
) -> bool {
    let Ok(now) = now.duration_since(SystemTime::UNIX_EPOCH) else {
        return false;
    };
    files.into_iter().any(|file| {
        let changed = u64::try_from(file.times[1].0).unwrap_or(0);
        // A change from the future is by another clock, and is not waited for.
        (now.saturating_sub(moment).as_secs()..=now.as_secs()).contains(&changed)
    })
}

/// Kinds of file that pack a whole database, of which one version is enough.
const CONTAINERS: [&str; 3] = ["cvd", "cld", "cud"];
/// Bytes of a container's header.
const HEADER_BYTES: u64 = 512;

/// Leaves out containers of which a newer version is there: an update writes
/// `daily.cld` before it removes `daily.cvd`.
pub fn newest_containers(mut files: Vec<Found>) -> Vec<Found> {
    let database = |file: &Found| {
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
