//! The daemon's side of an engine: start the program, spawn workers, scan.
//!
//! ```text
//! EngineProcess::start ──► (EngineProcess, Loaded)        or StartError
//! EngineProcess::spawn_worker ──► WorkerHandle            or SpawnError
//! WorkerHandle::scan ──► ScanDone                         or WorkerError, and the worker is gone
//! ```
//!
//! Plain blocking code for plain threads: one thread per [`WorkerHandle`], any
//! number that spawn. One more thread per engine reads what the zygote reports.
//!
//! **Invariant.** Nothing outlives its handle: a dropped [`WorkerHandle`] kills its
//! worker, a dropped [`EngineProcess`] ends the zygote, all its workers, and waits
//! for them.

mod cpu;
mod process;
mod worker;

pub use crate::content::{ContentError, MemFile, SealedContent};
pub use crate::ipc::IpcError;
pub use crate::message::{
    DefinitionProblem, Detail, Loaded, MemberName, Metadatum, NotScanned, Outcome, ScanDone,
    ScanOptions, WorkerExit, WorkerId,
};
pub use process::{EngineCommand, EngineProcess};
pub use worker::{KillSwitch, Member, WorkerHandle};

use std::io;
use std::path::PathBuf;

/// Why an engine could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The program could not be run.
    #[error("cannot run the engine program {}: {source}", program.display())]
    Program {
        /// The program.
        program: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The definitions cannot be used: file, line and reason of each problem.
    #[error("the definitions cannot be used: {}", list(.0))]
    Definitions(Vec<DefinitionProblem>),
    /// The program ended before it had loaded anything.
    #[error("the engine program {} ended while loading ({status}); its messages are in the log", program.display())]
    Ended {
        /// The program.
        program: PathBuf,
        /// How it ended.
        status: String,
    },
    /// It did not load in time, and was killed.
    #[error("the engine program {} did not finish loading in time", program.display())]
    TimedOut {
        /// The program.
        program: PathBuf,
    },
    /// It loaded, and its first worker does not serve.
    #[error("the engine program {} gives no worker: {source}", program.display())]
    NoWorker {
        /// The program.
        program: PathBuf,
        /// Why the worker does not serve.
        source: SpawnError,
    },
    /// It said something else than it should.
    #[error("the engine program {} said something unexpected: {source}", program.display())]
    Protocol {
        /// The program.
        program: PathBuf,
        /// What was wrong with it.
        source: IpcError,
    },
}

fn list(problems: &[DefinitionProblem]) -> String {
    problems
        .iter()
        .map(ToString::to_string)
        .collect::<Vec<_>>()
        .join("; ")
}

/// Why a worker could not be spawned.
#[derive(Debug, thiserror::Error)]
pub enum SpawnError {
    /// The engine process is gone; a new one has to be started.
    #[error("the engine process is gone")]
    EngineGone,
    /// The worker did not find its canary: an engine that finds nothing.
    #[error("the worker did not find its canary: {detail}")]
    CanaryMissed {
        /// What happened instead.
        detail: String,
    },
    /// The worker could not enter its sandbox.
    #[error("the worker could not enter its sandbox: {detail}")]
    SandboxFailed {
        /// Which step failed, and why.
        detail: String,
    },
    /// It ended before it served.
    #[error("the worker ended before it served ({exit})")]
    Exited {
        /// What ended it.
        exit: WorkerExit,
    },
    /// It did not serve in time, and was killed.
    #[error("the worker did not serve in time")]
    TimedOut,
    /// Its channel failed.
    #[error("the worker's channel: {0}")]
    Channel(#[from] IpcError),
}

/// Why a scan gave no result. The worker is gone after any of these: spawn another.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// The deadline passed; the worker was killed.
    #[error("the scan passed its deadline and its worker was killed")]
    TimedOut,
    /// The processor time was used up; the worker was killed.
    #[error("the scan used up its processor time and its worker was killed")]
    OutOfCpuTime,
    /// The worker died in the scan.
    #[error("the worker died{}", exit.as_ref().map(|exit| format!(": {exit}")).unwrap_or_default())]
    Died {
        /// What ended it, if the zygote could tell.
        exit: Option<WorkerExit>,
    },
    /// The worker broke the protocol, or its bounds, and was killed.
    #[error("the worker broke the protocol and was killed: {detail}")]
    Protocol {
        /// How.
        detail: String,
    },
    /// The worker no longer finds its canary, and ended.
    #[error("the worker no longer finds its canary: {detail}")]
    CanaryMissed {
        /// What happened instead.
        detail: String,
    },
}
