//! What is known of a file that was found, asked of the kernel and of the guest.
//!
//! Owns which files a guest needs: what starts it, what lets people in, what the first
//! process and this agent run. Does not own what follows ([`super::policy`]).

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use palisade_protocol::verdict::VerdictKind;

use super::packages;
use super::policy::{Facts, Need};
use crate::lease;
use crate::stamp::Stamp;

/// Bytes of the first process's map that are read, at the most.
const MAX_MAPS_BYTES: u64 = 16 << 20;

/// Folders whose files a guest needs in order to start, or to let people in.
const VITAL_FOLDERS: &[&str] = &[
    "/boot",
    "/efi",
    "/lib/modules",
    "/usr/lib/modules",
    "/proc",
    "/sys",
    "/run/systemd",
    "/var/lib/dpkg",
    "/var/lib/rpm",
    "/usr/lib/sysimage",
    "/etc/NetworkManager",
    "/etc/netplan",
    "/etc/network",
    "/etc/pam.d",
    "/etc/palisade",
    "/etc/security",
    "/etc/selinux",
    "/etc/ssh",
    "/etc/sudoers.d",
    "/etc/systemd",
    "/usr/lib/systemd",
];

/// Files in /etc of the same kind.
const VITAL_IN_ETC: &[&str] = &[
    "crypttab",
    "fstab",
    "group",
    "group-",
    "gshadow",
    "gshadow-",
    "hostname",
    "hosts",
    "inittab",
    "ld.so.cache",
    "ld.so.conf",
    "login.defs",
    "machine-id",
    "nsswitch.conf",
    "passwd",
    "passwd-",
    "profile",
    "resolv.conf",
    "shadow",
    "shadow-",
    "shells",
    "subgid",
    "subuid",
    "sudoers",
];

/// Where libraries are.
const LIBRARIES: &[&str] = &[
    "/lib",
    "/lib32",
    "/lib64",
    "/libx32",
    "/usr/lib",
    "/usr/lib32",
    "/usr/lib64",
    "/usr/libx32",
    "/usr/local/lib",
];

/// What a system usually starts first.
const FIRST: &[&str] = &[
    "/sbin/init",
    "/init",
    "/bin/init",
    "/etc/init",
    "/lib/systemd/systemd",
    "/bin/sh",
    "/bin/busybox",
];

/// Where a file may not be moved from, besides what the guest needs.
#[derive(Debug, Clone, Default)]
pub struct Around {
    /// The agent's own folders.
    pub own: Vec<PathBuf>,
    /// Whether opens are only watched.
    pub monitoring: bool,
    /// The list of rpm's files.
    pub rpm_listing: PathBuf,
}

/// Gathers what is known of an open file whose name is `path`.
///
/// # Errors
/// The kernel's.
pub fn gather(
    file: impl AsFd,
    path: &Path,
    verdict: VerdictKind,
    around: &Around,
) -> io::Result<Facts> {
    let stamp = Stamp::of(&file)?;
    let place = (stamp.device, stamp.inode);
    Ok(Facts {
        verdict,
        monitoring: around.monitoring,
        regular: stamp.regular,
        named: has_name(path),
        own: around.own.iter().any(|own| path.starts_with(own)),
        no_writer: lease::has_no_writer(&file),
        need: need(path, place),
        owner: packages::owner(Path::new("/"), &around.rpm_listing, path, place),
    })
}

/// A removed file's name ends so, in the kernel's words; a file of that very name is
/// not moved either.
fn has_name(path: &Path) -> bool {
    path.is_absolute()
        && path.file_name().is_some()
        && !path.as_os_str().as_bytes().ends_with(b" (deleted)")
}

fn need(path: &Path, place: (u64, u64)) -> Need {
    if let Some(why) = vital_path(path) {
        return Need::Vital(why);
    }
    match is_same("/proc/self/exe", place) {
        Ok(false) => {}
        Ok(true) => return Need::Vital("it is the agent's own program"),
        Err(error) => return Need::Unknown(format!("/proc/self/exe: {error}")),
    }
    let seen = is_same("/proc/1/exe", place)
        .and_then(|same| Ok(same || mapped_by_init(path)?))
        .or_else(|error| match error.kind() {
            // Only who may trace the first process sees what it runs.
            io::ErrorKind::PermissionDenied => perhaps_of_init(path, place),
            _ => Err(error),
        });
    match seen {
        Ok(false) => Need::None,
        Ok(true) => Need::Vital("the first process runs it"),
        Err(error) => Need::Unknown(format!("the first process: {error}")),
    }
}

