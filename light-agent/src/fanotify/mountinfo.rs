//! The kernel's tables of mounts (`/proc/PID/mountinfo`): read with a bound, parsed; pure
//! but for the reading.
//!
//! Nothing here asks a file system anything: one whose server is gone would never answer.
//!
//! Names of mounts are bytes; of these the kernel escapes what would end a field. Whatever
//! else is no text is escaped in the same way when a table is read, so that the text says
//! all that the table does.

use std::ffi::OsString;
use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read as _, Seek as _};
use std::os::fd::AsFd as _;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

/// Largest table that is read, in bytes.
const MAX_TABLE_BYTES: u64 = 4 * 1024 * 1024;

/// The agent's own table.
const OWN: &str = "/proc/self/mountinfo";

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// Its id, which another mount gets once this one is gone.
    pub id: u64,
    /// The id of the mount that it is mounted on.
    pub parent: u64,
    /// The file system, as `MAJOR:MINOR`.
    pub device: String,
    /// Which part of the file system it shows.
    pub root: PathBuf,
    /// Where, below the root of whoever's table this is.
    pub point: PathBuf,
    /// The file system's type.
    pub kind: String,
    /// The file system's options.
    pub options: String,
}

/// `36 35 98:0 /root /point rw shared:1 - ext4 /dev/x rw,upperdir=…`
pub fn parse(line: &str) -> Option<Mount> {
    let (mounted, described) = line.split_once(" - ")?;
    let mut fields = mounted.split(' ');
    let (id, parent) = (fields.next()?, fields.next()?);
    let (device, root, point) = (fields.next()?, fields.next()?, fields.next()?);
    let mut fields = described.split(' ');
    let (kind, _source, options) = (fields.next()?, fields.next()?, fields.next()?);
    Some(Mount {
        id: id.parse().ok()?,
        parent: parent.parse().ok()?,
        device: device.to_owned(),
        root: unescaped(root),
        point: unescaped(point),
        kind: kind.to_owned(),
        options: options.to_owned(),
    })
}

/// All mounts of a table, in its order.
pub fn parse_all(table: &str) -> Vec<Mount> {
    table.lines().filter_map(parse).collect()
}

/// The text of the agent's own table.
///
/// # Errors
/// The kernel's, and that the table is too large.
pub fn own() -> io::Result<String> {
    read(&mut open_own()?)
}

/// Opens the agent's own table; a change of it makes the file ready.
///
/// # Errors
/// The kernel's.
pub fn open_own() -> io::Result<File> {
    File::open(OWN)
}

/// The agent's own table, kept open: the kernel says of each change once to each that has
/// it open.
#[derive(Debug, Default)]
pub struct Followed {
    table: Option<File>,
}

impl Followed {
    /// The table's text when it is asked for the first time, and when it has changed since.
    /// It waits for nobody.
    pub fn news(&mut self) -> Option<io::Result<String>> {
        if let Some(table) = &self.table {
            let mut ready = [PollFd::new(table.as_fd(), PollFlags::POLLPRI)];
            if poll(&mut ready, PollTimeout::ZERO).is_ok_and(|n| n == 0) {
                return None;
            }
        }
        Some(self.read())
    }

    fn read(&mut self) -> io::Result<String> {
        let table = match &mut self.table {
            Some(table) => table,
            none => none.insert(open_own()?),
        };
        read(table)
    }
}

/// Reads a table that is open, from its beginning.
///
/// # Errors
/// The kernel's, and that the table is too large.
pub fn read(table: &mut File) -> io::Result<String> {
    match read_part(table, MAX_TABLE_BYTES)? {
        Part { text, cut: false } => Ok(text),
        Part { cut: true, .. } => Err(io::Error::other("the table of mounts is too large")),
    }
}

/// The first lines of a table.
#[derive(Debug, PartialEq, Eq)]
pub struct Part {
    /// Whole lines.
    pub text: String,
    /// Whether there are more.
    pub cut: bool,
}

/// Reads the beginning of a table that is open: no more than this many bytes.
///
/// # Errors
/// The kernel's.
pub fn read_part(table: &mut File, most_bytes: u64) -> io::Result<Part> {
    table.rewind()?;
    let mut bytes = Vec::new();
    table.take(most_bytes + 1).read_to_end(&mut bytes)?;
    let cut = bytes.len() as u64 > most_bytes;
    if cut {
        bytes.pop();
        let whole = bytes.iter().rposition(|byte| *byte == b'\n');
        bytes.truncate(whole.map_or(0, |at| at + 1));
    }
    Ok(Part {
        text: escaped(&bytes),
        cut,
    })
}

