//! The master key: where it is, and what it wraps.
//!
//! It is never in the store. In order: the file that the settings name; the credential
//! `master-key` of the service; `master-key` in the state folder, made at first start.
//! The file holds 64 hexadecimal digits and is its owner's alone.
//!
//! ```text
//!   rotation:  new key ─► FILE.next ─► data keys wrapped anew (one transaction) ─► FILE
//!   start:     FILE opens the store? yes: use it.  no: FILE.next does? finish: ─► FILE
//! ```

use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use palisade_protocol::identity::write_atomic;

use super::{Key, Unsealed, open, seal};

/// The file's name in the state folder and among credentials.
pub const NAME: &str = "master-key";
/// Longest key file that is read, in bytes.
const MAX_FILE_BYTES: u64 = 1024;

/// The master key cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum BadMaster {
    /// There is none.
    #[error(
        "the master key {0} is missing, and the database is sealed with it; put the key back from where you keep its copy: without it nothing in the database can be read"
    )]
    Missing(PathBuf),
    /// It is not the store's.
    #[error(
        "the master key {0} is not the one that the database is sealed with; put the right key there: nothing was changed"
    )]
    Wrong(String),
    /// A rotation has begun, and not ended.
    #[error(
        "a rotation of the master key {0} has not ended; start palisade-server, which ends it, or run palisade-server rotate-key again"
    )]
    Rotating(PathBuf),
    /// Others can read it.
    #[error("the master key {0} can be read by others; run: chmod 600 {0}")]
    Open(PathBuf),
    /// It cannot be read or written, or holds no key.
    #[error("the master key {path} cannot be used: {detail}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why not.
        detail: String,
    },
    /// No random numbers.
    #[error(transparent)]
    Randomness(#[from] Unsealed),
}

/// Where the master key is.
#[derive(Debug, Clone)]
pub enum Source {
    /// Here: for tests, and for what has read it already.
    Given(Key),
    /// A file of this server's own, made when there is none and the store has no keys.
    File(PathBuf),
    /// A file that somebody else provides.
    Credential(PathBuf),
}

impl Source {
    /// The key, and the one that a rotation has left beside it.
    ///
    /// # Errors
    /// [`BadMaster`].
    pub fn read(&self) -> Result<(Option<Key>, Option<Key>), BadMaster> {
        match self {
            Self::Given(key) => Ok((Some(key.clone()), None)),
            Self::File(path) => Ok((read(path, true)?, read(&next(path), true)?)),
            // Its folder is its service's alone; who may read the file is systemd's matter.
            Self::Credential(path) => Ok((read(path, false)?, None)),
        }
    }

    /// The key of a store that has none yet.
    ///
    /// # Errors
    /// [`BadMaster`].
    pub fn read_or_make(&self) -> Result<Key, BadMaster> {
        match (self.read()?.0, self) {
            (Some(key), _) => Ok(key),
            (None, Self::File(path)) => {
                let key = Key::random()?;
                write(path, &key)?;
                Ok(key)
            }
            (None, _) => Err(BadMaster::Missing(self.path())),
        }
    }

    /// Puts a new key beside the one in force.
    ///
    /// # Errors
    /// [`BadMaster`]: a key that is given or provided is changed by who provides it.
    pub fn prepare(&self, key: &Key) -> Result<(), BadMaster> {
        match self {
            Self::File(path) => write(&next(path), key),
            _ => Err(BadMaster::File {
                path: self.path(),
                detail: "a credential is changed by who provides it; name a file in master_key_file to rotate it here".into(),
            }),
        }
    }

    /// Makes the key beside the one in force the one.
    ///
    /// # Errors
    /// [`BadMaster`].
    pub fn finish(&self) -> Result<(), BadMaster> {
        let Self::File(path) = self else {
            return Ok(());
        };
        std::fs::rename(next(path), path)
            .and_then(|()| sync_folder(path))
            .map_err(|error| unusable(path, error))
    }

    /// Where it is, for messages.
    pub fn path(&self) -> PathBuf {
        match self {
            Self::Given(_) => PathBuf::from("(given)"),
            Self::File(path) | Self::Credential(path) => path.clone(),
        }
    }
}

/// Wraps a data key.
///
/// # Errors
/// [`Unsealed::Randomness`].
pub fn wrap(master: &Key, number: u32, purpose: &str, key: &Key) -> Result<Vec<u8>, Unsealed> {
    seal(&wrapping(master), 0, &place(number, purpose), key.bytes())
}

/// Unwraps a data key; none when the master key is another one.
pub fn unwrap(master: &Key, number: u32, purpose: &str, wrapped: &[u8]) -> Option<Key> {
    let bytes = open(&wrapping(master), &place(number, purpose), wrapped).ok()?;
    bytes.try_into().ok().map(Key)
}

/// The key of a backup's frames.
pub fn backup_key(master: &Key) -> Key {
    Key(blake3::derive_key(
        "palisade 2026 integration-server backup",
        &master.0,
    ))
}

/// What a key wraps must not be what it seals: another use, another key.
fn wrapping(master: &Key) -> Key {
    Key(blake3::derive_key(
        "palisade 2026 integration-server data key wrapping",
        &master.0,
    ))
}

fn place(number: u32, purpose: &str) -> Vec<u8> {
    format!("data_keys\0{purpose}\0{number}").into_bytes()
}

fn next(path: &Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".next");
    PathBuf::from(name)
}

fn read(path: &Path, private: bool) -> Result<Option<Key>, BadMaster> {
    let unusable = |error| unusable(path, error);
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(unusable(error)),
    };
    let mode = file.metadata().map_err(unusable)?.permissions().mode();
    if private && mode & 0o077 != 0 {
        return Err(BadMaster::Open(path.to_owned()));
    }
    let mut text = String::new();
    file.take(MAX_FILE_BYTES)
        .read_to_string(&mut text)
        .map_err(unusable)?;
    let mut key = [0; 32];
    hex::decode_to_slice(text.trim(), &mut key).map_err(|_| BadMaster::File {
        path: path.to_owned(),
        detail: "64 hexadecimal digits are expected".into(),
    })?;
    Ok(Some(Key(key)))
}

fn write(path: &Path, key: &Key) -> Result<(), BadMaster> {
    let text = format!("{}\n", hex::encode(key.0));
    write_atomic(path, text.as_bytes(), 0o600).map_err(|error| BadMaster::File {
        path: path.to_owned(),
        detail: error.to_string(),
    })?;
    sync_folder(path).map_err(|error| unusable(path, error))
}

/// A store must not be sealed with a key whose file a power cut takes away.
fn sync_folder(path: &Path) -> std::io::Result<()> {
    let folder = path
        .parent()
        .filter(|folder| !folder.as_os_str().is_empty());
    std::fs::File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

fn unusable(path: &Path, error: std::io::Error) -> BadMaster {
    BadMaster::File {
        path: path.to_owned(),
        detail: error.to_string(),
    }
}