fn is_same(path: impl AsRef<Path>, place: (u64, u64)) -> io::Result<bool> {
    let there = fs::metadata(path)?;
    Ok((there.dev(), there.ino()) == place)
}

/// Whether the first process could run a file, as far as can be told without looking
/// into it: anything where libraries are, its program by the name it was started with,
/// and whatever is usually started first.
fn perhaps_of_init(path: &Path, place: (u64, u64)) -> io::Result<bool> {
    let command = fs::read("/proc/1/cmdline")?;
    let program = command.split(|byte| *byte == 0).next().unwrap_or_default();
    let program = Path::new(OsStr::from_bytes(program));
    let by_name = program.file_name().is_some() && path.file_name() == program.file_name();
    Ok(by_name
        || LIBRARIES.iter().any(|folder| path.starts_with(folder))
        || FIRST
            .iter()
            .any(|first| is_same(first, place).unwrap_or(false)))
}

fn vital_path(path: &Path) -> Option<&'static str> {
    if VITAL_FOLDERS.iter().any(|vital| path.starts_with(vital)) {
        return Some("it is in a folder that the system starts from");
    }
    let in_etc = path.parent() == Some(Path::new("/etc"));
    let name = path.file_name().unwrap_or_default();
    (in_etc && VITAL_IN_ETC.iter().any(|vital| name == *vital))
        .then_some("the system, or its accounts, depend on it")
}

fn mapped_by_init(path: &Path) -> io::Result<bool> {
    use std::io::Read as _;
    let mut maps = Vec::new();
    let read = fs::File::open("/proc/1/maps")?
        .take(MAX_MAPS_BYTES)
        .read_to_end(&mut maps)?;
    if read as u64 == MAX_MAPS_BYTES {
        return Err(io::Error::other("it is too long"));
    }
    Ok(maps.split(|byte| *byte == b'\n').any(|line| {
        let name = line.iter().position(|byte| *byte == b'/');
        name.is_some_and(|start| Path::new(OsStr::from_bytes(&line[start..])) == path)
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_guest_starts_from_is_vital() {
        for vital in [
            "/boot/vmlinuz",
            "/etc/passwd",
            "/etc/shadow",
            "/etc/pam.d/login",
            "/usr/lib/modules/6.1/x.ko",
            "/var/lib/dpkg/status",
        ] {
            assert!(vital_path(Path::new(vital)).is_some(), "{vital}");
        }
        for not in [
            "/etc/passwd.d/x",
            "/home/etc/passwd",
            "/bootx/y",
            "/tmp/passwd",
        ] {
            assert!(vital_path(Path::new(not)).is_none(), "{not}");
        }
    }

    #[test]
    fn running_programs_are_vital() {
        let facts = |path: &Path| {
            let file = fs::File::open(path).unwrap();
            gather(file, path, VerdictKind::Malware, &Around::default()).unwrap()
        };
        let own = std::env::current_exe().unwrap();
        match facts(&own).need {
            Need::Vital(why) => assert!(why.contains("agent"), "{why}"),
            // Without the right to look at the first process nothing is known.
            Need::Unknown(_) => {}
            Need::None => panic!("the running program may not be moved"),
        }
        if let Ok(init) = fs::read_link("/proc/1/exe")
            && init.exists()
        {
            assert!(matches!(facts(&init).need, Need::Vital(_)));
        }
    }

    #[test]
    fn without_a_look_at_the_first_process_what_it_may_run_is_vital() {
        let may = |path: &str, place| perhaps_of_init(Path::new(path), place).unwrap();
        assert!(may("/usr/lib/x86_64-linux-gnu/libc.so.6", (0, 0)));
        assert!(!may("/home/a/b", (0, 0)));
        let shell = fs::metadata("/bin/sh").unwrap();
        assert!(may("/home/a/b", (shell.dev(), shell.ino())));
    }

    #[test]
    fn a_removed_file_has_no_name() {
        assert!(has_name(Path::new("/a/b")));
        assert!(!has_name(Path::new("/a/b (deleted)")));
        assert!(!has_name(Path::new("b")));
        assert!(!has_name(Path::new("/")));
    }
}
