//! Which of the mounted file systems are to be marked, and which are gaps: pure, by tables
//! of mounts alone.
//!
//! | a mount | own namespace | another namespace |
//! | --- | --- | --- |
//! | its file system is mounted in the agent's namespace, too | – | the agent's own rules count |
//! | local | marked, if below a protected path | marked |
//! | overlay | the file systems of its layers are, where their marks see it; where they do not, it is marked itself, if its layers are on local ones | the same; where they do not, a gap |
//! | any, while the protected paths are on an overlay that is marked itself | a gap, if below one | not looked at |
//! | FUSE, network | a gap, if below a protected path | a gap |
//! | without files of its own (proc, sysfs, …) | – | – |
//!
//! A mount of another namespace has no name in the agent's, so that protected paths
//! cannot be told there. Its table is of anyone's making, and may be made to take long:
//! what is looked at is bounded, in mounts, in layers of overlays and in ways to one file
//! system.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

use super::mountinfo::Mount;
use super::overlay::{self, Seen};
use super::places::{Gap, is_local, unprotected};
use crate::scan::mounts::PSEUDO;

/// Mounts of one other namespace that are looked at, besides those of the agent's file
/// systems.
pub const MOST_FOREIGN_MOUNTS: usize = 4096;
/// Mounts of one file system that are tried, in another namespace.
const MOST_WAYS: usize = 8;
/// Layers of overlays that are looked for in one table.
const MOST_LAYERS: usize = 4096;
/// Mounts that may lie on one another.
const MOST_DEPTH: usize = 256;

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
    /// To be marked; a file system is here once for each mount, of another namespace for
    /// some of them, best first.
    pub wanted: Vec<Wanted>,
    /// What is not protected, by its path.
    pub gaps: Vec<Gap>,
    /// What is not protected in another namespace: how many by type.
    pub foreign_gaps: BTreeMap<String, usize>,
    /// The file systems that each overlay's layers are on, in another namespace.
    pub overlays: Vec<HashSet<String>>,
    /// Whether another namespace has more mounts than are looked at.
    pub cut: bool,
}

impl Plan {
    fn gap(&mut self, point: &Path, reason: &str) {
        self.gaps.push(Gap::new(point, reason));
    }
}

/// A table of mounts, as it is looked up.
struct Table<'a> {
    by_id: HashMap<u64, &'a Mount>,
    /// The newest at each point.
    by_point: HashMap<&'a Path, &'a Mount>,
    /// Layers that may still be looked for.
    layers_left: usize,
}

impl<'a> Table<'a> {
    fn new(mounts: &'a [Mount]) -> Self {
        Self {
            by_id: mounts.iter().map(|mount| (mount.id, mount)).collect(),
            by_point: mounts.iter().map(|mount| (&*mount.point, mount)).collect(),
            layers_left: MOST_LAYERS,
        }
    }

    /// The mount that is seen at a path: of those that hold it, the innermost and newest.
    fn holding(&self, path: &Path) -> Option<&'a Mount> {
        let mut above = path.ancestors();
        above.find_map(|at| self.by_point.get(at).copied())
    }

    /// A mount, and what it is mounted on, down to the root.
    fn chain(&self, mount: &'a Mount) -> impl Iterator<Item = &'a Mount> {
        std::iter::successors(Some(mount), |at| {
            let parent = self.by_id.get(&at.parent).copied()?;
            (parent.id != at.id).then_some(parent)
        })
    }

    /// Whether the way to a mount leads over local file systems alone, so that nobody can
    /// keep whoever goes there.
    fn is_reached(&self, mount: &'a Mount) -> bool {
        let waits = |parent: &Mount| {
            let pseudo = PSEUDO.contains(&parent.kind.as_str());
            let memory = matches!(&*parent.kind, "ramfs" | "rootfs");
            !(is_local(&parent.kind) || parent.kind == "overlay" || pseudo || memory)
        };
        // A table that names parents in a circle is no table.
        let deep = self.chain(mount).nth(MOST_DEPTH).is_some();
        !deep && !self.chain(mount).skip(1).any(waits)
    }

    /// Whether a mount is what is seen at its point, as far as the table tells.
    fn is_seen(&self, mount: &'a Mount) -> bool {
        let below: HashSet<u64> = self.chain(mount).take(MOST_DEPTH).map(|at| at.id).collect();
        let mut hides = mount
            .point
            .ancestors()
            .filter_map(|at| self.by_point.get(at));
        hides.all(|at| below.contains(&at.id))
            && self
                .by_point
                .get(&*mount.point)
                .is_some_and(|at| at.id == mount.id)
    }

    /// Where an overlay's layers lie.
    fn layers(&mut self, mount: &Mount, seen: Seen) -> Result<Vec<Wanted>, &'static str> {
        match seen {
            Seen::Yes | Seen::No => {}
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
        let left = self.layers_left.checked_sub(layers.len());
        self.layers_left =
            left.ok_or("there are too many layers of overlays; scan it on demand")?;
        let lies = |layer: &PathBuf| {
            let below = self.holding(layer).filter(|below| below.id != mount.id)?;
            let marked = is_local(&below.kind) && self.is_reached(below);
            marked.then(|| Wanted::point(below))
        };
        let found: Option<Vec<Wanted>> = layers.iter().map(lies).collect();
        found.ok_or(hidden)
    }
}

