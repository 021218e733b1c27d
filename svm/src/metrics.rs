//! What the Protection Server counts, and how Prometheus reads it: one table.
//!
//! Owns the names and the HTTP answer ([`labels`] owns the labels' values); does not own what is counted: each
//! module counts where it happens, and gauges are taken when somebody reads
//! ([`Gauges`]). Labels have few fixed values; no guest, path or content is ever one.

mod labels;

use std::net::SocketAddr;
use std::sync::Arc;

use axum::Router;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::routing::get;
use palisade_protocol::problem::{ProblemKind, Problems};
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;

use crate::failure::Failure;
use labels::{
    ClassLabel, ClassValue, DiskLabel, EndedLabel, GaveWayLabel, ProblemLabel, ReasonLabel,
    RescannedLabel, SavedLabel, SourceLabel, UseLabel, UseValue,
};
pub use labels::{DiskEvent, Ended, GaveWay, Reason, Rescanned, SavedBy, Source};

/// What Prometheus is told the answer is.
const TEXT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// Shortest time that is told apart, the factor between two, and how many, in seconds:
/// from 0.1 ms to 3.5 minutes.
const SECONDS: (f64, f64, u16) = (0.0001, 2.0, 22);

/// What is looked up when somebody reads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gauges {
    /// Connected agents.
    pub agents: u64,
    /// Open requests.
    pub requests: u64,
    /// On-access contents that wait for a worker.
    pub waiting_on_access: u64,
    /// On-demand contents that wait for a worker.
    pub waiting_on_demand: u64,
    /// Contents that gave way and wait for a side lane.
    pub waiting_long: u64,
    /// Lanes that scan.
    pub busy: u64,
    /// Long scans on side lanes.
    pub aside: u64,
    /// Verdicts in the SharedCache.
    pub cache_entries: u64,
    /// Verdicts that the SharedCache dropped for lack of room.
    pub cache_evicted: u64,
    /// Writes that the SharedCache's copy on disk did not get, since the start.
    pub cache_copy_lost: u64,
    /// How often that copy was begun anew.
    pub cache_copy_begun_anew: u64,
    /// Verdicts of which it could not be noted that they overrule it.
    pub cache_copy_unnoted: u64,
    /// Contents that killed their workers twice, since the start.
    pub poisoned: u64,
    /// Bytes that are kept for their fragments.
    pub fragment_bytes: u64,
    /// Bytes of fragments that are kept on disk.
    pub fragment_disk_bytes: u64,
    /// Bytes that are free for contents.
    pub free_bytes: u64,
    /// Kept contents that new definitions have still to look at.
    pub rescans_left: u64,
    /// Contents that agents were not told of, for want of room, since the start.
    pub notices_dropped: u64,
    /// Holders of clean contents that were forgotten, since the start.
    pub holders_forgotten: u64,
    /// Clean contents of which it is remembered who holds them.
    pub held_contents: u64,
    /// Contents that agents are still to be told of.
    pub notices_waiting: u64,
    /// When the definitions in force were added, in seconds since 1970.
    pub definitions_added_s: u64,
}

/// What was counted since the start, for people.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Verdicts of scans.
    pub scanned: u64,
    /// Verdicts of another request's scan.
    pub coalesced: u64,
    /// Verdicts that were known.
    pub cached: u64,
    /// Verdicts that were known by earlier definitions.
    pub cached_older: u64,
    /// Scans that found malware.
    pub malware: u64,
    /// Scans that found a heuristic's suspicion.
    pub suspicious: u64,
    /// Scans that stopped short.
    pub not_scanned: u64,
    /// Long scans that went on on a side lane, because others waited.
    pub moved_aside: u64,
    /// Long scans that were stopped and queued again, because others waited.
    pub stopped: u64,
    /// Requests that ended without a verdict.
    pub turned_away: u64,
    /// Content that agents sent, in bytes.
    pub received_bytes: u64,
    /// Content that did not have to be sent, in bytes.
    pub saved_bytes: u64,
    /// Fragments that were read from disk in place of being sent.
    pub disk_read: u64,
    /// Fragments that were on disk, or were to be, and could not be had.
    pub disk_lost: u64,
}

