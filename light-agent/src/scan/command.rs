//! `palisade-agent scan`: a scan in its own process, with the agent's identity.
//!
//! Works beside a running daemon and without one: it uses the list that is kept in
//! the state folder, and asks the Integration Server for a newer one while no
//! Protection Server answers.

use std::io::{IsTerminal as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use palisade_daemon::cli::Output;
use palisade_daemon::membership::Membership;
use palisade_protocol::bounded::PathBytes;
use palisade_protocol::control::{Action, Detection, SvmList};
use palisade_protocol::ids::TenantId;
use palisade_protocol::scan::ScanClass;
use tokio::sync::watch;

use super::progress::{Pace, spoken};
use super::remote::{self, Remote};
use super::report::Report;
use super::walk::{self, Found, Plan};
use super::what::{Kind, What};
use super::{Done, Job, Observer};
use crate::index::scans::Scans;
use crate::list::ListFile;
use crate::packaged::{Packaged, Policy, rpm};
use crate::private::Private;
use crate::quarantine::policy::Remedy;
use crate::quarantine::remedies::Remedies;
use crate::scanner::Scanner;
use crate::selection::{Choice, LinkState, Source, keep};
use crate::settings::{Folders, Settings};
use crate::spool::{self, Spool};
use crate::{control, status};

/// How long a kept list is tried before the Integration Server is asked.
const LIST_GRACE: Duration = Duration::from_secs(2);
/// Between requests for a list, and between looks at the kept one.
const LIST_EVERY: Duration = Duration::from_secs(30);
const LIST_LOOK: Duration = Duration::from_secs(1);
/// How long delivering detections may hold up the end of a scan.
const DELIVERY: Duration = Duration::from_secs(5);
/// Findings that are reported to the Integration Server, at the most.
const MAX_REPORTED: usize = 10_000;

/// Runs the command; gives the exit code.
///
/// # Errors
/// What kept it from starting, or from writing its result.
pub async fn run(
    settings: &Settings,
    folders: &Folders,
    what: &What,
    output: Output,
) -> anyhow::Result<u8> {
    let started = Instant::now();
    let Some(membership) = Membership::load(&folders.state)? else {
        bail!(
            "this agent has no identity yet ({}); enrol it first: palisade-agent enrol TOKEN",
            folders.state.display()
        );
    };
    let (plan, missing) = plan(what, &settings.exclude)?;
    let tenant = membership
        .identity
        .id()
        .role
        .tenant()
        .cloned()
        .unwrap_or_else(TenantId::default_tenant);
    let link = connect(settings, folders, &membership);
    let asking = settings.scan.concurrency;
    let scanner = Scanner::new(link.clone(), asking, settings.scan.options())
        .keeping(Private::new(&settings.private));
    let mut job = Job::new(plan, &settings.scan);
    job.remedies = Some(Remedies::new(settings, folders));
    job.held = Scans::start(&folders.state).ok().map(Arc::new);
    let moves = settings.remediation.malware != Remedy::Block;
    job.packaged = packaged(settings.scan.packaged, moves, folders).await;
    let mut watching = Watching::new(tenant, output, link);
    watching.count(job.plan.clone());
    let (mut report, outcome) = super::run(&job, &scanner, &mut watching).await;
    if let Some(held) = job.held.take().and_then(Arc::into_inner) {
        held.finish();
    }
    report.elapsed_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    watching.bar.finish_and_clear();
    print(&report, output)?;
    for path in &missing {
        eprintln!(
            "palisade-agent: {} does not exist; nothing was scanned there",
            path.display()
        );
    }
    if outcome.is_err() {
        eprintln!(
            "palisade-agent: the scan could not go on: no Protection Server for {} s ({})",
            settings.scan.svm_wait_s,
            scanner.down_reason().unwrap_or_default()
        );
    }
    deliver(settings, folders, &membership, &watching.detections).await;
    Ok(report.exit_code(outcome.is_ok() && missing.is_empty()))
}

/// What packages have, if that is not scanned as all else; where malware is moved, what is
/// a package's is known, too.
async fn packaged(policy: Policy, moves: bool, folders: &Folders) -> Option<Arc<Packaged>> {
    let state = folders.state.clone();
    let known = tokio::task::spawn_blocking(move || {
        if (policy != Policy::Scan || moves && !rpm::is_known(&state))
            && let Some(asking) = rpm::begin(&state)
        {
            let _ = asking.join();
        }
        Packaged::load(policy, Path::new("/"), &rpm::listing(&state))
    });
    known.await.ok().flatten().map(Arc::new)
}

/// A session with a Protection Server for one command, as long as anybody has it.
pub fn connect(
    settings: &Settings,
    folders: &Folders,
    membership: &Membership,
) -> watch::Receiver<LinkState> {
    let file = ListFile::new(&folders.state);
    let (lists, list) = watch::channel(file.load().map(Arc::new));
    let source = if settings.svm.is_empty() {
        Source::List(list)
    } else {
        Source::Static(settings.svm.clone())
    };
    // A command is short: a second session would cost more than it saves.
    let choice = Choice {
        policy: settings.selection,
        spare: false,
        notices: false,
    };
    let link = keep(membership.identity.clone(), source, choice).state;
    if settings.svm.is_empty() {
        let host = settings.host_facts();
        tokio::spawn(refresh_list(
            membership.clone(),
            host,
            file,
            lists,
            link.clone(),
        ));
    }
    link
}

/// What is walked, and which given paths do not exist; the latter stay among the
/// roots, so that the report names them too. File systems that are left out are said.
fn plan(what: &What, exclude: &[PathBuf]) -> anyhow::Result<(Plan, Vec<PathBuf>)> {
    if what.kind() != Kind::Custom {
        let cover = what.kind().cover(&[], exclude)?;
        for (path, kind) in &cover.left_out {
            let path = PathBytes::from_path(path);
            eprintln!(
                "palisade-agent: {path} is not scanned: a file system that is not local ({kind})"
            );
        }
        return Ok((cover.plan(exclude), Vec::new()));
    }
    let roots = what.paths()?;
    let remote = Remote::mounted().context("the mounted file systems cannot be listed")?;
    // What does not answer is not missing, and the walk says so.
    let is_missing = |path: &&PathBuf| {
        let there = if remote.holds(path) {
            remote::ask(path, remote::PATIENCE)
        } else {
            std::fs::symlink_metadata(path).map(drop)
        };
        there.is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound)
    };
    let missing = roots.iter().filter(is_missing).cloned().collect();
    let plan = Plan {
        roots,
        exclude: exclude.to_vec(),
        ..Plan::default()
    };
    Ok((plan, missing))
}

