//! The quarantine's key: 32 random bytes of this guest, in its state folder.
//!
//! Owns the file and when a new key is made: only while nothing is in the quarantine,
//! since a second key would make what the first one sealed unreadable for good.

use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use palisade_protocol::identity::write_atomic;
use ring::rand::{SecureRandom as _, SystemRandom};

/// Bytes of the key.
pub const KEY_BYTES: usize = 32;
/// The key's file in the state folder.
pub const FILE: &str = "quarantine.key";

/// The key.
#[derive(Clone, PartialEq, Eq)]
pub struct Key(pub [u8; KEY_BYTES]);

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(…)")
    }
}

impl Key {
    /// A key that nobody has.
    ///
    /// # Errors
    /// When the kernel gives no randomness.
    pub fn new() -> io::Result<Self> {
        let mut bytes = [0; KEY_BYTES];
        SystemRandom::new()
            .fill(&mut bytes)
            .map_err(|_| io::Error::other("the kernel gives no randomness for a key"))?;
        Ok(Self(bytes))
    }

    /// The key in a state folder, if there is one.
    ///
    /// # Errors
    /// The file's, or that it is not one that nobody else can read.
    pub fn load(state: &Path) -> io::Result<Option<Self>> {
        let path = state.join(FILE);
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let metadata = file.metadata()?;
        let own = metadata.uid() == nix::unistd::geteuid().as_raw();
        if !own || metadata.mode() & 0o077 != 0 || metadata.len() != KEY_BYTES as u64 {
            return Err(io::Error::other(format!(
                "{} is no key of {KEY_BYTES} bytes that its owner alone may read",
                path.display()
            )));
        }
        let mut bytes = [0; KEY_BYTES];
        file.read_exact(&mut bytes)?;
        Ok(Some(Self(bytes)))
    }

    /// Keeps the key in a state folder.
    ///
    /// # Errors
    /// The file system's.
    pub fn save(&self, state: &Path) -> io::Result<()> {
        write_atomic(&state.join(FILE), &self.0, 0o600).map_err(io::Error::other)?;
        fs::File::open(state)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    #[test]
    fn it_is_kept_and_a_readable_one_is_refused() {
        let state = tempfile::tempdir().unwrap();
        assert_eq!(Key::load(state.path()).unwrap(), None);
        let key = Key::new().unwrap();
        key.save(state.path()).unwrap();
        assert_eq!(Key::load(state.path()).unwrap(), Some(key.clone()));
        let file = state.path().join(FILE);
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        assert!(Key::load(state.path()).is_err());
        fs::write(&file, "short").unwrap();
        assert!(Key::load(state.path()).is_err());
        assert!(!format!("{key:?}").contains(&hex::encode(key.0)));
    }
}
