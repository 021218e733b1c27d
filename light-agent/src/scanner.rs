//! One file's way to a verdict, whatever happens to sessions meanwhile.
//!
//! ```text
//!  wait for a session ─► hash ─► known to be clean? (in batches, on demand)
//!        ▲                │       └► ask ─► verdict
//!        │                │           │
//!        │                │       ├─ quiet: the spare is asked, too; the first verdict counts
//!        │                │       ├─ busy: wait as told, ask again
//!        │                │       ├─ mismatch: hash once more, then "changed"
//!        └── lost ◄───────┼───────┘
//!                         └─ too large, unreadable: not scanned
//! ```
//!
//! Owns the retries; does not own the session ([`selection`](crate::selection)),
//! the bytes ([`crate::content`]) or what follows from a verdict.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::{Duration, Instant};

use palisade_protocol::bounded::Text;
use palisade_protocol::content::{ContentId, MAX_CONTENT_BYTES};
use palisade_protocol::control::Action;
use palisade_protocol::scan::{
    Named, RefusalCode, ScanClass, ScanOptions, ScanRequest, VerdictSource,
};
use palisade_protocol::verdict::{Details, EngineRuns, Generations, NotScanned, Verdict};
use tokio::sync::{Notify, Semaphore, watch};

use crate::content::{self, Content, Hashed};
use crate::forecast::Forecast;
use crate::hedge;
use crate::link::{Link, Needed, Offer, Reply, Sent, Share};
use crate::lookup::Lookups;
use crate::pace::jittered;
use crate::private::Private;
use crate::scan::hands::Hands;
use crate::selection::LinkState;
use crate::stamp::Stamp;

/// Files that are hashed at a time: the blocking pool has threads left to read
/// fragments for those that are being sent.
const HASHING: usize = 2;
/// The shortest wait before a busy Protection Server is asked again.
const SHORTEST_RETRY: Duration = Duration::from_millis(50);
/// The longest.
const LONGEST_RETRY: Duration = Duration::from_secs(10);

/// Requests of one file that may fail or be lost before it is given up: a content
/// that ends sessions again and again must not hold up a scan for ever.
const MAX_LOST: u32 = 10;

/// What a verdict has to be, and how long may be waited for it.
#[derive(Debug, Clone, Copy)]
pub struct Terms {
    /// Why it is asked.
    pub class: ScanClass,
    /// Oldest clean verdict of earlier definitions that will do, in seconds.
    pub max_age_s: u32,
    /// Until when busy Protection Servers are asked again; for ever if none.
    pub until: Option<Instant>,
    /// How long it waits while no Protection Server is connected.
    pub without_svm: Duration,
}

/// A file's result.
#[derive(Debug, Clone)]
pub struct Scanned {
    /// What it ended in.
    pub verdict: Verdict,
    /// What else there is to say of it.
    pub details: Details,
    /// What each engine did, if it was scanned just now.
    pub engines: EngineRuns,
    /// Where the verdict came from; none when no Protection Server gave it.
    pub source: Option<VerdictSource>,
    /// The content, where it was hashed.
    pub content: Option<ContentId>,
    /// SHA-256, where the Protection Server said it.
    pub sha256: Option<[u8; 32]>,
    /// Size in bytes.
    pub size: u64,
    /// The file as it was hashed.
    pub stamp: Option<Stamp>,
    /// The definitions in force when the verdict came.
    pub generations: Generations,
    /// Earlier definitions gave the verdict.
    pub older: bool,
    /// And the Protection Server would like to scan the content anew.
    pub recheck: bool,
    /// It came from the Protection Server that stands by, whose definitions are not those
    /// in force.
    pub by_spare: bool,
    /// What was done about the file, where something was.
    pub action: Option<Action>,
}

impl Scanned {
    /// Takes down what hashing showed.
    fn hashed(&mut self, hashed: Hashed) -> Arc<Hashed> {
        self.content = Some(hashed.outline.id());
        self.size = hashed.outline.size();
        self.stamp = Some(hashed.stamp);
        Arc::new(hashed)
    }
}

