//! Idle workers, by the tenant whose content they have seen: pure.
//!
//! **Invariant:** a worker that scanned one tenant's content is never given another
//! tenant's.

use std::collections::VecDeque;

use palisade_worker::client::{NotScanned, Outcome, ScanDone};

/// Idle workers, a bounded number of them.
#[derive(Debug)]
pub struct Idle<T, W> {
    /// The least recently used first.
    workers: VecDeque<(T, W)>,
    max: usize,
}

impl<T: PartialEq, W> Idle<T, W> {
    /// Room for `max`.
    pub fn new(max: usize) -> Self {
        Self {
            workers: VecDeque::new(),
            max,
        }
    }

    /// Takes the tenant's most recently used one, whose memory is warm.
    pub fn take(&mut self, tenant: &T) -> Option<W> {
        let at = self.workers.iter().rposition(|(of, _)| of == tenant)?;
        self.workers.remove(at).map(|(_, worker)| worker)
    }

    /// Keeps a worker that has scanned the tenant's content; gives back one that
    /// there is no more room for.
    pub fn put(&mut self, tenant: T, worker: W) -> Option<W> {
        self.workers.push_back((tenant, worker));
        let over = self.workers.len() > self.max;
        over.then(|| self.workers.pop_front())
            .flatten()
            .map(|(_, worker)| worker)
    }
}

/// Whether a worker may go on after a scan: not if it has served long, and not if
/// anything was odd about the scan. What a hostile content can do to an engine it
/// does by such scans.
pub fn is_fit(done: &ScanDone, scans: u64, recycle_after: u64) -> bool {
    let odd = matches!(
        &done.outcome,
        Outcome::NotScanned {
            reason: NotScanned::EngineError { .. }
                | NotScanned::TimedOut
                | NotScanned::Limit { .. },
        }
    );
    !odd && !done.members_truncated && scans < recycle_after
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn oddities_and_age_end_a_worker() {
        let done = |outcome, members_truncated| ScanDone {
            request: 1,
            outcome,
            members_truncated,
            cpu_ms: 0,
            wall_ms: 0,
        };
        let not_scanned = |reason| Outcome::NotScanned { reason };
        let found = Outcome::found(["X".into()], false);
        for outcome in [Outcome::Clean, found, not_scanned(NotScanned::Encrypted)] {
            assert!(is_fit(&done(outcome.clone(), false), 9, 10));
            assert!(!is_fit(&done(outcome.clone(), true), 9, 10));
            assert!(!is_fit(&done(outcome, false), 10, 10));
        }
        for reason in [
            NotScanned::TimedOut,
            NotScanned::Limit { which: "X".into() },
            NotScanned::EngineError { detail: "x".into() },
        ] {
            assert!(!is_fit(&done(not_scanned(reason), false), 1, 10));
        }
    }

    #[derive(Debug, Clone, Copy)]
    enum Step {
        Take(u8),
        Put(u8),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            (0..4_u8).prop_map(Step::Take),
            (0..4_u8).prop_map(Step::Put)
        ];
        proptest::collection::vec(step, 0..64)
    }

    proptest! {
        #[test]
        fn no_worker_changes_its_tenant_and_none_is_lost(max in 0..5_usize, steps in steps()) {
            let mut idle = Idle::new(max);
            let (mut made, mut kept) = (0_u32, 0);
            for step in steps {
                match step {
                    Step::Put(tenant) => {
                        made += 1;
                        kept += 1;
                        if idle.put(tenant, (tenant, made)).is_some() {
                            kept -= 1;
                        }
                    }
                    Step::Take(tenant) => {
                        if let Some((of, _)) = idle.take(&tenant) {
                            prop_assert_eq!(of, tenant);
                            kept -= 1;
                        }
                    }
                }
                prop_assert_eq!(idle.workers.len(), kept);
                prop_assert!(kept <= max);
            }
        }
    }
}
