//! What a scan found: counts and findings, as other programs and people read them.
//!
//! The JSON's shape is a promise. `scanned` counts files with a full verdict
//! (clean, malware, suspicious); `not_scanned` those with a reason for none;
//! `errors` what could not be opened. `findings` lists all that is not clean.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::time::Duration;

use palisade_daemon::cli::exit;
use palisade_protocol::bounded::PathBytes;
use palisade_protocol::scan::VerdictSource;
use palisade_protocol::verdict::{EngineRun, Verdict};
use serde::Serialize;

use super::Done;

/// The result of a scan.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Files with a full verdict.
    pub scanned: u64,
    /// Clean files.
    pub clean: u64,
    /// Malware.
    pub malware: u64,
    /// Suspicious files.
    pub suspicious: u64,
    /// Files with a reason for no verdict.
    pub not_scanned: u64,
    /// What could not be opened or listed.
    pub errors: u64,
    /// Files that are as their package has them, which settings say not to scan.
    pub packaged: u64,
    /// Bytes of the files with a full verdict.
    pub bytes: u64,
    /// Content bytes that left the guest.
    pub sent_bytes: u64,
    /// Verdicts from a cache: `local_hits` and `shared_hits`.
    pub cache_hits: u64,
    /// Verdicts that the agent remembered; on-demand scans ask for every file.
    pub local_hits: u64,
    /// Verdicts that another scan of the same content had made.
    pub shared_hits: u64,
    /// Milliseconds from start to end.
    pub elapsed_ms: u64,
    /// All that is not clean.
    pub findings: Vec<Finding>,
}

/// One file that is not clean.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Its path, escaped where it is not printable.
    pub path: String,
    /// `malware`, `suspicious`, `not_scanned` or `error`.
    pub verdict: &'static str,
    /// The engine's signature name, unchanged.
    pub name: Option<String>,
    /// The engine.
    pub engine: Option<String>,
    /// The part of the file that it was found in, escaped where it is not printable;
    /// none for the file itself, or where the part has no name.
    pub member: Option<String>,
    /// What the signature or rule says of itself, or which list decided.
    pub metadata: BTreeMap<String, String>,
    /// Why there is no verdict: the reason's code, or the system's error.
    pub reason: Option<String>,
    /// SHA-256 of the content.
    pub sha256: Option<String>,
    /// BLAKE3 of the content.
    pub blake3: Option<String>,
    /// What each engine did; empty where a cache had the verdict.
    pub engines: Vec<Run>,
    /// The reason, for people.
    #[serde(skip)]
    pub detail: Option<String>,
}

/// One engine's part in a scan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Run {
    /// Which engine.
    pub engine: String,
    /// Microseconds, over the file and all of its parts.
    pub micros: u64,
    /// The worst that it said: `clean`, `malware`, `suspicious` or `not_scanned`.
    pub outcome: &'static str,
}

impl Report {
    /// Adds one file.
    pub fn add(&mut self, path: &Path, done: &Done) {
        let scanned = match done {
            Done::Skipped | Done::SetAside => return,
            Done::Packaged => {
                self.packaged += 1;
                return;
            }
            Done::Failed(reason) => {
                self.errors += 1;
                self.findings.push(Finding {
                    reason: Some(reason.clone()),
                    ..finding(path, "error")
                });
                return;
            }
            Done::Scanned(scanned) => scanned,
        };
        let counter = match &scanned.verdict {
            Verdict::Clean => &mut self.clean,
            Verdict::Malware { .. } => &mut self.malware,
            Verdict::Suspicious { .. } => &mut self.suspicious,
            Verdict::NotScanned(_) => &mut self.not_scanned,
        };
        *counter += 1;
        if !matches!(scanned.verdict, Verdict::NotScanned(_)) {
            self.scanned += 1;
            self.bytes += scanned.size;
        }
        if matches!(
            scanned.source,
            Some(VerdictSource::SharedCache | VerdictSource::Coalesced)
        ) {
            self.shared_hits += 1;
            self.cache_hits += 1;
        }
        let details = &scanned.details;
        let mut found = Finding {
            engine: details.engine.as_deref().map(str::to_owned),
            member: details.member.as_deref().map(printable),
            metadata: details
                .metadata
                .iter()
                .map(|one| (printable(&one.key), printable(&one.value)))
                .collect(),
            engines: scanned.engines.iter().map(run).collect(),
            sha256: scanned.sha256.map(hex::encode),
            blake3: scanned.content.map(|content| content.to_string()),
            ..finding(path, scanned.verdict.kind().as_str())
        };
        match &scanned.verdict {
            Verdict::Clean => return,
            Verdict::Malware { name, engine } | Verdict::Suspicious { name, engine } => {
                found.name = Some(name.as_str().to_owned());
                found.engine = Some(engine.as_str().to_owned());
            }
            Verdict::NotScanned(reason) => {
                found.reason = Some(reason.code().to_owned());
                found.detail = Some(reason.to_string());
            }
        }
        self.findings.push(found);
    }

