//! A worker: sandbox, warm-up, canary, then one scan after the other until the
//! daemon closes the channel.
//!
//! ```text
//! forked ─► sandbox ─► enter_worker ─► seccomp ─► canary ─► Serving ─► Scan ─► Member… ─► Done ─┐
//!              │             │            │          │                   ▲                      │
//!              ▼             ▼            ▼          ▼                   └─ canary every so often
//!        SandboxFailed CanaryMissed SandboxFailed CanaryMissed
//! ```

use super::Engine;
use super::members::MemberSink;
use super::sandbox::{self, Confinement, Gap, Scratch};
use crate::content::SealedContent;
use crate::ipc::{Channel, IpcError};
use crate::message::{
    Detail, NotScanned, Outcome, ScanDone, ScanOptions, WorkerEvent, WorkerId, WorkerRequest,
};
use crate::sys;
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use nix::unistd::Pid;
use std::mem::ManuallyDrop;
use std::os::fd::OwnedFd;
use std::time::Instant;

/// The daemon closed the channel.
pub(super) const EXIT_DONE: i32 = 0;
/// The worker refused to serve, and said why.
pub(super) const EXIT_REFUSED: i32 = 3;
/// The channel broke.
pub(super) const EXIT_CHANNEL: i32 = 4;

/// Scans between two looks for the canary.
const CANARY_EVERY: u64 = 500;

/// Where a worker finds itself after the fork.
#[derive(Debug)]
pub(super) struct Place {
    pub worker: WorkerId,
    pub parent: Pid,
    pub scratch: Scratch,
    pub confinement: Confinement,
    /// What the zygote lacked for its namespaces.
    pub namespaces: Option<Gap>,
}

/// The whole life of a worker; gives its exit code.
pub(super) fn serve<E: Engine>(engine: E, channel: &Channel, place: &Place) -> i32 {
    // Freeing the definitions would copy every page that is shared with the zygote,
    // only to end the process.
    let mut engine = ManuallyDrop::new(engine);
    let gaps = match prepare(&mut *engine, channel, place) {
        Ok(gaps) => gaps,
        Err(event) => return refuse(channel, &event),
    };
    let serving = WorkerEvent::Serving {
        worker: place.worker,
        gaps,
    };
    if channel.send(&serving, None).is_err() {
        return EXIT_CHANNEL;
    }
    let mut scans: u64 = 0;
    loop {
        let (request, fd) = match channel.receive(None) {
            Ok(Some(packet)) => packet,
            Ok(None) => return EXIT_DONE,
            Err(_) => return EXIT_CHANNEL,
        };
        let WorkerRequest::Scan {
            request,
            size,
            options,
        } = request;
        let Ok(mut done) = scan(&mut *engine, channel, request, fd, size, &options) else {
            return EXIT_CHANNEL;
        };
        scans += 1;
        // An engine that just failed, or that has served long, has to show that it
        // still finds anything before its next "clean" is believed.
        let failed = matches!(
            done.outcome,
            Outcome::NotScanned {
                reason: NotScanned::EngineError { .. }
            }
        );
        let missed = match scans.is_multiple_of(CANARY_EVERY) || failed {
            true => engine.canary().err(),
            false => None,
        };
        if let Some(detail) = &missed
            && done.outcome == Outcome::Clean
        {
            done.outcome = Outcome::engine_error(format!("the canary was missed: {detail}"));
        }
        if channel.send(&WorkerEvent::Done(done), None).is_err() {
            return EXIT_CHANNEL;
        }
        if let Some(detail) = missed {
            return refuse(
                channel,
                &WorkerEvent::CanaryMissed {
                    detail: detail.as_str().into(),
                },
            );
        }
    }
}

/// Sandbox, warm-up and canary; gives what the sandbox had to leave out.
fn prepare<E: Engine>(
    engine: &mut E,
    channel: &Channel,
    place: &Place,
) -> Result<Vec<Detail>, WorkerEvent> {
    let sandbox_failed = |detail: String| WorkerEvent::SandboxFailed {
        detail: detail.as_str().into(),
    };
    let canary_missed = |detail: String| WorkerEvent::CanaryMissed {
        detail: detail.as_str().into(),
    };
    sys::give_memory_back();
    let mut gaps = sandbox::enter(place, channel).map_err(sandbox_failed)?;
    engine
        .enter_worker(place.scratch.path())
        .map_err(canary_missed)?;
    sandbox::lock(place, channel, &mut gaps).map_err(sandbox_failed)?;
    engine.canary().map_err(canary_missed)?;
    Ok(gaps)
}

fn refuse(channel: &Channel, event: &WorkerEvent) -> i32 {
    match channel.send(event, None) {
        Ok(()) => EXIT_REFUSED,
        Err(_) => EXIT_CHANNEL,
    }
}

fn scan<E: Engine>(
    engine: &mut E,
    channel: &Channel,
    request: u64,
    fd: Option<OwnedFd>,
    size: u64,
    options: &ScanOptions,
) -> Result<ScanDone, IpcError> {
    let (started, cpu) = (Instant::now(), cpu_ms());
    let mut members = MemberSink::new(channel, request, options.members);
    let outcome = match fd.map(|fd| SealedContent::verify(fd, size)) {
        None => Outcome::engine_error("no content came with the request"),
        Some(Err(error)) => Outcome::engine_error(error.to_string()),
        Some(Ok(content)) => engine.scan(&content, options, &mut members),
    };
    members.failure()?;
    Ok(ScanDone {
        request,
        outcome,
        members_truncated: members.is_truncated(),
        cpu_ms: cpu_ms().saturating_sub(cpu),
        wall_ms: u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX),
    })
}

/// Processor time of this process so far (milliseconds).
fn cpu_ms() -> u64 {
    getrusage(UsageWho::RUSAGE_SELF).map_or(0, |usage| {
        let total = usage.user_time() + usage.system_time();
        u64::try_from(total.num_milliseconds()).unwrap_or(0)
    })
}
