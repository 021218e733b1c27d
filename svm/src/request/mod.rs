//! One scan request, from its first frame to its answer.
//!
//! ```text
//!  ScanRequest ──too large──► not scanned
//!      │ ──────known────────► SharedCache; or that it kills its workers
//!      ▼
//!  flight ──another leads──► its result (Coalesced), or lead when it fails
//!      │ lead
//!      ▼
//!  admission ─► outline ─► memory ─► fragments ─► sealed ──► scan ─► cache ─► land
//!     Busy      Refused     Busy      Refused        │                  │
//!                                      ▲             │                  └► fragment store
//!                       fragment store ┘             └ from here on it goes on
//!                                                      without the peer
//! ```
//!
//! | module | owns |
//! | --- | --- |
//! | [`gather`] | reading outline and fragments, verifying each |
//! | [`ending`] | what a scan comes to: what may be stored, who is told |
//! | [`again`] | a kept content's scan by newer definitions, without a peer |
//! | this | the order of the steps |
//!
//! **Invariant:** nothing is stored but a lasting verdict over bytes of which every
//! fragment verified.

mod again;
mod ending;
mod gather;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use palisade_protocol::bounded::List;
use palisade_protocol::content::ContentId;
use palisade_protocol::ids::{AgentId, TenantId};
use palisade_protocol::scan::{
    Holds, Known, Lookup, ScanClass, ScanRequest, ScanResult, VerdictSource,
};
use palisade_protocol::verdict::{
    Details, EngineRuns, Generations, NotScanned, Verdict, VerdictKind,
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{OwnedMutexGuard, oneshot};
use tracing::{Instrument as _, Span};

use crate::agents::{Agents, Close};
use crate::brake::Brake;
use crate::budget::{Budget, Share};
use crate::cache::recheck::Rechecks;
use crate::cache::{self, SharedCache};
use crate::failure::Failure;
use crate::flight::{Flights, Seat, Turn};
use crate::fragments::FragmentStore;
use crate::metrics::{Gauges, Metrics, SavedBy, Source};
use crate::retro::Retro;
use crate::retro::rescan::Rescans;
use crate::scan::{Asker, Job, Scanner};

pub use again::Again;
use gather::{Gathered, Others};
pub use gather::{Gathering, Peer};

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
    details: Details,
    /// Of a fresh scan alone.
    engines: EngineRuns,
    sha256: Option<[u8; 32]>,
    generations: Generations,
    /// Earlier definitions than those in force gave it.
    older: bool,
}

/// What bounds a [`Service`].
#[derive(Debug, Clone)]
pub struct Bounds {
    /// Larger contents are not scanned, in bytes.
    pub max_scan_bytes: u64,
    /// Oldest clean verdict of earlier definitions that is served.
    pub max_verdict_age: Duration,
    /// Time without the expected frame after which a sender is given up.
    pub stall: Duration,
    /// How long a sender that is silent or slow keeps another one waiting.
    pub hand_over: Duration,
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
    /// Memory for contents.
    pub budget: Budget,
    /// What was sent lately.
    pub fragments: FragmentStore,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// What bounds it.
    pub bounds: Bounds,
    /// Who is told when a content turns bad.
    pub retro: Retro,
    /// Which signatures are reported only.
    pub brake: Brake,
    /// What wakes the re-scans of kept contents.
    pub rescans: Rescans,
    flights: Table,
    rechecks: Mutex<Rechecks>,
}

