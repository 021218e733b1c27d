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
//! | any other mount, and one that is not looked up | always |
//!
//! Every opener waits for the reader: what is read of openers' tables for this is bounded
//! ([`elsewhere`](super::elsewhere)).
//!
//! Owns the agent's table of mounts, as the reader needs it.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use super::elsewhere::{Elsewhere, MountId, Spot};
use super::mountinfo::{self, Followed, Mount, holding};

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
            Spot::of(mount, path)
        };
        Self {
            protected: paths.iter().filter_map(spot).collect(),
            devices: mounts.iter().map(|mount| mount.device.clone()).collect(),
            by_id: mounts.into_iter().map(|mount| (mount.id, mount)).collect(),
        }
    }

    /// Of a file that a mount of this very table shows under this name.
    fn own_holds(&self, mount: &Mount, path: &Path) -> bool {
        Spot::of(mount, path).is_none_or(|at| self.protected.iter().any(|spot| at.is_within(spot)))
    }

    /// Of a file that a mount of another namespace shows. Its name ends with the way
    /// from the mount's root to it, and where that begins is not known.
    fn foreign_may_hold(&self, root: &Spot, path: &Path) -> bool {
        if !self.devices.contains(&root.device) {
            return true;
        }
        self.protected.iter().any(|spot| {
            spot.device == root.device
                && (root.at.starts_with(&spot.at)
                    || spot
                        .at
                        .strip_prefix(&root.at)
                        .is_ok_and(|way| contains(path, way)))
        })
    }
}

/// Whether the components of `way` follow each other anywhere in `path`.
fn contains(path: &Path, way: &Path) -> bool {
    let path: Vec<&OsStr> = path.iter().collect();
    let way: Vec<&OsStr> = way.iter().collect();
    way.is_empty() || path.windows(way.len()).any(|part| part == way)
}

/// Judges files by where they lie.
pub struct Names {
    table: Followed,
    paths: Vec<PathBuf>,
    known: Known,
    elsewhere: Elsewhere,
}

impl Names {
    /// For these protected paths.
    pub fn new(paths: &[PathBuf]) -> Self {
        Self {
            table: Followed::default(),
            paths: paths.to_vec(),
            known: Known::default(),
            elsewhere: Elsewhere::default(),
        }
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
        let Some(id) = MountId::of(file) else {
            return true;
        };
        self.refresh();
        if let Some(mount) = self.known.by_id.get(&id.now) {
            return !excluded && self.known.own_holds(mount, path);
        }
        match self.elsewhere.root(id, pid, Instant::now()) {
            Some(root) => self.known.foreign_may_hold(&root, path),
            None => true,
        }
    }

    /// Without a table no mount is known: everything is in scope.
    fn refresh(&mut self) {
        if let Some(table) = self.table.news() {
            let known = table.map(|table| Known::of(&table, &self.paths));
            self.known = known.unwrap_or_default();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::elsewhere::root_in;
    use super::*;
    use proptest::prelude::*;
    use std::fs::File;
    use std::os::fd::AsFd as _;

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
        known().foreign_may_hold(&root_in(line, 9).unwrap(), Path::new(path))
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
