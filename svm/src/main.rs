//! `palisade-scanserver`: the Protection Server daemon.
//!
//! ```text
//! settings ─► state ─► engines ─► listener ─► report ─► (definitions change)* ─► stop
//! ```
//!
//! This file only composes; each step is a module of `palisade_svm`.

#![forbid(unsafe_code)]

use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use palisade_daemon::cli::{Common, exit};
use palisade_daemon::enrol::{read_token, read_token_file};
use palisade_daemon::{lifecycle, logging};
use palisade_svm::agents::Agents;
use palisade_svm::budget::Budget;
use palisade_svm::cache::SharedCache;
use palisade_svm::definitions::{DefinitionsError, Keeper, Refreshed};
use palisade_svm::fragments::FragmentStore;
use palisade_svm::listener::Listener;
use palisade_svm::metrics::{self, Metrics};
use palisade_svm::report::{Reporter, Standing};
use palisade_svm::request::Service;
use palisade_svm::scan::{Lanes, Scanner};
use palisade_svm::settings::{self, COMPONENT, Settings};
use palisade_svm::state::State;
use palisade_svm::{addresses, admission};
use tokio::runtime::Runtime;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinHandle;

/// How long requests may take to end after a stop was asked for.
const DRAIN: Duration = Duration::from_secs(5);
/// How long the Integration Server may take to hear of it.
const LAST_REPORT: Duration = Duration::from_millis(500);
/// How often it is looked whether requests have ended.
const DRAIN_POLL: Duration = Duration::from_millis(20);

/// Palisade's Protection Server: scans what the Light Agents of this hypervisor's
/// guests ask about.
#[derive(Debug, Parser)]
#[command(name = "palisade-scanserver", version)]
struct Cli {
    #[command(flatten)]
    common: Common,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve until SIGTERM (the default); SIGHUP looks for new definitions
    Run,
    /// Read the settings, say what is wrong with them, and exit
    CheckConfig,
    /// Join a site with a join token, and exit
    Enrol {
        /// What `palisade token create --component svm` printed; - reads it from standard
        /// input; without it, join_token_file is read
        token: Option<String>,
    },
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    logging::start(cli.common.log_format, "info");
    let done = match cli.command.unwrap_or(Command::Run) {
        Command::Run => run(&cli.common),
        Command::CheckConfig => check_config(&cli.common),
        Command::Enrol { token } => enrol(&cli.common, token.as_deref()),
    };
    match done {
        Ok(()) => ExitCode::from(exit::FINE),
        Err(error) => {
            eprintln!("palisade-scanserver: {error:#}");
            ExitCode::from(exit::FAILED)
        }
    }
}

fn check_config(common: &Common) -> anyhow::Result<()> {
    let file = common.settings(COMPONENT);
    settings::load(&file)?;
    println!("{}: fine", file.display());
    Ok(())
}

fn enrol(common: &Common, token: Option<&str>) -> anyhow::Result<()> {
    let settings = settings::load(&common.settings(COMPONENT))?;
    let token = match (token, &settings.join_token_file) {
        (Some(text), _) => read_token(text)?,
        (None, Some(file)) => read_token_file(file)?,
        (None, None) => anyhow::bail!(
            "no join token: give one (palisade-scanserver enrol TOKEN, or - for standard input), \
             or set join_token_file; `palisade token create --component svm` makes one"
        ),
    };
    let state = State::open(settings.folders(&common.site())?)?;
    let membership = runtime()?.block_on(state.enrol(&token))?;
    println!(
        "enrolled as {} ({})",
        membership.name,
        membership.identity.id()
    );
    Ok(())
}

fn run(common: &Common) -> anyhow::Result<()> {
    let file = common.settings(COMPONENT);
    let settings = settings::load(&file)?;
    let state = State::open(settings.folders(&common.site())?)?;
    let runtime = runtime()?;
    let served = runtime.block_on(serve(&settings, &file, &state));
    // A definitions' load that a stop interrupted ends with the process.
    runtime.shutdown_background();
    state
        .clear_scratch()
        .unwrap_or_else(|error| tracing::warn!(%error, "scratch files stay"));
    served
}

fn runtime() -> anyhow::Result<Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("no runtime")
}