/// The counters. Shared by all modules that count.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    answers: Family<SourceLabel, Counter>,
    refused: Family<ReasonLabel, Counter>,
    cache_misses: Counter,
    lookups: Counter,
    rechecks: Counter,
    rescans: Family<RescannedLabel, Counter>,
    received: Counter,
    saved: Family<SavedLabel, Counter>,
    disk: Family<DiskLabel, Counter>,
    scans: Family<EndedLabel, Counter>,
    gave_way: Family<GaveWayLabel, Counter>,
    scan_seconds: Histogram,
    wait_seconds: Histogram,
    agents: Gauge,
    requests: Gauge,
    waiting: Family<ClassLabel, Gauge>,
    busy: Gauge,
    aside: Gauge,
    cache_entries: Gauge,
    cache_evicted: Gauge,
    cache_copy_lost: Gauge,
    cache_copy_begun_anew: Gauge,
    cache_copy_unnoted: Gauge,
    holders_forgotten: Gauge,
    held_contents: Gauge,
    notices_dropped: Gauge,
    notices_waiting: Gauge,
    poisoned: Gauge,
    memory: Family<UseLabel, Gauge>,
    disk_bytes: Gauge,
    rescans_left: Gauge,
    definitions_added: Gauge,
    problems: Family<ProblemLabel, Gauge>,
}

impl Default for Metrics {
    fn default() -> Self {
        let (start, factor, count) = SECONDS;
        let seconds = || Histogram::new(exponential_buckets(start, factor, count));
        let mut metrics = Self {
            registry: Registry::with_prefix("palisade_svm"),
            answers: Family::default(),
            refused: Family::default(),
            cache_misses: Counter::default(),
            lookups: Counter::default(),
            rechecks: Counter::default(),
            rescans: Family::default(),
            received: Counter::default(),
            saved: Family::default(),
            disk: Family::default(),
            scans: Family::default(),
            gave_way: Family::default(),
            scan_seconds: seconds(),
            wait_seconds: seconds(),
            agents: Gauge::default(),
            requests: Gauge::default(),
            waiting: Family::default(),
            busy: Gauge::default(),
            aside: Gauge::default(),
            cache_entries: Gauge::default(),
            cache_evicted: Gauge::default(),
            cache_copy_lost: Gauge::default(),
            cache_copy_begun_anew: Gauge::default(),
            cache_copy_unnoted: Gauge::default(),
            holders_forgotten: Gauge::default(),
            held_contents: Gauge::default(),
            notices_dropped: Gauge::default(),
            notices_waiting: Gauge::default(),
            poisoned: Gauge::default(),
            memory: Family::default(),
            disk_bytes: Gauge::default(),
            rescans_left: Gauge::default(),
            definitions_added: Gauge::default(),
            problems: Family::default(),
        };
        metrics.register();
        metrics.begin();
        metrics
    }
}

