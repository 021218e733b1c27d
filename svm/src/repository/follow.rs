//! When pulls happen, and what was wrong with the last one.
//!
//! ```text
//!  told of a version ─┐
//!  every poll_s ──────┼──► one pull at a time ──► changed ──► the desk looks at its source
//!  a refresh's order ─┘             │
//!                                   └──► a problem, until a pull succeeds
//! ```
//!
//! A session that is cut is no problem: the next one goes on where it was.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::Timestamp;
use palisade_daemon::control::Session;
use palisade_protocol::bounded::Text;
use tokio::sync::Notify;

use super::folder::{Folder, FolderError};
use super::pull::{PullError, Pulled, pull};
use super::transport::OverSession;
use crate::definitions::desk::{Desk, Order};
use crate::settings::Settings;

/// The next attempt after the disk or the server failed without the session's end.
const RETRY: Duration = Duration::from_secs(5);

/// Follows the site's repository.
#[derive(Debug)]
pub struct Follower {
    folder: Folder,
    max_bytes: u64,
    session: Mutex<Option<Session>>,
    /// Whether the server ever said that it has a repository.
    offered: AtomicBool,
    problem: Mutex<Option<Text<1024>>>,
    told: Notify,
    pulling: tokio::sync::Mutex<()>,
}

impl Follower {
    /// A follower, if settings have this Protection Server follow the repository.
    ///
    /// # Errors
    /// [`FolderError`].
    pub fn open(settings: &Settings, folder: PathBuf) -> Result<Option<Arc<Self>>, FolderError> {
        if !settings.definitions.follows_repository() {
            return Ok(None);
        }
        Ok(Some(Arc::new(Self {
            folder: Folder::open(folder)?,
            max_bytes: settings.definitions.max_size.0,
            session: Mutex::default(),
            offered: AtomicBool::new(false),
            problem: Mutex::default(),
            told: Notify::new(),
            pulling: tokio::sync::Mutex::new(()),
        })))
    }

    /// What is on disk.
    pub fn folder(&self) -> &Folder {
        &self.folder
    }

    /// What was wrong with the last pull.
    pub fn problem(&self) -> Option<Text<1024>> {
        let problem = self.problem.lock();
        problem.unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Pulls go over this session from here on. Whoever has followed a repository before
    /// asks for it, told or not.
    pub fn connected(&self, session: &Session) {
        let mut place = self.session.lock().unwrap_or_else(PoisonError::into_inner);
        *place = Some(session.clone());
        drop(place);
        self.told.notify_one();
    }

    /// The server says that something was published.
    pub fn published(&self) {
        self.offered.store(true, Ordering::Relaxed);
        self.told.notify_one();
    }

    /// Whether there is a repository to follow, as far as is known.
    fn has_one(&self) -> bool {
        self.offered.load(Ordering::Relaxed) || !matches!(self.folder.pinned(), Ok(None))
    }

    /// Pulls once over this session.
    ///
    /// # Errors
    /// [`PullError`], which is the problem from then on unless the session was cut.
    pub async fn pull(&self, session: &Session) -> Result<Pulled, PullError> {
        let _pulling = self.pulling.lock().await;
        let source = Arc::new(OverSession::new(session.clone()));
        let pulled = pull(&source, &self.folder, self.max_bytes, Timestamp::now()).await;
        self.note(&pulled);
        pulled
    }

    fn note(&self, pulled: &Result<Pulled, PullError>) {
        let now = match pulled {
            Ok(pulled) => {
                if pulled.changed {
                    tracing::info!(
                        generation = pulled.generation,
                        bytes = pulled.bytes,
                        "pulled the site's definitions"
                    );
                }
                None
            }
            Err(PullError::Cut(_)) => return,
            Err(error) => Some(Text::cut(&error.sentence())),
        };
        let mut problem = self.problem.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Some(now), true) = (&now, *problem != now) {
            tracing::error!(problem = %now, "the site's definitions cannot be had; those in force stay");
        }
        *problem = now;
    }

    /// Pulls whenever there is a reason to, until the task is dropped.
    pub async fn run(self: Arc<Self>, desk: Desk, every: Duration) {
        let mut wait = every;
        loop {
            // A time that is over is a reason, too: who holds newer metadata back says nothing.
            let _ = tokio::time::timeout(wait, self.told.notified()).await;
            let session = self.session.lock();
            let session = session.unwrap_or_else(PoisonError::into_inner).clone();
            let Some(session) = session.filter(|_| self.has_one()) else {
                wait = every;
                continue;
            };
            wait = match self.pull(&session).await {
                Ok(pulled) => {
                    if pulled.changed {
                        // What becomes of it is in the desk's status.
                        let _ = desk.order(Order::Look).await;
                    }
                    every
                }
                Err(_) => every.min(RETRY),
            };
        }
    }
}
