//! What a worker gives up before it sees content.
//!
//! ```text
//! zygote, once:   own_namespaces ──► every worker is forked inside them
//! worker:         BEFORE_WARM_UP ──► Engine::enter_worker ──► AFTER_WARM_UP ──► canary
//! ```
//!
//! The steps run in the order of the tables, in the freshly forked worker, each
//! once. Order matters: what needs a right comes before the step that drops it. A
//! step that fails stops the worker before it serves; a step that this machine
//! cannot take ([`Obstacle::Missing`]) does so too, unless the policy is
//! [`Policy::BestEffort`]: then it is named to the daemon, and left out.
//!
//! | module | owns |
//! | --- | --- |
//! | [`namespaces`] | network and other namespaces; the scratch directory as the worker's whole file system |
//! | [`identity`] | user, capabilities, death with the zygote, no new privileges |
//! | [`limits`] | what the kernel counts: memory, files, processes |
//! | [`landlock`] | which files may be touched, whatever can be named |
//! | [`seccomp`] | which system calls there are |

mod identity;
mod landlock;
mod limits;
mod namespaces;
mod seccomp;

pub use identity::User;
pub use limits::Limits;
pub use seccomp::Group;

pub(super) use namespaces::{Scratch, own_namespaces};

use super::serve::Place;
use crate::ipc::Channel;
use crate::message::{Detail, MAX_GAPS};
use crate::sys;
use nix::errno::Errno;
use nix::sys::signal::SigSet;
use nix::sys::stat::{Mode, umask};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;

/// Everything a worker is confined by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Confinement {
    /// What happens on a machine that cannot do all of it.
    pub policy: Policy,
    /// Who workers run as, when the zygote may choose.
    pub user: User,
    /// Limits of each worker.
    pub limits: Limits,
    /// The system calls that the engine needs beside those that every engine needs.
    pub groups: &'static [Group],
}

/// What happens when this machine cannot take a step of the sandbox.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// The worker does not serve.
    #[default]
    Required,
    /// The step is left out, and the daemon is told.
    BestEffort,
}

impl Policy {
    /// By its name in settings and on command lines.
    pub fn by_name(name: &str) -> Option<Self> {
        match name {
            "required" => Some(Self::Required),
            "best-effort" => Some(Self::BestEffort),
            _ => None,
        }
    }
}

type Step = fn(&Place, &Channel) -> Result<(), Obstacle>;

/// Up to the engine's own preparation, which may still start a thread and make
/// memory executable. The uid changes after the mounts, which need rights, and
/// before the death signal, which a change of uid clears.
const BEFORE_WARM_UP: [(&str, Step); 10] = [
    ("signals", unblock_signals),
    ("descriptors", close_descriptors),
    ("umask", set_umask),
    ("limits", limits::set),
    ("scratch directory", namespaces::enter_scratch),
    ("identity", identity::drop_rights),
    ("dumpable", identity::not_dumpable),
    ("death signal", identity::die_with_parent),
    ("no new privileges", identity::no_new_privileges),
    ("landlock", landlock::restrict),
];

/// From here on there is neither a new thread nor a new process.
const AFTER_WARM_UP: [(&str, Step); 2] = [
    ("processes", limits::no_processes),
    ("seccomp", seccomp::filter),
];

/// Why a step was not taken.
#[derive(Debug)]
pub(super) enum Obstacle {
    /// This machine cannot do it.
    Missing(Gap),
    /// It can, and yet it failed.
    Failed(io::Error),
}

/// Something that this machine lacks.
#[derive(Clone, Copy, Debug)]
pub(super) struct Gap {
    /// What is missing, in words.
    pub feature: &'static str,
    /// What can be done about it.
    pub remedy: &'static str,
    /// What the kernel said.
    pub errno: Errno,
}

impl std::fmt::Display for Gap {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (feature, remedy, errno) = (self.feature, self.remedy, self.errno.desc());
        write!(f, "{feature} ({errno}): {remedy}")
    }
}

impl<E: Into<io::Error>> From<E> for Obstacle {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// What a policy of required steps is told to do about a gap.
const WAY_OUT: &str = "or run with less protection: [scan] sandbox = \"best-effort\"";

/// Takes every step before the warm-up; gives what had to be left out.
pub(super) fn enter(place: &Place, channel: &Channel) -> Result<Vec<Detail>, String> {
    let mut gaps = Vec::new();
    if let Some(gap) = place.namespaces {
        judge(place, "namespaces", Obstacle::Missing(gap), &mut gaps)?;
    }
    take(&BEFORE_WARM_UP, place, channel, &mut gaps)?;
    Ok(gaps)
}

/// Takes every step after it, and adds what had to be left out.
pub(super) fn lock(place: &Place, channel: &Channel, gaps: &mut Vec<Detail>) -> Result<(), String> {
    take(&AFTER_WARM_UP, place, channel, gaps)
}

fn take(
    steps: &[(&str, Step)],
    place: &Place,
    channel: &Channel,
    gaps: &mut Vec<Detail>,
) -> Result<(), String> {
    for (name, step) in steps {
        match step(place, channel) {
            Ok(()) => {}
            Err(obstacle) => judge(place, name, obstacle, gaps)?,
        }
    }
    Ok(())
}

fn judge(
    place: &Place,
    name: &str,
    obstacle: Obstacle,
    gaps: &mut Vec<Detail>,
) -> Result<(), String> {
    match (obstacle, place.confinement.policy) {
        (Obstacle::Failed(error), _) => Err(format!("{name}: {error}")),
        (Obstacle::Missing(gap), Policy::Required) => Err(format!("{name}: {gap}; {WAY_OUT}")),
        (Obstacle::Missing(gap), Policy::BestEffort) => {
            if gaps.len() < MAX_GAPS {
                gaps.push(format!("{name}: {gap}").as_str().into());
            }
            Ok(())
        }
    }
}

/// The zygote blocks SIGCHLD to read it from a descriptor; a worker has neither.
fn unblock_signals(_: &Place, _: &Channel) -> Result<(), Obstacle> {
    Ok(SigSet::all().thread_unblock()?)
}

/// The zygote's control socket, the daemon's log, and whatever else it holds: what
/// a worker has to say goes through its channel.
fn close_descriptors(_: &Place, channel: &Channel) -> Result<(), Obstacle> {
    let nowhere = File::options().read(true).write(true).open("/dev/null")?;
    nix::unistd::dup2_stdin(&nowhere)?;
    nix::unistd::dup2_stdout(&nowhere)?;
    nix::unistd::dup2_stderr(&nowhere)?;
    drop(nowhere);
    Ok(sys::close_all_but(channel.as_fd())?)
}

fn set_umask(_: &Place, _: &Channel) -> Result<(), Obstacle> {
    umask(Mode::from_bits_truncate(0o077));
    Ok(())
}
