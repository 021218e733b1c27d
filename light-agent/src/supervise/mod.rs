//! `palisade-agent supervise`: a small process of its own that starts the agent,
//! hears its signs of life, and kills it when it gives none, so that no open waits
//! for an agent that is stuck.
//!
//! ```text
//!  supervise ── starts, with a socket as its standard input ──► run --supervised
//!      ▲  ◄──────────────── signs of life (pulse) ──────────────────┤
//!      │  silence: SIGKILL; the kernel lets the openers go          │
//!      └── started again; three times in vain: it does not hold opens
//! ```
//!
//! Owns the child and what is done about its end; [`breaker`] decides, and [`record`]
//! keeps it. Holds no part of fanotify: a copy of a group here would keep openers
//! waiting after the agent's death. Does not know what the agent does; a sign of life
//! is the agent's own account ([`pulse`](crate::pulse)).
//!
//! **Invariant:** while an agent lives, the thread that watches it opens no file: the
//! folder of its record may lie on a file system whose opens that agent answers, and who
//! waits for a stalled agent cannot kill it. systemd watches that thread in turn
//! ([`watchdog`]).
//!
//! **What this cannot promise:** killing a stalled agent lets the opens go that waited
//! for it, whatever the failure table says.

pub mod breaker;
mod child;
mod fuse;
pub mod record;
mod watchdog;

use std::os::fd::AsFd as _;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use palisade_daemon::lifecycle;

use self::breaker::{Ending, Record};
pub use self::child::Program;
use self::child::{Agent, Beat};
use self::record::{Keeping, boot, now};
use self::watchdog::Watchdog;
use crate::packaged::rpm;
use crate::settings::Folders;
use crate::state_file;

/// How late a sign of life may be.
const GRACE: Duration = Duration::from_secs(3);
/// After that, once more: a machine that stood still does not end its agent.
const SECOND_GRACE: Duration = Duration::from_secs(2);
/// The stack of a thread that writes the record, in bytes.
const RECORD_STACK: usize = 256 * 1024;
/// How long an agent may take to stop when it is told to.
const STOP_WITHIN: Duration = Duration::from_secs(10);

/// What came of one agent.
enum End {
    /// It ended badly.
    Bad(Ending),
    /// It ended without an error.
    Fine,
    /// It was stopped, because opens may be held again.
    Rested,
    /// The supervisor was told to stop, and it was stopped.
    Stopped,
}

/// Runs the agent until the supervisor is told to stop. `follow_rpm`: the agent wants to
/// know what packages of rpm have.
///
/// # Errors
/// When no agent can be started at all.
pub fn run(program: &Program, folders: &Folders, follow_rpm: bool) -> anyhow::Result<()> {
    std::fs::create_dir_all(&folders.state)
        .with_context(|| format!("the state folder {}", folders.state.display()))?;
    let _claimed = state_file::claim(&folders.state)?;
    let signals = Signals::take().context("the supervisor's signals")?;
    if follow_rpm && let Err(error) = rpm::follow(&folders.state) {
        tracing::warn!(%error, "what packages of rpm have is asked at each start only");
    }
    let watchdog = Watchdog::asked_for();
    let kept = Kept::open(folders);
    let boot = boot();
    kept.now().change(|record| record.begin(&boot, now()));
    loop {
        let wait = kept.now().record().wait();
        if signals.stop_within(wait, &watchdog) {
            break;
        }
        kept.now().change(|record| record.starts(&boot));
        let why = kept.now().record().why(now());
        if let Some(why) = &why {
            tracing::error!("{why}");
        }
        let agent = program
            .start(why.as_deref())
            .context("the agent cannot be started")?;
        tracing::info!(pid = agent.pid(), "the supervised agent was started");
        let rest = why.and_then(|_| kept.now().record().resting(now()));
        let end = Watch {
            signals: &signals,
            watchdog: &watchdog,
            agent,
            rest,
            settled_after: program.settled_after,
        }
        .run(|| kept.settle_aside());
        kept.now().change(|record| match end {
            End::Bad(ending) => {
                tracing::error!("the agent is started again: {}", ending.as_str());
                record.bad_end(ending, now());
            }
            End::Rested => record.rested(),
            End::Fine | End::Stopped => record.fine(),
        });
        if matches!(end, End::Stopped) {
            break;
        }
    }
    Ok(())
}

/// The record, and whoever changes it. To wait for it is to wait for the disk, and for
/// the agent where that answers the disk's opens.
#[derive(Clone)]
struct Kept(Arc<Mutex<Keeping>>);

impl Kept {
    fn open(folders: &Folders) -> Self {
        Self(Arc::new(Mutex::new(Keeping::open(&folders.state))))
    }

    /// For a moment without an agent.
    fn now(&self) -> MutexGuard<'_, Keeping> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For while an agent lives: by another thread, which may wait.
    fn settle_aside(&self) {
        let kept = self.clone();
        let aside = std::thread::Builder::new().name("settle".to_owned());
        let begun = aside.stack_size(RECORD_STACK).spawn(move || {
            kept.now().change(Record::settled);
        });
        if let Err(error) = begun {
            tracing::warn!(%error, "that the agent runs well cannot be kept");
        }
    }
}

