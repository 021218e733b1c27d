//! What is protected on access at the moment, for whoever asks: how many file systems are
//! marked, and every gap.

use std::sync::{Arc, PoisonError, RwLock};

use super::places::{Gap, Places};

/// Gaps that are kept by name; more are counted in one.
const MOST_GAPS: usize = 128;

/// What is protected.
#[derive(Debug, Clone, Default)]
pub struct Covered {
    /// File systems that are marked.
    pub file_systems: usize,
    /// Mount namespaces besides the agent's own that were looked at.
    pub namespaces: usize,
    /// What was to be protected and is not.
    pub gaps: Vec<Gap>,
}

/// It, shared by clones.
#[derive(Debug, Clone, Default)]
pub struct Coverage(Arc<RwLock<Covered>>);

impl Coverage {
    /// As it is at the start.
    pub fn new(places: &Places) -> Self {
        let covered = Covered {
            gaps: places.gaps.clone(),
            ..Covered::default()
        };
        Self(Arc::new(RwLock::new(covered)))
    }

    /// What is protected now.
    pub fn now(&self) -> Covered {
        let covered = self.0.read().unwrap_or_else(PoisonError::into_inner);
        covered.clone()
    }

    /// Sets it; gives the gaps that are new.
    pub fn set(&self, mut covered: Covered) -> Vec<Gap> {
        let more = covered.gaps.len().saturating_sub(MOST_GAPS);
        if more > 0 {
            covered.gaps.truncate(MOST_GAPS);
            let reason = format!("{more} more mounts are not protected");
            covered.gaps.push(Gap::of("…", &reason));
        }
        let mut now = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let is_new = |gap: &&Gap| !now.gaps.contains(gap);
        let new = covered.gaps.iter().filter(is_new).cloned().collect();
        *now = covered;
        new
    }

    /// Takes note that nothing is marked any more.
    pub fn end(&self) {
        let mut now = self.0.write().unwrap_or_else(PoisonError::into_inner);
        now.file_systems = 0;
        now.namespaces = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_are_bounded_and_told_once() {
        let gap = |n: usize| Gap::new(format!("/{n}").as_ref(), "why");
        let coverage = Coverage::default();
        let set = |n: usize| {
            coverage.set(Covered {
                gaps: (0..n).map(gap).collect(),
                ..Covered::default()
            })
        };
        assert_eq!(set(2).len(), 2);
        assert_eq!(set(3), [gap(2)]);
        set(MOST_GAPS + 5);
        let gaps = coverage.now().gaps;
        assert_eq!(gaps.len(), MOST_GAPS + 1);
        assert!(gaps[MOST_GAPS].reason().contains("5 more"));
    }
}
