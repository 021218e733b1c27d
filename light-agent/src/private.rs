//! Paths whose contents never leave the guest: what is known of them by their hash is
//! said, and nothing of them is sent.
//!
//! Owns which open file is private, by the name that the kernel has for it; does not
//! own what follows ([`scanner`](crate::scanner)). A hard link or a bind mount outside
//! of the paths is another name, and a Protection Server learns the hashes.

use std::os::fd::{AsFd, AsRawFd as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The paths. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Private(Arc<[PathBuf]>);

impl Private {
    /// What is below these is private.
    pub fn new(paths: &[PathBuf]) -> Self {
        Self(paths.into())
    }

    /// Whether an open file is. One whose name the kernel does not say is, where
    /// anything is.
    pub fn holds(&self, file: &impl AsFd) -> bool {
        if self.0.is_empty() {
            return false;
        }
        let link = format!("/proc/self/fd/{}", file.as_fd().as_raw_fd());
        std::fs::read_link(link).map_or(true, |path| self.covers(&path))
    }

    fn covers(&self, path: &Path) -> bool {
        self.0.iter().any(|private| path.starts_with(private))
    }
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
        let holds = |name: &str| private.holds(&File::open(at(name)).unwrap());
        assert!(holds("secret/a"));
        assert!(holds("link/a"));
        assert!(!holds("secrets"));
        let file = File::open(at("secret/a")).unwrap();
        std::fs::remove_file(at("secret/a")).unwrap();
        assert!(private.holds(&file), "it has no name any more");
        assert!(!Private::default().holds(&file));
    }
}
