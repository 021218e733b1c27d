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

use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use palisade_daemon::lifecycle;
use palisade_daemon::membership::Membership;
use palisade_protocol::bounded::PathBytes;
use palisade_protocol::ids::TenantId;
use tokio::sync::{Notify, Semaphore, mpsc, oneshot, watch};

use crate::accounts::Accounts;
use crate::again::{self, Again};
use crate::cache::Cache;
use crate::control::Control;
use crate::deadline::Deadlines;
use crate::decide::Scope;
use crate::fanotify::event::{Desk, Respond};
use crate::fanotify::group::{self, Group};
use crate::fanotify::places::{self, Places};
use crate::fanotify::reader::{self, Triage};
use crate::guard::Guard;
use crate::health::{Health, off};
use crate::index::Index;
use crate::link::Link;
use crate::list::ListFile;
use crate::private::Private;
use crate::probe::Probe;
use crate::scanner::Scanner;
use crate::selection::{LinkState, Source, keep};
use crate::selftest::{SelfTest, TestFiles};
use crate::settings::{Folders, Settings};
use crate::spool::Spool;
use crate::{enrol, spool, status, threads};

/// Descriptors that are kept for everything but events.
const FD_RESERVE: u64 = 256;
/// The agent asks for this many descriptors, if it may have them.
const FD_WANTED: u64 = 8192;
/// Threads for reading files; they are few, and end when idle.
const BLOCKING_THREADS: usize = 6;
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

/// Runs the agent until it is told to stop.
///
/// # Errors
/// What keeps it from starting, or ends it.
pub fn run(settings: &Settings, folders: &Folders) -> anyhow::Result<()> {
    std::fs::create_dir_all(&folders.state)
        .with_context(|| format!("the state folder {}", folders.state.display()))?;
    let descriptors = raise_descriptors();
    // Before any fanotify group exists: a forked child must never hold one.
    let probe = if settings.on_access.enabled && group::has_capability() {
        Some(Probe::start().context("the self-test's probe does not start")?)
    } else {
        None
    };
    let runtime = runtime()?;
    let outcome = runtime.block_on(serve(settings, folders, probe, descriptors));
    runtime.shutdown_timeout(GRACE);
    outcome
}

async fn serve(
    settings: &Settings,
    folders: &Folders,
    probe: Option<Probe>,
    descriptors: u64,
) -> anyhow::Result<()> {
    let listener = status::listen(&folders.run)
        .with_context(|| format!("the run folder {}", folders.run.display()))?;
    let mut stopping = std::pin::pin!(lifecycle::stop_requested());
    let membership = tokio::select! {
        membership = enrol::load_or_join(settings, folders) => membership?,
        stop = &mut stopping => return Ok(stop?),
    };
    let parts = Parts::start(settings, folders, &membership);
    let (protection, mut failed) = OnAccess::start(settings, &parts, probe, descriptors);
    let source = parts.status_source(&membership, settings, &protection);
    tokio::spawn(status::serve(listener, source, Arc::clone(&parts.spooled)));
    tokio::spawn(follow_link(
        parts.link.clone(),
        parts.health.clone(),
        Arc::clone(&parts.cache),
        parts.listener(settings),
        Arc::clone(&parts.max_scan_bytes),
    ));
    tracing::info!(id = %membership.identity.id(), version = crate::VERSION, "the agent runs");
    lifecycle::ready();
    let outcome = tokio::select! {
        stop = &mut stopping => stop.map_err(Into::into),
        Ok(error) = &mut failed => Err(anyhow::anyhow!("on-access protection ended: {error}")),
    };
    lifecycle::stopping();
    tracing::info!("the agent stops");
    drop(protection);
    let _ = std::fs::remove_file(status::socket(&folders.run));
    outcome
}

/// What on-access and on-demand protection share.
struct Parts {
    tenant: TenantId,
    accounts: Arc<Accounts>,
    health: Health,
    cache: Arc<Cache>,
    index: Arc<Index>,
    link: watch::Receiver<LinkState>,
    spool: Spool,
    spooled: Arc<Notify>,
    detections: spool::Sender,
    max_scan_bytes: Arc<AtomicU64>,
}

