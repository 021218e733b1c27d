//! Marks what is mounted after the start, in the agent's namespace and in others.
//!
//! ```text
//!  /proc/self/mountinfo changes ──────────────► own mounts ─┐
//!  every 5 s, while the guest stirs ─► /proc/*/ns/mnt ─► other namespaces ─┴─► plan ─► marked
//!                                                                                      or a gap
//! ```
//!
//! Runs within the runtime and has no thread of its own; what could wait for a disk is
//! done on one of those for reading files. A mount of another namespace may be of anyone's
//! making: nothing is opened there that is not in the kernel's memory already, and a mount
//! is marked only if the kernel still calls it local while it is held open. A file system
//! of [device nodes](super::devices) is not, where the kernel would open them, too. Each pass
//! marks everything again, since the number of a file system that is gone soon belongs to
//! another one; a mark that is there already costs nothing.
//!
//! Owns when it is looked, and the way to a mount; which ones is [`super::plan`]'s.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use palisade_protocol::bounded::PathBytes;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, StatxFlags, openat2, statx};
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::MissedTickBehavior;

use super::coverage::{Coverage, Covered};
use super::devices;
use super::group::Group;
use super::mountinfo::{self, Mount};
use super::namespaces::{self, MOST_NAMESPACES};
use super::places::{Gap, is_local};
use super::plan::{self, MOST_FOREIGN_MOUNTS, Rules, Wanted};
use crate::accounts::Accounts;

/// File systems that are marked, at the most.
pub const MOST_FILE_SYSTEMS: usize = 1024;
/// Mounts of another namespace that are open at a time: of the descriptors, those for
/// everything but events are few.
const OPEN_AT_A_TIME: usize = 64;
/// Between looks at other namespaces.
const NAMESPACES_EVERY: Duration = Duration::from_secs(5);
/// Between passes, however often something is mounted.
const REST: Duration = Duration::from_millis(100);
/// Why device nodes are not protected.
const UNOPENED: &str = "(a /dev) is not protected on access: the kernel would open each \
                        device for the agent, too";
/// Tries to reach what is in memory, before it is a gap: a rename elsewhere can disturb one.
const TRIES: usize = 4;

/// What it works with.
pub struct Follower {
    /// Whose marks; they close with their readers, whoever else is there.
    pub groups: Vec<Weak<Group>>,
    /// What is chosen.
    pub rules: Rules,
    /// Configured paths that could not be used at the start.
    pub unusable: Vec<Gap>,
    /// Whether other namespaces are looked at.
    pub elsewhere: bool,
    /// Whether opens of device nodes are events.
    pub devices_seen: bool,
    /// What it says.
    pub coverage: Coverage,
    /// What opens are seen.
    pub accounts: Arc<Accounts>,
    /// Set when protection ends.
    pub over: Arc<AtomicBool>,
}

/// What was found in other namespaces.
#[derive(Debug, Clone, Default)]
struct Elsewhere {
    devices: HashSet<String>,
    namespaces: usize,
    gaps: Vec<Gap>,
}

/// Between passes.
#[derive(Debug, Default)]
struct Before {
    own: HashSet<String>,
    elsewhere: Elsewhere,
}

