//! Which files of a directory are ClamAV databases, and in which order they load.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

/// Kinds that libclamav loads. Not among them: `.info`, which libclamav takes only
/// from inside a container, and `.yar`, which is the YARA engine's.
const KINDS: [&str; 33] = [
    "cvd", "cld", "cud", "hdb", "hsb", "hdu", "hsu", "mdb", "msb", "mdu", "msu", "ndb", "ndu",
    "ldb", "ldu", "sdb", "zmd", "rmd", "idb", "cdb", "fp", "sfp", "ign", "ign2", "ftm", "cbc",
    "crb", "pdb", "gdb", "wdb", "cat", "cfg", "pwdb",
];
/// Kinds that pack other databases, with a version in their first bytes.
const CONTAINERS: [&str; 3] = ["cvd", "cld", "cud"];
/// Length of a container's header (bytes).
const HEADER: u64 = 512;

/// The databases directly in `directory`, in loading order; other files are not
/// looked at. Where a database is there both as `.cvd` and `.cld`, the newer one.
pub fn find(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if KINDS.contains(&kind(&path)) && fs::metadata(&path)?.is_file() {
            found.push(path);
        }
    }
    found.sort_by_key(|path| (rank(path), path.clone()));
    let superseded: Vec<PathBuf> = found
        .iter()
        .filter(|path| is_superseded(path, &found))
        .cloned()
        .collect();
    found.retain(|path| !superseded.contains(path));
    Ok(found)
}

fn kind(path: &Path) -> &str {
    path.extension()
        .and_then(|extension| extension.to_str())
        .unwrap_or_default()
}

/// What others refer to comes first: lists of ignored signatures, then whatever
/// sets up limits and certificates.
fn rank(path: &Path) -> u8 {
    match kind(path) {
        "ign" | "ign2" => 0,
        "cld" | "cvd" if path.file_stem().is_some_and(|stem| stem == "daily") => 1,
        "gdb" => 2,
        "cfg" => 3,
        "crb" | "cat" => 4,
        _ => 5,
    }
}

fn is_superseded(path: &Path, all: &[PathBuf]) -> bool {
    let twin = |other: &&PathBuf| {
        CONTAINERS.contains(&kind(other))
            && other.as_path() != path
            && other.file_stem() == path.file_stem()
    };
    CONTAINERS.contains(&kind(path))
        && all.iter().filter(twin).any(|other| {
            // Of two with one version, the .cld: it is what an update wrote last.
            (version(other), kind(other) == "cld") > (version(path), kind(path) == "cld")
        })
}

/// `ClamAV-VDB:build time:version:…`; 0 where that is not what the file starts with.
fn version(path: &Path) -> u64 {
    let mut header = Vec::new();
    let read = fs::File::open(path).and_then(|file| file.take(HEADER).read_to_end(&mut header));
    if read.is_err() {
        return 0;
    }
    let header = String::from_utf8_lossy(&header);
    header
        .split(':')
        .nth(2)
        .and_then(|version| version.parse().ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn databases_only_each_once_ignore_lists_first() {
        let directory = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(directory.path().join(name), text).unwrap();
        write("b.ndb", "");
        write("a.hdb", "");
        write("local.ign2", "");
        write("daily.cvd", "ClamAV-VDB:01 Jan 2025 00-00 +0000:27000:x");
        write("daily.cld", "ClamAV-VDB:02 Jan 2025 00-00 +0000:27001:x");
        write("main.cvd", "ClamAV-VDB:02 Jan 2025 00-00 +0000:63:x");
        write("rules.yar", "");
        write("daily.info", "");
        write("README", "");
        fs::create_dir(directory.path().join("d.ndb")).unwrap();
        let names: Vec<_> = find(directory.path())
            .unwrap()
            .iter()
            .map(|path| path.file_name().unwrap().to_str().unwrap().to_owned())
            .collect();
        assert_eq!(
            names,
            ["local.ign2", "daily.cld", "a.hdb", "b.ndb", "main.cvd"]
        );
    }
}