fn print(report: &Report, output: Output) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match output {
        Output::Json => {
            serde_json::to_writer(&mut out, report)?;
            writeln!(out)?;
        }
        Output::Text => writeln!(out, "{report}")?,
    }
    Ok(())
}

/// Keeps the list current while no Protection Server is connected: from the state
/// folder, where a daemon may write a newer one, and from the Integration Server.
async fn refresh_list(
    membership: Membership,
    host: palisade_protocol::control::HostFacts,
    file: ListFile,
    lists: watch::Sender<Option<Arc<SvmList>>>,
    link: watch::Receiver<LinkState>,
) {
    let connected = || link.borrow().link().is_some();
    let mut ask_at = Instant::now();
    if lists.borrow().is_some() {
        ask_at += LIST_GRACE;
    }
    loop {
        if !connected() {
            let kept = file.load().map(Arc::new);
            let newer = kept.is_some() && *lists.borrow() != kept;
            if newer {
                lists.send_replace(kept);
            }
            if Instant::now() >= ask_at {
                ask_at = Instant::now() + LIST_EVERY;
                match control::fetch_once(&membership, &host, 0).await {
                    Ok((session, list)) => {
                        session.close();
                        if let Some(list) = list {
                            if let Err(error) = file.save(&list) {
                                tracing::debug!(%error, "the list cannot be kept");
                            }
                            lists.send_replace(Some(Arc::new(list)));
                        }
                    }
                    Err(error) => tracing::warn!(%error, "no list of Protection Servers"),
                }
            }
        }
        tokio::time::sleep(LIST_LOOK).await;
    }
}

/// Hands findings to the daemon, by the spool; without one, to the server itself.
async fn deliver(
    settings: &Settings,
    folders: &Folders,
    membership: &Membership,
    detections: &[Detection],
) {
    if detections.is_empty() {
        return;
    }
    let spool = Spool::new(&folders.state);
    if let Err(error) = spool.put(detections) {
        eprintln!(
            "palisade-agent: the findings cannot be kept for the Integration Server: {error}"
        );
        return;
    }
    // Any connection to its socket makes the daemon look into the spool.
    if UnixStream::connect(status::socket(&folders.run)).is_ok() {
        return;
    }
    let sent = tokio::time::timeout(DELIVERY, async {
        let (session, _, _) = palisade_daemon::control::Session::connect(
            membership,
            control::hello(&settings.host_facts()),
        )
        .await?;
        control::deliver(&session, &spool).await?;
        session.close();
        Ok::<_, palisade_daemon::control::ControlError>(())
    });
    match sent.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "the findings wait in the spool"),
        Err(_) => tracing::warn!("the findings wait in the spool: the server is slow"),
    }
}