/// Lets opens be held again from the next start on.
///
/// # Errors
/// When the record cannot be reached.
pub fn reset(folders: &Folders) -> anyhow::Result<()> {
    anyhow::ensure!(
        Keeping::open(&folders.state).change(Record::reset),
        "the record in {} was not changed",
        folders.state.display()
    );
    Ok(())
}

fn told_by() -> SigSet {
    let mut set = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGCHLD] {
        set.add(signal);
    }
    set
}

/// Keeps the supervisor's signals for it; before its first thread.
///
/// # Errors
/// The kernel's.
pub fn block_signals() -> nix::Result<()> {
    told_by().thread_block()
}

/// Takes back what an agent inherits of its supervisor's signals; before its first
/// thread.
///
/// # Errors
/// The kernel's.
pub fn unblock_signals() -> nix::Result<()> {
    told_by().thread_unblock()
}

/// The signals that the supervisor is told by.
struct Signals(SignalFd);

impl Signals {
    fn take() -> nix::Result<Self> {
        let set = told_by();
        set.thread_block()?;
        let flags = SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK;
        Ok(Self(SignalFd::with_flags(&set, flags)?))
    }

    /// Whether a stop was asked for; takes what is there.
    fn stop_asked(&self) -> bool {
        let mut stop = false;
        while let Ok(Some(signal)) = self.0.read_signal() {
            stop |= signal.ssi_signo != Signal::SIGCHLD as u32;
        }
        stop
    }

    /// Waits; says whether a stop was asked for meanwhile.
    fn stop_within(&self, wait: Duration, watchdog: &Watchdog) -> bool {
        let until = Instant::now() + wait;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return self.stop_asked();
            }
            watchdog.feed();
            let left = watchdog.shortened(Some(left)).unwrap_or(left);
            let mut ready = [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)];
            if poll(&mut ready, timeout(left)).is_ok_and(|n| n > 0) && self.stop_asked() {
                return true;
            }
        }
    }
}

/// One agent, from its start to its end.
struct Watch<'a> {
    signals: &'a Signals,
    watchdog: &'a Watchdog,
    agent: Agent,
    /// How long it does not hold opens, if it does not.
    rest: Option<Duration>,
    /// After how long it runs well.
    settled_after: Duration,
}

impl Watch<'_> {
    fn run(mut self, mut settled: impl FnMut()) -> End {
        let started = Instant::now();
        let mut is_settled = false;
        // Until the first sign there is nothing that could be silent: the agent may
        // be waiting for its enrolment.
        let mut due: Option<Instant> = None;
        let mut late = false;
        loop {
            let next_look = match is_settled {
                false => Some(self.settled_after.saturating_sub(started.elapsed())),
                true => self.rest.map(|rest| rest.saturating_sub(started.elapsed())),
            };
            // Whatever else wakes it does not put off when a sign is due.
            let patience = due.map(|due| due.saturating_duration_since(Instant::now()));
            let wait = match (patience, next_look) {
                (Some(patience), Some(look)) => Some(patience.min(look)),
                (patience, look) => patience.or(look),
            };
            self.watchdog.feed();
            self.wait(self.watchdog.shortened(wait));
            if self.signals.stop_asked() {
                lifecycle::stopping();
                self.agent.stop(STOP_WITHIN, self.watchdog);
                return End::Stopped;
            }
            if let Some(end) = self.agent.ended() {
                return end.map_or(End::Fine, End::Bad);
            }
            let heard = self.agent.beat();
            if heard.ready {
                lifecycle::ready();
            }
            match heard.beat {
                Beat::Sign(sign) => {
                    due = Some(Instant::now() + sign.next_within() + GRACE);
                    late = false;
                }
                // Its end is there, or comes at once.
                Beat::Closed => {
                    let end = self.agent.end_within(STOP_WITHIN, self.watchdog);
                    return end.map_or(End::Fine, End::Bad);
                }
                Beat::None if due.is_some_and(|due| Instant::now() >= due) => {
                    if late {
                        tracing::error!(
                            pid = self.agent.pid(),
                            "the agent gives no sign of life and is killed: opens that wait for it are let go"
                        );
                        self.agent.kill(self.watchdog);
                        return End::Bad(Ending::Stalled);
                    }
                    // Measured anew: the agent may have stood still with us.
                    late = true;
                    due = Some(Instant::now() + SECOND_GRACE);
                }
                Beat::None => {}
            }
            if !is_settled && started.elapsed() >= self.settled_after {
                is_settled = true;
                settled();
            }
            if self.rest.is_some_and(|rest| started.elapsed() >= rest) {
                tracing::info!("opens are held again: the agent is started anew");
                self.agent.stop(STOP_WITHIN, self.watchdog);
                return End::Rested;
            }
        }
    }

    /// Waits for a signal or a sign of life.
    fn wait(&self, wait: Option<Duration>) {
        let mut ready = [
            PollFd::new(self.signals.0.as_fd(), PollFlags::POLLIN),
            PollFd::new(self.agent.socket(), PollFlags::POLLIN),
        ];
        match poll(&mut ready, wait.map_or(PollTimeout::NONE, timeout)) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => {
                tracing::error!(%error, "the supervisor cannot wait");
                std::thread::sleep(Duration::from_secs(1));
            }
        }
    }
}

/// Rounded up, so that a wait that is over has really passed.
fn timeout(wait: Duration) -> PollTimeout {
    let ms = wait.as_micros().div_ceil(1000);
    PollTimeout::try_from(ms).unwrap_or(PollTimeout::MAX)
}
