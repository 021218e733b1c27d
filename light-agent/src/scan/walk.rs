//! Which files an on-demand scan looks at, and how it opens them.
//!
//! Links below the given paths are not followed, so that a loop ends; a link that
//! is given itself is followed. Only regular files are opened. File systems
//! without files of their own (proc, sysfs, …) are entered only when given.
//!
//! Guests that start from one image hold the same files. Walked in one order, each
//! of them would ask for the same content at the same moment and wait for the same
//! scan; so each takes its files out of the next [`MIXED`] in an order of its own,
//! asks for something else first, and finds the rest known.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::libc;
use rand::Rng as _;
use tokio::sync::mpsc;
use walkdir::{DirEntry, WalkDir};

use crate::fanotify::places::is_pseudo;

/// Files among which the order is mixed: enough for many guests to be at different
/// ones, near enough to each other on the disk, and a bounded number of paths.
const MIXED: usize = 1024;

/// Something that the walk came upon.
#[derive(Debug, PartialEq, Eq)]
pub enum Found {
    /// A regular file.
    File(PathBuf),
    /// Something that cannot be looked at.
    Error {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: String,
    },
}

/// What an opened path is.
#[derive(Debug)]
pub enum Opened {
    /// A regular file.
    Regular(File),
    /// Something else, put in place of a regular file meanwhile.
    Other,
}

/// Opens a file for reading, without waiting and without following a link.
///
/// # Errors
/// The kernel's.
pub fn open(path: &Path) -> io::Result<Opened> {
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOFOLLOW | libc::O_NOCTTY | libc::O_CLOEXEC)
        .open(path)?;
    if file.metadata()?.is_file() {
        Ok(Opened::Regular(file))
    } else {
        Ok(Opened::Other)
    }
}

/// Walks the paths and sends what it finds, until done or nobody takes it.
pub fn walk(paths: &[PathBuf], exclude: &[PathBuf], found: &mpsc::Sender<Found>) {
    let mut mixed = Mixed {
        waiting: Vec::new(),
        found,
    };
    for path in paths {
        if walk_one(path, exclude, &mut mixed).is_none() {
            return;
        }
    }
    mixed.finish();
}

/// Sends what it is given in a mixed order.
struct Mixed<'a> {
    waiting: Vec<Found>,
    found: &'a mpsc::Sender<Found>,
}

impl Mixed<'_> {
    /// `None` when nobody takes what is found.
    fn send(&mut self, found: Found) -> Option<()> {
        self.waiting.push(found);
        if self.waiting.len() < MIXED {
            return Some(());
        }
        self.send_one()
    }

    fn send_one(&mut self) -> Option<()> {
        let index = rand::rng().random_range(0..self.waiting.len());
        let next = self.waiting.swap_remove(index);
        self.found.blocking_send(next).ok()
    }

    fn finish(mut self) {
        while !self.waiting.is_empty() {
            if self.send_one().is_none() {
                return;
            }
        }
    }
}

/// `None` when nobody takes what is found.
fn walk_one(path: &Path, exclude: &[PathBuf], found: &mut Mixed<'_>) -> Option<()> {
    let fail = |reason: &io::Error| Found::Error {
        path: path.to_owned(),
        reason: format!("cannot be read: {reason}"),
    };
    let root = match resolve(path) {
        Ok(root) => root,
        Err(error) => return found.send(fail(&error)),
    };
    // A path that is given is meant, whatever the settings exclude above it.
    let exclude: Vec<&PathBuf> = exclude
        .iter()
        .filter(|entry| !root.starts_with(entry))
        .collect();
    let mut entries = WalkDir::new(&root).follow_links(false).into_iter();
    while let Some(entry) = entries.next() {
        match entry {
            Ok(entry) if entry.file_type().is_dir() => {
                let excluded = exclude
                    .iter()
                    .any(|excluded| entry.path() == excluded.as_path());
                if entry.depth() > 0 && (excluded || enters_pseudo(&entry)) {
                    entries.skip_current_dir();
                }
            }
            Ok(entry) if entry.file_type().is_file() => {
                if !exclude
                    .iter()
                    .any(|excluded| entry.path() == excluded.as_path())
                {
                    found.send(Found::File(entry.into_path()))?;
                }
            }
            Ok(_) => {}
            Err(error) => found.send(Found::Error {
                path: error.path().unwrap_or(&root).to_owned(),
                reason: match error.io_error() {
                    Some(error) => format!("cannot be read: {error}"),
                    None => error.to_string(),
                },
            })?,
        }
    }
    Some(())
}

