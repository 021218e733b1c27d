//! A folder on a private tmpfs that an agent protects, as root.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use nix::libc;

use super::agent::Agent;
use super::mount::Tmpfs;
use super::site::Site;
use super::svm::Svm;

/// A protected folder, its agent and the agent's Protection Server.
pub struct World {
    // Dropped in this order: the agent lets the mark go before the mount goes.
    pub agent: Agent,
    pub svm: Svm,
    pub tmpfs: Tmpfs,
    _site: Site,
}

impl World {
    /// Not started yet; `{protected}` in the settings is the protected folder. Other mount
    /// namespaces are let be unless the settings name them: they are other tests', too.
    pub fn new(settings: &str) -> Self {
        let site = Site::new();
        let svm = Svm::start(&site);
        let tmpfs = Tmpfs::new();
        fs::create_dir(tmpfs.path().join("protected")).unwrap();
        let elsewhere = match settings.contains("other_namespaces") {
            true => "",
            false => "other_namespaces = false",
        };
        let settings = format!(
            "{settings}\n[on_access]\n{elsewhere}\npaths = ['{}/protected']\n{}\n[[svm]]\naddress = '{}'\n",
            tmpfs.path().display(),
            on_access(settings),
            svm.address
        );
        let protected = tmpfs.path().join("protected");
        let settings = settings.replace("{protected}", protected.to_str().unwrap());
        let settings = settings
            .lines()
            .filter(|line| !line.starts_with(ON_ACCESS))
            .collect::<Vec<_>>()
            .join("\n");
        let agent = Agent::new(&site, &settings);
        Self {
            agent,
            svm,
            tmpfs,
            _site: site,
        }
    }

    pub fn started(settings: &str) -> Self {
        Self::started_as(settings, "blocking")
    }

    /// Started, with its protection in the given state.
    pub fn started_as(settings: &str, state: &str) -> Self {
        let mut world = Self::new(settings);
        world.agent.run();
        world.agent.wait_protection(state);
        world
    }

    pub fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        self.tmpfs.file(&format!("protected/{name}"), content)
    }
}

/// Begins a line of a test's settings that belongs into the section `on_access`.
const ON_ACCESS: &str = "on_access: ";

fn on_access(settings: &str) -> String {
    let own = settings
        .lines()
        .filter_map(|line| line.strip_prefix(ON_ACCESS));
    own.collect::<Vec<_>>().join("\n")
}

/// Whether it failed as a denied open does.
pub fn denied<T: std::fmt::Debug>(result: std::io::Result<T>) -> bool {
    match result {
        Ok(_) => false,
        Err(error) => {
            assert_eq!(error.raw_os_error(), Some(libc::EPERM), "{error}");
            true
        }
    }
}

/// A program that ends well, and something behind it.
pub fn program(extra: &[u8]) -> Vec<u8> {
    let mut bytes = fs::read("/bin/true").unwrap();
    bytes.extend_from_slice(extra);
    bytes
}

/// Opens in a thread; gives how it went and how long it took.
pub fn open_aside(path: &Path) -> mpsc::Receiver<(std::io::Result<File>, Duration)> {
    let (send, receive) = mpsc::channel();
    let path = path.to_owned();
    std::thread::spawn(move || {
        let started = Instant::now();
        let opened = File::open(path);
        let _ = send.send((opened, started.elapsed()));
    });
    receive
}
