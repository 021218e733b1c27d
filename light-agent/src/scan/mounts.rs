//! What a full scan covers: the local file systems, each once; pure.
//!
//! Works on the text of `/proc/self/mountinfo` alone. No file system is asked what it
//! is: one whose server is gone would never answer.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::fanotify::mountinfo::{Mount, parse, unescaped};
use crate::fanotify::places::is_local;

/// Types without files of their own; nobody misses them in a scan.
pub const PSEUDO: &[&str] = &[
    "autofs",
    "binfmt_misc",
    "bpf",
    "cgroup",
    "cgroup2",
    "configfs",
    "debugfs",
    "devpts",
    "devtmpfs",
    "efivarfs",
    "fusectl",
    "hugetlbfs",
    "mqueue",
    "nsfs",
    "proc",
    "pstore",
    "rpc_pipefs",
    "securityfs",
    "selinuxfs",
    "sysfs",
    "tracefs",
];

/// The mounted file systems, sorted out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mounted {
    /// Where to begin, so that each local file system is seen once.
    pub roots: Vec<PathBuf>,
    /// All mount points: a walk that begins at a root enters none of the others.
    pub points: Vec<PathBuf>,
    /// What is not local, with its type.
    pub left_out: Vec<(PathBuf, String)>,
}

/// Sorts out a `mountinfo`. `exists` says whether a path can be reached from here: an
/// overlay whose upper layer can be reached is scanned there.
pub fn sort_out(mountinfo: &str, exists: impl Fn(&Path) -> bool) -> Mounted {
    let mut mounts: Vec<Mount> = Vec::new();
    let mut at: HashMap<PathBuf, usize> = HashMap::new();
    for mount in mountinfo.lines().filter_map(parse) {
        match at.get(&mount.point) {
            // What is mounted over it is what is seen.
            Some(&index) => mounts[index] = mount,
            None => {
                at.insert(mount.point.clone(), mounts.len());
                mounts.push(mount);
            }
        }
    }
    let mut found = Mounted::default();
    for (index, mount) in mounts.iter().enumerate() {
        found.points.push(mount.point.clone());
        if !is_scanned(mount) {
            if !PSEUDO.contains(&mount.kind.as_str()) {
                found
                    .left_out
                    .push((mount.point.clone(), mount.kind.clone()));
            }
            continue;
        }
        if mount.kind == "overlay" && mount.point != Path::new("/") {
            let seen_elsewhere = upper(&mount.options).is_some_and(|upper| exists(&upper));
            if seen_elsewhere {
                continue;
            }
        }
        // Another mount of the same file system shows this part of it, too.
        let elsewhere = mounts.iter().enumerate().any(|(other, shown)| {
            shown.device == mount.device
                && mount.root.starts_with(&shown.root)
                && (mount.root != shown.root || other < index)
        });
        if !elsewhere {
            found.roots.push(mount.point.clone());
        }
    }
    found.roots.sort();
    found
}

fn is_scanned(mount: &Mount) -> bool {
    mount.kind == "overlay" || is_local(&mount.kind)
}

fn upper(options: &str) -> Option<PathBuf> {
    let upper = options
        .split(',')
        .find_map(|option| option.strip_prefix("upperdir="))?;
    Some(unescaped(upper))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn roots(text: &str) -> Vec<PathBuf> {
        sort_out(text, |_| true).roots
    }

    #[test]
    fn each_local_file_system_is_covered_once() {
        let found = sort_out(
            "22 27 0:21 / /proc rw - proc proc rw\n\
             27 1 254:0 / / rw shared:1 - ext4 /dev/vda rw\n\
             30 27 254:0 /srv /bind rw - ext4 /dev/vda rw\n\
             31 27 254:1 / /my\\040data rw - xfs /dev/vdb rw\n\
             32 27 254:1 / /again rw - xfs /dev/vdb rw\n\
             33 27 0:50 / /net rw - nfs4 server:/x rw\n\
             34 27 0:51 / /home/u/gv rw - fuse.gvfsd gv rw\n\
             35 27 0:52 / /run rw - tmpfs tmpfs rw\n",
            |_| true,
        );
        assert_eq!(
            found.roots,
            ["/", "/my data", "/run"].map(PathBuf::from),
            "{found:?}"
        );
        let left: Vec<&str> = found.left_out.iter().map(|(_, kind)| &**kind).collect();
        assert_eq!(left, ["nfs4", "fuse.gvfsd"]);
        assert_eq!(found.points.len(), 8);
    }

    #[test]
    fn parts_of_a_file_system_that_is_mounted_nowhere_whole_are_covered() {
        assert_eq!(
            roots(
                "1 0 0:30 /@ / rw - btrfs /dev/x rw\n\
                 2 1 0:30 /@home /home rw - btrfs /dev/x rw\n\
                 3 1 0:30 /@home/u /srv/u rw - btrfs /dev/x rw\n"
            ),
            ["/", "/home"].map(PathBuf::from)
        );
    }

    #[test]
    fn an_overlay_is_scanned_where_its_upper_layer_is() {
        let text = "1 0 0:30 / / rw - overlay o rw,lowerdir=/l,upperdir=/u,workdir=/w\n\
                    2 1 0:31 / /merged rw - overlay o rw,lowerdir=/l,upperdir=/u2,workdir=/w\n";
        assert_eq!(roots(text), [PathBuf::from("/")]);
        let unreachable = sort_out(text, |_| false).roots;
        assert_eq!(unreachable, ["/", "/merged"].map(PathBuf::from));
    }

    #[test]
    fn what_is_mounted_over_another_is_what_is_seen() {
        assert_eq!(
            roots(
                "1 0 254:0 / / rw - ext4 /dev/x rw\n\
                 2 1 0:27 / /mnt rw - tmpfs t rw\n\
                 3 2 0:28 / /mnt rw - nfs s:/ rw\n"
            ),
            [PathBuf::from("/")]
        );
    }

    #[test]
    fn this_machine_has_a_root() {
        let text = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let found = sort_out(&text, Path::exists);
        assert!(!found.points.is_empty() && !found.roots.is_empty());
        assert!(!found.roots.iter().any(|root| root.starts_with("/proc")));
    }

    proptest! {
        #[test]
        fn whatever_it_reads_it_ends(text in "([0-9:]{1,4} |/[a\\\\0-7]* |- |ext4 |\n){0,60}") {
            let _ = sort_out(&text, |_| true);
        }
    }
}
