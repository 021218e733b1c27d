//! More Protection Servers for a test's site.

use std::fs;
use std::net::{SocketAddr, UdpSocket};
use std::path::{Path, PathBuf};

use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use palisade_tests::command::{self, wait_for};
use palisade_tests::process::Process;
use serde_json::Value;

use super::TestSite;

/// A wait that only a defect exhausts.
const PATIENCE: Duration = Duration::from_secs(90);

/// A Protection Server beside the site's own, with the same definitions.
pub struct Another {
    /// Where agents reach it.
    pub address: SocketAddr,
    folder: PathBuf,
    process: Process,
}

impl Another {
    /// Starts one in a folder of this name, and waits until the Integration Server lists
    /// as many as are `expected`.
    pub fn start(test: &TestSite, name: &str, expected: usize) -> Self {
        Self::start_with(test, name, expected, "")
    }

    /// The same with further settings.
    pub fn start_with(test: &TestSite, name: &str, expected: usize, more: &str) -> Self {
        let folder = test.folder().join(name);
        fs::create_dir_all(folder.join("etc")).unwrap();
        let own = fs::read_to_string(test.site.dir().join("etc/scanserver.toml")).unwrap();
        let mut settings: toml::Table = own.parse().unwrap();
        let free = UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap();
        drop(free);
        let token = folder.join("etc/scanserver.token");
        fs::write(&token, test.site.join_token("svm").unwrap()).unwrap();
        settings.insert("listen".into(), address.to_string().into());
        settings.extend(more.parse::<toml::Table>().unwrap());
        settings.insert(
            "join_token_file".into(),
            token.to_str().unwrap().to_owned().into(),
        );
        fs::write(folder.join("etc/scanserver.toml"), settings.to_string()).unwrap();
        let process = launch(&folder);
        let another = Self {
            address,
            folder,
            process,
        };
        wait_for("the other Protection Server in the list", PATIENCE, || {
            let list = test.site.console(&["svm", "list"])?;
            let all = list.as_array().cloned().unwrap_or_default();
            let connected = all.iter().filter(|svm| svm["state"] == "connected").count();
            anyhow::ensure!(connected == expected, "{connected} of {expected}: {list}");
            Ok(())
        })
        .unwrap();
        another
    }

    /// Its process.
    pub fn process(&self) -> &Process {
        &self.process
    }

    /// Starts it again, after it was killed.
    pub fn resume(&mut self) {
        self.process = launch(&self.folder);
    }
}

impl Drop for Another {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = fs::read_to_string(self.folder.join("log")).unwrap_or_default();
            eprintln!("--- {} ---\n{log}", self.folder.display());
        }
        let _ = self.process.kill();
    }
}

fn launch(folder: &Path) -> Process {
    let mut command = Command::new(command::program("palisade-scanserver").unwrap());
    command.arg("--site").arg(folder).arg("run");
    Process::start(
        "scanserver",
        &command,
        &folder.join("run"),
        &folder.join("log"),
    )
    .unwrap()
}

/// What `palisade-agent explain` says.
pub fn explain(test: &TestSite) -> Value {
    let said = test
        .site
        .run("palisade-agent", &["explain", "-o", "json"], super::SCAN)
        .unwrap();
    said.json().unwrap_or(Value::Null)
}

/// Where the Protection Server is reached that has this role.
pub fn with_role(explained: &Value, role: &str) -> Option<SocketAddr> {
    let mut svms = explained["svms"].as_array()?.iter();
    let svm = svms.find(|svm| svm["role"] == role)?;
    svm["addresses"][0].as_str()?.parse().ok()
}

/// Waits until one Protection Server is in use and another one stands by; gives both.
pub fn both_up(test: &TestSite) -> (SocketAddr, SocketAddr) {
    wait_for("a Protection Server that stands by", PATIENCE, || {
        let explained = explain(test);
        let used = with_role(&explained, "in-use");
        let spare = with_role(&explained, "spare");
        used.zip(spare)
            .with_context(|| format!("not both: {explained:#}"))
    })
    .unwrap()
}
