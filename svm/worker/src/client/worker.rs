//! One worker as the daemon holds it.

use super::cpu::CpuBudget;
use super::process::Shared;
use super::{SpawnError, WorkerError};
use crate::content::SealedContent;
use crate::ipc::{Channel, IpcError};
use crate::message::{
    Detail, MAX_MEMBER_BYTES, MAX_MEMBER_BYTES_PER_SCAN, MAX_MEMBERS, ScanDone, ScanOptions,
    WorkerEvent, WorkerExit, WorkerId, WorkerRequest,
};
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long the zygote's word on a worker is waited for, once the worker's own
/// channel has told of it.
const REPORT_WITHIN: Duration = Duration::from_secs(1);

/// A part that an engine unpacked from the content of a scan.
#[derive(Debug)]
pub struct Member {
    /// Counts up from 0 within a scan.
    pub index: u32,
    /// Its path inside the content, where known; empty otherwise.
    pub name: String,
    /// Its bytes.
    pub content: SealedContent,
}

/// A worker that serves. Dropping it kills the worker.
#[derive(Debug)]
pub struct WorkerHandle {
    engine: Arc<Shared>,
    worker: WorkerId,
    pid: i32,
    channel: Channel,
    gaps: Vec<Detail>,
    scan_cpu: Option<Duration>,
    next_request: u64,
    dead: bool,
}

/// Kills a worker in the midst of its scan, which then ends in [`WorkerError::Died`].
/// Names are used once, so that it harms no other when its worker is gone already.
#[derive(Debug, Clone)]
pub struct KillSwitch {
    engine: Arc<Shared>,
    worker: WorkerId,
}

impl KillSwitch {
    /// Kills it. Does not wait for its end.
    pub fn kill(&self) {
        self.engine.kill(self.worker);
    }
}

/// What a scan has handed over so far.
#[derive(Debug, Default)]
struct Handed {
    count: u32,
    bytes: u64,
}

impl WorkerHandle {
    pub(super) fn new(
        engine: Arc<Shared>,
        worker: WorkerId,
        channel: Channel,
        scan_cpu: Option<Duration>,
    ) -> Self {
        Self {
            engine,
            worker,
            pid: 0,
            channel,
            gaps: Vec::new(),
            scan_cpu,
            next_request: 1,
            dead: false,
        }
    }

    pub(super) fn wait_serving(mut self, deadline: Instant) -> Result<Self, SpawnError> {
        match self.channel.receive(Some(deadline)) {
            Ok(Some((WorkerEvent::Serving { worker, gaps }, _))) if worker == self.worker => {
                self.gaps = gaps;
                let pid = self.engine.pid_of(worker, REPORT_WITHIN);
                self.pid = pid.ok_or(SpawnError::EngineGone)?;
                Ok(self)
            }
            Ok(Some((WorkerEvent::CanaryMissed { detail }, _))) => Err(SpawnError::CanaryMissed {
                detail: detail.into(),
            }),
            Ok(Some((WorkerEvent::SandboxFailed { detail }, _))) => {
                Err(SpawnError::SandboxFailed {
                    detail: detail.into(),
                })
            }
            Ok(Some((other, _))) => {
                Err(IpcError::Malformed(format!("{other:?} before Serving")).into())
            }
            Ok(None) => match self.engine.exit_of(self.worker, REPORT_WITHIN) {
                Some(exit) => Err(SpawnError::Exited { exit }),
                None => Err(SpawnError::EngineGone),
            },
            Err(IpcError::TimedOut) => Err(SpawnError::TimedOut),
            Err(error) => Err(error.into()),
        }
    }

    /// The worker's name within its engine.
    pub fn id(&self) -> WorkerId {
        self.worker
    }

