//! Names made plain, as `canonicalize` does, by who does not wait for a dead server.
//!
//! What a quick scan covers is named by others: a user's link, a process's mapping. Any of
//! these may lead onto a file system whose server never answers ([`remote`]).
//! Each such mount is asked once, with patience; what lies on one that does not answer is
//! left out, and said to be.

use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsString;
use std::fs;
use std::path::{Component, Path, PathBuf};

use super::remote::{self, PATIENCE, Remote};

/// Links that one name may lead through, as the kernel has it.
const MAX_LINKS: usize = 40;

/// What was learnt of mounts on the way.
#[derive(Debug)]
pub struct Reach {
    remote: Remote,
    /// Which answered.
    asked: BTreeMap<PathBuf, bool>,
    ask: fn(&Path) -> bool,
}

impl Reach {
    /// With the mounts as they are now.
    ///
    /// # Errors
    /// When they cannot be listed.
    pub fn now() -> std::io::Result<Self> {
        let answers = |mount: &Path| remote::ask(mount, PATIENCE).is_ok();
        Ok(Self::with(Remote::mounted()?, answers))
    }

    fn with(remote: Remote, ask: fn(&Path) -> bool) -> Self {
        Self {
            remote,
            asked: BTreeMap::new(),
            ask,
        }
    }

    /// The mounts that did not answer.
    pub fn silent(&self) -> impl Iterator<Item = &Path> {
        let silent = self.asked.iter().filter(|(_, answers)| !**answers);
        silent.map(|(mount, _)| mount.as_path())
    }

    /// Whether whatever serves this name answers: a name without links.
    pub fn answers(&mut self, path: &Path) -> bool {
        let mounts: Vec<PathBuf> = self.remote.above(path).map(Path::to_path_buf).collect();
        // From the outermost in: the others are reached through it.
        mounts.into_iter().rev().all(|mount| {
            if let Some(answers) = self.asked.get(&mount) {
                return *answers;
            }
            let answers = (self.ask)(&mount);
            self.asked.insert(mount, answers);
            answers
        })
    }

    /// An absolute name without links, of something that is there and whose server answers.
    pub fn plain(&mut self, path: &Path) -> Option<PathBuf> {
        let mut left: VecDeque<OsString> = parts(path);
        let mut at = PathBuf::from("/");
        let mut links = 0;
        while let Some(part) = left.pop_front() {
            if part == ".." {
                at.pop();
                continue;
            }
            let next = at.join(&part);
            if !self.answers(&next) {
                return None;
            }
            let facts = fs::symlink_metadata(&next).ok()?;
            if !facts.is_symlink() {
                at = next;
                continue;
            }
            links += 1;
            if links > MAX_LINKS {
                return None;
            }
            let target = fs::read_link(&next).ok()?;
            if target.is_absolute() {
                at = PathBuf::from("/");
            }
            for part in parts(&target).into_iter().rev() {
                left.push_front(part);
            }
        }
        Some(at)
    }
}

/// The parts of a name, without those that say nothing.
fn parts(path: &Path) -> VecDeque<OsString> {
    path.components()
        .filter_map(|part| match part {
            Component::Normal(name) => Some(name.to_owned()),
            Component::ParentDir => Some("..".into()),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn it_says_what_canonicalize_says() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::create_dir_all(at("a/b")).unwrap();
        fs::write(at("a/b/file"), "x").unwrap();
        symlink("a/b", at("relative")).unwrap();
        symlink(at("relative/file"), at("absolute")).unwrap();
        symlink("../a/./b/../b/file", at("a/up")).unwrap();
        symlink("nothing", at("broken")).unwrap();
        symlink("round", at("round")).unwrap();
        let mut reach = Reach::now().unwrap();
        for name in [
            "a/b/file",
            "relative/file",
            "absolute",
            "a/up",
            "broken",
            "round",
            "a/b/file/x",
            "nothing/../a",
            "",
        ] {
            let path = at(name);
            assert_eq!(reach.plain(&path), fs::canonicalize(&path).ok(), "{name}");
        }
        assert_eq!(reach.plain(Path::new("/")), Some("/".into()));
        assert_eq!(reach.silent().count(), 0);
    }

    #[test]
    fn what_lies_beyond_a_silent_server_is_left_out_and_it_is_asked_once() {
        let folder = tempfile::tempdir().unwrap();
        let own = fs::canonicalize(folder.path()).unwrap();
        let at = |name: &str| own.join(name);
        fs::create_dir_all(at("dead/inner")).unwrap();
        fs::create_dir(at("live")).unwrap();
        fs::write(at("live/file"), "x").unwrap();
        symlink(at("dead/inner/file"), at("link")).unwrap();
        let mounts = ["dead", "dead/inner", "live"].map(at);
        // Whoever asks beyond the silent one would wait.
        let ask = |mount: &Path| {
            assert!(!mount.ends_with("inner"));
            mount.ends_with("live")
        };
        let mut reach = Reach::with(mounts.into_iter().collect(), ask);
        for _ in 0..2 {
            assert_eq!(reach.plain(&at("link")), None);
            assert_eq!(reach.plain(&at("live/file")), Some(at("live/file")));
        }
        reach.ask = |_| panic!("it was asked before");
        assert!(!reach.answers(&at("dead/x")) && reach.answers(&at("live/x")));
        assert_eq!(reach.silent().collect::<Vec<_>>(), [at("dead")]);
    }
}
