//! A private tmpfs: the only kind of file system that a test may mark.

use std::path::{Path, PathBuf};
use std::process::Command;

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

/// An ext4 of its own, in an image.
pub struct Ext4 {
    at: PathBuf,
}

impl Ext4 {
    /// Says why there is none, if this machine mounts none.
    pub fn mount(test: &str, images: &Path, at: &Path) -> Option<Self> {
        let image = images.join("ext4");
        let file = std::fs::File::create(&image).unwrap();
        file.set_len(16 << 20).unwrap();
        std::fs::create_dir_all(at).unwrap();
        let run = |program: &str, options: &[&str], paths: &[&Path]| {
            let done = Command::new(program).args(options).args(paths).output();
            match done {
                Ok(done) if done.status.success() => None,
                Ok(done) => Some(String::from_utf8_lossy(&done.stderr).trim().to_owned()),
                Err(error) => Some(format!("{program}: {error}")),
            }
        };
        let problem = run("mkfs.ext4", &["-qF"], &[&image])
            .or_else(|| run("mount", &["-o", "loop"], &[&image, at]));
        if let Some(problem) = problem {
            println!("skipped: {test} needs an ext4 in an image: {problem}");
            return None;
        }
        Some(Self { at: at.to_owned() })
    }

    pub fn path(&self) -> &Path {
        &self.at
    }
}

impl Drop for Ext4 {
    fn drop(&mut self) {
        let _ = umount2(&self.at, MntFlags::MNT_DETACH);
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = umount2(self.path(), MntFlags::MNT_DETACH);
    }
}
