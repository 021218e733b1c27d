//! Who a worker is: nobody, with no right, and not for longer than its zygote.

use super::super::serve::Place;
use super::{Gap, Obstacle};
use crate::ipc::Channel;
use crate::sys;
use nix::errno::Errno;
use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{Gid, Uid, geteuid, getppid, setgroups, setresgid, setresuid};
use std::io;

/// `nobody` on Linux, as user and as group.
const NOBODY: u32 = 65534;

/// Who workers run as when the zygote is root. A zygote that is not root cannot
/// choose: its workers are who it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

impl Default for User {
    fn default() -> Self {
        Self {
            uid: NOBODY,
            gid: NOBODY,
        }
    }
}

impl User {
    /// Whom this process is to become, if it can choose.
    pub(super) fn to_become(self) -> Option<(Uid, Gid)> {
        geteuid()
            .is_root()
            .then(|| (Uid::from_raw(self.uid), Gid::from_raw(self.gid)))
    }
}

/// Another user, if this one is root; and no capability, now or ever again.
pub(super) fn drop_rights(place: &Place, _: &Channel) -> Result<(), Obstacle> {
    // Without the right to do so there is no right to drop.
    sys::drop_bounding_set()?;
    let mut gap = None;
    if let Some((uid, gid)) = place.confinement.user.to_become() {
        let changed = setgroups(&[])
            .and_then(|()| setresgid(gid, gid, gid))
            .and_then(|()| setresuid(uid, uid, uid));
        match changed {
            Ok(()) => {}
            // Root without the capability, or in a namespace that has no other user.
            Err(errno @ (Errno::EPERM | Errno::EINVAL)) => {
                gap = Some(Gap {
                    feature: "workers run as root, for this root cannot change its user",
                    remedy: "give palisade-scanserver CAP_SETUID and CAP_SETGID, \
                             or start it as an unprivileged user",
                    errno,
                });
            }
            Err(errno) => return Err(errno.into()),
        }
    }
    sys::clear_capabilities()?;
    gap.map_or(Ok(()), |gap| Err(Obstacle::Missing(gap)))
}

/// Nobody of the same user may look into a worker: no ptrace, no core file.
pub(super) fn not_dumpable(_: &Place, _: &Channel) -> Result<(), Obstacle> {
    Ok(prctl::set_dumpable(false)?)
}

/// Dies with the zygote; and if that is already gone, at once.
pub(super) fn die_with_parent(place: &Place, _: &Channel) -> Result<(), Obstacle> {
    prctl::set_pdeathsig(Signal::SIGKILL)?;
    if getppid() == place.parent {
        Ok(())
    } else {
        Err(io::Error::other("the zygote is gone").into())
    }
}

pub(super) fn no_new_privileges(_: &Place, _: &Channel) -> Result<(), Obstacle> {
    Ok(prctl::set_no_new_privs()?)
}
