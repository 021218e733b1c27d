//! A quarantine and files beside it, without an agent: for its moves step by step.

use std::fs::{self, File};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};

use palisade_light_agent::lease;
use palisade_light_agent::quarantine::policy::{Kept, Movement};
use palisade_light_agent::quarantine::record::Found;
use palisade_light_agent::quarantine::take::{Step, Subject, Witness, take};
use palisade_light_agent::quarantine::vault::{Limits, Vault};
use palisade_protocol::content::ContentId;
use palisade_protocol::scan::ScanClass;

/// More than one chunk, and not a whole number of them.
pub const BYTES: usize = 600_001;

pub struct Home {
    pub dir: tempfile::TempDir,
    pub content: Vec<u8>,
}

impl Home {
    pub fn new() -> Self {
        lease::block_signal().unwrap();
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("files")).unwrap();
        let seed = uuid::Uuid::new_v4();
        let content = seed
            .as_bytes()
            .iter()
            .copied()
            .cycle()
            .take(BYTES)
            .collect();
        Self { dir, content }
    }

    pub fn root(&self) -> PathBuf {
        self.dir.path().canonicalize().unwrap()
    }

    pub fn state(&self) -> PathBuf {
        self.root().join("state")
    }

    pub fn vault(&self) -> Vault {
        vault(&self.state())
    }

    pub fn file(&self, name: &str) -> PathBuf {
        let path = self.root().join("files").join(name);
        fs::write(&path, &self.content).unwrap();
        path
    }

    /// Names in the folder of files.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.root().join("files"))
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// Names in the hold and among the notes.
    pub fn unfinished(&self) -> usize {
        let count = |name: &str| {
            fs::read_dir(self.state().join("quarantine").join(name))
                .unwrap()
                .count()
        };
        count("hold") + count("moves")
    }
}

pub fn vault(state: &Path) -> Vault {
    let limits = Limits {
        bytes: 1 << 30,
        files: 10,
    };
    Vault::new(state, limits)
}

pub fn found(content: &[u8]) -> Found {
    Found {
        time_ms: 1,
        name: "Test".into(),
        engine: "test".into(),
        member: None,
        content: ContentId::of(content),
        sha256: None,
        class: ScanClass::OnAccess,
        pid: 1,
    }
}

pub fn take_file(
    vault: &Vault,
    movement: Movement,
    path: &Path,
    found: Found,
    witness: &dyn Witness,
) -> Result<uuid::Uuid, Kept> {
    let file = File::open(path).unwrap();
    let subject = Subject {
        file: file.as_fd(),
        path,
        found,
    };
    take(vault, movement, &subject, witness)
}

/// Does something at one step.
pub struct At<F: Fn()> {
    pub step: Step,
    pub act: F,
}

impl<F: Fn()> Witness for At<F> {
    fn reached(&self, step: Step) {
        if step == self.step {
            (self.act)();
        }
    }
}
