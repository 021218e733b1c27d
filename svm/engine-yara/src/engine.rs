//! One worker's scanner.
//!
//! yara-x counts a scan's time in a thread that its first timed scan starts, and
//! starts only once in a process' life: in the zygote it would be lost to every
//! child. So the first timed scan is the worker's warm-up, after the fork.

use crate::compile::Canary;
use palisade_worker::content::SealedContent;
use palisade_worker::message::{Name, NotScanned, Outcome, ScanOptions};
use palisade_worker::zygote::{Engine, MemberSink};
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::time::Duration;
use yara_x::{MetaValue, Rule, Rules, ScanError, ScanResults, Scanner};

/// Content up to this size (bytes) is read into a buffer that the worker keeps;
/// larger content is mapped by yara-x, so that it is not held twice.
const READ_UP_TO: u64 = 1 << 20;
/// Time limit of a scan whose options give none.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
/// Marks a rule as one that gives a reason for suspicion, no more: as a tag, or as
/// the value of the metadata `severity`.
const SUSPICIOUS: &str = "suspicious";

/// Compiled rules, and in a worker a scanner of them.
pub struct YaraEngine {
    rules: &'static Rules,
    canary: Canary,
    scanner: Option<Scanner<'static>>,
    buffer: Vec<u8>,
}

impl YaraEngine {
    /// An engine to be forked.
    pub fn new(rules: &'static Rules, canary: Canary) -> Self {
        Self {
            rules,
            canary,
            scanner: None,
            buffer: Vec::new(),
        }
    }
}

impl Engine for YaraEngine {
    fn enter_worker(&mut self, _: &Path) -> Result<(), String> {
        let mut scanner = Scanner::new(self.rules);
        // Whether a pattern matches is all that is asked; where else, is not.
        scanner.fast_scan(true).set_timeout(DEFAULT_TIMEOUT);
        scanner
            .scan(b"warm-up")
            .map_err(|error| format!("warm-up scan: {error}"))?;
        self.scanner = Some(scanner);
        Ok(())
    }

    fn canary(&mut self) -> Result<(), String> {
        let scanner = self.scanner.as_mut().ok_or("no scanner")?;
        scanner.set_timeout(DEFAULT_TIMEOUT);
        let results = scanner
            .scan(self.canary.marker.as_bytes())
            .map_err(|error| error.to_string())?;
        let found = results
            .matching_rules()
            .any(|rule| rule.namespace() == self.canary.namespace);
        found
            .then_some(())
            .ok_or_else(|| "the canary rule did not match".to_owned())
    }

    fn scan(
        &mut self,
        content: &SealedContent,
        options: &ScanOptions,
        _: &mut MemberSink<'_>,
    ) -> Outcome {
        let Some(scanner) = self.scanner.as_mut() else {
            return Outcome::engine_error("no scanner");
        };
        scanner.set_timeout(timeout(options));
        let canary = self.canary.namespace.as_str();
        let judged = if content.size() <= READ_UP_TO {
            let size = usize::try_from(content.size()).unwrap_or(usize::MAX);
            self.buffer.resize(size, 0);
            if let Err(error) = content.read_exact_at(&mut self.buffer, 0) {
                return Outcome::engine_error(format!("the content cannot be read: {error}"));
            }
            scanner
                .scan(&self.buffer)
                .map(|results| judge(&results, canary, options))
        } else {
            // Sealed, so it cannot shrink under the mapping.
            let path = format!("/proc/self/fd/{}", content.as_fd().as_raw_fd());
            scanner
                .scan_file(path)
                .map(|results| judge(&results, canary, options))
        };
        match judged {
            Ok(outcome) => outcome,
            Err(ScanError::Timeout) => Outcome::NotScanned {
                reason: NotScanned::TimedOut,
            },
            Err(error) => Outcome::engine_error(error.to_string()),
        }
    }
}

/// yara-x counts whole seconds.
fn timeout(options: &ScanOptions) -> Duration {
    match options.timeout_ms {
        0 => DEFAULT_TIMEOUT,
        millis => Duration::from_secs(u64::from(millis.div_ceil(1000))),
    }
}

/// What the matches mean: one rule that says malware outweighs any that merely
/// suspect, and comes first.
fn judge(results: &ScanResults<'_, '_>, canary: &str, options: &ScanOptions) -> Outcome {
    let (mut malware, mut suspicious) = (Vec::new(), Vec::new());
    for rule in results
        .matching_rules()
        .filter(|rule| rule.namespace() != canary)
    {
        let name = Name::from(rule.identifier());
        if is_suspicion(&rule) {
            suspicious.push(name)
        } else {
            malware.push(name)
        }
    }
    if malware.is_empty() && (suspicious.is_empty() || !options.heuristics) {
        return Outcome::Clean;
    }
    let only_suspicious = malware.is_empty();
    Outcome::found(malware.into_iter().chain(suspicious), only_suspicious)
}

fn is_suspicion(rule: &Rule<'_, '_>) -> bool {
    let suspicion = |value: &MetaValue<'_>| matches!(value, MetaValue::String(text) if text.eq_ignore_ascii_case(SUSPICIOUS));
    rule.tags()
        .any(|tag| tag.identifier().eq_ignore_ascii_case(SUSPICIOUS))
        || rule
            .metadata()
            .any(|(key, value)| key.eq_ignore_ascii_case("severity") && suspicion(&value))
}
