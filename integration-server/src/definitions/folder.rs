//! The repository's files on disk.
//!
//! ```text
//!  metadata/timestamp.json, 1.root.json, 7.snapshot.json, 7.targets.json
//!  files/<SHA-256>       files of definitions, whole and as their name says
//!  incoming/<SHA-256>    such ones that are still coming in
//! ```
//!
//! A file is in `files` once its bytes were hashed and are on disk; a part that does not
//! fit on the disk takes what came before of that file along, so that nothing half is
//! left. Files that no generation has are removed after [`LOOSE_FOR`].

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use palisade_protocol::identity::write_atomic;
use palisade_protocol::pull::{Answer, MAX_PART_BYTES, What};
use palisade_repository::{FileInfo, contents, names};
use ring::digest::{Context, SHA256};

use super::DefinitionsError;
use super::error::at;
use crate::store::private_folder;

/// How long a file may lie there that no generation has.
pub const LOOSE_FOR: Duration = Duration::from_secs(3600);
/// Bytes that are read at a time.
const READ_BYTES: usize = 256 * 1024;

/// The repository's folder.
#[derive(Debug, Clone)]
pub struct Folder {
    top: PathBuf,
}

impl Folder {
    /// The folder, made if it is not there.
    ///
    /// # Errors
    /// The file system's.
    pub fn open(top: PathBuf) -> Result<Self, DefinitionsError> {
        for folder in [
            top.clone(),
            top.join("metadata"),
            top.join("files"),
            top.join("incoming"),
        ] {
            private_folder(&folder).map_err(at(&folder))?;
        }
        Ok(Self { top })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.top
    }

    fn metadata_file(&self, name: &str) -> PathBuf {
        self.top.join("metadata").join(name)
    }

    fn file(&self, sha256: &[u8; 32]) -> PathBuf {
        self.top.join("files").join(hex::encode(sha256))
    }

    fn incoming(&self, sha256: &[u8; 32]) -> PathBuf {
        self.top.join("incoming").join(hex::encode(sha256))
    }

