//! What a worker hands over: archive members, as files in its scratch directory
//! that have no name any more.
//!
//! The daemon copies each into memory of its own. Sealed memory files, which could
//! be passed on as they are, would be memory that no limit of the worker counts.

use super::Engine;
use crate::content::SealedContent;
use crate::ipc::{Channel, IpcError};
use crate::message::{
    MAX_MEMBER_BYTES, MAX_MEMBER_BYTES_PER_SCAN, MAX_MEMBERS, MemberName, Outcome, ScanOptions,
    WorkerEvent,
};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsFd;

/// A member's name in the scratch directory, which is the working directory, for
/// the moment until it has none.
const UNNAMED: &str = "palisade-member";

/// Where an engine puts what it unpacks; keeps to the bounds, and remembers when
/// one was hit.
#[derive(Debug)]
pub struct MemberSink<'a> {
    channel: Option<&'a Channel>,
    request: u64,
    count: u32,
    bytes: u64,
    truncated: bool,
    failed: Option<IpcError>,
}

impl<'a> MemberSink<'a> {
    pub(super) fn new(channel: &'a Channel, request: u64, wanted: bool) -> Self {
        Self {
            channel: wanted.then_some(channel),
            ..Self::nowhere(request)
        }
    }

    fn nowhere(request: u64) -> Self {
        Self {
            channel: None,
            request,
            count: 0,
            bytes: 0,
            truncated: false,
            failed: None,
        }
    }

    /// A bound was hit: not all was handed over.
    pub(super) fn is_truncated(&self) -> bool {
        self.truncated
    }

    /// The channel's failure, if it failed.
    pub(super) fn failure(&mut self) -> Result<(), IpcError> {
        self.failed.take().map_or(Ok(()), Err)
    }

    /// Whether anybody wants members.
    pub fn wanted(&self) -> bool {
        self.channel.is_some() && self.failed.is_none()
    }

    /// Hands over one member. Over a bound it is left out, and the end of the scan
    /// says so.
    pub fn member(&mut self, name: MemberName, content: &[u8]) {
        let Some(channel) = self.channel.filter(|_| self.failed.is_none()) else {
            return;
        };
        let size = content.len() as u64;
        let total = self.bytes.saturating_add(size);
        if self.count >= MAX_MEMBERS || size > MAX_MEMBER_BYTES || total > MAX_MEMBER_BYTES_PER_SCAN
        {
            self.truncated = true;
            return;
        }
        let Ok(file) = unnamed(content) else {
            self.truncated = true;
            return;
        };
        let event = WorkerEvent::Member {
            request: self.request,
            index: self.count,
            name,
            size,
        };
        match channel.send(&event, Some(file.as_fd())) {
            Ok(()) => {
                self.count += 1;
                self.bytes = total;
            }
            Err(error) => self.failed = Some(error),
        }
    }

    /// Says that something was unpacked which could not be handed over.
    pub fn left_out(&mut self) {
        if self.channel.is_some() {
            self.truncated = true;
        }
    }
}

fn unnamed(content: &[u8]) -> io::Result<File> {
    let mut file = File::options()
        .read(true)
        .write(true)
        .create_new(true)
        .open(UNNAMED)?;
    fs::remove_file(UNNAMED)?;
    file.write_all(content)?;
    Ok(file)
}

/// Scans `content` as a canary: fine only if a signature called `name` is found.
pub fn check_canary<E: Engine + ?Sized>(
    engine: &mut E,
    content: &[u8],
    name: &str,
) -> Result<(), String> {
    let content = unnamed(content)
        .and_then(SealedContent::of_own)
        .map_err(|error| format!("canary content: {error}"))?;
    match engine.scan(
        &content,
        &ScanOptions::default(),
        &mut MemberSink::nowhere(0),
    ) {
        Outcome::Found { names, .. } if names.iter().any(|found| found.as_str() == name) => Ok(()),
        other => Err(format!("the canary {name} was not found, but {other:?}")),
    }
}
