//! The real engine program, started through the client, with definitions that a
//! test wrote.

use palisade_worker::client::{
    EngineCommand, EngineProcess, Loaded, Outcome, ScanDone, ScanOptions, SealedContent,
    StartError, WorkerHandle,
};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;
use tempfile::TempDir;

pub const LONG: Duration = Duration::from_secs(120);
pub const PROGRAM: &str = env!("CARGO_BIN_EXE_palisade-engine-clamav");

/// A folder with definitions, scratch, and whatever a test puts there.
pub struct Site {
    pub root: TempDir,
}

impl Site {
    pub fn new(definitions: &[(&str, &str)]) -> Self {
        let root = TempDir::new().unwrap();
        for directory in ["definitions", "scratch", "files"] {
            std::fs::create_dir(root.path().join(directory)).unwrap();
        }
        let site = Self { root };
        for (name, text) in definitions {
            std::fs::write(site.definitions().join(name), text).unwrap();
        }
        site
    }

    pub fn definitions(&self) -> PathBuf {
        self.root.path().join("definitions")
    }

    pub fn scratch(&self) -> PathBuf {
        self.root.path().join("scratch")
    }

    pub fn files(&self) -> PathBuf {
        self.root.path().join("files")
    }

    pub fn command(&self) -> EngineCommand {
        EngineCommand::new(PROGRAM)
            .arg("--definitions")
            .arg(self.definitions())
            .arg("--scratch")
            .arg(self.scratch())
    }

    pub fn start_with(&self, settings: &[&str]) -> Result<(EngineProcess, Loaded), StartError> {
        let command = settings.iter().fold(self.command(), |command, setting| {
            command.arg("--set").arg(*setting)
        });
        EngineProcess::start(&command)
    }

    pub fn start(&self) -> EngineProcess {
        self.start_with(&[]).unwrap().0
    }

    pub fn put(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.files().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }
}

/// A marker that no other run has, and a database of one line that finds it.
pub fn marker() -> (String, String) {
    let marker = palisade_worker::zygote::random_hex(24).unwrap();
    let hex: String = marker.bytes().map(|byte| format!("{byte:02x}")).collect();
    let line = format!("Marker.Test:0:*:{hex}\n");
    (marker, line)
}

pub const MARKER_NAME: &str = "Marker.Test.UNOFFICIAL";

pub fn scan_bytes(worker: &mut WorkerHandle, bytes: &[u8]) -> Outcome {
    scan_with(worker, bytes, ScanOptions::default()).0.outcome
}

/// Outcome, and the members with names and bytes.
pub fn scan_with(
    worker: &mut WorkerHandle,
    bytes: &[u8],
    options: ScanOptions,
) -> (ScanDone, Vec<(String, Vec<u8>)>) {
    let content = SealedContent::from_bytes(bytes).unwrap();
    let mut members = Vec::new();
    let done = worker
        .scan(&content, options, LONG, &mut |member| {
            members.push((member.name, member.content.to_vec().unwrap()));
        })
        .unwrap();
    (done, members)
}

pub fn scan_file(worker: &mut WorkerHandle, path: &Path) -> Outcome {
    scan_bytes(worker, &std::fs::read(path).unwrap())
}

pub fn found(name: &str) -> Outcome {
    Outcome::found([name.into()], false)
}

/// Runs a program in a folder; false, with the reason printed, if there is none.
pub fn run_in(directory: &Path, program: &str, args: &[&str]) -> bool {
    match Command::new(program)
        .args(args)
        .current_dir(directory)
        .output()
    {
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{program} {args:?}: {said}");
            true
        }
        Err(error) => {
            println!("skipped: {program} cannot be run: {error}");
            false
        }
    }
}
