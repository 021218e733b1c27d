//! Tasks on disk: `tasks/` in the state folder, one file a task.
//!
//! `N.json` is the task; `N.cover` what it covers, looked up once when it began, so that
//! its place means the same after a restart. Files are replaced whole. One that is
//! damaged, or of another version, is set aside and said: its task is lost, and no
//! other is.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use palisade_protocol::identity::write_atomic;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::saved::SavedPath;
use super::task::Task;
use crate::packaged::Policy;
use crate::scan::places::Cover;

/// The shape of the files.
const VERSION: u32 = 1;
/// Largest file that is read, in bytes.
const MAX_FILE_BYTES: u64 = 32 << 20;
/// Files that are looked at, at the most.
const MAX_FILES: usize = 4096;

/// The folder. Whoever writes takes turns.
#[derive(Debug, Clone)]
pub struct Store {
    folder: PathBuf,
}

#[derive(Serialize, Deserialize)]
struct Versioned<T> {
    version: u32,
    content: T,
}

#[derive(Serialize, Deserialize)]
struct SavedCover {
    roots: Vec<SavedPath>,
    stay_out: Vec<SavedPath>,
    #[serde(default)]
    packaged: (Policy, u64),
}

impl Store {
    /// The tasks of a state folder.
    pub fn new(state: &Path) -> Self {
        Self {
            folder: state.join("tasks"),
        }
    }

    /// All tasks that are kept.
    ///
    /// # Errors
    /// The folder's.
    pub fn load(&self) -> io::Result<Vec<Task>> {
        let entries = match fs::read_dir(&self.folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut tasks = Vec::new();
        for entry in entries.take(MAX_FILES) {
            let path = entry?.path();
            let id = number(&path, "json");
            if let Some(id) = id
                && let Some(task) = self.read::<Task>(&path)
            {
                if task.id == id {
                    tasks.push(task);
                } else {
                    set_aside(&path, "it is of another task");
                }
            }
        }
        Ok(tasks)
    }

    /// Keeps a task.
    ///
    /// # Errors
    /// The disk's.
    pub fn save(&self, task: &Task) -> io::Result<()> {
        self.write(&format!("{}.json", task.id), task)
    }

    /// Forgets a task.
    pub fn forget(&self, id: u64) {
        let _ = fs::remove_file(self.folder.join(format!("{id}.json")));
        self.forget_cover(id);
    }

    /// What a task covers, if it began.
    pub fn cover(&self, id: u64) -> Option<Cover> {
        let path = self.folder.join(format!("{id}.cover"));
        let saved: SavedCover = self.read(&path)?;
        let paths = |saved: Vec<SavedPath>| saved.into_iter().map(|path| path.0).collect();
        Some(Cover {
            roots: paths(saved.roots),
            stay_out: paths(saved.stay_out),
            left_out: Vec::new(),
            packaged: saved.packaged,
        })
    }

    /// Keeps what a task covers.
    ///
    /// # Errors
    /// The disk's.
    pub fn save_cover(&self, id: u64, cover: &Cover) -> io::Result<()> {
        let paths = |paths: &[PathBuf]| paths.iter().map(|path| path.as_path().into()).collect();
        let saved = SavedCover {
            roots: paths(&cover.roots),
            stay_out: paths(&cover.stay_out),
            packaged: cover.packaged,
        };
        self.write(&format!("{id}.cover"), &saved)
    }

    /// A task that has ended covers nothing more.
    pub fn forget_cover(&self, id: u64) {
        let _ = fs::remove_file(self.folder.join(format!("{id}.cover")));
    }

    /// The date on which each schedule was last due, by the schedule's name.
    pub fn last_due(&self) -> BTreeMap<String, jiff::civil::Date> {
        self.read(&self.folder.join("schedules.json"))
            .unwrap_or_default()
    }

    /// Keeps these dates.
    ///
    /// # Errors
    /// The disk's.
    pub fn save_last_due(&self, last: &BTreeMap<String, jiff::civil::Date>) -> io::Result<()> {
        self.write("schedules.json", last)
    }

    fn write<T: Serialize>(&self, name: &str, content: &T) -> io::Result<()> {
        let text = serde_json::to_vec(&Versioned {
            version: VERSION,
            content,
        })?;
        write_atomic(&self.folder.join(name), &text, 0o600).map_err(io::Error::other)
    }

    /// What a file holds; none if it is not there or was set aside.
    fn read<T: DeserializeOwned>(&self, path: &Path) -> Option<T> {
        let problem = match fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => error.to_string(),
            Ok(metadata) if metadata.len() > MAX_FILE_BYTES => "it is too large".to_owned(),
            Ok(_) => match fs::read(path) {
                Err(error) => error.to_string(),
                Ok(text) => match parse(&text) {
                    Ok(content) => return Some(content),
                    Err(problem) => problem,
                },
            },
        };
        set_aside(path, &problem);
        None
    }
}