impl Follower {
    /// Follows for as long as the runtime lives.
    pub async fn run(self) {
        let (this, before) = (Arc::new(self), Arc::new(Mutex::new(Before::default())));
        let pass = |namespaces| {
            let (this, before) = (Arc::clone(&this), Arc::clone(&before));
            async move {
                let pass = move || {
                    let mut before = before.lock().unwrap_or_else(PoisonError::into_inner);
                    this.pass(&mut before, namespaces);
                };
                let _ = tokio::task::spawn_blocking(pass).await;
            }
        };
        // Opened before the first pass: what comes meanwhile makes it ready. What a File
        // says is its descriptor stays so, which is all that the newer way asks for.
        #[allow(deprecated, reason = "the newer way is unsafe code")]
        let table = mountinfo::open_own()
            .and_then(|table| AsyncFd::with_interest(table, Interest::PRIORITY));
        pass(this.elsewhere).await;
        if !(this.rules.below || this.elsewhere) {
            return;
        }
        let table = match table {
            Ok(table) => table,
            Err(error) => {
                tracing::error!(%error, "what is mounted later cannot be noticed; restart the agent then");
                return;
            }
        };
        let mut seen = this.stirs();
        let mut every = tokio::time::interval(NAMESPACES_EVERY);
        every.reset();
        every.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let namespaces = tokio::select! {
                ready = table.ready(Interest::PRIORITY) => {
                    let Ok(mut ready) = ready else { return };
                    ready.clear_ready();
                    false
                }
                _ = every.tick() => {
                    let now = this.stirs();
                    if !this.elsewhere || std::mem::replace(&mut seen, now) == now {
                        continue;
                    }
                    true
                }
            };
            if this.over.load(Relaxed) {
                return;
            }
            pass(namespaces).await;
            tokio::time::sleep(REST).await;
        }
    }

    /// What changes when anything begins or is mounted in this guest: the opens that are
    /// seen, and the last process, since its program need not be on a marked file system.
    fn stirs(&self) -> (u64, Option<u32>) {
        (self.accounts.total_seen(), namespaces::last_process())
    }

    fn pass(&self, before: &mut Before, namespaces: bool) {
        let groups: Vec<Arc<Group>> = self.groups.iter().filter_map(Weak::upgrade).collect();
        let own = match mountinfo::own() {
            Ok(table) => mountinfo::parse_all(&table),
            Err(error) => {
                tracing::error!(%error, "the table of mounts cannot be read; what is mounted is not followed");
                return;
            }
        };
        let mut marks = Marks {
            groups: &groups,
            over: &self.over,
            devices: HashSet::new(),
            devices_seen: self.devices_seen,
            nodes: HashSet::new(),
            gaps: Vec::new(),
        };
        let plan = plan::own(&own, &self.rules);
        marks.gaps.extend(plan.gaps);
        let reached = marks.own(&plan.wanted);
        let unusable = self.unusable.iter().filter(|gap| {
            !gap.at()
                .is_some_and(|path| reached.iter().any(|at| at.starts_with(path)))
        });
        marks.gaps.extend(unusable.cloned());
        for one in plan.wanted.iter().filter(|one| {
            marks.devices.contains(&one.device) && before.own.insert(one.device.clone())
        }) {
            tracing::info!(path = %PathBytes::from_path(&one.at), "its file system is protected");
        }
        before.own.retain(|device| marks.devices.contains(device));
        if self.elsewhere && self.rules.overlay.is_some() {
            marks.gap_elsewhere(&plan::unmarked_beside("what only they have is"));
        } else if namespaces {
            let devices: HashSet<String> = own.into_iter().map(|mount| mount.device).collect();
            before.elsewhere = marks.elsewhere(&devices, &self.rules);
        }
        let elsewhere = &before.elsewhere;
        marks.gaps.extend_from_slice(&elsewhere.gaps);
        marks.devices.extend(elsewhere.devices.iter().cloned());
        let covered = Covered {
            file_systems: marks.devices.len(),
            namespaces: elsewhere.namespaces,
            gaps: marks.gaps,
        };
        for gap in self.coverage.set(covered) {
            tracing::warn!(path = %gap.path(), reason = %gap.reason(), "not protected on access");
        }
    }
}

/// The marks of one pass.
struct Marks<'a> {
    groups: &'a [Arc<Group>],
    over: &'a AtomicBool,
    devices: HashSet<String>,
    /// Whether opens of device nodes are events.
    devices_seen: bool,
    /// File systems of device nodes, which are not marked then.
    nodes: HashSet<String>,
    gaps: Vec<Gap>,
}

