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
//! The opener's table may be of its own making: its mount points are not believed, only
//! what the kernel says of each mount's root; and it may be as long as its maker likes,
//! while every opener waits for the reader. Only its beginning is read, what it said of a
//! mount is remembered for a moment, and all openers' tables have a budget in common
//! ([`Elsewhere`]).
//!
//! Owns the agent's table of mounts, as the reader needs it, and what is remembered.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rustix::fs::{AtFlags, StatxFlags, statx};

use super::mountinfo::{self, Mount, holding};

/// How much of an opener's table is read, in bytes: some hundred mounts.
const MOST_TABLE_BYTES: u64 = 64 * 1024;
/// How much of all openers' tables is read in a second, in bytes: what the kernel writes in
/// about a tenth of one.
const BYTES_PER_SECOND: u64 = 8 * 1024 * 1024;
/// Mounts of other namespaces that are remembered, at the most.
const MOST_REMEMBERED: usize = 1024;
/// For how long: a folder that is a mount's root may be moved.
const REMEMBERED_FOR: Duration = Duration::from_secs(2);
/// Asks for the id of a mount that no other one ever gets (Linux 6.8).
const MNT_ID_UNIQUE: StatxFlags = StatxFlags::from_bits_retain(0x4000);

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

/// Roots of other namespaces' mounts, as far as they were looked up of late, and how much
/// may be read to look up more.
#[derive(Debug, Default)]
struct Elsewhere {
    /// By the ids that no other mounts ever get; none, where its opener's table has none.
    roots: HashMap<u64, (Instant, Option<Spot>)>,
    /// Since when, and how many bytes were read since.
    read: Option<(Instant, u64)>,
}

impl Elsewhere {
    fn remembered(&self, id: u64, now: Instant) -> Option<&Option<Spot>> {
        let (since, root) = self.roots.get(&id)?;
        let fresh = now.saturating_duration_since(*since) < REMEMBERED_FOR;
        fresh.then_some(root)
    }

    fn remember(&mut self, id: u64, root: Option<Spot>, now: Instant) {
        if self.roots.len() >= MOST_REMEMBERED {
            self.roots
                .retain(|_, (since, _)| now.saturating_duration_since(*since) < REMEMBERED_FOR);
        }
        if self.roots.len() >= MOST_REMEMBERED {
            self.roots.clear();
        }
        self.roots.insert(id, (now, root));
    }

    fn may_read(&mut self, now: Instant) -> bool {
        match self.read {
            Some((since, bytes))
                if now.saturating_duration_since(since) < Duration::from_secs(1) =>
            {
                bytes < BYTES_PER_SECOND
            }
            _ => {
                self.read = Some((now, 0));
                true
            }
        }
    }

    fn have_read(&mut self, bytes: u64) {
        if let Some((_, read)) = &mut self.read {
            *read += bytes;
        }
    }

    /// The root of a mount that is not the agent's. None, if it cannot be told, or is not
    /// looked up.
    fn root(&mut self, id: MountId, pid: u32, now: Instant) -> Option<Spot> {
        if let Some(unique) = id.unique
            && let Some(root) = self.remembered(unique, now)
        {
            return root.clone();
        }
        if !self.may_read(now) {
            return None;
        }
        let mut table = File::open(format!("/proc/{pid}/mountinfo")).ok()?;
        let part = mountinfo::read_part(&mut table, MOST_TABLE_BYTES).ok()?;
        self.have_read(part.text.len() as u64);
        let root = root_in(&part.text, id.now);
        if let Some(unique) = id.unique {
            self.remember(unique, root.clone(), now);
        }
        root
    }
}

/// The root of the mount with this id.
fn root_in(table: &str, id: u64) -> Option<Spot> {
    let begin = format!("{id} ");
    let line = table.lines().find(|line| line.starts_with(&begin))?;
    let mount = mountinfo::parse(line)?;
    Some(Spot {
        device: mount.device,
        at: mount.root,
    })
}

/// Judges files by where they lie.
pub struct Names {
    table: Option<File>,
    paths: Vec<PathBuf>,
    known: Known,
    elsewhere: Elsewhere,
}

