//! How a file leaves the quarantine: back to a path, or out as an export.
//!
//! ```text
//!  sealed ─► nameless file in the folder ─► checked ─► owner, mode, attributes, times
//!                                                              │
//!                     removed from the quarantine ◄── gets its name, unless that is taken
//! ```
//!
//! The file has no name until it is whole, so that nobody sees half of it, and its name
//! is given by a link that replaces nothing. No link on the way to the folder is
//! followed. Whatever fails leaves the file in the quarantine.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use nix::libc;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, fstat, linkat, openat};
use uuid::Uuid;

use super::folders::{self, Named};
use super::record::Record;
use super::vault::Locked;

/// Puts a file back to where it was, or to `to`, with all that it had; it leaves the
/// quarantine. Gives its path.
///
/// # Errors
/// The file system's, that the path is taken, or that the content does not open. Then
/// it stays in the quarantine.
pub fn restore(locked: &Locked, id: Uuid, to: Option<&Path>) -> io::Result<PathBuf> {
    let record = locked.record(id)?;
    let path = to.unwrap_or(record.path.as_path()).to_owned();
    let give = |file: &File| record.attributes.give(file);
    write(locked, &record, &path, give).map_err(|error| named_error(&path, &error))?;
    locked.remove(id)?;
    Ok(path)
}

/// Writes a file's bytes to `to`, which its owner alone may read; it stays in the
/// quarantine.
///
/// # Errors
/// Those of [`restore`].
pub fn export(locked: &Locked, id: Uuid, to: &Path) -> io::Result<()> {
    let record = locked.record(id)?;
    write(locked, &record, to, |_| Ok(())).map_err(|error| named_error(to, &error))
}

fn named_error(path: &Path, error: &io::Error) -> io::Error {
    let path = path.display();
    match error.kind() {
        io::ErrorKind::AlreadyExists => io::Error::new(
            error.kind(),
            format!("{path} is there already, and nothing is overwritten"),
        ),
        kind if error.raw_os_error() == Some(libc::ELOOP) => io::Error::new(
            kind,
            format!("a folder on the way to {path} is a link, and none is followed"),
        ),
        kind => io::Error::new(kind, format!("{path}: {error}")),
    }
}

fn write(
    locked: &Locked,
    record: &Record,
    path: &Path,
    give: impl FnOnce(&File) -> io::Result<()>,
) -> io::Result<()> {
    let target = Named::open(path)?;
    if target.place().is_ok() {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    let mut new = New::create(&target, record.id)?;
    let content = locked.content(record.id, &mut |chunk| new.file.write_all(chunk));
    let done = match content {
        Ok(content) if content == record.found.content => give(&new.file)
            .and_then(|()| new.file.sync_all())
            .and_then(|()| new.name(&target)),
        Ok(_) => Err(io::Error::other("its content is not what was found")),
        Err(error) => Err(error),
    };
    if done.is_err() {
        new.discard(&target);
    }
    done?;
    folders::sync(&target.folder)
}

/// A file that has no name yet; or, where the file system cannot have one, another.
struct New {
    file: File,
    temporary: Option<OsString>,
}

impl New {
    fn create(target: &Named, id: Uuid) -> io::Result<Self> {
        let flags = OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let open = |name: &OsStr, more: OFlags| -> rustix::io::Result<OwnedFd> {
            openat(&target.folder, name, flags | more, Mode::RUSR | Mode::WUSR)
        };
        match open(OsStr::new("."), OFlags::TMPFILE) {
            Ok(file) => Ok(Self {
                file: file.into(),
                temporary: None,
            }),
            Err(
                rustix::io::Errno::OPNOTSUPP
                | rustix::io::Errno::ISDIR
                | rustix::io::Errno::LOOP
                | rustix::io::Errno::INVAL,
            ) => {
                let name = OsString::from(format!(".palisade-restore-{id}"));
                let file = open(&name, OFlags::CREATE | OFlags::EXCL)?;
                Ok(Self {
                    file: file.into(),
                    temporary: Some(name),
                })
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Gives it its name, unless that is taken.
    fn name(&self, target: &Named) -> io::Result<()> {
        match &self.temporary {
            None => {
                let own = format!("/proc/self/fd/{}", self.file.as_raw_fd());
                linkat(
                    CWD,
                    own,
                    &target.folder,
                    &target.name,
                    AtFlags::SYMLINK_FOLLOW,
                )?;
            }
            Some(name) => {
                folders::rename(&target.folder, name, &target.folder, &target.name)?;
            }
        }
        // Whoever may write to the folder could have put another file there.
        let own = fstat(&self.file)?;
        if target.place()? == (own.st_dev, own.st_ino) {
            return Ok(());
        }
        Err(io::Error::other("another file was put in its place"))
    }

    fn discard(&self, target: &Named) {
        if let Some(name) = &self.temporary {
            let _ = folders::remove(&target.folder, name);
        }
    }
}
