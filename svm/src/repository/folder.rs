//! What a follower has on disk.
//!
//! ```text
//! repository/pinned.json         the first root that was ever trusted
//! repository/metadata.json       verified metadata, with the versions below which nothing goes
//! repository/files/SHA-256       files of definitions, whole and hashed
//! repository/files/SHA-256.part  one that is still coming
//! repository/generation-7/…      the wanted generation: links to its files
//! repository/current             a link to that folder
//! ```
//!
//! Files of the wanted generation and the one before it stay: what did not change does not
//! travel again, and a rollback needs nothing. All others are removed.

use std::collections::{BTreeMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use palisade_protocol::identity::write_atomic;
use palisade_repository::{FileInfo, Generation};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::verified::Verified;

/// Bytes that are hashed at a time.
const HASH_BYTES: usize = 256 * 1024;
/// What a generation's folder is called before its number.
const GENERATION: &str = "generation-";

/// Something on disk cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {source}", path = path.display())]
pub struct FolderError {
    /// What.
    pub path: PathBuf,
    /// Why.
    pub source: io::Error,
}

impl FolderError {
    /// Whether it is for want of room.
    pub fn is_full(&self) -> bool {
        matches!(
            self.source.kind(),
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
        )
    }
}

pub(super) fn at(path: &Path) -> impl FnOnce(io::Error) -> FolderError + use<> {
    let path = path.to_owned();
    move |source| FolderError { path, source }
}

/// What the last generations were, so that their files stay.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Kept {
    /// Hashes of the files of each, the latest first.
    generations: Vec<Vec<String>>,
}

/// Generations whose files stay: the wanted one, and the one before.
const KEPT_GENERATIONS: usize = 2;

/// A follower's folder.
#[derive(Debug, Clone)]
pub struct Folder {
    top: PathBuf,
}

impl Folder {
    /// The folder, made if it is not there.
    ///
    /// # Errors
    /// [`FolderError`].
    pub fn open(top: PathBuf) -> Result<Self, FolderError> {
        let files = top.join("files");
        fs::create_dir_all(&files).map_err(at(&files))?;
        Ok(Self { top })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.top
    }

    /// The link to the wanted generation.
    pub fn current(&self) -> PathBuf {
        self.top.join("current")
    }

    /// The number of the generation that a copy was made of, by its origin; none if it is
    /// of something else.
    pub fn number_of(&self, origin: &str) -> Option<u64> {
        let name = Path::new(origin).strip_prefix(&self.top).ok()?.to_str()?;
        name.strip_prefix(GENERATION)?.parse().ok()
    }

    /// The folder of the generation that is wanted now, if there is one.
    pub fn wanted(&self) -> Option<PathBuf> {
        let name = fs::read_link(self.current()).ok()?;
        let folder = self.top.join(name.file_name()?);
        folder.is_dir().then_some(folder)
    }

