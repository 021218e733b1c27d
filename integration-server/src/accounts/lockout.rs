//! When somebody may try again: back-off by account and by address. Pure; time is an
//! argument.
//!
//! | what is tried | is counted for |
//! | --- | --- |
//! | to log in | the account, or the name that is nobody's: it shall not tell them apart; and the address |
//! | to confirm a session, or to change its password | the session: whoever tries to log in from elsewhere does not keep its owner from it |
//!
//! Each attempt counts as a failure from its beginning, so that many at once are no more
//! than one after the other; one that succeeds takes itself back.

use std::net::IpAddr;

use uuid::Uuid;

/// A rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// Failures that cost nothing.
    pub free: u32,
    /// What the next one costs, in milliseconds; each further one twice as much.
    pub first_ms: u64,
    /// The most that one costs, in milliseconds.
    pub most_ms: u64,
    /// After how long without a failure all are forgotten, in milliseconds.
    pub forgotten_ms: u64,
}

/// Failures of one account, from wherever: at most 400 guesses a day. Whoever tries a name
/// over and over makes its owner wait for his next login, too; each wait is this long at
/// the most.
pub const ACCOUNT: Rule = Rule {
    free: 5,
    first_ms: 5_000,
    most_ms: 5 * 60_000,
    forgotten_ms: 3_600_000,
};

/// Failures from one address, of whatever account. People share one behind a router.
pub const ADDRESS: Rule = Rule {
    free: 20,
    first_ms: 5_000,
    most_ms: 15 * 60_000,
    forgotten_ms: 3_600_000,
};

/// Addresses that are remembered; with more, the oldest are forgotten.
pub const MAX_ADDRESSES: i64 = 10_000;

/// What failures are counted for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Counter {
    /// An account.
    Account(Uuid),
    /// A name that is no account's.
    Name(String),
    /// A session, of somebody who has logged in.
    Session(Uuid),
    /// Where somebody comes from ([`source`]).
    Source(String),
}

impl Counter {
    /// Its rule.
    pub fn rule(&self) -> Rule {
        match self {
            Self::Account(_) | Self::Name(_) | Self::Session(_) => ACCOUNT,
            Self::Source(_) => ADDRESS,
        }
    }

    /// What it is found by where it is no account.
    pub fn key(&self) -> String {
        match self {
            Self::Account(id) => format!("account {id}"),
            Self::Name(name) => format!("name {name}"),
            Self::Session(id) => format!("session {id}"),
            Self::Source(source) => source.clone(),
        }
    }
}

/// What is remembered of one of these.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Failures {
    /// How many there were.
    pub count: u32,
    /// When the last one was.
    pub last_ms: u64,
}

impl Failures {
    /// How long to wait still, in milliseconds; none when it may be tried now. A failure of
    /// a time that is yet to come, by a clock that was wrong, makes nobody wait for longer
    /// than twice what the rule says.
    pub fn wait_ms(self, rule: Rule, now_ms: u64) -> Option<u64> {
        let beyond = self.count.checked_sub(rule.free)?;
        let cost = 1_u64
            .checked_shl(beyond)
            .and_then(|factor| rule.first_ms.checked_mul(factor))
            .map_or(rule.most_ms, |cost| cost.min(rule.most_ms));
        if self.last_ms.saturating_sub(now_ms) > rule.most_ms {
            return None;
        }
        let passed = now_ms.saturating_sub(self.last_ms);
        cost.checked_sub(passed).filter(|left| *left > 0)
    }

    /// One more.
    #[must_use]
    pub fn and_one(self, rule: Rule, now_ms: u64) -> Self {
        let old = now_ms.saturating_sub(self.last_ms) >= rule.forgotten_ms;
        Self {
            count: if old { 1 } else { self.count.saturating_add(1) },
            last_ms: now_ms,
        }
    }
}

/// What an address is known by: whoever has one IPv6 address has its whole /64.
pub fn source(address: IpAddr) -> String {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            format!("{a:x}:{b:x}:{c:x}:{d:x}::/64")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_network_is_one_source() {
        let of = |text: &str| source(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
    }

    /// A day of somebody who tries whenever he is let.
    fn guesses(rule: Rule, day_ms: u64) -> u64 {
        let (mut now_ms, mut failures, mut guesses) = (0, Failures::default(), 0);
        while now_ms < day_ms {
            match failures.wait_ms(rule, now_ms) {
                Some(wait_ms) => now_ms += wait_ms,
                None => {
                    failures = failures.and_one(rule, now_ms);
                    guesses += 1;
                }
            }
        }
        guesses
    }

    #[test]
    fn a_day_has_few_guesses() {
        let day_ms = 24 * 3_600_000;
        assert!(
            guesses(ACCOUNT, day_ms) < 400,
            "{}",
            guesses(ACCOUNT, day_ms)
        );
        assert!(
            guesses(ADDRESS, day_ms) < 200,
            "{}",
            guesses(ADDRESS, day_ms)
        );
        // Waiting is not forgetting.
        const { assert!(ACCOUNT.most_ms < ACCOUNT.forgotten_ms) };
        const { assert!(ADDRESS.most_ms < ADDRESS.forgotten_ms) };
    }

    proptest! {
        #[test]
        fn the_wait_is_bounded_and_ends(count: u32, last_ms: u64, now_ms: u64) {
            let failures = Failures { count, last_ms };
            match failures.wait_ms(ACCOUNT, now_ms) {
                None => prop_assert!(
                    count < ACCOUNT.free
                        || now_ms.abs_diff(last_ms) >= ACCOUNT.first_ms
                ),
                Some(wait) => {
                    prop_assert!(wait <= ACCOUNT.most_ms && count >= ACCOUNT.free);
                    let then = now_ms.saturating_add(2 * ACCOUNT.most_ms);
                    prop_assert!(failures.wait_ms(ACCOUNT, then).is_none() || then == u64::MAX);
                }
            }
        }

        #[test]
        fn more_failures_never_wait_less(count in 0_u32..100, now_ms in 1_u64..1_000_000) {
            let wait = |count| Failures { count, last_ms: now_ms }.wait_ms(ADDRESS, now_ms).unwrap_or(0);
            prop_assert!(wait(count + 1) >= wait(count));
            prop_assert!(count < ADDRESS.free || wait(count) > 0);
        }
    }
}
