//! Durations as people write them: `30s`, `5m`, `1h`, `7d`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

/// A length of time of at least one second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Interval(Duration);

/// A text is not a duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a duration: a number and one of s, m, h, d is expected, like 30s, 5m, 1h or 7d"
)]
pub struct BadInterval(String);

impl Interval {
    /// Longest that can be asked for: ten years of 365 days.
    pub const MAX: Self = Self(Duration::from_secs(3650 * 24 * 3600));

    /// Whole seconds.
    pub const fn from_secs(seconds: u64) -> Self {
        Self(Duration::from_secs(seconds))
    }

    /// As the standard library's type.
    pub const fn get(self) -> Duration {
        self.0
    }
}

impl FromStr for Interval {
    type Err = BadInterval;
    fn from_str(text: &str) -> Result<Self, BadInterval> {
        let bad = || BadInterval(text.chars().take(32).collect());
        let unit = text.chars().next_back().ok_or_else(bad)?;
        let factor = match unit {
            's' => 1,
            'm' => 60,
            'h' => 3600,
            'd' => 24 * 3600,
            _ => return Err(bad()),
        };
        let digits = &text[..text.len() - 1];
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return Err(bad());
        }
        let seconds: u64 = digits.parse().map_err(|_| bad())?;
        let interval = Self(Duration::from_secs(
            seconds.checked_mul(factor).ok_or_else(bad)?,
        ));
        if interval.0.is_zero() || interval > Self::MAX {
            return Err(bad());
        }
        Ok(interval)
    }
}

impl fmt::Display for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0.as_secs();
        for (factor, unit) in [(24 * 3600, 'd'), (3600, 'h'), (60, 'm')] {
            if seconds.is_multiple_of(factor) {
                return write!(f, "{}{unit}", seconds / factor);
            }
        }
        write!(f, "{seconds}s")
    }
}

impl<'de> Deserialize<'de> for Interval {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?
            .parse()
            .map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_seconds_to_days() {
        for (text, seconds) in [("30s", 30), ("5m", 300), ("1h", 3600), ("7d", 604_800)] {
            let interval: Interval = text.parse().unwrap();
            assert_eq!(interval.get().as_secs(), seconds);
            assert_eq!(interval.to_string(), text);
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for text in [
            "",
            "s",
            "5",
            "-1s",
            "1.5h",
            "0s",
            "99999999999999999999d",
            "5000d",
            "1µ",
        ] {
            assert!(text.parse::<Interval>().is_err(), "{text}");
        }
    }
}
