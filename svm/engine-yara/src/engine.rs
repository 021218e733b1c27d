//! One worker's scanner.
//!
//! yara-x counts a scan's time in a thread that its first timed scan starts, and
//! starts only once in a process' life: in the zygote it would be lost to every
//! child. So the first timed scan is the worker's warm-up, after the fork.

use crate::compile::Canary;
use crate::judge::judge;
use palisade_worker::content::SealedContent;
use palisade_worker::message::{NotScanned, Outcome, ScanOptions};
use palisade_worker::zygote::{Engine, MemberSink};
use std::path::Path;
use std::time::Duration;
use yara_x::errors::VariableError;
use yara_x::{Rules, ScanError, Scanner};

/// Content up to this size (bytes) is read into a buffer that the worker keeps;
/// larger content is mapped, so that it is not held twice.
const READ_UP_TO: u64 = 1 << 20;
/// Time limit of a scan whose options give none.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);

/// Compiled rules, and in a worker a scanner of them.
pub struct YaraEngine {
    rules: &'static Rules,
    canary: Canary,
    scanner: Option<Scanner<'static>>,
    buffer: Vec<u8>,
    /// The part's name that rules see.
    name: String,
}

impl YaraEngine {
    /// An engine to be forked.
    pub fn new(rules: &'static Rules, canary: Canary) -> Self {
        Self {
            rules,
            canary,
            scanner: None,
            buffer: Vec::new(),
            name: String::new(),
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
        if self.name != options.name.as_str() {
            self.name = options.name.as_str().to_owned();
            if let Err(error) = set_names(scanner, &self.name) {
                // Not to be taken for the next part's.
                self.scanner = None;
                return Outcome::engine_error(format!("the part's name: {error}"));
            }
        }
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
            // A worker has no /proc by which yara-x could map it.
            let mapped = match content.map() {
                Ok(mapped) => mapped,
                Err(error) => {
                    return Outcome::engine_error(format!("the content cannot be mapped: {error}"));
                }
            };
            scanner
                .scan(&mapped)
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

/// Sets what rules can know of a part's name; all empty for the content itself.
fn set_names(scanner: &mut Scanner<'_>, path: &str) -> Result<(), VariableError> {
    let (folder, file) = path.rsplit_once('/').unwrap_or(("", path));
    let extension = match file.rfind('.') {
        // A name that is all extension has none.
        Some(at) if at > 0 => &file[at..],
        _ => "",
    };
    scanner.set_global("filename", file)?;
    scanner.set_global("filepath", folder)?;
    scanner.set_global("extension", extension)?;
    Ok(())
}
