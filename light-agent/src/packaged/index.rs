//! Which paths packages list, and with which digest.
//!
//! Reads `var/lib/dpkg/info/*.md5sums` and one list of the same shape for rpm: a hex
//! digest (MD5 or SHA-256), blanks, a path. Only a hash of each path and the place of its
//! line are kept, sixteen bytes a file; the line is read again when it is asked for, and
//! its path compared. A list that others than root may write is not believed.
//!
//! dpkg's paths are those of the package, which may lead through the links of a merged
//! `/usr` (`/bin/ls`): they are looked up as the machine has them.

use std::fs::{self, File};
use std::hash::{BuildHasher as _, RandomState};
use std::io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use md5::{Digest as _, Md5};
use sha2::Sha256;

use crate::state_file::believed;

/// Lists, at the most.
const MAX_LISTS: usize = 65_536;
/// Bytes of one list.
const MAX_LIST_BYTES: u64 = 256 << 20;
/// Bytes of one line.
const MAX_LINE_BYTES: u64 = 8192;
/// Files that are known, at the most: 4 MiB; the rest is scanned as if no package had it.
const MAX_FILES: usize = 262_144;
/// Bytes that are hashed at a time.
const CHUNK_BYTES: usize = 64 << 10;
/// Folders that may be links to the same in `/usr`.
const MERGED: &[&str] = &["bin", "sbin", "lib", "lib32", "lib64", "libx32", "libo32"];

/// A line of a list.
#[derive(Debug, Clone, Copy)]
struct Entry {
    key: u64,
    list: u32,
    offset: u32,
}

/// What a package has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sum {
    Md5([u8; 16]),
    Sha256([u8; 32]),
}

/// All lists.
#[derive(Debug)]
pub struct Index {
    /// By key.
    entries: Vec<Entry>,
    lists: Vec<PathBuf>,
    merged: Vec<&'static str>,
    keys: RandomState,
    print: u64,
}

impl Index {
    /// Reads what the machine below `root` has, and `listing`, if it is there. What
    /// cannot be read, or believed, is said and left out.
    pub fn load(root: &Path, listing: &Path) -> Self {
        let mut index = Self {
            entries: Vec::new(),
            lists: Vec::new(),
            merged: merged(root),
            keys: RandomState::new(),
            print: 0,
        };
        let mut print = <Sha256 as sha2::Digest>::new();
        let mut lists = dpkg(&root.join("var/lib/dpkg/info"));
        lists.push(listing.to_owned());
        for list in lists {
            if index.entries.len() >= MAX_FILES {
                tracing::warn!(
                    "packages list more than {MAX_FILES} files: the rest is scanned as any other"
                );
                break;
            }
            match index.add(&list, &mut print) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => {
                    tracing::warn!(list = %list.display(), %error, "a list of a package is not used");
                }
            }
        }
        index.entries.sort_unstable_by_key(|entry| entry.key);
        let print = sha2::Digest::finalize(print);
        let first = print.iter().take(8);
        index.print = first.fold(0, |all, byte| all << 8 | u64::from(*byte));
        index
    }

    /// Files that are known.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Differs where the lists do.
    pub fn print(&self) -> u64 {
        self.print
    }

    /// A hash of a path, as it is found by.
    pub fn key(&self, path: &Path) -> u64 {
        self.keys.hash_one(path.as_os_str().as_bytes())
    }

    /// Whether a package lists a path; in very rare cases it is another's.
    pub fn lists(&self, path: &Path) -> bool {
        !self.lines(self.key(path)).is_empty()
    }

    /// Whether a file is what a package has under this path.
    ///
    /// # Errors
    /// The list's or the file's.
    pub fn is_as_listed(&self, path: &Path, file: &File) -> io::Result<bool> {
        for entry in self.lines(self.key(path)) {
            if let Some((sum, listed)) = self.line(*entry)?
                && listed == path
            {
                return Ok(sum == sum_of(file, sum)?);
            }
        }
        Ok(false)
    }

    fn lines(&self, key: u64) -> &[Entry] {
        let from = self.entries.partition_point(|entry| entry.key < key);
        let entries = self.entries.get(from..).unwrap_or_default();
        let count = entries.iter().take_while(|entry| entry.key == key).count();
        entries.get(..count).unwrap_or_default()
    }

    fn line(&self, entry: Entry) -> io::Result<Option<(Sum, PathBuf)>> {
        let Some(list) = self.lists.get(entry.list as usize) else {
            return Ok(None);
        };
        let mut list = believed(list)?.0;
        list.seek(SeekFrom::Start(entry.offset.into()))?;
        let mut line = Vec::new();
        BufReader::with_capacity(512, list.take(MAX_LINE_BYTES)).read_until(b'\n', &mut line)?;
        Ok(self.parse(&line))
    }

    fn add(&mut self, list: &Path, print: &mut Sha256) -> io::Result<()> {
        let (file, facts) = believed(list)?;
        if facts.len() > MAX_LIST_BYTES {
            return Err(io::Error::other("it is too long"));
        }
        let number = u32::try_from(self.lists.len()).map_err(io::Error::other)?;
        let mut lines = BufReader::new(file.take(MAX_LIST_BYTES));
        let mut line = Vec::new();
        let mut offset = 0u32;
        while self.entries.len() < MAX_FILES {
            line.clear();
            let bytes = lines.read_until(b'\n', &mut line)?;
            if bytes == 0 {
                break;
            }
            // A comment says nothing of files.
            if !line.starts_with(b"#") {
                sha2::Digest::update(print, &line);
            }
            if let Some((_, path)) = self.parse(&line) {
                self.entries.push(Entry {
                    key: self.key(&path),
                    list: number,
                    offset,
                });
            }
            offset += u32::try_from(bytes).map_err(io::Error::other)?;
        }
        self.lists.push(list.to_owned());
        Ok(())
    }

    /// A line's digest and path; none for what is no file.
    fn parse(&self, line: &[u8]) -> Option<(Sum, PathBuf)> {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        let at = line.iter().position(|byte| *byte == b' ')?;
        let (digest, path) = line.split_at(at);
        let sum = match digest.len() {
            32 => Sum::Md5(bytes(digest)?),
            64 => Sum::Sha256(bytes(digest)?),
            _ => return None,
        };
        let path = path.trim_ascii_start();
        let path = path.strip_prefix(b"/").unwrap_or(path);
        let first = path.split(|byte| *byte == b'/').next().unwrap_or_default();
        let is_merged = self.merged.iter().any(|one| one.as_bytes() == first);
        let root: &[u8] = if is_merged { b"/usr/" } else { b"/" };
        let whole = std::ffi::OsString::from_vec([root, path].concat());
        (!path.is_empty()).then(|| (sum, whole.into()))
    }
}

