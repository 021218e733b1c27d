//! What `palisade-agent quarantine` prints, as JSON and for people.
//!
//! The JSON's shape is a promise. Paths and names are escaped where they are not
//! printable: malware chooses them.

use std::fmt;

use palisade_protocol::bounded::PathBytes;
use palisade_protocol::scan::ScanClass;
use serde::Serialize;
use uuid::Uuid;

use super::record::{Again, Moment, Record};
use super::rescan::Said;
use super::vault::Usage;

/// A text that somebody else chose, printable.
fn printable(text: &str) -> String {
    PathBytes::from_path(text.as_ref()).to_string()
}

fn utc(seconds: i64, ns: i64) -> String {
    let ns = i32::try_from(ns).unwrap_or(0);
    jiff::Timestamp::new(seconds, ns).map_or_else(|_| seconds.to_string(), |time| time.to_string())
}

fn utc_ms(ms: u64) -> String {
    let seconds = i64::try_from(ms / 1000).unwrap_or(i64::MAX);
    utc(seconds, 0)
}

/// One file in the quarantine.
#[derive(Debug, Clone, Serialize)]
pub struct Item {
    /// Its id.
    pub id: Uuid,
    /// Where it was.
    pub path: String,
    /// Bytes.
    pub size: u64,
    /// The signature's name.
    pub name: String,
    /// Which engine.
    pub engine: String,
    /// The part of the file that it was found in.
    pub member: Option<String>,
    /// When it came, UTC.
    pub quarantined: String,
    /// `on_access` or `on_demand`.
    pub class: &'static str,
    /// The process that opened it; 0 when there was none.
    pub pid: u32,
    /// The owning user.
    pub uid: u32,
    /// The owning group.
    pub gid: u32,
    /// Permissions, in octal digits.
    pub mode: String,
    /// When it was changed last, UTC.
    pub modified: String,
    /// Names of its extended attributes.
    pub xattrs: Vec<String>,
    /// Other names (hard links) that it had, and that are still there.
    pub other_links: u64,
    /// BLAKE3 of the content.
    pub blake3: String,
    /// SHA-256 of the content.
    pub sha256: Option<String>,
    /// What later definitions said: `clean`, `malware`, `suspicious`, `not_scanned`.
    pub rescan: Option<ItemAgain>,
}

/// What later definitions said of a file.
#[derive(Debug, Clone, Serialize)]
pub struct ItemAgain {
    /// When, UTC.
    pub time: String,
    /// `clean`, `malware`, `suspicious` or `not_scanned`.
    pub verdict: String,
    /// The signature's name, or why it was not scanned.
    pub name: String,
}

impl From<&Again> for ItemAgain {
    fn from(again: &Again) -> Self {
        Self {
            time: utc_ms(again.time_ms),
            verdict: again.verdict.clone(),
            name: printable(&again.name),
        }
    }
}

impl From<&Record> for Item {
    fn from(record: &Record) -> Self {
        let (found, had) = (&record.found, &record.attributes);
        let Moment { s, ns } = had.modified;
        Self {
            id: record.id,
            path: record.path.to_string(),
            size: record.size,
            name: printable(&found.name),
            engine: printable(&found.engine),
            member: found.member.as_deref().map(printable),
            quarantined: utc_ms(found.time_ms),
            class: match found.class {
                ScanClass::OnAccess => "on_access",
                ScanClass::OnDemand => "on_demand",
            },
            pid: found.pid,
            uid: had.uid,
            gid: had.gid,
            mode: format!("{:04o}", had.mode),
            modified: utc(s, ns),
            xattrs: had
                .xattrs
                .iter()
                .map(|xattr| printable(&String::from_utf8_lossy(&xattr.name)))
                .collect(),
            other_links: record.links.saturating_sub(1),
            blake3: found.content.to_string(),
            sha256: found.sha256.map(hex::encode),
            rescan: record.again.as_ref().map(ItemAgain::from),
        }
    }
}

