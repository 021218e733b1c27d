//! From samples to what is printed: median, spread, percentiles, ratio.

use serde::Serialize;

/// What repeated measurements come to.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Summary {
    /// How many there were.
    pub samples: usize,
    /// The middle one; between two, their mean.
    pub median: f64,
    /// The smallest.
    pub min: f64,
    /// The largest.
    pub max: f64,
}

impl Summary {
    /// Sums samples up; `None` when there are none.
    pub fn of(samples: &[f64]) -> Option<Self> {
        let sorted = sorted(samples);
        let (min, max) = (*sorted.first()?, *sorted.last()?);
        let middle = sorted.len() / 2;
        let median = match sorted.len() % 2 {
            0 => sorted[middle - 1].midpoint(sorted[middle]),
            _ => sorted[middle],
        };
        Some(Self {
            samples: sorted.len(),
            median,
            min,
            max,
        })
    }

    /// A value that was counted, not sampled.
    pub fn one(value: f64) -> Self {
        Self {
            samples: 1,
            median: value,
            min: value,
            max: value,
        }
    }
}

/// The smallest sample that is at least as large as `permille` of them; `None` when
/// there are none.
pub fn percentile(samples: &[f64], permille: usize) -> Option<f64> {
    let sorted = sorted(samples);
    let rank = (sorted.len() * permille.min(1000)).div_ceil(1000);
    sorted.get(rank.saturating_sub(1)).copied()
}

/// Ours to theirs; `None` where theirs is nothing.
pub fn ratio(ours: f64, peer: f64) -> Option<f64> {
    (peer > 0.0).then(|| ours / peer)
}

fn sorted(samples: &[f64]) -> Vec<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_samples() {
        let odd = Summary::of(&[3.0, 1.0, 2.0]).unwrap();
        assert_eq!(
            (odd.median, odd.min, odd.max, odd.samples),
            (2.0, 1.0, 3.0, 3)
        );
        assert_eq!(Summary::of(&[4.0, 1.0, 2.0, 3.0]).unwrap().median, 2.5);
        assert_eq!(Summary::of(&[]), None);
        let hundred: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!(percentile(&hundred, 500), Some(50.0));
        assert_eq!(percentile(&hundred, 990), Some(99.0));
        assert_eq!(percentile(&hundred, 1000), Some(100.0));
        assert_eq!(percentile(&hundred, 0), Some(1.0));
        assert_eq!(percentile(&[], 500), None);
        assert_eq!(ratio(1.0, 2.0), Some(0.5));
        assert_eq!(ratio(1.0, 0.0), None);
    }

    proptest! {
        #[test]
        fn the_median_halves_and_the_spread_holds_all(samples in proptest::collection::vec(-1e9..1e9, 1..200)) {
            let summary = Summary::of(&samples).unwrap();
            let below = samples.iter().filter(|sample| **sample < summary.median).count();
            let above = samples.iter().filter(|sample| **sample > summary.median).count();
            prop_assert!(below <= samples.len() / 2 && above <= samples.len() / 2);
            prop_assert!(samples.iter().all(|sample| (summary.min..=summary.max).contains(sample)));
            let p99 = percentile(&samples, 990).unwrap();
            prop_assert!(p99 >= summary.median || samples.len() < 3);
            prop_assert!(samples.contains(&p99));
        }
    }
}
