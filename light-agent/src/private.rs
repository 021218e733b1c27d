//! Paths whose contents never leave the guest: what is known of them by their hash is
//! said, and nothing of them is sent.
//!
//! ```text
//!  its name is below a path ─────────────────────────────────────────► private
//!  a mount of the agent's namespace shows it: where it lies ─────────► private, or not
//!  another one: could it be this file of a path? ─ the same inode ───► private, or not
//! ```
//!
//! A bind mount gives a file another name, within a container for example: what counts then
//! is where it lies within its file system. Whatever cannot be told is sent: who could make
//! a content look private would have it unscanned.
//!
//! Owns which open file is private; does not own what follows
//! ([`scanner`](crate::scanner)). A hard link outside of the paths, what is mounted below
//! one of them and opened by another way, and an overlay's layer are not seen; a Protection
//! Server learns the hashes.

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

use crate::content::Content;
use crate::fanotify::elsewhere::{Elsewhere, MountId, Spot};
use crate::fanotify::mountinfo::{self, Followed, Mount, holding};

/// Names that a file of another namespace may have here, of which so many are looked at.
const MOST_TRIED: usize = 256;

/// The paths. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Private {
    paths: Arc<[PathBuf]>,
    mounts: Arc<Mutex<Mounts>>,
}

/// What is known of mounts.
#[derive(Debug, Default)]
struct Mounts {
    table: Followed,
    known: Known,
    elsewhere: Elsewhere,
}

impl Private {
    /// What is below these is private.
    pub fn new(paths: &[PathBuf]) -> Self {
        Self {
            paths: paths.into(),
            mounts: Arc::default(),
        }
    }

    /// Whether an open file is. One whose name the kernel does not say is, where
    /// anything is. Reads tables of mounts, and asks the private paths' file systems.
    pub fn holds(&self, content: &Content) -> bool {
        if self.paths.is_empty() {
            return false;
        }
        let link = format!("/proc/self/fd/{}", content.as_fd().as_raw_fd());
        let Ok(name) = std::fs::read_link(link) else {
            return true;
        };
        self.paths.iter().any(|private| name.starts_with(private))
            || self.holds_by_another_name(content, &name)
    }

    fn holds_by_another_name(&self, content: &Content, name: &Path) -> bool {
        let opener = match content {
            Content::File(_) => std::process::id(),
            Content::Event(event) => event.pid,
        };
        let Some(id) = MountId::of(content.as_fd()) else {
            return false;
        };
        let names = {
            let mut mounts = self.mounts.lock().unwrap_or_else(PoisonError::into_inner);
            let Mounts {
                table,
                known,
                elsewhere,
            } = &mut *mounts;
            if let Some(table) = table.news() {
                *known =
                    table.map_or_else(|_| Known::default(), |table| Known::of(&table, &self.paths));
            }
            if let Some(mount) = known.by_id.get(&id.now) {
                return known.holds(mount, name);
            }
            let root = elsewhere.root(id, opener, Instant::now());
            known.names(root.as_ref(), name)
        };
        names.iter().any(|name| is_at(content.as_fd(), name))
    }
}

/// What is known of the agent's own mounts, and where the paths lie.
#[derive(Debug, Default)]
struct Known {
    by_id: HashMap<u64, Mount>,
    private: Vec<(PathBuf, Spot)>,
}

impl Known {
    fn of(table: &str, paths: &[PathBuf]) -> Self {
        let mounts = mountinfo::parse_all(table);
        let placed = |path: &PathBuf| {
            let spot = Spot::of(holding(&mounts, path)?, path)?;
            Some((path.clone(), spot))
        };
        Self {
            private: paths.iter().filter_map(placed).collect(),
            by_id: mounts.into_iter().map(|mount| (mount.id, mount)).collect(),
        }
    }

    /// Of a file that a mount of this very table shows under this name.
    fn holds(&self, mount: &Mount, name: &Path) -> bool {
        Spot::of(mount, name).is_some_and(|at| {
            let mut private = self.private.iter();
            private.any(|(_, spot)| at.is_within(spot))
        })
    }

