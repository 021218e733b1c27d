//! For which file system in user space a process waits, by what the kernel says of its
//! threads: no file system is asked anything, for it might not answer here either.
//!
//! A thread that waits is within a system call. The call names a file by a descriptor,
//! whose mount `fdinfo` gives, or by a path, which is in the thread's memory; the table of
//! mounts has the file system's number. A call that says neither (the process ends, and
//! the kernel closes its files) names none.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use nix::libc;

use crate::fanotify::mountinfo::{self, Mount};

/// Longest path in a thread's memory, in bytes.
const MAX_PATH_BYTES: usize = 4096;
/// Threads that are looked at.
const MAX_THREADS: usize = 4096;
/// Bits of a device number that are its minor part.
const MINOR_BITS: u32 = 20;

/// Calls whose first argument is a path.
#[cfg(target_arch = "x86_64")]
const BY_PATH: &[libc::c_long] = &[
    libc::SYS_statfs,
    libc::SYS_open,
    libc::SYS_stat,
    libc::SYS_lstat,
    libc::SYS_readlink,
];
#[cfg(not(target_arch = "x86_64"))]
const BY_PATH: &[libc::c_long] = &[libc::SYS_statfs];
/// Calls whose first argument is a folder's descriptor, and the second a path.
const BY_PATH_AT: &[libc::c_long] = &[
    libc::SYS_openat,
    libc::SYS_openat2,
    libc::SYS_newfstatat,
    libc::SYS_statx,
    libc::SYS_faccessat,
    libc::SYS_readlinkat,
];

/// What is known of a process that waits.
#[derive(Debug, Default)]
pub struct Waits {
    /// Whether it waits for a file system in user space.
    pub for_fuse: bool,
    /// The numbers of those that its calls name, by which their connections are known.
    pub devices: Vec<u64>,
    /// Where its threads wait, by the kernel's names.
    pub places: String,
}

/// What a process waits for, by its folder in `/proc`.
pub fn of(process: &Path) -> Waits {
    let mut waits = Waits::default();
    let threads = fs::read_dir(process.join("task")).into_iter().flatten();
    for thread in threads.flatten().take(MAX_THREADS) {
        let thread = thread.path();
        let read = |name: &str| fs::read_to_string(thread.join(name)).unwrap_or_default();
        let place = format!("{} {}", read("wchan"), read("stack"));
        if place.contains("fuse") || place.contains("request_wait_answer") {
            waits.for_fuse = true;
            named(&thread, &read("syscall"), &mut waits.devices);
        }
        waits.places.push_str(&place);
        waits.places.push(' ');
    }
    waits
}

/// The file systems in user space that a thread's call names.
fn named(thread: &Path, call: &str, devices: &mut Vec<u64>) {
    let Some(call) = Call::parse(call) else {
        return;
    };
    let table = File::open(thread.join("mountinfo"))
        .and_then(|mut table| mountinfo::read(&mut table))
        .unwrap_or_default();
    let mut mounts = mountinfo::parse_all(&table);
    mounts.retain(|mount| mount.kind.starts_with("fuse"));
    if let Some(descriptor) = call.descriptor {
        let info = thread.join("fdinfo").join(descriptor.to_string());
        let info = fs::read_to_string(info).unwrap_or_default();
        let id = mount_of(&info);
        let on = mounts.iter().filter(|mount| Some(mount.id) == id);
        devices.extend(on.filter_map(number));
    }
    if let Some(path) = call.path.and_then(|at| path(thread, at)) {
        // On the way to the file each of them may be the one that is asked.
        let on_the_way = mounts.iter().filter(|mount| path.starts_with(&mount.point));
        devices.extend(on_the_way.filter_map(number));
    }
}

/// What a thread's system call names its file by.
#[derive(Debug, PartialEq, Eq)]
struct Call {
    descriptor: Option<u32>,
    /// Where in the thread's memory.
    path: Option<u64>,
}

