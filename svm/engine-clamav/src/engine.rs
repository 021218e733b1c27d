//! One worker's libclamav: scans, and what their results mean.
//!
//! **Invariant.** [`Outcome::Clean`] means that libclamav said so *and* had nothing
//! to complain of that would have kept it from looking.

use crate::canary::Canary;
use crate::ffi::{self, Code, Field, Layer, LibraryMessage, RawEngine, ScanFlags};
use palisade_worker::content::SealedContent;
use palisade_worker::message::{MemberName, NotScanned, Outcome, ScanOptions};
use palisade_worker::zygote::{Engine, MemberSink, check_canary};
use std::os::fd::AsFd;
use std::path::Path;

/// libclamav stops here, and calls what is larger clean (bytes).
const LIBRARY_MAX: u64 = i32::MAX as u64;

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

/// Names of what is merely suspicious: heuristics, and what somebody may not want
/// (reported only with the setting `detect-pua`).
const SUSPICIONS: [&str; 2] = ["Heuristics.", "PUA."];

/// A compiled engine with its canary.
#[derive(Debug)]
pub struct ClamEngine {
    raw: RawEngine,
    canary: Canary,
    flags: ScanFlags,
    max_file_size: u64,
    max_scan_time: i64,
}

impl ClamEngine {
    /// An engine to be forked.
    pub fn new(raw: RawEngine, canary: Canary, flags: ScanFlags) -> Self {
        let max_file_size = u64::try_from(raw.number(Field::MaxFileSize)).unwrap_or(0);
        let max_scan_time = raw.number(Field::MaxScanTime);
        Self {
            raw,
            canary,
            flags,
            max_file_size,
            max_scan_time,
        }
    }

    /// Whether a content of this size is scanned at all; 0 means no limit but the
    /// library's own.
    fn too_large(&self, size: u64) -> bool {
        size >= LIBRARY_MAX || (self.max_file_size > 0 && size > self.max_file_size)
    }

    fn set_time_limit(&mut self, options: &ScanOptions) -> Result<(), Code> {
        let asked = i64::from(options.timeout_ms);
        // For both, 0 means none.
        let limit = match (self.max_scan_time, asked) {
            (0, limit) | (limit, 0) => limit,
            (configured, asked) => configured.min(asked),
        };
        self.raw.set_number(Field::MaxScanTime, limit)
    }
}

impl Engine for ClamEngine {
    fn enter_worker(&mut self, scratch: &Path) -> Result<(), String> {
        self.raw.set_scratch(scratch)
    }

    fn canary(&mut self) -> Result<(), String> {
        let canary = self.canary.clone();
        check_canary(self, &canary.content, &canary.name)
    }

    fn scan(
        &mut self,
        content: &SealedContent,
        options: &ScanOptions,
        members: &mut MemberSink<'_>,
    ) -> Outcome {
        if self.too_large(content.size()) {
            return Outcome::NotScanned {
                reason: NotScanned::TooLarge,
            };
        }
        if let Err(code) = self.set_time_limit(options) {
            return Outcome::engine_error(format!("time limit: {}", code.text()));
        }
        ffi::take_messages();
        let wanted = members.wanted();
        let (code, name) = self.raw.scan(content.as_fd(), self.flags, &mut |layer| {
            if wanted && !layer.normalized {
                members.member(member_name(&layer), layer.content);
            }
        });
        let outcome = outcome(code, name.as_deref(), &ffi::take_messages());
        match &outcome {
            Outcome::Found { suspicious, .. } if *suspicious && !options.heuristics => {
                Outcome::Clean
            }
            _ => outcome,
        }
    }
}

/// The layer's path; libclamav's names for its own temporary files are no part of it.
fn member_name(layer: &Layer<'_>) -> MemberName {
    let own = |name: &[u8]| name.starts_with(b"clamav-") && name.ends_with(b".tmp");
    let named: Vec<&[u8]> = layer
        .path
        .iter()
        .copied()
        .filter(|name| !own(name))
        .collect();
    MemberName::lossy_end(&named.join(&b'/'))
}

