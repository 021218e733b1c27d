//! Namespaces: no network, no other process' IPC, no host name, and a file system
//! that holds the worker's scratch directory and nothing else.
//!
//! The zygote enters network, IPC, UTS, cgroup and mount namespaces once, and its
//! workers are born there: there is nothing in them that workers could share, and
//! a network namespace for each would cost every fork a millisecond. Each worker
//! has a mount namespace of its own, whose root is its scratch tmpfs: there is no
//! name for anything outside, and with the worker it is gone.

use super::super::serve::Place;
use super::{Confinement, Gap, Obstacle};
use crate::ipc::Channel;
use crate::sys;
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::unistd::{chdir, chown, getegid, geteuid, pivot_root};
use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// What the zygote gives up for all its workers.
const OWN: CloneFlags = CloneFlags::CLONE_NEWNS
    .union(CloneFlags::CLONE_NEWNET)
    .union(CloneFlags::CLONE_NEWIPC)
    .union(CloneFlags::CLONE_NEWUTS)
    .union(CloneFlags::CLONE_NEWCGROUP);

const REMEDY: &str = "run palisade-scanserver as root, or let it make user namespaces \
                      (sysctl user.max_user_namespaces; in a container, allow unshare and mount)";

/// Where a worker's temporary files go.
#[derive(Clone, Debug)]
pub(in super::super) enum Scratch {
    /// A tmpfs of its own, mounted over this directory, and the worker's root.
    Private(PathBuf),
    /// A directory among others: the machine lets us mount nothing.
    Shared(PathBuf),
}

impl Scratch {
    /// Where the worker finds it, once it has entered.
    pub fn path(&self) -> &Path {
        match self {
            Self::Private(_) => Path::new("/"),
            Self::Shared(path) => path,
        }
    }

    /// Makes what a worker needs before its fork.
    pub fn prepare(&self, confinement: &Confinement) -> io::Result<()> {
        let Self::Shared(path) = self else {
            return Ok(());
        };
        match fs::remove_dir_all(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        DirBuilder::new().mode(0o700).create(path)?;
        if let Some((uid, gid)) = confinement.user.to_become() {
            match chown(path, Some(uid), Some(gid)) {
                // A user that nobody can become; the worker says so.
                Err(Errno::EPERM | Errno::EINVAL) => {}
                changed => changed?,
            }
        }
        Ok(())
    }

    /// Removes what is left when it is gone.
    pub fn clear(&self) {
        let Self::Shared(path) = self else {
            return;
        };
        if let Err(error) = fs::remove_dir_all(path)
            && error.kind() != io::ErrorKind::NotFound
        {
            eprintln!(
                "palisade-worker: scratch directory {} stays: {error}",
                path.display()
            );
        }
    }
}

/// The zygote enters its namespaces; gives what this machine lacks, if anything.
///
/// Without the right to make namespaces a user namespace comes first, in which the
/// zygote has the right, and is nobody else than before.
pub(in super::super) fn own_namespaces(scratch: &Path, confinement: &Confinement) -> Option<Gap> {
    let gap = |feature| {
        move |errno| Gap {
            feature,
            remedy: REMEDY,
            errno,
        }
    };
    // A keyring that holds nothing. Where there are none, or none can be had, there
    // is nothing to be reached either.
    let _ = sys::new_session_keyring();
    let entered = match unshare(OWN) {
        Ok(()) => Ok(()),
        Err(_) => with_user_namespace(),
    };
    entered
        .map_err(gap("no namespaces can be made"))
        .and_then(|()| {
            // What workers mount is theirs alone.
            let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
            mount(None::<&str>, "/", None::<&str>, private, None::<&str>)
                .and_then(|()| mount_scratch(scratch, confinement))
                .and_then(|()| umount2(scratch, MntFlags::empty()))
                .map_err(gap("no file system can be mounted in a namespace"))
        })
        .err()
}

fn with_user_namespace() -> nix::Result<()> {
    let (uid, gid) = (geteuid(), getegid());
    unshare(CloneFlags::CLONE_NEWUSER | OWN)?;
    let write = |file: &str, text: String| {
        fs::write(file, text).map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(0)))
    };
    write("/proc/self/setgroups", "deny".to_owned())?;
    write("/proc/self/uid_map", format!("{uid} {uid} 1"))?;
    write("/proc/self/gid_map", format!("{gid} {gid} 1"))
}

fn mount_scratch(at: &Path, confinement: &Confinement) -> nix::Result<()> {
    let limits = confinement.limits;
    let (uid, gid) = confinement
        .user
        .to_become()
        .unwrap_or((geteuid(), getegid()));
    let options = format!(
        "size={},nr_inodes={},mode=0700,uid={uid},gid={gid}",
        limits.scratch_bytes, limits.scratch_files
    );
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(
        Some("palisade-scratch"),
        at,
        Some("tmpfs"),
        flags,
        Some(options.as_str()),
    )
}

/// From here on the scratch directory is where relative paths, of which there
/// should be none, end up; and if it is the worker's own, all paths.
pub(super) fn enter_scratch(place: &Place, _: &Channel) -> Result<(), Obstacle> {
    let at = match &place.scratch {
        Scratch::Shared(path) => return Ok(chdir(path)?),
        Scratch::Private(at) => at,
    };
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount_scratch(at, &place.confinement)?;
    chdir(at)?;
    // Puts the old root over the new one, from where it is taken away.
    pivot_root(".", ".")?;
    umount2(".", MntFlags::MNT_DETACH)?;
    Ok(chdir("/")?)
}
