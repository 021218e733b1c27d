//! The quarantine's files: what is where, who may touch it, and how much fits.
//!
//! ```text
//!  STATE/quarantine.key          32 bytes
//!  STATE/quarantine/lock         held by whoever reads or changes anything
//!                  /items/ID.content, ID.record     sealed; the record is there last
//!                  /moves/ID.json                   what is being moved just now
//!                  /hold/ID                         a file between its place and here
//! ```
//!
//! Owns these folders and the bounds. Does not own how a file comes here
//! ([`super::take`]) or leaves ([`super::restore`]), nor what is done about a move that
//! was cut short ([`super::sweep`]), though that is done whenever the lock is taken: who
//! has it finds no half-done thing.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, BufReader, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use palisade_protocol::content::{ContentId, FRAGMENT_BYTES, OutlineBuilder};
use palisade_protocol::identity::write_atomic;
use rustix::fs::{FlockOperation, flock};
use uuid::Uuid;

use super::key::Key;
use super::policy::Kept;
use super::record::{Record, VERSION};
use super::seal::Sealer;
use super::sweep;

/// How long the lock is waited for.
const LOCK_WAIT: Duration = Duration::from_secs(30);
/// Between looks at it.
const LOCK_LOOK: Duration = Duration::from_millis(20);
/// Bytes of a sealed record, at the most.
const MAX_RECORD_BYTES: u64 = 4 << 20;
/// Files that settings may allow.
pub const MOST_FILES: usize = 65_536;
/// Files and folders of the agent here are its own.
const FOLDER_MODE: u32 = 0o700;
const FILE_MODE: u32 = 0o600;

/// How much may be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes, as they lie on the disk.
    pub bytes: u64,
    /// Files.
    pub files: usize,
}

/// How much is there.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Usage {
    /// Files.
    pub files: usize,
    /// Bytes, as they lie on the disk.
    pub bytes: u64,
}

/// The quarantine of an agent. Clones are the same.
#[derive(Debug, Clone)]
pub struct Vault {
    state: PathBuf,
    limits: Limits,
}

impl Vault {
    /// The quarantine in a state folder.
    pub fn new(state: &Path, limits: Limits) -> Self {
        Self {
            state: state.to_owned(),
            limits,
        }
    }

    /// Whether anything was ever in it.
    pub fn exists(&self) -> bool {
        self.folder().exists()
    }

    /// The key, if there is one.
    ///
    /// # Errors
    /// The file's.
    pub fn key(&self) -> io::Result<Option<Key>> {
        Key::load(&self.state)
    }

    /// Takes a key that comes from elsewhere, unless there is one.
    ///
    /// # Errors
    /// The file system's, and that it opens nothing of what is here: the right one may
    /// still come.
    pub fn adopt(&self, key: &Key) -> io::Result<bool> {
        // Whoever makes a new one has the lock.
        let locked = self.lock()?;
        if self.key()?.is_some() {
            return Ok(false);
        }
        let ids = locked.ids()?;
        let opens = |id: &Uuid| {
            let sealed = locked.sealed_record(*id)?;
            Sealer::new(key, *id)?.open_record(&sealed)
        };
        if !ids.is_empty() && !ids.iter().any(|id| opens(id).is_ok()) {
            return Err(io::Error::other(
                "it opens nothing of what is in this quarantine",
            ));
        }
        key.save(&self.state)?;
        Ok(true)
    }

    /// Takes the lock, and settles what was cut short.
    ///
    /// # Errors
    /// The file system's, and that somebody else has it for too long.
    pub fn lock(&self) -> io::Result<Locked> {
        let folder = self.folder();
        for name in ["", "items", "moves", "hold"] {
            let at = folder.join(name);
            DirBuilder::new()
                .recursive(true)
                .mode(FOLDER_MODE)
                .create(&at)?;
            // It may have been there, with another mode.
            fs::set_permissions(&at, Permissions::from_mode(FOLDER_MODE))?;
        }
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(FILE_MODE)
            .open(folder.join("lock"))?;
        let until = Instant::now() + LOCK_WAIT;
        while let Err(error) = flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            if error != rustix::io::Errno::WOULDBLOCK {
                return Err(error.into());
            }
            if Instant::now() >= until {
                return Err(io::Error::other(format!(
                    "the quarantine is in use for more than {} s",
                    LOCK_WAIT.as_secs()
                )));
            }
            std::thread::sleep(LOCK_LOOK);
        }
        let locked = Locked {
            // Links of the way to it are resolved once: none is followed later.
            folder: folder.canonicalize()?,
            vault: self.clone(),
            _lock: lock,
        };
        sweep::sweep(&locked)?;
        Ok(locked)
    }

    fn folder(&self) -> PathBuf {
        self.state.join("quarantine")
    }
}

/// The quarantine, while nobody else has it.
#[derive(Debug)]
pub struct Locked {
    vault: Vault,
    folder: PathBuf,
    _lock: File,
}

impl Locked {
    /// The folder of files that are being moved.
    pub(super) fn hold(&self) -> PathBuf {
        self.folder.join("hold")
    }

    /// The folder of what is being moved.
    pub(super) fn moves(&self) -> PathBuf {
        self.folder.join("moves")
    }

    pub(super) fn items(&self) -> PathBuf {
        self.folder.join("items")
    }

    pub(super) fn content_file(&self, id: Uuid) -> PathBuf {
        self.items().join(format!("{id}.content"))
    }

    pub(super) fn record_file(&self, id: Uuid) -> PathBuf {
        self.items().join(format!("{id}.record"))
    }

