//! Which file systems may be marked, and which are gaps.
//!
//! A permission mark on a file system whose opens can block in the kernel (FUSE,
//! network) would put the reader into the hands of whoever serves it; those get
//! no mark and are listed as gaps, each with its reason.

use std::collections::HashSet;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use nix::sys::statfs::{FsType, fstatfs, statfs};
use palisade_protocol::bounded::PathBytes;

use super::mountinfo::{self, Mount};

/// Types that get permission marks: local, and never waiting for another process.
const MARKED: &[(i64, &str)] = &[
    (0xEF53, "ext4"),
    (0x5846_5342, "xfs"),
    (0x9123_683E, "btrfs"),
    (0x0102_1994, "tmpfs"),
    (0xE0F5_E1E2, "erofs"),
    (0x7371_7368, "squashfs"),
];
const OVERLAY: i64 = 0x794C_7630;

/// Types that are known well enough to be named in a gap's reason.
const NAMED: &[(i64, &str)] = &[
    (0x6573_5546, "fuse"),
    (0x6969, "nfs"),
    (0xFF53_4D42, "cifs"),
    (0xFE53_4D42, "smb2"),
    (0x0102_1997, "9p"),
    (0x0187, "autofs"),
    (0x9FA0, "proc"),
    (0x6265_6572, "sysfs"),
];

/// Types without files of their own: a walk does not enter them by itself.
const PSEUDO: &[i64] = &[
    0x9FA0,      // proc
    0x6265_6572, // sysfs
    0x0027_E0EB, // cgroup
    0x6367_7270, // cgroup2
    0x6462_6720, // debugfs
    0x7472_6163, // tracefs
    0xCAFE_4A11, // bpf
    0x7363_6673, // securityfs
    0x1CD1,      // devpts
    0x6265_6570, // configfs
    0x6165_676C, // pstore
    0xF97C_FF8C, // selinuxfs
    0x6E73_6673, // nsfs
    0xDE5E_81E4, // efivarfs
    0x1980_0202, // mqueue
    0x6573_5543, // fusectl
    0x4249_4E4D, // binfmt_misc
    0x9584_58F6, // hugetlbfs
];

/// Longest name of a gap, and longest reason, in bytes: whoever mounts something chooses
/// parts of both.
const MOST_NAME_BYTES: usize = 256;
const MOST_REASON_BYTES: usize = 512;
/// Longest name of a type of file system: of FUSE, whoever mounts it chooses it.
const MOST_KIND_CHARS: usize = 48;

/// Something that was to be protected and is not. What it says can be printed anywhere.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Gap {
    path: String,
    reason: String,
    /// The path as it is.
    #[serde(skip)]
    at: Option<PathBuf>,
}

impl Gap {
    /// A path of the agent's own namespace, why, and what helps.
    pub fn new(path: &Path, reason: &str) -> Self {
        Self {
            at: Some(path.to_owned()),
            ..Self::of(&printable(path, MOST_NAME_BYTES), reason)
        }
    }

    /// A path of a process's namespace.
    pub fn of_process(pid: u32, path: &Path, reason: &str) -> Self {
        let path = printable(path, MOST_NAME_BYTES);
        Self::of(&format!("{path} of process {pid}"), reason)
    }

    /// Something that has no path; what is printable.
    pub fn of(what: &str, reason: &str) -> Self {
        Self {
            path: what.to_owned(),
            reason: printable(Path::new(reason), MOST_REASON_BYTES),
            at: None,
        }
    }

    /// Which path, or what else.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Why, and what helps.
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// The path as it is, in the agent's own namespace.
    pub fn at(&self) -> Option<&Path> {
        self.at.as_deref()
    }
}

/// As it can neither forge a line of a log nor drive a terminal, cut to some bytes.
fn printable(name: &Path, most: usize) -> String {
    let mut text = PathBytes::from_path(name).to_string();
    if text.len() > most {
        text.truncate(text.floor_char_boundary(most));
        text.push('…');
    }
    text
}

/// A protected path that can be marked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The path, without links.
    pub path: PathBuf,
    /// The file system's type.
    pub kind: &'static str,
}

