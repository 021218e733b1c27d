//! The emergency switch: on-access protection off, or watching only, without any server.
//!
//! ```text
//!  palisade-agent bypass ─► bypass.json ─┐
//!                                        ├─► in force? ─► the agent starts anew, off or monitoring
//!  kernel parameter palisade=off ────────┘        └ over ─► and anew, as its settings say
//! ```
//!
//! Owns what switches and for how long (pure, the time is an argument) and its file; the
//! command is [`command`]'s, starting anew the supervisor's
//! ([`supervise`](crate::supervise)). Root may switch protection off: root may do worse.
//! So it is no secret, ends by itself, is logged, and `status` and the Integration Server
//! say it.

pub mod command;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::Notify;

use crate::state_file::StateFile;
use crate::supervise::record::now;

/// The longest time that protection is switched for.
pub const LONGEST: Duration = Duration::from_secs(7 * 86_400);
/// Longest reason, in bytes.
pub const MAX_REASON_BYTES: usize = 256;
/// Largest file that is read, in bytes.
const MAX_FILE_BYTES: u64 = 4096;
/// How much the clock may have been set back since it was switched.
const CLOCK_SLACK: Duration = Duration::from_secs(300);
/// The kernel's parameter.
const PARAMETER: &str = "palisade=";

/// What protection is switched to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum To {
    /// No open is seen.
    Off,
    /// Opens are seen, and none is held.
    Monitor,
}

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bypass {
    /// What protection is switched to.
    pub to: To,
    /// Since when, in seconds since 1970.
    pub since: u64,
    /// For how many seconds.
    pub for_s: u64,
    /// Why.
    pub reason: String,
}

impl Bypass {
    /// Seconds that are left; none when it is over. A clock that was set back beyond its
    /// beginning ends it, too: nothing switched is switched for ever.
    pub fn left(&self, now: u64) -> Option<u64> {
        let for_s = self.for_s.min(LONGEST.as_secs());
        let too_early = now.saturating_add(CLOCK_SLACK.as_secs()) < self.since;
        let until = self.since.saturating_add(for_s);
        (!too_early && now < until).then(|| (until - now).min(for_s))
    }
}

/// What is in force.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Switched {
    /// What protection is switched to.
    pub to: To,
    /// Why, for people.
    pub reason: String,
    /// For how long yet, if not until the next boot.
    pub left: Option<Duration>,
}

/// What the file and the kernel's command line come to; the latter goes first.
pub fn switched(bypass: Option<&Bypass>, command_line: &str, now: u64) -> Option<Switched> {
    let mut words = command_line.split_whitespace();
    let parameter = words.find_map(|word| match word.strip_prefix(PARAMETER)? {
        "off" => Some(To::Off),
        "monitor" => Some(To::Monitor),
        _ => None,
    });
    if let Some(to) = parameter {
        return Some(Switched {
            to,
            reason: "switched by the kernel parameter palisade=".to_owned()
                + match to {
                    To::Off => "off",
                    To::Monitor => "monitor",
                },
            left: None,
        });
    }
    let bypass = bypass?;
    let left = Duration::from_secs(bypass.left(now)?);
    Some(Switched {
        to: bypass.to,
        reason: format!("bypassed by an administrator: {}", bypass.reason),
        left: Some(left),
    })
}

/// The file in a state folder.
#[derive(Debug, Clone)]
pub struct BypassFile(StateFile);

impl BypassFile {
    /// The file in a state folder.
    pub fn new(state: &Path) -> Self {
        let path = state.join("bypass.json");
        let damaged = "a damaged bypass switches nothing";
        Self(StateFile::new(path, MAX_FILE_BYTES, damaged))
    }

    /// What it says. A damaged one switches nothing: it is said, and protection stays.
    pub fn load(&self) -> Option<Bypass> {
        self.0.load()
    }

    /// Keeps it.
    ///
    /// # Errors
    /// The system's.
    pub fn save(&self, bypass: &Bypass) -> std::io::Result<()> {
        self.0.save(bypass)
    }

    /// Ends it; says whether there was one.
    ///
    /// # Errors
    /// The system's.
    pub fn remove(&self) -> std::io::Result<bool> {
        self.0.remove()
    }

    /// What is in force now.
    pub fn switched(&self) -> Option<Switched> {
        let line = std::fs::read_to_string("/proc/cmdline").unwrap_or_default();
        switched(self.load().as_ref(), &line, now())
    }

    /// Waits until something else is in force than `at_start`; looks when it is told to,
    /// and when what is in force ends.
    pub async fn changed(&self, at_start: Option<&Switched>, look: Arc<Notify>) {
        loop {
            let now = self.switched();
            if now.as_ref().map(|now| (now.to, &now.reason))
                != at_start.map(|start| (start.to, &start.reason))
            {
                return;
            }
            let left = now.and_then(|now| now.left);
            tokio::select! {
                () = look.notified() => {}
                () = tokio::time::sleep(left.unwrap_or(LONGEST) + Duration::from_millis(100)) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn bypass(since: u64, for_s: u64) -> Bypass {
        Bypass {
            to: To::Off,
            since,
            for_s,
            reason: "a test".into(),
        }
    }

    proptest! {
        #[test]
        fn it_always_ends(since: u64, for_s: u64, now: u64) {
            if let Some(left) = bypass(since, for_s).left(now) {
                prop_assert!(left > 0 && left <= LONGEST.as_secs());
                // However the clock stood when it was looked at, it is over after that.
                prop_assert_eq!(bypass(since, for_s).left(now.saturating_add(left + CLOCK_SLACK.as_secs())), None);
            }
        }

        #[test]
        fn it_holds_while_it_should(since in 0..u64::MAX / 2, for_s in 1..LONGEST.as_secs(), at in 0.0..1.0f64) {
            let now = since + (for_s as f64 * at) as u64;
            let expected = (now < since + for_s).then(|| since + for_s - now);
            prop_assert_eq!(bypass(since, for_s).left(now), expected);
        }
    }

    #[test]
    fn the_kernel_parameter_counts_alone_and_exactly() {
        let to = |line: &str| switched(None, line, 0).map(|switched| switched.to);
        assert_eq!(to("quiet palisade=off ro\n"), Some(To::Off));
        assert_eq!(to("palisade=monitor"), Some(To::Monitor));
        for other in [
            "",
            "palisade=on",
            "palisade=offline",
            "xpalisade=off",
            "palisade",
        ] {
            assert_eq!(to(other), None, "{other}");
        }
    }

    #[test]
    fn a_damaged_file_switches_nothing() {
        let state = tempfile::tempdir().unwrap();
        let file = BypassFile::new(state.path());
        assert_eq!(file.load(), None);
        let long = bypass(now(), 60);
        file.save(&long).unwrap();
        assert_eq!(file.load(), Some(long));
        assert!(file.switched().is_some());
        for damaged in ["{", "[]", "{\"to\": \"off\"}", &" ".repeat(10_000)] {
            std::fs::write(state.path().join("bypass.json"), damaged).unwrap();
            assert_eq!(file.load(), None, "{damaged}");
        }
        assert!(file.remove().unwrap());
        assert!(!file.remove().unwrap());
    }
}
