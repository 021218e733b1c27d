//! In which order a walk's files are taken: a mixed one, so that guests that start from
//! one image ask for different contents first.

use std::sync::atomic::{self, AtomicBool};

use rand::seq::SliceRandom as _;
use tokio::sync::mpsc;

use super::walk::Found;

/// Files among which the order is mixed: enough for many guests to be at different
/// ones, near enough to each other on the disk, and a bounded number of paths.
const MIXED: usize = 1024;

/// Takes what a walk comes upon; `None` ends the walk.
pub trait Sink {
    /// A file, or what cannot be looked at.
    fn found(&mut self, found: Found) -> Option<()>;

    /// Something is not given, since it is among what is done ahead.
    fn skipped(&mut self) -> Option<()>;

    /// The first walk has ended; what comes now is to come after it.
    fn walked(&mut self) -> Option<()> {
        Some(())
    }
}

/// Sends what it is given in a mixed order, a block after the other, so that nothing
/// is held back for long.
pub struct Mixed<'a> {
    block: Vec<Found>,
    /// Files of this block that are done: a block is the same part of the walk however
    /// often it is begun.
    skipped: usize,
    found: &'a mpsc::Sender<Found>,
}

impl Sink for Mixed<'_> {
    fn found(&mut self, found: Found) -> Option<()> {
        self.block.push(found);
        self.full()
    }

    fn skipped(&mut self) -> Option<()> {
        self.skipped += 1;
        self.full()
    }

    fn walked(&mut self) -> Option<()> {
        self.flush()
    }
}

impl<'a> Mixed<'a> {
    /// Sends to this channel.
    pub fn new(found: &'a mpsc::Sender<Found>) -> Self {
        Self {
            block: Vec::new(),
            skipped: 0,
            found,
        }
    }

    fn full(&mut self) -> Option<()> {
        if self.block.len() + self.skipped < MIXED {
            return Some(());
        }
        self.flush()
    }

    /// Sends what is held back.
    pub fn flush(&mut self) -> Option<()> {
        self.skipped = 0;
        self.block.shuffle(&mut rand::rng());
        for found in self.block.drain(..) {
            self.found.blocking_send(found).ok()?;
        }
        Some(())
    }
}

/// Counts what it is given.
pub struct Counted<'a> {
    /// So far.
    pub files: u64,
    stop: &'a AtomicBool,
}

impl<'a> Counted<'a> {
    /// Counts until it is told to stop.
    pub fn new(stop: &'a AtomicBool) -> Self {
        Self { files: 0, stop }
    }
}

impl Sink for Counted<'_> {
    fn found(&mut self, _: Found) -> Option<()> {
        self.files += 1;
        (!self.stop.load(atomic::Ordering::Relaxed)).then_some(())
    }

    fn skipped(&mut self) -> Option<()> {
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::walk::Position;
    use super::*;
    use std::path::PathBuf;

    /// In one order every guest would wait for the same scan.
    #[test]
    fn each_walk_takes_every_file_once_in_an_order_of_its_own() {
        let order = || {
            let (send, mut receive) = mpsc::channel(4 * MIXED);
            let mut mixed = Mixed::new(&send);
            for number in 0..3 * MIXED as u64 + 7 {
                let at = Position {
                    root: 0,
                    path: PathBuf::new(),
                };
                mixed
                    .found(Found {
                        number,
                        at,
                        again: false,
                        problem: None,
                    })
                    .unwrap();
                assert!(mixed.block.len() < MIXED);
            }
            mixed.flush().unwrap();
            drop(send);
            std::iter::from_fn(|| receive.try_recv().ok())
                .map(|found| found.number)
                .collect::<Vec<u64>>()
        };
        let (one, other) = (order(), order());
        let same = one.iter().zip(&other).filter(|(a, b)| a == b).count();
        assert!(same < MIXED / 8, "{same} files are at the same place");
        for mut order in [one, other] {
            order.sort_unstable();
            assert!(order.into_iter().eq(0..3 * MIXED as u64 + 7));
        }
    }
}
