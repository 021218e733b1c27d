//! What libclamav says in the course of one scan, and what it comes to: pure.
//!
//! libclamav runs in all-match mode: only so it tells of *every* weak indicator
//! (heuristics, limits, encrypted parts, unwanted applications), in place of any one
//! of them, which might be one that nobody asked for and hide one that counts. What
//! that costs is taken back by skipping every further part once malware was found.
//!
//! ```text
//! malware  >  did not look (error, time)  >  suspicious  >  could not look (encrypted, limit)  >  clean
//! ```

use crate::ffi::{Code, Layer, LibraryMessage};
use palisade_worker::message::{MAX_NAMES, MemberName, Name, NotScanned, Outcome, ScanOptions};

/// What libclamav writes when it could not do its work, in parts of its messages
/// (1.4). With these a "clean" is not one.
const COMPLAINTS: [&str; 12] = [
    "an't create",
    "an't write",
    "an't generate temp",
    "ailed to generate temp",
    "ailed to create",
    "write error",
    "an't open",
    "an't read",
    "an't fstat",
    "No space left",
    "out of memory",
    "an't allocate",
];

/// How libclamav tells weak indicators from signatures of malware.
const WEAK: [&str; 3] = [UNWANTED, "Heuristics.", "BC.Heuristics."];
/// Names of potentially unwanted applications.
const UNWANTED: &str = "PUA.";

/// Whether a message says that work was left undone.
pub fn is_complaint(text: &str) -> bool {
    COMPLAINTS.iter().any(|complaint| text.contains(complaint))
}

/// Collects what a scan finds, and where.
#[derive(Debug, Default)]
pub struct Findings {
    /// The parts that the scan is in, outermost first, with their level and path.
    open: Vec<(usize, MemberName)>,
    malware: Vec<Name>,
    member: MemberName,
    weak: Vec<Name>,
    /// Where the first weak indicator was seen.
    weak_member: Option<MemberName>,
}

impl Findings {
    /// The scan begins with a part; gives the part's path inside the content.
    pub fn enter(&mut self, layer: &Layer<'_>) -> &MemberName {
        while self
            .open
            .last()
            .is_some_and(|(level, _)| *level >= layer.level)
        {
            self.open.pop();
        }
        // Containers that libclamav went through without a word are named by it.
        let known = self.open.last().map_or(0, |(level, _)| *level + 1);
        let between = layer.ancestors.get(known..).unwrap_or_default();
        let own = (!layer.normalized).then_some(layer.name);
        let path = self.path();
        let names = between.iter().copied().chain(own).flatten();
        let parts: Vec<&[u8]> = std::iter::once(path.as_str().as_bytes())
            .chain(names.filter(|name| !is_temporary(name)))
            .filter(|part| !part.is_empty())
            .collect();
        let path = MemberName::lossy_end(&parts.join(&b'/'));
        self.open.push((layer.level, path));
        &self.open[self.open.len() - 1].1
    }

    /// The scan is done with the part that it entered last; `alert` is any indicator
    /// so far.
    pub fn leave(&mut self, alert: bool) {
        if alert && self.weak_member.is_none() {
            self.weak_member = Some(self.path());
        }
        self.open.pop();
    }

    /// A signature matched, in the part that the scan is in unless it is a weak one:
    /// libclamav tells of those when it is done.
    pub fn found(&mut self, name: &str) {
        let weak = WEAK.iter().any(|prefix| name.starts_with(prefix));
        if !weak && self.malware.is_empty() {
            self.member = self.path();
        }
        let names = if weak {
            &mut self.weak
        } else {
            &mut self.malware
        };
        let name = Name::from(name);
        if names.len() < MAX_NAMES && !names.contains(&name) {
            names.push(name);
        }
    }

    /// Whether whatever is still to come is of no interest.
    pub fn is_decided(&self) -> bool {
        !self.malware.is_empty()
    }

    fn path(&self) -> MemberName {
        self.open
            .last()
            .map(|(_, path)| path.clone())
            .unwrap_or_default()
    }

