//! Which files an on-demand scan looks at.
//!
//! Links below the given paths are not followed, so that a loop ends; a link that
//! is given itself is followed. Only regular files are opened. File systems
//! without files of their own (proc, sysfs, …) are entered only when given.
//!
//! Guests that start from one image hold the same files. Walked in one order, each
//! of them would ask for the same content at the same moment and wait for the same
//! scan; so each takes its files in an order of its own ([`super::order`]), asks for
//! something else first, and finds the rest known.
//!
//! A walk that may have to go on after a restart visits folders by name
//! ([`Plan::ordered`]): then [`Resume`] says which part of it is done, whatever was
//! added or removed meanwhile.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;

use tokio::sync::mpsc;
use walkdir::{DirEntry, WalkDir};

use super::order::{Counted, Mixed, Sink};
use super::places::is_executable_of_process;
use super::remote::{self, Remote};
use crate::fanotify::places::is_pseudo;
use crate::packaged::Packaged;

/// What is walked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// The given paths, absolute.
    pub roots: Vec<PathBuf>,
    /// Not below these, unless a root is.
    pub exclude: Vec<PathBuf>,
    /// By name, so that a place in the walk means the same in the next one. Without,
    /// in the order of the file system, which needs no memory for large folders.
    pub ordered: bool,
    /// What was done before; of ordered walks.
    pub done: Resume,
}

/// A place in an ordered walk. Places compare as the walk comes to them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Position {
    /// Which of the roots; in the second walk their number is added.
    pub root: usize,
    /// A path below it.
    pub path: PathBuf,
}

impl Ord for Position {
    fn cmp(&self, other: &Self) -> Ordering {
        // By components, as folders are entered before what follows them by name.
        (self.root, self.path.as_path()).cmp(&(other.root, other.path.as_path()))
    }
}

impl PartialOrd for Position {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// What of an ordered walk is done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resume {
    /// All up to here.
    pub upto: Option<Position>,
    /// And these behind it.
    pub ahead: BTreeSet<Position>,
}

impl Resume {
    fn has_passed(&self, at: &Position) -> bool {
        self.upto.as_ref().is_some_and(|upto| at <= upto)
    }

    /// Whether all that is below a folder is done.
    fn has_left(&self, root: usize, folder: &Path) -> bool {
        self.upto.as_ref().is_some_and(|upto| {
            root < upto.root
                || (root == upto.root && folder < upto.path && !upto.path.starts_with(folder))
        })
    }
}

/// Something that the walk came upon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its number in the walk, from 0 and without gaps.
    pub number: u64,
    /// Where it is.
    pub at: Position,
    /// Whether it is the second walk that came upon it.
    pub again: bool,
    /// Why it cannot be looked at; none for a regular file.
    pub problem: Option<String>,
}

/// Walks and sends what it finds, until done or nobody takes it. Where packages' files
/// come last it walks a second time, over those.
pub fn walk(plan: &Plan, packaged: Option<&Packaged>, found: &mpsc::Sender<Found>) {
    let mut mixed = Mixed::new(found);
    let last = packaged.filter(|packaged| packaged.is_last());
    if visit(plan, last, &mut mixed).is_some() {
        let _ = mixed.flush();
    }
}

/// How many files and problems a walk would find, each once; none when told to stop.
pub fn count(plan: &Plan, stop: &AtomicBool) -> Option<u64> {
    let mut counted = Counted::new(stop);
    visit(plan, None, &mut counted)?;
    Some(counted.files)
}

fn visit(plan: &Plan, last: Option<&Packaged>, sink: &mut impl Sink) -> Option<()> {
    let mut visit = Visit {
        plan,
        number: 0,
        again: None,
        sink,
    };
    let roots = plan.roots.iter().enumerate();
    for (index, root) in roots.clone() {
        visit.root(index, root)?;
    }
    if last.is_some() {
        visit.sink.walked()?;
        visit.again = last;
        for (index, root) in roots {
            visit.root(plan.roots.len() + index, root)?;
        }
    }
    Some(())
}

/// One walk under way.
struct Visit<'a, S> {
    plan: &'a Plan,
    number: u64,
    /// Of the second walk.
    again: Option<&'a Packaged>,
    sink: &'a mut S,
}

