//! Mounts that are not of the agent's namespace: what each shows of its file system.
//!
//! The opener's table may be of its own making: its mount points are not believed, only
//! what the kernel says of each mount's root; and it may be as long as its maker likes,
//! while somebody waits for who reads it. Only its beginning is read, what it said of a
//! mount is remembered for a moment, and all openers' tables have a budget in common.
//!
//! Owns what is remembered of them and the budget; does not own what follows from where a
//! file lies ([`names`](super::names), [`private`](crate::private)).

use std::collections::HashMap;
use std::fs::File;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, StatxFlags, statx};

use super::mountinfo::{self, Mount};

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
pub struct Spot {
    /// The file system, as tables of mounts call it.
    pub device: String,
    /// The place, from the file system's root.
    pub at: PathBuf,
}

impl Spot {
    /// Where what a mount shows under a path lies; none, if the path is not below it.
    pub fn of(mount: &Mount, path: &Path) -> Option<Self> {
        let below = path.strip_prefix(&mount.point).ok()?;
        Some(Self {
            device: mount.device.clone(),
            at: mount.root.join(below),
        })
    }

    /// Whether it is this place or below it.
    pub fn is_within(&self, place: &Self) -> bool {
        self.device == place.device && self.at.starts_with(&place.at)
    }
}

/// Roots of other namespaces' mounts, as far as they were looked up of late, and how much
/// may be read to look up more.
#[derive(Debug, Default)]
pub struct Elsewhere {
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
    pub fn root(&mut self, id: MountId, pid: u32, now: Instant) -> Option<Spot> {
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
pub fn root_in(table: &str, id: u64) -> Option<Spot> {
    let begin = format!("{id} ");
    let line = table.lines().find(|line| line.starts_with(&begin))?;
    let mount = mountinfo::parse(line)?;
    Some(Spot {
        device: mount.device,
        at: mount.root,
    })
}

/// What a mount is called.
#[derive(Debug, Clone, Copy)]
pub struct MountId {
    /// In tables; another mount gets it once this one is gone.
    pub now: u64,
    /// For ever, where the kernel has such ids.
    unique: Option<u64>,
}

impl MountId {
    /// Of the mount that a file was opened through, if the kernel says it.
    pub fn of(file: BorrowedFd<'_>) -> Option<Self> {
        Some(Self {
            now: id_of(file, StatxFlags::MNT_ID)?,
            unique: id_of(file, MNT_ID_UNIQUE),
        })
    }
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
}
