//! Signs of life towards the supervisor, if there is one.
//!
//! ```text
//!  deadlines' thread ── every few seconds ──► are all parts moving? ──► one byte
//!     a reader: has turned since events wait     │ no
//!     the runtime: has answered of late          └──► silence
//! ```
//!
//! The thread that answers in time gives them ([`deadline`](crate::deadline)), so that
//! silence means that openers may be waiting for nobody. Owns what is told and when;
//! what silence comes to is the [supervisor](crate::supervise)'s.

use std::io::{self, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::sync::Notify;

use crate::accounts::Accounts;
use crate::fanotify::group::Group;

/// How long the runtime may take to answer.
const RUNTIME_WITHIN: Duration = Duration::from_secs(20);

/// One sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sign {
    /// The agent has started.
    Ready,
    /// It lives, and has nothing to do.
    Idle,
    /// It lives, and opens come.
    Busy,
}

impl Sign {
    const ALL: [Self; 3] = [Self::Ready, Self::Idle, Self::Busy];

    /// The byte that says it.
    pub fn byte(self) -> u8 {
        match self {
            Self::Ready => b'r',
            Self::Idle => b'i',
            Self::Busy => b'b',
        }
    }

    /// The sign that a byte says.
    pub fn of(byte: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|sign| sign.byte() == byte)
    }

    /// When the next one comes at the latest. An idle agent wakes seldom.
    pub fn next_within(self) -> Duration {
        match self {
            Self::Ready | Self::Idle => Duration::from_secs(5),
            Self::Busy => Duration::from_secs(1),
        }
    }
}

/// The socket to the supervisor.
#[derive(Debug)]
pub struct Supervisor(UnixStream);

impl Supervisor {
    /// Takes it from the standard input, where the supervisor put it.
    ///
    /// # Errors
    /// The system's.
    pub fn from_stdin() -> io::Result<Self> {
        let socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
        socket.set_nonblocking(true)?;
        Ok(Self(socket))
    }

    fn tell(&self, sign: Sign) {
        // A full socket is one that nobody reads: silence would say no more.
        let _ = (&self.0).write(&[sign.byte()]);
    }

    /// The agent has started.
    pub fn ready(&self) {
        self.tell(Sign::Ready);
    }

    /// Another handle of the same socket.
    ///
    /// # Errors
    /// The system's.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self(UnixStream::from(OwnedFd::from(self.0.try_clone()?))))
    }

    /// Waits until the supervisor is gone.
    pub async fn gone(self) {
        let Ok(socket) = tokio::net::UnixStream::from_std(self.0) else {
            return;
        };
        let mut byte = [0];
        loop {
            if socket.readable().await.is_err() {
                return;
            }
            match socket.try_read(&mut byte) {
                Ok(0) => return,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return,
            }
        }
    }
}

/// A group's reader, as far as it can be seen from outside.
struct Reader {
    group: Weak<Group>,
    turns: Arc<AtomicU64>,
    /// Its turns when events were last seen waiting.
    stuck_at: Option<u64>,
}

impl Reader {
    /// Whether it has turned since events were last seen waiting.
    fn moves(&mut self) -> bool {
        let Some(group) = self.group.upgrade() else {
            return true;
        };
        let mut waiting = [PollFd::new(group.as_fd(), PollFlags::POLLIN)];
        let waiting = poll(&mut waiting, PollTimeout::ZERO).is_ok_and(|n| n > 0);
        let turns = self.turns.load(Relaxed);
        let before = std::mem::replace(&mut self.stuck_at, waiting.then_some(turns));
        !(waiting && before == Some(turns))
    }
}

/// The readers whose turning is part of a sign of life. Clones share them.
#[derive(Clone, Default)]
pub struct Readers(Arc<Mutex<Vec<Reader>>>);

impl Readers {
    /// Adds one.
    pub fn add(&self, group: &Arc<Group>, turns: Arc<AtomicU64>) {
        let reader = Reader {
            group: Arc::downgrade(group),
            turns,
            stuck_at: None,
        };
        let mut readers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Those of an earlier policy are gone.
        readers.retain(|reader| reader.group.strong_count() > 0);
        readers.push(reader);
    }

    fn move_all(&self) -> bool {
        let mut readers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Every one is looked at, whatever the first says.
        let stuck = readers
            .iter_mut()
            .filter_map(|reader| (!reader.moves()).then_some(()));
        stuck.count() == 0
    }
}

/// Gives signs of life.
pub struct Pulse {
    supervisor: Supervisor,
    readers: Readers,
    accounts: Arc<Accounts>,
    seen: u64,
    nudge: Arc<Notify>,
    answers: Arc<AtomicU64>,
    answered: (u64, Instant),
}

impl Pulse {
    /// Within a runtime, whose answering is part of a sign of life.
    pub fn new(supervisor: Supervisor, readers: Readers, accounts: Arc<Accounts>) -> Self {
        let nudge = Arc::new(Notify::new());
        let answers = Arc::new(AtomicU64::new(0));
        let (nudged, answering) = (Arc::clone(&nudge), Arc::clone(&answers));
        tokio::spawn(async move {
            loop {
                nudged.notified().await;
                answering.fetch_add(1, Relaxed);
            }
        });
        Self {
            supervisor,
            readers,
            accounts,
            seen: 0,
            nudge,
            answers,
            answered: (0, Instant::now()),
        }
    }

    /// Gives a sign, if all parts move; says when to come again.
    pub fn beat(&mut self, now: Instant) -> Duration {
        let seen = self.accounts.total_seen();
        let sign = match std::mem::replace(&mut self.seen, seen) == seen {
            true => Sign::Idle,
            false => Sign::Busy,
        };
        let answers = self.answers.load(Relaxed);
        if answers != self.answered.0 {
            self.answered = (answers, now);
        }
        self.nudge.notify_one();
        let runtime = now.saturating_duration_since(self.answered.1) < RUNTIME_WITHIN;
        if self.readers.move_all() && runtime {
            self.supervisor.tell(sign);
        }
        sign.next_within()
    }
}
