//! One scan request, from its first frame to its answer.
//!
//! ```text
//!  ScanRequest ──too large──► not scanned
//!      │ ──────known────────► SharedCache
//!      ▼
//!  flight ──another leads──► its result (Coalesced), or lead when it fails
//!      │ lead
//!      ▼
//!  admission ─► memory ─► outline ─► fragments ─► sealed ──► scan ─► cache ─► land
//!     Busy       Busy     Refused     Refused        │
//!                                                    └ from here on it goes on
//!                                                      without the peer
//! ```
//!
//! | module | owns |
//! | --- | --- |
//! | [`gather`] | reading outline and fragments, verifying each |
//! | this | the order of the steps, and what may be stored |
//!
//! **Invariant:** nothing is stored but a lasting verdict over bytes of which every
//! fragment verified.

mod gather;

use std::sync::Arc;
use std::time::{Duration, Instant};

use palisade_protocol::content::ContentId;
use palisade_protocol::ids::{AgentId, TenantId};
use palisade_protocol::scan::{ScanRequest, ScanResult, VerdictSource};
use palisade_protocol::verdict::{Generations, NotScanned, Verdict, VerdictKind};
use palisade_worker::client::SealedContent;
use sha2::{Digest, Sha256};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedMutexGuard, oneshot};

use crate::budget::{Budget, Share};
use crate::cache::{self, SharedCache};
use crate::failure::Failure;
use crate::flight::{Flights, Seat, Turn};
use crate::scan::{Asker, Done, Job, Scanner};

pub use gather::{Gathering, Peer};

/// Bytes that are hashed at a time.
const HASH_BYTES: usize = 256 * 1024;

/// What one flight is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct FlightKey {
    key: cache::Key,
    generations: Generations,
}

/// A verdict, before it is addressed.
#[derive(Debug, Clone)]
pub struct Landed {
    verdict: Verdict,
    sha256: Option<[u8; 32]>,
    generations: Generations,
}

type Table = Flights<FlightKey, Gathering, Result<Landed, Failure>>;
type OwnSeat = Seat<FlightKey, Gathering, Result<Landed, Failure>>;

/// What serves requests.
#[derive(Debug)]
pub struct Service {
    /// The engines.
    pub scanner: Scanner,
    /// Known verdicts.
    pub cache: SharedCache,
    /// Memory for contents in flight.
    pub budget: Budget,
    /// Larger contents are not scanned, in bytes.
    pub max_scan_bytes: u64,
    /// Time without the expected frame after which a sender is given up.
    pub stall: Duration,
    flights: Table,
}

/// Who asks.
#[derive(Debug, Clone)]
pub struct Caller {
    /// The tenant that the certificate names.
    pub tenant: TenantId,
    /// The agent that the certificate names.
    pub agent: AgentId,
}

impl Service {
    /// Puts the parts together.
    pub fn new(
        scanner: Scanner,
        cache: SharedCache,
        budget: Budget,
        max_scan_bytes: u64,
        stall: Duration,
    ) -> Self {
        Self {
            scanner,
            cache,
            budget,
            max_scan_bytes,
            stall,
            flights: Table::default(),
        }
    }

