//! Where files are: one layout for a system, one for a folder.
//!
//! ```text
//!              system                          site in DIR
//! settings     /etc/palisade/agent.toml        DIR/etc/agent.toml
//! state        /var/lib/palisade/agent         DIR/var/agent
//! run files    /run/palisade/agent             DIR/run/agent
//! helpers      /usr/libexec/palisade           beside the running program
//! ```

use std::path::{Path, PathBuf};

/// A program's name within a site: `agent`, `server`, `scanserver`.
pub type Component = &'static str;

/// The layout in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Site {
    /// The machine's own.
    System,
    /// All in one folder: development, tests, `scripts/up --state DIR`.
    Folder(PathBuf),
}

impl Site {
    /// The folder's site, or the machine's when there is none.
    pub fn new(folder: Option<&Path>) -> Self {
        folder.map_or(Self::System, |dir| Self::Folder(dir.to_owned()))
    }

    /// A component's settings file, unless `--config` names another.
    pub fn settings(&self, component: Component) -> PathBuf {
        self.place("/etc/palisade", "etc")
            .join(component)
            .with_extension("toml")
    }

    /// A component's state: what must survive a restart.
    pub fn state(&self, component: Component) -> PathBuf {
        self.place("/var/lib/palisade", "var").join(component)
    }

    /// A component's run files: sockets, scratch, gone after a boot.
    pub fn run(&self, component: Component) -> PathBuf {
        self.place("/run/palisade", "run").join(component)
    }

    /// Helper programs: the engines' workers.
    ///
    /// # Errors
    /// When the running program's own path is unknown.
    pub fn helpers(&self) -> std::io::Result<PathBuf> {
        match self {
            Self::System => Ok(PathBuf::from("/usr/libexec/palisade")),
            Self::Folder(_) => Ok(std::env::current_exe()?
                .parent()
                .map_or_else(|| PathBuf::from("."), Path::to_owned)),
        }
    }

    fn place(&self, system: &str, folder: &str) -> PathBuf {
        match self {
            Self::System => PathBuf::from(system),
            Self::Folder(dir) => dir.join(folder),
        }
    }
}