/// The configured paths, sorted out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Places {
    /// To be marked.
    pub places: Vec<Place>,
    /// Not to be marked.
    pub gaps: Vec<Gap>,
    /// The file system of the places, if it is an overlay: then no other may be marked.
    pub overlay: Option<String>,
}

/// Sorts the configured paths into places and gaps; `excluded` are types of file systems.
pub fn survey(paths: &[PathBuf], excluded: &[String]) -> Places {
    let mut found = Places::default();
    let mut seen = HashSet::new();
    // Without the table one whose server does not answer would be asked what it is.
    let mounts = mountinfo::own()
        .map(|table| mountinfo::parse_all(&table))
        .map_err(|error| format!("what is mounted there cannot be read: {error}"));
    for path in paths {
        match mounts
            .as_deref()
            .map_err(String::clone)
            .and_then(|mounts| place(path, mounts))
        {
            Ok(place) if excluded.iter().any(|kind| kind == place.kind) => {
                let reason = format!("on_access.exclude_types excludes {}", place.kind);
                found.gaps.push(Gap::new(path, &reason));
            }
            Ok(place) if seen.insert(place.path.clone()) => found.places.push(place),
            Ok(_) => {}
            Err(reason) => found.gaps.push(Gap::new(path, &reason)),
        }
    }
    keep_overlays_apart(&mut found, mounts.as_deref().unwrap_or_default());
    found
}

/// Since Linux 6.x a mark on the file system below an overlay sees the overlay's
/// opens too, and with both marked the reader would wait for itself. An overlay may lie
/// on another one, too: one is marked, if there is nothing else.
fn keep_overlays_apart(found: &mut Places, mounts: &[Mount]) {
    let device =
        |place: &Place| mountinfo::holding(mounts, &place.path).map(|mount| mount.device.clone());
    let beside = found.places.iter().any(|place| place.kind != "overlay");
    let first = found.places.first().filter(|_| !beside);
    found.overlay = first.and_then(device);
    let (kept, dropped) = std::mem::take(&mut found.places)
        .into_iter()
        .partition(|place| {
            place.kind != "overlay" || (found.overlay.is_some() && device(place) == found.overlay)
        });
    found.places = kept;
    let dropped: Vec<Place> = dropped;
    let reason = "an overlay is not marked beside other file systems, which may lie below it; \
                  protect the overlay's upper and lower folders instead";
    let gaps = dropped.iter().map(|place| Gap::new(&place.path, reason));
    found.gaps.extend(gaps);
}

fn place(path: &Path, mounts: &[Mount]) -> Result<Place, String> {
    // One whose server does not answer must not even be asked what it is.
    if let Some(mount) = mountinfo::holding(mounts, path)
        && !(is_local(&mount.kind) || mount.kind == "overlay")
    {
        return Err(unprotected(&mount.kind));
    }
    let path =
        std::fs::canonicalize(path).map_err(|error| format!("it cannot be used: {error}"))?;
    let kind = magic(&path).map_err(|error| format!("its file system is unknown: {error}"))?;
    match name(MARKED, kind) {
        Some(kind) => Ok(Place { path, kind }),
        None if kind == OVERLAY => Ok(Place {
            path,
            kind: "overlay",
        }),
        None => Err(unprotected(
            &name(NAMED, kind).map_or_else(|| format!("type {kind:#x}"), str::to_owned),
        )),
    }
}

/// Why a type of file system is a gap.
pub fn unprotected(kind: &str) -> String {
    let kind: String = kind.chars().take(MOST_KIND_CHARS).collect();
    format!(
        "its file system ({kind}) is not protected on access, since opens there can block the \
         whole system; scan it on demand"
    )
}

/// Whether a type of file system, by its name, is local and never waits for another
/// process.
pub fn is_local(kind: &str) -> bool {
    // The kernel names these two by what they were made as.
    matches!(kind, "ext2" | "ext3") || MARKED.iter().any(|(_, marked)| *marked == kind)
}

/// The types that can be excluded, by their names.
pub fn kinds() -> impl Iterator<Item = &'static str> {
    excludable().map(|(_, name)| name)
}

/// The kernel's numbers of types of file systems; what is no such type has none.
pub fn numbers(kinds: &[String]) -> Vec<i64> {
    let wanted = excludable().filter(|(_, name)| kinds.iter().any(|kind| kind == name));
    wanted.map(|(number, _)| number).collect()
}

