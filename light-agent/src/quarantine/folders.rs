//! Folders by descriptor, and the folder on a file's own file system where it is held
//! while it is moved.
//!
//! Owns the way to a folder: no link on it is followed, whoever puts one there. A file
//! is moved by a rename, which stays on one mount; so there is a holding folder for each
//! mount: the quarantine's own, where it is on the same, or else [`HOLD`] at the mount's
//! root. It is the agent's alone (0700), and one that is not is refused.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, ResolveFlags, StatxFlags, fstat, mkdirat,
    openat2, renameat_with, statat, statx, unlinkat,
};

/// The holding folder at the root of a mount.
pub const HOLD: &str = ".palisade-quarantine";

/// Device and inode of a file.
pub type Place = (u64, u64);

/// Opens a folder, following no link.
///
/// # Errors
/// The kernel's.
pub fn open_folder(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    Ok(openat2(CWD, path, flags, Mode::empty(), resolve)?)
}

/// A file's folder, and its name in it.
#[derive(Debug)]
pub struct Named {
    /// The folder.
    pub folder: OwnedFd,
    /// The folder's path.
    pub folder_path: PathBuf,
    /// The name.
    pub name: OsString,
}

impl Named {
    /// Opens the folder of a path.
    ///
    /// # Errors
    /// The kernel's, and that the path has no name.
    pub fn open(path: &Path) -> io::Result<Self> {
        let nameless = || io::Error::other("it has no name in a folder");
        let name = path.file_name().ok_or_else(nameless)?.to_owned();
        let folder_path = path.parent().ok_or_else(nameless)?.to_owned();
        Ok(Self {
            folder: open_folder(&folder_path)?,
            folder_path,
            name,
        })
    }

    /// Which file is there.
    ///
    /// # Errors
    /// The kernel's.
    pub fn place(&self) -> io::Result<Place> {
        place_at(&self.folder, &self.name)
    }
}

/// Which file has a name in a folder; a link counts as itself.
///
/// # Errors
/// The kernel's.
pub fn place_at(folder: impl AsFd, name: &OsStr) -> io::Result<Place> {
    let there = statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)?;
    Ok((there.st_dev, there.st_ino))
}

/// Moves a name, unless its new place is taken.
///
/// # Errors
/// The kernel's.
pub fn rename(from: impl AsFd, name: &OsStr, to: impl AsFd, new_name: &OsStr) -> io::Result<()> {
    Ok(renameat_with(
        from,
        name,
        to,
        new_name,
        RenameFlags::NOREPLACE,
    )?)
}

/// Removes a file's name.
///
/// # Errors
/// The kernel's.
pub fn remove(folder: impl AsFd, name: &OsStr) -> io::Result<()> {
    Ok(unlinkat(folder, name, AtFlags::empty())?)
}

/// Makes the names of a folder outlive a crash. A folder that was opened as a place
/// only is opened again for that.
///
/// # Errors
/// The kernel's.
pub fn sync(folder: impl AsFd) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let readable = openat2(folder, ".", flags, Mode::empty(), ResolveFlags::empty())?;
    Ok(rustix::fs::fsync(readable)?)
}

/// A holding folder.
#[derive(Debug)]
pub struct Hold {
    /// The folder.
    pub folder: OwnedFd,
    /// Its path.
    pub path: PathBuf,
}

impl Hold {
    /// The holding folder for files in the folder of `file`; `own` is the quarantine's.
    ///
    /// # Errors
    /// The kernel's, and that it belongs to somebody else.
    pub fn beside(file: &Named, own: &Path) -> io::Result<Self> {
        let mount = mount_of(&file.folder)?;
        let own_folder = open_folder(own)?;
        if mount_of(&own_folder)? == mount {
            return Self::checked(own_folder, own.to_owned());
        }
        let (root, root_path) = mount_root(&file.folder_path, mount)?;
        let path = root_path.join(HOLD);
        match mkdirat(&root, HOLD, Mode::RWXU) {
            Ok(()) => sync(&root)?,
            Err(rustix::io::Errno::EXIST) => {}
            Err(error) => {
                return Err(io::Error::other(format!("{}: {error}", path.display())));
            }
        }
        Self::open(&path)
    }

