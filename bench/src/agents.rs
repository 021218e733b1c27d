//! Agents within this process that have small new contents scanned, by the agent's
//! own code.

use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use palisade_light_agent::content::Content;
use palisade_light_agent::scanner::{Scanner, Terms};
use palisade_light_agent::selection::{Choice, Source, keep};
use palisade_light_agent::settings::StaticSvm;
use palisade_protocol::identity::Identity;
use palisade_protocol::scan::{ScanClass, ScanOptions};
use palisade_protocol::verdict::Verdict;

use crate::random::Random;

/// Bytes of a small content.
const SMALL_BYTES: usize = 4096;
/// How long an agent waits for the Protection Server.
const SVM_WAIT: Duration = Duration::from_secs(30);

/// A scanner with a session of its own, and at most `asking` requests at a time.
pub fn scanner(identity: Identity, address: SocketAddr, asking: usize) -> Scanner {
    let source = Source::Static(vec![StaticSvm { id: None, address }]);
    Scanner::new(
        keep(identity, source, Choice::default()).state,
        asking,
        ScanOptions::default(),
    )
}

/// A small content that nobody has seen, in a file without a name.
///
/// # Errors
/// The file system's.
pub fn small_content(random: &mut Random) -> Result<Content> {
    let mut bytes = vec![0; SMALL_BYTES];
    random.fill(&mut bytes);
    let mut file = tempfile::tempfile()?;
    file.write_all(&bytes)?;
    Ok(Content::File(Arc::new(file)))
}

/// Has a small content scanned for somebody who waits; in milliseconds since `due`.
///
/// # Errors
/// When the verdict is another than clean.
pub async fn scan_small(scanner: &Scanner, content: &Content, due: Instant) -> Result<f64> {
    let terms = Terms {
        class: ScanClass::OnAccess,
        max_age_s: 0,
        until: None,
        without_svm: SVM_WAIT,
    };
    let verdict = scanner.scan(content, terms).await.verdict;
    ensure!(verdict == Verdict::Clean, "a small content is {verdict:?}");
    Ok(due.elapsed().as_secs_f64() * 1e3)
}
