//! What was measured, as JSON for programs and as a table for people.
//!
//! A row is one figure: ours, the peer's in the same run, the ratio, what was
//! promised, and the physical limit beside it.

use std::fmt;

use serde::Serialize;

use crate::machine::{Load, Machine};
use crate::stats::{Summary, ratio};

/// A whole run.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The command that ran it.
    pub command: String,
    /// When it began, in UTC.
    pub date: String,
    /// Which counts it used.
    pub scale: &'static str,
    /// What was scanned with what, for people.
    pub setup: Vec<String>,
    /// Where it ran.
    pub machine: Machine,
    /// What else ran.
    pub load: Load,
    /// What was measured.
    pub measures: Vec<Measured>,
}

/// One measure's result.
#[derive(Debug, Serialize)]
pub struct Measured {
    /// Its name.
    pub name: &'static str,
    /// What it is.
    pub about: &'static str,
    /// How long it took, in seconds.
    pub took_s: f64,
    /// The load average when it began: the measure before is in it, and what else ran.
    pub load: f64,
    /// Its figures.
    pub rows: Vec<Row>,
    /// Why it could not be measured.
    pub error: Option<String>,
}

/// One figure.
#[derive(Debug, Serialize)]
pub struct Row {
    /// What it is.
    pub name: String,
    /// The unit of all its values.
    pub unit: &'static str,
    /// Ours.
    pub ours: Summary,
    /// The peer's.
    pub peer: Option<Peer>,
    /// Ours to the peer's, by the medians.
    pub ratio: Option<f64>,
    /// What was promised.
    pub targets: Vec<Outcome>,
    /// The physical limit.
    pub limit: Option<String>,
    /// What has to be known beside it.
    pub notes: Vec<String>,
}

/// The other side of a row.
#[derive(Debug, Serialize)]
pub struct Peer {
    /// What it is.
    pub name: String,
    /// Its value.
    pub value: Summary,
}

/// A promise and whether it is kept.
#[derive(Debug, Serialize)]
pub struct Outcome {
    /// In words.
    pub target: String,
    /// Whether the median keeps it.
    pub met: bool,
}

/// A promise.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Target {
    /// At most this many times the peer's value.
    Ratio(f64),
    /// At most this value, in the row's unit.
    AtMost(f64),
    /// At least this value, in the row's unit.
    AtLeast(f64),
}

impl Row {
    /// A figure of ours.
    pub fn new(name: impl Into<String>, unit: &'static str, ours: Summary) -> Self {
        Self {
            name: name.into(),
            unit,
            ours,
            peer: None,
            ratio: None,
            targets: Vec::new(),
            limit: None,
            notes: Vec::new(),
        }
    }

    /// With the peer's.
    #[must_use]
    pub fn against(mut self, name: impl Into<String>, value: Summary) -> Self {
        self.ratio = ratio(self.ours.median, value.median);
        self.peer = Some(Peer {
            name: name.into(),
            value,
        });
        self
    }

    /// With a promise; of a ratio only after the peer is named.
    #[must_use]
    pub fn target(mut self, target: Target) -> Self {
        let ours = self.ours.median;
        let outcome = match target {
            Target::Ratio(most) => Outcome {
                target: format!("≤ {}× the peer", short(most)),
                met: self.ratio.is_some_and(|ratio| ratio <= most),
            },
            Target::AtMost(most) => Outcome {
                target: format!("≤ {} {}", short(most), self.unit),
                met: ours <= most,
            },
            Target::AtLeast(least) => Outcome {
                target: format!("≥ {} {}", short(least), self.unit),
                met: ours >= least,
            },
        };
        self.targets.push(outcome);
        self
    }

    /// With the physical limit.
    #[must_use]
    pub fn limit(mut self, limit: impl Into<String>) -> Self {
        self.limit = Some(limit.into());
        self
    }

    /// With something to know.
    #[must_use]
    pub fn note(mut self, note: impl Into<String>) -> Self {
        self.notes.push(note.into());
        self
    }
}

impl Report {
    /// Whether all was measured.
    pub fn is_complete(&self) -> bool {
        self.measures
            .iter()
            .all(|measured| measured.error.is_none())
    }
}

/// Three significant digits or so: what a benchmark's numbers are good for.
pub fn short(value: f64) -> String {
    let size = value.abs();
    if size >= 100.0 || value == 0.0 {
        format!("{value:.0}")
    } else if size >= 10.0 {
        format!("{value:.1}")
    } else if size >= 1.0 {
        format!("{value:.2}")
    } else {
        // Digits until the third that is not zero.
        let places = (-size.log10().floor()).clamp(1.0, 12.0) as usize + 2;
        let text = format!("{value:.places$}");
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    }
}