impl Marks<'_> {
    /// Gives what was reached.
    fn own(&mut self, wanted: &[Wanted]) -> Vec<PathBuf> {
        let mut reached = Vec::new();
        let mut hidden = Vec::new();
        for one in wanted {
            match open(CWD, &one.at, one.id, true) {
                Ok(file) => {
                    if self.mark(one, None, file.as_fd()) {
                        reached.push(one.at.clone());
                    }
                }
                // It is not there yet, or no more.
                Err(Errno::NOENT) => {}
                Err(error) => hidden.push((one, error)),
            }
        }
        for (one, error) in hidden {
            // Another way to it may have been open.
            if !self.devices.contains(&one.device) {
                self.gap(one, None, &unreachable(error));
            }
        }
        reached
    }

    fn elsewhere(&mut self, own: &HashSet<String>, rules: &Rules) -> Elsewhere {
        let found = namespaces::walk(Path::new("/proc"));
        let mut left: BTreeMap<String, usize> = BTreeMap::new();
        let (before, gaps) = (self.devices.clone(), std::mem::take(&mut self.gaps));
        let nodes = self.nodes.len();
        let (mut namespaces, mut long, mut unread) = (0, 0, 0);
        for pid in found.pids {
            if self.over.load(Relaxed) {
                break;
            }
            let namespace = match namespaces::mounts(pid) {
                Ok(Some(namespace)) => namespace,
                Ok(None) => continue,
                Err(_) => {
                    unread += 1;
                    continue;
                }
            };
            namespaces += 1;
            let plan = plan::foreign(&namespace.mounts, own, rules.overlays);
            long += usize::from(namespace.cut || plan.cut);
            for (kind, count) in plan.foreign_gaps {
                *left.entry(kind).or_default() += count;
            }
            if self.foreign(pid, &plan.wanted).is_err() {
                unread += 1;
            }
            // Its layers were named when it was mounted, and are looked for by name.
            let unmarked = |layers: &&HashSet<String>| !layers.is_subset(&self.devices);
            let unmarked = plan.overlays.iter().filter(unmarked).count();
            if unmarked > 0 {
                *left.entry("overlay".to_owned()).or_default() += unmarked;
            }
        }
        if long > 0 {
            self.gap_elsewhere(&format!(
                "{long} of them have more mounts than are looked at ({MOST_FOREIGN_MOUNTS})"
            ));
        }
        if unread > 0 {
            self.gap_elsewhere(&format!("the mounts of {unread} of them cannot be read"));
        }
        if self.devices.len() >= MOST_FILE_SYSTEMS {
            self.gap_elsewhere(&format!(
                "{MOST_FILE_SYSTEMS} file systems are marked already"
            ));
        }
        for (kind, count) in left {
            self.gap_elsewhere(&format!(
                "{count} mounts of type {kind} are not protected on access"
            ));
        }
        let nodes = self.nodes.len() - nodes;
        if nodes > 0 {
            self.gap_elsewhere(&format!("{nodes} file systems of device nodes {UNOPENED}"));
        }
        if found.cut {
            self.gap_elsewhere(&format!("only {MOST_NAMESPACES} of them are looked at"));
        }
        Elsewhere {
            devices: self.devices.difference(&before).cloned().collect(),
            namespaces,
            gaps: std::mem::replace(&mut self.gaps, gaps),
        }
    }

    /// Whether it is known what becomes of a file system in this pass.
    fn knows(&self, device: &str) -> bool {
        self.devices.contains(device) || self.nodes.contains(device)
    }

    /// Marks mounts of a process's namespace; of each file system the first that can be
    /// reached.
    ///
    /// # Errors
    /// The kernel's, that its mounts cannot be told.
    fn foreign(&mut self, pid: u32, wanted: &[Wanted]) -> io::Result<()> {
        let new = wanted.iter().filter(|one| !self.knows(&one.device));
        let new: Vec<&Wanted> = new.collect();
        let root = PathBuf::from(format!("/proc/{pid}/root"));
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        if new.is_empty() {
            return Ok(());
        }
        let Ok(root) = openat2(CWD, &root, flags, Mode::empty(), ResolveFlags::empty()) else {
            return Ok(()); // it is gone
        };
        let mut missed = Vec::new();
        for some in new.chunks(OPEN_AT_A_TIME) {
            let some = some.iter().filter(|one| !self.knows(&one.device));
            let opened: Vec<_> = some.map(|one| (*one, open_below(&root, one))).collect();
            if opened.is_empty() {
                continue;
            }
            if self.over.load(Relaxed) || self.devices.len() >= MOST_FILE_SYSTEMS {
                return Ok(());
            }
            // While a mount is open its id is no other one's: what it is now it stays.
            let Some(now) = namespaces::mounts(pid)? else {
                return Ok(());
            };
            let there: HashMap<u64, &Mount> =
                now.mounts.iter().map(|mount| (mount.id, mount)).collect();
            for (one, file) in opened {
                let is_there = there
                    .get(&one.id)
                    .is_some_and(|mount| mount.device == one.device && is_local(&mount.kind));
                match file {
                    _ if !is_there || self.knows(&one.device) => {} // no more, or no need
                    Ok(file) => {
                        self.mark(one, Some(pid), file.as_fd());
                    }
                    Err(error) => missed.push((one, error)),
                }
            }
        }
        let mut said = HashSet::new();
        for (one, error) in missed {
            // Another way to it may have been open.
            if !self.knows(&one.device) && said.insert(&one.device) {
                self.gap(one, Some(pid), &unreachable(error));
            }
        }
        Ok(())
    }

    /// Marks what is open; the mount is a process's, or the agent's own.
    fn mark(&mut self, one: &Wanted, pid: Option<u32>, file: BorrowedFd<'_>) -> bool {
        if self.over.load(Relaxed) {
            return false;
        }
        if self.devices.len() == MOST_FILE_SYSTEMS && !self.devices.contains(&one.device) {
            let reason = format!("{MOST_FILE_SYSTEMS} file systems are marked already");
            self.gap(one, pid, &reason);
            return false;
        }
        if self.nodes.contains(&one.device) {
            return false;
        }
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        // The name counts, too: whoever may make the node in some folder, as root of a
        // container may, would otherwise end its protection.
        let named = one.at.file_name() == Some("dev".as_ref());
        if self.devices_seen && named && devices::are_in(file) {
            for group in self.groups {
                // It may have been marked before the nodes were there.
                group.unmark(Path::new(&path));
            }
            if self.nodes.insert(one.device.clone()) && pid.is_none() {
                self.gap(
                    one,
                    pid,
                    &format!("a file system of device nodes {UNOPENED}"),
                );
            }
            return false;
        }
        for group in self.groups {
            if let Err(error) = group.mark(Path::new(&path)) {
                let reason = format!("its file system cannot be marked: {error}");
                self.gap(one, pid, &reason);
                return false;
            }
        }
        self.devices.insert(one.device.clone());
        true
    }

    fn gap(&mut self, one: &Wanted, pid: Option<u32>, reason: &str) {
        self.gaps.push(match pid {
            Some(pid) => Gap::of_process(pid, &one.at, reason),
            None => Gap::new(&one.at, reason),
        });
    }

    fn gap_elsewhere(&mut self, reason: &str) {
        self.gaps.push(Gap::of("other mount namespaces", reason));
    }
}

