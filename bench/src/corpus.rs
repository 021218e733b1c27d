//! The files that both sides scan: a choice of the machine's own, and archives.
//!
//! The choice depends on the machine's files alone, so that two runs on one machine
//! scan the same. Half of the files are below [`LARGE`], half are not; together they
//! have the size and the number of an ordinary server's programs. They are copied,
//! so that nothing changes meanwhile and both sides see one folder of regular files.

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use palisade_tests::command;
use palisade_tests::definitions::eicar;
use walkdir::WalkDir;

use crate::signatures::markers;

/// Where files are chosen from.
const SOURCES: [&str; 2] = ["/usr/bin", "/usr/lib"];
/// Larger files are left out (bytes).
const MAX_FILE: u64 = 16 << 20;
/// Every other file is at least this large (bytes).
const LARGE: u64 = 96 << 10;
/// Files in one folder of the corpus.
const PER_FOLDER: usize = 100;
/// An archive's members are this part of the corpus, at the most: no two archives, nor
/// an archive and the corpus, hold the same file, since "nothing cached" should mean it.
const ARCHIVE_PART: u64 = 100;
/// How long an archiver may take.
const ARCHIVING: Duration = Duration::from_secs(120);

/// The corpus in its folder.
#[derive(Debug, Clone)]
pub struct Corpus {
    /// The folder.
    pub folder: PathBuf,
    /// Its files, archives included.
    pub files: Vec<PathBuf>,
    /// Their sizes together (bytes).
    pub bytes: u64,
    /// Different contents.
    pub distinct: usize,
    /// The different contents' sizes together (bytes).
    pub distinct_bytes: u64,
    /// Files that hold a marker or EICAR.
    pub infected: usize,
}

impl Corpus {
    /// Copies at most `bytes` of real files into `folder`, and adds archives.
    ///
    /// # Errors
    /// The file system's, or an archiver's.
    pub fn build(folder: &Path, bytes: u64) -> Result<Self> {
        let mut candidates = candidates();
        let chosen = take(&mut candidates, bytes);
        ensure!(
            !chosen.is_empty(),
            "there is no file to scan in {}",
            SOURCES.join(", ")
        );
        for (number, path) in chosen.iter().enumerate() {
            let below = folder.join(format!("part-{:02}", number / PER_FOLDER));
            fs::create_dir_all(&below)?;
            let to = below.join(format!("{number:04}-{}", plain_name(path)));
            fs::copy(path, &to).with_context(|| format!("cannot copy {}", path.display()))?;
            make_readable(&to)?;
        }
        let infected = add_archives(folder, &mut candidates, bytes / ARCHIVE_PART)?;
        Self::of(folder, infected)
    }

    fn of(folder: &Path, infected: usize) -> Result<Self> {
        let mut corpus = Self {
            folder: folder.to_owned(),
            files: Vec::new(),
            bytes: 0,
            distinct: 0,
            distinct_bytes: 0,
            infected,
        };
        let mut seen = HashSet::new();
        for entry in WalkDir::new(folder).sort_by_file_name() {
            let entry = entry?;
            if entry.file_type().is_file() {
                // Reading warms the page cache for both sides, too.
                let content = fs::read(entry.path())?;
                corpus.bytes += content.len() as u64;
                if seen.insert(blake3::hash(&content)) {
                    corpus.distinct_bytes += content.len() as u64;
                }
                corpus.files.push(entry.into_path());
            }
        }
        corpus.distinct = seen.len();
        Ok(corpus)
    }
}

fn candidates() -> Vec<(PathBuf, u64)> {
    let mut seen = HashSet::new();
    SOURCES
        .iter()
        .flat_map(|source| WalkDir::new(source).follow_links(false))
        .filter_map(Result::ok)
        .filter(|entry| entry.file_type().is_file())
        .filter_map(|entry| {
            let metadata = entry.metadata().ok()?;
            let fits = (1..=MAX_FILE).contains(&metadata.len());
            let first = seen.insert((metadata.dev(), metadata.ino()));
            (fits && first).then(|| (entry.into_path(), metadata.len()))
        })
        .collect()
}

/// Takes a choice out of the candidates.
fn take(candidates: &mut Vec<(PathBuf, u64)>, bytes: u64) -> Vec<PathBuf> {
    let chosen = choose(candidates.clone(), bytes);
    let taken: HashSet<&PathBuf> = chosen.iter().collect();
    candidates.retain(|(path, _)| !taken.contains(path));
    chosen
}