/// What a walk below one root keeps to.
struct Way<'a> {
    index: usize,
    exclude: Vec<&'a PathBuf>,
    /// Where servers may never answer, and what is said of those that did not.
    fences: BTreeMap<PathBuf, Option<String>>,
}

impl Way<'_> {
    fn excludes(&self, path: &Path) -> bool {
        self.exclude.iter().any(|one| path == one.as_path())
    }
}

/// What a walk comes to next.
enum Step {
    Folder(PathBuf, bool),
    File(PathBuf),
    Problem(PathBuf, io::Error),
}

impl<S: Sink> Visit<'_, S> {
    fn root(&mut self, index: usize, path: &Path) -> Option<()> {
        let plan = self.plan;
        if plan
            .done
            .upto
            .as_ref()
            .is_some_and(|upto| index < upto.root)
        {
            return Some(());
        }
        if is_executable_of_process(path) {
            return self.give(index, path.to_owned(), None);
        }
        let resolved = Remote::mounted().and_then(|remote| {
            let root = resolve(path, &remote)?;
            Ok((root, remote))
        });
        let (root, remote) = match resolved {
            Ok(resolved) => resolved,
            Err(error) => {
                return self.give(index, path.to_owned(), Some(cannot_be_read(&error)));
            }
        };
        // A path that is given is meant, whatever the settings exclude above it.
        let exclude: Vec<&PathBuf> = plan
            .exclude
            .iter()
            .filter(|entry| !root.starts_with(entry))
            .collect();
        let below = remote.below(&root);
        let fences = below.filter_map(|point| {
            let excluded = exclude.iter().any(|one| point.starts_with(one));
            let problem = match excluded {
                true => None,
                false => Some(cannot_be_read(&remote::ask(point, remote::PATIENCE).err()?)),
            };
            Some((point.clone(), problem))
        });
        let way = Way {
            index,
            fences: fences.collect(),
            exclude,
        };
        self.below(&way, &root)
    }

    /// Walks below a root. Folders with a fence somewhere below are listed one at a time,
    /// and wait on a list of their own: however deep a fence is, it takes no stack.
    fn below(&mut self, way: &Way<'_>, root: &Path) -> Option<()> {
        let mut waiting = vec![Step::Folder(root.to_owned(), false)];
        while let Some(step) = waiting.pop() {
            match step {
                Step::Folder(at, inner) => self.folder(way, &at, inner, &mut waiting)?,
                Step::File(path) => self.give(way.index, path, None)?,
                Step::Problem(path, error) => {
                    self.give(way.index, path, Some(cannot_be_read(&error)))?;
                }
            }
        }
        Some(())
    }

    /// `inner` says that it is not the root itself. What waits below it goes on top of
    /// `waiting`, the first one last.
    fn folder(
        &mut self,
        way: &Way<'_>,
        at: &Path,
        inner: bool,
        waiting: &mut Vec<Step>,
    ) -> Option<()> {
        if let Some(problem) = way.fences.get(at) {
            return match problem {
                Some(problem) => self.give(way.index, at.to_owned(), Some(problem.clone())),
                None => Some(()),
            };
        }
        if !way.fences.keys().any(|fence| fence.starts_with(at)) {
            return self.tree(way, at, inner);
        }
        // Some way below is a fence. What walks a tree opens a folder before it can be
        // told to skip it.
        if inner
            && (way.excludes(at) || self.plan.done.has_left(way.index, at) || is_pseudo_mount(at))
        {
            return Some(());
        }
        let entries = match fs::read_dir(at).and_then(Iterator::collect::<io::Result<Vec<_>>>) {
            Ok(mut entries) => {
                entries.sort_by_key(fs::DirEntry::file_name);
                entries
            }
            Err(error) => {
                let problem = Some(cannot_be_read(&error));
                return self.give(way.index, at.to_owned(), problem);
            }
        };
        let steps = entries.into_iter().rev().filter_map(|entry| {
            let path = entry.path();
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => Some(Step::Folder(path, true)),
                Ok(kind) if kind.is_file() && !way.excludes(&path) => Some(Step::File(path)),
                Ok(_) => None,
                Err(error) => Some(Step::Problem(path, error)),
            }
        });
        waiting.extend(steps);
        Some(())
    }

    fn tree(&mut self, way: &Way<'_>, at: &Path, inner: bool) -> Option<()> {
        let (plan, index) = (self.plan, way.index);
        let mut walk = WalkDir::new(at).follow_links(false);
        if plan.ordered {
            walk = walk.sort_by_file_name();
        }
        let mut entries = walk.into_iter();
        while let Some(entry) = entries.next() {
            match entry {
                Ok(entry) if entry.file_type().is_dir() => {
                    let skips = plan.done.has_left(index, entry.path())
                        || ((inner || entry.depth() > 0)
                            && (way.excludes(entry.path()) || enters_pseudo(&entry)));
                    if skips {
                        entries.skip_current_dir();
                    }
                }
                Ok(entry) if entry.file_type().is_file() => {
                    if !way.excludes(entry.path()) {
                        self.give(index, entry.into_path(), None)?;
                    }
                }
                Ok(_) => {}
                Err(error) => {
                    let problem = match error.io_error() {
                        Some(error) => cannot_be_read(error),
                        None => error.to_string(),
                    };
                    let path = error.path().unwrap_or(at).to_owned();
                    self.give(index, path, Some(problem))?;
                }
            }
        }
        Some(())
    }

    fn give(&mut self, root: usize, path: PathBuf, problem: Option<String>) -> Option<()> {
        if let Some(packaged) = self.again
            && (problem.is_some() || !packaged.was_set_aside(&path))
        {
            return Some(());
        }
        let at = Position { root, path };
        if self.plan.done.has_passed(&at) {
            return Some(());
        }
        if self.plan.done.ahead.contains(&at) {
            return self.sink.skipped();
        }
        let number = self.number;
        self.number += 1;
        self.sink.found(Found {
            number,
            at,
            again: self.again.is_some(),
            problem,
        })
    }
}

