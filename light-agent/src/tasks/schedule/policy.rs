//! When a schedule is due; pure.
//!
//! A schedule has one slot for each date of its days, in local time, and a slot is due
//! once its time has come. Slots are told apart by their dates, so that none runs twice,
//! whatever is done to clocks and time zones:
//!
//! - What was missed is made up for once, by the latest slot.
//! - A time that a date does not have (clocks are put forward) comes that much later;
//!   one that it has twice counts the first time.
//! - A clock that goes back by up to [`BELIEVED_DAYS`] has slots wait until they are
//!   new; after that the last date is taken for a clock's mistake and forgotten.
//! - A schedule that is new begins with its next slot.

use std::time::Duration;

use jiff::civil::Date;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Span, Timestamp};
use palisade_protocol::content::ContentId;

use super::settings::Schedule;

/// Days that a clock may go back before the last slot's date is not believed.
const BELIEVED_DAYS: i64 = 2;
/// Days around today in which every schedule has a slot before and after now.
const AROUND: i64 = 9;

/// What follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// The slot of this date is due.
    Due(Date),
    /// None is.
    Wait {
        /// When the next one will be, if the clock goes on as it does.
        until: Option<Timestamp>,
        /// The date to be kept as the last one's.
        last: Option<Date>,
    },
}

/// How long after the time in the settings this agent begins: always the same, and
/// different for each agent of a fleet.
pub fn spread(agent: &str, schedule: &str, spread_min: u32) -> Duration {
    let hash = ContentId::of(format!("{agent}\n{schedule}").as_bytes()).0;
    let number = hash
        .iter()
        .take(8)
        .fold(0_u64, |number, byte| (number << 8) | u64::from(*byte));
    Duration::from_secs(number % (u64::from(spread_min) * 60).max(1))
}

/// Decides; `last` is the date of the slot that was last due.
pub fn decide(
    schedule: &Schedule,
    spread: Duration,
    last: Option<Date>,
    now: Timestamp,
    zone: &TimeZone,
) -> Decision {
    let today = zone.to_datetime(now).date();
    let slots = (-AROUND..=AROUND).filter_map(|distance| {
        let date = moved(today, distance)?;
        schedule
            .days
            .holds(date.weekday())
            .then(|| slot(schedule, spread, date, zone))
            .flatten()
            .map(|time| (date, time))
    });
    let (past, future): (Vec<_>, Vec<_>) = slots.partition(|(_, time)| *time <= now);
    let latest = past.last().map(|(date, _)| *date);
    let believed = moved(today, BELIEVED_DAYS).unwrap_or(today);
    let last = match last {
        Some(last) if last <= believed => last,
        // It is new, or its clock was wrong: what is past was not its own.
        _ => {
            return Decision::Wait {
                until: future.first().map(|(_, time)| *time),
                last: latest,
            };
        }
    };
    match latest {
        Some(latest) if latest > last => Decision::Due(latest),
        _ => Decision::Wait {
            until: future
                .iter()
                .find(|(date, _)| *date > last)
                .map(|(_, time)| *time),
            last: Some(last),
        },
    }
}

fn slot(schedule: &Schedule, spread: Duration, date: Date, zone: &TimeZone) -> Option<Timestamp> {
    let local = date.to_datetime(schedule.at.0);
    let time = zone.to_ambiguous_timestamp(local).compatible().ok()?;
    time.checked_add(SignedDuration::try_from(spread).ok()?)
        .ok()
}

