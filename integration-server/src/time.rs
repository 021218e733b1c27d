//! The clocks, read at the edges only; everything inside takes time as an argument.
//!
//! Ages and graces are told by [`steady_ms`], which no change of the wall clock moves: set
//! back by an hour, that would make facts young and nobody lost for an hour. What people
//! read of it is turned into the wall clock's words by [`wall_ms`].

use std::sync::OnceLock;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use jiff::Timestamp;

/// Milliseconds since 1970, UTC.
pub fn now_ms() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    millis(since)
}

/// Milliseconds since 1970 as the wall clock had them when this was first asked, and what
/// has passed since: it only goes forward.
pub fn steady_ms() -> u64 {
    static START: OnceLock<(Instant, u64)> = OnceLock::new();
    let (start, start_ms) = START.get_or_init(|| (Instant::now(), now_ms()));
    start_ms.saturating_add(millis(start.elapsed()))
}

/// A steady moment by the wall clock as it goes now.
pub fn wall_ms(steady: u64) -> u64 {
    static SHIFT_MS: AtomicI64 = AtomicI64::new(0);
    let shift = shift(SHIFT_MS.load(Ordering::Relaxed), steady_ms(), now_ms());
    SHIFT_MS.store(shift, Ordering::Relaxed);
    steady.saturating_add_signed(shift)
}

/// By how much the wall clock is ahead, in milliseconds: it stays as it was, but for a jump,
/// so that a moment is printed the same each time.
fn shift(was: i64, steady_ms: u64, wall_ms: u64) -> i64 {
    const JUMP_MS: u64 = 1000;
    let shift = i64::try_from(i128::from(wall_ms) - i128::from(steady_ms)).unwrap_or(was);
    match shift.abs_diff(was) > JUMP_MS {
        true => shift,
        false => was,
    }
}

/// A duration in whole milliseconds.
pub fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// A moment as RFC 3339 in UTC, to the second's fraction that is not zero. What
/// lies outside the calendar (a peer's clock may say anything) is its nearest end.
pub fn rfc3339(ms: u64) -> String {
    let ms = i64::try_from(ms).unwrap_or(i64::MAX);
    Timestamp::from_millisecond(ms)
        .unwrap_or(Timestamp::MAX)
        .to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jump_moves_what_is_printed_and_nothing_else_does() {
        assert_eq!(shift(0, 10_000, 10_400), 0);
        assert_eq!(shift(0, 10_000, 9_001), 0);
        assert_eq!(
            shift(0, 10_000_000, 6_400_000),
            -3_600_000,
            "set back by an hour"
        );
        assert_eq!(shift(-3_600_000, 10_001_000, 6_401_003), -3_600_000);
        assert_eq!(shift(-3_600_000, 10_001_000, 10_001_000), 0);
        let (before, after) = (steady_ms(), steady_ms());
        assert!(before <= after);
    }

    #[test]
    fn any_clock_can_be_printed() {
        assert_eq!(rfc3339(0), "1970-01-01T00:00:00Z");
        assert_eq!(rfc3339(1_700_000_000_500), "2023-11-14T22:13:20.5Z");
        assert!(rfc3339(u64::MAX).starts_with("9999-"));
    }
}