/// What is no text, as the kernel would escape it; [`unescaped`] gives it back.
fn escaped(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for chunk in bytes.utf8_chunks() {
        text.push_str(chunk.valid());
        for byte in chunk.invalid() {
            let _ = write!(text, "\\{byte:03o}");
        }
    }
    text
}

/// The mount that is seen at a path: of those that hold it, the innermost and newest.
pub fn holding<'a>(mounts: &'a [Mount], path: &Path) -> Option<&'a Mount> {
    let depth = |mount: &Mount| mount.point.components().count();
    let holds = mounts.iter().filter(|mount| path.starts_with(&mount.point));
    // Of equals, `max_by_key` gives the last.
    holds.max_by_key(|mount| depth(mount))
}

/// The kernel writes space, tab, newline and backslash as `\040` and so on.
pub fn unescaped(text: &str) -> PathBuf {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut index = 0;
    while index < bytes.len() {
        let code = bytes
            .get(index + 1..index + 4)
            .filter(|_| bytes[index] == b'\\')
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match code {
            Some(byte) => {
                out.push(byte);
                index += 4;
            }
            None => {
                out.push(bytes[index]);
                index += 1;
            }
        }
    }
    PathBuf::from(OsString::from_vec(out))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_line_is_read() {
        let line = "36 35 98:0 /mnt1 /a\\040b rw,noatime master:1 - ext3 /dev/root rw,x=y";
        let mount = parse(line).unwrap();
        assert_eq!((mount.id, mount.parent, &*mount.device), (36, 35, "98:0"));
        assert_eq!(mount.root, Path::new("/mnt1"));
        assert_eq!(mount.point, Path::new("/a b"));
        assert_eq!((&*mount.kind, &*mount.options), ("ext3", "rw,x=y"));
    }

    #[test]
    fn of_a_long_table_whole_lines_are_read() {
        use std::io::Write as _;
        let mut table = tempfile::tempfile().unwrap();
        table.write_all(b"one\ntwo\nthree\n").unwrap();
        let mut part = |most| {
            let part = read_part(&mut table, most).unwrap();
            (part.text, part.cut)
        };
        assert_eq!(part(14), ("one\ntwo\nthree\n".to_owned(), false));
        assert_eq!(part(13), ("one\ntwo\n".to_owned(), true));
        assert_eq!(part(8), ("one\ntwo\n".to_owned(), true));
        assert_eq!(part(7), ("one\n".to_owned(), true));
        assert_eq!(part(2), (String::new(), true));
    }

    #[test]
    fn the_innermost_and_newest_mount_is_seen() {
        let table = "1 0 8:1 / / rw - ext4 a rw\n2 1 8:2 / /m rw - ext4 b rw\n\
                     3 2 8:3 / /m rw - tmpfs c rw\n4 1 8:4 / /mm rw - xfs d rw\n";
        let mounts = parse_all(table);
        let id = |path: &str| holding(&mounts, Path::new(path)).map(|mount| mount.id);
        assert_eq!(id("/m/x"), Some(3));
        assert_eq!(id("/mm/x"), Some(4));
        assert_eq!(id("/x"), Some(1));
        assert_eq!(id("x"), None);
    }

    proptest! {
        #[test]
        fn a_mount_point_of_any_bytes_is_read_as_it_is(name in prop::collection::vec(any::<u8>(), 1..40)) {
            use std::os::unix::ffi::OsStrExt as _;
            let name: Vec<u8> = name.into_iter().filter(|byte| !matches!(byte, 0 | b'/')).collect();
            let mut line = b"1 0 8:1 / /".to_vec();
            for byte in &name {
                match byte {
                    b' ' | b'\t' | b'\n' | b'\\' => line.extend(format!("\\{byte:03o}").bytes()),
                    byte => line.push(*byte),
                }
            }
            line.extend(b" rw - ext4 a rw\n");
            let mount = parse(escaped(&line).trim_end_matches('\n')).unwrap();
            prop_assert_eq!(mount.point.as_os_str().as_bytes(), [b"/", &*name].concat());
        }

        #[test]
        fn whatever_it_reads_it_ends(text in "([0-9:]{1,4} |/[a\\\\0-7]* |- |ext4 |\n){0,60}") {
            let _ = parse_all(&text);
        }
    }
}
