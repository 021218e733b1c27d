//! Which of the mounted file systems are to be marked, and which are gaps: pure, by tables
//! of mounts alone.
//!
//! | a mount | own namespace | another namespace |
//! | --- | --- | --- |
//! | its file system is mounted in the agent's namespace, too | – | the agent's own rules count |
//! | local | marked, if below a protected path | marked |
//! | overlay | the file systems of its layers are, where their marks see it | the same |
//! | any, while the protected paths are on an overlay that is marked itself | a gap, if below one | not looked at |
//! | FUSE, network | a gap, if below a protected path | a gap |
//! | without files of its own (proc, sysfs, …) | – | – |
//!
//! A mount of another namespace has no name in the agent's, so that protected paths
//! cannot be told there.

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use super::mountinfo::{Mount, holding};
use super::overlay::{self, Seen};
use super::places::{Gap, is_local, unprotected};
use crate::scan::mounts::PSEUDO;

/// What is chosen.
#[derive(Debug, Clone, Default)]
pub struct Rules {
    /// Protected paths.
    pub paths: Vec<PathBuf>,
    /// Whether what is mounted below them is, too.
    pub below: bool,
    /// What is not protected below them.
    pub exclude: Vec<PathBuf>,
    /// The overlay that is marked itself: any other file system may be one of its layers,
    /// and is not.
    pub overlay: Option<String>,
    /// Whether marks of an overlay's layers see what is opened through it.
    pub overlays: Seen,
}

impl Rules {
    fn cover(&self, point: &Path) -> bool {
        self.below
            && self.paths.iter().any(|path| point.starts_with(path))
            && !self.exclude.iter().any(|path| point.starts_with(path))
    }

    fn mark(&self, mount: &Mount) -> bool {
        match &self.overlay {
            Some(overlay) => mount.kind == "overlay" && mount.device == *overlay,
            None => is_local(&mount.kind),
        }
    }
}

/// A mount whose file system is to be marked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// What to open: its mount point, or a protected path that it holds.
    pub at: PathBuf,
    /// Its id: what is opened must be on this very mount.
    pub id: u64,
    /// The file system.
    pub device: String,
}

impl Wanted {
    fn point(mount: &Mount) -> Self {
        Self {
            at: mount.point.clone(),
            id: mount.id,
            device: mount.device.clone(),
        }
    }
}

/// What a table of mounts comes to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// To be marked; a file system is here once for each mount.
    pub wanted: Vec<Wanted>,
    /// What is not protected, by its path.
    pub gaps: Vec<Gap>,
    /// What is not protected in another namespace: how many by type.
    pub foreign_gaps: BTreeMap<String, usize>,
}

impl Plan {
    fn gap(&mut self, point: &Path, reason: &str) {
        self.gaps.push(Gap::new(point, reason));
    }
}

/// Of the agent's own namespace.
pub fn own(mounts: &[Mount], rules: &Rules) -> Plan {
    let mut plan = Plan::default();
    for path in &rules.paths {
        if let Some(mount) = holding(mounts, path)
            && rules.mark(mount)
            && is_reached(mounts, mount)
        {
            plan.wanted.push(Wanted {
                at: path.clone(),
                ..Wanted::point(mount)
            });
        }
    }
    if let Some(overlay) = &rules.overlay {
        beside_overlay(mounts, rules, overlay, &mut plan);
        return plan;
    }
    for mount in mounts {
        if !rules.cover(&mount.point) || PSEUDO.contains(&mount.kind.as_str()) {
            continue;
        }
        if !is_reached(mounts, mount) {
            plan.gap(
                &mount.point,
                "it is mounted below a file system whose server may not answer; mount it elsewhere",
            );
        } else if is_local(&mount.kind) {
            plan.wanted.push(Wanted::point(mount));
        } else if mount.kind == "overlay" {
            match layers(mounts, mount, rules.overlays) {
                Ok(layers) => plan.wanted.extend(layers),
                Err(reason) => plan.gap(&mount.point, reason),
            }
        } else {
            plan.gap(&mount.point, &unprotected(&mount.kind));
        }
    }
    plan
}

/// What is not marked beside the one overlay that is.
fn beside_overlay(mounts: &[Mount], rules: &Rules, overlay: &str, plan: &mut Plan) {
    let others = mounts.iter().filter(|mount| {
        mount.device != overlay
            && rules.cover(&mount.point)
            && !PSEUDO.contains(&mount.kind.as_str())
    });
    let others = others.count();
    if let Some(path) = rules.paths.first()
        && others > 0
    {
        plan.gap(
            path,
            &unmarked_beside(&format!("{others} mounts below protected paths are")),
        );
    }
}