    /// A holding folder that was used before.
    ///
    /// # Errors
    /// The kernel's, and that it belongs to somebody else.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::checked(open_folder(path)?, path.to_owned())
    }

    fn checked(folder: OwnedFd, path: PathBuf) -> io::Result<Self> {
        let there = fstat(&folder)?;
        let own = there.st_uid == nix::unistd::geteuid().as_raw();
        let folder_type = FileType::from_raw_mode(there.st_mode) == FileType::Directory;
        if !folder_type || !own || there.st_mode & 0o077 != 0 {
            return Err(io::Error::other(format!(
                "{} is not the agent's alone, and nothing is moved into it",
                path.display()
            )));
        }
        Ok(Self { folder, path })
    }

    /// Removes the folder, if it is one that was made for a mount and nothing is in it.
    pub fn clear(&self) {
        if self.path.file_name() == Some(OsStr::new(HOLD))
            && let Some(above) = self.path.parent()
            && let Ok(above) = open_folder(above)
        {
            // It fails while anything is in it.
            let _ = unlinkat(above, HOLD, AtFlags::REMOVEDIR);
        }
    }
}

fn mount_of(folder: impl AsFd) -> io::Result<u64> {
    let there = statx(folder, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID)?;
    if there.stx_mask & StatxFlags::MNT_ID.bits() == 0 {
        return Err(io::Error::other("the kernel does not name mounts"));
    }
    Ok(there.stx_mnt_id)
}

/// The topmost folder above `path` that is on the same mount.
fn mount_root(path: &Path, mount: u64) -> io::Result<(OwnedFd, PathBuf)> {
    let mut root = (open_folder(path)?, path.to_owned());
    for above in path.ancestors().skip(1) {
        let folder = open_folder(above)?;
        if mount_of(&folder)? != mount {
            break;
        }
        root = (folder, above.to_owned());
    }
    Ok(root)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

    #[test]
    fn no_link_is_followed_on_the_way_to_a_file() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        fs::create_dir(dir.join("real")).unwrap();
        symlink("real", dir.join("link")).unwrap();
        assert!(Named::open(&dir.join("real/file")).is_ok());
        assert!(Named::open(&dir.join("link/file")).is_err());
        assert!(Named::open(Path::new("/proc/self/cwd/file")).is_err());
        assert!(Named::open(Path::new("/")).is_err());
    }

    #[test]
    fn a_rename_replaces_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        fs::write(dir.join("a"), "a").unwrap();
        fs::write(dir.join("b"), "b").unwrap();
        let folder = open_folder(&dir).unwrap();
        assert!(rename(&folder, OsStr::new("a"), &folder, OsStr::new("b")).is_err());
        assert_eq!(fs::read(dir.join("b")).unwrap(), b"b");
    }

    #[test]
    fn a_holding_folder_is_the_agents_alone() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        let own = dir.join("own");
        fs::create_dir(&own).unwrap();
        fs::set_permissions(&own, fs::Permissions::from_mode(0o700)).unwrap();
        let file = Named::open(&dir.join("file")).unwrap();
        assert_eq!(Hold::beside(&file, &own).unwrap().path, own);
        fs::set_permissions(&own, fs::Permissions::from_mode(0o755)).unwrap();
        let refused = Hold::beside(&file, &own).unwrap_err().to_string();
        assert!(refused.contains("agent's alone"), "{refused}");
    }

    #[test]
    fn another_mount_has_its_own_at_its_root() {
        let dir = tempfile::tempdir().unwrap();
        let shm = Path::new("/dev/shm");
        let other = |path: &Path| fs::metadata(path).map(|there| there.dev()).ok();
        if !shm.is_dir() || other(shm) == other(dir.path()) {
            println!("skipped: /dev/shm is no mount of its own");
            return;
        }
        let below = tempfile::tempdir_in(shm).unwrap();
        let file = Named::open(&below.path().join("file")).unwrap();
        let own = dir.path().canonicalize().unwrap();
        let hold = Hold::beside(&file, &own).unwrap();
        assert_eq!(hold.path, shm.join(HOLD));
        assert_eq!(fs::metadata(&hold.path).unwrap().mode() & 0o777, 0o700);
        hold.clear();
    }
}
