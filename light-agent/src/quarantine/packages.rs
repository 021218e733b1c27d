//! Whether a package installed a file.
//!
//! Reads dpkg's own lists (`/var/lib/dpkg/info/*.list`) and its diversions, and the list
//! that rpm's own program gave ([`rpm`]). Other package databases are seen and not read:
//! where there is one, a file that packages may install counts as *cannot be told*, and
//! so does everything where there is no database that is known, or where rpm's is not the
//! one any more that the list is of; only below [`FREE`], where the file system hierarchy
//! lets no package install anything, the answer is "no" all the same.
//!
//! A list says a path as the package has it, which may lead through links that the
//! guest has (`/bin` to `/usr/bin`). So a line counts if it is the path, or if it ends
//! in the same name and leads to the same file.

use std::fs::{self, File};
use std::io::{self, BufRead as _, BufReader, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use super::policy::Owner;
use crate::packaged::rpm;
use crate::state_file::believed;

/// Lists that are read, at the most.
const MAX_LISTS: usize = 65_536;
/// Bytes of one list, at the most; rpm's is a single one.
const MAX_LIST_BYTES: u64 = 128 << 20;

/// Where no package installs files.
const FREE: &[&str] = &[
    "/home", "/root", "/tmp", "/var/tmp", "/dev/shm", "/mnt", "/media",
];

/// Databases that are not read, from the root folder.
const UNREAD: &[(&str, &str)] = &[
    ("lib/apk/db/installed", "apk"),
    ("var/lib/pacman/local", "pacman"),
];

/// Whose a file is: `path` as the kernel names it, `place` its device and inode; of rpm's
/// files `listing` is the list.
pub fn owner(root: &Path, listing: &Path, path: &Path, place: (u64, u64)) -> Owner {
    let dpkg = root.join("var/lib/dpkg/info");
    let has_dpkg = dpkg.is_dir();
    if has_dpkg {
        match listed(&dpkg, path, place) {
            Ok(Some(package)) => return Owner::Package(package),
            Ok(None) => {}
            Err(error) => return Owner::Unknown(format!("dpkg's lists: {error}")),
        }
        match diverted(&root.join("var/lib/dpkg/diversions"), path) {
            Ok(false) => {}
            Ok(true) => return Owner::Package("that diverted it".to_owned()),
            Err(error) => return Owner::Unknown(format!("dpkg's diversions: {error}")),
        }
    }
    let rpm = match of_rpm(root, listing, path, place) {
        Ok(Rpm::Listed) => return Owner::Package("that rpm lists".to_owned()),
        Ok(rpm) => rpm,
        Err(error) => return Owner::Unknown(format!("rpm's list: {error}")),
    };
    if FREE.iter().any(|free| path.starts_with(free)) {
        return Owner::None;
    }
    let unread = UNREAD.iter().find(|(place, _)| root.join(place).exists());
    match (unread, rpm) {
        (Some((_, name)), _) => Owner::Unknown(format!("the database of {name} is not read")),
        (None, Rpm::Unread) => Owner::Unknown("the database of rpm was not read".to_owned()),
        (None, Rpm::Changed) => {
            Owner::Unknown("the database of rpm has changed since it was read".to_owned())
        }
        (None, Rpm::NotListed) => Owner::None,
        (None, _) if has_dpkg => Owner::None,
        (None, _) => Owner::Unknown("no package database is known here".to_owned()),
    }
}

/// What rpm says of a file.
enum Rpm {
    /// It has no database here.
    None,
    /// It lists it, or did.
    Listed,
    /// It does not.
    NotListed,
    /// It did not when it was asked, and has changed since.
    Changed,
    /// It was not asked, or gave no answer.
    Unread,
}

fn of_rpm(root: &Path, listing: &Path, path: &Path, place: (u64, u64)) -> io::Result<Rpm> {
    if rpm::state_of(root).is_none() {
        return Ok(Rpm::None);
    }
    match believed(listing) {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Rpm::Unread),
        Err(error) => return Err(error),
    }
    let (mut first, mut whole) = (None, false);
    let listed = any_line(listing, |line| {
        first.get_or_insert_with(|| rpm::is_current(line, root));
        whole = line == rpm::END.as_bytes();
        rpm::path_of(line).is_some_and(|listed| leads_to(listed, path, place))
    })?;
    Ok(match (listed, first) {
        (true, _) => Rpm::Listed,
        (false, Some(true)) if whole => Rpm::NotListed,
        (false, _) => Rpm::Changed,
    })
}

