//! Whether an opened file is a protected one although its name does not say so.
//!
//! A name is what some mount makes of a file. Bind mounts, and mounts of another
//! namespace, give a protected file a name outside of the protected paths, or one that
//! is excluded; an overlay opens the file of its layer through a mount of the kernel's
//! own. What counts then is where the file lies within its file system.
//!
//! | opened through | in scope |
//! | --- | --- |
//! | a mount of the agent's namespace | if it lies where a protected path does, and its name is not excluded |
//! | a mount of the opener's namespace | if it may lie where a protected path does; always, if the agent has no mount of that file system |
//! | any other mount | always |
//!
//! The opener's table may be of its own making: its mount points are not believed, only
//! what the kernel says of each mount's root. Owns the agent's table of mounts, as the
//! reader needs it; reads the opener's for each such open, and keeps nothing of it.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::fs::{AtFlags, StatxFlags, statx};

use super::mountinfo::{self, Mount, holding};

/// A place within a file system.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Spot {
    device: String,
    at: PathBuf,
}

/// What is known of the agent's own mounts.
#[derive(Debug, Default)]
struct Known {
    by_id: HashMap<u64, Mount>,
    devices: HashSet<String>,
    protected: Vec<Spot>,
}

impl Known {
    fn of(table: &str, paths: &[PathBuf]) -> Self {
        let mounts = mountinfo::parse_all(table);
        let spot = |path: &PathBuf| {
            let mount = holding(&mounts, path)?;
            Some(Spot {
                device: mount.device.clone(),
                at: within(mount, path)?,
            })
        };
        Self {
            protected: paths.iter().filter_map(spot).collect(),
            devices: mounts.iter().map(|mount| mount.device.clone()).collect(),
            by_id: mounts.into_iter().map(|mount| (mount.id, mount)).collect(),
        }
    }

    /// Of a file that a mount of this very table shows under this name.
    fn own_holds(&self, mount: &Mount, path: &Path) -> bool {
        let Some(at) = within(mount, path) else {
            return true;
        };
        let holds = |spot: &Spot| spot.device == mount.device && at.starts_with(&spot.at);
        self.protected.iter().any(holds)
    }

    /// Of a file that a mount of another namespace shows. Its name ends with the way
    /// from the mount's root to it, and where that begins is not known.
    fn foreign_may_hold(&self, mount: &Mount, path: &Path) -> bool {
        if !self.devices.contains(&mount.device) {
            return true;
        }
        self.protected.iter().any(|spot| {
            spot.device == mount.device
                && (mount.root.starts_with(&spot.at)
                    || spot
                        .at
                        .strip_prefix(&mount.root)
                        .is_ok_and(|way| contains(path, way)))
        })
    }
}

/// Where a path of a mount lies within its file system.
fn within(mount: &Mount, path: &Path) -> Option<PathBuf> {
    let below = path.strip_prefix(&mount.point).ok()?;
    Some(mount.root.join(below))
}

/// Whether the components of `way` follow each other anywhere in `path`.
fn contains(path: &Path, way: &Path) -> bool {
    let path: Vec<&OsStr> = path.iter().collect();
    let way: Vec<&OsStr> = way.iter().collect();
    way.is_empty() || path.windows(way.len()).any(|part| part == way)
}

/// Judges files by where they lie.
pub struct Names {
    table: Option<File>,
    paths: Vec<PathBuf>,
    known: Known,
}

impl Names {
    /// For these protected paths.
    pub fn new(paths: &[PathBuf]) -> Self {
        let mut names = Self {
            table: File::open("/proc/self/mountinfo").ok(),
            paths: paths.to_vec(),
            known: Known::default(),
        };
        names.read();
        names
    }

    /// Whether a file is protected whose name does not say so. What cannot be found out
    /// speaks for it. `excluded` says that its name is.
    pub fn hide(
        &mut self,
        file: BorrowedFd<'_>,
        pid: u32,
        path: Option<&[u8]>,
        excluded: bool,
    ) -> bool {
        let Some(path) = path else {
            return true;
        };
        let path = Path::new(OsStr::from_bytes(path));
        let Some(id) = mount_id(file) else {
            return true;
        };
        self.refresh();
        if let Some(mount) = self.known.by_id.get(&id) {
            return !excluded && self.known.own_holds(mount, path);
        }
        match foreign(pid, id) {
            Some(mount) => self.known.foreign_may_hold(&mount, path),
            None => true,
        }
    }

    fn refresh(&mut self) {
        let changed = self.table.as_ref().is_none_or(|table| {
            let mut ready = [PollFd::new(table.as_fd(), PollFlags::POLLPRI)];
            // The kernel says so once to each that has it open.
            poll(&mut ready, PollTimeout::ZERO).map_or(true, |n| n > 0)
        });
        if changed {
            self.read();
        }
    }