fn unreachable(error: Errno) -> String {
    match error {
        Errno::XDEV => "another mount hides it".to_owned(),
        Errno::LOOP => "it is reached by a symbolic link; name the real path".to_owned(),
        error => format!("it cannot be reached: {error}"),
    }
}

/// Opens a mount below a process's root, by what is in memory.
fn open_below(root: &OwnedFd, one: &Wanted) -> Result<OwnedFd, Errno> {
    let below = one.at.strip_prefix("/").unwrap_or(&one.at);
    let below = match below.as_os_str().is_empty() {
        true => Path::new("."),
        false => below,
    };
    open(root, below, one.id, false)
}

/// Opens a place on the mount of this id, following no link. `may_wait` says that the
/// way there leads over local file systems; without, nothing is asked that the kernel
/// does not have in memory.
fn open(folder: impl AsFd, path: &Path, id: u64, may_wait: bool) -> Result<OwnedFd, Errno> {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let links = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let open = |resolve| openat2(&folder, path, flags, Mode::empty(), resolve);
    let mut opened = Err(Errno::AGAIN);
    for _ in 0..TRIES {
        opened = open(links | ResolveFlags::CACHED);
        if opened.as_ref().err() != Some(&Errno::AGAIN) {
            break;
        }
    }
    // Before Linux 5.12 the kernel does not know `CACHED`.
    if may_wait && matches!(opened, Err(Errno::AGAIN | Errno::INVAL)) {
        opened = open(links);
    }
    let file = opened?;
    let asked = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
    let stat = statx(&file, c"", asked, StatxFlags::MNT_ID)?;
    if stat.stx_mnt_id == id {
        Ok(file)
    } else {
        Err(Errno::XDEV)
    }
}