    /// The root that is trusted to begin with.
    ///
    /// # Errors
    /// [`FolderError`].
    pub fn pinned(&self) -> Result<Option<Vec<u8>>, FolderError> {
        let path = self.top.join("pinned.json");
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(at(&path)(error)),
        }
    }

    /// Trusts a root from here on.
    ///
    /// # Errors
    /// [`FolderError`].
    pub fn pin(&self, root: &[u8]) -> Result<(), FolderError> {
        write(&self.top.join("pinned.json"), root)
    }

    /// Metadata that was verified before.
    ///
    /// # Errors
    /// [`FolderError`]; a file that is damaged is one, since what is not to be gone below
    /// is in it.
    pub fn verified(&self) -> Result<Arc<Verified>, FolderError> {
        Verified::open(self.top.join("metadata.json"))
    }

    fn file(&self, file: &FileInfo) -> PathBuf {
        self.top.join("files").join(hex::encode(file.sha256))
    }

    fn coming(&self, file: &FileInfo) -> PathBuf {
        self.file(file).with_extension("part")
    }

    /// Whether a file is here.
    pub fn has(&self, file: &FileInfo) -> bool {
        fs::metadata(self.file(file)).is_ok_and(|found| found.len() == file.length)
    }

    /// How much of a file that is not here yet has come.
    pub fn come(&self, file: &FileInfo) -> u64 {
        let come = fs::metadata(self.coming(file)).map_or(0, |found| found.len());
        if come > file.length {
            let _ = fs::remove_file(self.coming(file));
            return 0;
        }
        come
    }

    /// Adds bytes to a file that is coming.
    ///
    /// # Errors
    /// [`FolderError`]; for want of room, what had come of the file is gone.
    pub fn add(&self, file: &FileInfo, bytes: &[u8]) -> Result<(), FolderError> {
        let path = self.coming(file);
        let written = File::options()
            .create(true)
            .append(true)
            .open(&path)
            .and_then(|mut file| file.write_all(bytes));
        written.map_err(|error| {
            let error = at(&path)(error);
            if error.is_full() {
                let _ = fs::remove_file(&path);
            }
            error
        })
    }

    /// A file has come as a whole: it is here if its bytes are those that were signed, and
    /// gone otherwise.
    ///
    /// # Errors
    /// [`FolderError`].
    pub fn finish(&self, file: &FileInfo) -> Result<bool, FolderError> {
        let path = self.coming(file);
        if file.length == 0 && !path.exists() {
            File::create(&path).map_err(at(&path))?;
        }
        if hash(&path).map_err(at(&path))? != file.sha256 {
            fs::remove_file(&path).map_err(at(&path))?;
            return Ok(false);
        }
        File::open(&path)
            .and_then(|file| file.sync_all())
            .map_err(at(&path))?;
        let place = self.file(file);
        fs::rename(&path, &place).map_err(at(&place))?;
        Ok(true)
    }

    /// Makes a generation whose files are here the wanted one. Whether it was another
    /// before.
    ///
    /// # Errors
    /// [`FolderError`]; the one before stays.
    pub fn want(&self, number: u64, generation: &Generation) -> Result<bool, FolderError> {
        let folder = self.top.join(format!("{GENERATION}{number}"));
        if self.wanted().as_ref() == Some(&folder) && is_made_of(&folder, &generation.files) {
            return Ok(false);
        }
        if folder.exists() {
            fs::remove_dir_all(&folder).map_err(at(&folder))?;
        }
        let new = self.top.join("new");
        if new.exists() {
            fs::remove_dir_all(&new).map_err(at(&new))?;
        }
        fs::create_dir(&new).map_err(at(&new))?;
        for (name, file) in &generation.files {
            let place = new.join(name);
            fs::hard_link(self.file(file), &place).map_err(at(&place))?;
        }
        fs::rename(&new, &folder).map_err(at(&folder))?;
        let link = self.top.join("current.new");
        let _ = fs::remove_file(&link);
        let target = format!("{GENERATION}{number}");
        symlink(target, &link).map_err(at(&link))?;
        fs::rename(&link, self.current()).map_err(at(&self.current()))?;
        File::open(&self.top)
            .and_then(|folder| folder.sync_all())
            .map_err(at(&self.top))?;
        self.note(generation)?;
        self.tidy(&folder);
        Ok(true)
    }

    fn note(&self, generation: &Generation) -> Result<(), FolderError> {
        let path = self.top.join("kept.json");
        let mut kept = self.kept();
        let mut files: Vec<String> = generation
            .files
            .values()
            .map(|file| hex::encode(file.sha256))
            .collect();
        files.sort();
        files.dedup();
        kept.generations.retain(|before| *before != files);
        kept.generations.insert(0, files);
        kept.generations.truncate(KEPT_GENERATIONS);
        let text = serde_json::to_vec(&kept).map_err(|error| at(&path)(error.into()))?;
        write(&path, &text)
    }

    fn kept(&self) -> Kept {
        // What is damaged costs files that travel again.
        fs::read(self.top.join("kept.json"))
            .ok()
            .and_then(|text| serde_json::from_slice(&text).ok())
            .unwrap_or_default()
    }

    /// Removes other generations' folders, and files that none of the kept ones has.
    fn tidy(&self, wanted: &Path) {
        let kept = self.kept();
        let kept: HashSet<&String> = kept.generations.iter().flatten().collect();
        for entry in list(&self.top) {
            let is_other = entry.file_name().to_string_lossy().starts_with(GENERATION)
                && entry.path() != wanted;
            if is_other && let Err(error) = fs::remove_dir_all(entry.path()) {
                tracing::warn!(%error, "a former generation's folder cannot be removed");
            }
        }
        for entry in list(&self.top.join("files")) {
            let name = entry.file_name().to_string_lossy().into_owned();
            if !kept.contains(&name)
                && let Err(error) = fs::remove_file(entry.path())
            {
                tracing::warn!(%error, "a file of former definitions cannot be removed");
            }
        }
    }

    /// Removes what came of files that are not of this generation any more.
    pub fn forget_others(&self, generation: &Generation) {
        let wanted: HashSet<PathBuf> = generation
            .files
            .values()
            .map(|file| self.coming(file))
            .collect();
        for entry in list(&self.top.join("files")) {
            let path = entry.path();
            if path.extension().is_some() && !wanted.contains(&path) {
                let _ = fs::remove_file(path);
            }
        }
    }
}

fn list(folder: &Path) -> impl Iterator<Item = fs::DirEntry> {
    fs::read_dir(folder).into_iter().flatten().flatten()
}

/// Whether a folder holds these files, by their names and lengths.
fn is_made_of(folder: &Path, files: &BTreeMap<String, FileInfo>) -> bool {
    let here = list(folder).count();
    let is_here = |(name, file): (&String, &FileInfo)| {
        fs::metadata(folder.join(name)).is_ok_and(|found| found.len() == file.length)
    };
    here == files.len() && files.iter().all(is_here)
}

fn hash(path: &Path) -> io::Result<[u8; 32]> {
    let mut file = File::open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; HASH_BYTES];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finalize().into()),
            read => hasher.update(&buffer[..read]),
        }
    }
}

pub(super) fn write(path: &Path, bytes: &[u8]) -> Result<(), FolderError> {
    write_atomic(path, bytes, 0o644).map_err(|error| at(path)(io::Error::other(error)))
}