    /// Its process id, as the zygote sees it.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Memory that would not be there without it (bytes), as the kernel counts: what
    /// it costs beyond the definitions that it shares. Only root may ask.
    ///
    /// # Errors
    /// When the kernel does not say.
    pub fn private_bytes(&self) -> io::Result<u64> {
        let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.pid))?;
        let kib = |line: &str| {
            let value = line
                .strip_prefix("Private_Clean:")
                .or_else(|| line.strip_prefix("Private_Dirty:"))?;
            value.trim().strip_suffix(" kB")?.parse::<u64>().ok()
        };
        Ok(rollup.lines().filter_map(kib).sum::<u64>() << 10)
    }

    /// What its sandbox lacks on this machine, each with a remedy; nothing, unless
    /// that was allowed.
    pub fn gaps(&self) -> &[Detail] {
        &self.gaps
    }

    /// Whether it can be asked for another scan: it did not fail, did not die, and
    /// said nothing since its last answer. A worker that speaks unasked may have
    /// been taken over, and be answering what it will be asked.
    pub fn is_usable(&self) -> bool {
        !self.dead && !self.channel.has_news()
    }

    /// Scans that it was asked for.
    pub fn scans(&self) -> u64 {
        self.next_request - 1
    }

    /// What ended the worker, if it is known to have ended.
    pub fn exit(&self) -> Option<WorkerExit> {
        self.engine.exit_of(self.worker, Duration::ZERO)
    }

    /// What ends it from another thread.
    pub fn kill_switch(&self) -> KillSwitch {
        KillSwitch {
            engine: Arc::clone(&self.engine),
            worker: self.worker,
        }
    }

    /// Scans one content. Members, if the options ask for them, are handed to
    /// `on_member` as they come; the time that takes counts.
    ///
    /// # Errors
    /// After any error the worker is gone. [`WorkerError::TimedOut`] if there is no
    /// result within `deadline`, [`WorkerError::OutOfCpuTime`] if it took more
    /// processor time than its engine's command allows.
    pub fn scan(
        &mut self,
        content: &SealedContent,
        options: ScanOptions,
        deadline: Duration,
        on_member: &mut dyn FnMut(Member),
    ) -> Result<ScanDone, WorkerError> {
        self.scan_fd(
            content.as_fd(),
            content.size(),
            options,
            deadline,
            on_member,
        )
    }

    /// As [`Self::scan`], for a descriptor that may not be what it should: the
    /// worker judges it (for tests of the worker).
    ///
    /// # Errors
    /// As [`Self::scan`].
    pub fn scan_unverified(
        &mut self,
        fd: OwnedFd,
        size: u64,
        deadline: Duration,
    ) -> Result<ScanDone, WorkerError> {
        self.scan_fd(
            fd.as_fd(),
            size,
            ScanOptions::default(),
            deadline,
            &mut drop,
        )
    }

    fn scan_fd(
        &mut self,
        fd: BorrowedFd<'_>,
        size: u64,
        options: ScanOptions,
        deadline: Duration,
        on_member: &mut dyn FnMut(Member),
    ) -> Result<ScanDone, WorkerError> {
        if self.dead {
            return Err(WorkerError::Died { exit: self.exit() });
        }
        let deadline = Instant::now() + deadline;
        let request = self.next_request;
        self.next_request += 1;
        let members = options.members;
        let message = WorkerRequest::Scan {
            request,
            size,
            options,
        };
        let result = self
            .channel
            .send(&message, Some(fd))
            .map_err(|error| self.lost(error))
            .and_then(|()| self.await_done(request, members, deadline, on_member));
        if result.is_err() {
            self.dead = true;
            self.engine.kill(self.worker);
        }
        result
    }

    fn await_done(
        &self,
        request: u64,
        members: bool,
        deadline: Instant,
        on_member: &mut dyn FnMut(Member),
    ) -> Result<ScanDone, WorkerError> {
        let mut handed = Handed::default();
        let cpu = self
            .scan_cpu
            .and_then(|cpu| CpuBudget::start(self.pid, cpu));
        loop {
            match self.next_event(deadline, cpu.as_ref())? {
                Some((WorkerEvent::Done(done), _)) if done.request == request => return Ok(done),
                Some((
                    WorkerEvent::Member {
                        request: of,
                        index,
                        name,
                        size,
                    },
                    Some(fd),
                )) if of == request && members => {
                    handed
                        .add(index, size)
                        .map_err(|detail| self.broke(detail))?;
                    let content = SealedContent::copied(fd, size)
                        .map_err(|error| self.broke(error.to_string()))?;
                    on_member(Member {
                        index,
                        name: name.into(),
                        content,
                    });
                }
                Some((WorkerEvent::CanaryMissed { detail }, _)) => {
                    return Err(WorkerError::CanaryMissed {
                        detail: detail.into(),
                    });
                }
                Some((other, _)) => return Err(self.broke(format!("unexpected {other:?}"))),
                None => return Err(self.died()),
            }
        }
    }

    /// The next packet, within both the clock's deadline and the processor's.
    fn next_event(
        &self,
        deadline: Instant,
        cpu: Option<&CpuBudget>,
    ) -> Result<Option<(WorkerEvent, Option<OwnedFd>)>, WorkerError> {
        loop {
            let look = match cpu.map(CpuBudget::look_in) {
                None => deadline,
                Some(Some(wait)) => deadline.min(Instant::now() + wait),
                Some(None) => return Err(WorkerError::OutOfCpuTime),
            };
            match self.channel.receive(Some(look)) {
                Err(IpcError::TimedOut) if look < deadline => {}
                received => return received.map_err(|error| self.lost(error)),
            }
        }
    }

    fn lost(&self, error: IpcError) -> WorkerError {
        match error {
            IpcError::TimedOut => WorkerError::TimedOut,
            IpcError::Io(_) => self.died(),
            other => self.broke(other.to_string()),
        }
    }

    fn died(&self) -> WorkerError {
        WorkerError::Died {
            exit: self.engine.exit_of(self.worker, REPORT_WITHIN),
        }
    }

    fn broke(&self, detail: String) -> WorkerError {
        WorkerError::Protocol { detail }
    }
}

impl Drop for WorkerHandle {
    fn drop(&mut self) {
        self.engine.kill_and_forget(self.worker);
    }
}