#[cfg(test)]
mod tests {
    use super::super::mountinfo::{holding, parse_all};
    use super::*;
    use nix::mount::{MsFlags, mount};
    use nix::sched::{CloneFlags, unshare};
    use nix::sys::stat::{Mode as Rights, SFlag, makedev, mknod};

    /// In mounts of this thread's own.
    fn a_dev_is_told_from_a_tmpfs(at: &Path) {
        let none: Option<&str> = None;
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).unwrap();
        mount(Some("t"), at, Some("tmpfs"), MsFlags::empty(), none).unwrap();
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let folder = openat2(CWD, at, flags, Mode::empty(), ResolveFlags::empty()).unwrap();
        let over = AtomicBool::new(false);
        let one = Wanted {
            at: at.to_owned(),
            id: 1,
            device: "0:99".to_owned(),
        };
        // What is marked, and what is said, by whose it is.
        let mark = |devices_seen, pid| {
            let mut marks = Marks {
                groups: &[],
                over: &over,
                devices: HashSet::new(),
                devices_seen,
                nodes: HashSet::new(),
                gaps: Vec::new(),
            };
            let marked = marks.mark(&one, pid, folder.as_fd());
            assert_eq!(marked, marks.devices.contains(&one.device));
            assert_ne!(marked, marks.nodes.contains(&one.device));
            (marked, marks.gaps.len())
        };
        assert_eq!(mark(true, Some(1)), (true, 0));
        std::fs::write(at.join("null"), "x").unwrap();
        assert_eq!(mark(true, Some(1)), (true, 0), "a file of that name");
        std::fs::remove_file(at.join("null")).unwrap();
        let number = makedev(1, 3);
        mknod(&at.join("null"), SFlag::S_IFCHR, Rights::S_IRUSR, number).unwrap();
        // By its name alone; those of other namespaces are counted elsewhere.
        let dev = at.ends_with("dev");
        assert_eq!(mark(true, Some(1)), (!dev, 0));
        assert_eq!(mark(true, None), (!dev, usize::from(dev)));
        assert_eq!(mark(false, Some(1)), (true, 0));
    }

    #[test]
    fn a_file_system_of_device_nodes_is_not_marked() {
        if !crate::fanotify::group::has_capability() {
            println!("skipped: a_file_system_of_device_nodes_is_not_marked needs root");
            return;
        }
        let folder = tempfile::tempdir().unwrap();
        for name in ["dev", "other"] {
            let at = folder.path().join(name);
            std::fs::create_dir(&at).unwrap();
            let test = std::thread::spawn(move || a_dev_is_told_from_a_tmpfs(&at));
            test.join().unwrap();
        }
    }

    #[test]
    fn a_place_is_opened_on_its_own_mount_alone() {
        let mounts = parse_all(&mountinfo::own().unwrap());
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().canonicalize().unwrap();
        let id = holding(&mounts, &folder).unwrap().id;
        assert!(open(CWD, &folder, id, true).is_ok());
        assert_eq!(open(CWD, &folder, id + 1, true).err(), Some(Errno::XDEV));
        std::os::unix::fs::symlink(&folder, folder.join("link")).unwrap();
        let link = open(CWD, &folder.join("link"), id, true);
        assert_eq!(link.err(), Some(Errno::LOOP));
    }
}