    /// Files that were looked at, whatever came of it.
    pub fn files(&self) -> u64 {
        self.scanned + self.not_scanned + self.errors + self.packaged
    }

    /// The exit code. `complete` is false when the scan could not go on, or a
    /// given path is not there.
    pub fn exit_code(&self, complete: bool) -> u8 {
        if self.malware + self.suspicious > 0 {
            exit::FOUND
        } else if !complete || (self.errors > 0 && self.scanned + self.not_scanned == 0) {
            exit::FAILED
        } else if self.errors + self.not_scanned > 0 {
            exit::NOT_SCANNED
        } else {
            exit::FINE
        }
    }
}

fn finding(path: &Path, verdict: &'static str) -> Finding {
    Finding {
        path: PathBytes::from_path(path).to_string(),
        verdict,
        name: None,
        engine: None,
        member: None,
        metadata: BTreeMap::new(),
        reason: None,
        sha256: None,
        blake3: None,
        engines: Vec::new(),
        detail: None,
    }
}

fn run(run: &EngineRun) -> Run {
    Run {
        engine: run.engine.as_str().to_owned(),
        micros: run.micros,
        outcome: run.outcome.as_str(),
    }
}

/// What others wrote, as it may stand on a terminal.
fn printable(text: &str) -> String {
    PathBytes::from_path(Path::new(text)).to_string()
}

/// One line for people.
impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.verdict {
            "malware" => "MALWARE",
            "suspicious" => "SUSPICIOUS",
            "not_scanned" => "NOT SCANNED",
            _ => "ERROR",
        };
        write!(f, "{kind:<11}  {}", self.path)?;
        if let Some(member) = &self.member {
            write!(f, " (inside: {member})")?;
        }
        if let (Some(name), Some(engine)) = (&self.name, &self.engine) {
            write!(f, ": {} ({engine})", printable(name))?;
        }
        match self.detail.as_ref().or(self.reason.as_ref()) {
            Some(reason) => write!(f, ": {reason}"),
            None => Ok(()),
        }
    }
}