    fn read(&mut self) {
        let text = self
            .table
            .as_mut()
            .and_then(|table| mountinfo::read(table).ok());
        // Without a table no mount is known: everything is in scope.
        self.known = text.map_or_else(Known::default, |text| Known::of(&text, &self.paths));
    }
}

fn mount_id(file: BorrowedFd<'_>) -> Option<u64> {
    let stat = statx(file, c"", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID).ok()?;
    StatxFlags::from_bits_retain(stat.stx_mask)
        .contains(StatxFlags::MNT_ID)
        .then_some(stat.stx_mnt_id)
}

/// The mount, by the table of the process that opens.
fn foreign(pid: u32, id: u64) -> Option<Mount> {
    let mut table = File::open(format!("/proc/{pid}/mountinfo")).ok()?;
    let text = mountinfo::read(&mut table).ok()?;
    text.lines()
        .filter_map(mountinfo::parse)
        .find(|mount| mount.id == id)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const TABLE: &str = "1 0 8:1 / / rw - ext4 a rw\n2 1 8:1 /home/u /bound rw - ext4 a rw\n\
                         3 1 8:2 / /data rw - xfs b rw\n4 1 8:1 / /twice rw - ext4 a rw\n";

    fn known() -> Known {
        Known::of(TABLE, &["/home".into(), "/data/in".into()])
    }

    fn own(id: u64, path: &str) -> bool {
        let known = known();
        known.own_holds(&known.by_id[&id], Path::new(path))
    }

    #[test]
    fn where_a_file_lies_counts_and_not_its_name() {
        assert!(own(2, "/bound/evil"));
        assert!(own(4, "/twice/home/evil"));
        assert!(!own(4, "/twice/etc/passwd"));
        assert!(!own(1, "/homes/x"));
        assert!(own(3, "/data/in/x"));
        assert!(!own(3, "/data/out/x"));
        assert!(own(3, "/elsewhere"), "what cannot be told is in scope");
    }

    fn foreign_holds(line: &str, path: &str) -> bool {
        known().foreign_may_hold(&mountinfo::parse(line).unwrap(), Path::new(path))
    }

    #[test]
    fn a_foreign_mount_is_judged_by_its_root() {
        let bound = "9 1 8:1 /home/u /etc rw - ext4 a rw";
        assert!(foreign_holds(bound, "/etc/passwd"));
        let part = "9 1 8:1 /var/lib /home rw - ext4 a rw";
        assert!(!foreign_holds(part, "/home/db"));
        let whole = "9 1 8:1 / /x rw - ext4 a rw";
        assert!(foreign_holds(whole, "/x/home/evil"));
        assert!(!foreign_holds(whole, "/x/usr/lib/libc.so"));
        // Wherever the opener says that the mount is.
        let liar = "9 1 8:1 / /x/home rw - ext4 a rw";
        assert!(foreign_holds(liar, "/x/home/home/evil"));
        let unknown = "9 1 0:77 / /x rw - tmpfs t rw";
        assert!(foreign_holds(unknown, "/x/anything"));
    }

    fn names() -> impl Strategy<Value = Vec<String>> {
        prop::collection::vec("[ab]|home", 0..4)
    }

    proptest! {
        // No name that a mount can give a protected file takes it out of scope.
        #[test]
        fn no_mount_point_hides_a_protected_file(
            point in names(), cut in 0..3_usize, below in names(),
        ) {
            let at = ["home".to_owned()].into_iter().chain(below).chain(["f".to_owned()]);
            let at: Vec<String> = at.collect();
            let cut = cut.min(at.len() - 1);
            let root = format!("/{}", at[..cut].join("/"));
            let mount = format!("9 1 8:1 {root} /p rw - ext4 a rw");
            let path = format!("/{}/{}", point.join("/"), at[cut..].join("/"));
            prop_assert!(foreign_holds(&mount, &path), "{mount} {path}");
        }
    }

    #[test]
    fn a_file_of_this_namespace_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        let path = dir.join("f");
        std::fs::write(&path, "x").unwrap();
        let file = File::open(&path).unwrap();
        let bytes = path.as_os_str().as_bytes();
        let hide = |paths: &[PathBuf], excluded| {
            let pid = std::process::id();
            Names::new(paths).hide(file.as_fd(), pid, Some(bytes), excluded)
        };
        assert!(hide(std::slice::from_ref(&dir), false));
        assert!(!hide(std::slice::from_ref(&dir), true));
        assert!(!hide(&["/no/such".into()], false));
    }
}