/// Takes small and large files in turn, in an order that their paths make, until
/// one does not fit into `bytes`.
fn choose(candidates: Vec<(PathBuf, u64)>, bytes: u64) -> Vec<PathBuf> {
    let mut ordered: Vec<_> = candidates
        .into_iter()
        .map(|(path, size)| {
            let place = *blake3::hash(path.as_os_str().as_encoded_bytes()).as_bytes();
            (place, path, size)
        })
        .collect();
    ordered.sort();
    let (large, small): (Vec<_>, Vec<_>) =
        ordered.into_iter().partition(|(.., size)| *size >= LARGE);
    let mut left = bytes;
    small
        .into_iter()
        .zip(large)
        .flat_map(|(small, large)| [small, large])
        .map_while(|(_, path, size)| {
            left = left.checked_sub(size)?;
            Some(path)
        })
        .collect()
}

/// A name of which no program makes anything else.
fn plain_name(path: &Path) -> String {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let plain = |c: char| {
        if c.is_ascii_alphanumeric() || c == '.' {
            c
        } else {
            '-'
        }
    };
    name.chars().take(60).map(plain).collect()
}

/// The copy of a file that was executable by root alone is still to be scanned.
fn make_readable(path: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    Ok(fs::set_permissions(
        path,
        fs::Permissions::from_mode(0o644),
    )?)
}

/// Archives of several kinds, with and without something to find, each with `bytes` of
/// members of its own; gives how many files hold something.
fn add_archives(folder: &Path, candidates: &mut Vec<(PathBuf, u64)>, bytes: u64) -> Result<usize> {
    let archives = folder.join("archives");
    let members = archives.join("members");
    let mut archive = |marker: Option<&[u8]>, program: &str, arguments: &[&str]| -> Result<()> {
        fs::create_dir_all(&members)?;
        for (number, path) in take(candidates, bytes).iter().enumerate() {
            fs::copy(
                path,
                members.join(format!("{number:02}-{}", plain_name(path))),
            )?;
        }
        if let Some(marker) = marker {
            fs::write(members.join("99-marker"), marker)?;
        }
        let mut command = Command::new(program);
        command
            .args(arguments)
            .arg("members")
            .current_dir(&archives);
        command::finish(command, ARCHIVING)?.expect(&[0])?;
        Ok(fs::remove_dir_all(&members)?)
    };
    let found: Vec<Vec<u8>> = markers().into_iter().map(|marker| marker.bytes).collect();
    let [first, second, ..] = found.as_slice() else {
        anyhow::bail!("two markers are expected");
    };
    archive(None, "zip", &["-q", "-r", "clean.zip"])?;
    archive(None, "tar", &["czf", "clean.tar.gz"])?;
    archive(Some(first), "zip", &["-q", "-r", "first.zip"])?;
    archive(Some(first), "7z", &["a", "-bd", "-y", "first.7z"])?;
    archive(Some(second), "tar", &["czf", "second.tar.gz"])?;
    fs::write(
        archives.join("marker.txt"),
        [b"before ", second.as_slice(), b" after"].concat(),
    )?;
    fs::write(archives.join("test.com"), eicar())?;
    Ok(5)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_choice_fits_and_depends_on_the_files_alone(
            sizes in proptest::collection::vec(1..MAX_FILE, 0..60),
            bytes in 0..200_000_000_u64,
        ) {
            let all: Vec<_> = sizes
                .iter()
                .enumerate()
                .map(|(number, size)| (PathBuf::from(format!("/f{number}")), *size))
                .collect();
            let mut other_order = all.clone();
            other_order.reverse();
            let chosen = choose(all.clone(), bytes);
            prop_assert_eq!(&chosen, &choose(other_order, bytes));
            let size_of = |path: &PathBuf| all.iter().find(|(own, _)| own == path).map_or(0, |(_, size)| *size);
            prop_assert!(chosen.iter().map(size_of).sum::<u64>() <= bytes);
            let large = chosen.iter().filter(|path| size_of(path) >= LARGE).count();
            prop_assert!(large.abs_diff(chosen.len() - large) <= 1);
        }
    }

    #[test]
    fn names_are_plain() {
        assert_eq!(plain_name(Path::new("/x/a b:\u{e9}.so.1")), "a-b--.so.1");
    }
}
