//! One worker's libclamav: scans, within its limits and by the request's options.
//!
//! **Invariant.** [`Outcome::Clean`] means that libclamav said so *and* had nothing
//! to complain of that would have kept it from looking.

use crate::canary::Canary;
use crate::ffi::{self, Code, Event, Field, Go, RawEngine, ScanFlags};
use crate::findings::Findings;
use palisade_worker::content::SealedContent;
use palisade_worker::message::{NotScanned, Outcome, ScanOptions};
use palisade_worker::zygote::{Engine, MemberSink, check_canary};
use std::os::fd::AsFd;
use std::path::Path;

/// libclamav stops here, and calls what is larger clean (bytes).
const LIBRARY_MAX: u64 = i32::MAX as u64;

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

    /// Why a content of this size is not scanned at all; the setting 0 means no limit
    /// but the library's own.
    fn too_large(&self, size: u64) -> Option<NotScanned> {
        if size >= LIBRARY_MAX {
            Some(NotScanned::TooLarge {
                max: LIBRARY_MAX - 1,
            })
        } else if self.max_file_size > 0 && size > self.max_file_size {
            Some(NotScanned::Limit {
                which: "MaxFileSize".into(),
            })
        } else {
            None
        }
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
        // Whatever is set: the canary is in an archive, and a busy machine takes its time.
        let (flags, max_scan_time) = (self.flags, self.max_scan_time);
        (self.flags, self.max_scan_time) = (flags.for_canary(), 0);
        let checked = check_canary(self, &canary.content, &canary.name);
        (self.flags, self.max_scan_time) = (flags, max_scan_time);
        checked
    }

    fn scan(
        &mut self,
        content: &SealedContent,
        options: &ScanOptions,
        members: &mut MemberSink<'_>,
    ) -> Outcome {
        if let Some(reason) = self.too_large(content.size()) {
            return Outcome::NotScanned { reason };
        }
        if let Err(code) = self.set_time_limit(options) {
            return Outcome::engine_error(format!("time limit: {}", code.text()));
        }
        ffi::take_messages();
        let wanted = members.wanted();
        let mut findings = Findings::default();
        let flags = self.flags.for_scan(options);
        let code = self.raw.scan(content.as_fd(), flags, &mut |event| {
            match event {
                Event::Found(name) => findings.found(name),
                Event::Leave { alert } => findings.leave(alert),
                Event::Enter(layer) => {
                    let path = findings.enter(&layer).clone();
                    if findings.is_decided() {
                        return Go::Past;
                    }
                    if let Some(content) = layer.content
                        && wanted
                        && layer.level > 0
                        && !layer.normalized
                    {
                        members.member(path, content);
                    }
                }
            }
            Go::On
        });
        findings.outcome(code, &ffi::take_messages(), options)
    }
}
