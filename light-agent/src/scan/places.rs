//! What a quick and a full scan cover.
//!
//! | quick | from |
//! | --- | --- |
//! | what runs: executables, and what is mapped as code | `/proc/*/exe`, `/proc/*/maps` |
//! | what is started: cron, systemd, init scripts, shell profiles, autostart | [`SYSTEM`], [`FOLDERS_OF_CRON`] |
//! | what is loaded into everything | `/etc/ld.so.preload`, and what it names |
//! | what users start, and who may log in as them | [`OF_A_HOME`] below every home in `/etc/passwd` |
//! | where things are dropped | [`TEMPORARY`] |
//!
//! A full scan begins at every local file system ([`super::mounts`]).
//!
//! An executable that has no name any more, or whose name means another file here (it
//! runs in a container), is scanned as `/proc/PID/exe`; a mapped file without a name
//! here is not. Users that only a directory service knows have no homes here.

use std::collections::{BTreeSet, HashSet};
use std::fs;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, StatxFlags};

use super::mounts;
use super::reach::Reach;
use super::walk::Plan;
use crate::fanotify::mountinfo;
use crate::packaged::Policy;

/// Below the root of the machine.
const SYSTEM: &[&str] = &[
    "etc/anacrontab",
    "etc/bash.bashrc",
    "etc/bashrc",
    "etc/environment",
    "etc/init.d",
    "etc/ld.so.preload",
    "etc/profile",
    "etc/profile.d",
    "etc/rc.d",
    "etc/rc.local",
    "etc/systemd/system",
    "etc/systemd/system-generators",
    "etc/systemd/user",
    "etc/udev/rules.d",
    "etc/xdg/autostart",
    "etc/zsh",
    "etc/zshrc",
    "lib/systemd/system",
    "run/systemd/system",
    "usr/lib/systemd/system",
    "usr/lib/systemd/system-generators",
    "usr/lib/systemd/user",
    "usr/local/lib/systemd/system",
    "var/spool/anacron",
    "var/spool/at",
    "var/spool/cron",
];
/// `/etc/cron*`: where it is, and how its names begin.
const FOLDERS_OF_CRON: (&str, &str) = ("etc", "cron");
/// Below every home.
const OF_A_HOME: &[&str] = &[
    ".bash_login",
    ".bash_logout",
    ".bash_profile",
    ".bashrc",
    ".config/autostart",
    ".config/systemd/user",
    ".profile",
    ".ssh",
    ".xinitrc",
    ".xprofile",
    ".xsession",
    ".zlogin",
    ".zprofile",
    ".zshenv",
    ".zshrc",
];
/// Anybody may write here.
const TEMPORARY: &[&str] = &["tmp", "var/tmp", "dev/shm"];

/// Processes that are looked at, at the most.
const MAX_PROCESSES: usize = 65_536;
/// Executables and mapped files, at the most.
const MAX_EXECUTABLES: usize = 16_384;
/// Bytes of one process's maps, of `/etc/passwd`, or of `/etc/ld.so.preload`.
const MAX_TEXT: u64 = 4 << 20;
/// Homes, at the most.
const MAX_HOMES: usize = 10_000;
/// Names of one folder that are looked at, at the most.
const MAX_NAMES: usize = 65_536;

/// What is to be scanned.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cover {
    /// Where walks begin: existing files and folders, none below another.
    pub roots: Vec<PathBuf>,
    /// Where they do not go, beside what the settings exclude.
    pub stay_out: Vec<PathBuf>,
    /// File systems that are not scanned, each with its type.
    pub left_out: Vec<(PathBuf, String)>,
    /// What is done with packages' files, and the print of the lists of these: a task
    /// goes on as it began.
    pub packaged: (Policy, u64),
}

impl Cover {
    /// The plan of a walk that can be resumed.
    pub fn plan(self, exclude: &[PathBuf]) -> Plan {
        Plan {
            roots: self.roots,
            exclude: exclude.iter().cloned().chain(self.stay_out).collect(),
            ordered: true,
            ..Plan::default()
        }
    }
}

