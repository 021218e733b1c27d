//! What is known of a file in the quarantine besides its bytes, and how it gets back
//! what it had.
//!
//! Owns the record's shape and version, and reading and setting a file's owner, mode,
//! times and extended attributes by its descriptor (access lists and capabilities of
//! programs are such attributes). Does not own where records are ([`super::vault`]).

use std::fmt;
use std::io;
use std::os::fd::AsFd;

use palisade_protocol::bounded::PathBytes;
use palisade_protocol::content::ContentId;
use palisade_protocol::scan::ScanClass;
use rustix::fs::{
    Gid, Mode, Timespec, Timestamps, Uid, XattrFlags, fchmod, fchown, fgetxattr, flistxattr,
    fsetxattr, fstat, futimens,
};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// The record's version; another one is not read.
pub const VERSION: u32 = 1;
/// Extended attributes of one file, at the most: a file with more stays where it is.
pub const MAX_XATTRS: usize = 128;
/// Bytes of them all, names included, at the most.
pub const MAX_XATTR_BYTES: usize = 256 * 1024;

/// A moment, as file systems keep it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Moment {
    /// Seconds since 1970.
    pub s: i64,
    /// And nanoseconds.
    pub ns: i64,
}

/// An extended attribute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Xattr {
    /// Its name.
    pub name: Vec<u8>,
    /// Its value.
    pub value: Vec<u8>,
}

/// What a file has besides its content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attributes {
    /// The owning user.
    pub uid: u32,
    /// The owning group.
    pub gid: u32,
    /// Permissions, with the bits for set-user-id, set-group-id and sticky.
    pub mode: u32,
    /// When it was read last.
    pub accessed: Moment,
    /// When its content was changed last.
    pub modified: Moment,
    /// Extended attributes.
    pub xattrs: Vec<Xattr>,
}

impl Attributes {
    /// Those of an open file.
    ///
    /// # Errors
    /// The kernel's, and that there are more than are kept.
    pub fn of(file: impl AsFd) -> io::Result<Self> {
        let there = fstat(&file)?;
        let ns = |ns| i64::try_from(ns).unwrap_or(0);
        Ok(Self {
            uid: there.st_uid,
            gid: there.st_gid,
            mode: there.st_mode & 0o7777,
            accessed: Moment {
                s: there.st_atime,
                ns: ns(there.st_atime_nsec),
            },
            modified: Moment {
                s: there.st_mtime,
                ns: ns(there.st_mtime_nsec),
            },
            xattrs: xattrs(file)?,
        })
    }

    /// Gives them to an open file: the owner first, which takes bits of the mode and
    /// capabilities away; the times last.
    ///
    /// # Errors
    /// The kernel's. The file is not what it was then.
    pub fn give(&self, file: impl AsFd) -> io::Result<()> {
        fchown(
            &file,
            Some(Uid::from_raw(self.uid)),
            Some(Gid::from_raw(self.gid)),
        )?;
        fchmod(&file, Mode::from_raw_mode(self.mode))?;
        for xattr in &self.xattrs {
            fsetxattr(&file, &xattr.name[..], &xattr.value, XattrFlags::empty()).map_err(
                |error| {
                    let name = String::from_utf8_lossy(&xattr.name).into_owned();
                    io::Error::other(format!("the attribute {name:?}: {error}"))
                },
            )?;
        }
        // An access list set the mode's group bits, and may have been given before it.
        fchmod(&file, Mode::from_raw_mode(self.mode))?;
        let time = |moment: Moment| Timespec {
            tv_sec: moment.s,
            tv_nsec: moment.ns,
        };
        let times = Timestamps {
            last_access: time(self.accessed),
            last_modification: time(self.modified),
        };
        Ok(futimens(&file, &times)?)
    }
}

fn xattrs(file: impl AsFd) -> io::Result<Vec<Xattr>> {
    let too_many = || io::Error::other("it has more extended attributes than are kept");
    // The kernel has no larger list, and no larger value.
    let mut names = vec![0; MAX_XATTR_BYTES];
    let length = match flistxattr(&file, &mut names[..]) {
        Ok(length) => length,
        Err(rustix::io::Errno::OPNOTSUPP) => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    };
    names.truncate(length);
    let mut found = Vec::new();
    let mut bytes = 0;
    for name in names
        .split(|byte| *byte == 0)
        .filter(|name| !name.is_empty())
    {
        let mut value = vec![0; MAX_XATTR_BYTES];
        let length = fgetxattr(&file, name, &mut value[..])?;
        value.truncate(length);
        bytes += name.len() + length;
        if found.len() >= MAX_XATTRS || bytes > MAX_XATTR_BYTES {
            return Err(too_many());
        }
        let name = name.to_vec();
        found.push(Xattr { name, value });
    }
    Ok(found)
}

/// What was found in a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Found {
    /// When, in milliseconds since 1970.
    pub time_ms: u64,
    /// The engine's signature name.
    pub name: String,
    /// Which engine.
    pub engine: String,
    /// The part of the file, where it was in a part.
    pub member: Option<String>,
    /// What the content is.
    pub content: ContentId,
    /// SHA-256, where the Protection Server said it.
    pub sha256: Option<[u8; 32]>,
    /// Why it was scanned.
    pub class: ScanClass,
    /// The process that opened it; 0 when there was none.
    pub pid: u32,
}

/// What definitions said of it later.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Again {
    /// When, in milliseconds since 1970.
    pub time_ms: u64,
    /// `clean`, `malware`, `suspicious` or `not_scanned`.
    pub verdict: String,
    /// The signature's name, or why it was not scanned.
    pub name: String,
}

/// Everything about a file in the quarantine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// See [`VERSION`].
    pub version: u32,
    /// Its id, which names its files.
    pub id: Uuid,
    /// Where it was.
    pub path: PathBytes,
    /// Bytes of its content.
    pub size: u64,
    /// Names that it had; the others are still there when it is above one.
    pub links: u64,
    /// Owner, mode, times, attributes.
    pub attributes: Attributes,
    /// What was found.
    pub found: Found,
    /// The last re-scan, if there was one.
    pub again: Option<Again>,
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} ({})", self.id, self.path, self.found.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;

    #[test]
    fn attributes_go_from_file_to_file() {
        let dir = tempfile::tempdir().unwrap();
        let one = File::create(dir.path().join("one")).unwrap();
        fchmod(&one, Mode::from_raw_mode(0o4751)).unwrap();
        let user = fsetxattr(&one, "user.colour", b"red\0blue", XattrFlags::empty()).is_ok();
        let long_ago = Timespec {
            tv_sec: 1_000_000_000,
            tv_nsec: 123_456_789,
        };
        let times = Timestamps {
            last_access: long_ago,
            last_modification: long_ago,
        };
        futimens(&one, &times).unwrap();
        let had = Attributes::of(&one).unwrap();
        assert_eq!((had.mode, had.modified.ns), (0o4751, 123_456_789));
        assert_eq!(!had.xattrs.is_empty(), user);
        let other = File::create(dir.path().join("other")).unwrap();
        had.give(&other).unwrap();
        assert_eq!(Attributes::of(&other).unwrap(), had);
        let text = serde_json::to_string(&had).unwrap();
        assert_eq!(serde_json::from_str::<Attributes>(&text).unwrap(), had);
    }
}