/// Memory for contents: one budget for those in flight and those that are kept.
#[derive(Debug)]
pub struct Memory {
    /// What there is.
    pub budget: Budget,
    /// What was sent lately.
    pub fragments: FragmentStore,
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
        memory: Memory,
        metrics: Arc<Metrics>,
        bounds: Bounds,
        retro: Retro,
        brake: Brake,
    ) -> Self {
        Self {
            scanner,
            cache,
            budget: memory.budget,
            fragments: memory.fragments,
            metrics,
            bounds,
            retro,
            brake,
            rescans: Rescans::default(),
            flights: Table::default(),
            rechecks: Mutex::default(),
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
            tenant: caller.tenant.clone(),
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
            self.metrics.answered(Source::size);
            let landed = Landed {
                verdict,
                details: Details::default(),
                engines: EngineRuns::default(),
                sha256: None,
                generations: self.scanner.generations(),
                older: false,
            };
            return Ok(self.result(landed, source));
        }
        let key = cache::Key {
            tenant: caller.tenant.clone(),
            content: request.content,
            size: request.size,
            options: request.options,
        };
        if let Some(known) = self.known(&key, request.max_age_s) {
            return Ok(self.cached(known, &key));
        }
        self.metrics.missed();
        let generations = self.scanner.generations();
        let (tenant, options) = (&key.tenant, key.options);
        if let Some(poison) = self.scanner.known_poison(tenant, key.content, options) {
            self.metrics.answered(Source::poisoned);
            let landed = Landed {
                verdict: poison.verdict,
                details: poison.details,
                engines: EngineRuns::default(),
                sha256: None,
                generations,
                older: false,
            };
            return Ok(self.result(landed, VerdictSource::Scanned));
        }
        let seat = self.flights.enter(FlightKey {
            key: key.clone(),
            generations,
        });
        let agent = caller.agent;
        match seat.turn(agent).await {
            Turn::Landed(landed) => self.coalesced(landed?, key.size),
            Turn::Lead(work) => {
                // A flight may have landed between the look and the seat.
                if let Some(known) = self.known(&key, 0) {
                    return Ok(self.cached(known, &key));
                }
                let bytes = key.size;
                if seat.lets_pass(agent) {
                    drop(work);
                    return self.follow(&seat, bytes).await;
                }
                peer.others = Some(Others {
                    rivals: seat.rivals(agent),
                    patience: self.bounds.hand_over,
                });
                match self.lead(&seat, work, &asker, key, peer).await {
                    Err(Failure::HandedOver) => {
                        seat.gave_way(agent);
                        self.follow(&seat, bytes).await
                    }
                    Err(failure) => Err(failure),
                    Ok(()) => {
                        let landed = seat.landed().await?;
                        self.metrics.answered(Source::scanned);
                        Ok(self.result(landed, VerdictSource::Scanned))
                    }
                }
            }
        }
    }

    /// Another one sends what this one was too slow for: its verdict is this one's, too, if
    /// it comes soon. Whatever is left of the sender's frames, it cannot lead again.
    async fn follow(&self, seat: &OwnSeat, bytes: u64) -> Result<ScanResult, Failure> {
        let landed = tokio::time::timeout(self.bounds.stall, seat.landed());
        let landed = landed.await.map_err(|_| Failure::HandedOver)??;
        self.coalesced(landed, bytes)
    }

    fn coalesced(&self, landed: Landed, bytes: u64) -> Result<ScanResult, Failure> {
        self.metrics.answered(Source::coalesced);
        self.metrics.saved(SavedBy::flight, bytes);
        Ok(self.result(landed, VerdictSource::Coalesced))
    }

    /// Answers a batch from the SharedCache alone. A verdict that should be re-checked
    /// is left to a request of its own, which can be asked for the content.
    pub fn look_up(&self, caller: &Caller, lookup: &Lookup) -> Known {
        self.metrics.looked_up(lookup.contents.len() as u64);
        let clean = lookup.contents.iter().map(|named| {
            let key = cache::Key {
                tenant: caller.tenant.clone(),
                content: named.content,
                size: named.size,
                options: lookup.options,
            };
            match self.known(&key, lookup.max_age_s) {
                Some(known)
                    if known.verdict.kind() == VerdictKind::Clean
                        && !(known.older && self.wants_recheck(&key)) =>
                {
                    self.count_hit(&known, key.size);
                    self.called_clean(caller.agent, &key);
                    true
                }
                _ => false,
            }
        });
        Known {
            clean: List::cut(clean),
            generations: self.scanner.generations(),
            load: self.scanner.load(),
        }
    }

    /// Remembers an agent as holder of contents that were called clean elsewhere. It is told
    /// at once of those that are known to be malware here.
    pub fn holds(&self, caller: &Caller, holds: &Holds) -> Known {
        for named in holds.contents.iter() {
            let key = cache::Key {
                tenant: caller.tenant.clone(),
                content: named.content,
                size: named.size,
                options: holds.options,
            };
            self.called_clean(caller.agent, &key);
        }
        Known {
            clean: List::default(),
            generations: self.scanner.generations(),
            load: self.scanner.load(),
        }
    }

    /// What can be said without a byte of the content.
    fn without_content(&self, request: &ScanRequest) -> Result<Option<Verdict>, Failure> {
        if request.size > self.bounds.max_scan_bytes {
            let max = self.bounds.max_scan_bytes;
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

    fn known(&self, key: &cache::Key, max_age_s: u32) -> Option<Landed> {
        let in_force = self.scanner.generations();
        let max_age = Duration::from_secs(max_age_s.into()).min(self.bounds.max_verdict_age);
        let found = self.cache.get(key, &in_force, max_age, cache::now_ms())?;
        Some(Landed {
            verdict: found.entry.verdict,
            details: found.entry.details,
            engines: EngineRuns::default(),
            sha256: found.entry.sha256,
            generations: in_force,
            older: found.older,
        })
    }

    fn cached(&self, known: Landed, key: &cache::Key) -> ScanResult {
        self.count_hit(&known, key.size);
        let recheck = known.older && self.wants_recheck(key);
        ScanResult {
            recheck,
            ..self.result(known, VerdictSource::SharedCache)
        }
    }

    fn count_hit(&self, known: &Landed, bytes: u64) {
        self.metrics.answered(match known.older {
            true => Source::cache_older,
            false => Source::cache,
        });
        self.metrics.saved(SavedBy::cache, bytes);
    }

    fn wants_recheck(&self, key: &cache::Key) -> bool {
        let load = self.scanner.load().load_permille;
        let mut rechecks = self.rechecks.lock().unwrap_or_else(PoisonError::into_inner);
        let wants = rechecks.wants(key, cache::now_ms(), load);
        drop(rechecks);
        if wants {
            self.metrics.recheck();
        }
        wants
    }

    /// Memory for a content; what is kept for its fragments makes room.
    async fn memory(&self, asker: &Asker, bytes: u64) -> Result<Share, Failure> {
        // Only for whom it is granted: what others keep is not emptied for a refusal.
        let make_room = || self.fragments.make_room(self.budget.lacking(bytes));
        let (tenant, agent) = (&asker.tenant, asker.agent);
        self.budget.take(tenant, agent, bytes, make_room).await
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
        // A claim costs nothing: until its chaining values fit the content id, memory is
        // taken for them alone.
        let claimed = match gather::outline_bytes(key.size) {
            bytes if bytes > 0 && !work.has_begun() => Some(self.memory(asker, bytes).await?),
            _ => None,
        };
        work.read_outline(key.content, key.size, peer).await?;
        drop(claimed);
        work.begin(key.size, || self.memory(asker, key.size))
            .await?;
        if let Some(outline) = work.outline() {
            let pieces = self.fragments.find(&key.tenant, outline);
            let copied = work.fill(pieces).await?;
            self.metrics.saved(SavedBy::fragments, copied);
        }
        let mut received = 0;
        let read = work.read_fragments(peer, &mut received).await;
        self.metrics.received(received);
        read?;
        let Gathered {
            bytes,
            outline,
            share,
        } = work.finish()?;
        let (reply, done) = oneshot::channel();
        let job = Job {
            tenant: key.tenant.clone(),
            content: key.content,
            bytes,
            options: key.options,
            clean_by: self.cache.clean_by(&key),
            span: Span::current(),
            reply,
        };
        if let Err(failure) = self.scanner.submit(asker, job) {
            // Followers would send it all again to hear the same.
            seat.land(Err(failure.clone()));
            return Err(failure);
        }
        let (service, seat) = (Arc::clone(self), seat.another());
        let conclude = async move {
            let landed = service.conclude(done, key, outline, share).await;
            seat.land(landed);
            drop(work);
        };
        tokio::spawn(conclude.in_current_span());
        Ok(())
    }

    /// What is read of it at this moment.
    pub fn gauges<S: Close>(&self, agents: &Agents<S>) -> Gauges {
        let (copy, retro) = (self.cache.copy_counts(), self.retro.counts());
        Gauges {
            agents: agents.count().into(),
            requests: agents.requests().into(),
            waiting_on_access: self.scanner.waiting(ScanClass::OnAccess) as u64,
            waiting_on_demand: self.scanner.waiting(ScanClass::OnDemand) as u64,
            waiting_long: self.scanner.waiting_long() as u64,
            busy: self.scanner.busy() as u64,
            aside: self.scanner.aside() as u64,
            cache_entries: self.cache.len(),
            cache_evicted: self.cache.evicted(),
            cache_copy_lost: copy.lost,
            cache_copy_begun_anew: copy.begun_anew,
            cache_copy_unnoted: copy.unnoted,
            poisoned: self.scanner.poisoned(),
            fragment_bytes: self.fragments.bytes(),
            fragment_disk_bytes: self.fragments.bytes_on_disk(),
            free_bytes: self.budget.free_bytes(),
            rescans_left: self.rescans.left() as u64,
            notices_waiting: retro.waiting as u64,
            notices_dropped: retro.dropped,
            holders_forgotten: retro.forgotten,
            held_contents: retro.contents as u64,
            // The desk's, which requests know nothing of.
            definitions_added_s: 0,
        }
    }

    fn result(&self, landed: Landed, source: VerdictSource) -> ScanResult {
        ScanResult {
            verdict: landed.verdict,
            details: landed.details,
            engines: match source {
                VerdictSource::Scanned => landed.engines,
                VerdictSource::SharedCache | VerdictSource::Coalesced => EngineRuns::default(),
            },
            source,
            sha256: landed.sha256,
            generations: landed.generations,
            older: landed.older,
            recheck: false,
            load: self.scanner.load(),
        }
    }
}
