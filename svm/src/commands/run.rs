//! `run`: the daemon, composed.
//!
//! ```text
//! settings ─► state ─► engines ─► listener ─► report ─► (definitions change)* ─► stop
//! ```

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use palisade_daemon::cli::Common;
use palisade_daemon::lifecycle;
use palisade_daemon::membership::Membership;
use palisade_protocol::bounded::Text;
use palisade_svm::agents::Agents;
use palisade_svm::brake::Brake;
use palisade_svm::budget::Budget;
use palisade_svm::cache::{SharedCache, now_ms};
use palisade_svm::definitions::desk::Desk;
use palisade_svm::definitions::{DefinitionsError, Keeper};
use palisade_svm::fragments::FragmentStore;
use palisade_svm::fragments::disk::Disk;
use palisade_svm::listener::Listener;
use palisade_svm::local;
use palisade_svm::metrics::{self, Gauges, Metrics};
use palisade_svm::problems::Watch;
use palisade_svm::report::{Reporter, Standing};
use palisade_svm::repository::{Follower, first};
use palisade_svm::request::{Memory, Service};
use palisade_svm::retro::{Retro, rescan};
use palisade_svm::scan::engines::EngineSet;
use palisade_svm::scan::{Lanes, Scanner};
use palisade_svm::settings::{self, COMPONENT, Folders, Settings};
use palisade_svm::state::State;
use palisade_svm::status::Status;
use palisade_svm::{addresses, admission};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinHandle;

use super::runtime;

/// How long requests may take to end after a stop was asked for.
const DRAIN: Duration = Duration::from_secs(5);
/// How long the Integration Server may take to hear of it.
const LAST_REPORT: Duration = Duration::from_millis(500);
/// How often it is looked whether requests have ended.
const DRAIN_POLL: Duration = Duration::from_millis(20);

/// Serves until it is told to stop.
///
/// # Errors
/// What is in the way of a start, and the remedy.
pub fn run(common: &Common) -> anyhow::Result<()> {
    let file = common.settings(COMPONENT);
    let settings = settings::load(&file)?;
    let state = State::open(settings.folders(&common.site())?)?;
    let runtime = runtime()?;
    let served = runtime.block_on(serve(&settings, &file, &state));
    // A definitions' load that a stop interrupted ends with the process.
    runtime.shutdown_background();
    // Left behind, it would only be one that nobody answers at.
    let _ = std::fs::remove_file(local::socket(&state.folders().run));
    state
        .clear_scratch()
        .unwrap_or_else(|error| tracing::warn!(%error, "scratch files stay"));
    served
}

