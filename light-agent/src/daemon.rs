//! `palisade-agent run`: puts the parts together, and takes them apart.
//!
//! ```text
//!  probe started ─► runtime ─► identity ─► control, keeper ─► on-access ─► ready
//!  (before any                                                   │
//!   fanotify group)                         stop signal ◄────────┘
//!                                     marks away ─► reader ends ─► tasks end
//! ```
//!
//! Only composes; each part's rules are in its own module.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use palisade_daemon::lifecycle;
use palisade_daemon::membership::Membership;
use palisade_protocol::bounded::PathBytes;
use palisade_protocol::ids::TenantId;
use tokio::sync::{Notify, watch as watched};

use crate::accounts::Accounts;
use crate::again::{self, Again};
use crate::announce;
use crate::bypass::{BypassFile, Switched, To};
use crate::cache::Cache;
use crate::cache::kept::Kept;
use crate::cache::writer::Keeper;
use crate::control::Control;
use crate::deferred::Deferred;
use crate::deferred::drain::Drain;
use crate::exposure::watch::{self, Files};
use crate::exposure::windows::Cause;
use crate::fanotify::overlay::Seen;
use crate::fanotify::{group, overlay};
use crate::health::Health;
use crate::index::Index;
use crate::learn::Learned;
use crate::link::Link;
use crate::list::ListFile;
use crate::maintenance::TokenFile;
use crate::mode::Mode;
use crate::on_access::{Needs, OnAccess};
use crate::packaged::rpm;
use crate::private::Private;
use crate::probe::Probe;
use crate::pulse::Supervisor;
use crate::quarantine::escrow::Escrow;
use crate::quarantine::remedies::Remedies;
use crate::quarantine::rescan::{self, Rescan};
use crate::scanner::Scanner;
use crate::selection::explained::Explanation;
use crate::selection::{Choice, LinkState, Source, keep};
use crate::settings::{Folders, Settings};
use crate::spool::Spool;
use crate::supervise::record::RecordFile;
use crate::tasks::Tasks;
use crate::{enrol, spool, state_file, status};

/// The agent asks for this many descriptors, if it may have them.
const FD_WANTED: u64 = 8192;
/// Threads for reading files; they are few, and end when idle.
const BLOCKING_THREADS: usize = 6;
/// How often an agent asks which definitions are in force: where nothing is opened that
/// it does not know, no verdict says it.
const ASK_DEFINITIONS: Duration = Duration::from_secs(300);
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

/// Runs the agent until it is told to stop.
///
/// # Errors
/// What keeps it from starting, or ends it.
pub fn run(mut settings: Settings, folders: &Folders, how: How) -> anyhow::Result<()> {
    let protects = watch::protects(&settings);
    let switched = BypassFile::new(&folders.state).switched();
    match &switched {
        Some(switched) if switched.to == To::Off => settings.on_access.enabled = false,
        Some(_) => settings.on_access.mode = Mode::Monitor,
        None => {}
    }
    if let Some(switched) = &switched {
        tracing::warn!(reason = %switched.reason, left = ?switched.left, "protection is switched: {:?}", switched.to);
    }
    if how.fallback.is_some() {
        settings.on_access.mode = Mode::Monitor;
    }
    std::fs::create_dir_all(&folders.state)
        .with_context(|| format!("the state folder {}", folders.state.display()))?;
    // A supervisor has it for both.
    let _claimed = match how.supervisor {
        Some(_) => None,
        None => Some(state_file::claim(&folders.state)?),
    };
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
        protects,
        probe,
        descriptors,
        switched,
        overlays,
    };
    let outcome = runtime.block_on(serve(&settings, folders, how, own));
    runtime.shutdown_timeout(GRACE);
    outcome
}

/// What is there before the runtime is.
struct Own {
    /// Whether settings ask for it, whatever is switched.
    protects: bool,
    probe: Option<Probe>,
    descriptors: u64,
    switched: Option<Switched>,
    overlays: Seen,
}