/// Whether a package's path is this file's, by whichever way.
fn leads_to(listed: &Path, path: &Path, place: (u64, u64)) -> bool {
    listed == path
        || (listed.file_name() == path.file_name()
            && fs::metadata(listed).is_ok_and(|there| (there.dev(), there.ino()) == place))
}

fn listed(info: &Path, path: &Path, place: (u64, u64)) -> io::Result<Option<String>> {
    if path.file_name().is_none() {
        return Ok(None);
    }
    for (number, entry) in fs::read_dir(info)?.enumerate() {
        if number >= MAX_LISTS {
            return Err(io::Error::other("there are too many"));
        }
        let list = entry?.path();
        if list.extension().is_none_or(|extension| extension != "list") {
            continue;
        }
        let found = any_line(&list, |line| {
            leads_to(Path::new(std::ffi::OsStr::from_bytes(line)), path, place)
        })?;
        if found {
            let package = list.file_stem().unwrap_or_default();
            return Ok(Some(package.to_string_lossy().into_owned()));
        }
    }
    Ok(None)
}

/// The file of diversions has three lines each: from, to, by which package.
fn diverted(file: &Path, path: &Path) -> io::Result<bool> {
    if !file.exists() {
        return Ok(false);
    }
    any_line(file, |line| line == path.as_os_str().as_bytes())
}