/// dpkg's lists, by name.
fn dpkg(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else {
        return Vec::new();
    };
    let mut lists: Vec<PathBuf> = entries
        .take(MAX_LISTS)
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|kind| kind == "md5sums"))
        .collect();
    lists.sort();
    lists
}

fn merged(root: &Path) -> Vec<&'static str> {
    let real = |path: PathBuf| fs::canonicalize(path).ok();
    MERGED
        .iter()
        .filter(|name| {
            let there = real(root.join(name));
            there.is_some() && there == real(root.join("usr").join(name))
        })
        .copied()
        .collect()
}

fn bytes<const N: usize>(hex: &[u8]) -> Option<[u8; N]> {
    let mut bytes = [0; N];
    hex::decode_to_slice(hex, &mut bytes).ok()?;
    Some(bytes)
}

/// The digest of a file, of the same kind as `like`.
fn sum_of(file: &File, like: Sum) -> io::Result<Sum> {
    Ok(match like {
        Sum::Md5(_) => {
            let mut md5 = Md5::new();
            each_chunk(file, |chunk| md5.update(chunk))?;
            Sum::Md5(md5.finalize().into())
        }
        Sum::Sha256(_) => {
            let mut sha256 = <Sha256 as sha2::Digest>::new();
            each_chunk(file, |chunk| sha2::Digest::update(&mut sha256, chunk))?;
            Sum::Sha256(sha2::Digest::finalize(sha256).into())
        }
    })
}