/// What a quick scan of the machine below `machine` (`/`, but for tests) covers.
///
/// # Errors
/// When the mounted file systems cannot be listed.
pub fn quick(machine: &Path, exclude: &[PathBuf]) -> std::io::Result<Cover> {
    let mut reach = Reach::now()?;
    let mut wanted: BTreeSet<PathBuf> = executables(&machine.join("proc"), &mut reach);
    let mut add = |path: &Path| wanted.extend(reach.plain(path));
    for name in SYSTEM.iter().chain(TEMPORARY) {
        add(&machine.join(name));
    }
    let (folder, prefix) = FOLDERS_OF_CRON;
    for path in entries(&machine.join(folder)) {
        let name = path.file_name().unwrap_or_default();
        if name.as_bytes().starts_with(prefix.as_bytes()) {
            add(&path);
        }
    }
    let preload = text(&machine.join("etc/ld.so.preload"));
    for path in preloaded(&preload) {
        add(&within(machine, path));
    }
    for home in homes(&text(&machine.join("etc/passwd"))) {
        let home = within(machine, &home);
        let started = OF_A_HOME
            .iter()
            .filter_map(|name| of_a_home(&home, name, &mut reach));
        wanted.extend(started.collect::<Vec<_>>());
    }
    let silent = reach.silent();
    let left_out = silent.map(|mount| (mount.to_owned(), "its server does not answer".to_owned()));
    Ok(Cover {
        left_out: left_out.collect(),
        roots: without_nested(wanted, exclude),
        ..Cover::default()
    })
}

/// What a full scan covers.
///
/// # Errors
/// When the mounted file systems cannot be listed.
pub fn full(exclude: &[PathBuf]) -> std::io::Result<Cover> {
    let found = mounts::sort_out(&mountinfo::own()?, Path::exists);
    Ok(Cover {
        roots: found
            .roots
            .into_iter()
            .filter(|root| !is_below(root, exclude))
            .collect(),
        stay_out: found.points,
        left_out: found.left_out,
        ..Cover::default()
    })
}

/// What the given paths cover: each once, even where one is below another.
pub fn given(paths: &[PathBuf], exclude: &[PathBuf]) -> Cover {
    let paths: BTreeSet<PathBuf> = paths.iter().cloned().collect();
    let nested = |path: &PathBuf| {
        let outer = paths
            .iter()
            .find(|outer| path != *outer && path.starts_with(outer));
        // The walk of the outer one does not come to what is excluded.
        outer.is_some_and(|outer| {
            !exclude
                .iter()
                .any(|one| path.starts_with(one) && !outer.starts_with(one))
        })
    };
    Cover {
        roots: paths.iter().filter(|path| !nested(path)).cloned().collect(),
        ..Cover::default()
    }
}

/// Whether this is the name that the kernel gives what a process executes.
pub fn is_executable_of_process(path: &Path) -> bool {
    let mut parts = path.strip_prefix("/proc").into_iter().flatten();
    let pid = parts.next().is_some_and(is_number);
    pid && parts.next().is_some_and(|name| name == "exe") && parts.next().is_none()
}

fn is_number(name: &std::ffi::OsStr) -> bool {
    !name.is_empty() && name.as_bytes().iter().all(u8::is_ascii_digit)
}

fn without_nested(wanted: BTreeSet<PathBuf>, exclude: &[PathBuf]) -> Vec<PathBuf> {
    let mut roots: Vec<PathBuf> = Vec::new();
    for path in wanted {
        // By components, what is below a folder follows it at once.
        let nested = roots.last().is_some_and(|last| path.starts_with(last));
        if !nested && !is_below(&path, exclude) {
            roots.push(path);
        }
    }
    roots
}

fn is_below(path: &Path, exclude: &[PathBuf]) -> bool {
    exclude.iter().any(|one| path.starts_with(one))
}

/// What runs, each file once.
fn executables(proc: &Path, reach: &mut Reach) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut seen = HashSet::new();
    let processes = entries(proc)
        .into_iter()
        .filter(|path| path.file_name().is_some_and(is_number));
    for process in processes.take(MAX_PROCESSES) {
        // A thread of the kernel executes no file; others end meanwhile.
        let exe = process.join("exe");
        if let Some(running) = identity(&exe)
            && seen.insert(running)
        {
            let named = fs::read_link(&exe).ok().filter(|path| {
                reach.answers(path)
                    && fs::metadata(path).is_ok_and(|there| (there.dev(), there.ino()) == running)
            });
            found.insert(named.unwrap_or(exe));
        }
        for path in mapped(&text(&process.join("maps"))) {
            if found.len() < MAX_EXECUTABLES
                && !found.contains(&path)
                && reach.answers(&path)
                && let Ok(there) = fs::metadata(&path)
                && there.is_file()
                && seen.insert((there.dev(), there.ino()))
            {
                found.insert(path);
            }
        }
        if found.len() >= MAX_EXECUTABLES {
            break;
        }
    }
    found
}

