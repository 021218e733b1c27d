//! `palisade-agent run`: puts the parts together, and takes them apart.
//!
//! ```text
//!  probe started ─► runtime ─► identity ─► control, keeper ─► on-access ─► ready
//!  (before any                                                   │ ▲
//!   fanotify group)                         stop signal ◄────────┤ └─ policy: goes on by
//!                                     marks away ─► reader ends  │    other settings
//!                                       ─► tasks end             └─ policy: ends, to be
//!                                                                   started anew
//! ```
//!
//! Only composes; each part's rules are in its own module. What lasts whatever settings are
//! in force is [`Parts`], what changes with them [`running`].

mod parts;
mod running;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use palisade_daemon::lifecycle;
use palisade_protocol::policy::Policy;
use tokio::sync::Notify;

pub use self::parts::Parts;
use self::parts::follow_link;
use self::running::{Given, Running, Taken};
use crate::announce;
use crate::bypass::{BypassFile, To};
use crate::control::Policies;
use crate::current::Current;
use crate::exposure::watch::{self, Files};
use crate::exposure::windows::Cause;
use crate::fanotify::overlay::Seen;
use crate::fanotify::{group, overlay};
use crate::on_access::{Needs, OnAccess};
use crate::packaged::rpm;
use crate::policy::board::Board;
use crate::policy::kept;
use crate::policy::overlay::lay;
use crate::probe::Probe;
use crate::pulse::{Readers, Supervisor};
use crate::quarantine::rescan;
use crate::selftest::TestFiles;
use crate::settings::{Base, Folders, Settings};
use crate::supervise::record::RecordFile;
use crate::tasks::Tasks;
use crate::{enrol, state_file, status};

/// The agent asks for this many descriptors, if it may have them.
const FD_WANTED: u64 = 8192;
/// Threads for reading files; they are few, and end when idle.
const BLOCKING_THREADS: usize = 6;
/// After how long an agent runs well with its policy.
const PROVEN_AFTER: Duration = Duration::from_secs(30);
/// How long the end may take.
const GRACE: Duration = Duration::from_secs(2);

/// A runtime as every command uses it: one thread, and a few for reading files.
///
/// # Errors
/// The system's.
pub fn runtime() -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .thread_stack_size(512 * 1024)
        .build()
}

/// How the agent is run.
#[derive(Debug, Default)]
pub struct How {
    /// The supervisor that started it.
    pub supervisor: Option<Supervisor>,
    /// Why it must not hold opens, if it must not.
    pub fallback: Option<String>,
}

/// How the agent ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// It was told to, or protection was switched.
    Stopped,
    /// Its policy is applied by starting anew.
    Anew,
}

/// Runs the agent until it is told to stop.
///
/// # Errors
/// What keeps it from starting, or ends it.
pub fn run(base: Base, folders: &Folders, how: How) -> anyhow::Result<Ended> {
    std::fs::create_dir_all(&folders.state)
        .with_context(|| format!("the state folder {}", folders.state.display()))?;
    // A supervisor has it for both.
    let _claimed = match how.supervisor {
        Some(_) => None,
        None => Some(state_file::claim(&folders.state)?),
    };
    let kept = kept::Files::new(&folders.state);
    let choice = kept.begin();
    let laid = match &choice.policy {
        Some((policy, _)) => lay(&base, policy),
        None => lay(&base, &Policy::default()),
    };
    let board = Board::new(choice, laid.not_applied);
    let (noted, now) = (kept.clone(), board.clone());
    let outcome = start(base, folders, how, (kept, board, laid.settings));
    // Only what leaves no time to say so, a crash, speaks against the policy.
    // One that is applied by starting anew is not the one in force, and stays on trial.
    if let Some(print) = now.in_force()
        && let Err(error) = noted.ended(print)
    {
        tracing::warn!(%error, "that the policy was not at fault cannot be noted");
    }
    outcome
}