fn outcome(code: Code, name: Option<&str>, messages: &[LibraryMessage]) -> Outcome {
    let limit = |which: &str| Outcome::NotScanned {
        reason: NotScanned::Limit {
            which: which.into(),
        },
    };
    match code {
        Code::VIRUS => match name {
            Some(name) => meaning(name),
            None => Outcome::engine_error("a match without a name"),
        },
        Code::CLEAN => match complaint(messages) {
            Some(text) => Outcome::engine_error(text),
            None => Outcome::Clean,
        },
        Code::TIMEOUT => Outcome::NotScanned {
            reason: NotScanned::TimedOut,
        },
        Code::MAX_RECURSION => limit("MaxRecursion"),
        Code::MAX_SIZE => limit("MaxScanSize"),
        Code::MAX_FILES => limit("MaxFiles"),
        other => {
            let said = messages
                .first()
                .map(|message| format!(": {}", message.text));
            Outcome::engine_error(format!("{}{}", other.text(), said.unwrap_or_default()))
        }
    }
}

/// libclamav's heuristics are of three kinds: it did not look, it could not look,
/// it does not like what it saw.
fn meaning(name: &str) -> Outcome {
    let not_scanned = |reason| Outcome::NotScanned { reason };
    if let Some(which) = name.strip_prefix("Heuristics.Limits.Exceeded.") {
        return not_scanned(match which {
            "MaxScanTime" => NotScanned::TimedOut,
            which => NotScanned::Limit {
                which: which.into(),
            },
        });
    }
    if name.starts_with("Heuristics.Encrypted.") {
        return not_scanned(NotScanned::Encrypted);
    }
    if name == "Heuristics.XZ.DicSizeLimit" {
        return not_scanned(NotScanned::Limit {
            which: "XZ.DicSizeLimit".into(),
        });
    }
    let suspicious = SUSPICIONS.iter().any(|prefix| name.starts_with(prefix));
    Outcome::found([name.into()], suspicious)
}

fn complaint(messages: &[LibraryMessage]) -> Option<&str> {
    messages
        .iter()
        .map(|message| message.text.as_str())
        .find(|text| COMPLAINTS.iter().any(|complaint| text.contains(complaint)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(text: &str) -> Vec<LibraryMessage> {
        vec![LibraryMessage {
            error: true,
            text: text.to_owned(),
        }]
    }

    #[test]
    fn clean_with_a_complaint_is_not_clean() {
        assert_eq!(outcome(Code::CLEAN, None, &[]), Outcome::Clean);
        assert_eq!(
            outcome(Code::CLEAN, None, &said("PNG: odd chunk")),
            Outcome::Clean
        );
        for text in [
            "Tar: Can't create temporary directory /x",
            "cli_gentempfd_with_prefix: Can't create temporary file /x: Permission denied",
            "cli_writen: write error: No space left on device",
            "cli_magic_scan: failed to generate temporary file.",
        ] {
            assert_eq!(
                outcome(Code::CLEAN, None, &said(text)),
                Outcome::engine_error(text)
            );
        }
    }

    #[test]
    fn members_are_named_by_their_path() {
        let named = |path: &[&'static [u8]]| {
            let layer = Layer {
                path: path.to_vec(),
                content: b"",
                normalized: false,
            };
            member_name(&layer).as_str().to_owned()
        };
        assert_eq!(named(&[b"mid.tar", b"inner.exe"]), "mid.tar/inner.exe");
        assert_eq!(named(&[b"clamav-0123.tmp"]), "");
        assert_eq!(named(&[b"a\x1b[2J", b"\xff"]), "a\u{fffd}[2J/\u{fffd}");
    }

    #[test]
    fn names_are_told_apart() {
        let limit = |which: &str| Outcome::NotScanned {
            reason: NotScanned::Limit {
                which: which.into(),
            },
        };
        assert_eq!(
            meaning("Heuristics.Limits.Exceeded.MaxFiles"),
            limit("MaxFiles")
        );
        assert_eq!(
            meaning("Heuristics.Encrypted.Zip"),
            Outcome::NotScanned {
                reason: NotScanned::Encrypted
            }
        );
        assert_eq!(
            meaning("Heuristics.Limits.Exceeded.MaxScanTime"),
            Outcome::NotScanned {
                reason: NotScanned::TimedOut
            }
        );
        let phishing = "Heuristics.Phishing.Email.SpoofedDomain";
        assert_eq!(meaning(phishing), Outcome::found([phishing.into()], true));
        let malware = "Win.Test.EICAR_HDB-1";
        assert_eq!(meaning(malware), Outcome::found([malware.into()], false));
    }
}