    /// A file of metadata; none when there is no such one.
    ///
    /// # Errors
    /// The file system's.
    pub fn metadata(&self, name: &str) -> Result<Option<Vec<u8>>, DefinitionsError> {
        let path = self.metadata_file(name);
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(at(&path)(error)),
        }
    }

    /// Writes a file of metadata whole.
    ///
    /// # Errors
    /// The file system's.
    pub fn put_metadata(&self, name: &str, bytes: &[u8]) -> Result<(), DefinitionsError> {
        let path = self.metadata_file(name);
        write_atomic(&path, bytes, 0o600).map_err(|error| match error {
            palisade_protocol::identity::IdentityError::File { path, source } => at(&path)(source),
            other => at(&path)(io::Error::other(other)),
        })
    }

    /// Versions of a role's metadata that are there, in order.
    ///
    /// # Errors
    /// The file system's.
    pub fn versions(&self, role: &str) -> Result<Vec<u64>, DefinitionsError> {
        let folder = self.top.join("metadata");
        let mut versions = Vec::new();
        for entry in fs::read_dir(&folder).map_err(at(&folder))? {
            let name = entry.map_err(at(&folder))?.file_name();
            let version = name.to_str().and_then(|name| {
                let (version, rest) = name.split_once('.')?;
                let is_role = rest.strip_suffix(".json")? == role;
                version.parse::<u64>().ok().filter(|_| is_role)
            });
            versions.extend(version);
        }
        versions.sort_unstable();
        Ok(versions)
    }

    /// Removes old snapshots and targets: all but the last two, which somebody may be
    /// fetching now. Roots stay: a reader follows all of them.
    pub fn prune_metadata(&self) {
        for role in ["snapshot", "targets"] {
            let versions = self.versions(role).unwrap_or_default();
            let old = versions.len().saturating_sub(2);
            for version in &versions[..old] {
                // What cannot be removed now is old again the next time.
                let _ = fs::remove_file(self.metadata_file(&format!("{version}.{role}.json")));
            }
        }
    }

    /// A part of what is asked for.
    ///
    /// # Errors
    /// The file system's.
    pub fn part(&self, what: &What, from: u64) -> Result<Answer, DefinitionsError> {
        let path = match what {
            What::Metadata(name) if !names::is_metadata_name(name) => return Ok(Answer::Absent),
            What::Metadata(name) if name.as_str() == "root.json" => {
                match self.versions("root")?.last() {
                    Some(last) => self.metadata_file(&format!("{last}.root.json")),
                    None => return Ok(Answer::Absent),
                }
            }
            What::Metadata(name) => self.metadata_file(name),
            What::File(sha256) => self.file(sha256),
        };
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Answer::Absent),
            Err(error) => return Err(at(&path)(error)),
        };
        let length = file.metadata().map_err(at(&path))?.len();
        let left = length.saturating_sub(from);
        let mut bytes = vec![
            0;
            usize::try_from(left)
                .unwrap_or(usize::MAX)
                .min(MAX_PART_BYTES)
        ];
        if !bytes.is_empty() {
            file.read_exact_at(&mut bytes, from).map_err(at(&path))?;
        }
        Ok(Answer::Part { length, bytes })
    }

    /// How many bytes of a file have come in; all of them when it is whole.
    pub fn received(&self, file: &FileInfo) -> u64 {
        if self.has(file) {
            return file.length;
        }
        fs::metadata(self.incoming(&file.sha256)).map_or(0, |found| found.len())
    }

    /// Whether a file is there.
    pub fn has(&self, file: &FileInfo) -> bool {
        fs::metadata(self.file(&file.sha256)).is_ok_and(|found| found.len() == file.length)
    }

    /// Adds a part of a file, which goes on where it has come to; says how many bytes
    /// have come in then. With the last one, the file is hashed and is there.
    ///
    /// # Errors
    /// [`DefinitionsError`]; what had come of it is gone when the disk is full, or the
    /// bytes are not those that its name says.
    pub fn receive(
        &self,
        file: &FileInfo,
        from: u64,
        part: &[u8],
    ) -> Result<u64, DefinitionsError> {
        let have = self.received(file);
        if have == file.length && self.has(file) {
            return Ok(have);
        }
        if have != from {
            return Err(DefinitionsError::OutOfPlace { have });
        }
        let path = self.incoming(&file.sha256);
        let after = from.saturating_add(part.len() as u64);
        if after > file.length {
            let _ = fs::remove_file(&path);
            let why = format!("more than {} bytes came of a file of so many", file.length);
            return Err(DefinitionsError::Refused(why));
        }
        let written = append(&path, part);
        if let Err(error) = written {
            let _ = fs::remove_file(&path);
            return Err(at(&self.top)(error));
        }
        if after < file.length {
            return Ok(after);
        }
        let hashed = hash(&path).map_err(at(&path))?;
        if hashed != file.sha256 {
            let _ = fs::remove_file(&path);
            let why = "the bytes of a file are not those of its SHA-256; send it again".to_owned();
            return Err(DefinitionsError::Refused(why));
        }
        self.keep(&path, &file.sha256)?;
        Ok(after)
    }

    fn keep(&self, path: &Path, sha256: &[u8; 32]) -> Result<(), DefinitionsError> {
        let place = self.file(sha256);
        File::open(path)
            .and_then(|file| file.sync_all())
            .map_err(at(path))?;
        fs::rename(path, &place).map_err(at(&place))?;
        let folder = self.top.join("files");
        File::open(&folder)
            .and_then(|folder| folder.sync_all())
            .map_err(at(&folder))
    }

    /// Copies a file of this machine, of which it is not known what it holds.
    ///
    /// # Errors
    /// The file system's; nothing is left then.
    pub fn copy(&self, from: &Path, max: u64) -> Result<FileInfo, DefinitionsError> {
        let path = self.top.join("incoming/local");
        let copied = copy_hashed(from, &path, max);
        let (sha256, length) = copied.map_err(|error| {
            let _ = fs::remove_file(&path);
            match error.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => at(&self.top)(error),
                _ => at(from)(error),
            }
        })?;
        let info = FileInfo { sha256, length };
        if self.has(&info) {
            let _ = fs::remove_file(&path);
        } else {
            self.keep(&path, &sha256)?;
        }
        Ok(info)
    }

    /// Bytes of files that no generation has, those that are coming in included.
    pub fn loose_bytes(&self, kept: &HashSet<[u8; 32]>) -> u64 {
        self.loose(kept).map(|(_, found)| found.len()).sum()
    }

    /// Removes files that no generation has and that have lain there for long enough.
    pub fn prune(&self, kept: &HashSet<[u8; 32]>, now: SystemTime) {
        for (path, found) in self.loose(kept) {
            let old = found
                .modified()
                .ok()
                .and_then(|modified| now.duration_since(modified).ok())
                .is_some_and(|age| age >= LOOSE_FOR);
            if old && let Err(error) = fs::remove_file(&path) {
                tracing::warn!(path = %path.display(), %error, "a file that no generation has cannot be removed");
            }
        }
    }

    fn loose<'a>(
        &self,
        kept: &'a HashSet<[u8; 32]>,
    ) -> impl Iterator<Item = (PathBuf, fs::Metadata)> + use<'a> {
        let list = |name: &str| fs::read_dir(self.top.join(name)).into_iter().flatten();
        let files = list("files").flatten().filter(|entry| {
            let name = entry.file_name();
            let sha256 = name.to_str().and_then(contents::hash);
            !sha256.is_some_and(|sha256| kept.contains(&sha256))
        });
        let coming = list("incoming").flatten();
        files
            .chain(coming)
            .filter_map(|entry| Some((entry.path(), entry.metadata().ok()?)))
    }
}