/// Prints findings as they come, shows progress, keeps what is reported.
struct Watching {
    tenant: TenantId,
    output: Output,
    bar: ProgressBar,
    detections: Vec<Detection>,
    started: Instant,
    pace: Pace,
    total: Arc<OnceLock<u64>>,
    ended: Arc<AtomicBool>,
}

impl Drop for Watching {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
    }
}

impl Watching {
    fn new(tenant: TenantId, output: Output, link: watch::Receiver<LinkState>) -> Self {
        let bar = if std::io::stderr().is_terminal() {
            ProgressBar::new_spinner()
        } else {
            ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden())
        };
        if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed} {pos} files{msg}") {
            bar.set_style(style);
        }
        let hidden = bar.is_hidden();
        if !hidden {
            bar.enable_steady_tick(Duration::from_millis(250));
        }
        let shown = bar.clone();
        tokio::spawn(say_when_waiting(link, move |text| {
            if hidden {
                eprintln!("palisade-agent: {text}");
            } else {
                shown.suspend(|| eprintln!("palisade-agent: {text}"));
            }
        }));
        Self {
            tenant,
            output,
            bar,
            detections: Vec::new(),
            started: Instant::now(),
            pace: Pace::default(),
            total: Arc::default(),
            ended: Arc::default(),
        }
    }

    /// Counts the files beside the scan, where somebody watches.
    fn count(&self, plan: Plan) {
        if self.bar.is_hidden() {
            return;
        }
        let (total, ended) = (Arc::clone(&self.total), Arc::clone(&self.ended));
        tokio::task::spawn_blocking(move || {
            if let Some(files) = walk::count(&plan, &ended) {
                let _ = total.set(files);
            }
        });
    }

    fn show(&mut self, path: &Path, files: u64) {
        self.bar.set_position(files);
        if self.bar.is_hidden() {
            return;
        }
        self.pace.note(self.started.elapsed(), files);
        let said = self.pace.progress(files, self.total.get().copied());
        let of = said
            .files_total
            .map_or(String::new(), |total| format!(" of {total}"));
        let rate = said
            .files_per_s
            .map_or(String::new(), |rate| format!(", {rate:.0}/s"));
        let left = said
            .left_s
            .map_or(String::new(), |left| format!(", {} left", spoken(left)));
        let path = PathBytes::from_path(path);
        self.bar.set_message(format!("{of}{rate}{left}, {path}"));
    }
}

/// Says that the scan waits, and that it goes on.
async fn say_when_waiting(mut link: watch::Receiver<LinkState>, say: impl Fn(&str)) {
    let mut waiting = false;
    loop {
        let state = link.borrow_and_update().clone();
        match (&state, waiting) {
            (LinkState::Up { link, .. }, true) => {
                say(&format!(
                    "connected to {} ({}); the scan goes on",
                    link.name, link.address
                ));
                waiting = false;
            }
            (LinkState::Down { since, reason }, false) if since.elapsed() >= LIST_GRACE => {
                say(&format!("waiting for a Protection Server: {reason}"));
                waiting = true;
            }
            _ => {}
        }
        tokio::select! {
            changed = link.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(LIST_GRACE), if !waiting => {}
        }
    }
}

impl Observer for Watching {
    fn done(&mut self, found: &Found, done: &Done, report: &Report) {
        let path = found.at.path.as_path();
        if let Done::Scanned(scanned) = done
            && self.detections.len() < MAX_REPORTED
        {
            let tenant = self.tenant.clone();
            let action = scanned.action.unwrap_or(Action::Reported);
            let found = spool::detection(tenant, path, scanned, action, ScanClass::OnDemand);
            self.detections.extend(found);
        }
        if self.output == Output::Text
            && let Some(finding) = report.findings.last()
            && !is_clean(done)
        {
            self.bar.suspend(|| println!("{finding}"));
        }
        self.show(path, report.files());
    }
}

fn is_clean(done: &Done) -> bool {
    match done {
        Done::Scanned(scanned) => scanned.verdict == palisade_protocol::verdict::Verdict::Clean,
        Done::Skipped | Done::Packaged | Done::SetAside => true,
        Done::Failed(_) => false,
    }
}
