//! Settings of what workers are confined by: their meaning and their bounds.

use std::time::Duration;

use nix::unistd::{Uid, User};
use serde::Deserialize;

use super::Scan;
use crate::engine::Confinement;

/// Least memory of a worker beyond the largest content that it scans, in bytes.
const WORKER_MEMORY: u64 = 256 << 20;
/// Least room for temporary files of a worker, in bytes.
const WORKER_SCRATCH: u64 = 16 << 20;

/// What happens where this machine cannot do all that confines workers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SandboxPolicy {
    /// Nothing is scanned, and the log names what is missing, with a remedy.
    #[default]
    Required,
    /// The log names what is missing, and scans go on without it.
    BestEffort,
}

impl SandboxPolicy {
    /// Its name here and on the engine programs' command lines.
    pub fn name(self) -> &'static str {
        match self {
            Self::Required => "required",
            Self::BestEffort => "best-effort",
        }
    }
}

impl Scan {
    /// Bounds of the keys that say what workers are confined by: whether each is kept,
    /// the key, what it holds, what it may hold.
    pub(super) fn confinement_rules(&self) -> [(bool, &'static str, String, String); 3] {
        let least = self.max_scan_size.0.saturating_add(WORKER_MEMORY);
        [
            (
                self.worker_memory.0 >= least,
                "scan.worker_memory",
                self.worker_memory.to_string(),
                format!("the largest content that is scanned needs {least} bytes"),
            ),
            (
                self.worker_scratch.0 >= WORKER_SCRATCH,
                "scan.worker_scratch",
                self.worker_scratch.to_string(),
                format!("at least {WORKER_SCRATCH} bytes are needed"),
            ),
            (
                unprivileged(&self.worker_user).is_some(),
                "scan.worker_user",
                format!("{:?}", self.worker_user),
                "it must be a user of this system, by name or number, and not root".to_owned(),
            ),
        ]
    }

    /// What workers are confined by.
    pub fn confinement(&self) -> Confinement {
        // Checked when the settings were read; a user that was removed since then is
        // as good as any that is not root.
        let (uid, gid) = unprivileged(&self.worker_user).unwrap_or(NOBODY);
        Confinement {
            sandbox: self.sandbox,
            uid,
            gid,
            memory_bytes: self.worker_memory.0,
            scratch_bytes: self.worker_scratch.0,
            cpu_timeout: Duration::from_secs(self.cpu_timeout_s.into()),
        }
    }
}

/// `nobody` and its group, on Linux.
const NOBODY: (u32, u32) = (65534, 65534);

/// User and group of a user that is not root, by name or number.
fn unprivileged(user: &str) -> Option<(u32, u32)> {
    let found = match user.parse::<u32>() {
        Ok(uid) => User::from_uid(Uid::from_raw(uid))
            .ok()
            .flatten()
            .map_or((uid, uid), |user| (uid, user.gid.as_raw())),
        Err(_) => {
            let user = User::from_name(user).ok().flatten()?;
            (user.uid.as_raw(), user.gid.as_raw())
        }
    };
    (found.0 > 0 && found.1 > 0).then_some(found)
}