    /// What a file is called here, if it is private, by its name in another namespace and
    /// the root of the mount that shows it there, if that is known. The name ends with the
    /// way from the mount's root to the file; where that begins is the opener's to choose.
    fn names(&self, root: Option<&Spot>, name: &Path) -> Vec<PathBuf> {
        let mut names = Vec::new();
        for (path, spot) in &self.private {
            // A mount that shows the path or more of its file system has the whole way from
            // the path in its names; for one that shows a part, its root is wanted.
            let mut roots = vec![spot];
            roots.extend(root.filter(|root| root.is_within(spot)));
            for root in roots {
                let Ok(begin) = root.at.strip_prefix(&spot.at) else {
                    continue;
                };
                let mut rest = name.components();
                while rest.next().is_some() && names.len() < MOST_TRIED {
                    names.push(path.join(begin).join(rest.as_path()));
                }
            }
        }
        names
    }
}

/// Whether this very file has this name. Nothing is opened.
fn is_at(file: BorrowedFd<'_>, name: &Path) -> bool {
    let which = StatxFlags::INO;
    let (Ok(own), Ok(other)) = (
        statx(file, c"", AtFlags::EMPTY_PATH, which),
        statx(CWD, name, AtFlags::SYMLINK_NOFOLLOW, which),
    ) else {
        return false;
    };
    let of = |stat: &rustix::fs::Statx| (stat.stx_dev_major, stat.stx_dev_minor, stat.stx_ino);
    of(&own) == of(&other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn the_open_file_counts_and_not_the_way_to_it() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().canonicalize().unwrap().join(name);
        std::fs::create_dir(at("secret")).unwrap();
        for name in ["secret/a", "secrets"] {
            std::fs::write(at(name), name).unwrap();
        }
        std::os::unix::fs::symlink("secret", at("link")).unwrap();
        let private = Private::new(&[at("secret")]);
        let open = |name: &str| Content::File(Arc::new(File::open(at(name)).unwrap()));
        let holds = |name: &str| private.holds(&open(name));
        assert!(holds("secret/a"));
        assert!(holds("link/a"));
        assert!(!holds("secrets"));
        let file = open("secret/a");
        std::fs::remove_file(at("secret/a")).unwrap();
        assert!(private.holds(&file), "it has no name any more");
        assert!(!Private::default().holds(&file));
    }

    const TABLE: &str = "1 0 8:1 / / rw - ext4 a rw\n2 1 8:1 /srv/s/in /bound rw - ext4 a rw\n\
                         3 1 8:2 / /data rw - xfs b rw\n";

    fn known() -> Known {
        Known::of(TABLE, &["/srv/s".into(), "/data/p".into()])
    }

    #[test]
    fn where_a_file_lies_counts_and_not_its_name() {
        let known = known();
        let holds = |id: u64, name: &str| known.holds(&known.by_id[&id], Path::new(name));
        assert!(holds(2, "/bound/x"));
        assert!(holds(3, "/data/p/x") && !holds(3, "/data/q/x"));
        assert!(!holds(1, "/srv/sx"));
    }

    #[test]
    fn names_of_another_namespace_are_found_here() {
        let known = known();
        let names = |root: Option<&str>, name: &str| {
            let root = root.map(|at| Spot {
                device: "8:1".into(),
                at: at.into(),
            });
            known.names(root.as_ref(), Path::new(name))
        };
        let has = |names: Vec<PathBuf>, name: &str| names.contains(&PathBuf::from(name));
        // A mount of the path, and one of all of the file system.
        assert!(has(names(None, "/v/a/f"), "/srv/s/a/f"));
        assert!(has(names(Some("/"), "/x/srv/s/a/f"), "/srv/s/a/f"));
        // Of a part of the path, if its root is known.
        assert!(has(names(Some("/srv/s/in"), "/v/f"), "/srv/s/in/f"));
        assert!(!has(names(None, "/v/f"), "/srv/s/in/f"));
        let long = "/a".repeat(10_000);
        assert_eq!(names(Some("/srv/s/in"), &long).len(), MOST_TRIED);
    }
}