impl Metrics {
    fn register(&mut self) {
        let all = &mut self.registry;
        all.register(
            "answers",
            "Verdicts given, by where they came from",
            self.answers.clone(),
        );
        all.register(
            "refused",
            "Requests that ended without a verdict",
            self.refused.clone(),
        );
        all.register(
            "cache_misses",
            "Contents that the SharedCache had no verdict for",
            self.cache_misses.clone(),
        );
        all.register(
            "lookups",
            "Contents asked about in batches",
            self.lookups.clone(),
        );
        all.register(
            "rechecks",
            "Older verdicts that an agent was asked to have scanned anew",
            self.rechecks.clone(),
        );
        all.register(
            "rescans",
            "Kept contents that new definitions were to look at",
            self.rescans.clone(),
        );
        all.register_with_unit(
            "content_received",
            "Content that agents sent",
            Unit::Bytes,
            self.received.clone(),
        );
        all.register_with_unit(
            "content_saved",
            "Content that did not have to be sent",
            Unit::Bytes,
            self.saved.clone(),
        );
        all.register(
            "fragment_disk_events",
            "Fragments on disk, by what happened to them",
            self.disk.clone(),
        );
        all.register(
            "scans",
            "Contents that the engines scanned",
            self.scans.clone(),
        );
        all.register(
            "scans_gave_way",
            "Long scans that gave way to on-access contents that waited",
            self.gave_way.clone(),
        );
        all.register_with_unit(
            "scan_duration",
            "How long a content was scanned, the last time if it was stopped",
            Unit::Seconds,
            self.scan_seconds.clone(),
        );
        all.register_with_unit(
            "queue_wait",
            "How long a content waited for its first lane",
            Unit::Seconds,
            self.wait_seconds.clone(),
        );
        all.register("agents", "Connected agents", self.agents.clone());
        all.register(
            "requests_open",
            "Requests without an answer yet",
            self.requests.clone(),
        );
        all.register(
            "queue_length",
            "Contents that wait for a lane",
            self.waiting.clone(),
        );
        all.register("lanes_busy", "Lanes that scan", self.busy.clone());
        all.register(
            "side_lanes_busy",
            "Side lanes that scan",
            self.aside.clone(),
        );
        all.register(
            "cache_entries",
            "Verdicts in the SharedCache",
            self.cache_entries.clone(),
        );
        all.register(
            "cache_evicted",
            "Verdicts dropped for lack of room since the start",
            self.cache_evicted.clone(),
        );
        all.register(
            "cache_copy_lost",
            "Verdicts that the copy on disk did not get since the start",
            self.cache_copy_lost.clone(),
        );
        all.register(
            "cache_copy_begun_anew",
            "How often the copy on disk was begun anew since the start",
            self.cache_copy_begun_anew.clone(),
        );
        all.register(
            "cache_copy_unnoted",
            "Verdicts of which it could not be noted in time that they overrule the copy",
            self.cache_copy_unnoted.clone(),
        );
        all.register(
            "notices_waiting",
            "Contents that agents are still to be told of",
            self.notices_waiting.clone(),
        );
        all.register(
            "notices_dropped",
            "Contents that agents were not told of, for want of room, since the start",
            self.notices_dropped.clone(),
        );
        all.register(
            "held_contents",
            "Clean contents of which it is remembered which guests hold them",
            self.held_contents.clone(),
        );
        all.register(
            "holders_forgotten",
            "Holders of clean contents that were forgotten since the start",
            self.holders_forgotten.clone(),
        );
        all.register(
            "contents_poisoned",
            "Contents that killed their workers twice, since the start",
            self.poisoned.clone(),
        );
        all.register_with_unit(
            "content_memory",
            "Memory for contents that is no request's",
            Unit::Bytes,
            self.memory.clone(),
        );
        all.register_with_unit(
            "fragment_disk",
            "Fragments that are kept on disk",
            Unit::Bytes,
            self.disk_bytes.clone(),
        );
        all.register(
            "rescans_left",
            "Kept contents that new definitions have still to look at",
            self.rescans_left.clone(),
        );
        all.register_with_unit(
            "definitions_added_timestamp",
            "When the definitions in force were added, since 1970",
            Unit::Seconds,
            self.definitions_added.clone(),
        );
        all.register(
            "problems",
            "What is wrong now and wants somebody's hand",
            self.problems.clone(),
        );
    }

    /// Every series exists from the start: a rate over one that appears later would miss
    /// its first count.
    fn begin(&self) {
        for source in Source::ALL {
            self.answers.get_or_create_owned(&SourceLabel { source });
        }
        for reason in Reason::ALL {
            self.refused.get_or_create_owned(&ReasonLabel { reason });
        }
        for by in SavedBy::ALL {
            self.saved.get_or_create_owned(&SavedLabel { by });
        }
        for how in GaveWay::ALL {
            self.gave_way.get_or_create_owned(&GaveWayLabel { how });
        }
        for event in DiskEvent::ALL {
            self.disk.get_or_create_owned(&DiskLabel { event });
        }
        for verdict in Ended::ALL {
            self.scans.get_or_create_owned(&EndedLabel { verdict });
        }
        for outcome in Rescanned::ALL {
            self.rescans
                .get_or_create_owned(&RescannedLabel { outcome });
        }
    }