/// Scans files over whichever session is in force. Clones share everything.
#[derive(Clone)]
pub struct Scanner {
    state: watch::Receiver<LinkState>,
    hashing: Arc<Semaphore>,
    asking: Arc<Semaphore>,
    lookups: Lookups,
    forecast: Arc<Forecast>,
    sent: Sent,
    options: ScanOptions,
    private: Private,
    hands: Hands,
}

impl Scanner {
    /// Whether a Protection Server can be asked now.
    pub fn is_connected(&self) -> bool {
        self.state.borrow().link().is_some()
    }

    /// A scanner over the keeper's sessions, with at most `asking` requests at a time,
    /// each for a content that is looked into as `options` say.
    pub fn new(state: watch::Receiver<LinkState>, asking: usize, options: ScanOptions) -> Self {
        Self {
            state,
            hashing: Arc::new(Semaphore::new(HASHING)),
            asking: Arc::new(Semaphore::new(asking)),
            lookups: Lookups::default(),
            forecast: Arc::default(),
            sent: Sent::default(),
            options,
            private: Private::default(),
            hands: Hands::default(),
        }
    }

    /// The same, which sends nothing of what is private.
    #[must_use]
    pub fn keeping(self, private: Private) -> Self {
        Self { private, ..self }
    }

    /// The same, whose files are hashed by these hands.
    #[must_use]
    pub fn by(self, hands: Hands) -> Self {
        Self { hands, ..self }
    }

    /// Content bytes that left the guest through this scanner.
    pub fn sent_bytes(&self) -> u64 {
        self.sent.bytes()
    }

    /// Scans one file.
    pub async fn scan(&self, content: &Content, terms: Terms) -> Scanned {
        self.scan_hashed(content, None, terms).await
    }

    /// Scans one file that may have been hashed just now.
    pub async fn scan_hashed(
        &self,
        content: &Content,
        hashed: Option<Hashed>,
        terms: Terms,
    ) -> Scanned {
        self.scan_foreseeing(content, hashed, terms, None).await
    }

    /// The same, which tells as soon as it is foreseen that the terms' moment will pass
    /// first, and scans on.
    pub async fn scan_foreseeing(
        &self,
        content: &Content,
        hashed: Option<Hashed>,
        terms: Terms,
        hopeless: Option<&Notify>,
    ) -> Scanned {
        let mut result = Scanned {
            verdict: Verdict::NotScanned(NotScanned::NoSvm),
            details: Details::default(),
            engines: EngineRuns::default(),
            source: None,
            content: None,
            sha256: None,
            size: 0,
            stamp: None,
            generations: Generations::default(),
            older: false,
            recheck: false,
            by_spare: false,
            action: None,
        };
        match self
            .attempt(content, hashed, terms, hopeless, &mut result)
            .await
        {
            Ok(()) => {}
            Err(reason) => result.verdict = Verdict::NotScanned(reason),
        }
        if result.content.is_some() && result.size == 0 {
            empty_is_clean(&mut result.verdict);
        }
        result
    }