    /// What the scan came to.
    pub fn outcome(
        mut self,
        code: Code,
        messages: &[LibraryMessage],
        options: &ScanOptions,
    ) -> Outcome {
        if self.is_decided() {
            return Outcome::found(self.malware, false).inside(self.member);
        }
        if let Some(undone) = undone(code, &self.weak, messages) {
            return Outcome::NotScanned { reason: undone };
        }
        // libclamav's own order is one of hash tables.
        self.weak
            .sort_unstable_by(|a, b| a.as_str().cmp(b.as_str()));
        let alone = self.weak.len() == 1;
        let (mut reasons, mut suspicions) = (Vec::new(), Vec::new());
        for name in self.weak {
            match hidden(name.as_str()) {
                Some(reason) => reasons.push(reason),
                None if name.as_str().starts_with(UNWANTED) && !options.pua => {}
                None if !name.as_str().starts_with(UNWANTED) && !options.heuristics => {}
                None => suspicions.push(name),
            }
        }
        if !suspicions.is_empty() {
            // Of several it is not known which one was there.
            let member = self.weak_member.filter(|_| alone).unwrap_or_default();
            return Outcome::found(suspicions, true).inside(member);
        }
        reasons.extend(limit_of(code));
        let encrypted = reasons.contains(&NotScanned::Encrypted);
        match reasons.into_iter().next() {
            Some(_) if encrypted => Outcome::NotScanned {
                reason: NotScanned::Encrypted,
            },
            Some(reason) => Outcome::NotScanned { reason },
            None => Outcome::Clean,
        }
    }
}

/// libclamav's names for its own temporary files are no part of a path.
fn is_temporary(name: &[u8]) -> bool {
    name.starts_with(b"clamav-") && name.ends_with(b".tmp")
}

/// Why the scan did not come to its end, if it did not: another time it might.
fn undone(code: Code, weak: &[Name], messages: &[LibraryMessage]) -> Option<NotScanned> {
    let error = |text: String| {
        Some(NotScanned::EngineError {
            detail: text.as_str().into(),
        })
    };
    let complaint = messages
        .iter()
        .find(|message| is_complaint(&message.text))
        .map(|message| message.text.clone());
    match code {
        Code::TIMEOUT => Some(NotScanned::TimedOut),
        _ if weak
            .iter()
            .any(|name| name.as_str() == format!("{LIMITS}MaxScanTime")) =>
        {
            Some(NotScanned::TimedOut)
        }
        Code::VIRUS if weak.is_empty() => error("a match without a name".to_owned()),
        Code::CLEAN | Code::VIRUS | Code::MAX_RECURSION | Code::MAX_SIZE | Code::MAX_FILES => {
            complaint.and_then(error)
        }
        other => {
            let said = messages
                .first()
                .map(|message| format!(": {}", message.text));
            error(format!("{}{}", other.text(), said.unwrap_or_default()))
        }
    }
}

/// What libclamav's heuristics call a limit that was reached.
const LIMITS: &str = "Heuristics.Limits.Exceeded.";

/// The reason, if a name says that something could not be looked at.
fn hidden(name: &str) -> Option<NotScanned> {
    let limit = |which: &str| {
        Some(NotScanned::Limit {
            which: which.into(),
        })
    };
    if let Some(which) = name.strip_prefix(LIMITS) {
        limit(which)
    } else if name.starts_with("Heuristics.Encrypted.") {
        Some(NotScanned::Encrypted)
    } else if name == "Heuristics.XZ.DicSizeLimit" {
        limit("XZ.DicSizeLimit")
    } else {
        None
    }
}

