//! A private tmpfs: the only kind of file system that a test may mark.

use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};

pub struct Tmpfs {
    dir: tempfile::TempDir,
}

impl Tmpfs {
    pub fn new() -> Self {
        Self::with(None)
    }

    /// One that holds no more than this (`64k`).
    pub fn sized(size: &str) -> Self {
        Self::with(Some(format!("size={size}").as_str()))
    }

    /// Lets nothing be written any more.
    pub fn make_read_only(&self) {
        let no: Option<&str> = None;
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(no, self.dir.path(), no, flags, no).unwrap();
    }

    fn with(options: Option<&str>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        mount(
            Some("palisade-test"),
            dir.path(),
            Some("tmpfs"),
            MsFlags::empty(),
            options,
        )
        .unwrap();
        Self { dir }
    }

    pub fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Writes a file there, executable.
    pub fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        use std::os::unix::fs::PermissionsExt as _;
        let path = self.path().join(name);
        std::fs::write(&path, content).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = umount2(self.path(), MntFlags::MNT_DETACH);
    }
}
