//! What is known of a guest's protection, however it was found out.

use serde::Serialize;

/// All of it.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Facts {
    /// What is wrong with the settings.
    pub settings: Option<String>,
    /// Now, in seconds since 1970.
    pub now_s: u64,
    /// Whether the command may see all of this: root does.
    pub root: bool,
    /// The agent that runs.
    pub agent: Option<Agent>,
    /// Why none answers, if none does.
    pub no_agent: Option<String>,
    /// Whether the settings ask for on-access protection at all, and for how many paths.
    pub protected_paths: Option<usize>,
    /// The identity.
    pub identity: Identity,
    /// The Protection Server.
    pub svm: Connection,
    /// The Integration Server.
    pub server: Connection,
    /// Seconds by which the server's clock is ahead of this one's, where it is known.
    pub clock_off_s: Option<i64>,
    /// The last moment that the agent itself wrote down, in seconds since 1970.
    pub last_written_s: Option<u64>,
    /// Whether the kernel gives permission events; nothing where it could not be tried.
    pub kernel: Option<Result<(), String>>,
    /// Descriptors that the agent may have.
    pub descriptors: Option<u64>,
    /// The state folder.
    pub state: Disk,
    /// Other programs that may hold opens.
    pub holders: Vec<Holder>,
    /// Protected paths that are not covered, and why.
    pub gaps: Vec<Gap>,
}

/// An agent that runs.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Agent {
    /// `blocking`, `monitoring` or `off`.
    pub protection: String,
    /// Why.
    pub reason: Option<String>,
    /// Why protection is switched by an administrator, if it is.
    pub bypass: Option<String>,
    /// Whether a supervisor started it.
    pub supervised: bool,
    /// Files that were let through and wait to be scanned.
    pub waiting: u64,
    /// What is wrong with the site's policy here, if something is.
    pub policy: Option<String>,
}

/// The agent's identity.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Identity {
    /// It could not be looked at.
    #[default]
    Unknown,
    /// There is none.
    None,
    /// It cannot be used.
    Damaged(String),
    /// A certificate, from when to when it is valid, in seconds since 1970.
    Valid {
        /// From when.
        from_s: i64,
        /// Until when.
        until_s: i64,
    },
}

/// A session.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Connection {
    /// It was not tried.
    #[default]
    Unknown,
    /// There is one.
    Up,
    /// There is none: what was tried, and why it failed.
    Down(String),
}

/// The state folder's disk.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Disk {
    /// The folder.
    pub path: String,
    /// Whether the file system is mounted read-only.
    pub read_only: bool,
    /// Bytes that are free to root.
    pub free_bytes: Option<u64>,
    /// Why nothing can be written there.
    pub refused: Option<String>,
}

/// Another program with a fanotify group that may hold opens.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Holder {
    /// Its process.
    pub pid: u32,
    /// Its name.
    pub name: String,
}

/// A protected path that is not covered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Gap {
    /// Which.
    pub path: String,
    /// Why.
    pub reason: String,
}