fn cannot_be_read(reason: &io::Error) -> String {
    format!("cannot be read: {reason}")
}

/// A given path: a link is followed, as whoever gave it expects.
fn resolve(path: &Path, remote: &Remote) -> io::Result<PathBuf> {
    if remote.holds(path) {
        remote::ask(path, remote::PATIENCE)?;
    }
    if fs::symlink_metadata(path)?.is_symlink() {
        fs::canonicalize(path)
    } else {
        Ok(path.to_owned())
    }
}

fn enters_pseudo(entry: &DirEntry) -> bool {
    is_pseudo_mount(entry.path())
}

/// Whether a file system without files of its own begins here.
fn is_pseudo_mount(at: &Path) -> bool {
    let device = |path: &Path| {
        fs::symlink_metadata(path)
            .map(|metadata| metadata.dev())
            .ok()
    };
    let parent = at.parent().and_then(device);
    device(at) != parent && is_pseudo(at)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::symlink;
    use std::os::unix::net::UnixListener;

    fn plan(roots: &[PathBuf], exclude: &[PathBuf]) -> Plan {
        Plan {
            roots: roots.to_vec(),
            exclude: exclude.to_vec(),
            ..Plan::default()
        }
    }

    fn all(plan: &Plan) -> Vec<Found> {
        let (send, mut receive) = mpsc::channel(4096);
        walk(plan, None, &send);
        drop(send);
        std::iter::from_fn(|| receive.try_recv().ok()).collect()
    }

    /// The files; nothing else may have been found.
    fn walked(roots: &[PathBuf], exclude: &[PathBuf]) -> Vec<PathBuf> {
        let mut files: Vec<PathBuf> = all(&plan(roots, exclude))
            .into_iter()
            .map(|found| {
                assert_eq!(found.problem, None, "{found:?}");
                found.at.path
            })
            .collect();
        files.sort();
        files
    }

    #[test]
    fn only_regular_files_are_found_and_loops_end() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::create_dir(at("d")).unwrap();
        fs::write(at("d/file"), "x").unwrap();
        symlink(dir.path(), at("d/loop")).unwrap();
        symlink("file", at("d/link")).unwrap();
        symlink("nowhere", at("d/dangling")).unwrap();
        let _socket = UnixListener::bind(at("d/socket")).unwrap();
        nix::unistd::mkfifo(&at("d/fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(walked(&[dir.path().into()], &[]), [at("d/file")]);
        let stop = AtomicBool::new(false);
        assert_eq!(count(&plan(&[dir.path().into()], &[]), &stop), Some(1));
        // A link that is given is followed.
        assert_eq!(
            walked(&[at("d/link")], &[]),
            [fs::canonicalize(at("d/file")).unwrap()]
        );
        assert!(walked(&[at("d/socket"), at("d/fifo"), "/dev/null".into()], &[]).is_empty());
    }

    #[test]
    fn a_deep_fence_takes_no_stack() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join(vec!["d"; 1200].join("/"));
        fs::create_dir_all(&deep).unwrap();
        fs::write(deep.join("file"), "x").unwrap();
        let walked = std::thread::Builder::new().stack_size(128 * 1024).spawn({
            let root = dir.path().to_owned();
            move || {
                let plan = plan(std::slice::from_ref(&root), &[]);
                let (send, mut receive) = mpsc::channel(4);
                let mut sink = Mixed::new(&send);
                let mut visit = Visit {
                    plan: &plan,
                    number: 0,
                    again: None,
                    sink: &mut sink,
                };
                let way = Way {
                    index: 0,
                    exclude: Vec::new(),
                    fences: [(deep.join("fence"), None)].into(),
                };
                visit.below(&way, &root).unwrap();
                sink.flush().unwrap();
                receive.try_recv().unwrap().at.path == deep.join("file")
            }
        });
        assert!(walked.unwrap().join().unwrap());
    }

    #[test]
    fn what_is_missing_is_named() {
        let found = all(&plan(&["/no/such/file".into()], &[]));
        assert!(
            matches!(&found[..], [Found { at, problem: Some(reason), .. }]
                if at.path == Path::new("/no/such/file") && reason.contains("No such file")),
            "{found:?}"
        );
    }

    #[test]
    fn exclusions_hold_unless_given() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("cache")).unwrap();
        let file = dir.path().join("cache/file");
        fs::write(&file, "x").unwrap();
        let exclude = [dir.path().join("cache")];
        assert!(walked(&[dir.path().into()], &exclude).is_empty());
        assert_eq!(
            walked(std::slice::from_ref(&file), &exclude),
            std::slice::from_ref(&file)
        );
    }

    /// A tree in which the order by path and the order of a walk could differ.
    fn tree(names: &BTreeSet<String>) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for name in names {
            let path = dir.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            if !path.is_dir() {
                fs::write(path, "x").unwrap();
            }
        }
        dir
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        /// Wherever a walk is left, the next one gives exactly what is not done.
        #[test]
        fn a_resumed_walk_gives_what_is_not_done_and_only_that(
            names in prop::collection::btree_set("[ab.]{1,2}x(/[ab!]y){0,2}/[abc~]z", 1..40),
            left_at in any::<prop::sample::Index>(),
            ahead in prop::collection::vec(any::<prop::sample::Index>(), 0..5),
        ) {
            let dir = tree(&names);
            let mut ordered = plan(&[dir.path().join("nothing"), dir.path().into()], &[]);
            ordered.ordered = true;
            let mut whole = all(&ordered);
            whole.sort_by_key(|found| found.number);
            let places: Vec<Position> = whole.iter().map(|found| found.at.clone()).collect();
            prop_assert!(places.is_sorted(), "{places:?}");
            let upto = left_at.get(&places).clone();
            let ahead: BTreeSet<Position> = ahead
                .iter()
                .map(|index| index.get(&places).clone())
                .filter(|at| *at > upto)
                .collect();
            let mut want = places;
            want.retain(|at| *at > upto && !ahead.contains(at));
            ordered.done = Resume { upto: Some(upto), ahead };
            let mut got = all(&ordered);
            got.sort_by_key(|found| found.number);
            let got: Vec<Position> = got.into_iter().map(|found| found.at).collect();
            prop_assert_eq!(got, want);
        }
    }
}
