//! What the queue is asked and what it answers.

use std::time::Duration;

use palisade_protocol::scan::ScanClass;

use super::running::Ticket;

/// How much may wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Entries in all. What was stopped waits beyond that: at most one for each lane.
    pub total: usize,
    /// Entries of one tenant.
    pub per_tenant: usize,
    /// Entries of one agent.
    pub per_agent: usize,
}

/// How much may run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Scans at a time.
    pub lanes: usize,
    /// Long ones at a time beside these.
    pub side_lanes: usize,
    /// Microseconds on its lane after which a scan gives way.
    pub give_way_us: u64,
}

impl Layout {
    /// For so many lanes: half as many beside them, and at least one.
    pub fn new(lanes: usize, give_way: Duration) -> Self {
        let lanes = lanes.max(1);
        Self {
            lanes,
            side_lanes: (lanes / 2).max(1),
            give_way_us: u64::try_from(give_way.as_micros()).unwrap_or(u64::MAX),
        }
    }

    /// Scans at a time, long ones included.
    pub fn all(self) -> usize {
        self.lanes + self.side_lanes
    }
}

/// Turned away; worth trying again after this many milliseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Busy {
    /// Milliseconds.
    pub retry_after_ms: u32,
}

/// What an entry asks for. `T` names tenants, `A` agents.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask<T, A> {
    /// Whose guest it is.
    pub tenant: T,
    /// Which agent's it is.
    pub agent: A,
    /// How urgent.
    pub class: ScanClass,
    /// When the answer is of no more use, in microseconds; `None` for never.
    pub deadline_us: Option<u64>,
}

/// A scan that starts.
#[derive(Debug, PartialEq, Eq)]
pub struct Start<I> {
    /// Its name until its end.
    pub ticket: Ticket,
    /// What was pushed.
    pub item: I,
}

/// Which scan gives way now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GiveWay {
    /// None, until something else happens.
    Nobody,
    /// None before this time, in microseconds.
    NotBefore(u64),
    /// This one goes on aside: its lane is free.
    Moved(Ticket),
    /// This one is to be stopped, and its content put back.
    Stop(Ticket),
}