async fn serve(settings: &Settings, file: &std::path::Path, state: &State) -> anyhow::Result<()> {
    let mut stop = tokio::spawn(lifecycle::stop_requested());
    let hangup = signal(SignalKind::hangup()).context("SIGHUP")?;
    let membership = tokio::select! {
        membership = state.membership(settings.join_token_file.as_deref(), file) => membership?,
        _ = &mut stop => return Ok(()),
    };

    let follower = Follower::open(settings, state.repository())?;
    let folder = follower.as_ref().map(|follower| follower.folder());
    let keeper = Keeper::open(settings, file, state.folders(), folder)?;
    let began = async {
        match &follower {
            Some(follower) => follow(keeper, follower, &membership, settings).await,
            None => {
                let (keeper, started) = start(keeper).await?;
                Ok((keeper, started?))
            }
        }
    };
    let (keeper, started) = tokio::select! {
        started = began => started?,
        _ = &mut stop => return Ok(()),
    };
    let metrics = Arc::new(Metrics::default());
    let (scanner, lanes) = scanner(settings, Arc::clone(&metrics), started)?;
    let guests = settings.retroactive.brake_guests as usize;
    let brake = Brake::open(&state.brake(), &state.signatures(), guests);
    let (known, parts) = (brake.clone(), keeper.parts());
    tokio::task::spawn_blocking(move || known.in_force(&parts, now_ms()))
        .await
        .context("the signatures in force")?;
    let (desk, clerk) = Desk::new(keeper, scanner.clone(), brake.clone());

    let cache = cache(settings, state);
    let service = Arc::new(Service::new(
        scanner.clone(),
        cache.clone(),
        memory(settings, state, &metrics),
        metrics,
        settings.bounds(),
        Retro::new(settings.retroactive.contents as usize),
        brake,
    ));

    let agents = Agents::new(settings.limits.clone());
    let trust = membership.identity.trust();
    let grace = trust.grace.clone();
    let listener = Listener::open(
        settings.listen,
        &membership.identity,
        trust,
        Arc::clone(&service),
        agents.clone(),
        settings.limits.requests_per_agent,
        settings.tenants.clone(),
    )?;
    let address = listener.address()?;
    let accepting = tokio::spawn(listener.clone().run());
    let stale = settings.definitions.stale_after_days;
    let watch = Watch::new(
        scanner.clone(),
        cache.clone(),
        desk.clone(),
        follower.clone(),
        stale,
    );
    let watch = Arc::new(watch);
    let (metrics, measuring) = measure(settings, &service, &agents, &watch).await?;

    let standing = Standing::new(
        settings,
        addresses::advertised(address, &settings.advertise),
    );
    let reporter = Reporter::new(
        standing,
        scanner.clone(),
        agents.clone(),
        grace,
        desk.clone(),
        Arc::clone(&watch),
        follower.clone(),
    );
    let id = membership.identity.id().to_string();
    let reporting = tokio::spawn(Arc::clone(&reporter).run(membership));
    let every = Duration::from_secs(settings.definitions.poll_s.into());
    let watching = tokio::spawn({
        let (reporter, rescans) = (Arc::clone(&reporter), service.rescans.clone());
        let changed = move || {
            reporter.changed();
            rescans.due();
        };
        clerk.run(hangup, every, changed)
    });
    let following = following(follower, &desk, every);
    let rescanning = rescan(settings, &service);
    let told = told(&service, &agents, watch, &id, address, metrics);
    let commanded = commands(state.folders(), desk, told);

    tracing::info!(%address, %id, workers = settings.workers(), "ready");
    lifecycle::ready();
    let _ = stop.await;

    tracing::info!("stopping");
    lifecycle::stopping();
    watching.abort();
    following.abort();
    rescanning.abort();
    commanded.abort();
    listener.drain();
    reporter.drain(LAST_REPORT).await;
    finish(&agents, scanner, lanes, &listener).await;
    reporting.abort();
    accepting.abort();
    measuring.abort();
    tokio::task::spawn_blocking(move || cache.close())
        .await
        .context("the SharedCache's end")?;
    tracing::info!("stopped");
    Ok(())
}

/// Follows the site's repository, where settings say so.
fn following(follower: Option<Arc<Follower>>, desk: &Desk, every: Duration) -> JoinHandle<()> {
    match follower {
        Some(follower) => tokio::spawn(follower.run(desk.clone(), every)),
        None => tokio::spawn(std::future::ready(())),
    }
}

/// Scans kept contents anew when definitions change, where settings let it.
fn rescan(settings: &Settings, service: &Arc<Service>) -> JoinHandle<()> {
    match settings.retroactive.rescan {
        true => tokio::spawn(rescan::run(Arc::clone(service))),
        false => tokio::spawn(std::future::ready(())),
    }
}

fn memory(settings: &Settings, state: &State, metrics: &Arc<Metrics>) -> Memory {
    Memory {
        budget: Budget::new(settings.scan.memory.0, settings.scan.max_scan_size.0),
        fragments: fragments(settings, state, metrics),
    }
}

/// What was scanned lately. Without its disk, where that cannot be had: scans need none.
fn fragments(settings: &Settings, state: &State, metrics: &Arc<Metrics>) -> FragmentStore {
    let bounds = settings.kept();
    let bytes = settings.scan.fragment_disk.0;
    if bytes == 0 {
        return FragmentStore::new(bounds);
    }
    let folder = state.fragments();
    let opened = Disk::open(&folder, bytes, Arc::clone(metrics))
        .and_then(|disk| FragmentStore::with_disk(bounds, disk));
    opened.unwrap_or_else(|error| {
        tracing::warn!(folder = %folder.display(), %error, "fragments are not kept on disk (scan.fragment_disk)");
        FragmentStore::new(bounds)
    })
}

/// Serves the numbers, where settings say so.
async fn measure(
    settings: &Settings,
    service: &Arc<Service>,
    agents: &Agents<palisade_svm::listener::Handle>,
    watch: &Arc<Watch>,
) -> anyhow::Result<(Option<SocketAddr>, JoinHandle<()>)> {
    let Some(address) = settings.metrics.listen else {
        return Ok((None, tokio::spawn(std::future::pending())));
    };
    let (gauges, agents, watch) = (Arc::clone(service), agents.clone(), Arc::clone(watch));
    let (address, serving) = metrics::serve(address, Arc::clone(&service.metrics), move || {
        let gauges = Gauges {
            definitions_added_s: watch.definitions_added_ms() / 1000,
            ..gauges.gauges(&agents)
        };
        (gauges, watch.look(now_ms()))
    })
    .await
    .with_context(|| format!("metrics.listen: {address} cannot be used"))?;
    tracing::info!(%address, "metrics");
    Ok((Some(address), tokio::spawn(serving)))
}

