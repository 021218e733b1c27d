//! The policy in simulated time: [`World`] has lanes that scan for as long as each
//! content says.
//!
//! | module | shows |
//! | --- | --- |
//! | [`order`] | bounds, turns, classes, deadlines |
//! | [`time`] | lane time is shared, whatever contents take |
//! | [`long`] | what long scans cost others, and themselves |

mod long;
mod order;
mod time;

use std::time::Duration;

use super::*;

pub(super) const BOUNDS: Bounds = Bounds {
    total: 16,
    per_tenant: 14,
    per_agent: 6,
};
pub(super) const UNBOUNDED: Bounds = Bounds {
    total: 100_000,
    per_tenant: 100_000,
    per_agent: 100_000,
};
/// A scan that has measured nothing expects this, in microseconds.
pub(super) const GUESS: u64 = FIRST_GUESS_US as u64;

/// Lanes on which nobody ever gives way.
pub(super) fn patient(lanes: usize) -> Layout {
    Layout::new(lanes, Duration::MAX)
}

pub(super) fn ask(agent: u8, class: ScanClass) -> Ask<u8, u8> {
    Ask {
        tenant: 0,
        agent,
        class,
        deadline_us: None,
    }
}

/// A content: whose, how long its scan takes, and when it was pushed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Content {
    pub(super) tenant: u8,
    pub(super) agent: u8,
    pub(super) class: ScanClass,
    pub(super) takes_us: u64,
    pub(super) pushed_us: u64,
    /// Times that it was stopped.
    pub(super) stopped: u32,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Scan {
    pub(super) ticket: Ticket,
    pub(super) content: Content,
    pub(super) started_us: u64,
}

/// What happened to a content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    Started,
    Ended,
}

pub(super) struct World {
    pub(super) queue: Queue<u8, u8, Content>,
    pub(super) now_us: u64,
    pub(super) scans: Vec<Scan>,
    pub(super) events: Vec<(u64, Event, Content)>,
    pub(super) moved: usize,
    pub(super) most_on_lanes: usize,
}

impl World {
    pub(super) fn new(bounds: Bounds, layout: Layout) -> Self {
        Self {
            queue: Queue::new(bounds, layout),
            now_us: 0,
            scans: Vec::new(),
            events: Vec::new(),
            moved: 0,
            most_on_lanes: 0,
        }
    }

    /// Whether it was taken.
    pub(super) fn push(&mut self, ask: Ask<u8, u8>, takes_us: u64) -> bool {
        let content = Content {
            tenant: ask.tenant,
            agent: ask.agent,
            class: ask.class,
            takes_us,
            pushed_us: self.now_us,
            stopped: 0,
        };
        self.queue.push(ask, content, self.now_us).is_ok()
    }

    /// Starts what can be started, and has give way who must. Gives the time at which to
    /// look again.
    pub(super) fn settle(&mut self) -> Option<u64> {
        loop {
            while let Some(Start { ticket, item }) = self.queue.next(self.now_us) {
                self.events.push((self.now_us, Event::Started, item));
                self.scans.push(Scan {
                    ticket,
                    content: item,
                    started_us: self.now_us,
                });
                self.most_on_lanes = self.most_on_lanes.max(self.queue.on_lanes());
            }
            match self.queue.give_way(self.now_us) {
                GiveWay::Nobody => return None,
                GiveWay::NotBefore(at) => return Some(at),
                GiveWay::Moved(_) => self.moved += 1,
                GiveWay::Stop(ticket) => {
                    let at = self.scans.iter().position(|scan| scan.ticket == ticket);
                    let mut content = self.scans.swap_remove(at.unwrap()).content;
                    content.stopped += 1;
                    self.queue.put_back(ticket, content, self.now_us);
                }
            }
        }
    }

    fn next_end(&self) -> Option<u64> {
        let ends = self
            .scans
            .iter()
            .map(|scan| scan.started_us + scan.content.takes_us);
        ends.min()
    }

    /// Lets time pass until then.
    pub(super) fn run_until(&mut self, until_us: u64) {
        loop {
            let look = self.settle();
            let next = self.next_end().into_iter().chain(look).min();
            match next {
                Some(next) if next <= until_us => self.now_us = next,
                _ => {
                    self.now_us = until_us;
                    return;
                }
            }
            let now = self.now_us;
            let (ended, go_on): (Vec<_>, Vec<_>) = std::mem::take(&mut self.scans)
                .into_iter()
                .partition(|scan| scan.started_us + scan.content.takes_us <= now);
            self.scans = go_on;
            for scan in ended {
                self.queue.end(scan.ticket, now);
                self.events.push((now, Event::Ended, scan.content));
            }
        }
    }

    /// Lets time pass until nothing waits or runs.
    pub(super) fn run_out(&mut self) {
        self.settle();
        while let Some(end) = self.next_end() {
            self.run_until(end);
            self.settle();
        }
        assert!(self.queue.is_empty(), "something is never served");
    }

    /// Contents in the order in which their scans started.
    pub(super) fn started(&self) -> impl Iterator<Item = Content> {
        let started =
            |event: &(u64, Event, Content)| (event.1 == Event::Started).then_some(event.2);
        self.events.iter().filter_map(started)
    }

    /// Agents in that order.
    pub(super) fn order(&mut self) -> Vec<u8> {
        self.run_out();
        self.started().map(|content| content.agent).collect()
    }

    /// Lane time that contents had which `of` names, up to now.
    pub(super) fn used(&self, of: impl Fn(&Content) -> bool) -> u64 {
        let ended = self.events.iter().filter(|event| event.1 == Event::Ended);
        let ended: u64 = ended
            .filter(|event| of(&event.2))
            .map(|event| event.2.takes_us)
            .sum();
        let running = self.scans.iter().filter(|scan| of(&scan.content));
        ended
            + running
                .map(|scan| self.now_us - scan.started_us)
                .sum::<u64>()
    }
}