/// Why something is not marked while an overlay is.
pub fn unmarked_beside(what: &str) -> String {
    format!(
        "{what} not protected on access: the protected paths are on an overlay, and what is \
         below it cannot be marked beside it; protect its upper and lower folders instead"
    )
}

/// Of another namespace; `own` are the file systems that are mounted in the agent's.
pub fn foreign(mounts: &[Mount], own: &HashSet<String>, overlays: Seen) -> Plan {
    let mut plan = Plan::default();
    for mount in mounts {
        if own.contains(&mount.device) || PSEUDO.contains(&mount.kind.as_str()) {
            continue;
        }
        let layers = match mount.kind.as_str() {
            kind if is_local(kind) => Ok(vec![Wanted::point(mount)]),
            "overlay" => layers(mounts, mount, overlays),
            _ => Err(""),
        };
        match layers {
            // Of file systems that the agent has, too, its own rules are kept.
            Ok(layers) => plan
                .wanted
                .extend(layers.into_iter().filter(|one| !own.contains(&one.device))),
            Err(_) => *plan.foreign_gaps.entry(family(&mount.kind)).or_default() += 1,
        }
    }
    plan
}

/// The type that the kernel knows: what follows a point whoever mounted it chose.
fn family(kind: &str) -> String {
    let family = kind.split('.').next();
    family.unwrap_or(kind).to_owned()
}

/// Where an overlay's layers lie.
fn layers(mounts: &[Mount], mount: &Mount, seen: Seen) -> Result<Vec<Wanted>, &'static str> {
    match seen {
        Seen::Yes => {}
        Seen::No => {
            return Err(
                "this kernel does not show what is opened in an overlay to whoever watches its layers, \
             and an overlay is not marked beside them; protect its upper and lower folders, and \
             scan it on demand",
            );
        }
        Seen::Unknown => {
            return Err(
                "whether this kernel shows what is opened in an overlay to whoever watches its layers \
             could not be tried at the start, since the agent may mount nothing or the kernel has \
             no overlays, so that they are not marked for it; protect its upper and lower folders, \
             and scan it on demand",
            );
        }
    }
    let hidden = "its layers cannot be told from here; scan it on demand";
    let layers = overlay::layers(&mount.options).ok_or(hidden)?;
    let lies = |layer: &PathBuf| {
        let below = holding(mounts, layer).filter(|below| below.id != mount.id)?;
        let marked = is_local(&below.kind) && is_reached(mounts, below);
        marked.then(|| Wanted::point(below))
    };
    let found: Option<Vec<Wanted>> = layers.iter().map(lies).collect();
    found.ok_or(hidden)
}

/// Whether the way to a mount leads over local file systems alone, so that nobody can
/// keep whoever goes there.
fn is_reached(mounts: &[Mount], mount: &Mount) -> bool {
    let mut at = mount;
    // A table that names parents in a circle is no table.
    for _ in 0..mounts.len() {
        let Some(parent) = mounts.iter().find(|other| other.id == at.parent) else {
            return true;
        };
        if parent.id == at.id {
            return true;
        }
        let pseudo = PSEUDO.contains(&parent.kind.as_str());
        if !(is_local(&parent.kind) || parent.kind == "overlay" || pseudo) {
            return false;
        }
        at = parent;
    }
    false
}

#[cfg(test)]
mod tests {
    use super::super::mountinfo::parse_all;
    use super::*;
    use proptest::prelude::*;

    const TABLE: &str = "1 0 8:1 / / rw - ext4 a rw\n\
        2 1 0:5 / /proc rw - proc proc rw\n\
        3 1 0:40 / /home/new rw - tmpfs t rw\n\
        4 1 0:41 / /var/other rw - tmpfs t rw\n\
        5 1 0:42 / /home/net rw - nfs4 s:/ rw\n\
        6 5 0:43 / /home/net/x rw - tmpfs t rw\n\
        7 1 0:44 / /home/merged rw - overlay o rw,lowerdir=/home/l,upperdir=/var/other/u\n\
        8 1 0:45 / /home/skip/x rw - tmpfs t rw\n";

    fn rules(overlays: Seen) -> Rules {
        Rules {
            paths: vec!["/home".into()],
            below: true,
            exclude: vec!["/home/skip".into()],
            overlays,
            overlay: None,
        }
    }

    fn devices(plan: &Plan) -> Vec<&str> {
        plan.wanted.iter().map(|one| &*one.device).collect()
    }

    #[test]
    fn what_is_mounted_below_a_protected_path_is_marked_or_a_gap() {
        let mounts = parse_all(TABLE);
        let plan = own(&mounts, &rules(Seen::Yes));
        assert_eq!(devices(&plan), ["8:1", "0:40", "8:1", "0:41"], "{plan:?}");
        assert_eq!(plan.wanted[0].at, Path::new("/home"));
        let gaps: Vec<_> = plan.gaps.iter().map(Gap::path).collect();
        assert_eq!(gaps, ["/home/net", "/home/net/x"]);
    }