/// Runs with a policy.
fn start(
    base: Base,
    folders: &Folders,
    how: How,
    (kept, board, asked): (kept::Files, Board, Settings),
) -> anyhow::Result<Ended> {
    let switched = BypassFile::new(&folders.state).switched();
    if let Some(switched) = &switched {
        tracing::warn!(reason = %switched.reason, left = ?switched.left, "protection is switched: {:?}", switched.to);
    }
    let own = Given {
        base,
        kept,
        board,
        asked,
        switched,
        fallback: how.fallback.clone(),
    };
    let settings = own.switched(&own.asked);
    let descriptors = raise_descriptors();
    // Before any fanotify group exists: a forked child must never hold one.
    if settings.wants_packages() {
        // What it finds is taken in whenever it is there.
        drop(rpm::begin(&folders.state));
    }
    let probe = if settings.on_access.enabled && group::has_capability() {
        // A crash must not keep the openers waiting until a core file is written.
        nix::sys::prctl::set_dumpable(false).context("core files cannot be switched off")?;
        Some(Probe::start().context("the self-test's probe does not start")?)
    } else {
        None
    };
    let overlays = match probe {
        Some(_) => overlay::ask(folders),
        None => Seen::default(),
    };
    let runtime = runtime()?;
    let own = Own {
        given: own,
        probe: probe.map(|probe| Arc::new(Mutex::new(probe))),
        descriptors,
        overlays,
    };
    let outcome = runtime.block_on(serve(settings, folders, how, own));
    runtime.shutdown_timeout(GRACE);
    outcome
}

/// What is there before the runtime is.
struct Own {
    given: Given,
    probe: Option<Arc<Mutex<Probe>>>,
    descriptors: u64,
    overlays: Seen,
}