async fn serve(settings: &Settings, folders: &Folders, how: How, own: Own) -> anyhow::Result<()> {
    let listener = status::listen(&folders.run)
        .with_context(|| format!("the run folder {}", folders.run.display()))?;
    let mut stopping = std::pin::pin!(lifecycle::stop_requested());
    let membership = tokio::select! {
        membership = enrol::load_or_join(settings, folders) => membership?,
        stop = &mut stopping => return Ok(stop?),
    };
    let exposed = Files::new(&folders.state);
    let parts = Parts::start(
        settings,
        folders,
        &membership,
        exposed.load(settings, own.protects),
    );
    let tasks = Tasks::start(
        settings,
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
        off: own
            .switched
            .as_ref()
            .filter(|switched| switched.to == To::Off)
            .map(|switched| switched.reason.clone()),
        overlays: own.overlays,
    };
    let (protection, mut failed) = OnAccess::start(settings, &parts, needs);
    let mut source = parts.status_source(&membership, settings, &protection);
    if own.protects {
        let mut standing = BTreeSet::new();
        standing.extend(how.fallback.is_some().then_some(Cause::Fallback));
        standing.extend(own.switched.is_some().then_some(Cause::Bypass));
        parts.watch_exposure(settings, &exposed, standing);
    }
    source.fallback = how.fallback;
    source.bypass = own
        .switched
        .as_ref()
        .map(|switched| switched.reason.clone());
    source.supervised = how
        .supervisor
        .is_some()
        .then(|| RecordFile::new(&folders.state).load());
    let asked = Arc::new(Notify::new());
    let told = [Arc::clone(&parts.spooled), Arc::clone(&asked)];
    tokio::spawn(status::serve(listener, source, told));
    let bypass = BypassFile::new(&folders.state);
    tokio::spawn(parts.rescan(settings, folders));
    tokio::spawn(announce::run(
        parts.link.clone(),
        Arc::clone(&parts.index),
        settings.scan.options(),
    ));
    tokio::spawn(follow_link(
        parts.link.clone(),
        parts.health.clone(),
        Arc::clone(&parts.cache),
        parts.listener(settings, folders),
        Arc::clone(&parts.max_scan_bytes),
    ));
    tracing::info!(id = %membership.identity.id(), version = crate::VERSION, "the agent runs");
    lifecycle::ready();
    if let Some(supervisor) = &how.supervisor {
        supervisor.ready();
    }
    let outcome = tokio::select! {
        stop = &mut stopping => stop.map_err(Into::into),
        () = bypass.changed(own.switched.as_ref(), asked) => {
            tracing::warn!("protection is switched: the agent ends, to be started anew");
            Ok(())
        }
        () = gone(parent) => {
            tracing::error!("the supervisor is gone, and the agent with it");
            Ok(())
        }
        Some(error) = failed.recv() => Err(anyhow::anyhow!("on-access protection ended: {error}")),
    };
    lifecycle::stopping();
    tracing::info!("the agent stops");
    drop(protection);
    tasks.stop(folders).await;
    parts.cache.keeper().close();
    if own.protects
        && let Err(error) = exposed.save(&parts.deferred, true, true)
    {
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

/// What on-access and on-demand protection share.
pub struct Parts {
    /// Whose guest this is.
    pub tenant: TenantId,
    /// Where every permission event went.
    pub accounts: Arc<Accounts>,
    /// Where every file went that was closed after writing.
    pub writes: Arc<Accounts>,
    /// What the agent says of itself.
    pub health: Health,
    /// Remembered verdicts.
    pub cache: Arc<Cache>,
    /// Files whose content was clean.
    pub index: Arc<Index>,
    /// What was let through without a verdict.
    pub deferred: Deferred,
    /// What costs how much, where settings ask for it.
    pub learned: Option<Learned>,
    /// The session with a Protection Server.
    pub link: watched::Receiver<LinkState>,
    /// Why with this one.
    pub explanation: watched::Receiver<Arc<Explanation>>,
    /// Detections that wait.
    pub spool: Spool,
    /// Told when some were added.
    pub spooled: Arc<Notify>,
    /// Takes detections.
    pub detections: spool::Sender,
    /// What is done about malware, besides denying its opens.
    pub remedies: Remedies,
    /// Largest content that is scanned; 0 while no Protection Server is connected.
    pub max_scan_bytes: Arc<AtomicU64>,
}

impl Parts {
    fn start(
        settings: &Settings,
        folders: &Folders,
        membership: &Membership,
        deferred: Deferred,
    ) -> Self {
        let accounts = Arc::new(Accounts::default());
        let health = Health::new(Arc::clone(&accounts));
        let spool = Spool::new(&folders.state);
        let spooled = Arc::new(Notify::new());
        let file = ListFile::new(&folders.state);
        let lists = watched::Sender::new(file.load().map(Arc::new));
        let source = if settings.svm.is_empty() {
            Source::List(lists.subscribe())
        } else {
            Source::Static(settings.svm.clone())
        };
        let remedies = Remedies::new(settings, folders);
        let choice = Choice {
            policy: settings.selection,
            spare: true,
            notices: true,
        };
        let kept = keep(membership.identity.clone(), source, choice);
        let control = Control {
            membership: membership.clone(),
            host: settings.host_facts(),
            lists,
            file,
            spool: spool.clone(),
            spooled: Arc::clone(&spooled),
            health: health.clone(),
            escrow: Escrow::new(remedies.vault()),
            token: TokenFile::new(&folders.state),
            deferred: deferred.clone(),
            explanation: kept.explanation.clone(),
        };
        tokio::spawn(control.run());
        let tenant = membership.identity.id().role.tenant().cloned();
        let files = settings.on_access.cache_files;
        let keeper = match settings.on_access.enabled && files > 0 {
            true => {
                let age_s = settings.on_access.max_verdict_age_s;
                let kept = Kept::new(files, settings.scan.options(), age_s);
                Keeper::start(&folders.state, &membership.identity, kept)
            }
            false => Keeper::default(),
        };
        Self {
            tenant: tenant.unwrap_or_else(TenantId::default_tenant),
            cache: Arc::new(Cache::new(files).keeping(keeper)),
            index: Arc::default(),
            deferred,
            learned: (settings.on_access.mode == Mode::Learn).then(Learned::default),
            link: kept.state,
            explanation: kept.explanation,
            detections: spool::start(&spool, Arc::clone(&spooled)),
            remedies,
            max_scan_bytes: Arc::default(),
            accounts,
            writes: Arc::default(),
            health,
            spool,
            spooled,
        }
    }

    /// Whoever hears of contents that turned out to be malware.
    fn listener(&self, settings: &Settings, folders: &Folders) -> again::Listener {
        let again = self.again(settings);
        let (cache, index) = (Arc::clone(&self.cache), Arc::clone(&self.index));
        again::start(again, cache, index, folders.state.clone())
    }

    fn again(&self, settings: &Settings) -> Again {
        Again {
            scanner: Scanner::new(self.link.clone(), 1, settings.scan.options())
                .keeping(Private::new(&settings.private)),
            detections: self.detections.clone(),
            remedies: self.remedies.clone(),
            tenant: self.tenant.clone(),
        }
    }

    /// Scans later what was let through without a verdict, and keeps account of it.
    fn watch_exposure(&self, settings: &Settings, files: &Files, standing: BTreeSet<Cause>) {
        let drain = Drain {
            deferred: self.deferred.clone(),
            link: self.link.clone(),
            again: self.again(settings),
            index: Arc::clone(&self.index),
        };
        tokio::spawn(drain.run());
        let (link, posture) = (self.link.clone(), self.health.posture());
        let (files, deferred) = (files.clone(), self.deferred.clone());
        tokio::spawn(watch::watch(files, deferred, link, posture, standing));
    }

    /// Looks at the quarantine whenever definitions change.
    fn rescan(
        &self,
        settings: &Settings,
        folders: &Folders,
    ) -> impl Future<Output = ()> + Send + use<> {
        let scanner = Scanner::new(self.link.clone(), 1, settings.scan.options())
            .keeping(Private::new(&settings.private));
        let vault = self.remedies.vault().clone();
        let restore_clean = settings.quarantine.restore_clean;
        let rescan = Rescan::new(vault, &scanner, &settings.private, restore_clean);
        rescan::follow(rescan, folders.state.clone(), self.cache.definitions())
    }

    fn status_source(
        &self,
        membership: &Membership,
        settings: &Settings,
        protection: &OnAccess,
    ) -> status::Source {
        let show = |path: &std::path::PathBuf| PathBytes::from_path(path).to_string();
        status::Source {
            identity: (
                membership.identity.id().to_string(),
                membership.name.clone(),
            ),
            health: self.health.clone(),
            writes: Arc::clone(&self.writes),
            link: self.link.clone(),
            explanation: self.explanation.clone(),
            spool: self.spool.clone(),
            table: settings.failure_table(),
            cache: Arc::clone(&self.cache),
            deferred: self.deferred.clone(),
            learned: self.learned.clone(),
            paths: protection
                .places
                .places
                .iter()
                .map(|place| show(&place.path))
                .collect(),
            coverage: protection.coverage.clone(),
            fallback: None,
            bypass: None,
            marks: protection.marks.clone(),
            supervised: None,
        }
    }
}

/// Keeps what depends on the Protection Server true: the size bound, the definitions
/// that remembered verdicts need, and who is heard: the one that stands by may know of
/// contents, too.
async fn follow_link(
    mut link: watched::Receiver<LinkState>,
    health: Health,
    cache: Arc<Cache>,
    listener: again::Listener,
    max_scan_bytes: Arc<AtomicU64>,
) {
    let mut heard: Vec<Arc<Link>> = Vec::new();
    let mut current: Option<Arc<Link>> = None;
    loop {
        {
            let state = link.borrow_and_update();
            health.set_link(&state);
            let now = state.link();
            let is_new =
                |now: &&Arc<Link>| !current.as_ref().is_some_and(|old| Arc::ptr_eq(old, now));
            // What an older session was welcomed with may be long over.
            if let Some(link) = now.filter(is_new) {
                cache.use_generations(&link.welcome.generations);
                max_scan_bytes.store(link.welcome.max_scan_bytes, Ordering::Relaxed);
            }
            current = now.map(Arc::clone);
            heard.retain(|link| !link.is_closed());
            for link in state.link().into_iter().chain(state.spare()) {
                if !heard.iter().any(|known| Arc::ptr_eq(known, link)) {
                    // Ends with its session.
                    tokio::spawn(take_notices(Arc::clone(link), listener.clone()));
                    heard.push(Arc::clone(link));
                }
            }
        }
        match tokio::time::timeout(ASK_DEFINITIONS, link.changed()).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => return,
            Err(_) => {
                if let Some(link) = &current
                    && let Ok(generations) = link.definitions().await
                {
                    cache.use_generations(&generations);
                }
            }
        }
    }
}

/// Hears what the Protection Server says unasked, until the session ends.
async fn take_notices(link: Arc<Link>, listener: again::Listener) {
    while let Some(notice) = link.notice().await {
        listener.hear(&notice);
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
