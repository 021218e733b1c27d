//! Whether a package installed a file.
//!
//! Reads dpkg's own lists (`/var/lib/dpkg/info/*.list`) and its diversions. Other
//! package databases are seen and not read: where there is one, a file that packages
//! may install counts as *cannot be told*, and so does everything where there is no
//! database that is known; only below [`FREE`], where the file system hierarchy lets no
//! package install anything, the answer is "no".
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

/// Lists that are read, at the most.
const MAX_LISTS: usize = 65_536;
/// Bytes of one list, at the most.
const MAX_LIST_BYTES: u64 = 64 << 20;

/// Where no package installs files.
const FREE: &[&str] = &[
    "/home", "/root", "/tmp", "/var/tmp", "/dev/shm", "/mnt", "/media",
];

/// Databases that are not read, from the root folder.
const UNREAD: &[(&str, &str)] = &[
    ("var/lib/rpm/rpmdb.sqlite", "rpm"),
    ("var/lib/rpm/Packages", "rpm"),
    ("usr/lib/sysimage/rpm", "rpm"),
    ("lib/apk/db/installed", "apk"),
    ("var/lib/pacman/local", "pacman"),
];

/// Whose a file is: `path` as the kernel names it, `place` its device and inode.
pub fn owner(root: &Path, path: &Path, place: (u64, u64)) -> Owner {
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
    if FREE.iter().any(|free| path.starts_with(free)) {
        return Owner::None;
    }
    let unread = UNREAD.iter().find(|(place, _)| root.join(place).exists());
    match unread {
        Some((_, name)) => Owner::Unknown(format!("the database of {name} is not read")),
        None if has_dpkg => Owner::None,
        None => Owner::Unknown("no package database is known here".to_owned()),
    }
}

fn listed(info: &Path, path: &Path, place: (u64, u64)) -> io::Result<Option<String>> {
    let Some(name) = path.file_name() else {
        return Ok(None);
    };
    for (number, entry) in fs::read_dir(info)?.enumerate() {
        if number >= MAX_LISTS {
            return Err(io::Error::other("there are too many"));
        }
        let list = entry?.path();
        if list.extension().is_none_or(|extension| extension != "list") {
            continue;
        }
        let found = any_line(&list, |line| {
            let line = Path::new(std::ffi::OsStr::from_bytes(line));
            line == path
                || (line.file_name() == Some(name)
                    && fs::metadata(line).is_ok_and(|there| (there.dev(), there.ino()) == place))
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
        assert_eq!(owner(root.path(), &tool, place(&tool)), Owner::None);
        list(root.path(), "a", &[&tool]);
        assert_eq!(
            owner(root.path(), &tool, place(&tool)),
            Owner::Package("a".into())
        );
        list(root.path(), "a", &[&files.path().join("link/tool")]);
        assert_eq!(
            owner(root.path(), &tool, place(&tool)),
            Owner::Package("a".into()),
            "listed through a link"
        );
        assert_eq!(owner(root.path(), &other, place(&other)), Owner::None);
    }

    #[test]
    fn what_cannot_be_told_is_said() {
        let without = root(false);
        let in_usr = Path::new("/usr/local/bin/thing");
        let told = |root: &Path, path: &Path| owner(root, path, (0, 0));
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
        let told = |path: &str| owner(root.path(), Path::new(path), (0, 0));
        assert!(matches!(told("/usr/bin/a.real"), Owner::Package(_)));
        assert_eq!(told("/usr/bin/c"), Owner::None);
    }

    /// The machine's own lists, where it has them.
    #[test]
    fn this_machines_ls_belongs_to_a_package() {
        let ls = fs::canonicalize("/bin/ls").unwrap();
        if Path::new("/var/lib/dpkg/info/coreutils.list").exists() {
            assert_eq!(
                owner(Path::new("/"), &ls, place(&ls)),
                Owner::Package("coreutils".into())
            );
        }
    }
}
