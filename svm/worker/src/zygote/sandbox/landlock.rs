//! Landlock: whatever a worker can name, it may touch its scratch directory alone;
//! no TCP port, no signal and no abstract socket beyond itself.
//!
//! The newest rules that the kernel knows are used; Debian 12's knows the file
//! system's alone (ABI 2), and the namespaces and seccomp cover the rest there.

use super::super::serve::Place;
use super::{Gap, Obstacle};
use crate::ipc::Channel;
use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr, RulesetStatus, Scope,
};
use nix::errno::Errno;
use std::error::Error;
use std::io;
use std::path::Path;

/// The newest rules that this program knows.
const NEWEST: ABI = ABI::V6;

pub(super) fn restrict(place: &Place, _: &Channel) -> Result<(), Obstacle> {
    match restrict_to(place.scratch.path()) {
        Ok(RulesetStatus::FullyEnforced | RulesetStatus::PartiallyEnforced) => Ok(()),
        Ok(RulesetStatus::NotEnforced) => Err(Obstacle::Missing(Gap {
            feature: "this kernel has no landlock, or it is switched off",
            remedy: "use a kernel from 5.13 on with CONFIG_SECURITY_LANDLOCK, \
                     and landlock in its lsm= list",
            errno: Errno::EOPNOTSUPP,
        })),
        Err(error) => Err(io::Error::other(error).into()),
    }
}

/// Restricts this thread, and those that it starts, to what is below `directory`.
fn restrict_to(directory: &Path) -> Result<RulesetStatus, Box<dyn Error + Send + Sync>> {
    let files = AccessFs::ReadFile
        | AccessFs::WriteFile
        | AccessFs::Truncate
        | AccessFs::ReadDir
        | AccessFs::MakeReg
        | AccessFs::MakeDir
        | AccessFs::RemoveFile
        | AccessFs::RemoveDir;
    let everything: BitFlags<AccessFs> = AccessFs::from_all(NEWEST);
    let status = Ruleset::default()
        .handle_access(everything)?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()?
        .add_rule(PathBeneath::new(PathFd::new(directory)?, files))?
        .restrict_self()?;
    Ok(status.ruleset)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// A thread that restricts itself, if it is told to, and then tries.
    fn outside_is_reachable(restricted: bool) -> Option<bool> {
        let (outside, scratch) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let secret = outside.path().join("secret");
        fs::write(&secret, "secret").unwrap();
        let tried = std::thread::spawn(move || {
            if restricted && restrict_to(scratch.path()).unwrap() == RulesetStatus::NotEnforced {
                return None;
            }
            let own = scratch.path().join("own");
            fs::write(&own, "own").unwrap();
            assert_eq!(fs::read(&own).unwrap(), b"own");
            fs::remove_file(&own).unwrap();
            let link = std::os::unix::fs::symlink(&secret, scratch.path().join("link"));
            assert_eq!(link.is_ok(), !restricted, "a link in scratch");
            let reached = fs::read(&secret).is_ok();
            assert_eq!(fs::write(&secret, "changed").is_ok(), reached);
            Some(reached)
        });
        tried.join().unwrap()
    }

    #[test]
    fn nothing_but_scratch_can_be_touched() {
        assert_eq!(outside_is_reachable(false), Some(true));
        match outside_is_reachable(true) {
            Some(reached) => assert!(!reached),
            None => println!("skipped: nothing_but_scratch_can_be_touched: no landlock here"),
        }
    }
}