    async fn attempt(
        &self,
        content: &Content,
        hashed: Option<Hashed>,
        terms: Terms,
        hopeless: Option<&Notify>,
        result: &mut Scanned,
    ) -> Result<(), NotScanned> {
        let mut link = self.link(terms.without_svm).await?;
        let mut hashed = match hashed {
            Some(hashed) if hashed.outline.size() <= link.welcome.max_scan_bytes => {
                result.hashed(hashed)
            }
            _ => self.hash(content, terms.class, &link, result).await?,
        };
        if terms.class == ScanClass::OnDemand
            && let Some(in_force) = self.known_clean(&link, &hashed, terms.max_age_s).await
        {
            result.verdict = Verdict::Clean;
            result.source = Some(VerdictSource::SharedCache);
            result.generations = in_force;
            return Ok(());
        }
        let _asking = self.asking.acquire().await.map_err(|_| NotScanned::NoSvm)?;
        let share = match self.private.holds(content) {
            true => Share::Hashes,
            false => Share::Content,
        };
        let mut mismatches = 0;
        let mut lost = 0;
        loop {
            let request = ScanRequest {
                content: hashed.outline.id(),
                size: hashed.outline.size(),
                class: terms.class,
                deadline_ms: remaining_ms(terms.until),
                options: self.options,
                max_age_s: terms.max_age_s,
            };
            let needed = Needed::default();
            let offer = Offer {
                content,
                hashed: &hashed,
                share,
                sent: &self.sent,
                needed: &needed,
            };
            let queue = link.queue_wait();
            let (reply, by_spare) = {
                let mut reply = std::pin::pin!(hedge::ask(&link, &self.state, &request, offer));
                tokio::select! {
                    biased;
                    reply = &mut reply => reply,
                    never = self.too_long(&needed, queue, terms, hopeless) => match never {},
                }
            };
            match reply {
                Ok(Reply::Verdict(answer)) => {
                    result.by_spare = by_spare;
                    if let Some((bytes, since)) = needed.so_far() {
                        self.forecast.measured(bytes, since.elapsed(), queue);
                    }
                    result.verdict = answer.verdict;
                    result.details = answer.details;
                    result.engines = answer.engines;
                    result.source = Some(answer.source);
                    result.sha256 = answer.sha256;
                    result.generations = answer.generations;
                    result.older = answer.older;
                    result.recheck = answer.recheck;
                    return Ok(());
                }
                Ok(Reply::Busy(after)) => wait_busy(after, terms.until).await?,
                Ok(Reply::Unreadable(NotScanned::Changed)) if mismatches == 0 => {
                    mismatches += 1;
                    hashed = self.hash(content, terms.class, &link, result).await?;
                }
                Ok(Reply::Unreadable(reason)) => return Err(reason),
                Ok(Reply::Refused(refusal)) => match refusal.code {
                    RefusalCode::ContentMismatch if mismatches == 0 => {
                        mismatches += 1;
                        hashed = self.hash(content, terms.class, &link, result).await?;
                    }
                    RefusalCode::ContentMismatch => return Err(NotScanned::Changed),
                    RefusalCode::OverLimit | RefusalCode::Unavailable => {
                        wait_busy(Duration::from_secs(1), terms.until).await?;
                        link = self.link(terms.without_svm).await?;
                    }
                    RefusalCode::Protocol => {
                        return Err(NotScanned::EngineFailed {
                            detail: Text::cut(&format!("refused: {}", refusal.message)),
                        });
                    }
                },
                Err(error) => {
                    tracing::debug!(%error, svm = %link.id, "a request was lost");
                    lost += 1;
                    if lost == MAX_LOST {
                        let detail = format!("the request was lost {lost} times: {error}");
                        return Err(NotScanned::EngineFailed {
                            detail: Text::cut(&detail),
                        });
                    }
                    // With a spare there is no wait, and without patience no other way.
                    if !link.is_closed() {
                        // The request alone failed: not at once, and not for ever.
                        wait_busy(Duration::from_millis(500), terms.until).await?;
                    }
                    link = self.link(terms.without_svm).await?;
                }
            }
        }
    }

    /// The definitions in force, if the content is known to be clean. Empty contents
    /// are asked for on their own: they are known without any cache.
    async fn known_clean(
        &self,
        link: &Arc<Link>,
        hashed: &Hashed,
        max_age_s: u32,
    ) -> Option<Generations> {
        let named = Named {
            content: hashed.outline.id(),
            size: hashed.outline.size(),
        };
        if named.size == 0 {
            return None;
        }
        tokio::select! {
            known = self.lookups.clean(link, named, self.options, max_age_s) => known,
            // It is asked for on its own then, of another one if need be.
            () = link.quiet() => None,
        }
    }

