//! What a worker gives up before it sees content.
//!
//! The steps run in the order of [`STEPS`], in the freshly forked worker, each
//! once. A step that fails stops the worker before it serves. Order matters: what
//! needs a right comes before the step that drops it.

use super::serve::Place;
use crate::ipc::Channel;
use crate::sys;
use nix::sys::prctl;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{chdir, getppid};
use std::io;
use std::os::fd::AsFd;

/// Limits that the kernel holds a worker to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Open descriptors.
    pub open_files: u64,
    /// Processor time over the worker's whole life (seconds); none if absent.
    pub cpu_seconds: Option<u64>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            open_files: 256,
            cpu_seconds: None,
        }
    }
}

type Step = fn(&Place, &Channel) -> io::Result<()>;

/// The sandbox. Namespaces and a size-capped file system for the scratch directory
/// belong before `death signal` (a change of uid clears that), the uid between
/// them, landlock after `no new privileges`, seccomp last of all and after
/// [`super::Engine::enter_worker`], which may need a thread and executable memory.
const STEPS: [(&str, Step); 7] = [
    ("signals", unblock_signals),
    ("descriptors", close_descriptors),
    ("umask", set_umask),
    ("death signal", die_with_parent),
    ("no new privileges", no_new_privileges),
    ("limits", set_limits),
    ("scratch directory", enter_scratch),
];

/// Takes every step; the error names the one that failed.
pub(super) fn enter(place: &Place, channel: &Channel) -> Result<(), String> {
    for (name, step) in STEPS {
        step(place, channel).map_err(|error| format!("{name}: {error}"))?;
    }
    Ok(())
}

/// The zygote blocks SIGCHLD to read it from a descriptor; a worker has neither.
fn unblock_signals(_: &Place, _: &Channel) -> io::Result<()> {
    Ok(SigSet::all().thread_unblock()?)
}

/// The zygote's control socket, and whatever else it holds.
fn close_descriptors(_: &Place, channel: &Channel) -> io::Result<()> {
    sys::close_all_but(channel.as_fd())
}

fn set_umask(_: &Place, _: &Channel) -> io::Result<()> {
    umask(Mode::from_bits_truncate(0o077));
    Ok(())
}

/// Dies with the zygote; and if that is already gone, at once.
fn die_with_parent(place: &Place, _: &Channel) -> io::Result<()> {
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    if getppid() == place.parent {
        Ok(())
    } else {
        Err(io::Error::other("the zygote is gone"))
    }
}

fn no_new_privileges(_: &Place, _: &Channel) -> io::Result<()> {
    Ok(prctl::set_no_new_privs()?)
}

fn set_limits(place: &Place, _: &Channel) -> io::Result<()> {
    // A core file would hold a guest's content.
    setrlimit(Resource::RLIMIT_CORE, 0, 0)?;
    let files = place.limits.open_files;
    setrlimit(Resource::RLIMIT_NOFILE, files, files)?;
    if let Some(seconds) = place.limits.cpu_seconds {
        setrlimit(Resource::RLIMIT_CPU, seconds, seconds)?;
    }
    Ok(())
}

/// Relative paths, of which there should be none, end up here.
fn enter_scratch(place: &Place, _: &Channel) -> io::Result<()> {
    Ok(chdir(&place.scratch)?)
}
