//! The daemon's folders, held by one daemon at a time.
//!
//! ```text
//! STATE/lock            held while a daemon runs
//! STATE/identity/…      key and certificates      (palisade_daemon::membership)
//! STATE/site.json       the Integration Servers   (palisade_daemon::membership)
//! STATE/definitions/…   generations               (crate::definitions::store)
//! STATE/repository/…    the site's signed definitions (crate::repository)
//! STATE/brake.json      signatures that are reported only (crate::brake)
//! STATE/signatures/     since when each is in force (crate::brake::ledger)
//! STATE/cache/          the SharedCache's copy    (crate::cache), may be lost
//! STATE/cache.overruled what the copy must not say any more (crate::cache)
//! STATE/fragments/      a file without a name     (crate::fragments::disk)
//! RUN/control.sock      orders of this machine    (crate::local)
//! RUN/scratch/          workers' temporary files, emptied at start and stop
//! ```

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use palisade_daemon::enrol::{self, TokenError, read_token_file};
use palisade_daemon::host;
use palisade_daemon::membership::{Membership, MembershipError};
use palisade_protocol::control::Component;
use palisade_protocol::spiffe::Role;
use palisade_protocol::token::JoinToken;

use crate::settings::Folders;

/// How long a start waits for the state folder of a predecessor.
const LOCK_WAIT: Duration = Duration::from_secs(2);
const LOCK_POLL: Duration = Duration::from_millis(20);

/// Why the state cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// A path cannot be used.
    #[error("{path}: {error}", path = path.display())]
    Path {
        /// Which.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// Another daemon runs there.
    #[error("{path} is in use by another palisade-scanserver; stop it, or use another --site", path = path.display())]
    InUse {
        /// The state folder.
        path: PathBuf,
    },
    /// The identity is unusable.
    #[error(transparent)]
    Membership(#[from] MembershipError),
    /// The identity is another component's.
    #[error("{path} holds the identity {id}, which is no Protection Server's; remove it and enrol again", path = path.display())]
    WrongIdentity {
        /// The state folder.
        path: PathBuf,
        /// Whose it is.
        id: String,
    },
    /// There is no identity, and nothing to get one with.
    #[error(
        "this Protection Server is not enrolled: create a join token with `palisade token create \
         --component svm`, write it to a file, and set join_token_file in {settings} or run \
         `palisade-scanserver enrol TOKEN`"
    )]
    NotEnrolled {
        /// The settings file.
        settings: String,
    },
    /// There is no usable join token.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// Enrolling failed.
    #[error("enrolling failed: {0}")]
    Enrol(#[from] enrol::EnrolError),
}

/// The folders, locked.
#[derive(Debug)]
pub struct State {
    folders: Folders,
    _lock: File,
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> StateError + use<> {
    let path = path.to_owned();
    move |error| StateError::Path { path, error }
}

impl State {
    /// Makes the folders, takes the lock, and empties the scratch folder.
    ///
    /// # Errors
    /// [`StateError`] naming the path.
    pub fn open(folders: Folders) -> Result<Self, StateError> {
        fs::create_dir_all(&folders.state).map_err(at(&folders.state))?;
        let path = folders.state.join("lock");
        let lock = File::options()
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(at(&path))?;
        match try_lock(&lock) {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(StateError::InUse {
                    path: folders.state,
                });
            }
            Err(TryLockError::Error(error)) => return Err(at(&path)(error)),
        }
        let state = Self {
            folders,
            _lock: lock,
        };
        state.clear_scratch()?;
        let scratch = state.folders.scratch();
        fs::create_dir_all(&scratch).map_err(at(&scratch))?;
        Ok(state)
    }

    /// The folders.
    pub fn folders(&self) -> &Folders {
        &self.folders
    }

    /// Where the SharedCache's copy is.
    pub fn cache(&self) -> PathBuf {
        self.folders.state.join("cache")
    }

    /// Where fragments are kept on disk.
    pub fn fragments(&self) -> PathBuf {
        self.folders.state.join("fragments")
    }

    /// Where it is kept which signatures are reported only.
    pub fn brake(&self) -> PathBuf {
        self.folders.state.join("brake.json")
    }

    /// Where what is followed of the site's repository is.
    pub fn repository(&self) -> PathBuf {
        self.folders.state.join("repository")
    }

    /// Where it stands since when signatures are in force.
    pub fn signatures(&self) -> PathBuf {
        self.folders.state.join("signatures")
    }

    /// Removes what workers left.
    ///
    /// # Errors
    /// [`StateError::Path`].
    pub fn clear_scratch(&self) -> Result<(), StateError> {
        let scratch = self.folders.scratch();
        match fs::remove_dir_all(&scratch) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(&scratch)(error)),
            _ => Ok(()),
        }
    }

    /// The identity that is kept here; without one, it enrols with the token in
    /// `token_file`.
    ///
    /// # Errors
    /// [`StateError`] with the remedy.
    pub async fn membership(
        &self,
        token_file: Option<&Path>,
        settings_file: &Path,
    ) -> Result<Membership, StateError> {
        let membership = match (Membership::load(&self.folders.state)?, token_file) {
            (Some(membership), _) => membership,
            (None, Some(file)) => self.enrol(&read_token_file(file)?).await?,
            (None, None) => {
                let settings = settings_file.display().to_string();
                return Err(StateError::NotEnrolled { settings });
            }
        };
        match &membership.identity.id().role {
            Role::Svm(_) => Ok(membership),
            _ => Err(StateError::WrongIdentity {
                path: self.folders.state.clone(),
                id: membership.identity.id().to_string(),
            }),
        }
    }

    /// Gets an identity with a join token, and keeps it.
    ///
    /// # Errors
    /// [`StateError`] with the remedy.
    pub async fn enrol(&self, token: &JoinToken) -> Result<Membership, StateError> {
        let membership = enrol::enrol(token, Component::Svm, host::facts()).await?;
        membership.save(&self.folders.state)?;
        tracing::info!(id = %membership.identity.id(), name = membership.name, "enrolled");
        Ok(membership)
    }
}

/// Takes the lock; a predecessor that was killed may hold it until its last thread
/// is gone, and a restart must not fail for that.
fn try_lock(lock: &File) -> Result<(), TryLockError> {
    let end = Instant::now() + LOCK_WAIT;
    loop {
        match lock.try_lock() {
            Err(TryLockError::WouldBlock) if Instant::now() < end => {
                std::thread::sleep(LOCK_POLL);
            }
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folders(dir: &tempfile::TempDir) -> Folders {
        Folders {
            state: dir.path().join("state"),
            run: dir.path().join("run"),
            helpers: dir.path().to_owned(),
        }
    }

    #[test]
    fn one_daemon_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(folders(&dir)).unwrap();
        assert!(matches!(
            State::open(folders(&dir)),
            Err(StateError::InUse { .. })
        ));
        drop(state);
        State::open(folders(&dir)).unwrap();
    }

    #[tokio::test]
    async fn without_identity_the_remedy_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let state = State::open(folders(&dir)).unwrap();
        let error = state
            .membership(None, Path::new("/etc/x.toml"))
            .await
            .unwrap_err();
        assert!(
            error.to_string().contains("join_token_file in /etc/x.toml"),
            "{error}"
        );
        let token = dir.path().join("token");
        std::fs::write(&token, "nonsense").unwrap();
        let error = state
            .membership(Some(&token), Path::new("/etc/x.toml"))
            .await
            .unwrap_err();
        assert!(
            error.to_string().contains(&*token.to_string_lossy()),
            "{error}"
        );
    }
}
