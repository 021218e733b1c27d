//! One scan by one side: how long it took, what it cost, what it found.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use crate::processes;

/// What is said of a content that was not scanned to its end, by either side.
const NOT_SCANNED: &str = "not scanned";

/// What is not clean, by path: a signature's name, or that it was not scanned.
pub type Findings = BTreeMap<String, String>;

/// The result of one scan.
#[derive(Debug, Clone, PartialEq)]
pub struct Pass {
    /// From start to end of the scanning command.
    pub elapsed: Duration,
    /// Processor time of the command and of the daemon with its children.
    pub cpu: Duration,
    /// Files that got an answer.
    pub files: u64,
    /// What is not clean.
    pub findings: Findings,
    /// Content bytes that were sent, where the side says it.
    pub sent: Option<u64>,
}

/// Measures time and cost of `scan`, whose daemon is the process `daemon`.
///
/// # Errors
/// The scan's.
pub fn measure(daemon: i32, scan: impl FnOnce() -> Result<Pass>) -> Result<Pass> {
    let before = processes::cpu(daemon)? + processes::ended_cpu()?;
    let started = Instant::now();
    let mut pass = scan()?;
    pass.elapsed = started.elapsed();
    let after = processes::cpu(daemon)? + processes::ended_cpu()?;
    pass.cpu = after.saturating_sub(before);
    Ok(pass)
}

impl Pass {
    /// From the JSON of `palisade-agent scan`.
    ///
    /// # Errors
    /// When it is not that.
    pub fn of_agent(report: &Value) -> Result<Self> {
        let count = |name: &str| {
            report[name]
                .as_u64()
                .with_context(|| format!("{name} is missing: {report}"))
        };
        let text =
            |finding: &Value, name: &str| finding[name].as_str().unwrap_or_default().to_owned();
        let findings = report["findings"]
            .as_array()
            .context("findings are missing")?;
        let findings = findings
            .iter()
            .map(|finding| {
                let said = match finding["verdict"].as_str() {
                    Some("malware" | "suspicious") => text(finding, "name"),
                    Some("not_scanned") => NOT_SCANNED.to_owned(),
                    _ => format!("error: {}", text(finding, "reason")),
                };
                (text(finding, "path"), said)
            })
            .collect();
        Ok(Self {
            elapsed: Duration::ZERO,
            cpu: Duration::ZERO,
            files: count("scanned")? + count("not_scanned")? + count("errors")?,
            findings,
            sent: Some(count("sent_bytes")?),
        })
    }

    /// From what clamdscan prints: `PATH: NAME FOUND`, `PATH: … ERROR`, and, unless it
    /// scans many at once, `PATH: OK`.
    pub fn of_clamdscan(output: &str) -> Self {
        let mut files = 0;
        let mut findings = Findings::new();
        for line in output.lines() {
            let Some((path, said)) = line.rsplit_once(": ") else {
                continue;
            };
            if said == "OK" {
                files += 1;
            } else if let Some(name) = said.strip_suffix(" FOUND") {
                files += 1;
                let limit = ["Heuristics.Limits.Exceeded", "Heuristics.Encrypted"];
                let said = match limit.iter().any(|prefix| name.starts_with(prefix)) {
                    true => NOT_SCANNED,
                    false => name,
                };
                findings.insert(path.to_owned(), said.to_owned());
            } else if said.ends_with("ERROR") {
                files += 1;
                findings.insert(path.to_owned(), format!("error: {said}"));
            }
        }
        Self {
            elapsed: Duration::ZERO,
            cpu: Duration::ZERO,
            files,
            findings,
            sent: None,
        }
    }
}

/// That both sides looked at as many files and found the same.
///
/// # Errors
/// What differs, one by one.
pub fn same(ours: &Pass, peer: &Pass, below: &Path) -> Result<()> {
    let mut differences = Vec::new();
    for path in ours.findings.keys().chain(peer.findings.keys()) {
        let (own, other) = (ours.findings.get(path), peer.findings.get(path));
        if own != other {
            let shown = Path::new(path)
                .strip_prefix(below)
                .unwrap_or(Path::new(path))
                .display();
            let said =
                |finding: Option<&String>| finding.map_or("clean", String::as_str).to_owned();
            differences.push(format!(
                "{shown}: {} here, {} there",
                said(own),
                said(other)
            ));
        }
    }
    differences.dedup();
    ensure!(
        ours.files == peer.files,
        "the sides looked at {} and {} files; findings that differ: {differences:?}",
        ours.files,
        peer.files
    );
    ensure!(
        differences.is_empty(),
        "findings differ: {}",
        differences.join("; ")
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn agent() -> Pass {
        Pass::of_agent(&json!({
            "scanned": 2, "not_scanned": 1, "errors": 0, "sent_bytes": 7,
            "findings": [
                {"path": "/c/a", "verdict": "malware", "name": "X.UNOFFICIAL", "reason": null},
                {"path": "/c/b", "verdict": "not_scanned", "name": null, "reason": "limit"},
            ],
        }))
        .unwrap()
    }

    #[test]
    fn both_sides_words_come_to_the_same() {
        let peer = Pass::of_clamdscan(
            "/c/a: X.UNOFFICIAL FOUND\n/c/b: Heuristics.Limits.Exceeded.MaxFiles FOUND\n/c/c: OK\n",
        );
        same(&agent(), &peer, Path::new("/c")).unwrap();
    }

    #[test]
    fn differences_are_named() {
        let difference = |output: &str| {
            let peer = Pass::of_clamdscan(output);
            same(&agent(), &peer, Path::new("/c"))
                .unwrap_err()
                .to_string()
        };
        let fewer = difference("/c/a: X.UNOFFICIAL FOUND\n/c/b: Heuristics.Encrypted.Zip FOUND\n");
        assert!(fewer.contains("3 and 2 files"), "{fewer}");
        let other = difference("/c/a: OK\n/c/b: Can't open file ERROR\n/c/c: OK\n");
        assert!(
            other.contains("a: X.UNOFFICIAL here, clean there"),
            "{other}"
        );
        assert!(
            other.contains("b: not scanned here, error: Can't open file ERROR there"),
            "{other}"
        );
    }
}