    /// Waits until what is needed is known, and tells if it will take too long. Never ends.
    async fn too_long(
        &self,
        needed: &Needed,
        queue: Duration,
        terms: Terms,
        hopeless: Option<&Notify>,
    ) -> Infallible {
        if let (Some(hopeless), Some(until)) = (hopeless, terms.until) {
            let bytes = needed.begun().await;
            let expected = self.forecast.expected(bytes, queue);
            let left = until.saturating_duration_since(Instant::now());
            if let Some(expected) = expected.filter(|expected| *expected > left) {
                tracing::debug!(bytes, ?expected, ?left, "cannot be scanned in time");
                hopeless.notify_one();
            }
        }
        std::future::pending().await
    }

    async fn hash(
        &self,
        content: &Content,
        class: ScanClass,
        link: &Link,
        result: &mut Scanned,
    ) -> Result<Arc<Hashed>, NotScanned> {
        let max = link.welcome.max_scan_bytes.min(MAX_CONTENT_BYTES);
        if class == ScanClass::OnAccess
            && let Some(hashed) = content::hash_at_once(content, max)
        {
            return Ok(result.hashed(hashed));
        }
        let _permit = self
            .hashing
            .acquire()
            .await
            .map_err(|_| NotScanned::NoSvm)?;
        let content = content.clone();
        let hashing = self.hands.spawn(move || {
            let size = Stamp::of(&content).map_or(0, |stamp| stamp.size);
            (size, content::hash(&content, max))
        });
        let (size, hashed) = hashing.await.map_err(|error| NotScanned::ReadError {
            detail: Text::cut(&error.to_string()),
        })?;
        result.size = size;
        Ok(result.hashed(hashed?))
    }

    /// The session in force, or the next one within the patience.
    async fn link(&self, patience: Duration) -> Result<Arc<Link>, NotScanned> {
        let mut state = self.state.clone();
        loop {
            let since = {
                let state = state.borrow_and_update();
                match (state.link(), &*state) {
                    (Some(link), _) => return Ok(Arc::clone(link)),
                    (None, LinkState::Down { since, .. }) => *since,
                    (None, LinkState::Up { .. }) => Instant::now(),
                }
            };
            let until = tokio::time::Instant::from_std(since + patience);
            if patience.is_zero() || tokio::time::Instant::now() >= until {
                return Err(NotScanned::NoSvm);
            }
            match tokio::time::timeout_at(until, state.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) => return Err(NotScanned::NoSvm),
                Err(_) => {}
            }
        }
    }

    /// Why no session is in force, for people.
    pub fn down_reason(&self) -> Option<Arc<str>> {
        match &*self.state.borrow() {
            LinkState::Down { reason, .. } => Some(Arc::clone(reason)),
            LinkState::Up { .. } => None,
        }
    }
}

/// An empty content holds nothing that could be malware, even where an engine
/// cannot open it.
fn empty_is_clean(verdict: &mut Verdict) {
    if matches!(verdict, Verdict::NotScanned(_)) {
        *verdict = Verdict::Clean;
    }
}

fn remaining_ms(until: Option<Instant>) -> u32 {
    let Some(until) = until else { return 0 };
    let left = until.saturating_duration_since(Instant::now()).as_millis();
    u32::try_from(left).unwrap_or(u32::MAX).max(1)
}

/// Waits as a busy Protection Server asked, with jitter, unless patience ends first.
async fn wait_busy(after: Duration, until: Option<Instant>) -> Result<(), NotScanned> {
    let after = after.clamp(SHORTEST_RETRY, LONGEST_RETRY);
    let after = jittered(after, 1.0, 1.5);
    if until.is_some_and(|until| Instant::now() + after >= until) {
        return Err(NotScanned::Overloaded);
    }
    tokio::time::sleep(after).await;
    Ok(())
}
