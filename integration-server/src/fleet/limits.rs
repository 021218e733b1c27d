//! How often may be asked: a token bucket for all, and one for each source. Pure;
//! time is an argument.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};

/// A rate with a burst.
#[derive(Debug, Clone, Copy)]
pub struct Rate {
    /// Requests a second in the long run.
    pub per_second: u32,
    /// Requests at once after a rest.
    pub burst: u32,
}

/// Enrolments of all sources together.
pub const ENROL_GLOBAL: Rate = Rate {
    per_second: 100,
    burst: 500,
};
/// Enrolments of one source. Guests may share one behind a router.
pub const ENROL_SOURCE: Rate = Rate {
    per_second: 10,
    burst: 100,
};
/// Sources that are remembered; with more, the global rate alone applies.
const MAX_SOURCES: usize = 4096;

/// What counts as one source: an IPv4 address, or the 64 bits of an IPv6 network, within
/// which anybody has as many addresses as he likes.
pub fn source_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => {
            let network = u128::from(address) & !u128::from(u64::MAX);
            IpAddr::V6(Ipv6Addr::from(network))
        }
    }
}

/// How many each source has open; as many sources as have any.
#[derive(Debug, Default)]
pub struct Open(HashMap<IpAddr, usize>);

impl Open {
    /// One more, unless the source has so many; false then.
    pub fn add(&mut self, source: IpAddr, most: usize) -> bool {
        let open = self.0.entry(source).or_default();
        let room = *open < most;
        *open += usize::from(room);
        room
    }

    /// One less.
    pub fn remove(&mut self, source: IpAddr) {
        if let Some(open) = self.0.get_mut(&source) {
            *open = open.saturating_sub(1);
            if *open == 0 {
                self.0.remove(&source);
            }
        }
    }
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    /// Thousandths of a request.
    left: u64,
    at_ms: u64,
}

impl Bucket {
    fn full(rate: Rate, now_ms: u64) -> Self {
        Self {
            left: u64::from(rate.burst) * 1000,
            at_ms: now_ms,
        }
    }

    fn refill(&mut self, rate: Rate, now_ms: u64) {
        let passed = now_ms.saturating_sub(self.at_ms);
        let gained = passed.saturating_mul(u64::from(rate.per_second));
        self.left = self
            .left
            .saturating_add(gained)
            .min(u64::from(rate.burst) * 1000);
        self.at_ms = self.at_ms.max(now_ms);
    }

    fn is_full(&self, rate: Rate) -> bool {
        self.left == u64::from(rate.burst) * 1000
    }
}

/// Both limits together.
#[derive(Debug)]
pub struct Limiter {
    global_rate: Rate,
    source_rate: Rate,
    global: Bucket,
    sources: HashMap<IpAddr, Bucket>,
}

impl Limiter {
    /// Full buckets.
    pub fn new(global_rate: Rate, source_rate: Rate, now_ms: u64) -> Self {
        let global = Bucket::full(global_rate, now_ms);
        Self {
            global_rate,
            source_rate,
            global,
            sources: HashMap::new(),
        }
    }

    /// Whether one more request of this source is allowed now; it then counts.
    pub fn allow(&mut self, source: IpAddr, now_ms: u64) -> bool {
        self.global.refill(self.global_rate, now_ms);
        if self.global.left < 1000 {
            return false;
        }
        if let Some(bucket) = self.bucket(source, now_ms) {
            if bucket.left < 1000 {
                return false;
            }
            bucket.left -= 1000;
        }
        self.global.left -= 1000;
        true
    }

    fn bucket(&mut self, source: IpAddr, now_ms: u64) -> Option<&mut Bucket> {
        let rate = self.source_rate;
        if !self.sources.contains_key(&source) && self.sources.len() >= MAX_SOURCES {
            self.sources.retain(|_, bucket| {
                bucket.refill(rate, now_ms);
                !bucket.is_full(rate)
            });
            if self.sources.len() >= MAX_SOURCES {
                return None;
            }
        }
        let bucket = self
            .sources
            .entry(source)
            .or_insert_with(|| Bucket::full(rate, now_ms));
        bucket.refill(rate, now_ms);
        Some(bucket)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_has_its_places_and_no_other_one_s() {
        let of = |address: &str| source_of(address.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1:2:3"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
        let (one, other) = (of("192.0.2.1"), of("192.0.2.2"));
        let mut open = Open::default();
        assert!(open.add(one, 2) && open.add(one, 2));
        assert!(!open.add(one, 2));
        assert!(open.add(other, 2));
        open.remove(one);
        assert!(open.add(one, 2) && !open.add(one, 2));
        for source in [one, one, other] {
            open.remove(source);
        }
        assert!(open.0.is_empty());
    }

    const RATE: Rate = Rate {
        per_second: 1,
        burst: 3,
    };
    const MANY: Rate = Rate {
        per_second: 1000,
        burst: 100_000,
    };

    fn source(last: u8) -> IpAddr {
        IpAddr::from([192, 0, 2, last])
    }

    #[test]
    fn a_burst_then_the_rate_and_sources_apart() {
        let mut limiter = Limiter::new(MANY, RATE, 0);
        assert_eq!((0..9).filter(|_| limiter.allow(source(1), 0)).count(), 3);
        assert!(limiter.allow(source(2), 0), "another source is not held up");
        assert!(!limiter.allow(source(1), 999));
        assert!(limiter.allow(source(1), 1000));
        assert!(!limiter.allow(source(1), 1000));
        assert_eq!(
            (0..9)
                .filter(|_| limiter.allow(source(1), 1_000_000))
                .count(),
            3
        );
    }

    #[test]
    fn the_global_rate_holds_for_any_number_of_sources() {
        let mut limiter = Limiter::new(RATE, MANY, 0);
        assert_eq!((0..200).filter(|n| limiter.allow(source(*n), 0)).count(), 3);
    }

    #[test]
    fn memory_is_bounded_and_a_clock_that_goes_back_gives_nothing() {
        let mut limiter = Limiter::new(MANY, RATE, 10_000);
        for n in 0..10_000_u32 {
            limiter.allow(IpAddr::from(n.to_be_bytes()), 10_000);
        }
        assert!(limiter.sources.len() <= MAX_SOURCES);
        let mut limiter = Limiter::new(MANY, RATE, 10_000);
        assert_eq!(
            (0..9)
                .filter(|n| limiter.allow(source(1), 10_000 - n))
                .count(),
            3
        );
    }
}
