//! The packages, built by the script that is used for real, with little optimisation.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use palisade_tests::command::{self, Finished};
use tempfile::TempDir;

/// The first build compiles the agent for release.
const BUILD: Duration = Duration::from_secs(900);
/// How long one of the small tools may take.
const TOOL: Duration = Duration::from_secs(120);

/// The repository.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap()
}

/// Runs a tool of the system to its end, whatever its exit code.
pub fn tool<A: AsRef<OsStr>>(program: &str, arguments: impl IntoIterator<Item = A>) -> Finished {
    command::run(Path::new(program), arguments, TOOL).unwrap()
}

/// What a tool says; it must end well.
pub fn said<A: AsRef<OsStr>>(program: &str, arguments: impl IntoIterator<Item = A>) -> String {
    let finished = tool(program, arguments).expect(&[0]).unwrap();
    String::from_utf8(finished.stdout).unwrap()
}

/// Packages in a folder of their own.
pub struct Packages {
    pub deb: PathBuf,
    pub rpm: PathBuf,
    /// What is in the deb.
    pub files: PathBuf,
    _folder: TempDir,
}

impl Packages {
    /// Both packages, of the workspace's version.
    pub fn build() -> Self {
        Self::build_as(&[])
    }

    /// The same with more options of the script.
    pub fn build_as(options: &[&str]) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("palisade-packages-")
            .tempdir()
            .unwrap();
        let mut script = Command::new(repository().join("scripts/package"));
        script
            .args(["all", "--quick", "--out"])
            .arg(folder.path())
            .args(options);
        let finished = command::finish(script, BUILD).unwrap();
        let finished = finished.expect(&[0]).unwrap();
        let printed = String::from_utf8(finished.stdout).unwrap();
        let path = |end: &str| {
            let line = printed.lines().find(|line| line.ends_with(end));
            PathBuf::from(line.unwrap_or_else(|| panic!("no {end} in {printed:?}")))
        };
        let files = folder.path().join("files");
        let deb = path(".deb");
        said("dpkg-deb", [OsStr::new("-x"), deb.as_ref(), files.as_ref()]);
        Self {
            rpm: path(".rpm"),
            deb,
            files,
            _folder: folder,
        }
    }

    /// The program.
    pub fn agent(&self) -> PathBuf {
        self.files.join("usr/bin/palisade-agent")
    }
}
