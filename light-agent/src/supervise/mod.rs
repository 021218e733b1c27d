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
//! **What this cannot promise:** killing a stalled agent lets the opens go that waited
//! for it, whatever the failure table says.

pub mod breaker;
mod child;
mod fuse;
pub mod record;

use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use palisade_daemon::lifecycle;

use self::breaker::{Ending, Record, SETTLED};
pub use self::child::Program;
use self::child::{Agent, Beat};
use self::record::{Keeping, boot, now};
use crate::pulse::Sign;
use crate::settings::Folders;
use crate::state_file;

/// How late a sign of life may be.
const GRACE: Duration = Duration::from_secs(3);
/// After that, once more: a machine that stood still does not end its agent.
const SECOND_GRACE: Duration = Duration::from_secs(2);
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

/// Runs the agent until the supervisor is told to stop.
///
/// # Errors
/// When no agent can be started at all.
pub fn run(program: &Program, folders: &Folders) -> anyhow::Result<()> {
    std::fs::create_dir_all(&folders.state)
        .with_context(|| format!("the state folder {}", folders.state.display()))?;
    let _claimed = state_file::claim(&folders.state)?;
    let signals = Signals::take().context("the supervisor's signals")?;
    let mut kept = Keeping::open(&folders.state);
    let boot = boot();
    kept.change(|record| record.begin(&boot, now()));
    loop {
        if signals.stop_within(kept.record().wait()) {
            break;
        }
        kept.change(|record| record.starts(&boot));
        let why = kept.record().why(now());
        if let Some(why) = &why {
            tracing::error!("{why}");
        }
        let agent = program
            .start(why.as_deref())
            .context("the agent cannot be started")?;
        tracing::info!(pid = agent.pid(), "the supervised agent was started");
        let rest = why.and_then(|_| kept.record().resting(now()));
        let end = Watch {
            signals: &signals,
            agent,
            rest,
        }
        .run(|| {
            kept.change(Record::settled);
        });
        kept.change(|record| match end {
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
    fn stop_within(&self, wait: Duration) -> bool {
        let until = Instant::now() + wait;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return self.stop_asked();
            }
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
    agent: Agent,
    /// How long it does not hold opens, if it does not.
    rest: Option<Duration>,
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
                false => Some(SETTLED.saturating_sub(started.elapsed())),
                true => self.rest.map(|rest| rest.saturating_sub(started.elapsed())),
            };
            // Whatever else wakes it does not put off when a sign is due.
            let patience = due.map(|due| due.saturating_duration_since(Instant::now()));
            let wait = match (patience, next_look) {
                (Some(patience), Some(look)) => Some(patience.min(look)),
                (patience, look) => patience.or(look),
            };
            self.wait(wait);
            if self.signals.stop_asked() {
                lifecycle::stopping();
                self.agent.stop(STOP_WITHIN);
                return End::Stopped;
            }
            if let Some(end) = self.agent.ended() {
                return end.map_or(End::Fine, End::Bad);
            }
            let beat = self.agent.beat();
            match beat {
                Beat::Sign(sign) => {
                    if sign == Sign::Ready {
                        lifecycle::ready();
                    } else {
                        due = Some(Instant::now() + sign.next_within() + GRACE);
                        late = false;
                    }
                }
                // Its end is there, or comes at once.
                Beat::Closed => {
                    let end = self.agent.end_within(STOP_WITHIN);
                    return end.map_or(End::Fine, End::Bad);
                }
                Beat::None if due.is_some_and(|due| Instant::now() >= due) => {
                    if late {
                        tracing::error!(
                            pid = self.agent.pid(),
                            "the agent gives no sign of life and is killed: opens that wait for it are let go"
                        );
                        self.agent.kill();
                        return End::Bad(Ending::Stalled);
                    }
                    // Measured anew: the agent may have stood still with us.
                    late = true;
                    due = Some(Instant::now() + SECOND_GRACE);
                }
                Beat::None => {}
            }
            if !is_settled && started.elapsed() >= SETTLED {
                is_settled = true;
                settled();
            }
            if self.rest.is_some_and(|rest| started.elapsed() >= rest) {
                tracing::info!("opens are held again: the agent is started anew");
                self.agent.stop(STOP_WITHIN);
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