/// The summary for people.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let elapsed = Duration::from_millis(self.elapsed_ms).as_secs_f64();
        writeln!(
            f,
            "{} files scanned in {elapsed:.1} s: {} clean, {} malware, {} suspicious",
            self.scanned, self.clean, self.malware, self.suspicious
        )?;
        if self.not_scanned + self.errors > 0 {
            writeln!(
                f,
                "{} not scanned, {} errors",
                self.not_scanned, self.errors
            )?;
        }
        if self.packaged > 0 {
            writeln!(
                f,
                "{} files are as their packages have them and were not scanned",
                self.packaged
            )?;
        }
        write!(
            f,
            "{} bytes in files, {} bytes sent, {} verdicts from a cache ({} local, {} shared)",
            self.bytes, self.sent_bytes, self.cache_hits, self.local_hits, self.shared_hits
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scanner::Scanned;
    use palisade_protocol::bounded::{List, Text};
    use palisade_protocol::content::ContentId;
    use palisade_protocol::verdict::{Details, Generations, Metadatum, NotScanned, VerdictKind};

    fn scanned(verdict: Verdict, source: VerdictSource) -> Done {
        Done::Scanned(Box::new(Scanned {
            verdict,
            details: Details {
                engine: Some(Text::cut("libclamav")),
                member: Some(Text::cut("inner\n.exe")),
                metadata: List::cut([Metadatum {
                    key: Text::cut("author"),
                    value: Text::cut("\u{1b}[2J"),
                }]),
            },
            engines: List::cut([EngineRun {
                engine: Text::cut("libclamav"),
                micros: 12,
                outcome: VerdictKind::Malware,
            }]),
            source: Some(source),
            content: Some(ContentId::of(b"x")),
            sha256: Some([0xab; 32]),
            size: 10,
            stamp: None,
            generations: Generations::default(),
            older: false,
            recheck: false,
            by_spare: false,
            action: None,
        }))
    }

    fn eicar() -> Verdict {
        Verdict::Malware {
            name: Text::cut("Eicar-Test-Signature"),
            engine: Text::cut("libclamav"),
        }
    }

    #[test]
    fn the_json_has_exactly_its_keys_and_lists_what_is_not_clean() {
        let mut report = Report::default();
        report.add(
            Path::new("/a"),
            &scanned(Verdict::Clean, VerdictSource::SharedCache),
        );
        report.add(Path::new("/b\n"), &scanned(eicar(), VerdictSource::Scanned));
        let limit = NotScanned::TooLarge { max: 5 };
        report.add(
            Path::new("/c"),
            &scanned(Verdict::NotScanned(limit), VerdictSource::Scanned),
        );
        report.add(Path::new("/d"), &Done::Failed("cannot be read: no".into()));
        let json = serde_json::to_value(&report).unwrap();
        let keys: Vec<&str> = json
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect();
        let mut want = [
            "scanned",
            "clean",
            "malware",
            "suspicious",
            "not_scanned",
            "errors",
            "packaged",
            "bytes",
            "sent_bytes",
            "cache_hits",
            "local_hits",
            "shared_hits",
            "elapsed_ms",
            "findings",
        ];
        want.sort_unstable();
        let mut got = keys.clone();
        got.sort_unstable();
        assert_eq!(got, want);
        assert_eq!(
            (report.scanned, report.bytes, report.shared_hits),
            (2, 20, 1)
        );
        assert_eq!(
            json["findings"][0],
            serde_json::json!({
                "path": "/b\\x0a", "verdict": "malware", "name": "Eicar-Test-Signature",
                "engine": "libclamav", "member": "inner\\x0a.exe",
                "metadata": {"author": "\\x1b[2J"}, "reason": null, "sha256": "ab".repeat(32),
                "blake3": ContentId::of(b"x").to_string(),
                "engines": [{"engine": "libclamav", "micros": 12, "outcome": "malware"}],
            })
        );
        assert_eq!(
            report.findings[0].to_string(),
            "MALWARE      /b\\x0a (inside: inner\\x0a.exe): Eicar-Test-Signature (libclamav)"
        );
        assert_eq!(json["findings"][1]["reason"], "too_large");
        assert_eq!(json["findings"][2]["verdict"], "error");
    }

    #[test]
    fn exit_codes() {
        let clean = scanned(Verdict::Clean, VerdictSource::Scanned);
        let with = |all: &[&Done]| {
            let mut report = Report::default();
            for done in all {
                report.add(Path::new("/f"), done);
            }
            report
        };
        let failed = Done::Failed("no".into());
        let encrypted = scanned(
            Verdict::NotScanned(NotScanned::Encrypted),
            VerdictSource::Scanned,
        );
        let malware = scanned(eicar(), VerdictSource::Scanned);
        assert_eq!(with(&[&clean]).exit_code(true), 0);
        assert_eq!(with(&[]).exit_code(true), 0);
        assert_eq!(with(&[&clean, &malware, &failed]).exit_code(false), 1);
        assert_eq!(with(&[&clean]).exit_code(false), 3);
        assert_eq!(with(&[&failed]).exit_code(true), 3);
        assert_eq!(with(&[&clean, &failed]).exit_code(true), 4);
        assert_eq!(with(&[&encrypted]).exit_code(true), 4);
    }
}
