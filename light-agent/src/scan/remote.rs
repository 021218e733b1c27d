//! File systems whose server may never answer (FUSE, network): asked with patience, so
//! that a scan that comes to one ends.
//!
//! Owns which mounts these are, by the kernel's table, and the question. Whoever waits in
//! the kernel for such a server cannot be called back: the thread that asks is left behind
//! then, one for each mount that a scan comes to.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::Duration;

use super::mounts::PSEUDO;
use crate::fanotify::mountinfo;
use crate::fanotify::places::is_local;

/// How long a server may take.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// The mount points of such file systems.
#[derive(Debug, Default)]
pub struct Remote(HashSet<PathBuf>);

impl Remote {
    /// As they are now.
    ///
    /// # Errors
    /// When they cannot be listed: none is no answer.
    pub fn mounted() -> io::Result<Self> {
        let remote = mountinfo::parse_all(&mountinfo::own()?)
            .into_iter()
            .filter(|mount| {
                let kind = mount.kind.as_str();
                !(is_local(kind) || kind == "overlay" || kind == "ramfs" || PSEUDO.contains(&kind))
            });
        Ok(remote.map(|mount| mount.point).collect())
    }

    /// Those at or above a path, the innermost first.
    pub fn above<'a>(&'a self, path: &'a Path) -> impl Iterator<Item = &'a Path> {
        path.ancestors().filter(|above| self.0.contains(*above))
    }

    /// Those below a path.
    pub fn below<'a>(&'a self, path: &'a Path) -> impl Iterator<Item = &'a PathBuf> {
        let below = move |point: &&PathBuf| *point != path && point.starts_with(path);
        self.0.iter().filter(below)
    }

    /// Whether one is mounted here or above.
    pub fn holds(&self, path: &Path) -> bool {
        self.above(path).next().is_some()
    }
}

impl FromIterator<PathBuf> for Remote {
    fn from_iter<T: IntoIterator<Item = PathBuf>>(points: T) -> Self {
        Self(points.into_iter().collect())
    }
}

/// Whether the server of what is at a path answers, and what it says.
///
/// # Errors
/// The server's, and that it did not answer in time.
pub fn ask(path: &Path, patience: Duration) -> io::Result<()> {
    let (said, hears) = mpsc::channel();
    let asked = path.to_owned();
    std::thread::Builder::new()
        .name("ask".to_owned())
        .stack_size(64 * 1024)
        .spawn(move || {
            let answer = fs::symlink_metadata(&asked).and_then(|there| {
                if there.is_dir() {
                    // A server that answers the one may not answer the other.
                    fs::read_dir(&asked)?.next();
                }
                Ok(())
            });
            let _ = said.send(answer);
        })?;
    hears.recv_timeout(patience).unwrap_or_else(|_| {
        let problem = format!(
            "its file system did not answer within {} s; unmount it, or exclude it",
            patience.as_secs()
        );
        Err(io::Error::new(io::ErrorKind::TimedOut, problem))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_local_is_not_remote_and_answers() {
        let folder = tempfile::tempdir().unwrap();
        let remote = Remote::mounted().unwrap();
        assert!(!remote.holds(folder.path()) && !remote.holds(Path::new("/proc/self")));
        ask(folder.path(), PATIENCE).unwrap();
        assert!(ask(&folder.path().join("no"), PATIENCE).is_err());
    }
}
