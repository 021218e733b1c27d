//! `palisade-agent status --failures`: the failure table in force, on one screen.
//!
//! Owns how the table travels in the status and how it is shown; does not own the
//! table ([`crate::failure`]) or the counts ([`crate::accounts`]).

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;
use serde_json::Value;

use crate::failure::{Access, Answer, Failure, Table};

/// Suspicious content: a verdict, and a row of the table.
const SUSPICIOUS: &str = "suspicious";

/// What open and exec are answered, by reason.
pub type Answers = BTreeMap<&'static str, BTreeMap<&'static str, &'static str>>;

/// The table as it travels in the status.
pub fn answers(table: &Table) -> Answers {
    let row = |open: Answer, exec: Answer| {
        BTreeMap::from([("open", open.as_str()), ("exec", exec.as_str())])
    };
    let answer = |failure| {
        row(
            table.answer(failure, Access::Open),
            table.answer(failure, Access::Exec),
        )
    };
    let suspicious = row(
        table.suspicious(Access::Open),
        table.suspicious(Access::Exec),
    );
    Failure::ALL
        .iter()
        .map(|&failure| (failure.key(), answer(failure)))
        .chain([(SUSPICIOUS, suspicious)])
        .collect()
}

/// One row as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Row {
    reason: &'static str,
    open: String,
    exec: String,
    /// How often it was answered since the agent started; none where that is not
    /// counted, or no agent runs.
    answered: Option<u64>,
    meaning: &'static str,
}

/// The table as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Shown {
    /// Whether a running agent said it, or the settings alone.
    running: bool,
    failures: Vec<Row>,
}

impl Shown {
    /// What the running agent has in force, from its status.
    pub fn in_force(status: &Value) -> Self {
        let table = &status["failure_table"];
        let counts = &status["events"]["failures"];
        Self::new(
            true,
            |reason, access| text(&table[reason][access]),
            |reason| counts[reason].as_u64(),
        )
    }

    /// What the settings say; no agent runs.
    pub fn as_set(table: &Table) -> Self {
        let answers = answers(table);
        let answer = |reason: &str, access: &str| answers[reason][access].to_owned();
        Self::new(false, answer, |_| None)
    }

    fn new(
        running: bool,
        answer: impl Fn(&'static str, &'static str) -> String,
        answered: impl Fn(&'static str) -> Option<u64>,
    ) -> Self {
        let row = |reason, meaning| Row {
            reason,
            open: answer(reason, "open"),
            exec: answer(reason, "exec"),
            answered: answered(reason),
            meaning,
        };
        let failures = Failure::ALL
            .iter()
            .map(|failure| row(failure.key(), failure.explain()))
            .chain([row(SUSPICIOUS, "an engine calls the content suspicious")])
            .collect();
        Self { running, failures }
    }
}

/// An agent of another version may lack a row.
fn text(value: &Value) -> String {
    value.as_str().unwrap_or("-").to_owned()
}

impl fmt::Display for Shown {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let from = match self.running {
            true => "in force",
            false => "as set; no agent runs",
        };
        writeln!(
            f,
            "What an open is answered without a verdict of clean or malware ({from}):\n"
        )?;
        writeln!(f, "reason         open   exec   answered  meaning")?;
        for row in &self.failures {
            let answered = row
                .answered
                .map_or("-".to_owned(), |count| count.to_string());
            writeln!(
                f,
                "{:<13}  {:<5}  {:<5}  {answered:>8}  {}",
                row.reason, row.open, row.exec, row.meaning
            )?;
        }
        write!(
            f,
            "\n\
             Malware is always denied, and clean content always allowed.\n\
             A row is changed under [failure] in agent.toml: no_svm = {{ open = \"allow\", exec = \"deny\" }}\n\
             No setting holds an open whose agent is gone: when the agent is killed or ends,\n\
             the kernel lets go on whatever waits for it, also where this table denies."
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::failure::{Cell, Overrides};

    fn table() -> Table {
        Table::with(&Overrides {
            no_svm: Some(Cell::Both(Answer::Deny)),
            ..Overrides::default()
        })
    }

    #[test]
    fn the_table_is_one_screen() {
        let shown = Shown::as_set(&table()).to_string();
        insta::assert_snapshot!(shown);
        assert!(shown.lines().count() <= 24, "a terminal's lines");
        assert!(shown.lines().all(|line| line.len() <= 100));
    }

    #[test]
    fn what_runs_is_shown_with_its_counts() {
        let status = serde_json::json!({
            "failure_table": answers(&table()),
            "events": { "failures": { "no_svm": 7, "busy": 0 } },
        });
        let shown = Shown::in_force(&status);
        let row = |reason| {
            shown
                .failures
                .iter()
                .find(|row| row.reason == reason)
                .unwrap()
        };
        assert_eq!(
            (row("no_svm").open.as_str(), row("no_svm").answered),
            ("deny", Some(7))
        );
        assert_eq!(
            (row("busy").exec.as_str(), row("busy").answered),
            ("allow", Some(0))
        );
        assert_eq!(row("suspicious").answered, None);
        // Of another version, without a table.
        assert_eq!(Shown::in_force(&Value::Null).failures[0].open, "-");
    }
}