/// What `status` is told, whenever it asks.
fn told(
    service: &Arc<Service>,
    agents: &Agents<palisade_svm::listener::Handle>,
    watch: Arc<Watch>,
    id: &str,
    address: SocketAddr,
    metrics: Option<SocketAddr>,
) -> local::Told {
    let (service, agents) = (Arc::clone(service), agents.clone());
    let (id, started_ms) = (Text::cut(id), now_ms());
    Arc::new(move || Status {
        version: Text::cut(env!("CARGO_PKG_VERSION")),
        id: id.clone(),
        address,
        metrics,
        started_ms,
        lanes: u32::try_from(service.scanner.lanes()).unwrap_or(u32::MAX),
        load_permille: service.scanner.load().load_permille,
        generations: service.scanner.generations(),
        problems: watch.look(now_ms()),
        now: service.gauges(&agents),
        since_start: service.metrics.counts(),
    })
}

fn scanner(
    settings: &Settings,
    metrics: Arc<Metrics>,
    engines: Arc<EngineSet>,
) -> anyhow::Result<(Scanner, Lanes)> {
    tracing::info!(generation = engines.number(), "definitions are in force");
    let bounds = admission::Bounds {
        total: settings.limits.queue as usize,
        per_tenant: settings.limits.queue_per_tenant as usize,
        per_agent: settings.limits.queue_per_agent as usize,
    };
    let recycle_after = settings.scan.recycle_after.into();
    let (layout, timeout) = (settings.layout(), settings.scan_timeout());
    Scanner::start(layout, timeout, recycle_after, bounds, metrics, engines)
        .context("the scan threads cannot be started")
}

fn cache(settings: &Settings, state: &State) -> SharedCache {
    if settings.cache.persist {
        SharedCache::open(&state.cache(), settings.cache.entries)
    } else {
        SharedCache::in_memory_beside(&state.cache(), settings.cache.entries)
    }
}

/// Lets open requests end, then the lanes and their engines, then the sessions.
async fn finish(
    agents: &Agents<palisade_svm::listener::Handle>,
    scanner: Scanner,
    lanes: Lanes,
    listener: &Listener,
) {
    let deadline = Instant::now() + DRAIN;
    while agents.requests() > 0 && Instant::now() < deadline {
        tokio::time::sleep(DRAIN_POLL).await;
    }
    let left = deadline.saturating_duration_since(Instant::now());
    let ended = tokio::task::spawn_blocking(move || scanner.finish(lanes, left)).await;
    if let Err(error) = ended {
        tracing::error!(%error, "the scan threads did not end well");
    }
    listener.close().await;
}

/// The first set of engines, on a thread that may block.
async fn start(
    mut keeper: Keeper,
) -> anyhow::Result<(Keeper, Result<Arc<EngineSet>, DefinitionsError>)> {
    let started = tokio::task::spawn_blocking(move || {
        let started = keeper.start();
        (keeper, started)
    });
    Ok(started.await?)
}

/// The same where definitions come from the site's repository: as long as there are none
/// that can be used, others are waited for.
async fn follow(
    mut keeper: Keeper,
    follower: &Arc<Follower>,
    membership: &Membership,
    settings: &Settings,
) -> anyhow::Result<(Keeper, Arc<EngineSet>)> {
    let standing = Standing::new(settings, Vec::new());
    let mut failed: Option<String> = None;
    loop {
        if failed.is_some() || !keeper.has_anything() {
            // It runs as it should, whenever somebody imports definitions.
            lifecycle::ready();
            first::wait(follower, membership, &standing, failed.as_deref()).await;
        }
        let (back, started) = start(keeper).await?;
        match started {
            Ok(set) => return Ok((back, set)),
            Err(error) => {
                tracing::error!(%error, "the definitions that are here cannot be used");
                failed = Some(error.to_string());
            }
        }
        keeper = back;
    }
}

/// Serves local commands. Agents are served without them, too.
fn commands(folders: &Folders, desk: Desk, told: local::Told) -> JoinHandle<()> {
    match local::listen(&folders.run) {
        Ok(listener) => tokio::spawn(local::serve(listener, desk, told)),
        Err(error) => {
            let socket = local::socket(&folders.run);
            tracing::error!(socket = %socket.display(), %error, "commands of this machine are not served; set run_dir to a usable (and short) path");
            tokio::spawn(std::future::ready(()))
        }
    }
}