fn shown(value: &Summary, unit: &str) -> String {
    if value.samples == 1 || value.min.total_cmp(&value.max).is_eq() {
        return format!("{} {unit}", short(value.median));
    }
    let (median, min, max) = (short(value.median), short(value.min), short(value.max));
    format!("{median} {unit} ({min} to {max})")
}

/// A table in Markdown, as `BENCHMARKS.md` holds it.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "`{}`, {}, scale {}.\n",
            self.command, self.date, self.scale
        )?;
        writeln!(f, "{}\n\n{}", self.machine, self.load)?;
        for line in &self.setup {
            writeln!(f, "- {line}")?;
        }
        for measured in &self.measures {
            write!(f, "\n{measured}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Measured {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "### {}: {}\n", self.name, self.about)?;
        writeln!(
            f,
            "{:.0} s, load average {:.2} when it began.\n",
            self.took_s, self.load
        )?;
        if let Some(error) = &self.error {
            writeln!(f, "Not measured: {error}\n")?;
        }
        if self.rows.is_empty() {
            return Ok(());
        }
        writeln!(
            f,
            "| figure | ours | peer | ratio | target | met | physical limit |"
        )?;
        writeln!(f, "| --- | --- | --- | --- | --- | --- | --- |")?;
        for row in &self.rows {
            writeln!(f, "{row}")?;
        }
        let notes = self
            .rows
            .iter()
            .flat_map(|row| row.notes.iter().map(move |note| (row, note)));
        for (number, (row, note)) in notes.enumerate() {
            if number == 0 {
                writeln!(f)?;
            }
            writeln!(f, "- {}: {note}", row.name)?;
        }
        Ok(())
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let peer = self.peer.as_ref().map_or_else(String::new, |peer| {
            format!("{}: {}", peer.name, shown(&peer.value, self.unit))
        });
        let ratio = self
            .ratio
            .map_or_else(String::new, |ratio| format!("{}×", short(ratio)));
        let join = |parts: Vec<&str>| parts.join(", ");
        let targets = join(
            self.targets
                .iter()
                .map(|outcome| outcome.target.as_str())
                .collect(),
        );
        let met = join(
            self.targets
                .iter()
                .map(|outcome| if outcome.met { "yes" } else { "no" })
                .collect(),
        );
        write!(
            f,
            "| {} | {} | {peer} | {ratio} | {targets} | {met} | {} |",
            self.name,
            shown(&self.ours, self.unit),
            self.limit.as_deref().unwrap_or_default(),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_say_whether_their_targets_are_met() {
        let of = |ours: f64| {
            Row::new("scan", "s", Summary::one(ours))
                .against("peer", Summary::one(2.0))
                .target(Target::Ratio(1.0))
                .target(Target::AtMost(3.0))
                .target(Target::AtLeast(1.0))
        };
        let met = |row: &Row| {
            row.targets
                .iter()
                .map(|outcome| outcome.met)
                .collect::<Vec<_>>()
        };
        assert_eq!(met(&of(2.0)), [true, true, true]);
        assert_eq!(met(&of(2.5)), [false, true, true]);
        assert_eq!(met(&of(4.0)), [false, false, true]);
        assert_eq!(met(&of(0.5)), [true, true, false]);
        let alone = Row::new("scan", "s", Summary::one(1.0)).target(Target::Ratio(1.0));
        assert_eq!(met(&alone), [false], "no peer, no ratio that could be kept");
    }

    #[test]
    fn numbers_are_short() {
        let all = [0.0, 0.00123456, 0.02, 0.5, 1.234, 12.34, 123.4, 1234.0];
        let shown: Vec<String> = all.iter().map(|value| short(*value)).collect();
        assert_eq!(
            shown,
            ["0", "0.00123", "0.02", "0.5", "1.23", "12.3", "123", "1234"]
        );
    }

    #[test]
    fn a_row_is_one_line_of_the_table() {
        let samples = Summary::of(&[1.0, 2.0, 3.0]).unwrap();
        let row = Row::new("scan", "s", samples)
            .against("clamdscan", Summary::one(4.0))
            .target(Target::Ratio(1.0))
            .limit("a copy: 1 s");
        assert_eq!(
            row.to_string(),
            "| scan | 2.00 s (1.00 to 3.00) | clamdscan: 4.00 s | 0.5× | ≤ 1.00× the peer | yes | a copy: 1 s |"
        );
    }
}