/// A given path: a link is followed, as whoever gave it expects.
fn resolve(path: &Path) -> io::Result<PathBuf> {
    if fs::symlink_metadata(path)?.is_symlink() {
        fs::canonicalize(path)
    } else {
        Ok(path.to_owned())
    }
}

fn enters_pseudo(entry: &DirEntry) -> bool {
    let device = |path: &Path| {
        fs::symlink_metadata(path)
            .map(|metadata| metadata.dev())
            .ok()
    };
    let own = device(entry.path());
    let parent = entry.path().parent().and_then(device);
    own != parent && is_pseudo(entry.path())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    fn walked(paths: &[PathBuf], exclude: &[PathBuf]) -> Vec<Found> {
        let (send, mut receive) = mpsc::channel(1024);
        walk(paths, exclude, &send);
        drop(send);
        let mut all: Vec<Found> = std::iter::from_fn(|| receive.try_recv().ok()).collect();
        all.sort_by_key(|found| format!("{found:?}"));
        all
    }

    #[test]
    fn only_regular_files_are_found_and_loops_end() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("d")).unwrap();
        fs::write(at("d/file"), "x").unwrap();
        symlink(dir.path(), at("d/loop")).unwrap();
        symlink("file", at("d/link")).unwrap();
        symlink("nowhere", at("d/dangling")).unwrap();
        let _socket = UnixListener::bind(at("d/socket")).unwrap();
        nix::unistd::mkfifo(&at("d/fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(
            walked(&[dir.path().into()], &[]),
            [Found::File(at("d/file"))]
        );
        // A link that is given is followed.
        assert_eq!(
            walked(&[at("d/link")], &[]),
            [Found::File(fs::canonicalize(at("d/file")).unwrap())]
        );
        assert!(walked(&[at("d/socket"), at("d/fifo"), "/dev/null".into()], &[]).is_empty());
    }

    /// In one order every guest would wait for the same scan.
    #[test]
    fn each_walk_takes_every_file_once_in_an_order_of_its_own() {
        let order = || {
            let (send, mut receive) = mpsc::channel(4 * MIXED);
            let mut mixed = Mixed {
                waiting: Vec::new(),
                found: &send,
            };
            for n in 0..3 * MIXED {
                mixed
                    .send(Found::File(PathBuf::from(n.to_string())))
                    .unwrap();
                assert!(mixed.waiting.len() <= MIXED);
            }
            mixed.finish();
            drop(send);
            std::iter::from_fn(|| receive.try_recv().ok())
                .map(|found| match found {
                    Found::File(path) => path.to_str().unwrap().parse::<usize>().unwrap(),
                    Found::Error { .. } => unreachable!(),
                })
                .collect::<Vec<usize>>()
        };
        let (one, other) = (order(), order());
        let same = one.iter().zip(&other).filter(|(a, b)| a == b).count();
        assert!(same < MIXED / 8, "{same} files are at the same place");
        for mut order in [one, other] {
            order.sort_unstable();
            assert!(order.into_iter().eq(0..3 * MIXED));
        }
    }

    #[test]
    fn what_is_missing_is_named() {
        let found = walked(&["/no/such/file".into()], &[]);
        assert!(
            matches!(&found[..], [Found::Error { path, reason }]
                if path == Path::new("/no/such/file") && reason.contains("No such file")),
            "{found:?}"
        );
    }

    #[test]
    fn exclusions_hold_unless_given() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("cache")).unwrap();
        let file = dir.path().join("cache/file");
        fs::write(&file, "x").unwrap();
        let exclude = [dir.path().join("cache")];
        assert!(walked(&[dir.path().into()], &exclude).is_empty());
        assert_eq!(
            walked(std::slice::from_ref(&file), &exclude),
            [Found::File(file.clone())]
        );
    }

    #[test]
    fn opening_never_waits_and_follows_no_link() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert!(matches!(open(&fifo), Ok(Opened::Other)));
        let link = dir.path().join("link");
        symlink("/etc/hostname", &link).unwrap();
        assert_eq!(open(&link).unwrap_err().raw_os_error(), Some(libc::ELOOP));
    }
}