fn moved(date: Date, days: i64) -> Option<Date> {
    date.checked_add(Span::new().try_days(days).ok()?).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn schedule(text: &str) -> Schedule {
        toml(text)
    }

    fn toml(text: &str) -> Schedule {
        serde_json::from_str(text).unwrap()
    }

    fn daily(at: &str) -> Schedule {
        schedule(&format!(r#"{{"kind":"quick","at":"{at}"}}"#))
    }

    fn time(text: &str) -> Timestamp {
        text.parse().unwrap()
    }

    fn date(text: &str) -> Date {
        text.parse().unwrap()
    }

    /// Steps a clock, and gives the dates that were due with their times.
    fn walk(
        schedule: &Schedule,
        spread: Duration,
        zone: &TimeZone,
        times: impl IntoIterator<Item = Timestamp>,
    ) -> Vec<(Date, Timestamp)> {
        let mut last = None;
        let mut due = Vec::new();
        for now in times {
            match decide(schedule, spread, last, now, zone) {
                Decision::Due(date) => {
                    due.push((date, now));
                    last = Some(date);
                }
                Decision::Wait { last: kept, .. } => last = kept,
            }
        }
        due
    }

    #[test]
    fn a_new_schedule_begins_with_its_next_slot() {
        let utc = TimeZone::UTC;
        let now = time("2026-03-01T12:00:00Z");
        let decision = decide(&daily("02:30"), Duration::ZERO, None, now, &utc);
        assert_eq!(
            decision,
            Decision::Wait {
                until: Some(time("2026-03-02T02:30:00Z")),
                last: Some(date("2026-03-01")),
            }
        );
    }

    #[test]
    fn what_was_missed_is_made_up_for_once() {
        let utc = TimeZone::UTC;
        let now = time("2026-03-09T01:00:00Z");
        let long_ago = Some(date("2026-01-01"));
        let decision = decide(&daily("02:30"), Duration::ZERO, long_ago, now, &utc);
        assert_eq!(decision, Decision::Due(date("2026-03-08")));
        let then = Some(date("2026-03-08"));
        let next = decide(&daily("02:30"), Duration::ZERO, then, now, &utc);
        let until = Some(time("2026-03-09T02:30:00Z"));
        assert_eq!(next, Decision::Wait { until, last: then });
    }

    #[test]
    fn days_are_heeded() {
        let weekly = toml(r#"{"kind":"full","at":"23:00","days":["sun"],"spread_min":120}"#);
        let utc = TimeZone::UTC;
        let start = time("2026-03-03T00:00:00Z");
        let times = (0..24 * 7 * 4).map(|hour| start + SignedDuration::from_hours(hour));
        let due = walk(&weekly, Duration::from_secs(6000), &utc, times);
        let dates: Vec<String> = due.iter().map(|(date, _)| date.to_string()).collect();
        assert_eq!(
            dates,
            ["2026-03-08", "2026-03-15", "2026-03-22", "2026-03-29"],
            "{due:?}"
        );
        assert_eq!(
            due[0].1,
            time("2026-03-09T01:00:00Z"),
            "spread past midnight"
        );
    }

    /// Where clocks are put forward and back, and where a whole date is left out.
    #[test]
    fn daylight_saving_neither_adds_nor_loses_a_run() {
        for (zone, year, lost) in [
            ("Europe/Berlin", 2026, 0),
            ("America/New_York", 2026, 0),
            ("Australia/Lord_Howe", 2026, 0),
            ("Pacific/Apia", 2011, 1),
            ("UTC", 2026, 0),
        ] {
            let zone_of = TimeZone::get(zone).unwrap();
            for at in ["00:00", "01:30", "02:00", "02:30", "23:59"] {
                let start = zone_of
                    .to_ambiguous_timestamp(jiff::civil::date(year - 1, 12, 31).at(12, 0, 0, 0))
                    .compatible()
                    .unwrap();
                let times = (0..4 * 24 * 366)
                    .map(|quarter| start + SignedDuration::from_mins(15 * quarter));
                let due = walk(&daily(at), Duration::ZERO, &zone_of, times);
                let dates: std::collections::BTreeSet<Date> =
                    due.iter().map(|(date, _)| *date).collect();
                assert_eq!(dates.len(), due.len(), "{zone} {at}: one ran twice");
                let of_the_year = dates.iter().filter(|date| date.year() == year).count();
                assert_eq!(of_the_year, 365 - lost, "{zone} {at}");
            }
        }
        // 02:30 does not exist; an hour later it does.
        let berlin = TimeZone::get("Europe/Berlin").unwrap();
        let slot = slot(&daily("02:30"), Duration::ZERO, date("2026-03-29"), &berlin);
        assert_eq!(slot, Some(time("2026-03-29T01:30:00Z")));
    }

    #[test]
    fn a_fleet_spreads_and_an_agent_stays() {
        let of = |agent: usize| spread(&format!("agent-{agent}"), "quick at 02:30", 60);
        let mut tenths = [0; 10];
        for agent in 0..1000 {
            let wait = of(agent);
            assert!(wait < Duration::from_secs(3600));
            assert_eq!(wait, of(agent));
            tenths[usize::try_from(wait.as_secs() / 360).unwrap()] += 1;
        }
        assert!(
            tenths.iter().all(|count| (60..140).contains(count)),
            "{tenths:?}"
        );
        assert_eq!(spread("a", "s", 0), Duration::ZERO);
    }

    proptest! {
        /// Whatever a clock does within a day of the truth: no slot runs twice, and none
        /// of the clock's jumps brings more than one run.
        #[test]
        fn a_clock_that_jumps_repeats_nothing(
            steps in prop::collection::vec((0_i64..40 * 3600, -24_i64 * 3600..=0), 1..60),
            zone in prop::sample::select(vec!["UTC", "Europe/Berlin", "America/New_York", "Pacific/Apia"]),
            hour in 0..24_u8,
            spread_s in 0..86_340_u64,
        ) {
            let zone = TimeZone::get(zone).unwrap();
            let schedule = daily(&format!("{hour:02}:30"));
            let mut truth = time("2026-03-20T00:00:00Z");
            let mut times = Vec::new();
            for (on, back) in steps {
                truth += SignedDuration::from_secs(on);
                // The clock is at the truth, then wrong, then right; asked twice each.
                for jump in [0, back, 0] {
                    times.extend([truth + SignedDuration::from_secs(jump); 2]);
                }
            }
            let due = walk(&schedule, Duration::from_secs(spread_s), &zone, times.clone());
            let dates: Vec<Date> = due.iter().map(|(date, _)| *date).collect();
            prop_assert!(dates.windows(2).all(|pair| pair[0] < pair[1]), "{due:?}");
        }

        /// Any clock at all: what was just due is not due again at once, and a slot that
        /// is due has come.
        #[test]
        fn no_storm(
            now in -20_000_000_000_i64..200_000_000_000,
            last in prop::option::of(-3000_i64..3000),
            spread_s in 0..86_340_u64,
        ) {
            let now = Timestamp::from_second(now).unwrap();
            let zone = TimeZone::get("Europe/Berlin").unwrap();
            let today = zone.to_datetime(now).date();
            let last = last.and_then(|days| moved(today, days));
            let spread = Duration::from_secs(spread_s);
            let schedule = daily("02:30");
            if let Decision::Due(date) = decide(&schedule, spread, last, now, &zone) {
                prop_assert!(slot(&schedule, spread, date, &zone).unwrap() <= now);
                let again = decide(&schedule, spread, Some(date), now, &zone);
                let waits = match again {
                    Decision::Wait { until, .. } => until.is_some_and(|until| until > now),
                    Decision::Due(_) => false,
                };
                prop_assert!(waits, "{again:?}");
            }
        }
    }
}
