//! `palisade-agent status`: what the running agent says of itself.
//!
//! The daemon serves one JSON object to whoever connects to `agent.sock` in the
//! run folder; the command reads it ([`people`] and [`failures`] show it). A connection also makes the daemon look into
//! the spool, which is how an on-demand scan hands over its findings.

pub mod failures;
pub mod people;

use std::collections::BTreeMap;
use std::io::{self, Read as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use palisade_daemon::{local, logging};
use palisade_protocol::control::Protection;
use serde::Serialize;
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixListener;
use tokio::sync::{Notify, Semaphore, watch};

use crate::accounts::{Accounts, Snapshot};
use crate::current::Current;
use crate::deferred::{self, Deferred};
use crate::failure::Table;
use crate::fanotify::coverage::Coverage;
use crate::fanotify::places::Gap;
use crate::fanotify::unseen::{self, Unseen};
use crate::health::{Health, ServerState};
use crate::learn::{self, Learned};
use crate::marks::{self, Marks};
use crate::policy;
use crate::policy::board::Board;
use crate::selection::explained::Explanation;
use crate::selection::{self, LinkState};
use crate::spool::Spool;
use crate::supervise::breaker::{Ending, Record};

/// Readers at a time.
const MAX_READERS: usize = 8;
/// How long one may take.
const READER_TIMEOUT: Duration = Duration::from_secs(5);
/// Largest answer that the command takes, in bytes.
const MAX_ANSWER_BYTES: u64 = 1024 * 1024;

/// The socket in a run folder.
pub fn socket(run: &Path) -> PathBuf {
    run.join("agent.sock")
}

/// Who the agent is.
#[derive(Debug, Clone, Serialize)]
pub struct AgentPart {
    /// Its SPIFFE id.
    pub id: String,
    /// Its name for people.
    pub name: String,
    /// Its version.
    pub version: &'static str,
    /// Its process.
    pub pid: u32,
    /// Seconds since it started.
    pub uptime_s: u64,
}

/// On-access protection.
#[derive(Debug, Clone, Serialize)]
pub struct ProtectionPart {
    /// `blocking`, `monitoring` or `off`.
    pub state: &'static str,
    /// Why it is off, or why opens are not held although the settings say so.
    pub reason: Option<String>,
    /// Why an administrator, or the kernel's command line, has switched it, if one has.
    pub bypass: Option<String>,
    /// Protected paths.
    pub paths: Vec<String>,
    /// File systems that are marked.
    pub file_systems: usize,
    /// Mount namespaces besides the agent's own that were looked at.
    pub namespaces: usize,
    /// What was to be protected and is not.
    pub gaps: Vec<Gap>,
    /// What the kernel asks nobody about.
    pub unseen: Vec<Unseen>,
}

/// The supervisor.
#[derive(Debug, Clone, Serialize)]
pub struct SupervisorPart {
    /// How often it had to start the agent again, ever.
    pub restarts: u64,
    /// Why, the last time.
    pub last: Option<&'static str>,
}

/// The Protection Server in force.
#[derive(Debug, Clone, Serialize)]
pub struct SvmPart {
    /// Its id.
    pub id: Option<String>,
    /// Its name for people.
    pub name: Option<String>,
    /// Where it was reached.
    pub address: Option<String>,
    /// Why there is none.
    pub reason: Option<String>,
    /// The definitions in force there, by engine.
    pub definitions: BTreeMap<String, u64>,
}

/// The spool.
#[derive(Debug, Clone, Serialize)]
pub struct SpoolPart {
    /// Batches that wait.
    pub waiting: usize,
    /// Detections that were dropped.
    pub dropped: u64,
}

/// The whole answer.
#[derive(Debug, Clone, Serialize)]
pub struct Status {
    /// Who the agent is.
    pub agent: AgentPart,
    /// The supervisor, if one runs it.
    pub supervisor: Option<SupervisorPart>,
    /// On-access protection.
    pub protection: ProtectionPart,
    /// The Protection Server in force.
    pub svm: SvmPart,
    /// Which Protection Servers there are, and why this one is used.
    pub selection: selection::explained::Shown,
    /// The session with the Integration Server.
    pub server: ServerState,
    /// Milliseconds by which its clock is ahead of this one's, where it is known.
    pub clock_off_ms: Option<i64>,
    /// Where permission events went.
    pub events: Snapshot,
    /// Where files went that were closed after writing; nobody waits for these.
    pub writes: Snapshot,
    /// Files whose verdict is remembered.
    pub cached_files: usize,
    /// Contents whose verdict outlives the agent.
    pub kept_verdicts: crate::cache::writer::Snapshot,
    /// Files that the kernel asks no more about.
    pub ignore_marks: marks::Snapshot,
    /// The failure table in force, by reason: what open and exec are answered.
    pub failure_table: failures::Answers,
    /// Detections that wait for the Integration Server.
    pub spool: SpoolPart,
    /// Lines of the log that could not be written.
    pub log_lines_lost: u64,
    /// The guest's time without verdicts, and what came of it.
    pub exposure: deferred::Snapshot,
    /// What costs how much, where settings ask for it (`on_access.mode = "learn"`).
    pub learned: Option<learn::Snapshot>,
    /// What the site has set for this guest.
    pub policy: policy::board::Shown,
}

/// Makes answers.
#[derive(Clone)]
pub struct Source {
    /// SPIFFE id and name.
    pub identity: (String, String),
    /// The state.
    pub health: Health,
    /// Where written files went.
    pub writes: Arc<Accounts>,
    /// The session.
    pub link: watch::Receiver<LinkState>,
    /// Why this one.
    pub explanation: watch::Receiver<Arc<Explanation>>,
    /// The spool.
    pub spool: Spool,
    /// The failure table.
    pub table: Table,
    /// What is remembered.
    pub cache: Arc<crate::cache::Cache>,
    /// What was let through without a verdict.
    pub deferred: Deferred,
    /// What costs how much.
    pub learned: Option<Learned>,
    /// Protected paths.
    pub paths: Vec<String>,
    /// What is marked, and the gaps.
    pub coverage: Coverage,
    /// Files that the kernel asks no more about.
    pub marks: Marks,
    /// Why opens are not held although the settings say so.
    pub fallback: Option<String>,
    /// Why protection is switched by an administrator, if it is.
    pub bypass: Option<String>,
    /// What the supervisor has kept, if one runs the agent.
    pub supervised: Option<Record>,
    /// The policy in force.
    pub board: Board,
}

impl Source {
    /// The status now.
    pub fn status(&self) -> Status {
        let posture = self.health.posture().borrow().clone();
        let covered = self.coverage.now();
        let (state, reason) = match posture.protection {
            Protection::Blocking => ("blocking", None),
            Protection::Monitoring => {
                let reason = self.fallback.as_ref().or(self.bypass.as_ref());
                ("monitoring", reason.cloned())
            }
            Protection::Off { reason } => ("off", Some(reason.as_str().to_owned())),
        };
        Status {
            agent: AgentPart {
                id: self.identity.0.clone(),
                name: self.identity.1.clone(),
                version: crate::VERSION,
                pid: std::process::id(),
                uptime_s: self.health.started.elapsed().as_secs(),
            },
            supervisor: self.supervised.as_ref().map(|record| SupervisorPart {
                restarts: record.restarts,
                last: record.last.map(Ending::as_str),
            }),
            protection: ProtectionPart {
                state,
                reason,
                bypass: self.bypass.clone(),
                paths: self.paths.clone(),
                file_systems: covered.file_systems,
                namespaces: covered.namespaces,
                gaps: covered.gaps,
                unseen: unseen::now(),
            },
            svm: svm_part(&self.link.borrow()),
            selection: self.explanation.borrow().shown(Instant::now()),
            server: self.health.server(),
            clock_off_ms: self.health.clock_off_ms(),
            events: self.health.accounts().snapshot(),
            writes: self.writes.snapshot(),
            cached_files: self.cache.len(),
            kept_verdicts: self.cache.keeper().snapshot(),
            ignore_marks: self.marks.snapshot(),
            failure_table: failures::answers(&self.table),
            spool: SpoolPart {
                waiting: self.spool.waiting(),
                dropped: self.spool.dropped(),
            },
            log_lines_lost: logging::lost(),
            exposure: self.deferred.snapshot(),
            learned: self.learned.as_ref().map(Learned::snapshot),
            policy: self.board.shown(),
        }
    }
}

fn svm_part(state: &LinkState) -> SvmPart {
    match state {
        LinkState::Up { link, .. } => SvmPart {
            id: Some(link.id.to_string()),
            name: Some(link.name.clone()),
            address: Some(link.address.to_string()),
            reason: None,
            definitions: link
                .welcome
                .generations
                .iter()
                .map(|engine| (engine.engine.as_str().to_owned(), engine.generation.0))
                .collect(),
        },
        LinkState::Down { reason, .. } => SvmPart {
            id: None,
            name: None,
            address: None,
            reason: Some(reason.to_string()),
            definitions: BTreeMap::new(),
        },
    }
}

/// Opens the socket. One agent runs per run folder.
///
/// # Errors
/// When another agent answers there, or the folder cannot be used.
pub fn listen(run: &Path) -> io::Result<UnixListener> {
    let path = socket(run);
    if local::is_served(&path) {
        return Err(io::Error::new(
            io::ErrorKind::AddrInUse,
            format!("another agent runs with {}; stop it first", path.display()),
        ));
    }
    local::listen(&path)
}

/// Answers readers for ever. Whoever connects has all of `told` look at what is on the disk.
pub async fn serve(listener: UnixListener, source: Current<Source>, told: [Arc<Notify>; 2]) {
    let readers = Arc::new(Semaphore::new(MAX_READERS));
    loop {
        let Ok(reader) = Arc::clone(&readers).acquire_owned().await else {
            return;
        };
        let Ok((mut stream, _)) = listener.accept().await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        told.iter().for_each(|told| told.notify_one());
        let source = source.get();
        tokio::spawn(async move {
            let answer = tokio::task::spawn_blocking(move || serde_json::to_vec(&source.status()));
            if let Ok(Ok(answer)) = answer.await {
                let _ = tokio::time::timeout(READER_TIMEOUT, stream.write_all(&answer)).await;
            }
            drop(reader);
        });
    }
}

/// Asks the running agent; says how to start one, if none runs.
///
/// # Errors
/// When none runs, or it does not answer.
pub fn ask_running(run: &Path) -> anyhow::Result<serde_json::Value> {
    ask(run).with_context(|| {
        format!(
            "the agent is not running: {} does not answer; start it with `palisade-agent run` \
             or `systemctl start palisade-agent`",
            socket(run).display()
        )
    })
}

/// Asks the running agent.
///
/// # Errors
/// When none runs, or it does not answer.
pub fn ask(run: &Path) -> io::Result<serde_json::Value> {
    let stream = UnixStream::connect(socket(run))?;
    stream.set_read_timeout(Some(READER_TIMEOUT))?;
    let mut text = String::new();
    stream.take(MAX_ANSWER_BYTES).read_to_string(&mut text)?;
    Ok(serde_json::from_str(&text)?)
}