async fn serve(settings: &Settings, file: &std::path::Path, state: &State) -> anyhow::Result<()> {
    let mut stop = tokio::spawn(lifecycle::stop_requested());
    let hangup = signal(SignalKind::hangup()).context("SIGHUP")?;
    let membership = tokio::select! {
        membership = state.membership(settings.join_token_file.as_deref(), file) => membership?,
        _ = &mut stop => return Ok(()),
    };

    let keeper = Keeper::open(settings, file, state.folders())?;
    let (keeper, started) = tokio::select! {
        loaded = blocking(keeper, Keeper::start) => loaded?,
        _ = &mut stop => return Ok(()),
    };
    let metrics = Arc::new(Metrics::default());
    let (scanner, lanes) = scanner(settings, Arc::clone(&metrics), started?)?;

    let cache = cache(settings, state);
    let service = Arc::new(Service::new(
        scanner.clone(),
        cache.clone(),
        Budget::new(settings.scan.memory.0, settings.scan.max_scan_size.0),
        FragmentStore::new(settings.scan.fragment_store().0),
        metrics,
        settings.bounds(),
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
    )?;
    let address = listener.address()?;
    let accepting = tokio::spawn(listener.clone().run());
    let measuring = measure(settings, &service, &agents).await?;

    let standing = Standing::new(
        settings,
        addresses::advertised(address, &settings.advertise),
    );
    let reporter = Reporter::new(standing, scanner.clone(), agents.clone(), grace);
    let id = membership.identity.id().to_string();
    let reporting = tokio::spawn(Arc::clone(&reporter).run(membership));
    let watching = tokio::spawn(watch(
        keeper,
        scanner.clone(),
        Arc::clone(&reporter),
        hangup,
        Duration::from_secs(settings.definitions.poll_s.into()),
    ));

    tracing::info!(%address, %id, workers = settings.workers(), "ready");
    lifecycle::ready();
    let _ = stop.await;

    tracing::info!("stopping");
    lifecycle::stopping();
    watching.abort();
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

/// Serves the numbers, where settings say so.
async fn measure(
    settings: &Settings,
    service: &Arc<Service>,
    agents: &Agents<palisade_svm::listener::Handle>,
) -> anyhow::Result<JoinHandle<()>> {
    let Some(address) = settings.metrics.listen else {
        return Ok(tokio::spawn(std::future::pending()));
    };
    let (gauges, agents) = (Arc::clone(service), agents.clone());
    let (address, serving) = metrics::serve(address, Arc::clone(&service.metrics), move || {
        gauges.gauges(&agents)
    })
    .await
    .with_context(|| format!("metrics.listen: {address} cannot be used"))?;
    tracing::info!(%address, "metrics");
    Ok(tokio::spawn(serving))
}

fn scanner(
    settings: &Settings,
    metrics: Arc<Metrics>,
    engines: Arc<palisade_svm::scan::engines::EngineSet>,
) -> anyhow::Result<(Scanner, Lanes)> {
    tracing::info!(generation = engines.number(), "definitions are in force");
    let bounds = admission::Bounds {
        total: settings.limits.queue as usize,
        per_tenant: settings.limits.queue_per_tenant as usize,
        per_agent: settings.limits.queue_per_agent as usize,
    };
    let recycle_after = settings.scan.recycle_after.into();
    let (lanes, timeout) = (settings.workers(), settings.scan_timeout());
    Scanner::start(lanes, timeout, recycle_after, bounds, metrics, engines)
        .context("the scan threads cannot be started")
}

fn cache(settings: &Settings, state: &State) -> SharedCache {
    if settings.cache.persist {
        SharedCache::open(&state.cache(), settings.cache.entries)
    } else {
        SharedCache::in_memory(settings.cache.entries)
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

/// Looks for new definitions every so often, and when told to.
async fn watch(
    mut keeper: Keeper,
    scanner: Scanner,
    reporter: Arc<Reporter>,
    mut hangup: Signal,
    every: Duration,
) {
    // What was wrong at the last look: said once, and again when somebody asks.
    let mut said = String::new();
    loop {
        tokio::select! {
            () = tokio::time::sleep(every) => {}
            Some(()) = hangup.recv() => {
                tracing::info!("SIGHUP: looking for new definitions");
                said.clear();
            }
        }
        let refreshed = match blocking(keeper, Keeper::refresh).await {
            Ok((back, refreshed)) => {
                keeper = back;
                refreshed
            }
            Err(error) => {
                tracing::error!(%error, "definitions are no longer looked after");
                return;
            }
        };
        match refreshed {
            Ok(Refreshed::Unchanged) => {}
            Ok(Refreshed::Activated(set)) => {
                let scanner = scanner.clone();
                // The old engines' end is waited for, which may take a moment.
                let _ = tokio::task::spawn_blocking(move || scanner.activate(set)).await;
                reporter.changed();
            }
            Err(error) if error.to_string() == said => {}
            Err(error) => {
                tracing::error!(
                    %error,
                    "the definitions' source cannot be used; the last good generation stays in force"
                );
                said = error.to_string();
            }
        }
    }
}

type Step<T> = fn(&mut Keeper) -> Result<T, DefinitionsError>;

/// A step of the keeper, on a thread that may block.
fn blocking<T: Send + 'static>(
    mut keeper: Keeper,
    step: Step<T>,
) -> JoinHandle<(Keeper, Result<T, DefinitionsError>)> {
    tokio::task::spawn_blocking(move || {
        let result = step(&mut keeper);
        (keeper, result)
    })
}
