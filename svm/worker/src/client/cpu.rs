//! How much processor time a worker has left for its scan.
//!
//! The daemon reads the worker's clock. Reading a clock needs no right and harms
//! nobody, should the number be another's already: that worker is dead, which its
//! channel tells.

use nix::time::{ClockId, clock_getcpuclockid};
use nix::unistd::Pid;
use std::time::Duration;

/// A worker scans in one thread, and may have another that keeps time.
const THREADS: u32 = 2;
/// The clock is not looked at more often.
const LOOK_EVERY: Duration = Duration::from_millis(10);

/// One scan's processor time.
#[derive(Debug)]
pub(super) struct CpuBudget {
    clock: ClockId,
    /// What the clock must not reach.
    end: Duration,
}

impl CpuBudget {
    /// From now on; nothing if the worker is gone.
    pub fn start(pid: i32, allowance: Duration) -> Option<Self> {
        let clock = clock_getcpuclockid(Pid::from_raw(pid)).ok()?;
        let end = Duration::from(clock.now().ok()?).saturating_add(allowance);
        Some(Self { clock, end })
    }

    /// When to look next; nothing once the time is used up.
    pub fn look_in(&self) -> Option<Duration> {
        // The clock of a worker that is gone has stopped, and its channel ends.
        let now = self.clock.now().map_or(Duration::ZERO, Duration::from);
        let left = self.end.saturating_sub(now);
        (!left.is_zero()).then(|| (left / THREADS).max(LOOK_EVERY))
    }
}