    #[test]
    fn without_the_setting_the_paths_alone_are_marked() {
        let rules = Rules {
            below: false,
            ..rules(Seen::Yes)
        };
        let plan = own(&parse_all(TABLE), &rules);
        assert_eq!(devices(&plan), ["8:1"]);
        assert!(plan.gaps.is_empty());
    }

    #[test]
    fn nothing_is_marked_beside_an_overlay_that_is() {
        let mounts = parse_all(
            "1 0 0:30 / / rw - overlay o rw,lowerdir=/media/ro,upperdir=/media/rw/u\n\
             2 1 8:1 / /media/ro rw - ext4 a rw\n3 1 0:31 / /media/rw rw - tmpfs t rw\n\
             4 1 0:5 / /proc rw - proc p rw\n5 1 0:32 / /c rw - overlay o rw,lowerdir=/media/ro\n",
        );
        let mut rules = Rules {
            paths: vec!["/".into(), "/media/ro".into()],
            overlay: Some("0:30".to_owned()),
            ..rules(Seen::Yes)
        };
        let plan = own(&mounts, &rules);
        assert_eq!(devices(&plan), ["0:30"], "{plan:?}");
        assert_eq!(plan.gaps.len(), 1, "{plan:?}");
        assert!(plan.gaps[0].reason().starts_with("3 mounts"), "{plan:?}");
        rules.below = false;
        assert_eq!(own(&mounts, &rules).gaps, []);
    }

    #[test]
    fn an_overlay_is_a_gap_where_its_layers_do_not_see_it() {
        let mounts = parse_all(TABLE);
        for seen in [Seen::No, Seen::Unknown] {
            let plan = own(&mounts, &rules(seen));
            assert_eq!(devices(&plan), ["8:1", "0:40"], "never the overlay itself");
            let gap = plan.gaps.iter().find(|gap| gap.path() == "/home/merged");
            let unknown = gap.unwrap().reason().contains("could not be tried");
            assert_eq!(unknown, seen == Seen::Unknown);
        }
    }

    #[test]
    fn of_another_namespace_what_the_agent_has_not_is_marked() {
        let own: HashSet<String> = ["8:1".to_owned(), "0:41".to_owned()].into();
        let mounts = parse_all(
            "20 0 8:1 /c / rw - ext4 a rw\n21 20 0:60 / /tmp rw - tmpfs t rw\n\
             22 20 0:61 / /f rw - fuse.x f rw\n23 20 0:62 / /o rw - overlay o rw,lowerdir=/tmp/a:/b\n\
             24 20 0:63 / /g rw - fuse.y f rw\n25 20 0:5 / /proc rw - proc p rw\n",
        );
        let plan = foreign(&mounts, &own, Seen::Yes);
        assert_eq!(devices(&plan), ["0:60", "0:60"], "{plan:?}");
        assert_eq!(plan.foreign_gaps, [("fuse".to_owned(), 2)].into());
        let plan = foreign(&mounts, &own, Seen::No);
        assert_eq!(plan.foreign_gaps["overlay"], 1);
    }

    fn table() -> impl Strategy<Value = String> {
        let kind = prop_oneof![
            Just("ext4"),
            Just("tmpfs"),
            Just("fuse"),
            Just("nfs"),
            Just("overlay"),
            Just("proc"),
        ];
        let line = (0..6_u64, 0..6_u64, 0..4_u8, "(/[ab]){1,3}", kind).prop_map(
            |(id, parent, minor, point, kind)| {
                format!("{id} {parent} 0:{minor} / {point} rw - {kind} x rw,lowerdir=/a:/b")
            },
        );
        prop::collection::vec(line, 0..12).prop_map(|lines| lines.join("\n"))
    }

    proptest! {
        #[test]
        fn only_local_file_systems_are_ever_marked(text in table(), seen: bool) {
            let mounts = parse_all(&text);
            let seen = if seen { Seen::Yes } else { Seen::No };
            let rules = Rules {
                paths: vec!["/a".into()], below: true, overlays: seen, ..Rules::default()
            };
            let plans = [own(&mounts, &rules), foreign(&mounts, &HashSet::new(), seen)];
            for one in plans.iter().flat_map(|plan| &plan.wanted) {
                let local = |mount: &Mount| {
                    mount.id == one.id && mount.device == one.device && is_local(&mount.kind)
                };
                prop_assert!(mounts.iter().any(local), "{one:?} of {text}");
            }
        }
    }
}
