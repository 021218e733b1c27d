//! Programs that hold opens: whose descriptors are fanotify groups of a class that is
//! asked for permission. Read from `/proc/PID/fdinfo`; nothing is opened but these.

use std::fs;
use std::path::Path;

use super::facts::Holder;

/// Processes that are looked at, at the most.
const MAX_PROCESSES: usize = 32_768;
/// Descriptors of one that are looked at, at the most.
const MAX_DESCRIPTORS: usize = 4096;
/// Bytes of one description that are read, at the most: its first line says enough.
const MAX_BYTES: usize = 512;
/// The bits of a group's flags that say which class it is of.
const CLASS_BITS: u64 = 0xc;

/// All that are there, but for these processes.
pub fn find(proc: &Path, own: &[u32]) -> Vec<Holder> {
    let Ok(processes) = fs::read_dir(proc) else {
        return Vec::new();
    };
    let mut found: Vec<Holder> = processes
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .take(MAX_PROCESSES)
        .filter(|pid| !own.contains(pid))
        .filter(|pid| holds(&proc.join(pid.to_string()).join("fdinfo")))
        .map(|pid| Holder {
            pid,
            name: name(&proc.join(pid.to_string())),
        })
        .collect();
    found.sort_by_key(|holder| holder.pid);
    found
}

fn name(process: &Path) -> String {
    let name = fs::read(process.join("comm")).unwrap_or_default();
    String::from_utf8_lossy(&name)
        .trim()
        .escape_debug()
        .to_string()
}

fn holds(descriptors: &Path) -> bool {
    let Ok(descriptors) = fs::read_dir(descriptors) else {
        return false;
    };
    descriptors
        .flatten()
        .take(MAX_DESCRIPTORS)
        .any(|entry| is_permission_group(&beginning(&entry.path())))
}

fn beginning(path: &Path) -> String {
    use std::io::Read as _;
    let mut bytes = vec![0; MAX_BYTES];
    let read = fs::File::open(path).and_then(|mut file| file.read(&mut bytes));
    bytes.truncate(read.unwrap_or(0));
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Whether a descriptor's description is that of a group that is asked for permission.
fn is_permission_group(fdinfo: &str) -> bool {
    fdinfo
        .lines()
        .find_map(|line| line.strip_prefix("fanotify flags:"))
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|flags| u64::from_str_radix(flags, 16).ok())
        .is_some_and(|flags| flags & CLASS_BITS != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_is_known_by_its_class() {
        let of = |flags: &str| {
            format!(
                "pos:\t0\nflags:\t02000002\nmnt_id:\t15\nino:\t1\nfanotify flags:{flags} event-flags:88002\n"
            )
        };
        assert!(is_permission_group(&of("17")));
        assert!(is_permission_group(&of("8")));
        assert!(!is_permission_group(&of("13")));
        assert!(!is_permission_group("pos:\t0\ninotify wd:1\n"));
        assert!(!is_permission_group(&of("zz")));
    }
}