fn excludable() -> impl Iterator<Item = (i64, &'static str)> {
    MARKED.iter().copied().chain([(OVERLAY, "overlay")])
}

/// The number of the type of an open file's file system.
///
/// # Errors
/// The kernel's.
pub fn kind_of(file: &impl AsFd) -> nix::Result<i64> {
    let FsType(kind) = fstatfs(file)?.filesystem_type();
    Ok(kind)
}

/// Whether a verdict about an open file may outlive the open, as far as its file system
/// goes. An overlay's own file does not know of a writer that has mapped it: the mapping is
/// of the layer's. What the kernel does not say is not.
pub fn knows_writers(file: &impl AsFd) -> bool {
    kind_of(file).is_ok_and(|kind| kind != OVERLAY)
}

/// Whether a walk stays out of this folder unless it is named.
pub fn is_pseudo(path: &Path) -> bool {
    magic(path).is_ok_and(|kind| PSEUDO.contains(&kind))
}

fn magic(path: &Path) -> nix::Result<i64> {
    let FsType(kind) = statfs(path)?.filesystem_type();
    Ok(kind)
}

fn name(table: &[(i64, &'static str)], kind: i64) -> Option<&'static str> {
    table
        .iter()
        .find(|(magic, _)| *magic == kind)
        .map(|(_, name)| *name)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt as _;

    #[test]
    fn pseudo_file_systems_are_known_and_are_gaps() {
        assert!(is_pseudo(Path::new("/proc")));
        assert!(is_pseudo(Path::new("/sys")));
        assert!(!is_pseudo(Path::new("/usr")));
        let found = survey(&["/proc".into(), "/no/such/folder".into()], &[]);
        assert!(found.places.is_empty());
        assert!(found.gaps[0].reason().contains("proc"), "{:?}", found.gaps);
        assert!(
            found.gaps[1].reason().contains("No such file"),
            "{:?}",
            found.gaps
        );
    }

    proptest! {
        // Whoever mounts something chooses its name, and of FUSE the type.
        #[test]
        fn a_gap_is_one_short_printable_line(
            name in prop::collection::vec(any::<u8>(), 0..5000), kind in "[\\PC\u{0}-\u{1f}]{0,300}",
        ) {
            let path = Path::new(OsStr::from_bytes(&name));
            let reason = unprotected(&kind);
            for gap in [Gap::new(path, &reason), Gap::of_process(1, path, &reason)] {
                for text in [gap.path(), gap.reason()] {
                    prop_assert!(!text.chars().any(char::is_control), "{text:?}");
                    prop_assert!(text.len() <= MOST_REASON_BYTES + 3);
                }
                prop_assert!(gap.reason().ends_with("scan it on demand"), "what helps is said");
                let json = serde_json::to_string(&gap).unwrap();
                prop_assert!(json.len() < 2048, "{}", json.len());
            }
            let gap = Gap::new(path, &reason);
            prop_assert_eq!(gap.at(), Some(path));
        }
    }

    #[test]
    fn an_overlay_is_not_marked_beside_what_may_lie_below_it() {
        let place = |path: &str, kind| Place {
            path: path.into(),
            kind,
        };
        let table = "1 0 0:30 / / rw - overlay o rw\n2 1 0:31 / /c rw - overlay o rw\n\
                     3 1 8:1 / /d rw - ext4 d rw\n";
        let apart = |places: &[Place]| {
            let mut found = Places {
                places: places.to_vec(),
                ..Places::default()
            };
            keep_overlays_apart(&mut found, &mountinfo::parse_all(table));
            (found.places, found.gaps.len(), found.overlay)
        };
        let (root, other) = (place("/", "overlay"), place("/c", "overlay"));
        let (home, disk) = (place("/home", "overlay"), place("/d", "ext4"));
        assert_eq!(apart(&[root.clone(), disk.clone()]), (vec![disk], 1, None));
        // Alone it is; another may lie on it.
        assert_eq!(
            apart(&[root.clone(), other, home.clone()]),
            (vec![root, home], 1, Some("0:30".to_owned()))
        );
    }
}