    /// Serves one request. Nothing of it is left when the future is dropped, but a
    /// scan that has begun.
    ///
    /// # Errors
    /// A [`Failure`], which says what the agent is told.
    pub async fn serve<R, W>(
        self: &Arc<Self>,
        caller: &Caller,
        request: &ScanRequest,
        peer: &mut Peer<R, W>,
    ) -> Result<ScanResult, Failure>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        let asker = Asker {
            agent: caller.agent,
            class: request.class,
            deadline: (request.deadline_ms > 0)
                .then(|| Instant::now() + Duration::from_millis(request.deadline_ms.into())),
        };
        if let Some(verdict) = self.without_content(request)? {
            // Nothing was scanned for it: what is known of every empty content comes as
            // from a cache, so that a second guest's scan is all hits.
            let source = match verdict {
                Verdict::Clean => VerdictSource::SharedCache,
                _ => VerdictSource::Scanned,
            };
            let generations = self.scanner.generations();
            return Ok(self.result(
                Landed {
                    verdict,
                    sha256: None,
                    generations,
                },
                source,
            ));
        }
        let key = cache::Key {
            tenant: caller.tenant.clone(),
            content: request.content,
            size: request.size,
            options: request.options,
        };
        if let Some(known) = self.known(&key) {
            return Ok(self.result(known, VerdictSource::SharedCache));
        }
        let generations = self.scanner.generations();
        let seat = self.flights.enter(FlightKey {
            key: key.clone(),
            generations,
        });
        match seat.turn().await {
            Turn::Landed(landed) => Ok(self.result(landed?, VerdictSource::Coalesced)),
            Turn::Lead(work) => {
                // A flight may have landed between the look and the seat.
                if let Some(known) = self.known(&key) {
                    return Ok(self.result(known, VerdictSource::SharedCache));
                }
                self.lead(&seat, work, &asker, key, peer).await?;
                Ok(self.result(seat.landed().await?, VerdictSource::Scanned))
            }
        }
    }

    /// What can be said without a byte of the content.
    fn without_content(&self, request: &ScanRequest) -> Result<Option<Verdict>, Failure> {
        if request.size > self.max_scan_bytes {
            let max = self.max_scan_bytes;
            return Ok(Some(Verdict::NotScanned(NotScanned::TooLarge { max })));
        }
        if request.size > 0 {
            return Ok(None);
        }
        if request.content == ContentId::of(b"") {
            return Ok(Some(Verdict::Clean));
        }
        let error = palisade_protocol::content::ContentError::OutlineMismatch(request.content);
        Err(Failure::from(error))
    }

    fn known(&self, key: &cache::Key) -> Option<Landed> {
        let in_force = self.scanner.generations();
        self.cache.get(key, &in_force).map(|entry| Landed {
            verdict: entry.verdict,
            sha256: entry.sha256,
            // The numbers in force: the definitions are the same.
            generations: in_force,
        })
    }

    /// Gathers the content and hands it to the engines.
    async fn lead<R, W>(
        self: &Arc<Self>,
        seat: &OwnSeat,
        mut work: OwnedMutexGuard<Gathering>,
        asker: &Asker,
        key: cache::Key,
        peer: &mut Peer<R, W>,
    ) -> Result<(), Failure>
    where
        R: AsyncRead + Unpin,
        W: AsyncWrite + Unpin,
    {
        self.scanner.check(asker)?;
        work.begin(key.size, || self.budget.take(asker.agent, key.size))
            .await?;
        work.read_outline(key.content, key.size, peer).await?;
        work.read_fragments(peer).await?;
        let (bytes, share) = work.finish()?;
        let (reply, done) = oneshot::channel();
        let job = Job {
            content: key.content,
            bytes,
            options: key.options,
            reply,
        };
        if let Err(failure) = self.scanner.submit(asker, job) {
            // Followers would send it all again to hear the same.
            seat.land(Err(failure.clone()));
            return Err(failure);
        }
        let (service, seat) = (Arc::clone(self), seat.another());
        tokio::spawn(async move {
            let landed = service.conclude(done, key, share).await;
            seat.land(landed);
            drop(work);
        });
        Ok(())
    }

    /// Waits for the engines, stores what may be stored.
    async fn conclude(
        &self,
        done: oneshot::Receiver<Done>,
        key: cache::Key,
        share: Share,
    ) -> Result<Landed, Failure> {
        let Done {
            end,
            generations,
            bytes,
        } = done.await.map_err(|_| Failure::Stopping)?;
        let end = end.map_err(|no_worker| Failure::NoEngine(no_worker.to_string()))?;
        let sha256 = match end.verdict.kind() {
            VerdictKind::Malware | VerdictKind::Suspicious => sha256(bytes).await,
            VerdictKind::Clean | VerdictKind::NotScanned => None,
        };
        drop(share);
        let landed = Landed {
            verdict: end.verdict,
            sha256,
            generations,
        };
        if landed.verdict.kind() == VerdictKind::Malware {
            tracing::info!(content = %key.content, tenant = %key.tenant, verdict = ?landed.verdict, "malware");
        }
        if end.lasting {
            let entry = cache::Entry {
                verdict: landed.verdict.clone(),
                sha256: landed.sha256,
                generations: landed.generations.clone(),
                scanned_ms: cache::now_ms(),
            };
            self.cache.put(key, entry);
        }
        Ok(landed)
    }

    fn result(&self, landed: Landed, source: VerdictSource) -> ScanResult {
        ScanResult {
            verdict: landed.verdict,
            source,
            sha256: landed.sha256,
            generations: landed.generations,
            load: self.scanner.load(),
        }
    }
}

/// SHA-256 of verified bytes; `None` only if the memory file cannot be read.
async fn sha256(bytes: SealedContent) -> Option<[u8; 32]> {
    let hashed = tokio::task::spawn_blocking(move || {
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; HASH_BYTES];
        let mut offset = 0;
        while offset < bytes.size() {
            let count = (bytes.size() - offset).min(HASH_BYTES as u64);
            let part = &mut buffer[..count as usize];
            bytes.read_exact_at(part, offset)?;
            hasher.update(part);
            offset += count;
        }
        Ok::<_, std::io::Error>(hasher.finalize().into())
    });
    match hashed.await {
        Ok(Ok(hash)) => Some(hash),
        Ok(Err(error)) => {
            tracing::error!(%error, "content in memory cannot be hashed");
            None
        }
        Err(_) => None,
    }
}
