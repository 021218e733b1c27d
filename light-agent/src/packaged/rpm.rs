//! rpm's list of files, as its own program prints it.
//!
//! The database has four formats, which belong to rpm: the program is asked, with a
//! bound on its time and on what it says, and its answer kept in the state folder.
//!
//! The agent asks before it has a fanotify group, and never while it has one: a child
//! between fork and exec holds the group, and its exec waits for an answer; were the
//! agent to end in that moment, the child would wait for itself. The supervisor, which
//! never has one, asks again when the database has changed ([`follow`]). What packages
//! bring until then differs from the list, and is scanned as any other file.
//!
//! The list begins with the state in which the database was before it was asked, and ends
//! with a line that says so: while that is the database's state still, what is not listed
//! is no package's. Whoever asks writes a file of its own, and gives it its name whole.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

/// Where the program is.
const PROGRAMS: &[&str] = &["/usr/bin/rpm", "/bin/rpm"];
/// Where its database may be, from the root folder.
const FOLDERS: &[&str] = &["var/lib/rpm", "usr/lib/sysimage/rpm"];
/// What it may consist of: SQLite and what it has written ahead, Berkeley DB, ndb.
const DATABASES: &[&str] = &[
    "rpmdb.sqlite",
    "rpmdb.sqlite-wal",
    "Packages",
    "Packages.db",
];
/// Bytes of the list's first line, at the most.
const MAX_STATE_BYTES: u64 = 4096;
/// How the list begins.
const STATE: &str = "# database";
/// How it ends: what has no such line is a part of one.
pub const END: &str = "# end";
/// After this long a file that somebody began to write is given up.
const LEFT_AFTER: Duration = Duration::from_secs(600);
/// How often it is looked whether the database has changed.
const FOLLOWED_EVERY: Duration = Duration::from_secs(300);
/// Its answer, in bytes.
const MAX_BYTES: u64 = 64 << 20;
/// How long it may take.
const PATIENCE: Duration = Duration::from_secs(120);
/// Between looks at whether it has ended.
const LOOK: Duration = Duration::from_millis(100);

/// Where the list is kept in a state folder.
pub fn listing(state: &Path) -> PathBuf {
    state.join("rpm.sums")
}

/// Begins to ask, where there is a database of rpm's; what comes of it is kept in the
/// state folder when this ends.
pub fn begin(state: &Path) -> Option<JoinHandle<()>> {
    let program = PROGRAMS.iter().map(Path::new).find(|path| path.is_file())?;
    let root = Path::new("/");
    FOLDERS.iter().find(|path| root.join(path).is_dir())?;
    let into = listing(state);
    tidy(state);
    let of = state_of(root).unwrap_or_else(|| STATE.to_owned());
    // Started here, not on the thread: the caller goes on to have a fanotify group.
    match start(program, &[]) {
        Ok(child) => thread::Builder::new()
            .name("palisade-rpm".to_owned())
            .spawn(move || {
                if let Err(error) = take(child, &of, &into) {
                    tracing::warn!(%error, "what packages of rpm have is not known");
                }
            })
            .ok(),
        Err(error) => {
            tracing::warn!(%error, "rpm cannot be asked what its packages have");
            None
        }
    }
}

/// Asks again whenever the database has changed, for ever: for a process that never has
/// a fanotify group. A thread of its own, since it may wait for the agent.
pub fn follow(state: &Path) -> io::Result<()> {
    let state = state.to_owned();
    let follower = thread::Builder::new().name("palisade-rpm".to_owned());
    let ever = move || {
        loop {
            thread::sleep(FOLLOWED_EVERY);
            if state_of(Path::new("/")).is_some()
                && !is_known(&state)
                && let Some(asking) = begin(&state)
            {
                let _ = asking.join();
            }
        }
    };
    follower.spawn(ever).map(drop)
}

/// Removes what was begun and never ended.
fn tidy(state: &Path) {
    for entry in fs::read_dir(state).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let begun = name.as_bytes();
        let age = entry.metadata().and_then(|facts| facts.modified());
        let old = age.is_ok_and(|age| age.elapsed().is_ok_and(|age| age > LEFT_AFTER));
        if begun.starts_with(b"rpm.") && begun.ends_with(b".new") && old {
            let _ = fs::remove_file(entry.path());
        }
    }
}