    /// A verdict was given.
    pub fn answered(&self, source: Source) {
        self.answers.get_or_create(&SourceLabel { source }).inc();
    }

    /// A request ended without a verdict.
    pub fn refused(&self, failure: &Failure) {
        let reason = Reason::from(failure);
        self.refused.get_or_create(&ReasonLabel { reason }).inc();
    }

    /// The SharedCache had no verdict.
    pub fn missed(&self) {
        self.cache_misses.inc();
    }

    /// A batch asked about so many contents.
    pub fn looked_up(&self, contents: u64) {
        self.lookups.inc_by(contents);
    }

    /// An agent was asked for a re-check.
    pub fn recheck(&self) {
        self.rechecks.inc();
    }

    /// A kept content had its turn.
    pub fn rescanned(&self, outcome: Rescanned) {
        self.rescans
            .get_or_create(&RescannedLabel { outcome })
            .inc();
    }

    /// So many bytes of content came.
    pub fn received(&self, bytes: u64) {
        self.received.inc_by(bytes);
    }

    /// So many bytes did not have to come.
    pub fn saved(&self, by: SavedBy, bytes: u64) {
        self.saved.get_or_create(&SavedLabel { by }).inc_by(bytes);
    }

    /// So many fragments on disk had this happen to them.
    pub fn on_disk(&self, event: DiskEvent, fragments: u64) {
        self.disk
            .get_or_create(&DiskLabel { event })
            .inc_by(fragments);
    }

    /// A content waited and was scanned.
    pub fn scanned(&self, ended: Ended, waited_s: f64, took_s: f64) {
        self.scans
            .get_or_create(&EndedLabel { verdict: ended })
            .inc();
        self.wait_seconds.observe(waited_s);
        self.scan_seconds.observe(took_s);
    }

    /// A long scan gave way.
    pub fn gave_way(&self, how: GaveWay) {
        self.gave_way.get_or_create(&GaveWayLabel { how }).inc();
    }

    /// The counters, for people.
    pub fn counts(&self) -> Counts {
        let answers = |source| self.answers.get_or_create(&SourceLabel { source }).get();
        let scans = |verdict| self.scans.get_or_create(&EndedLabel { verdict }).get();
        let refused = |reason| self.refused.get_or_create(&ReasonLabel { reason }).get();
        let gave_way = |how| self.gave_way.get_or_create(&GaveWayLabel { how }).get();
        let saved = |by| self.saved.get_or_create(&SavedLabel { by }).get();
        let disk = |event| self.disk.get_or_create(&DiskLabel { event }).get();
        Counts {
            scanned: answers(Source::scanned),
            coalesced: answers(Source::coalesced),
            cached: answers(Source::cache),
            cached_older: answers(Source::cache_older),
            malware: scans(Ended::malware),
            suspicious: scans(Ended::suspicious),
            not_scanned: scans(Ended::not_scanned),
            moved_aside: gave_way(GaveWay::moved),
            stopped: gave_way(GaveWay::stopped),
            turned_away: Reason::ALL.map(refused).iter().sum(),
            received_bytes: self.received.get(),
            saved_bytes: SavedBy::ALL.map(saved).iter().sum(),
            disk_read: disk(DiskEvent::read),
            disk_lost: disk(DiskEvent::damaged) + disk(DiskEvent::failed),
        }
    }