fn parse<T: DeserializeOwned>(text: &[u8]) -> Result<T, String> {
    #[derive(Deserialize)]
    struct OfVersion {
        version: u32,
    }
    let OfVersion { version } = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    if version != VERSION {
        return Err(format!("it is of version {version}"));
    }
    let versioned: Versioned<T> =
        serde_json::from_slice(text).map_err(|error| error.to_string())?;
    Ok(versioned.content)
}

fn set_aside(path: &Path, problem: &str) {
    let mut aside = path.as_os_str().to_owned();
    aside.push(".damaged");
    tracing::error!(
        file = %path.display(), problem,
        "a file of the scan tasks is damaged and set aside"
    );
    if let Err(error) = fs::rename(path, &aside) {
        tracing::error!(file = %path.display(), %error, "it cannot be set aside");
    }
}

fn number(path: &Path, extension: &str) -> Option<u64> {
    let is = path.extension().is_some_and(|own| own == extension);
    path.file_stem()?.to_str()?.parse().ok().filter(|_| is)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scan::hands::Priority;
    use crate::scan::what::Kind;
    use crate::tasks::book::{Book, Wish};

    fn task() -> Task {
        let mut book = Book::default();
        let wish = Wish {
            kind: Kind::Custom,
            paths: vec![SavedPath("/a\n".into())],
            priority: Priority::Low,
            schedule: Some("s".into()),
        };
        book.add(wish, 7).unwrap();
        book.begin(8).unwrap()
    }

    #[test]
    fn a_task_and_its_cover_survive() {
        let state = tempfile::tempdir().unwrap();
        let store = Store::new(state.path());
        assert_eq!(store.load().unwrap(), []);
        store.save(&task()).unwrap();
        let cover = Cover {
            roots: vec!["/a".into(), "/b\u{1}".into()],
            stay_out: vec!["/c".into()],
            left_out: vec![],
            packaged: (Policy::Last, 7),
        };
        store.save_cover(1, &cover).unwrap();
        assert_eq!(store.load().unwrap(), [task()]);
        assert_eq!(store.cover(1), Some(cover));
        store.forget(1);
        assert_eq!(store.load().unwrap(), []);
        assert_eq!(store.cover(1), None);
    }

    #[test]
    fn what_is_damaged_is_set_aside_and_holds_up_no_other() {
        let state = tempfile::tempdir().unwrap();
        let store = Store::new(state.path());
        store.save(&task()).unwrap();
        let at = |name: &str| state.path().join("tasks").join(name);
        let whole = fs::read_to_string(at("1.json")).unwrap();
        fs::write(at("2.json"), &whole[..whole.len() / 2]).unwrap();
        fs::write(
            at("3.json"),
            whole.replace("\"version\":1", "\"version\":9"),
        )
        .unwrap();
        fs::write(at("4.json"), &whole).unwrap();
        fs::write(at("schedules.json"), "{").unwrap();
        assert_eq!(store.load().unwrap(), [task()]);
        assert!(store.last_due().is_empty());
        for name in ["2.json", "3.json", "4.json", "schedules.json"] {
            assert!(at(&format!("{name}.damaged")).exists(), "{name}");
            assert!(!at(name).exists(), "{name}");
        }
    }
}