fn each_chunk(file: &File, mut take: impl FnMut(&[u8])) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK_BYTES];
    let mut at = 0;
    loop {
        let read = file.read_at(&mut chunk, at)?;
        match chunk.get(..read) {
            None | Some([]) => return Ok(()),
            Some(chunk) => take(chunk),
        }
        at += read as u64;
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    /// A machine with files and dpkg's lists.
    pub struct Database(tempfile::TempDir);

    impl Database {
        pub fn new() -> Self {
            let root = tempfile::tempdir().unwrap();
            fs::create_dir_all(root.path().join("var/lib/dpkg/info")).unwrap();
            Self(root)
        }

        pub fn root(&self) -> &Path {
            self.0.path()
        }

        pub fn file(&self, path: &str, content: &str) -> PathBuf {
            let path = self.0.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(&path, content).unwrap();
            path
        }

        /// The path of a file as packages name it.
        pub fn listed(&self, path: &Path) -> PathBuf {
            Path::new("/").join(path.strip_prefix(self.root()).unwrap())
        }

        pub fn lists(&self, package: &str, files: &[(&str, &str)]) {
            let lines: String = files
                .iter()
                .map(|(path, content)| {
                    format!("{}  {path}\n", hex::encode(Md5::digest(content.as_bytes())))
                })
                .collect();
            self.file(&format!("var/lib/dpkg/info/{package}.md5sums"), &lines);
        }
    }

    fn is_as_listed(index: &Index, path: &str, file: &Path) -> bool {
        let path = Path::new(path);
        index.lists(path)
            && index
                .is_as_listed(path, &File::open(file).unwrap())
                .unwrap()
    }

    #[test]
    fn a_file_is_as_listed_by_its_bytes_and_its_path() {
        let database = Database::new();
        let tool = database.file("usr/bin/tool", "tool");
        std::os::unix::fs::symlink("usr/bin", database.root().join("bin")).unwrap();
        database.lists(
            "a",
            &[("bin/tool", "tool"), ("usr/share/a b\u{e9}", "other")],
        );
        database.lists("b", &[("lib/tool", "tool")]);
        let listing = database.file("rpm.sums", "");
        let index = Index::load(database.root(), &listing);
        assert_eq!(index.len(), 3);
        assert!(
            is_as_listed(&index, "/usr/bin/tool", &tool),
            "through the link"
        );
        assert!(!index.lists(Path::new("/bin/tool")));
        assert!(index.lists(Path::new("/lib/tool")), "not merged here");
        assert!(index.lists(Path::new("/usr/share/a b\u{e9}")));
        fs::write(&tool, "Tool").unwrap();
        assert!(!is_as_listed(&index, "/usr/bin/tool", &tool));
        // A list that was changed under the index vouches for nothing that it had.
        fs::write(&tool, "tool").unwrap();
        database.lists("a", &[("bin/fool", "tool")]);
        assert!(!is_as_listed(&index, "/usr/bin/tool", &tool));
    }

    #[test]
    fn rpms_digests_are_of_either_kind() {
        let database = Database::new();
        let tool = database.file("usr/bin/tool", "tool");
        let sha256 = hex::encode(<Sha256 as sha2::Digest>::digest(b"tool"));
        let listing = database.file(
            "rpm.sums",
            &format!(" /usr/bin\n{sha256} /usr/bin/tool\n{sha256} /usr/bin/tool2\nrubbish\n"),
        );
        let index = Index::load(database.root(), &listing);
        assert_eq!(index.len(), 2);
        assert!(is_as_listed(&index, "/usr/bin/tool", &tool));
        fs::write(&tool, "Tool").unwrap();
        assert!(!is_as_listed(&index, "/usr/bin/tool", &tool));
    }

    #[test]
    fn a_list_that_others_may_write_is_not_believed() {
        let database = Database::new();
        let tool = database.file("usr/bin/tool", "tool");
        database.lists("a", &[("usr/bin/tool", "tool")]);
        let list = database.root().join("var/lib/dpkg/info/a.md5sums");
        let load = || Index::load(database.root(), Path::new("/nothing"));
        let index = load();
        assert!(is_as_listed(&index, "/usr/bin/tool", &tool));
        fs::set_permissions(&list, fs::Permissions::from_mode(0o646)).unwrap();
        assert!(load().is_empty());
        let opened = File::open(&tool).unwrap();
        assert!(
            index
                .is_as_listed(Path::new("/usr/bin/tool"), &opened)
                .is_err()
        );
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]

        /// Whatever a list holds, it is read, and what it lists is found again.
        #[test]
        fn any_list_is_read(text in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..400)) {
            let database = Database::new();
            let list = database.file("list", "");
            let mut bytes = text;
            bytes.extend(b"\n00000000000000000000000000000000  x/y\n");
            fs::write(&list, &bytes).unwrap();
            let index = Index::load(database.root(), &list);
            proptest::prop_assert!(index.lists(Path::new("/x/y")));
            let empty = File::open("/dev/null").unwrap();
            proptest::prop_assert!(!index.is_as_listed(Path::new("/x/y"), &empty).unwrap());
        }
    }
}