/// Of the agent's own namespace.
pub fn own(mounts: &[Mount], rules: &Rules) -> Plan {
    let mut plan = Plan::default();
    let mut table = Table::new(mounts);
    for path in &rules.paths {
        if let Some(mount) = table.holding(path)
            && rules.mark(mount)
            && table.is_reached(mount)
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
        if !table.is_reached(mount) {
            plan.gap(
                &mount.point,
                "it is mounted below a file system whose server may not answer; mount it elsewhere",
            );
        } else if is_local(&mount.kind) {
            plan.wanted.push(Wanted::point(mount));
        } else if mount.kind == "overlay" {
            match table.layers(mount, rules.overlays) {
                // Opens through it are its own alone.
                Ok(_) if rules.overlays == Seen::No => plan.wanted.push(Wanted::point(mount)),
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
    let mut table = Table::new(mounts);
    let mut ways = Vec::new();
    let others = mounts
        .iter()
        .filter(|mount| !own.contains(&mount.device) && !PSEUDO.contains(&mount.kind.as_str()));
    for (number, mount) in others.enumerate() {
        if number == MOST_FOREIGN_MOUNTS {
            plan.cut = true;
            break;
        }
        match mount.kind.as_str() {
            kind if is_local(kind) => {
                // One that shows the whole file system, and that no other hides.
                let rank = (table.is_seen(mount), mount.root == Path::new("/"));
                ways.push((Reverse(rank), Wanted::point(mount)));
            }
            // One that only another namespace has may be of anyone's making, and what its
            // layers were called is no proof of what they are: it is not marked itself.
            "overlay" => match table.layers(mount, overlays) {
                Ok(layers) if overlays == Seen::Yes => {
                    let devices = layers.iter().map(|layer| layer.device.clone());
                    plan.overlays.push(devices.collect());
                }
                _ => *plan.foreign_gaps.entry(family(&mount.kind)).or_default() += 1,
            },
            kind => *plan.foreign_gaps.entry(family(kind)).or_default() += 1,
        }
    }
    ways.sort_by_key(|(rank, _)| *rank);
    let mut tried: HashMap<String, usize> = HashMap::new();
    plan.wanted = ways.into_iter().map(|(_, one)| one).collect();
    plan.wanted.retain(|one| {
        let ways = tried.entry(one.device.clone()).or_default();
        *ways += 1;
        *ways <= MOST_WAYS
    });
    plan
}

/// The type that the kernel knows: what follows a point whoever mounted it chose.
fn family(kind: &str) -> String {
    let family = kind.split('.').next();
    family.unwrap_or(kind).to_owned()
}

#[cfg(test)]
mod tests {
    use super::super::mountinfo::{holding, parse_all};
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
    fn an_overlay_is_marked_where_its_layers_do_not_see_it() {
        let plan = own(&parse_all(TABLE), &rules(Seen::No));
        assert_eq!(
            devices(&plan),
            ["8:1", "0:40", "0:44"],
            "and its layers are not"
        );
        let gap = |plan: &Plan| {
            let gap = plan.gaps.iter().find(|gap| gap.path() == "/home/merged");
            gap.map(|gap| gap.reason().to_owned())
        };
        assert_eq!(gap(&plan), None);
        // Whoever opened something there might wait for whoever serves the layer.
        let remote = TABLE.replace("lowerdir=/home/l", "lowerdir=/home/net");
        let plan = own(&parse_all(&remote), &rules(Seen::No));
        assert_eq!(devices(&plan), ["8:1", "0:40"]);
        assert!(gap(&plan).unwrap().contains("cannot be told"));
        // Where it is not known, both might be seen, and the reader wait for itself.
        let plan = own(&parse_all(TABLE), &rules(Seen::Unknown));
        assert_eq!(devices(&plan), ["8:1", "0:40"]);
        assert!(gap(&plan).unwrap().contains("could not be tried"));
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
        assert_eq!(devices(&plan), ["0:60"], "{plan:?}");
        // A layer is on a file system of the agent's: whether that is marked, others know.
        let layers = ["0:60".to_owned(), "8:1".to_owned()];
        assert_eq!(plan.overlays, [HashSet::from(layers)]);
        assert_eq!(plan.foreign_gaps, [("fuse".to_owned(), 2)].into());
        let plan = foreign(&mounts, &own, Seen::No);
        assert_eq!(plan.foreign_gaps["overlay"], 1);
    }

    #[test]
    fn of_the_ways_to_a_foreign_file_system_the_best_are_tried_first() {
        let none = HashSet::new();
        let ids = |table: &str| -> Vec<u64> {
            let plan = foreign(&parse_all(table), &none, Seen::Yes);
            plan.wanted.iter().map(|one| one.id).collect()
        };
        // Bound to a second place, and hidden at the first.
        let table = "1 0 8:1 / / rw - ext4 a rw\n2 1 0:40 / /a rw - tmpfs t rw\n\
                     3 1 0:40 / /b rw - tmpfs t rw\n4 2 0:41 / /a rw - tmpfs u rw\n\
                     5 1 0:40 /x /c rw - tmpfs t rw\n";
        assert_eq!(ids(table), [1, 3, 4, 5, 2]);
        // Hidden by what is above it, as often as there are ways, and one that is not.
        let hidden = |n| format!("{n} 1 0:40 / /h/{n} rw - tmpfs t rw\n");
        let hidden: String = (10..40).map(hidden).collect();
        let table = format!(
            "1 0 8:1 / / rw - ext4 a rw\n{hidden}50 1 0:41 / /h rw - tmpfs u rw\n\
             51 1 0:40 / /seen rw - tmpfs t rw\n"
        );
        let ids = ids(&table);
        assert_eq!(ids[..3], [1, 50, 51]);
        assert_eq!(ids.len(), 2 + MOST_WAYS);
    }

    #[test]
    fn a_foreign_table_is_bounded() {
        let line = |n: usize| format!("{n} 1 0:{n} / /{n} rw - tmpfs t rw\n");
        let table = |most| parse_all(&(0..most).map(line).collect::<String>());
        let own = HashSet::from(["0:7".to_owned()]);
        let plan = foreign(&table(MOST_FOREIGN_MOUNTS + 1), &own, Seen::Yes);
        assert_eq!((plan.wanted.len(), plan.cut), (MOST_FOREIGN_MOUNTS, false));
        let plan = foreign(&table(MOST_FOREIGN_MOUNTS + 2), &own, Seen::Yes);
        assert_eq!((plan.wanted.len(), plan.cut), (MOST_FOREIGN_MOUNTS, true));
        // Overlays with as many layers as the kernel allows.
        let lower = vec!["/l"; 500].join(":");
        let line = |n: usize| format!("{n} 1 0:{n} / /{n} rw - overlay o rw,lowerdir={lower}\n");
        let table = format!(
            "1 1 8:1 / / rw - ext4 a rw\n{}",
            (2..22).map(line).collect::<String>()
        );
        let plan = foreign(&parse_all(&table), &HashSet::new(), Seen::Yes);
        assert_eq!(plan.overlays.len(), MOST_LAYERS / 500);
        assert_eq!(plan.foreign_gaps["overlay"], 20 - plan.overlays.len());
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
        fn a_path_is_looked_up_as_the_kernel_does(text in table(), path in "(/[ab]){1,4}") {
            let mounts = parse_all(&text);
            let id = |mount: Option<&Mount>| mount.map(|mount| mount.id);
            let seen = id(Table::new(&mounts).holding(Path::new(&path)));
            prop_assert_eq!(seen, id(holding(&mounts, Path::new(&path))));
        }

        #[test]
        fn only_local_file_systems_are_ever_marked(text in table(), seen: bool) {
            let mounts = parse_all(&text);
            let seen = if seen { Seen::Yes } else { Seen::No };
            let rules = Rules {
                paths: vec!["/a".into()], below: true, overlays: seen, ..Rules::default()
            };
            let all = |wanted: &[Wanted], may_be_marked: &dyn Fn(&Mount) -> bool| {
                wanted.iter().all(|one| {
                    mounts.iter().any(|mount| {
                        mount.id == one.id && mount.device == one.device && may_be_marked(mount)
                    })
                })
            };
            // An overlay whose layers do not see it is marked itself, in this namespace alone.
            let own = own(&mounts, &rules).wanted;
            let here = |mount: &Mount| {
                is_local(&mount.kind) || (seen == Seen::No && mount.kind == "overlay")
            };
            prop_assert!(all(&own, &here), "{own:?} of {text}");
            let foreign = foreign(&mounts, &HashSet::new(), seen).wanted;
            prop_assert!(all(&foreign, &|mount| is_local(&mount.kind)), "{foreign:?} of {text}");
        }
    }
}
