//! Programs whose opens are let through (`on_access.exclude_processes`): a backup, a
//! database, another scanner.
//!
//! A process runs one if its executable is the very file that is at the configured path
//! now, which root owns and nobody else may write. A name that a process gives itself
//! counts for nothing. What a process executes is scanned all the same. Whoever may run
//! such a program, or makes it load code of theirs, may read malware by it.
//!
//! Asked by the reader, so that nothing here waits for a disk or a server: what the kernel
//! does not have in memory is no such program. One that runs is in memory.

use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, Statx, StatxFlags, openat2, statx,
};

/// Write permission of group and others.
const OTHERS_WRITE: u32 = 0o022;

/// The programs.
#[derive(Debug, Clone, Default)]
pub struct Programs(Vec<PathBuf>);

impl Programs {
    /// By their paths.
    pub fn new(paths: &[PathBuf]) -> Self {
        Self(paths.to_vec())
    }

    /// Whether a process runs one of them.
    pub fn are_run_by(&self, pid: u32) -> bool {
        if self.0.is_empty() {
            return false;
        }
        let link = format!("/proc/{pid}/exe");
        let Ok(running) = statx(CWD, link, AtFlags::STATX_DONT_SYNC, StatxFlags::INO) else {
            return false;
        };
        self.0
            .iter()
            .any(|path| there(path).is_some_and(|there| is_same(&there, &running)))
    }
}

/// What is at a path, if root owns it and nobody else may write it.
fn there(path: &Path) -> Option<Statx> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let file = openat2(CWD, path, flags, Mode::empty(), ResolveFlags::CACHED).ok()?;
    let wanted = StatxFlags::INO | StatxFlags::UID | StatxFlags::MODE | StatxFlags::TYPE;
    let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let there = statx(&file, c"", flags, wanted).ok()?;
    let mode = u32::from(there.stx_mode);
    let is_roots = there.stx_uid == 0
        && mode & OTHERS_WRITE == 0
        && FileType::from_raw_mode(mode) == FileType::RegularFile;
    is_roots.then_some(there)
}

fn is_same(one: &Statx, other: &Statx) -> bool {
    let key = |stat: &Statx| (stat.stx_dev_major, stat.stx_dev_minor, stat.stx_ino);
    key(one) == key(other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;
    use std::process::{Child, Command};

    struct Sleeper(Child);

    impl Drop for Sleeper {
        fn drop(&mut self) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    #[test]
    fn only_the_very_file_of_root_counts() {
        let folder = tempfile::tempdir().unwrap();
        let own = folder.path().join("sleep");
        std::fs::copy("/bin/sleep", &own).unwrap();
        let run = |program: &Path| {
            let child = Command::new(program).arg("60").spawn().unwrap();
            let pid = child.id();
            let sleeper = Sleeper(child);
            // It executes nothing of its own yet, right after the fork.
            let link = format!("/proc/{pid}/exe");
            while std::fs::read_link(&link).is_ok_and(|exe| !exe.ends_with("sleep")) {
                std::thread::yield_now();
            }
            (sleeper, pid)
        };
        let (_system, system) = run(Path::new("/bin/sleep"));
        let (_copy, copy) = run(&own);
        let programs = |path: &Path| Programs::new(&[path.to_owned()]);
        assert!(programs(Path::new("/bin/sleep")).are_run_by(system));
        assert!(!programs(Path::new("/bin/sleep")).are_run_by(copy));
        assert!(!programs(Path::new("/no/such")).are_run_by(system));
        assert!(!Programs::default().are_run_by(system));
        let is_root = nix::unistd::geteuid().is_root();
        assert_eq!(programs(&own).are_run_by(copy), is_root);
        let all = std::fs::Permissions::from_mode(0o757);
        std::fs::set_permissions(&own, all).unwrap();
        assert!(!programs(&own).are_run_by(copy), "anybody may write it");
    }
}