impl Parts {
    fn start(settings: &Settings, folders: &Folders, membership: &Membership) -> Self {
        let accounts = Arc::new(Accounts::default());
        let health = Health::new(Arc::clone(&accounts));
        let spool = Spool::new(&folders.state);
        let spooled = Arc::new(Notify::new());
        let file = ListFile::new(&folders.state);
        let lists = watch::Sender::new(file.load().map(Arc::new));
        let source = if settings.svm.is_empty() {
            Source::List(lists.subscribe())
        } else {
            Source::Static(settings.svm.clone())
        };
        let control = Control {
            membership: membership.clone(),
            host: settings.host_facts(),
            lists,
            file,
            spool: spool.clone(),
            spooled: Arc::clone(&spooled),
            health: health.clone(),
        };
        tokio::spawn(control.run());
        let tenant = membership.identity.id().role.tenant().cloned();
        Self {
            tenant: tenant.unwrap_or_else(TenantId::default_tenant),
            cache: Arc::new(Cache::new(settings.on_access.cache_files)),
            index: Arc::default(),
            link: keep(membership.identity.clone(), source),
            detections: spool::start(&spool, Arc::clone(&spooled)),
            max_scan_bytes: Arc::default(),
            accounts,
            health,
            spool,
            spooled,
        }
    }

    /// Whoever hears of contents that turned out to be malware.
    fn listener(&self, settings: &Settings) -> again::Listener {
        let again = Again {
            scanner: Scanner::new(self.link.clone(), 1, settings.scan.options())
                .keeping(Private::new(&settings.private)),
            detections: self.detections.clone(),
            tenant: self.tenant.clone(),
        };
        again::start(again, Arc::clone(&self.cache), Arc::clone(&self.index))
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
            link: self.link.clone(),
            spool: self.spool.clone(),
            table: settings.failure_table(),
            cache: Arc::clone(&self.cache),
            paths: protection
                .places
                .places
                .iter()
                .map(|place| show(&place.path))
                .collect(),
            gaps: protection.places.gaps.clone(),
        }
    }
}

/// Keeps what depends on the Protection Server true: the size bound and the
/// definitions that remembered verdicts need.
async fn follow_link(
    mut link: watch::Receiver<LinkState>,
    health: Health,
    cache: Arc<Cache>,
    listener: again::Listener,
    max_scan_bytes: Arc<AtomicU64>,
) {
    let mut noticed: Option<Arc<Link>> = None;
    loop {
        {
            let state = link.borrow_and_update();
            health.set_link(&state);
            if let Some(link) = state.link() {
                cache.use_generations(&link.welcome.generations);
                max_scan_bytes.store(link.welcome.max_scan_bytes, Ordering::Relaxed);
                if noticed
                    .as_ref()
                    .is_none_or(|known| !Arc::ptr_eq(known, link))
                {
                    // Ends with its session.
                    tokio::spawn(take_notices(Arc::clone(link), listener.clone()));
                    noticed = Some(Arc::clone(link));
                }
            }
        }
        if link.changed().await.is_err() {
            return;
        }
    }
}

/// Hears what the Protection Server says unasked, until the session ends.
async fn take_notices(link: Arc<Link>, listener: again::Listener) {
    while let Some(notice) = link.notice().await {
        listener.hear(&notice);
    }
}

/// On-access protection, from its start to its end.
struct OnAccess {
    places: Places,
    running: Option<Running>,
}

struct Running {
    group: Arc<Group>,
    deadlines: Deadlines,
    /// Closing it ends the reader.
    stop: Option<UnixStream>,
    reader: Option<std::thread::JoinHandle<()>>,
}

impl OnAccess {
    /// Starts it, or says in the health why it is off. The receiver tells when it
    /// ended by itself.
    fn start(
        settings: &Settings,
        parts: &Parts,
        probe: Option<Probe>,
        descriptors: u64,
    ) -> (Self, oneshot::Receiver<nix::Error>) {
        let (failing, failed) = oneshot::channel();
        let places = if settings.on_access.enabled {
            places::survey(&settings.on_access.paths)
        } else {
            Places::default()
        };
        for gap in &places.gaps {
            tracing::warn!(path = %gap.path, reason = %gap.reason, "a path is not protected on access");
        }
        let started = protect(settings, parts, &places, probe, descriptors, failing);
        let running = match started {
            Ok(running) => Some(running),
            Err(reason) => {
                parts.health.set_protection(off(&reason));
                None
            }
        };
        (Self { places, running }, failed)
    }
}

