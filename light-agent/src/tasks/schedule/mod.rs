//! Scans that begin by themselves: one task that looks at the clock.
//!
//! | module | owns |
//! | --- | --- |
//! | [`settings`] | what may be set of a schedule |
//! | [`policy`] | when it is due, whatever clocks do (pure) |
//! | [`idle`] | whether the machine is idle enough |
//!
//! A slot's date is on disk before its scan is ordered: an agent that is killed in
//! between misses it, and never runs it twice.

pub mod idle;
pub mod policy;
pub mod settings;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;

use super::book::Wish;
use super::desk::Desk;
use crate::scan::hands::Priority;
use idle::Verdict;
use policy::Decision;
use settings::Schedule;

/// The longest sleep: a clock that is set, or a machine that slept, is noticed then.
const LONGEST: Duration = Duration::from_secs(60);
/// The shortest.
const SHORTEST: Duration = Duration::from_secs(1);

/// The clock's watcher.
pub struct Clock {
    /// What is due when.
    pub schedules: Vec<Schedule>,
    /// Whose starts are spread.
    pub agent: String,
    /// Where scans are ordered.
    pub desk: Desk,
    /// How much they give way where the schedule says nothing.
    pub priority: Priority,
}

impl Clock {
    /// Watches for ever.
    pub async fn run(self) {
        let kept = self.desk.with_store(|store| Ok(store.last_due())).await;
        let mut last = kept.unwrap_or_default();
        let names: Vec<String> = self.schedules.iter().map(Schedule::to_string).collect();
        last.retain(|name, _| names.contains(name));
        let mut waiting: BTreeMap<usize, Instant> = BTreeMap::new();
        loop {
            let mut sleep = LONGEST;
            for (index, (schedule, name)) in self.schedules.iter().zip(&names).enumerate() {
                let spread = policy::spread(&self.agent, name, schedule.spread_min);
                let (now, zone) = (Timestamp::now(), TimeZone::system());
                let known = last.get(name).copied();
                match policy::decide(schedule, spread, known, now, &zone) {
                    Decision::Wait { until, last: date } => {
                        waiting.remove(&index);
                        if date != known {
                            self.keep(&mut last, name, date).await;
                        }
                        let left = until.map(|until| until.duration_since(now));
                        let left = left.and_then(|left| Duration::try_from(left).ok());
                        sleep = sleep.min(left.unwrap_or(LONGEST));
                    }
                    Decision::Due(date) => {
                        let since = *waiting.entry(index).or_insert_with(|| {
                            tracing::info!(schedule = %name, "a scan is due");
                            Instant::now()
                        });
                        let verdict = idle::judge(schedule, idle::load(), since.elapsed());
                        if verdict != Verdict::Wait {
                            waiting.remove(&index);
                            self.keep(&mut last, name, Some(date)).await;
                            self.begin(schedule, name, verdict).await;
                        }
                    }
                }
            }
            tokio::time::sleep(sleep.max(SHORTEST)).await;
        }
    }

    async fn keep(&self, last: &mut BTreeMap<String, Date>, name: &str, date: Option<Date>) {
        match date {
            Some(date) => last.insert(name.to_owned(), date),
            None => last.remove(name),
        };
        if let Err(error) = self.desk.keep_last_due(last).await {
            tracing::error!(%error, "the dates of scheduled scans cannot be kept on disk");
        }
    }

    async fn begin(&self, schedule: &Schedule, name: &str, verdict: Verdict) {
        if verdict == Verdict::Skip {
            tracing::warn!(
                schedule = name,
                "the machine was never idle; the scan is left out"
            );
            return;
        }
        if self.desk.is_open(name) {
            tracing::warn!(
                schedule = name,
                "its last scan has not ended; this one is left out"
            );
            return;
        }
        let wish = Wish {
            kind: schedule.kind,
            paths: schedule
                .paths
                .iter()
                .map(|path| path.as_path().into())
                .collect(),
            priority: schedule.priority.unwrap_or(self.priority),
            schedule: Some(name.to_owned()),
        };
        if let Err(reason) = self.desk.add(wish).await {
            tracing::error!(schedule = name, %reason, "a scheduled scan does not begin");
        }
    }
}