/// Which file a process executes: device and inode, as far as the kernel knows them
/// without asking whoever serves the file.
fn identity(exe: &Path) -> Option<(u64, u64)> {
    let flags = AtFlags::STATX_DONT_SYNC;
    let facts = rustix::fs::statx(CWD, exe, flags, StatxFlags::INO).ok()?;
    let device = rustix::fs::makedev(facts.stx_dev_major, facts.stx_dev_minor);
    Some((device, facts.stx_ino))
}

/// The files that are mapped as code: `… r-xp 00000000 fe:00 1234   /usr/lib/x.so`.
fn mapped(maps: &str) -> BTreeSet<PathBuf> {
    maps.lines()
        .filter(|line| {
            line.split(' ')
                .nth(1)
                .is_some_and(|mode| mode.contains('x'))
        })
        .filter_map(|line| line.find('/').map(|at| &line[at..]))
        .filter(|path| !path.ends_with(" (deleted)"))
        .map(PathBuf::from)
        .collect()
}

/// The paths of `/etc/ld.so.preload`: between white space and colons, up to a `#`.
fn preloaded(text: &str) -> impl Iterator<Item = &Path> {
    text.lines()
        .filter_map(|line| line.split('#').next())
        .flat_map(|line| line.split([' ', '\t', ':', ',']))
        .filter(|path| path.starts_with('/'))
        .map(Path::new)
}

/// The homes of `/etc/passwd`.
fn homes(passwd: &str) -> BTreeSet<PathBuf> {
    passwd
        .lines()
        .filter_map(|line| line.split(':').nth(5))
        .filter(|home| home.starts_with('/'))
        .map(PathBuf::from)
        .take(MAX_HOMES)
        .collect()
}

/// One place in a home, without links. A user may make it a link: to a file, which is
/// then what is started; but not to a folder elsewhere, which would make a quick scan
/// as long as the user likes.
fn of_a_home(home: &Path, name: &str, reach: &mut Reach) -> Option<PathBuf> {
    let path = reach.plain(&home.join(name))?;
    let metadata = fs::symlink_metadata(&path).ok()?;
    let home = reach.plain(home)?;
    let stays = path.starts_with(&home) && path != home;
    (metadata.is_file() || (metadata.is_dir() && stays)).then_some(path)
}

/// An absolute path as one below the machine's root.
fn within(machine: &Path, path: &Path) -> PathBuf {
    machine.join(path.strip_prefix("/").unwrap_or(path))
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    entries
        .take(MAX_NAMES)
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .collect()
}