async fn serve(settings: Settings, folders: &Folders, how: How, own: Own) -> anyhow::Result<Ended> {
    let given = own.given;
    let protects = watch::protects(&given.asked);
    let listener = status::listen(&folders.run)
        .with_context(|| format!("the run folder {}", folders.run.display()))?;
    let mut stopping = std::pin::pin!(lifecycle::stop_requested());
    let membership = tokio::select! {
        membership = enrol::load_or_join(&settings, folders) => membership?,
        stop = &mut stopping => {
            stop?;
            return Ok(Ended::Stopped);
        }
    };
    let exposed = Files::new(&folders.state);
    let policies = Policies::default();
    let mut came = policies.subscribe();
    let parts = Parts::start(
        &settings,
        folders,
        &membership,
        exposed.load(&settings, protects),
        (policies, given.board.clone()),
    );
    let tasks = Tasks::start(
        &settings,
        folders,
        &parts,
        membership.identity.id().to_string(),
    )?;
    let (parent, pulse) = match &how.supervisor {
        Some(supervisor) => (Some(supervisor.try_clone()?), Some(supervisor.try_clone()?)),
        None => (None, None),
    };
    let needs = Needs {
        probe: own.probe,
        descriptors: own.descriptors,
        supervisor: pulse,
        off: given
            .switched
            .as_ref()
            .filter(|switched| switched.to == To::Off)
            .map(|switched| switched.reason.clone()),
        overlays: own.overlays,
        test_files: TestFiles::default(),
        readers: Readers::default(),
        deadlines: OnceLock::new(),
    };
    let (protection, mut failed) = OnAccess::start(&settings, &parts, &needs);
    if protects {
        let mut standing = BTreeSet::new();
        standing.extend(how.fallback.is_some().then_some(Cause::Fallback));
        standing.extend(given.switched.is_some().then_some(Cause::Bypass));
        parts.watch_exposure(&exposed, standing);
    }
    let mut source = parts.status_source(&membership, &settings, &protection);
    source.fallback = how.fallback;
    source.bypass = given
        .switched
        .as_ref()
        .map(|switched| switched.reason.clone());
    source.supervised = how
        .supervisor
        .is_some()
        .then(|| RecordFile::new(&folders.state).load());
    let source = Current::new(source);
    let asked = Arc::new(Notify::new());
    let told = [Arc::clone(&parts.spooled), Arc::clone(&asked)];
    tokio::spawn(status::serve(listener, source.clone(), told));
    let bypass = BypassFile::new(&folders.state);
    tokio::spawn(announce::run(
        parts.link.clone(),
        Arc::clone(&parts.index),
        settings.scan.options(),
    ));
    tokio::spawn(rescan::follow(
        parts.rescan.clone(),
        folders.state.clone(),
        parts.cache.definitions(),
    ));
    tokio::spawn(follow_link(
        parts.link.clone(),
        parts.health.clone(),
        Arc::clone(&parts.cache),
        parts.listener(folders),
        Arc::clone(&parts.max_scan_bytes),
    ));
    tracing::info!(id = %membership.identity.id(), version = crate::VERSION, "the agent runs");
    lifecycle::ready();
    if let Some(supervisor) = &how.supervisor {
        supervisor.ready();
    }
    let mut running = Running {
        settings,
        given,
        parts,
        needs,
        tasks,
        protection,
        source,
    };
    let mut gone = std::pin::pin!(gone(parent));
    let switched = running.given.switched.clone();
    let mut switching = std::pin::pin!(bypass.changed(switched.as_ref(), asked));
    // Heard while a policy is taken in, too: that waits for disks.
    let mut ordered = std::pin::pin!(async {
        tokio::select! {
            stop = &mut stopping => stop.map(|()| Ended::Stopped).map_err(Into::into),
            () = &mut switching => {
                tracing::warn!("protection is switched: the agent ends, to be started anew");
                Ok(Ended::Stopped)
            }
            () = &mut gone => {
                tracing::error!("the supervisor is gone, and the agent with it");
                Ok(Ended::Stopped)
            }
        }
    });
    let mut proven = std::pin::pin!(tokio::time::sleep(PROVEN_AFTER));
    let mut is_proven = false;
    let outcome: anyhow::Result<Ended> = loop {
        tokio::select! {
            ended = &mut ordered => break ended,
            Some(error) = failed.recv() => {
                break Err(anyhow::anyhow!("on-access protection ended: {error}"));
            }
            Ok(()) = came.changed() => {
                let Some(policy) = came.borrow_and_update().clone() else { continue };
                let taken = tokio::select! {
                    taken = running.take(&policy, folders) => taken,
                    ended = &mut ordered => break ended,
                };
                match taken {
                    Taken::Not => {}
                    Taken::InForce(next) => {
                        if let Some(next) = next {
                            failed = next;
                        }
                        is_proven = false;
                        proven.as_mut().reset(tokio::time::Instant::now() + PROVEN_AFTER);
                    }
                    Taken::Anew => {
                        tracing::info!("the policy is applied by starting the agent anew");
                        break Ok(Ended::Anew);
                    }
                }
            }
            () = &mut proven, if !is_proven => {
                is_proven = running.protects_as_asked();
                if is_proven {
                    tokio::select! {
                        () = running.given.note_proven() => {}
                        ended = &mut ordered => break ended,
                    }
                } else {
                    proven.as_mut().reset(tokio::time::Instant::now() + PROVEN_AFTER);
                }
            }
        }
    };
    lifecycle::stopping();
    tracing::info!("the agent stops");
    let Running {
        parts,
        tasks,
        protection,
        ..
    } = running;
    drop(protection);
    tasks.stop(folders).await;
    parts.cache.keeper().close();
    if protects && let Err(error) = exposed.save(&parts.deferred, true, true) {
        tracing::warn!(%error, "files that wait to be scanned cannot be kept on the disk");
    }
    let _ = std::fs::remove_file(status::socket(&folders.run));
    outcome
}

async fn gone(supervisor: Option<Supervisor>) {
    match supervisor {
        Some(supervisor) => supervisor.gone().await,
        None => std::future::pending().await,
    }
}

/// Raises the soft limit of descriptors; gives the limit in force.
fn raise_descriptors() -> u64 {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else {
        return 1024;
    };
    let wanted = hard.min(FD_WANTED).max(soft);
    match setrlimit(Resource::RLIMIT_NOFILE, wanted, hard) {
        Ok(()) => wanted,
        Err(_) => soft,
    }
}