fn any_line(file: &Path, mut holds: impl FnMut(&[u8]) -> bool) -> io::Result<bool> {
    let opened = File::open(file)?;
    if opened.metadata()?.len() > MAX_LIST_BYTES {
        return Err(io::Error::other(format!("{} is too long", file.display())));
    }
    let mut lines = BufReader::new(opened.take(MAX_LIST_BYTES));
    let mut line = Vec::new();
    loop {
        line.clear();
        if lines.read_until(b'\n', &mut line)? == 0 {
            return Ok(false);
        }
        if holds(line.strip_suffix(b"\n").unwrap_or(&line)) {
            return Ok(true);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NO_LIST: &str = "/no/such/list";

    fn place(path: &Path) -> (u64, u64) {
        let there = fs::metadata(path).unwrap();
        (there.dev(), there.ino())
    }

    fn root(dpkg: bool) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        if dpkg {
            fs::create_dir_all(root.path().join("var/lib/dpkg/info")).unwrap();
        }
        root
    }

    fn list(root: &Path, package: &str, lines: &[&Path]) {
        let text: String = lines
            .iter()
            .map(|line| format!("{}\n", line.display()))
            .collect();
        fs::write(root.join(format!("var/lib/dpkg/info/{package}.list")), text).unwrap();
    }

    #[test]
    fn a_listed_file_is_the_packages_by_whichever_way_it_is_listed() {
        let root = root(true);
        let files = tempfile::tempdir().unwrap();
        fs::create_dir(files.path().join("usr")).unwrap();
        fs::write(files.path().join("usr/tool"), "x").unwrap();
        fs::write(files.path().join("usr/other"), "x").unwrap();
        std::os::unix::fs::symlink("usr", files.path().join("link")).unwrap();
        let tool = files.path().join("usr/tool");
        let other = files.path().join("usr/other");
        assert_eq!(
            owner(root.path(), NO_LIST.as_ref(), &tool, place(&tool)),
            Owner::None
        );
        list(root.path(), "a", &[&tool]);
        assert_eq!(
            owner(root.path(), NO_LIST.as_ref(), &tool, place(&tool)),
            Owner::Package("a".into())
        );
        list(root.path(), "a", &[&files.path().join("link/tool")]);
        assert_eq!(
            owner(root.path(), NO_LIST.as_ref(), &tool, place(&tool)),
            Owner::Package("a".into()),
            "listed through a link"
        );
        assert_eq!(
            owner(root.path(), NO_LIST.as_ref(), &other, place(&other)),
            Owner::None
        );
    }

    #[test]
    fn what_cannot_be_told_is_said() {
        let without = root(false);
        let in_usr = Path::new("/usr/local/bin/thing");
        let told = |root: &Path, path: &Path| owner(root, NO_LIST.as_ref(), path, (0, 0));
        assert!(matches!(told(without.path(), in_usr), Owner::Unknown(_)));
        assert_eq!(told(without.path(), Path::new("/home/a/b")), Owner::None);
        let rpm = root(true);
        assert_eq!(told(rpm.path(), in_usr), Owner::None);
        fs::create_dir_all(rpm.path().join("var/lib/rpm")).unwrap();
        fs::write(rpm.path().join("var/lib/rpm/rpmdb.sqlite"), "").unwrap();
        assert!(matches!(told(rpm.path(), in_usr), Owner::Unknown(why) if why.contains("rpm")));
        // A list that cannot be read is no answer.
        let broken = root(true);
        fs::create_dir(broken.path().join("var/lib/dpkg/info/b.list")).unwrap();
        assert!(matches!(
            told(broken.path(), Path::new("/home/a/b")),
            Owner::Unknown(_)
        ));
    }

    #[test]
    fn a_diverted_file_is_not_moved() {
        let root = root(true);
        fs::write(
            root.path().join("var/lib/dpkg/diversions"),
            "/usr/bin/a\n/usr/bin/a.real\nb\n",
        )
        .unwrap();
        let told = |path: &str| owner(root.path(), NO_LIST.as_ref(), Path::new(path), (0, 0));
        assert!(matches!(told("/usr/bin/a.real"), Owner::Package(_)));
        assert_eq!(told("/usr/bin/c"), Owner::None);
    }

    #[test]
    fn what_rpm_lists_is_a_packages_and_the_rest_while_it_is_the_same_database() {
        let root = root(false);
        let database = root.path().join("var/lib/rpm/rpmdb.sqlite");
        fs::create_dir_all(database.parent().unwrap()).unwrap();
        fs::write(&database, "one").unwrap();
        let files = tempfile::tempdir().unwrap();
        fs::create_dir(files.path().join("usr")).unwrap();
        fs::write(files.path().join("usr/tool"), "x").unwrap();
        std::os::unix::fs::symlink("usr", files.path().join("link")).unwrap();
        let tool = files.path().join("usr/tool");
        let through = files.path().join("link/tool");
        let list = root.path().join("rpm.sums");
        let told = |path: &str| owner(root.path(), &list, Path::new(path), (0, 0));
        let (ghost, other) = ("/usr/bin/ghost", "/usr/bin/other");
        let unknown = |owner: Owner, word: &str| {
            assert!(
                matches!(&owner, Owner::Unknown(why) if why.contains(word)),
                "{owner:?}"
            );
        };
        unknown(told(other), "not read");
        assert_eq!(told("/home/a/b"), Owner::None);

        let state = rpm::state_of(root.path()).unwrap();
        let sum = "0".repeat(64);
        let lines = format!("{state}\n{sum} {}\n {ghost}\n", through.display());
        // Half of a list says nothing of what is not in it.
        fs::write(&list, &lines).unwrap();
        unknown(told(other), "changed");
        fs::write(&list, format!("{lines}{}\n", rpm::END)).unwrap();
        let by_rpm = Owner::Package("that rpm lists".to_owned());
        assert_eq!(told(ghost), by_rpm);
        assert_eq!(owner(root.path(), &list, &tool, place(&tool)), by_rpm);
        // The control: one that no line leads to.
        assert_eq!(told(other), Owner::None);
        // Another package may have come meanwhile; what was listed is not moved anyway.
        fs::write(&database, "another").unwrap();
        unknown(told(other), "changed");
        assert_eq!(told(ghost), by_rpm);
        assert_eq!(told("/home/a/b"), Owner::None);
        // A list that anybody may write is no answer, wherever the file is.
        let anybody = std::os::unix::fs::PermissionsExt::from_mode(0o666);
        fs::set_permissions(&list, anybody).unwrap();
        unknown(told("/home/a/b"), "may write it");
        fs::remove_file(&database).unwrap();
        unknown(told(other), "no package database");
    }

    /// The machine's own lists, where it has them.
    #[test]
    fn this_machines_ls_belongs_to_a_package() {
        let ls = fs::canonicalize("/bin/ls").unwrap();
        if Path::new("/var/lib/dpkg/info/coreutils.list").exists() {
            assert_eq!(
                owner(Path::new("/"), NO_LIST.as_ref(), &ls, place(&ls)),
                Owner::Package("coreutils".into())
            );
        }
    }
}
