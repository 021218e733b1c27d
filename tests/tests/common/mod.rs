//! A site for one test: in a folder of its own, protecting a tmpfs of its own (as
//! root), stopped and unmounted when the test ends, however it ends.
#![allow(
    dead_code,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "each test file uses a part of it, and a panic fails the test"
)]

pub mod machine;
pub mod peer;
pub mod servers;
pub mod watch;

use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use palisade_tests::site::{Plan, Site};
use serde_json::Value;
use tempfile::TempDir;

/// How long a scan in a test may take.
pub const SCAN: Duration = Duration::from_secs(300);

pub struct TestSite {
    pub site: Site,
    pub protected: PathBuf,
    mounted: bool,
    // The last field: dropped after the site stopped.
    folder: TempDir,
}

impl TestSite {
    /// A running site that uses these definition files (name, content).
    pub fn start(definitions: &[(&str, String)]) -> Self {
        let prepared = Self::prepare(definitions);
        if let Err(error) = prepared.site.start() {
            panic!("{error:#}");
        }
        prepared
    }

    /// The same, not started yet.
    pub fn prepare(definitions: &[(&str, String)]) -> Self {
        let folder = tempfile::Builder::new()
            .prefix("palisade-test-")
            .tempdir()
            .unwrap();
        let given = folder.path().join("definitions");
        fs::create_dir(&given).unwrap();
        for (name, content) in definitions {
            fs::write(given.join(name), content).unwrap();
        }
        let protected = folder.path().join("protected");
        fs::create_dir(&protected).unwrap();
        let mounted = nix::unistd::geteuid().is_root();
        if mounted {
            let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
            mount(
                Some("tmpfs"),
                &protected,
                Some("tmpfs"),
                flags,
                Some("size=256m"),
            )
            .unwrap();
        }
        let plan = Plan {
            definitions: Some(given),
            protect: Some(protected.clone()),
        };
        let site = Site::open(&folder.path().join("site"), &plan).unwrap();
        Self {
            site,
            protected,
            mounted,
            folder,
        }
    }

    /// Starts it with a Protection Server that serves its numbers; gives their address.
    pub fn start_with_numbers(&self) -> SocketAddr {
        let settings = self.site.dir().join("etc/scanserver.toml");
        let text = fs::read_to_string(&settings).unwrap();
        let text = format!("{text}\n[metrics]\nlisten = '127.0.0.1:0'\n");
        fs::write(&settings, text).unwrap();
        self.site.start().unwrap();
        self.numbers()
    }

    /// Where the Protection Server that was started last serves its numbers.
    pub fn numbers(&self) -> SocketAddr {
        let log = fs::read_to_string(self.site.log("scanserver")).unwrap();
        let mut lines = log.lines().rev();
        let line = lines.find(|line| line.contains(" metrics address="));
        let (_, address) = line.unwrap().split_once(" metrics address=").unwrap();
        address.split(' ').next().unwrap().parse().unwrap()
    }

    /// Adds to the settings of a part that does not run yet.
    pub fn set(&self, part: &str, more: &str) {
        let file = self
            .site
            .dir()
            .join("etc")
            .join(part)
            .with_extension("toml");
        let mut settings: toml::Table = fs::read_to_string(&file).unwrap().parse().unwrap();
        settings.extend(more.parse::<toml::Table>().unwrap());
        fs::write(file, settings.to_string()).unwrap();
    }

    /// A folder for files that are not protected.
    pub fn folder(&self) -> &Path {
        self.folder.path()
    }

    /// Where the definition files of this test are.
    pub fn definitions(&self) -> PathBuf {
        self.folder.path().join("definitions")
    }

    /// Writes a file outside of what is protected.
    pub fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, bytes).unwrap();
        path
    }

    /// Scans; gives the exit code and the result.
    pub fn scan(&self, paths: &[&Path]) -> (i32, Value) {
        self.site.scan(paths, SCAN).unwrap()
    }

    /// Runs the agent with a settings file of its own.
    pub fn agent(&self, settings: &Path, arguments: &[&str]) -> palisade_tests::command::Finished {
        let mut all = vec!["--config", settings.to_str().unwrap()];
        all.extend(arguments);
        self.site.run("palisade-agent", &all, SCAN).unwrap()
    }

    /// Another agent's settings: a state folder of its own, with nothing protected.
    pub fn other_agent(&self, name: &str) -> PathBuf {
        let state = self.folder.path().join(name);
        fs::create_dir_all(&state).unwrap();
        let settings = state.join("agent.toml");
        let text = format!(
            "state_dir = '{0}/var'\nrun_dir = '{0}/run'\n[on_access]\nenabled = false\n",
            state.display()
        );
        fs::write(&settings, text).unwrap();
        let token = self.site.join_token("agent").unwrap();
        self.agent(&settings, &["enrol", &token])
            .expect(&[0])
            .unwrap();
        settings
    }

    /// Ends the Protection Server as a crash would.
    pub fn kill_svm(&self) {
        self.site
            .process("scanserver")
            .unwrap()
            .expect("it runs")
            .kill()
            .unwrap();
    }
}

impl Drop for TestSite {
    fn drop(&mut self) {
        if let Err(error) = self.site.stop() {
            eprintln!("cannot stop the site: {error:#}");
        }
        if std::thread::panicking() {
            for part in palisade_tests::site::PARTS {
                let log = fs::read_to_string(self.site.log(part)).unwrap_or_default();
                let lines: Vec<&str> = log.lines().collect();
                let end = lines[lines.len().saturating_sub(40)..].join("\n");
                eprintln!("--- {part} ---\n{end}");
            }
        }
        if self.mounted {
            let _ = umount2(&self.protected, MntFlags::MNT_DETACH);
        }
    }
}

/// The findings' names by file name.
pub fn names(result: &Value) -> Vec<(String, String)> {
    let mut names: Vec<(String, String)> = result["findings"]
        .as_array()
        .unwrap()
        .iter()
        .map(|finding| {
            let path = Path::new(finding["path"].as_str().unwrap());
            let file = path.file_name().unwrap().to_string_lossy().into_owned();
            (
                file,
                finding["name"].as_str().unwrap_or_default().to_owned(),
            )
        })
        .collect();
    names.sort();
    names
}