impl Names {
    /// For these protected paths.
    pub fn new(paths: &[PathBuf]) -> Self {
        let mut names = Self {
            table: mountinfo::open_own().ok(),
            paths: paths.to_vec(),
            known: Known::default(),
            elsewhere: Elsewhere::default(),
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
        let Some(id) = id_of(file, StatxFlags::MNT_ID) else {
            return true;
        };
        self.refresh();
        if let Some(mount) = self.known.by_id.get(&id) {
            return !excluded && self.known.own_holds(mount, path);
        }
        let id = MountId {
            now: id,
            unique: id_of(file, MNT_ID_UNIQUE),
        };
        match self.elsewhere.root(id, pid, Instant::now()) {
            Some(root) => self.known.foreign_may_hold(&root, path),
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

/// What a mount is called.
#[derive(Debug, Clone, Copy)]
struct MountId {
    /// In tables; another mount gets it once this one is gone.
    now: u64,
    /// For ever, where the kernel has such ids.
    unique: Option<u64>,
}

fn id_of(file: BorrowedFd<'_>, which: StatxFlags) -> Option<u64> {
    let stat = statx(file, c"", AtFlags::EMPTY_PATH, which).ok()?;
    StatxFlags::from_bits_retain(stat.stx_mask)
        .contains(which)
        .then_some(stat.stx_mnt_id)
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
    fn a_long_table_is_not_read_to_its_end() {
        let lines = |ids: std::ops::Range<u64>| {
            let line = |id| format!("{id} 1 8:1 /var /a rw - ext4 a rw\n");
            ids.map(line).collect::<String>()
        };
        let mut table = tempfile::tempfile().unwrap();
        let text = lines(10..10_000);
        std::io::Write::write_all(&mut table, text.as_bytes()).unwrap();
        let part = mountinfo::read_part(&mut table, MOST_TABLE_BYTES).unwrap();
        assert!(root_in(&part.text, 10).is_some() && root_in(&part.text, 9_999).is_none());
        assert!(root_in(&text, 9_999).is_some() && root_in(&text, 1).is_none());
    }

    fn after(start: Instant, ms: u64) -> Instant {
        start + Duration::from_millis(ms)
    }

    proptest! {
        // However many open through however long tables, whoever waits for the reader does
        // not wait for them.
        #[test]
        fn no_second_reads_more_than_its_budget(
            opens in prop::collection::vec((0..10_u64, MOST_TABLE_BYTES / 2..=MOST_TABLE_BYTES), 0..400),
        ) {
            let start = Instant::now();
            let mut elsewhere = Elsewhere::default();
            let (mut ms, mut read) = (0, Vec::new());
            for (wait, bytes) in opens {
                ms += wait;
                if elsewhere.may_read(after(start, ms)) {
                    elsewhere.have_read(bytes);
                    read.push((ms, bytes));
                }
            }
            for (at, _) in &read {
                let within = |(ms, _): &&(u64, u64)| (*at..at + 1000).contains(ms);
                let bytes: u64 = read.iter().filter(within).map(|(_, bytes)| bytes).sum();
                // A second of the clock may hold the end of one and the beginning of another.
                prop_assert!(bytes <= 2 * (BYTES_PER_SECOND + MOST_TABLE_BYTES), "{}", bytes);
            }
        }

        #[test]
        fn what_is_remembered_is_bounded_and_fresh(
            steps in prop::collection::vec((0..3000_u64, 0..5_u64, any::<bool>()), 0..60),
        ) {
            let start = Instant::now();
            let mut elsewhere = Elsewhere::default();
            let mut model: HashMap<u64, (u64, Option<Spot>)> = HashMap::new();
            let mut ms = 0;
            for (wait, id, told) in steps {
                ms += wait;
                let fresh = model.get(&id).filter(|(at, _)| ms - at < 2000);
                prop_assert_eq!(
                    elsewhere.remembered(id, after(start, ms)),
                    fresh.map(|(_, root)| root)
                );
                let root = told.then(|| Spot { device: "8:1".into(), at: format!("/{ms}").into() });
                elsewhere.remember(id, root.clone(), after(start, ms));
                model.insert(id, (ms, root));
            }
        }
    }

    #[test]
    fn many_mounts_are_not_remembered_for_ever() {
        let start = Instant::now();
        let mut elsewhere = Elsewhere::default();
        for id in 0..3 * MOST_REMEMBERED as u64 {
            elsewhere.remember(id, None, start);
            assert!(elsewhere.roots.len() <= MOST_REMEMBERED);
            assert!(elsewhere.remembered(id, start).is_some());
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
