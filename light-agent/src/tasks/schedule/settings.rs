//! `[[schedule]]` of the settings: when which scan runs.

use std::collections::BTreeSet;
use std::fmt;
use std::path::PathBuf;

use jiff::civil::{Time, Weekday};
use palisade_protocol::bounded::PathBytes;
use serde::{Deserialize, Deserializer, de};

use crate::scan::hands::Priority;
use crate::scan::what::Kind;

pub use palisade_protocol::policy::settings::{MAX_IDLE_WAIT_MIN, MAX_SPREAD_MIN};

/// One schedule.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Schedule {
    /// What is scanned.
    pub kind: Kind,
    /// The paths of a custom scan.
    #[serde(default)]
    pub paths: Vec<PathBuf>,
    /// When, in local time.
    pub at: At,
    /// On which days.
    #[serde(default)]
    pub days: Days,
    /// Minutes over which the agents of a site spread their starts.
    #[serde(default)]
    pub spread_min: u32,
    /// Whether it waits for an idle machine.
    #[serde(default)]
    pub only_idle: bool,
    /// The load average per core below which a machine is idle.
    #[serde(default = "default_load")]
    pub idle_load: f64,
    /// Minutes that it waits for that.
    #[serde(default = "default_wait")]
    pub idle_wait_min: u32,
    /// And what follows if the machine does not become idle.
    #[serde(default)]
    pub if_never_idle: IfNeverIdle,
    /// How much it gives way; as tasks do, if none.
    #[serde(default)]
    pub priority: Option<Priority>,
}

fn default_load() -> f64 {
    0.5
}

fn default_wait() -> u32 {
    120
}

/// What follows when a machine does not become idle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IfNeverIdle {
    /// The scan runs anyway.
    #[default]
    Run,
    /// It waits for the next time.
    Skip,
}

/// A time of day: `"02:30"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct At(pub Time);

impl<'de> Deserialize<'de> for At {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        let parsed = text.split_once(':').and_then(|(hour, minute)| {
            let two = |text: &str| (text.len() == 2).then(|| text.parse::<i8>().ok()).flatten();
            Time::new(two(hour)?, two(minute)?, 0, 0).ok()
        });
        parsed.map(Self).ok_or_else(|| {
            de::Error::custom(format!("{text:?} is no time of day such as \"02:30\""))
        })
    }
}

impl fmt::Display for At {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:02}:{:02}", self.0.hour(), self.0.minute())
    }
}

/// Days of the week, by the distance from Monday; none means every day.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Days(BTreeSet<i8>);

const NAMES: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];

impl Days {
    /// Whether a day is one of them.
    pub fn holds(&self, day: Weekday) -> bool {
        self.0.is_empty() || self.0.contains(&day.to_monday_zero_offset())
    }
}

impl<'de> Deserialize<'de> for Days {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(
            untagged,
            expecting = "days is \"every\", or a list of some of mon, tue, wed, thu, fri, sat, sun"
        )]
        enum Said {
            Word(String),
            List(Vec<String>),
        }
        let wrong = |text: &str| {
            de::Error::custom(format!(
                "{text:?} is neither \"every\" nor one of {NAMES:?}"
            ))
        };
        let names = match Said::deserialize(deserializer)? {
            Said::Word(word) if word == "every" => return Ok(Self::default()),
            Said::Word(word) => return Err(wrong(&word)),
            Said::List(names) => names,
        };
        if names.is_empty() {
            return Err(de::Error::custom(
                "days is empty; leave it out for every day",
            ));
        }
        let days = names.iter().map(|name| {
            let day = NAMES.iter().position(|known| known == name);
            day.and_then(|day| i8::try_from(day).ok())
                .ok_or_else(|| wrong(name))
        });
        days.collect::<Result<_, _>>().map(Self)
    }
}

impl fmt::Display for Days {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return write!(f, "every day");
        }
        let names = self.0.iter().filter_map(|day| {
            usize::try_from(*day)
                .ok()
                .and_then(|day| NAMES.get(day).copied())
        });
        write!(f, "{}", names.collect::<Vec<_>>().join(", "))
    }
}

/// The schedule's name: what is scanned when. A schedule that is changed is another.
impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at {}, {}", self.kind.as_str(), self.at, self.days)?;
        for path in &self.paths {
            write!(f, ", {}", PathBytes::from_path(path))?;
        }
        Ok(())
    }
}

impl Schedule {
    /// The first value that cannot be used: which, and why.
    pub fn problem(&self) -> Option<(&'static str, String)> {
        let relative = self.paths.iter().find(|path| !path.is_absolute());
        if let Some(path) = relative {
            let problem = format!("{} is not an absolute path", path.display());
            return Some(("schedule.paths", problem));
        }
        if (self.kind == Kind::Custom) == self.paths.is_empty() {
            let problem = "a custom scan takes paths, and no other does";
            return Some(("schedule.paths", problem.to_owned()));
        }
        if self.paths.len() > crate::tasks::book::MAX_PATHS {
            let problem = format!("there are more than {}", crate::tasks::book::MAX_PATHS);
            return Some(("schedule.paths", problem));
        }
        let bounds = [
            ("schedule.spread_min", self.spread_min, MAX_SPREAD_MIN),
            (
                "schedule.idle_wait_min",
                self.idle_wait_min,
                MAX_IDLE_WAIT_MIN,
            ),
        ];
        for (key, value, max) in bounds {
            if value > max {
                return Some((key, format!("{value} is not within 0 to {max}")));
            }
        }
        if !(0.0..=100.0).contains(&self.idle_load) {
            let problem = format!("{} is not within 0 to 100", self.idle_load);
            return Some(("schedule.idle_load", problem));
        }
        None
    }
}