    /// What is in the quarantine, by id.
    ///
    /// # Errors
    /// The file system's.
    pub fn ids(&self) -> io::Result<Vec<Uuid>> {
        let mut ids: Vec<Uuid> = named(&self.items(), "record")?;
        ids.sort_unstable();
        Ok(ids)
    }

    /// How much is there.
    ///
    /// # Errors
    /// The file system's.
    pub fn usage(&self) -> io::Result<Usage> {
        let mut usage = Usage::default();
        for id in self.ids()? {
            let bytes = |file: &Path| fs::metadata(file).map_or(0, |there| there.len());
            usage.files += 1;
            usage.bytes += bytes(&self.content_file(id)) + bytes(&self.record_file(id));
        }
        Ok(usage)
    }

    /// Whether a file of `size` bytes fits in.
    ///
    /// # Errors
    /// Why not.
    pub fn room(&self, size: u64) -> Result<(), Kept> {
        let usage = self
            .usage()
            .map_err(|error| Kept::Failed(error.to_string()))?;
        let limits = self.vault.limits;
        if usage.files >= limits.files {
            return Err(Kept::FullOfFiles {
                files: usage.files,
                max: limits.files,
            });
        }
        if usage.bytes.saturating_add(size) > limits.bytes {
            return Err(Kept::FullOfBytes {
                bytes: usage.bytes,
                more: size,
                max: limits.bytes,
            });
        }
        Ok(())
    }

    /// The key for a file that comes in: a new one if there is none and nothing that
    /// another key sealed.
    ///
    /// # Errors
    /// [`Kept::NoKey`], or the file system's.
    pub fn key_for_new(&self) -> Result<Key, Kept> {
        let failed = |error: io::Error| Kept::Failed(format!("the key: {error}"));
        if let Some(key) = Key::load(&self.vault.state).map_err(failed)? {
            return Ok(key);
        }
        if !self.ids().map_err(failed)?.is_empty() {
            return Err(Kept::NoKey);
        }
        let key = Key::new().map_err(failed)?;
        key.save(&self.vault.state).map_err(failed)?;
        Ok(key)
    }

    /// The item's keys.
    ///
    /// # Errors
    /// The key's, and that there is none.
    pub fn sealer(&self, id: Uuid) -> io::Result<Sealer> {
        let key = Key::load(&self.vault.state)?.ok_or_else(|| {
            io::Error::other("the quarantine's key is missing; it comes back when this agent is connected to the Integration Server that has it")
        })?;
        Sealer::new(&key, id)
    }

    /// A file's record.
    ///
    /// # Errors
    /// That there is none, or that it does not open.
    pub fn record(&self, id: Uuid) -> io::Result<Record> {
        let clear = self.sealer(id)?.open_record(&self.sealed_record(id)?)?;
        let record: Record = serde_json::from_slice(&clear)?;
        if record.version != VERSION {
            return Err(io::Error::other(format!(
                "its record has version {}, and {VERSION} is read",
                record.version
            )));
        }
        Ok(record)
    }

    fn sealed_record(&self, id: Uuid) -> io::Result<Vec<u8>> {
        let mut sealed = Vec::new();
        File::open(self.record_file(id))?
            .take(MAX_RECORD_BYTES)
            .read_to_end(&mut sealed)?;
        Ok(sealed)
    }

    /// Keeps a record; it is there or not after a crash, and never by half.
    ///
    /// # Errors
    /// The file system's.
    pub fn put_record(&self, record: &Record) -> io::Result<()> {
        let sealed = self
            .sealer(record.id)?
            .seal_record(&serde_json::to_vec(record)?)?;
        if sealed.len() as u64 > MAX_RECORD_BYTES {
            return Err(io::Error::other("the record is too long"));
        }
        write_atomic(&self.record_file(record.id), &sealed, FILE_MODE).map_err(io::Error::other)?;
        self.sync()
    }

    /// A file to seal a content into.
    pub(super) fn new_content(&self, id: Uuid) -> io::Result<File> {
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(FILE_MODE)
            .open(self.content_file(id))
    }

    /// Opens a content into `to`, and says what it was.
    ///
    /// # Errors
    /// That it does not open, and those of `to`.
    pub fn content(
        &self,
        id: Uuid,
        to: &mut impl FnMut(&[u8]) -> io::Result<()>,
    ) -> io::Result<ContentId> {
        let mut from = BufReader::with_capacity(
            usize::try_from(FRAGMENT_BYTES).unwrap_or(1 << 18),
            File::open(self.content_file(id))?,
        );
        let mut outline = OutlineBuilder::new();
        self.sealer(id)?.open(&mut from, &mut |chunk| {
            if !chunk.is_empty() {
                outline.push(chunk).map_err(io::Error::other)?;
            }
            to(chunk)
        })?;
        Ok(outline.finish().id())
    }

    /// Removes a file from the quarantine for good; the record first, without which
    /// the content is noise.
    ///
    /// # Errors
    /// The file system's.
    pub fn remove(&self, id: Uuid) -> io::Result<()> {
        fs::remove_file(self.record_file(id))?;
        self.sync()?;
        fs::remove_file(self.content_file(id))?;
        self.sync()
    }

    pub(super) fn sync(&self) -> io::Result<()> {
        File::open(self.items())?.sync_all()
    }
}

/// The ids of a folder's files with this extension.
pub(super) fn named(folder: &Path, extension: &str) -> io::Result<Vec<Uuid>> {
    let mut ids = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|found| found == extension)
            && let Some(stem) = path.file_stem().and_then(|stem| stem.to_str())
            && let Ok(id) = Uuid::try_parse(stem)
        {
            ids.push(id);
        }
    }
    Ok(ids)
}