impl fmt::Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut row = |name: &str, value: &dyn fmt::Display| writeln!(f, "{name:<12} {value}");
        row("id", &self.id)?;
        row("path", &self.path)?;
        row("found", &format_args!("{} ({})", self.name, self.engine))?;
        if let Some(member) = &self.member {
            row("in", member)?;
        }
        row("quarantined", &self.quarantined)?;
        row("size", &format_args!("{} bytes", self.size))?;
        row(
            "owner",
            &format_args!("{}:{}, mode {}", self.uid, self.gid, self.mode),
        )?;
        row("modified", &self.modified)?;
        row("attributes", &self.xattrs.join(" "))?;
        row("other links", &self.other_links)?;
        row("blake3", &self.blake3)?;
        row("sha256", &self.sha256.as_deref().unwrap_or("-"))?;
        match &self.rescan {
            Some(again) => row(
                "re-scan",
                &format_args!("{} {} {}", again.time, again.verdict, again.name),
            ),
            None => row("re-scan", &"-"),
        }
    }
}

/// A file whose record does not open.
#[derive(Debug, Clone, Serialize)]
pub struct Unreadable {
    /// Its id.
    pub id: Uuid,
    /// Why.
    pub error: String,
}

/// All files.
#[derive(Debug, Clone, Serialize)]
pub struct Listed {
    /// How much is there.
    pub usage: Usage,
    /// Files, those that came first before the others.
    pub items: Vec<Item>,
    /// Files whose records do not open.
    pub unreadable: Vec<Unreadable>,
}

impl fmt::Display for Listed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.usage.files == 0 {
            return writeln!(f, "The quarantine is empty.");
        }
        writeln!(
            f,
            "{:<36}  {:<20}  {:>10}  {:<10}  {:<28}  PATH",
            "ID", "QUARANTINED", "BYTES", "RE-SCAN", "FOUND"
        )?;
        for item in &self.items {
            let again = item.rescan.as_ref().map_or("-", |again| &again.verdict);
            writeln!(
                f,
                "{:<36}  {:<20}  {:>10}  {again:<10}  {:<28}  {}",
                item.id, item.quarantined, item.size, item.name, item.path
            )?;
        }
        for item in &self.unreadable {
            writeln!(f, "{}  cannot be read: {}", item.id, item.error)?;
        }
        writeln!(f, "{} files, {} bytes", self.usage.files, self.usage.bytes)
    }
}

/// What a re-scan said of one file.
#[derive(Debug, Clone, Serialize)]
pub struct Answer {
    /// Its id.
    pub id: Uuid,
    /// Where it was, if its record opens.
    pub path: Option<String>,
    /// `clean`, `malware`, `suspicious` or `not_scanned`.
    pub verdict: &'static str,
    /// Whether it was put back to its place.
    pub restored: bool,
    /// Why it was not put back, where that was tried; why it was not scanned.
    pub reason: Option<String>,
}

impl From<&Said> for Answer {
    fn from(said: &Said) -> Self {
        let tried = match &said.restored {
            Some(Err(error)) => Some(error.clone()),
            _ => None,
        };
        let unscanned = match &said.verdict {
            palisade_protocol::verdict::Verdict::NotScanned(reason) => Some(reason.to_string()),
            _ => None,
        };
        Self {
            id: said.id,
            path: said.record.as_ref().map(|record| record.path.to_string()),
            verdict: said.verdict.kind().as_str(),
            restored: matches!(said.restored, Some(Ok(_))),
            reason: tried.or(unscanned).map(|reason| printable(&reason)),
        }
    }
}

impl fmt::Display for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.path.as_deref().unwrap_or("-");
        write!(f, "{}  {:<11}  {path}", self.id, self.verdict)?;
        if self.restored {
            write!(f, " (restored)")?;
        }
        match &self.reason {
            Some(reason) => write!(f, " ({reason})"),
            None => Ok(()),
        }
    }
}