fn append(path: &Path, part: &[u8]) -> io::Result<()> {
    let mut file = File::options().create(true).append(true).open(path)?;
    file.write_all(part)
}

fn hash(path: &Path) -> io::Result<[u8; 32]> {
    let mut file = File::open(path)?;
    let mut context = Context::new(&SHA256);
    let mut buffer = vec![0; READ_BYTES];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(finished(context)),
            read => context.update(&buffer[..read]),
        }
    }
}

fn copy_hashed(from: &Path, to: &Path, max: u64) -> io::Result<([u8; 32], u64)> {
    let mut source = File::open(from)?.take(max.saturating_add(1));
    let mut target = File::create(to)?;
    let mut context = Context::new(&SHA256);
    let mut buffer = vec![0; READ_BYTES];
    loop {
        match source.read(&mut buffer)? {
            0 => break,
            read => {
                context.update(&buffer[..read]);
                target.write_all(&buffer[..read])?;
            }
        }
    }
    let length = target.seek(SeekFrom::End(0))?;
    if length > max {
        return Err(io::Error::other("it is larger than a generation may be"));
    }
    Ok((finished(context), length))
}

fn finished(context: Context) -> [u8; 32] {
    let mut hash = [0; 32];
    let digest = context.finish();
    for (to, from) in hash.iter_mut().zip(digest.as_ref()) {
        *to = *from;
    }
    hash
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(bytes: &[u8]) -> FileInfo {
        let mut context = Context::new(&SHA256);
        context.update(bytes);
        FileInfo {
            sha256: finished(context),
            length: bytes.len() as u64,
        }
    }

    #[test]
    fn a_file_comes_in_parts_and_is_there_when_it_is_what_it_says() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path().join("definitions")).unwrap();
        let bytes = b"one and two".to_vec();
        let file = info(&bytes);
        assert_eq!(folder.receive(&file, 0, b"one ").unwrap(), 4);
        assert!(!folder.has(&file));
        // A part that was sent twice, or comes too early.
        for from in [0, 5] {
            assert!(matches!(
                folder.receive(&file, from, b"one "),
                Err(DefinitionsError::OutOfPlace { have: 4 })
            ));
        }
        assert_eq!(folder.receive(&file, 4, b"and two").unwrap(), 11);
        assert!(folder.has(&file));
        assert_eq!(folder.receive(&file, 0, b"one ").unwrap(), 11);
        let what = What::File(file.sha256);
        assert_eq!(
            folder.part(&what, 4).unwrap(),
            Answer::Part {
                length: 11,
                bytes: b"and two".to_vec()
            }
        );
        let end = folder.part(&what, 99).unwrap();
        assert_eq!(
            end,
            Answer::Part {
                length: 11,
                bytes: Vec::new()
            }
        );
    }

    #[test]
    fn what_is_not_as_it_says_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path().join("definitions")).unwrap();
        let file = info(b"right");
        for wrong in [b"wrong".as_slice(), b"too much"] {
            assert!(matches!(
                folder.receive(&file, 0, wrong),
                Err(DefinitionsError::Refused(_))
            ));
            assert_eq!(folder.received(&file), 0);
            assert_eq!(folder.loose_bytes(&HashSet::new()), 0);
        }
    }

    #[test]
    fn only_names_of_metadata_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path().join("definitions")).unwrap();
        fs::write(dir.path().join("secret.json"), "secret").unwrap();
        for name in ["../../secret.json", "secret.json", "/etc/passwd", ""] {
            let what = What::Metadata(palisade_protocol::bounded::Text::cut(name));
            assert_eq!(folder.part(&what, 0).unwrap(), Answer::Absent);
        }
        folder.put_metadata("2.root.json", b"two").unwrap();
        folder.put_metadata("10.root.json", b"ten").unwrap();
        let what = What::Metadata(palisade_protocol::bounded::Text::cut("root.json"));
        assert_eq!(
            folder.part(&what, 0).unwrap(),
            Answer::Part {
                length: 3,
                bytes: b"ten".to_vec()
            }
        );
    }

    #[test]
    fn what_no_generation_has_goes_after_a_while() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder::open(dir.path().join("definitions")).unwrap();
        let (kept, loose) = (info(b"kept"), info(b"loose"));
        folder.receive(&kept, 0, b"kept").unwrap();
        folder.receive(&loose, 0, b"loose").unwrap();
        folder.receive(&info(b"half"), 0, b"ha").unwrap();
        let named = HashSet::from([kept.sha256]);
        assert_eq!(folder.loose_bytes(&named), 7);
        folder.prune(&named, SystemTime::now());
        assert!(folder.has(&loose));
        folder.prune(&named, SystemTime::now() + LOOSE_FOR * 2);
        assert!(folder.has(&kept) && !folder.has(&loose));
        assert_eq!(folder.loose_bytes(&named), 0);
    }
}
