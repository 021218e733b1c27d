//! The Light Agent: protects a guest's files by verdicts of a Protection Server.
//!
//! ```text
//!  open()/exec ─► fanotify ─► decide ─┬─ trivial or remembered ─► answered at once
//!                    │                └─ guard ─► scanner ─► link ═══► Protection Server
//!                 deadline ─► failure table               ▲
//!  command ────────► scan (walk) ─────────────────────────┘
//!  tasks (clock, command) ─┘
//!
//!  Integration Server ◄═══ control ─► list ─► selection ─► link
//!                             ▲
//!                           spool ◄─ detections
//! ```
//!
//! | module | owns |
//! | --- | --- |
//! | [`settings`] | what may be set, defaults and bounds |
//! | [`fanotify`] | the kernel's events: read, and answered exactly once |
//! | [`decide`], [`failure`] | what an event is answered; pure |
//! | [`accounts`] | where every event went |
//! | [`deadline`], [`threads`] | answers in time, whatever is stuck |
//! | [`stamp`], [`lease`], [`cache`] | remembered verdicts, also over a restart, and when they may be used |
//! | [`marks`] | clean files that the kernel asks no more about |
//! | [`content`] | hashing and reading by descriptor |
//! | [`lookup`] | many contents asked about in one message |
//! | [`link`], [`selection`] | the session with a Protection Server, and with which |
//! | [`scanner`], [`pace`] | one file's way to a verdict, and how retries are spread |
//! | [`deferred`], [`exposure`] | what was let through without a verdict, scanned later; when that was |
//! | [`guard`] | on-access scans from the queue to the answer |
//! | [`container`] | in which container an opener of malware runs |
//! | [`learn`] | which folders and programs cost how much |
//! | [`index`], [`again`], [`announce`] | files whose content was clean and is malware by newer definitions; which are held, told to a Protection Server that does not know |
//! | [`quarantine`] | what is done about malware besides denying its opens |
//! | [`selftest`], [`probe`] | whether opens are really blocked |
//! | [`packaged`] | files that are as their package has them |
//! | [`scan`] | on-demand scans: what they cover, walk, report, command |
//! | [`tasks`] | scans in the background: schedules, pause and resume, what survives a restart |
//! | [`policy`], [`current`] | what the site has set for this guest; values that are replaced while in use |
//! | [`control`], [`list`], [`spool`] | the session with the Integration Server, and what survives its absence |
//! | [`supervise`], [`pulse`] | the process that ends a stuck agent, and what it hears |
//! | [`health`], [`status`] | what the agent says of itself |
//! | [`state_file`] | a small file of the state folder, replaced whole |
//! | [`doctor`], [`bundle`] | what is wrong with this guest's protection; all of it in one file |
//! | [`generalize`] | what makes a guest a template |
//! | [`maintenance`] | stopping and removing the agent, with leave |
//! | [`enrol`], [`daemon`], [`cli`] | the commands |
//!
//! **Invariant:** a guest's open is always answered, at the latest by its
//! deadline. **Invariant:** what was not scanned is never called clean.

#![deny(unsafe_code)]

pub mod accounts;
pub mod again;
pub mod announce;
pub mod bundle;
pub mod bypass;
pub mod cache;
pub mod cli;
pub mod container;
pub mod content;
pub mod control;
pub mod current;
pub mod daemon;
pub mod deadline;
pub mod decide;
pub mod deferred;
pub mod doctor;
pub mod enrol;
pub mod exposure;
pub mod failure;
pub mod fanotify;
mod forecast;
pub mod generalize;
pub mod guard;
pub mod health;
mod hedge;
pub mod index;
pub mod learn;
pub mod lease;
pub mod link;
pub mod list;
pub mod lookup;
pub mod maintenance;
pub mod marks;
pub mod mode;
pub mod on_access;
pub mod pace;
pub mod packaged;
pub mod policy;
pub mod private;
pub mod probe;
pub mod pulse;
pub mod quarantine;
pub mod scan;
pub mod scanner;
pub mod selection;
pub mod selftest;
pub mod settings;
pub mod spool;
pub mod stamp;
pub mod state_file;
pub mod status;
pub mod supervise;
pub mod tasks;
pub mod threads;

/// The agent's version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
