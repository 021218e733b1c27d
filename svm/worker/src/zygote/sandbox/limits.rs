//! What the kernel counts for us.
//!
//! Memory of a worker is three things, and each has its cap: what it allocates
//! (`RLIMIT_DATA` over what the zygote had), its scratch tmpfs, and nothing else:
//! seccomp leaves it no shared memory and no memory files.
//!
//! Processor time is not among them. `RLIMIT_CPU` counts a process' whole life, and
//! its soft limit can be raised by the process itself; the daemon reads the
//! worker's clock and has it killed, which a worker that was taken over cannot
//! talk its way out of.

use super::super::serve::Place;
use super::{Gap, Obstacle};
use crate::ipc::Channel;
use nix::sys::resource::{Resource, setrlimit};
use std::fs;
use std::io;

/// Limits that the kernel holds a worker to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Open descriptors.
    pub open_files: u64,
    /// Memory that it allocates beyond what the zygote had (bytes).
    pub memory_bytes: u64,
    /// Its scratch directory's size (bytes).
    pub scratch_bytes: u64,
    /// Entries in its scratch directory, the root among them.
    pub scratch_files: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            open_files: 256,
            memory_bytes: 2 << 30,
            scratch_bytes: 1 << 30,
            scratch_files: 65_536,
        }
    }
}

/// No worker needs these at all: core files would hold a guest's content.
const NONE: [Resource; 6] = [
    Resource::RLIMIT_CORE,
    Resource::RLIMIT_MEMLOCK,
    Resource::RLIMIT_MSGQUEUE,
    Resource::RLIMIT_NICE,
    Resource::RLIMIT_RTPRIO,
    Resource::RLIMIT_LOCKS,
];

/// A full scratch directory is an error, which engines know; a file over its limit
/// is a signal, which ends them. So the first comes first (bytes).
const OVER_SCRATCH: u64 = 1 << 16;

pub(super) fn set(place: &Place, _: &Channel) -> Result<(), Obstacle> {
    let limits = place.confinement.limits;
    for resource in NONE {
        setrlimit(resource, 0, 0)?;
    }
    let allocated = allocated()?.saturating_add(limits.memory_bytes);
    for (resource, limit) in [
        (Resource::RLIMIT_NOFILE, limits.open_files),
        (
            Resource::RLIMIT_FSIZE,
            limits.scratch_bytes.saturating_add(OVER_SCRATCH),
        ),
        (Resource::RLIMIT_DATA, allocated),
    ] {
        setrlimit(resource, limit, limit)?;
    }
    // When memory is short, a worker goes first.
    fs::write("/proc/self/oom_score_adj", "1000").map_err(|error| match error.raw_os_error() {
        Some(raw) => Obstacle::Missing(Gap {
            feature: "workers cannot be made the first to go when memory is short",
            remedy: "mount /proc writable for palisade-scanserver",
            errno: nix::errno::Errno::from_raw(raw),
        }),
        None => error.into(),
    })
}

/// No new thread, no new process; those that there are stay.
pub(super) fn no_processes(_: &Place, _: &Channel) -> Result<(), Obstacle> {
    Ok(setrlimit(Resource::RLIMIT_NPROC, 0, 0)?)
}

/// What this process has allocated (bytes), as `RLIMIT_DATA` counts.
fn allocated() -> io::Result<u64> {
    let status = fs::read_to_string("/proc/self/status")?;
    status
        .lines()
        .find_map(|line| line.strip_prefix("VmData:"))
        .and_then(|value| value.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok())
        .map(|kib| kib << 10)
        .ok_or_else(|| io::Error::other("/proc/self/status has no VmData"))
}