fn limit_of(code: Code) -> Option<NotScanned> {
    let which = match code {
        Code::MAX_RECURSION => "MaxRecursion",
        Code::MAX_SIZE => "MaxScanSize",
        Code::MAX_FILES => "MaxFiles",
        _ => return None,
    };
    Some(NotScanned::Limit {
        which: which.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn enter(findings: &mut Findings, level: usize, ancestors: &[&str], name: &str) -> String {
        let ancestors: Vec<Option<&[u8]>> = ancestors
            .iter()
            .map(|name| (!name.is_empty()).then_some(name.as_bytes()))
            .collect();
        let layer = Layer {
            level,
            ancestors: &ancestors,
            name: (!name.is_empty()).then_some(name.as_bytes()),
            content: None,
            normalized: name == "normalized",
        };
        findings.enter(&layer).as_str().to_owned()
    }

    #[test]
    fn the_path_follows_the_scan_in_and_out() {
        let mut findings = Findings::default();
        assert_eq!(enter(&mut findings, 0, &[], ""), "");
        assert_eq!(enter(&mut findings, 1, &[""], "a.txt"), "a.txt");
        findings.leave(false);
        assert_eq!(enter(&mut findings, 1, &[""], "b.tar"), "b.tar");
        let path = enter(&mut findings, 2, &["", "b.tar"], "c.exe");
        assert_eq!(path, "b.tar/c.exe");
        // Its normalized form is no part, a temporary file's name no name.
        assert_eq!(enter(&mut findings, 3, &[], "normalized"), "b.tar/c.exe");
        assert_eq!(enter(&mut findings, 4, &[], "clamav-01.tmp"), "b.tar/c.exe");
        findings.found("Some.Malware");
        for _ in 0..3 {
            findings.leave(true);
        }
        // Back in the tar; then a part whose container was passed over in silence.
        findings.leave(true);
        let path = enter(&mut findings, 2, &["", "d.zip"], "e\x1b.exe");
        assert_eq!(path, "d.zip/e\u{fffd}.exe");
        let outcome = findings.outcome(Code::VIRUS, &[], &ScanOptions::default());
        let expected = Outcome::found(["Some.Malware".into()], false);
        assert_eq!(outcome, expected.inside("b.tar/c.exe".into()));
    }

    fn said(names: &[&str], options: &ScanOptions) -> Outcome {
        let mut findings = Findings::default();
        for name in names {
            findings.found(name);
        }
        let code = if names.is_empty() {
            Code::CLEAN
        } else {
            Code::VIRUS
        };
        findings.outcome(code, &[], options)
    }

    const FILES: &str = "Heuristics.Limits.Exceeded.MaxFiles";
    const MACROS: &str = "Heuristics.OLE2.ContainsMacros.VBA";
    const PUA: &str = "PUA.Win.Tool";
    const ZIP: &str = "Heuristics.Encrypted.Zip";

    #[test]
    fn no_indicator_hides_another() {
        let not_scanned = |reason| Outcome::NotScanned { reason };
        let limit = not_scanned(NotScanned::Limit {
            which: "MaxFiles".into(),
        });
        let encrypted = not_scanned(NotScanned::Encrypted);
        let all = ScanOptions {
            pua: true,
            ..ScanOptions::default()
        };
        let none = ScanOptions {
            heuristics: false,
            ..ScanOptions::default()
        };
        let suspicious = |name: &str| Outcome::found([name.into()], true);
        let cases: [(&[&str], &ScanOptions, Outcome); 12] = [
            (&[], &all, Outcome::Clean),
            (&[MACROS], &all, suspicious(MACROS)),
            (&[MACROS], &none, Outcome::Clean),
            (&[PUA], &all, suspicious(PUA)),
            (&[PUA], &none, Outcome::Clean),
            (&[PUA, FILES], &none, limit.clone()),
            (&[MACROS, FILES, PUA], &none, limit.clone()),
            (&[FILES, ZIP], &none, encrypted.clone()),
            (&[ZIP, FILES], &all, encrypted),
            (&[FILES, MACROS], &all, suspicious(MACROS)),
            (
                &[PUA, FILES, "Bad"],
                &none,
                Outcome::found(["Bad".into()], false),
            ),
            (
                &[MACROS, "Heuristics.Limits.Exceeded.MaxScanTime"],
                &all,
                not_scanned(NotScanned::TimedOut),
            ),
        ];
        for (names, options, expected) in cases {
            assert_eq!(said(names, options), expected, "{names:?} {options:?}");
            let reversed: Vec<&str> = names.iter().rev().copied().collect();
            assert_eq!(said(&reversed, options), expected, "{names:?} reversed");
        }
    }

    fn complains(text: &str) -> Vec<LibraryMessage> {
        vec![LibraryMessage {
            error: true,
            text: text.to_owned(),
        }]
    }

    #[test]
    fn a_clean_result_with_a_complaint_is_none() {
        let messages = complains("cli_gentempfd_with_prefix: Can't create temporary file /x");
        let options = ScanOptions::default();
        let of = |names: &[&str], code| {
            let mut findings = Findings::default();
            for name in names {
                findings.found(name);
            }
            findings.outcome(code, &messages, &options)
        };
        let failed = |outcome: &Outcome| {
            matches!(
                outcome,
                Outcome::NotScanned {
                    reason: NotScanned::EngineError { .. }
                }
            )
        };
        assert!(failed(&of(&[], Code::CLEAN)));
        assert!(failed(&of(&[PUA], Code::VIRUS)));
        assert!(failed(&of(&[MACROS], Code::VIRUS)));
        assert!(!failed(&of(&["Bad"], Code::VIRUS)));
        let harmless = complains("cli_pdf: bad object");
        let outcome = Findings::default().outcome(Code::CLEAN, &harmless, &options);
        assert_eq!(outcome, Outcome::Clean);
        let nameless = Findings::default().outcome(Code::VIRUS, &[], &options);
        assert!(failed(&nameless));
    }

    #[test]
    fn a_suspicion_says_where_if_it_is_the_only_one() {
        let options = ScanOptions::default();
        let of = |names: &[&str]| {
            let mut findings = Findings::default();
            enter(&mut findings, 0, &[], "");
            enter(&mut findings, 1, &[""], "a.doc");
            findings.leave(true);
            findings.leave(true);
            for name in names {
                findings.found(name);
            }
            findings.outcome(Code::VIRUS, &[], &options)
        };
        let one = Outcome::found([MACROS.into()], true).inside("a.doc".into());
        assert_eq!(of(&[MACROS]), one);
        assert_eq!(of(&[MACROS, PUA]), Outcome::found([MACROS.into()], true));
    }
}