/// In which state the database below a root folder is, as the list's first line has it;
/// none where there is no database.
pub fn state_of(root: &Path) -> Option<String> {
    let mut state = STATE.to_owned();
    for folder in FOLDERS {
        for name in DATABASES {
            let path = root.join(folder).join(name);
            match fs::metadata(&path) {
                // Whoever only reads may make an empty one.
                Ok(facts) if facts.len() == 0 && name.ends_with("-wal") => {}
                Ok(facts) => {
                    let (s, ns) = (facts.mtime(), facts.mtime_nsec());
                    let (inode, bytes) = (facts.ino(), facts.len());
                    state.push_str(&format!(" {folder}/{name}:{inode}:{bytes}:{s}.{ns:09}"));
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => state.push_str(&format!(" {folder}/{name}:{error}")),
            }
        }
    }
    (state != STATE).then_some(state)
}

/// Whether the state folder has a list of the database as it is now.
pub fn is_known(state: &Path) -> bool {
    let mut first = Vec::new();
    let list = File::open(listing(state));
    let read = list
        .and_then(|list| BufReader::new(list.take(MAX_STATE_BYTES)).read_until(b'\n', &mut first));
    read.is_ok() && is_current(first.trim_ascii_end(), Path::new("/"))
}

/// Whether a list is of the database as it is now.
pub fn is_current(first_line: &[u8], root: &Path) -> bool {
    state_of(root).is_some_and(|state| first_line == state.as_bytes())
}

/// The path in a line of the list; the line of what has no content has no digest.
pub fn path_of(line: &[u8]) -> Option<&Path> {
    let blank = line.iter().position(|byte| *byte == b' ')?;
    let path = line.get(blank + 1..)?;
    path.starts_with(b"/")
        .then(|| Path::new(OsStr::from_bytes(path)))
}

fn start(program: &Path, more: &[&str]) -> io::Result<Child> {
    Command::new(program)
        .args(more)
        .args(["-qa", "--qf", "[%{FILEDIGESTS} %{FILENAMES}\\n]"])
        .env_clear()
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
}

/// Takes the answer of a program that was started when the database was in a state.
fn take(mut child: Child, state: &str, into: &Path) -> io::Result<()> {
    let Some(answer) = child.stdout.take() else {
        return Err(io::Error::other("it says nothing"));
    };
    // A file, since the answer may be larger than all memory that the agent may take.
    let new = into.with_extension(format!("{}.new", std::process::id()));
    let _ = fs::remove_file(&new);
    let (path, first) = (new.clone(), format!("{state}\n"));
    let copying = thread::spawn(move || {
        let mut file = File::create_new(path)?;
        file.write_all(first.as_bytes())?;
        let bytes = io::copy(&mut answer.take(MAX_BYTES), &mut file)?;
        writeln!(file, "{END}")?;
        file.sync_all()?;
        Ok::<_, io::Error>(bytes)
    });
    let until = Instant::now() + PATIENCE;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() >= until || copying.is_finished() && bytes_in(&new) >= MAX_BYTES {
            let _ = child.kill();
        }
        thread::sleep(LOOK);
    };
    let copied = copying
        .join()
        .map_err(|_| io::Error::other("the answer is lost"))??;
    if !status.success() || copied >= MAX_BYTES {
        let _ = fs::remove_file(&new);
        return Err(io::Error::other(format!(
            "rpm ended with {status} after {copied} bytes"
        )));
    }
    fs::rename(&new, into)
}

fn bytes_in(file: &Path) -> u64 {
    fs::metadata(file).map_or(0, |facts| facts.len())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn program(folder: &Path, script: &str) -> PathBuf {
        let path = folder.join("rpm");
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    #[test]
    fn an_answer_is_kept_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let into = listing(folder.path());
        let ask = |script: &str| {
            let child = start(&program(folder.path(), script), &[]).unwrap();
            take(child, STATE, &into)
        };
        ask("echo one").unwrap();
        let whole = "# database\none\n# end\n";
        assert_eq!(fs::read_to_string(&into).unwrap(), whole);
        assert!(ask("echo two; exit 3").is_err());
        assert!(ask("head -c 68000000 /dev/zero; sleep 100").is_err());
        assert_eq!(fs::read_to_string(&into).unwrap(), whole);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 2);
        // Somebody else's is let be as long as it may be written still.
        let others = [("rpm.1.new", 0), ("rpm.2.new", 700)].map(|(name, age)| {
            let path = folder.path().join(name);
            let file = File::create(&path).unwrap();
            let then = std::time::SystemTime::now() - Duration::from_secs(age);
            file.set_modified(then).unwrap();
            path
        });
        tidy(folder.path());
        assert_eq!(others.map(|path| path.exists()), [true, false]);
    }

    /// rpm itself, with a database and a package of the test's.
    #[test]
    fn rpm_says_what_its_packages_have() {
        let Some(rpm) = PROGRAMS.iter().map(Path::new).find(|path| path.is_file()) else {
            eprintln!("skipped: rpm is not installed");
            assert!(std::env::var_os("CI").is_none(), "it must be there");
            return;
        };
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let name = format!("palisade-test-{}", rand::random::<u32>());
        let spec = format!(
            "Name: {name}\nVersion: 1\nRelease: 1\nSummary: x\nLicense: x\nBuildArch: noarch\n\
             %description\nx\n%install\nmkdir -p %{{buildroot}}/opt\necho {name} > %{{buildroot}}/opt/{name}\n\
             %files\n/opt/{name}\n"
        );
        fs::write(at("x.spec"), spec).unwrap();
        let run = |program: &str, args: &[&str]| {
            let mut command = Command::new(program);
            command.args(args).env("HOME", folder.path());
            let output = command.output().unwrap();
            assert!(
                output.status.success(),
                "{}",
                String::from_utf8_lossy(&output.stderr)
            );
        };
        let top = format!("_topdir {}", at("top").display());
        let (spec, database) = (at("x.spec"), at("database"));
        run(
            "rpmbuild",
            &["-bb", "--define", &top, spec.to_str().unwrap()],
        );
        let package = at("top/RPMS/noarch").join(format!("{name}-1-1.noarch.rpm"));
        let database = ["--dbpath", database.to_str().unwrap()];
        run(
            rpm.to_str().unwrap(),
            &[
                &database[..],
                &["-i", "--justdb", "--nodeps", package.to_str().unwrap()],
            ]
            .concat(),
        );
        let into = listing(folder.path());
        take(start(rpm, &database).unwrap(), STATE, &into).unwrap();
        let index = super::super::index::Index::load(Path::new("/nothing"), &into);
        let path = PathBuf::from(format!("/opt/{name}"));
        fs::write(at("file"), format!("{name}\n")).unwrap();
        let is = || {
            index
                .is_as_listed(&path, &File::open(at("file")).unwrap())
                .unwrap()
        };
        assert!(is(), "{}", fs::read_to_string(&into).unwrap());
        fs::write(at("file"), "x").unwrap();
        assert!(!is());
    }
}
