//! A worker: sandbox, warm-up, canary, then one scan after the other until the
//! daemon closes the channel.
//!
//! ```text
//! forked ─► sandbox ─► enter_worker ─► canary ─► Serving ─► Scan ─► Member… ─► Done ─┐
//!             │             │            │                   ▲                       │
//!             ▼             └─────┬──────┘                   └── canary every so often
//!        SandboxFailed       CanaryMissed
//! ```

use super::{Engine, Limits, sandbox};
use crate::content::{MemFile, SealedContent};
use crate::ipc::{Channel, IpcError};
use crate::message::{
    MAX_MEMBER_BYTES, MAX_MEMBER_BYTES_PER_SCAN, MAX_MEMBERS, MemberName, NotScanned, Outcome,
    ScanDone, ScanOptions, WorkerEvent, WorkerId, WorkerRequest,
};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use nix::unistd::Pid;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
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
    pub scratch: PathBuf,
    pub limits: Limits,
}

/// The whole life of a worker; gives its exit code.
pub(super) fn serve<E: Engine>(engine: E, channel: &Channel, place: &Place) -> i32 {
    // Freeing the definitions would copy every page that is shared with the zygote,
    // only to end the process.
    let mut engine = ManuallyDrop::new(engine);
    if let Err(detail) = sandbox::enter(place, channel) {
        return refuse(
            channel,
            &WorkerEvent::SandboxFailed {
                detail: detail.as_str().into(),
            },
        );
    }
    if let Err(detail) = engine
        .enter_worker(&place.scratch)
        .and_then(|()| engine.canary())
    {
        return refuse(
            channel,
            &WorkerEvent::CanaryMissed {
                detail: detail.as_str().into(),
            },
        );
    }
    if channel
        .send(
            &WorkerEvent::Serving {
                worker: place.worker,
            },
            None,
        )
        .is_err()
    {
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
    members.failed.map_or(Ok(()), Err)?;
    Ok(ScanDone {
        request,
        outcome,
        members_truncated: members.truncated,
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

/// Where an engine puts what it unpacks; keeps to the bounds, and remembers when
/// one was hit.
#[derive(Debug)]
pub struct MemberSink<'a> {
    channel: Option<&'a Channel>,
    request: u64,
    count: u32,
    bytes: u64,
    truncated: bool,
    failed: Option<IpcError>,
}

impl<'a> MemberSink<'a> {
    fn new(channel: &'a Channel, request: u64, wanted: bool) -> Self {
        Self {
            channel: wanted.then_some(channel),
            ..Self::nowhere(request)
        }
    }

    fn nowhere(request: u64) -> Self {
        Self {
            channel: None,
            request,
            count: 0,
            bytes: 0,
            truncated: false,
            failed: None,
        }
    }

    /// Whether anybody wants members.
    pub fn wanted(&self) -> bool {
        self.channel.is_some() && self.failed.is_none()
    }

    /// Hands over one member. Over a bound it is left out, and the end of the scan
    /// says so.
    pub fn member(&mut self, name: MemberName, content: &[u8]) {
        let Some(channel) = self.channel.filter(|_| self.failed.is_none()) else {
            return;
        };
        let size = content.len() as u64;
        let total = self.bytes.saturating_add(size);
        if self.count >= MAX_MEMBERS || size > MAX_MEMBER_BYTES || total > MAX_MEMBER_BYTES_PER_SCAN
        {
            self.truncated = true;
            return;
        }
        let sealed = match seal(content) {
            Ok(sealed) => sealed,
            Err(_) => {
                self.truncated = true;
                return;
            }
        };
        let event = WorkerEvent::Member {
            request: self.request,
            index: self.count,
            name,
            size,
        };
        match channel.send(&event, Some(sealed.as_fd())) {
            Ok(()) => {
                self.count += 1;
                self.bytes = total;
            }
            Err(error) => self.failed = Some(error),
        }
    }

    /// Says that something was unpacked which could not be handed over.
    pub fn left_out(&mut self) {
        if self.channel.is_some() {
            self.truncated = true;
        }
    }
}

fn seal(content: &[u8]) -> io::Result<SealedContent> {
    let file = MemFile::create(content.len() as u64)?;
    file.write_at(content, 0)?;
    file.seal()
}

/// Scans `content` as a canary: fine only if a signature called `name` is found.
pub fn check_canary<E: Engine + ?Sized>(
    engine: &mut E,
    content: &[u8],
    name: &str,
) -> Result<(), String> {
    let content = seal(content).map_err(|error| format!("canary content: {error}"))?;
    match engine.scan(
        &content,
        &ScanOptions::default(),
        &mut MemberSink::nowhere(0),
    ) {
        Outcome::Found { names, .. } if names.iter().any(|found| found.as_str() == name) => Ok(()),
        other => Err(format!("the canary {name} was not found, but {other:?}")),
    }
}