impl Handed {
    /// Counts one more member; the bounds are the worker's, checked again because
    /// the worker reads hostile bytes.
    fn add(&mut self, index: u32, size: u64) -> Result<(), String> {
        self.bytes = self.bytes.saturating_add(size);
        let expected = self.count;
        self.count += 1;
        if index != expected
            || self.count > MAX_MEMBERS
            || size > MAX_MEMBER_BYTES
            || self.bytes > MAX_MEMBER_BYTES_PER_SCAN
        {
            return Err(format!(
                "member {index} of {size} bytes is over a bound or out of order"
            ));
        }
        Ok(())
    }
}

/// A worker that has been taken over says whatever it likes.
#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{MemberName, Outcome, ZygoteRequest};
    use nix::sys::socket::{MsgFlags, send};
    use std::os::fd::AsRawFd;

    const SOON: Duration = Duration::from_millis(50);

    /// A handle, and what is needed to speak as its worker.
    fn handle() -> (WorkerHandle, Channel, Channel) {
        let (control, zygote) = Channel::pair().unwrap();
        let (ours, theirs) = Channel::pair().unwrap();
        let handle = WorkerHandle::new(Arc::new(Shared::new(control)), 1, ours, None);
        (handle, theirs, zygote)
    }

    fn scan(handle: &mut WorkerHandle, members: bool) -> Result<ScanDone, WorkerError> {
        let content = SealedContent::from_bytes(b"content").unwrap();
        let options = ScanOptions {
            members,
            ..ScanOptions::default()
        };
        handle.scan(&content, options, SOON, &mut drop)
    }

    fn done(request: u64) -> WorkerEvent {
        WorkerEvent::Done(ScanDone {
            request,
            outcome: Outcome::Clean,
            members_truncated: false,
            cpu_ms: 0,
            wall_ms: 0,
        })
    }

    fn member(request: u64, index: u32, size: u64) -> WorkerEvent {
        WorkerEvent::Member {
            request,
            index,
            name: MemberName::default(),
            size,
        }
    }

    #[test]
    fn lies_end_the_scan_and_the_worker() {
        let sealed = SealedContent::from_bytes(b"abc").unwrap();
        let open = std::io::pipe().unwrap().0;
        let sealed = Some(sealed.as_fd());
        let lies = [
            ("another request's end", true, done(2), None),
            (
                "a member that nobody asked for",
                false,
                member(1, 0, 3),
                sealed,
            ),
            ("another request's member", true, member(2, 0, 3), sealed),
            ("a member without content", true, member(1, 0, 3), None),
            (
                "content that is no file",
                true,
                member(1, 0, 3),
                Some(open.as_fd()),
            ),
            ("another size", true, member(1, 0, 4), sealed),
            ("a gap", true, member(1, 1, 3), sealed),
            (
                "too large a member",
                true,
                member(1, 0, MAX_MEMBER_BYTES + 1),
                sealed,
            ),
            (
                "serving once more",
                true,
                WorkerEvent::Serving {
                    worker: 1,
                    gaps: Vec::new(),
                },
                None,
            ),
        ];
        for (what, members, lie, fd) in lies {
            let (mut handle, worker, zygote) = handle();
            worker.send(&lie, fd).unwrap();
            let result = scan(&mut handle, members);
            assert!(
                matches!(result, Err(WorkerError::Protocol { .. })),
                "{what}: {result:?}"
            );
            assert!(!handle.is_usable(), "{what}");
            let asked = zygote.receive::<ZygoteRequest>(None).unwrap().unwrap().0;
            assert_eq!(asked, ZygoteRequest::Kill { worker: 1 }, "{what}");
        }
    }

    #[test]
    fn noise_silence_and_absence_are_told_apart() {
        let (mut handle, worker, _zygote) = handle();
        send(worker.as_fd().as_raw_fd(), &[0xff; 64], MsgFlags::empty()).unwrap();
        let result = scan(&mut handle, false);
        assert!(
            matches!(result, Err(WorkerError::Protocol { .. })),
            "{result:?}"
        );

        let (mut handle, _worker, _zygote) = self::handle();
        let result = scan(&mut handle, false);
        assert!(matches!(result, Err(WorkerError::TimedOut)), "{result:?}");

        let (mut handle, worker, _zygote) = self::handle();
        drop(worker);
        let result = scan(&mut handle, false);
        assert!(
            matches!(result, Err(WorkerError::Died { .. })),
            "{result:?}"
        );

        let (mut handle, worker, _zygote) = self::handle();
        worker.send(&done(1), None).unwrap();
        assert!(scan(&mut handle, false).is_ok());
    }

    #[test]
    fn who_speaks_unasked_is_not_asked_again() {
        let (mut handle, worker, _zygote) = handle();
        assert!(handle.is_usable());
        worker.send(&done(1), None).unwrap();
        assert!(scan(&mut handle, false).is_ok());
        assert!(handle.is_usable());
        // The answer to a scan that nobody asked for yet.
        worker.send(&done(2), None).unwrap();
        assert!(!handle.is_usable());

        let (handle, worker, _zygote) = self::handle();
        drop(worker);
        assert!(!handle.is_usable());
    }
}