    /// The counters in OpenMetrics text.
    pub fn text(&self, gauges: &Gauges, problems: &Problems) -> String {
        let set = |gauge: &Gauge, value: u64| {
            gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        };
        let waiting = |class| self.waiting.get_or_create_owned(&ClassLabel { class });
        let memory = |used| self.memory.get_or_create_owned(&UseLabel { r#use: used });
        set(&self.agents, gauges.agents);
        set(&self.requests, gauges.requests);
        set(&waiting(ClassValue::on_access), gauges.waiting_on_access);
        set(&waiting(ClassValue::on_demand), gauges.waiting_on_demand);
        set(&waiting(ClassValue::long), gauges.waiting_long);
        set(&self.busy, gauges.busy);
        set(&self.aside, gauges.aside);
        set(&self.cache_entries, gauges.cache_entries);
        set(&self.cache_evicted, gauges.cache_evicted);
        set(&self.cache_copy_lost, gauges.cache_copy_lost);
        set(&self.cache_copy_begun_anew, gauges.cache_copy_begun_anew);
        set(&self.cache_copy_unnoted, gauges.cache_copy_unnoted);
        set(&self.held_contents, gauges.held_contents);
        set(&self.holders_forgotten, gauges.holders_forgotten);
        set(&self.notices_dropped, gauges.notices_dropped);
        set(&self.notices_waiting, gauges.notices_waiting);
        set(&self.poisoned, gauges.poisoned);
        set(&memory(UseValue::fragments), gauges.fragment_bytes);
        set(&memory(UseValue::free), gauges.free_bytes);
        set(&self.rescans_left, gauges.rescans_left);
        set(&self.disk_bytes, gauges.fragment_disk_bytes);
        set(&self.definitions_added, gauges.definitions_added_s);
        for problem in ProblemKind::NAMES {
            let count = problems.iter().filter(|one| one.kind.as_str() == problem);
            let gauge = self.problems.get_or_create_owned(&ProblemLabel { problem });
            set(&gauge, count.count() as u64);
        }
        let mut text = String::new();
        // Writing to a String does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

/// Answers `GET /metrics` until it is dropped.
///
/// # Errors
/// The socket's, when the address cannot be used.
pub async fn serve(
    address: SocketAddr,
    metrics: Arc<Metrics>,
    gauges: impl Fn() -> (Gauges, Problems) + Clone + Send + Sync + 'static,
) -> std::io::Result<(SocketAddr, impl Future<Output = ()>)> {
    let listener = TcpListener::bind(address).await?;
    let bound = listener.local_addr()?;
    let answer = move || {
        let (gauges, problems) = gauges();
        let text = metrics.text(&gauges, &problems);
        async move { ([(CONTENT_TYPE, TEXT)], text).into_response() }
    };
    let router = Router::new().route("/metrics", get(answer));
    let serving = async move {
        if let Err(error) = axum::serve(listener, router).await {
            tracing::error!(%error, "metrics are no longer served");
        }
    };
    Ok((bound, serving))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_counted_is_read() {
        let metrics = Metrics::default();
        metrics.answered(Source::cache_older);
        metrics.refused(&Failure::PeerGone);
        metrics.saved(SavedBy::fragments, 10);
        metrics.scanned(Ended::clean, 0.001, 0.02);
        let gauges = Gauges {
            waiting_on_access: 3,
            ..Gauges::default()
        };
        let text = metrics.text(&gauges, &Problems::default());
        for line in [
            "palisade_svm_answers_total{source=\"cache_older\"} 1",
            "palisade_svm_refused_total{reason=\"gone\"} 1",
            "palisade_svm_content_saved_bytes_total{by=\"fragments\"} 10",
            "palisade_svm_scans_total{verdict=\"clean\"} 1",
            "palisade_svm_scan_duration_seconds_count 1",
            "palisade_svm_queue_length{class=\"on_access\"} 3",
        ] {
            assert!(text.lines().any(|had| had == line), "{line} in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
    }

    #[test]
    fn the_document_names_each_metric_and_its_kind() {
        let metrics = Metrics::default();
        let text = metrics.text(&Gauges::default(), &Problems::default());
        let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
        let registered: Vec<(&str, &str)> = types.filter_map(|line| line.split_once(' ')).collect();
        let document = include_str!("../../METRICS.md");
        let rows = document
            .lines()
            .filter(|line| line.starts_with("| `palisade_svm_"));
        let documented: Vec<(&str, &str)> = rows
            .map(|row| {
                let mut cells = row.split('|').map(str::trim).skip(1);
                let name = cells.next().unwrap().trim_matches('`');
                let kind = cells.next().unwrap().split(',').next().unwrap();
                (name, kind)
            })
            .collect();
        assert_eq!(documented, registered);
    }
}