/// A text, cut at the bound; empty if there is none.
fn text(path: &Path) -> String {
    let mut bytes = Vec::new();
    if let Ok(file) = fs::File::open(path) {
        let _ = file.take(MAX_TEXT).read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    struct Machine(tempfile::TempDir);

    impl Machine {
        fn new() -> Self {
            Self(tempfile::tempdir().unwrap())
        }

        fn path(&self) -> PathBuf {
            self.0.path().canonicalize().unwrap()
        }

        fn at(&self, name: &str) -> PathBuf {
            let path = self.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            path
        }

        fn file(&self, name: &str, text: &str) -> PathBuf {
            let path = self.at(name);
            fs::write(&path, text).unwrap();
            path
        }

        /// What a quick scan covers, below the machine.
        fn quick(&self, exclude: &[PathBuf]) -> Vec<String> {
            quick(&self.path(), exclude)
                .unwrap()
                .roots
                .iter()
                .map(|root| {
                    let below = root.strip_prefix(self.path()).unwrap_or(root);
                    below.to_str().unwrap().to_owned()
                })
                .collect()
        }
    }

    #[test]
    fn what_is_started_and_where_things_are_dropped() {
        let machine = Machine::new();
        for name in [
            "etc/cron.d/job",
            "etc/crontab",
            "etc/hosts",
            "var/spool/cron/root",
            "usr/lib/systemd/system/a.service",
            "tmp/x",
            "var/tmp/y",
            "opt/lib/evil.so",
            "home/u/.bashrc",
            "home/u/.ssh/authorized_keys",
            "home/u/.config/autostart/a.desktop",
            "home/u/work/file",
        ] {
            machine.file(name, "x");
        }
        symlink("usr/lib", machine.at("lib")).unwrap();
        machine.file("etc/ld.so.preload", "# none\n/opt/lib/evil.so /gone.so\n");
        machine.file(
            "etc/passwd",
            "root:x:0:0::/root:/bin/sh\nu:x:1:1::/home/u:/bin/sh\n",
        );
        let want = [
            "etc/cron.d",
            "etc/crontab",
            "etc/ld.so.preload",
            "home/u/.bashrc",
            "home/u/.config/autostart",
            "home/u/.ssh",
            "opt/lib/evil.so",
            "tmp",
            "usr/lib/systemd/system",
            "var/spool/cron",
            "var/tmp",
        ];
        assert_eq!(machine.quick(&[]), want);
        let without = machine.quick(&[machine.path().join("tmp"), machine.path().join("home")]);
        assert_eq!(without.len(), want.len() - 4, "{without:?}");
    }

    #[test]
    fn no_home_makes_a_quick_scan_long() {
        let machine = Machine::new();
        machine.file("etc/passwd", "u:x:1:1::/home/u:/bin/sh");
        let evil = machine.file("opt/evil", "x");
        symlink(&evil, machine.at("home/u/.bashrc")).unwrap();
        symlink("/", machine.at("home/u/.ssh")).unwrap();
        symlink(".", machine.at("home/u/.config/autostart")).unwrap();
        symlink("../..", machine.at("home/u/.config/systemd/user")).unwrap();
        assert_eq!(
            machine.quick(&[]),
            ["home/u/.config", "opt/evil"],
            "a folder of the home itself may be meant"
        );
    }

    #[test]
    fn what_runs_is_found_once() {
        let machine = Machine::new();
        let program = machine.file("usr/bin/program", "x");
        let library = machine.file("usr/lib/a library.so", "x");
        for pid in ["1", "22"] {
            symlink(&program, machine.at(&format!("proc/{pid}/exe"))).unwrap();
            let maps = format!(
                "7f00-7f01 r-xp 00000000 fe:00 12    {}\n\
                 7f02-7f03 rw-p 00000000 fe:00 12    {}/etc/data\n\
                 7f04-7f05 r-xp 00000000 00:00 0     [vdso]\n\
                 7f06-7f07 r-xp 00000000 fe:00 13    {} (deleted)\n",
                library.display(),
                machine.path().display(),
                program.display()
            );
            machine.file(&format!("proc/{pid}/maps"), &maps);
        }
        machine.file("proc/self/maps", "");
        assert_eq!(
            machine.quick(&[]),
            ["usr/bin/program", "usr/lib/a library.so"]
        );
    }

    /// As this machine has it: a program that is deleted while it runs.
    #[test]
    fn an_executable_without_a_name_has_that_of_its_process() {
        let dir = tempfile::tempdir().unwrap();
        let program = dir.path().join("program");
        fs::copy("/bin/sleep", &program).unwrap();
        let mut child = std::process::Command::new(&program)
            .arg("60")
            .spawn()
            .unwrap();
        let mut reach = Reach::now().unwrap();
        let there = executables(Path::new("/proc"), &mut reach);
        fs::remove_file(&program).unwrap();
        let gone = executables(Path::new("/proc"), &mut reach);
        let exe = PathBuf::from(format!("/proc/{}/exe", child.id()));
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(there.contains(&program) && !there.contains(&exe));
        assert!(gone.contains(&exe) && !gone.contains(&program));
        assert!(is_executable_of_process(&exe));
        assert!(!is_executable_of_process(Path::new("/proc/self/exe")));
        assert!(!is_executable_of_process(Path::new("/proc/1/exe/x")));
    }

    #[test]
    fn given_paths_are_walked_once_and_meant() {
        let paths = ["/a/b", "/a", "/a/cache/x", "/ab", "/a"].map(PathBuf::from);
        let exclude = [PathBuf::from("/a/cache")];
        assert_eq!(
            given(&paths, &exclude).roots,
            ["/a", "/a/cache/x", "/ab"].map(PathBuf::from)
        );
    }
}
