//! Whether a machine is idle enough for a scan. The decision is pure.
//!
//! Only the load counts: a server has nobody at its keyboard.

use std::time::Duration;

use super::settings::{IfNeverIdle, Schedule};

/// What follows for a scan that is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It runs.
    Run,
    /// Not yet.
    Wait,
    /// Not this time.
    Skip,
}

/// Decides by the load per core, if it is known, and how long the scan has waited.
pub fn judge(schedule: &Schedule, load: Option<f64>, waited: Duration) -> Verdict {
    // A machine that does not say its load does not hold up its scans.
    let busy = schedule.only_idle && load.is_some_and(|load| load >= schedule.idle_load);
    let patience = Duration::from_secs(u64::from(schedule.idle_wait_min) * 60);
    match schedule.if_never_idle {
        _ if !busy => Verdict::Run,
        _ if waited < patience => Verdict::Wait,
        IfNeverIdle::Run => Verdict::Run,
        IfNeverIdle::Skip => Verdict::Skip,
    }
}

/// The load average of the last minute per core.
pub fn load() -> Option<f64> {
    let cores = std::thread::available_parallelism().ok()?.get();
    of_text(&std::fs::read_to_string("/proc/loadavg").ok()?, cores)
}

fn of_text(loadavg: &str, cores: usize) -> Option<f64> {
    let load: f64 = loadavg.split(' ').next()?.parse().ok()?;
    Some(load / cores as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_busy_machine_is_waited_for_as_long_as_set() {
        let schedule = |skip: &str| -> Schedule {
            serde_json::from_str(&format!(
                r#"{{"kind":"full","at":"02:30","only_idle":true,"idle_wait_min":10{skip}}}"#
            ))
            .unwrap()
        };
        let (run, skip) = (schedule(""), schedule(r#","if_never_idle":"skip""#));
        let minutes = |n: u64| Duration::from_secs(n * 60);
        assert_eq!(judge(&run, Some(0.4), minutes(0)), Verdict::Run);
        assert_eq!(judge(&run, None, minutes(0)), Verdict::Run);
        assert_eq!(judge(&run, Some(0.5), minutes(9)), Verdict::Wait);
        assert_eq!(judge(&run, Some(0.5), minutes(10)), Verdict::Run);
        assert_eq!(judge(&skip, Some(0.5), minutes(10)), Verdict::Skip);
        let always = Schedule {
            only_idle: false,
            ..run
        };
        assert_eq!(judge(&always, Some(9.0), minutes(0)), Verdict::Run);
    }

    #[test]
    fn the_load_is_per_core() {
        assert_eq!(of_text("3.00 1.00 0.50 2/345 678\n", 4), Some(0.75));
        assert_eq!(of_text("", 4), None);
        assert!(load().is_some_and(|load| load >= 0.0));
    }
}
