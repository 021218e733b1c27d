//! A small Debian in memory: made once of Debian's own packages and kept as an archive
//! below `target`, unpacked for each test, gone with it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use palisade_tests::command;
use tempfile::TempDir;

use crate::built::{repository, said};

/// Getting and unpacking some fifty packages.
const MADE_WITHIN: Duration = Duration::from_secs(600);

/// A folder with a file system of its own, which is unmounted in the end.
pub struct Root {
    folder: TempDir,
}

impl Root {
    /// An empty one.
    pub fn empty() -> Self {
        let folder = tempfile::Builder::new()
            .prefix("palisade-root-")
            .tempdir()
            .unwrap();
        let none = None::<&str>;
        mount(
            Some("tmpfs"),
            folder.path(),
            Some("tmpfs"),
            MsFlags::empty(),
            Some("size=2g,mode=755"),
        )
        .unwrap();
        // What is mounted in it must not be seen elsewhere.
        mount(none, folder.path(), none, MsFlags::MS_PRIVATE, none).unwrap();
        Self { folder }
    }

    /// One with a Debian: the essential packages and systemd.
    pub fn debian(suite: &str) -> Self {
        let root = Self::empty();
        said(
            "tar",
            [
                "-xf",
                archive(suite).to_str().unwrap(),
                "-C",
                root.path().to_str().unwrap(),
            ],
        );
        root
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// A path of the root's, as it is from outside.
    pub fn at(&self, path: &str) -> PathBuf {
        self.path().join(path.trim_start_matches('/'))
    }

    /// A program of the root's, or its own, run in it; systemd does not run.
    pub fn chroot(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("chroot");
        command.arg(self.path()).args(arguments).env_clear().env(
            "PATH",
            "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        );
        command
    }

    /// Mounts what a program expects of every system.
    pub fn mount_proc(&self) {
        let proc = self.at("proc");
        fs::create_dir_all(&proc).unwrap();
        let none = None::<&str>;
        mount(Some("proc"), &proc, Some("proc"), MsFlags::empty(), none).unwrap();
    }
}

impl Drop for Root {
    fn drop(&mut self) {
        let _ = umount2(&self.at("proc"), MntFlags::MNT_DETACH);
        let _ = umount2(self.path(), MntFlags::MNT_DETACH);
    }
}

/// The archive of a suite; made if it is not there.
fn archive(suite: &str) -> PathBuf {
    let folder = repository().join("target/package-roots");
    let archive = folder.join(format!("{suite}.tar"));
    if archive.exists() {
        return archive;
    }
    fs::create_dir_all(&folder).unwrap();
    // Two tests may make it at once: a name of its own, until it is whole.
    let made = folder.join(format!("{suite}-{}.tar", std::process::id()));
    let mut mmdebstrap = Command::new("mmdebstrap");
    mmdebstrap
        .args(["--quiet", "--mode=root", "--variant=essential"])
        .args(["--include=systemd,systemd-sysv"])
        .args(["--dpkgopt=path-exclude=/usr/share/doc/*"])
        .args(["--dpkgopt=path-exclude=/usr/share/locale/*"])
        .arg(suite)
        .arg(&made);
    let finished = command::finish(mmdebstrap, MADE_WITHIN).unwrap();
    let ended = finished.expect(&[0]);
    if ended.is_err() {
        let _ = fs::remove_file(&made);
    }
    ended.unwrap();
    fs::rename(&made, &archive).unwrap();
    archive
}