impl Drop for OnAccess {
    /// No new events, then the reader's end, then whatever waits is answered as
    /// its event is dropped with its task.
    fn drop(&mut self) {
        if let Some(mut running) = self.running.take() {
            running.group.unmark_all();
            running.stop = None;
            if let Some(reader) = running.reader.take() {
                let _ = reader.join();
            }
            running.deadlines.stop();
        }
    }
}

fn protect(
    settings: &Settings,
    parts: &Parts,
    places: &Places,
    probe: Option<Probe>,
    descriptors: u64,
    failing: oneshot::Sender<nix::Error>,
) -> Result<Running, String> {
    if !settings.on_access.enabled {
        return Err("switched off in the settings (on_access.enabled)".to_owned());
    }
    if settings.on_access.paths.is_empty() {
        return Err("no paths are configured (on_access.paths)".to_owned());
    }
    if places.places.is_empty() {
        return Err("none of the configured paths can be protected; see the gaps".to_owned());
    }
    let mode = settings.on_access.mode;
    let group = Arc::new(Group::open(mode).map_err(|error| error.to_string())?);
    let probe = probe.ok_or("the self-test's probe does not run; restart the agent")?;
    let test_files = TestFiles::default();
    let test = SelfTest::new(&places.places, test_files.clone(), probe, mode);
    let (queue, queued) = mpsc::channel(settings.on_access.queue);
    let desk = Arc::new(Desk {
        responder: Arc::clone(&group) as Arc<dyn Respond>,
        accounts: Arc::clone(&parts.accounts),
        table: settings.failure_table(),
        mode,
    });
    let deadlines = Deadlines::start().map_err(|error| error.to_string())?;
    let triage = Triage {
        desk,
        scope: scope(settings, places, &test),
        cache: Arc::clone(&parts.cache),
        deadlines: deadlines.clone(),
        deadline: settings.on_access.deadline(),
        max_scan_bytes: Arc::clone(&parts.max_scan_bytes),
        fd_reserve_from: i32::try_from(descriptors.saturating_sub(FD_RESERVE)).unwrap_or(i32::MAX),
        queue,
    };
    let guard = Guard {
        scanner: Scanner::new(
            parts.link.clone(),
            2 * settings.scan.concurrency,
            settings.scan.options(),
        )
        .keeping(Private::new(&settings.private)),
        max_age_s: settings.on_access.max_verdict_age_s,
        cache: Arc::clone(&parts.cache),
        index: Arc::clone(&parts.index),
        accounts: Arc::clone(&parts.accounts),
        detections: parts.detections.clone(),
        test_files,
        tenant: parts.tenant.clone(),
        on_time: Arc::new(Semaphore::new(settings.scan.concurrency)),
        late: Arc::new(Semaphore::new(settings.scan.concurrency.div_ceil(2))),
    };
    tokio::spawn(Arc::new(guard).run(queued));
    let (stop, stopped) = UnixStream::pair().map_err(|error| error.to_string())?;
    let reading = Arc::clone(&group);
    let reader = threads::vital("reader", move || {
        if let Err(error) = reader::run(&reading, &stopped, &triage) {
            let _ = failing.send(error);
        }
    })
    .map_err(|error| error.to_string())?;
    // Whoever reads is there before the first event can come.
    for place in &places.places {
        group.mark(&place.path).map_err(|error| {
            format!(
                "the file system of {} cannot be marked: {error}",
                place.path.display()
            )
        })?;
        tracing::info!(path = %PathBytes::from_path(&place.path), kind = place.kind, "protecting");
    }
    tokio::spawn(test.run(parts.health.clone(), parts.link.clone()));
    Ok(Running {
        group,
        deadlines,
        stop: Some(stop),
        reader: Some(reader),
    })
}

fn scope(settings: &Settings, places: &Places, test: &SelfTest) -> Scope {
    let mut paths: Vec<_> = places
        .places
        .iter()
        .map(|place| place.path.clone())
        .collect();
    paths.extend(test.paths().iter().cloned());
    Scope {
        paths,
        exclude: settings.exclude.clone(),
        max_bytes: settings.on_access.max_bytes,
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
