//! Mount namespaces besides the agent's own: found by the processes that live in them.
//!
//! A namespace without a process (one that is kept by a file alone) is not found. Bounded
//! in processes and namespaces; what is beyond is counted.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs::{self, File};
use std::io;
use std::path::Path;

use nix::errno::Errno;

use super::mountinfo::{self, Mount};

/// Processes that are looked at in one walk.
const MOST_PROCESSES: usize = 65_536;
/// Namespaces that are looked at in one walk.
pub const MOST_NAMESPACES: usize = 256;

/// How much of a namespace's table is read, in bytes: some thousand mounts.
const MOST_TABLE_BYTES: u64 = 1024 * 1024;

/// What a namespace has mounted, as one of its processes sees it.
#[derive(Debug)]
pub struct Namespace {
    /// Its mounts.
    pub mounts: Vec<Mount>,
    /// Whether there are more.
    pub cut: bool,
}

/// What was found.
#[derive(Debug, Default)]
pub struct Found {
    /// One process of each namespace.
    pub pids: Vec<u32>,
    /// Whether there was more than one walk takes.
    pub cut: bool,
}

/// Finds a process of each namespace that is not the agent's own.
pub fn walk(proc: &Path) -> Found {
    let mut found = Found::default();
    let own = of(&proc.join("self"));
    let mut seen: HashMap<OsString, u32> = HashMap::new();
    let entries = fs::read_dir(proc).into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    for (index, pid) in pids.enumerate() {
        if index == MOST_PROCESSES {
            found.cut = true;
            break;
        }
        // Gone, or none of the agent's business.
        let Some(namespace) = of(&proc.join(pid.to_string())) else {
            continue;
        };
        if Some(&namespace) == own.as_ref() || seen.contains_key(&namespace) {
            continue;
        }
        if seen.len() == MOST_NAMESPACES {
            found.cut = true;
            break;
        }
        seen.insert(namespace, pid);
    }
    found.pids = seen.into_values().collect();
    found
}

fn of(process: &Path) -> Option<OsString> {
    let link = fs::read_link(process.join("ns/mnt")).ok()?;
    Some(link.into_os_string())
}

/// The number of the process that began last.
pub fn last_process() -> Option<u32> {
    let text = fs::read_to_string("/proc/loadavg").ok()?;
    text.split_whitespace().nth(4)?.parse().ok()
}

/// The mounts that a process sees; none if it is gone.
///
/// # Errors
/// The kernel's, while the process is there.
pub fn mounts(pid: u32) -> io::Result<Option<Namespace>> {
    let table = File::open(format!("/proc/{pid}/mountinfo"));
    match table.and_then(|mut table| mountinfo::read_part(&mut table, MOST_TABLE_BYTES)) {
        Ok(part) => Ok(Some(Namespace {
            mounts: mountinfo::parse_all(&part.text),
            cut: part.cut,
        })),
        // EINVAL is said of one that has ended and is still waited for.
        Err(error) => match error.raw_os_error().map(Errno::from_raw) {
            Some(Errno::ENOENT | Errno::ESRCH | Errno::EINVAL) => Ok(None),
            _ => Err(error),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn each_other_namespace_is_found_once() {
        let proc = tempfile::tempdir().unwrap();
        let process = |name: &str, namespace: &str| {
            let folder = proc.path().join(name).join("ns");
            fs::create_dir_all(&folder).unwrap();
            symlink(format!("mnt:[{namespace}]"), folder.join("mnt")).unwrap();
        };
        process("self", "1");
        process("10", "1");
        process("11", "2");
        process("12", "2");
        process("13", "3");
        fs::create_dir(proc.path().join("14")).unwrap();
        let found = walk(proc.path());
        assert_eq!(found.pids.len(), 2);
        assert!(found.pids.contains(&13) && !found.cut);
        for n in 0..MOST_NAMESPACES {
            process(&(100 + n).to_string(), &(100 + n).to_string());
        }
        let found = walk(proc.path());
        assert_eq!((found.pids.len(), found.cut), (MOST_NAMESPACES, true));
    }

    #[test]
    fn a_process_that_begins_is_noticed() {
        let before = last_process().unwrap();
        let mut child = std::process::Command::new("/bin/true").spawn().unwrap();
        child.wait().unwrap();
        assert_ne!(last_process().unwrap(), before);
    }

    #[test]
    fn a_process_has_mounts_and_none_that_is_gone() {
        let own = mounts(std::process::id()).unwrap().unwrap();
        assert!(!own.mounts.is_empty() && !own.cut);
        assert!(mounts(u32::MAX).unwrap().is_none());
        // One that has ended and was not waited for.
        let mut child = std::process::Command::new("/bin/true").spawn().unwrap();
        let started = std::time::Instant::now();
        while mounts(child.id()).unwrap().is_some() {
            assert!(started.elapsed() < std::time::Duration::from_secs(10));
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        child.wait().unwrap();
    }
}
