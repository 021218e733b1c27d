//! How often what was seen, and what it cost, in bounded memory: pure.
//!
//! Space-saving counts (Metwally and others): a new name takes the place of the rarest,
//! with its count as the error. Whatever is seen more often than one in `bound` is
//! there, and its count is too high by its error at the most.

use std::collections::HashMap;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// One name's counts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Row {
    /// Which.
    pub name: String,
    /// How often it was seen, too high by `error` at the most.
    pub opens: u64,
    /// See `opens`.
    pub error: u64,
    /// How often a Protection Server was asked.
    pub asked: u64,
    /// How long that took in all, in microseconds.
    pub took_us: u64,
}

/// The counts.
#[derive(Debug)]
pub struct Tally {
    bound: usize,
    rows: HashMap<String, Row>,
}

impl Tally {
    /// None yet, for at most `bound` names.
    pub fn new(bound: usize) -> Self {
        Self {
            bound,
            rows: HashMap::new(),
        }
    }

    /// A name was seen; with the time that a verdict took, if one was asked for.
    pub fn add(&mut self, name: &str, took: Option<Duration>) {
        let row = match self.rows.contains_key(name) || self.rows.len() < self.bound {
            true => self.rows.entry(name.to_owned()).or_default(),
            false => {
                let rarest = self.rows.values().min_by_key(|row| row.opens);
                let Some(rarest) = rarest.map(|row| row.name.clone()) else {
                    return;
                };
                let error = self.rows.remove(&rarest).map_or(0, |row| row.opens);
                let row = self.rows.entry(name.to_owned()).or_default();
                row.opens = error;
                row.error = error;
                row
            }
        };
        if row.name.is_empty() {
            name.clone_into(&mut row.name);
        }
        row.opens += 1;
        if let Some(took) = took {
            row.asked += 1;
            let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
            row.took_us = row.took_us.saturating_add(us);
        }
    }

    /// All, the most costly first, and among equals the most often seen.
    pub fn most_costly(&self) -> Vec<Row> {
        let mut rows: Vec<Row> = self.rows.values().cloned().collect();
        rows.sort_by(|a, b| {
            let of = |row: &Row| (row.took_us, row.opens);
            of(b).cmp(&of(a)).then_with(|| a.name.cmp(&b.name))
        });
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_frequent_is_there_and_its_count_is_nearly_true(
            seen in prop::collection::vec(0_u32..30, 0..400),
            bound in 1_usize..12,
        ) {
            let mut tally = Tally::new(bound);
            let mut truth: HashMap<String, u64> = HashMap::new();
            for name in &seen {
                let name = format!("/{}", name * name / 30);
                *truth.entry(name.clone()).or_default() += 1;
                tally.add(&name, Some(Duration::from_micros(3)));
            }
            let rows = tally.most_costly();
            prop_assert!(rows.len() <= bound);
            for row in &rows {
                let true_count = truth[&row.name];
                prop_assert!(row.opens >= true_count);
                prop_assert!(row.opens - row.error <= true_count);
                prop_assert_eq!(row.took_us, 3 * row.asked);
            }
            for (name, count) in truth {
                if count > (seen.len() / bound) as u64 {
                    prop_assert!(rows.iter().any(|row| row.name == name), "{name}");
                }
            }
        }
    }
}