impl Call {
    /// `NUMBER 0xARGUMENT 0xARGUMENT …`, or a word where there is none.
    fn parse(text: &str) -> Option<Self> {
        let mut words = text.split_whitespace();
        let number: libc::c_long = words.next()?.parse().ok()?;
        let mut argument = || {
            let word = words.next()?.strip_prefix("0x")?;
            u64::from_str_radix(word, 16).ok()
        };
        let (first, second) = (argument()?, argument()?);
        // The upper half of what is a descriptor means nothing; AT_FDCWD is none.
        let low = u32::try_from(first & u64::from(u32::MAX)).ok();
        let descriptor = low.filter(|low| i32::try_from(*low).is_ok());
        Some(if BY_PATH.contains(&number) {
            Self {
                descriptor: None,
                path: Some(first),
            }
        } else {
            Self {
                descriptor,
                path: BY_PATH_AT.contains(&number).then_some(second),
            }
        })
    }
}

/// An absolute path in a thread's memory.
fn path(thread: &Path, at: u64) -> Option<PathBuf> {
    let memory = File::open(thread.join("mem")).ok()?;
    let mut bytes = vec![0; MAX_PATH_BYTES];
    // As much as there is: a page behind the path may be nobody's.
    let read = memory.read_at(&mut bytes, at).ok()?;
    let end = bytes.iter().take(read).position(|byte| *byte == 0)?;
    let path = Path::new(OsStr::from_bytes(bytes.get(..end)?));
    path.is_absolute().then(|| path.to_owned())
}

/// The mount's id in a descriptor's `fdinfo`.
fn mount_of(info: &str) -> Option<u64> {
    let line = info.lines().find_map(|line| line.strip_prefix("mnt_id:"))?;
    line.trim().parse().ok()
}

/// A file system's number, as its connection is called.
fn number(mount: &Mount) -> Option<u64> {
    let (major, minor) = mount.device.split_once(':')?;
    let (major, minor): (u64, u64) = (major.parse().ok()?, minor.parse().ok()?);
    Some((major << MINOR_BITS) | minor)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_call_names_a_descriptor_or_a_path() {
        let call = |number: libc::c_long, first: &str| {
            Call::parse(&format!(
                "{number} {first} 0x7f00 0x0 0x0 0x0 0x0 0x1 0x2\n"
            ))
            .unwrap()
        };
        let expected = |descriptor, path| Call { descriptor, path };
        assert_eq!(call(libc::SYS_read, "0x7"), expected(Some(7), None));
        assert_eq!(
            call(libc::SYS_statx, "0xffffff9c"),
            expected(None, Some(0x7f00))
        );
        assert_eq!(
            call(libc::SYS_openat, "0x5"),
            expected(Some(5), Some(0x7f00))
        );
        assert_eq!(
            call(libc::SYS_statfs, "0x7f40"),
            expected(None, Some(0x7f40))
        );
        for none in ["running\n", "-1 0x7ffc 0x0\n", "", "231"] {
            assert!(
                Call::parse(none).is_none_or(|call| call.path.is_none()),
                "{none}"
            );
        }
    }

    #[test]
    fn a_file_system_is_called_by_its_number() {
        let number = |device: &str| {
            let line = format!("1 0 {device} / /m rw - fuse x rw");
            number(&mountinfo::parse(&line).unwrap())
        };
        assert_eq!(number("0:57"), Some(57));
        assert_eq!(number("7:1"), Some((7 << 20) | 1));
        assert_eq!(number("x"), None);
        assert_eq!(mount_of("pos:\t0\nflags:\t02\nmnt_id:\t31\n"), Some(31));
    }

    /// This thread's own memory and calls: it runs, and waits for nothing.
    #[test]
    fn a_path_is_found_in_memory() {
        let thread = Path::new("/proc/thread-self");
        for text in ["/srv/dead/file", "relative", ""] {
            let held = format!("{text}\0");
            let at = held.as_ptr() as u64;
            let expected = text.starts_with('/').then(|| PathBuf::from(text));
            assert_eq!(path(thread, at), expected, "{text}");
        }
        assert_eq!(path(thread, 0), None);
        assert!(!of(Path::new("/proc/self")).for_fuse);
    }

    proptest! {
        #[test]
        fn no_text_is_too_odd(call in "[-0-9xa-f \n]{0,80}", info in "(mnt_id:)?[0-9\t\n]{0,40}") {
            let _ = Call::parse(&call);
            let _ = mount_of(&info);
        }
    }
}
